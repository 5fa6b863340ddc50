/* The data path's one way in: every operation is wrapped here, once for all drivers.
 *
 * In order: is it allowed, is it in range, through the gate, then to the mapped path (formats) or to the
 * driver (leaves and filters), through the bounce buffer where alignment asks for it. Range, overflow and
 * alignment hold from here on; drivers do not check them.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/checked.h"
#include "base/iov.h"
#include "base/macros.h"
#include "base/round.h"
#include "node.h"

#define DEFAULT_MAX_TRANSFER (UINT64_C(1) << 30)
#define ZERO_BLOCK           (64 << 10)
#define ZERO_IOVS            16

static const uint8_t zero_block[ZERO_BLOCK];

/* ---- what every operation asks first -------------------------------------------------------- */

/* A filter grows with what it filters. */
static bool grows(const struct blk_node *n)
{
    while (n->drv->kind == BLK_FILTER && n->edge[EDGE_FILE])
        n = n->edge[EDGE_FILE];
    return n->grows;
}

bool node_grows(struct blk_node *n)
{
    return grows(n);
}

static int check_range(struct blk_node *n, uint64_t off, uint64_t len)
{
    uint64_t end;

    if (!checked_add(off, len, &end) || end > INT64_MAX)
        return -EINVAL;
    return grows(n) || end <= atomic_load(&n->size) ? 0 : -EINVAL;
}

static int check_writable(struct blk_node *n)
{
    if (n->read_only)
        return -EACCES;
    return atomic_load(&n->failed) ? -EIO : 0;
}

static int check_change(struct blk_node *n, uint64_t off, uint64_t len)
{
    int ret = check_writable(n);
    return ret < 0 ? ret : check_range(n, off, len);
}

/* A leaf that grows is as long as the farthest byte written. */
static void note_growth(struct blk_node *n, uint64_t end)
{
    uint64_t size = atomic_load(&n->size);

    while (grows(n) && size < end)
        if (atomic_compare_exchange_weak(&n->size, &size, end))
            break;
}

static uint64_t max_transfer(const struct blk_node *n)
{
    return n->limits.max_transfer ? n->limits.max_transfer : DEFAULT_MAX_TRANSFER;
}

/* ---- one transfer ------------------------------------------------------------------------------ */

static int read_once(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                     uint64_t len, unsigned flags)
{
    if (n->drv->map_read)
        return mapped_read(n, off, iov, iovcnt, len, flags);
    if (bounce_needed(n, off, iov, iovcnt, len))
        return bounce_read(n, off, iov, iovcnt, len, flags);
    driver_lock(n);
    int ret = n->drv->preadv(n, off, iov, iovcnt, len, flags & BLK_NOWAIT);
    driver_unlock(n);
    return ret;
}

int io_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt, uint64_t len,
               unsigned flags)
{
    node_event(n, EVENT_PWRITEV);
    driver_lock(n);
    int ret = n->drv->pwritev(n, off, iov, iovcnt, len, flags & (BLK_FUA | BLK_NOWAIT));
    driver_unlock(n);
    node_event(n, EVENT_PWRITEV_DONE);
    return ret;
}

static int write_once(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                      uint64_t len, unsigned flags)
{
    int ret;

    if (n->drv->write_begin)
        return mapped_write(n, off, iov, iovcnt, len, flags);
    if (!n->drv->pwritev)
        return -ENOTSUP;
    if (n->limits.align > 1 || n->limits.mem_align > 1) {
        ret = bounce_write(n, off, iov, iovcnt, len, flags);
    } else {
        ret = io_pwritev(n, off, iov, iovcnt, len, flags);
    }
    if (ret == 0)
        note_growth(n, off + len);
    return ret;
}

/* Cuts a request into transfers that the driver takes. */
static int in_transfers(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                        uint64_t len, unsigned flags, io_write_fn *once)
{
    uint64_t max = max_transfer(n);

    if (len <= max && iovcnt <= IOV_MAX)
        return once(n, off, iov, iovcnt, len, flags);

    struct iov_cursor at = iov_begin(iov, iovcnt);
    while (len > 0) {
        struct iovec part[64];
        uint64_t piece = MIN(len, max);
        int count = iov_slice_some(&at, &piece, part, (int)ARRAY_SIZE(part));
        int ret = once(n, off, part, count, piece, flags);
        if (ret < 0)
            return ret;
        off += piece;
        len -= piece;
    }
    return 0;
}

/* Formats that flush in an order of their own tell their file when it is its turn. */
static void announce_flush(struct blk_node *n)
{
    struct blk_node *file = n->edge[EDGE_FILE];

    if (!file || (n->drv->map_read && n->drv->flush))
        return;
    node_event(file, EVENT_FLUSH_TO_OS);
    node_event(file, EVENT_FLUSH_TO_DISK);
}

