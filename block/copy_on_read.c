/* Filter: what a read finds only below the image's own layer is copied up into it.
 *
 * "file" is the image. A run that the image does not decide itself is read through it, a whole allocation
 * unit at a time, and written to it; the next read finds it there. With "bottom", a node of the backing chain,
 * only what that node or one above it decides is copied.
 *
 * Invariant
 *  C1  A copy-up holds the range from the moment it finds it unallocated until it is written. Guest
 *      writes, zeroes and discards hold theirs, so none is overwritten by older bytes. Reads hold nothing.
 *
 * C1 covers what passes this node: nothing else should write to the image meanwhile.
 *
 * Threads: the reservations of `ranges` are held across calls to the image, never two by one request.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/iszero.h"
#include "base/macros.h"
#include "base/round.h"
#include "block/driver_leaves.h"
#include "filter.h"
#include "node.h"
#include "slice.h"

/* Bytes copied at a time: bounds the memory of a request. */
#define COPY_MAX (UINT64_C(1) << 20)

struct cor_options {
    char *bottom;
};

/* Set by open, then only read, but for the ranges. */
struct cor_state {
    unsigned deepest; /* backing levels below the image that are copied from */
    uint32_t unit;    /* what is copied is rounded to this */
    struct reserve_table ranges;
};

static const struct opt_def cor_options[] = {
    { .name = "bottom",
      .type = OPT_STRING,
      .at = offsetof(struct cor_options, bottom),
      .help = "copy only what this node of the backing chain, or one above it, holds" },
    OPT_END,
};

/* ---- reading ---------------------------------------------------------------------------------- */

/* Whether the run at off (its length to *run) is to be copied: 1, 0 or an error. */
static int to_copy(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags, uint64_t *run)
{
    const struct cor_state *s = node_state(n);
    struct blk_node *image = filter_below(n);
    struct blk_extent e;

    int ret = blk_extents(image, off, len, BLK_LAYER | (flags & BLK_NOWAIT), &e);
    if (ret < 0)
        return ret;
    *run = e.length;
    if (e.flags & (BLK_EXT_ALLOCATED | BLK_EXT_ZERO))
        return 0; /* the image decides, or nothing lies below */
    if (s->deepest == UINT32_MAX)
        return 1;
    ret = blk_extents(image, off, e.length, flags & BLK_NOWAIT, &e);
    *run = e.length;
    return ret < 0 ? ret : (e.flags & BLK_EXT_ALLOCATED) && e.depth <= s->deepest;
}

static int copy_run(struct blk_node *n, uint64_t off, uint64_t len, uint8_t *buf)
{
    struct blk_node *image = filter_below(n);
    int ret = blk_read(image, off, buf, len, 0);

    if (ret < 0)
        return ret;
    node_event(image, EVENT_COR_WRITE);
    return is_zero(buf, len) ? blk_zero(image, off, len, 0) : blk_write(image, off, buf, len, 0);
}

/* All of [off, off+len) that is not in the image itself, under one reservation. */
static int copy_up(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct cor_state *s = node_state(n);
    uint64_t start = round_down(off, s->unit);
    uint64_t end = MIN(round_up(off + len, s->unit), blk_size(filter_below(n)));
    struct reservation held;
    int ret = 0;

    _cleanup_free_ uint8_t *buf = malloc(MIN(end - start, MAX(COPY_MAX, (uint64_t)s->unit)));
    if (!buf)
        return -ENOMEM;
    reserve_take(&s->ranges, &held, start, end, false);
    while (start < end && ret >= 0) {
        uint64_t run = MIN(end - start, MAX(COPY_MAX, (uint64_t)s->unit));
        ret = to_copy(n, start, run, 0, &run);
        if (ret > 0)
            ret = copy_run(n, start, run, buf);
        start += run;
    }
    reserve_release(&s->ranges, &held);
    return ret;
}

