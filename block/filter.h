/* What a filter does with everything it does not care about: hands it to the node below. */
#ifndef BLOCK_FILTER_H
#define BLOCK_FILTER_H

#include "block/driver.h"

static inline struct blk_node *filter_below(struct blk_node *n)
{
    return node_child(n, EDGE_FILE);
}

/* In open: as large as the node below, and growing with it. */
static inline void filter_adopt(struct blk_node *n)
{
    node_set_size(n, blk_size(filter_below(n)));
    if (!node_grows(filter_below(n)))
        node_set_fixed_size(n);
}

static inline int filter_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov,
                                int iovcnt, uint64_t len, unsigned flags)
{
    (void)len;
    return blk_readv(filter_below(n), off, iov, iovcnt, flags);
}

static inline int filter_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov,
                                 int iovcnt, uint64_t len, unsigned flags)
{
    (void)len;
    return blk_writev(filter_below(n), off, iov, iovcnt, flags);
}

static inline int filter_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    return blk_zero(filter_below(n), off, len, flags);
}

static inline int filter_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    return blk_discard(filter_below(n), off, len);
}

/* Without the place: bytes taken straight from the file would pass the filter by. */
static inline int filter_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                                 struct blk_extent *out)
{
    int ret = blk_extents(filter_below(n), off, len, flags, out);

    out->flags &= ~(unsigned)BLK_EXT_HOST;
    out->host = NULL;
    return ret;
}

static inline int filter_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc,
                                struct error **err)
{
    return blk_resize(filter_below(n), size, prealloc, err);
}

#endif