static int flush_once(struct blk_node *n)
{
    int ret = 0;

    announce_flush(n);
    driver_lock(n);
    if (n->drv->flush)
        ret = n->drv->flush(n);
    else if (n->edge[EDGE_FILE])
        ret = blk_flush(n->edge[EDGE_FILE]);
    driver_unlock(n);
    return ret;
}

/* Formats cannot pass FUA down: what it promises takes their metadata too. */
static int finish_write(struct blk_node *n, unsigned flags)
{
    if (!(flags & BLK_FUA) || !n->drv->map_read)
        return 0;
    return flush_once(n);
}

/* ---- reading ------------------------------------------------------------------------------------ */

int blk_readv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt, unsigned flags)
{
    uint64_t len = iov_length(iov, iovcnt);
    int ret = check_range(n, off, len);

    if (ret < 0 || len == 0)
        return ret;
    int ticket = gate_enter(&n->gate, flags & BLK_NOWAIT);
    if (ticket < 0)
        return -EAGAIN;
    ret = in_transfers(n, off, iov, iovcnt, len, flags, read_once);
    gate_leave(&n->gate, ticket);
    return ret;
}

int blk_read(struct blk_node *n, uint64_t off, void *buf, size_t len, unsigned flags)
{
    struct iovec iov = { .iov_base = buf, .iov_len = len };
    return blk_readv(n, off, &iov, 1, flags);
}

/* ---- writing ------------------------------------------------------------------------------------ */

/* A disk taken for raw by guess must not become another format by what is written into its first
 * bytes: the next guess would follow references of the guest's making. */
static int guard_magic(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                       uint64_t len)
{
    uint8_t head[PROBE_BYTES] = { 0 };
    struct iov_cursor at = iov_begin(iov, iovcnt);
    uint64_t size = atomic_load(&n->size);

    if (!n->guard_magic || off >= sizeof(head))
        return 0;
    struct iovec whole = { .iov_base = head, .iov_len = MIN(size, (uint64_t)sizeof(head)) };
    int ret = whole.iov_len ? read_once(n, 0, &whole, 1, whole.iov_len, 0) : 0;
    if (ret < 0)
        return ret;
    iov_read(&at, head + off, MIN(len, sizeof(head) - off));
    return probe_bytes(head, NULL) == n->drv && !probe_wrapped(head) ? 0 : -EPERM;
}

static int zero_inside(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);

static bool became_zero(struct blk_node *n, const struct iovec *iov, int iovcnt, uint64_t len,
                        unsigned flags)
{
    struct iov_cursor at = iov_begin(iov, iovcnt);

    return n->detect != DETECT_OFF && !(flags & (BLK_COMPRESSED | BLK_NOWAIT)) &&
           iov_is_zero(&at, len);
}

static int write_inside(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                        uint64_t len, unsigned flags)
{
    int ret = guard_magic(n, off, iov, iovcnt, len);

    if (ret < 0)
        return ret;
    if (became_zero(n, iov, iovcnt, len, flags))
        ret = zero_inside(n, off, len, n->detect == DETECT_UNMAP ? BLK_MAY_UNMAP : 0);
    else if (flags & BLK_COMPRESSED)
        ret = n->drv->encode && !n->limits.no_encoding
                  ? mapped_write_compressed(n, off, iov, iovcnt, len)
                  : -ENOTSUP;
    else
        ret = in_transfers(n, off, iov, iovcnt, len, flags, write_once);
    return ret < 0 ? ret : finish_write(n, flags);
}

int blk_writev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
               unsigned flags)
{
    uint64_t len = iov_length(iov, iovcnt);
    int ret = check_change(n, off, len);

    if (ret < 0 || len == 0)
        return ret;
    if (n->writethrough)
        flags |= BLK_FUA;
    int ticket = gate_enter(&n->gate, flags & BLK_NOWAIT);
    if (ticket < 0)
        return -EAGAIN;
    ret = write_inside(n, off, iov, iovcnt, len, flags);
    gate_leave(&n->gate, ticket);
    return ret;
}

int blk_write(struct blk_node *n, uint64_t off, const void *buf, size_t len, unsigned flags)
{
    struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = len };
    return blk_writev(n, off, &iov, 1, flags);
}

int io_write_encoded(struct blk_node *n, uint64_t off, uint64_t len, const void *enc,
                     uint64_t enc_len)
{
    int ret = check_change(n, off, len);

    if (ret < 0)
        return ret;
    int ticket = gate_enter(&n->gate, 0);
    ret = mapped_store_encoded(n, off, len, enc, enc_len);
    gate_leave(&n->gate, ticket);
    return ret;
}

/* ---- zeroes ------------------------------------------------------------------------------------- */

