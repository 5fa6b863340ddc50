/* Filter: every write is stored compressed.
 *
 * Requests are whole units of the image below (limits.align makes the core read what a guest's write leaves out
 * of its first and last unit). A disk that ends within a unit is treated as if zeroes followed.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/macros.h"
#include "base/round.h"
#include "block/driver_leaves.h"
#include "filter.h"
#include "slice.h"

/* How much of [off, off+len) lies on the disk. */
static uint64_t inside(struct blk_node *n, uint64_t off, uint64_t len)
{
    uint64_t size = blk_size(filter_below(n));
    return off < size ? MIN(len, size - off) : 0;
}

static int compress_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                           uint64_t len, unsigned flags)
{
    struct iov_cursor at = iov_begin(iov, iovcnt);
    uint64_t there = inside(n, off, len);
    struct slice s;

    if (there == len)
        return blk_readv(filter_below(n), off, iov, iovcnt, flags);
    int ret = slice_take(&s, &at, there, 0);
    if (ret < 0)
        return ret;
    if (there)
        ret = blk_readv(filter_below(n), off, s.iov, s.count, flags);
    slice_free(&s);
    if (ret == 0)
        iov_fill(&at, 0, len - there);
    return ret;
}

static int compress_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                            uint64_t len, unsigned flags)
{
    struct iov_cursor at = iov_begin(iov, iovcnt);
    struct slice s;

    if (flags & BLK_NOWAIT)
        return -EAGAIN;
    int ret = slice_take(&s, &at, inside(n, off, len), 0);
    if (ret < 0)
        return ret;
    ret = blk_writev(filter_below(n), off, s.iov, s.count, flags | BLK_COMPRESSED);
    slice_free(&s);
    return ret;
}

static int compress_open(struct blk_node *n, const void *options, struct error **err)
{
    struct blk_node *image = filter_below(n);
    struct blk_limits limits;

    (void)options;
    blk_get_limits(image, &limits);
    if (!limits.max_compressed)
        return error_set(err, ENOTSUP, "%s: the format %s cannot store compressed data",
                         blk_filename(image), blk_format(image));
    node_limits(n)->align = (uint32_t)limits.max_compressed;
    filter_adopt(n);
    return 0;
}

const struct driver compress_driver = {
    .name = "compress",
    .kind = BLK_FILTER,
    .flags = DRIVER_PARALLEL,
    .open = compress_open,
    .preadv = compress_preadv,
    .pwritev = compress_pwritev,
    .zero = filter_zero,
    .discard = filter_discard,
    .extents = filter_extents,
    .resize = filter_resize,
};
