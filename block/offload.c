/* Copies that the host makes: copy_file_range, and reflinks where the file system has them.
 *
 * Both ends are followed down to the leaves that hold the bytes; where anything on the way is not
 * plain data in place, the answer is -ENOTSUP and the caller reads and writes.
 */
#include <errno.h>

#include "base/macros.h"
#include "node.h"

/* The leaf and offset behind plain data (or any place of a node that moves bytes one to one). */
static int follow(struct blk_node *n, uint64_t off, uint64_t len, struct blk_extent *out)
{
    int ret = blk_extents(n, off, len, 0, out);

    if (ret < 0)
        return ret;
    if (!(out->flags & BLK_EXT_HOST) || !out->host || !out->host->drv->copy_range)
        return -ENOTSUP;
    return 0;
}

static int copy_leaves(struct blk_node *src, uint64_t src_off, struct blk_node *dst,
                       uint64_t dst_off, uint64_t len, uint64_t *done)
{
    if (src->drv->copy_range != dst->drv->copy_range)
        return -ENOTSUP;
    int ticket = gate_enter(&dst->gate, false);
    int ret = dst->drv->copy_range(src, src_off, dst, dst_off, len, done);
    uint64_t size = blk_size(dst);
    while (ret == 0 && size < dst_off + *done &&
           !atomic_compare_exchange_weak(&dst->size, &size, dst_off + *done))
        ;
    gate_leave(&dst->gate, ticket);
    return ret;
}

int blk_copy_range(struct blk_node *src, uint64_t src_off, struct blk_node *dst, uint64_t dst_off,
                   uint64_t len, unsigned flags, uint64_t *done)
{
    struct blk_extent from, to;

    *done = 0;
    if (flags || dst->read_only || dst->drv->write_begin || dst->guard_magic)
        return -ENOTSUP;
    int ret = follow(src, src_off, len, &from);
    if (ret < 0)
        return ret;
    ret = follow(dst, dst_off, from.length, &to);
    if (ret < 0)
        return ret;
    if (from.host == to.host || to.host->read_only)
        return -ENOTSUP;
    return copy_leaves(from.host, from.host_offset, to.host, to.host_offset,
                       MIN(from.length, to.length), done);
}