int io_write_zeroes(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                    io_write_fn *write)
{
    struct iovec iov[ZERO_IOVS];

    while (len > 0) {
        int count = 0;
        uint64_t piece = 0;
        while (count < ZERO_IOVS && piece < len) {
            uint64_t here = MIN(len - piece, (uint64_t)ZERO_BLOCK);
            iov[count++] = (struct iovec){ (void *)(uintptr_t)zero_block, here };
            piece += here;
        }
        int ret = write(n, off, iov, count, piece, flags);
        if (ret < 0)
            return ret;
        off += piece;
        len -= piece;
    }
    return 0;
}

/* A leaf's or filter's zero; ranges that are not aligned are written. */
static int zero_leaf(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    uint32_t align = n->limits.align;

    if (!n->drv->zero || !is_aligned(off, align) || !is_aligned(len, align))
        return -ENOTSUP;
    node_event(n, EVENT_PWRITEV_ZERO);
    driver_lock(n);
    int ret = n->drv->zero(n, off, len, flags & (BLK_FUA | BLK_MAY_UNMAP | BLK_NO_FALLBACK));
    driver_unlock(n);
    node_event(n, EVENT_PWRITEV_DONE);
    if (ret == 0)
        note_growth(n, off + len);
    return ret;
}

static int zero_inside(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    if (!n->unmap)
        flags &= ~(unsigned)BLK_MAY_UNMAP;
    if (n->drv->write_begin)
        return mapped_zero(n, off, len, flags);

    int ret = zero_leaf(n, off, len, flags);
    if (ret == -ENOTSUP && !(flags & BLK_NO_FALLBACK))
        ret = io_write_zeroes(n, off, len, flags & BLK_FUA, write_once);
    return ret;
}

int blk_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    int ret = check_change(n, off, len);

    if (ret < 0 || len == 0)
        return ret;
    if (n->writethrough)
        flags |= BLK_FUA;
    int ticket = gate_enter(&n->gate, false);
    ret = zero_inside(n, off, len, flags);
    if (ret == 0)
        ret = finish_write(n, flags);
    gate_leave(&n->gate, ticket);
    return ret;
}

/* ---- discard, flush ------------------------------------------------------------------------------ */

static int discard_leaf(struct blk_node *n, uint64_t off, uint64_t len)
{
    uint64_t start = align_up(off, n->limits.align);
    uint64_t end = align_down(off + len, n->limits.align);

    if (!n->drv->discard || start >= end)
        return 0;
    driver_lock(n);
    int ret = n->drv->discard(n, start, end - start);
    driver_unlock(n);
    return ret == -ENOTSUP ? 0 : ret;
}

int blk_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    int ret = check_change(n, off, len);

    if (ret < 0 || len == 0 || !n->unmap)
        return ret;
    int ticket = gate_enter(&n->gate, false);
    ret = n->drv->map_read ? mapped_discard(n, off, len) : discard_leaf(n, off, len);
    gate_leave(&n->gate, ticket);
    return ret;
}

int blk_flush(struct blk_node *n)
{
    if (n->read_only)
        return 0;
    int ticket = gate_enter(&n->gate, false);
    int ret = flush_once(n);
    gate_leave(&n->gate, ticket);
    return ret;
}

/* ---- extents ------------------------------------------------------------------------------------- */

static int extents_leaf(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                        struct blk_extent *out)
{
    if (!n->drv->extents) {
        out->length = len;
        out->flags = BLK_EXT_DATA;
        return 0;
    }
    driver_lock(n);
    int ret = n->drv->extents(n, off, len, flags, out);
    driver_unlock(n);
    return ret;
}

int blk_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                struct blk_extent *out)
{
    int ret = check_range(n, off, len);

    if (ret < 0)
        return ret;
    if (len == 0)
        return -EINVAL;
    int ticket = gate_enter(&n->gate, flags & BLK_NOWAIT);
    if (ticket < 0)
        return -EAGAIN;
    *out = (struct blk_extent){ .offset = off };
    if (n->drv->map_read) {
        ret = mapped_extents(n, off, len, flags, out);
    } else {
        ret = extents_leaf(n, off, len, flags, out);
        if (n->drv->kind != BLK_FILTER || !n->drv->extents)
            out->flags |= BLK_EXT_ALLOCATED;
    }
    out->offset = off;
    gate_leave(&n->gate, ticket);
    return ret;
}

/* ---- points for tests ------------------------------------------------------------------------------ */

void node_event(struct blk_node *child, enum blk_event event)
{
    if (child->drv->event)
        child->drv->event(child, event);
}

int blk_debug(struct blk_node *n, enum blk_debug_call call, const char *event, const char *tag)
{
    while (n && !n->drv->debug)
        n = n->edge[EDGE_FILE];
    return n ? n->drv->debug(n, call, event, tag) : -ENOTSUP;
}