static int cor_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                      uint64_t len, unsigned flags)
{
    struct iov_cursor at = iov_begin(iov, iovcnt);

    while (len > 0) {
        uint64_t run = len;
        int ret = node_writable(n) ? to_copy(n, off, len, flags, &run) : 0;
        if (ret == 0 && run == len && at.iov == iov && at.at == 0)
            return blk_readv(filter_below(n), off, iov, iovcnt, flags);
        if (ret > 0)
            ret = flags & BLK_NOWAIT ? -EAGAIN : copy_up(n, off, run = MIN(run, COPY_MAX));
        struct slice s = { .iov = s.few };
        if (ret == 0)
            ret = slice_take(&s, &at, run, 0);
        if (ret == 0)
            ret = blk_readv(filter_below(n), off, s.iov, s.count, flags);
        slice_free(&s);
        if (ret < 0)
            return ret;
        off += run;
        len -= run;
    }
    return 0;
}

/* ---- writing: under C1 ------------------------------------------------------------------------- */

static int cor_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                       uint64_t len, unsigned flags)
{
    struct cor_state *s = node_state(n);
    struct reservation held;

    if (!reserve_take(&s->ranges, &held, off, off + len, flags & BLK_NOWAIT))
        return -EAGAIN;
    int ret = filter_pwritev(n, off, iov, iovcnt, len, flags);
    reserve_release(&s->ranges, &held);
    return ret;
}

static int cor_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct cor_state *s = node_state(n);
    struct reservation held;

    reserve_take(&s->ranges, &held, off, off + len, false);
    int ret = filter_zero(n, off, len, flags);
    reserve_release(&s->ranges, &held);
    return ret;
}

static int cor_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct cor_state *s = node_state(n);
    struct reservation held;

    reserve_take(&s->ranges, &held, off, off + len, false);
    int ret = filter_discard(n, off, len);
    reserve_release(&s->ranges, &held);
    return ret;
}

/* ---- open, close ------------------------------------------------------------------------------- */

/* How many backing levels lie between the image and the node called `bottom`. */
static int find_bottom(struct blk_node *n, const char *bottom, unsigned *depth, struct error **err)
{
    struct blk_node *at = filter_below(n);

    *depth = 0;
    while (at && strcmp(blk_node_name(at), bottom)) {
        bool filter = at->drv->kind == BLK_FILTER;
        *depth += !filter;
        at = node_child(at, filter ? EDGE_FILE : EDGE_BACKING);
    }
    if (!at)
        return error_set(err, EINVAL, "bottom: '%s' is no node of this image's backing chain",
                         bottom);
    if (at->drv->kind == BLK_FILTER)
        return error_set(err, EINVAL, "bottom: node '%s' is a filter: name the image below it",
                         bottom);
    return 0;
}

static int cor_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct cor_options *o = options;
    struct cor_state *s = node_state(n);
    struct blk_limits limits;
    int ret = 0;

    s->deepest = UINT32_MAX;
    if (o->bottom)
        ret = find_bottom(n, o->bottom, &s->deepest, err);
    if (ret < 0)
        return ret;
    blk_get_limits(filter_below(n), &limits);
    s->unit = limits.cluster_size ? limits.cluster_size : 1;
    reserve_init(&s->ranges);
    filter_adopt(n);
    return 0;
}

static int cor_close(struct blk_node *n, struct error **err)
{
    struct cor_state *s = node_state(n);

    (void)err;
    reserve_destroy(&s->ranges);
    return 0;
}

const struct driver copy_on_read_driver = {
    .name = "copy-on-read",
    .kind = BLK_FILTER,
    .flags = DRIVER_PARALLEL | DRIVER_GROWS,
    .state_size = sizeof(struct cor_state),
    .options = cor_options,
    .options_size = sizeof(struct cor_options),
    .open = cor_open,
    .close = cor_close,
    .preadv = cor_preadv,
    .pwritev = cor_pwritev,
    .zero = cor_zero,
    .discard = cor_discard,
    .extents = filter_extents,
    .resize = filter_resize,
};
