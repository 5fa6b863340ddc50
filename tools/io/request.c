#include "request.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/macros.h"
#include "base/round.h"

enum { SECTOR = 512 };

uint64_t request_size(struct blk_node *node)
{
    return round_up(blk_size(node), SECTOR);
}

static bool inside(struct blk_node *node, int64_t offset, uint64_t len)
{
    return offset >= 0 && range_inside((uint64_t)offset, len, request_size(node));
}

/* Makes room for the last sector, when the request reaches into what is missing of it. */
static int grow_tail(struct blk_node *node, int64_t offset, uint64_t len)
{
    if (len == 0 || range_inside((uint64_t)offset, len, blk_size(node)))
        return 0;
    return blk_resize(node, request_size(node), BLK_PREALLOC_OFF, NULL);
}

static int read_tail(struct blk_node *node, uint64_t offset, const struct iovec *iov, int iovcnt,
                     uint64_t len)
{
    uint64_t size = blk_size(node), have = offset < size ? MIN(size - offset, len) : 0;
    _cleanup_free_ void *bytes = calloc(1, len);
    if (!bytes)
        return -ENOMEM;
    int r = have ? blk_read(node, offset, bytes, have, 0) : 0;
    struct iov_cursor to = iov_begin(iov, iovcnt);
    if (r == 0)
        iov_write(&to, bytes, len);
    return r;
}

int request_readv(struct blk_node *node, int64_t offset, const struct iovec *iov, int iovcnt)
{
    uint64_t len = iov_length(iov, iovcnt);
    if (!inside(node, offset, len))
        return -EIO;
    if (!range_inside((uint64_t)offset, len, blk_size(node)))
        return read_tail(node, (uint64_t)offset, iov, iovcnt, len);
    return blk_readv(node, (uint64_t)offset, iov, iovcnt, 0);
}

int request_writev(struct blk_node *node, int64_t offset, const struct iovec *iov, int iovcnt,
                   unsigned flags)
{
    uint64_t len = iov_length(iov, iovcnt);
    if (!inside(node, offset, len))
        return -EIO;
    int r = grow_tail(node, offset, len);
    return r < 0 ? r : blk_writev(node, (uint64_t)offset, iov, iovcnt, flags);
}

int request_write_compressed(struct blk_node *node, int64_t offset, const void *buf, uint64_t len)
{
    struct blk_limits limits;
    blk_get_limits(node, &limits);
    if (!limits.max_compressed)
        return -ENOTSUP;
    if (!inside(node, offset, len))
        return -EIO;
    uint64_t unit = limits.max_compressed, end = (uint64_t)offset + len;
    if ((uint64_t)offset % unit || (end % unit && end != blk_size(node)))
        return -EINVAL;
    for (uint64_t done = 0, n; done < len; done += n) {
        n = MIN(len - done, unit);
        int r =
            blk_write(node, (uint64_t)offset + done, (const char *)buf + done, n, BLK_COMPRESSED);
        if (r < 0)
            return r;
    }
    return 0;
}

int request_zero(struct blk_node *node, int64_t offset, uint64_t len, unsigned flags)
{
    if (!inside(node, offset, len))
        return -EIO;
    int r = grow_tail(node, offset, len);
    return r < 0 ? r : blk_zero(node, (uint64_t)offset, len, flags);
}

int request_discard(struct blk_node *node, int64_t offset, uint64_t len)
{
    if (!inside(node, offset, len))
        return -EIO;
    uint64_t size = blk_size(node), from = MIN((uint64_t)offset, size);
    return blk_discard(node, from, MIN(len, size - from));
}
