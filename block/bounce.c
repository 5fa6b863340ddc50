/* Requests that do not fit the alignment of the node below: O_DIRECT, mostly.
 *
 * A write that covers blocks partly reads them first. While it does, no other write may change
 * those blocks, or its bytes would be put back: on nodes with an alignment every write holds a reservation
 * on the blocks it touches.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/iov.h"
#include "base/macros.h"
#include "base/round.h"
#include "node.h"

/* Bytes bounced at a time: bounds the memory of a request. */
#define BOUNCE_MAX (1 << 20)

bool bounce_needed(const struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                   uint64_t len)
{
    const struct node_limits *l = &n->limits;

    return !is_aligned(off | len, l->align) || !iov_is_aligned(iov, iovcnt, l->mem_align);
}

/* *room: bytes of whole blocks that hold what a request of len bytes touches, or a bounded part of it. */
static void *alloc_bounce(const struct blk_node *n, uint64_t len, uint64_t *room)
{
    size_t align = MAX((size_t)n->limits.mem_align, sizeof(void *));
    uint32_t block = n->limits.align;

    *room = align_up(MIN(len, (uint64_t)BOUNCE_MAX) + 2 * (uint64_t)block, block);
    return aligned_alloc(align, align_up(*room, align));
}

static int driver_read(struct blk_node *n, uint64_t off, void *buf, uint64_t len, unsigned flags)
{
    struct iovec iov = { .iov_base = buf, .iov_len = len };

    driver_lock(n);
    int ret = n->drv->preadv(n, off, &iov, 1, len, flags & BLK_NOWAIT);
    driver_unlock(n);
    return ret;
}

int bounce_read(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt, uint64_t len,
                unsigned flags)
{
    uint32_t align = n->limits.align;
    struct iov_cursor at = iov_begin(iov, iovcnt);
    uint64_t room;
    uint8_t *buf = alloc_bounce(n, len, &room);
    int ret = 0;

    if (!buf)
        return -ENOMEM;
    while (len > 0 && ret == 0) {
        uint64_t start = align_down(off, align);
        uint64_t piece = MIN(len, room - (off - start));
        ret = driver_read(n, start, buf, align_up(off + piece, align) - start, flags);
        if (ret == 0)
            iov_write(&at, buf + (off - start), piece);
        off += piece;
        len -= piece;
    }
    free(buf);
    return ret;
}

static int read_edge(struct blk_node *n, uint8_t *buf, uint64_t off, enum blk_event before,
                     enum blk_event after)
{
    node_event(n, before);
    int ret = driver_read(n, off, buf, n->limits.align, 0);
    if (ret == 0)
        node_event(n, after);
    return ret;
}

/* Fills the parts of the first and last block that the request does not write. */
static int read_edges(struct blk_node *n, uint8_t *buf, uint64_t start, uint64_t end, uint64_t off,
                      uint64_t len)
{
    uint32_t align = n->limits.align;
    int ret = 0;

    if (off > start)
        ret = read_edge(n, buf, start, EVENT_PWRITEV_RMW_HEAD, EVENT_PWRITEV_RMW_AFTER_HEAD);
    if (ret == 0 && off + len < end && (end - align > start || off == start))
        ret = read_edge(n, buf + (end - align - start), end - align, EVENT_PWRITEV_RMW_TAIL,
                        EVENT_PWRITEV_RMW_AFTER_TAIL);
    return ret;
}

static int write_bounced(struct blk_node *n, uint64_t off, struct iov_cursor *at, uint64_t len,
                         uint8_t *buf, unsigned flags)
{
    uint32_t align = n->limits.align;
    uint64_t start = align_down(off, align), end = align_up(off + len, align);
    struct iovec iov = { .iov_base = buf, .iov_len = end - start };

    int ret = read_edges(n, buf, start, end, off, len);
    if (ret < 0)
        return ret;
    iov_read(at, buf + (off - start), len);
    return io_pwritev(n, start, &iov, 1, end - start, flags);
}

static int write_in_pieces(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                           uint64_t len, unsigned flags)
{
    uint32_t align = n->limits.align;
    struct iov_cursor at = iov_begin(iov, iovcnt);
    uint64_t room;
    uint8_t *buf = alloc_bounce(n, len, &room);
    int ret = 0;

    if (!buf)
        return -ENOMEM;
    while (len > 0 && ret == 0) {
        uint64_t piece = MIN(len, room - (off - align_down(off, align)));
        ret = write_bounced(n, off, &at, piece, buf, flags);
        off += piece;
        len -= piece;
    }
    free(buf);
    return ret;
}

int bounce_write(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                 uint64_t len, unsigned flags)
{
    struct reservation held;
    uint32_t align = n->limits.align;
    bool bounce = bounce_needed(n, off, iov, iovcnt, len);

    if (bounce && (flags & BLK_NOWAIT))
        return -EAGAIN;
    if (!reserve_take(&n->reserve, &held, align_down(off, align), align_up(off + len, align),
                      flags & BLK_NOWAIT))
        return -EAGAIN;
    int ret = bounce ? write_in_pieces(n, off, iov, iovcnt, len, flags)
                     : io_pwritev(n, off, iov, iovcnt, len, flags);
    reserve_release(&n->reserve, &held);
    return ret;
}
