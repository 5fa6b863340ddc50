/* One piece of work on the image, and its reply. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/macros.h"
#include "internal.h"

enum {
    HOLE_MIN = 32 << 10,    /* shorter runs of zeroes are sent */
    STATUS_MAX = 16384,     /* runs in one reply */
    STATUS_LOOKS = 1 << 18, /* questions for one reply: then it tells what it knows */
};

enum op serve_op(uint16_t type)
{
    static const enum op ops[] = {
        [NBD_CMD_READ] = OP_READ,           [NBD_CMD_WRITE] = OP_WRITE,
        [NBD_CMD_FLUSH] = OP_FLUSH,         [NBD_CMD_TRIM] = OP_TRIM,
        [NBD_CMD_CACHE] = OP_CACHE,         [NBD_CMD_WRITE_ZEROES] = OP_ZERO,
        [NBD_CMD_BLOCK_STATUS] = OP_STATUS,
    };
    return type < ARRAY_SIZE(ops) ? ops[type] : OP_FLUSH;
}

void serve_count(struct export *e, uint16_t type, uint64_t bytes, int result)
{
    enum op op = serve_op(type);

    atomic_fetch_add_explicit(&e->counters.requests[op], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&e->counters.bytes[op], bytes, memory_order_relaxed);
    if (result < 0)
        atomic_fetch_add_explicit(&e->counters.errors, 1, memory_order_relaxed);
}

/* ---- read --------------------------------------------------------------------------------------- */

static bool sparse(const struct piece *p)
{
    return p->style != REPLY_SIMPLE && !(p->flags & NBD_CMD_FLAG_DF) && p->length >= SPARSE_MIN;
}

size_t serve_room(const struct piece *p)
{
    size_t room = REPLY_ROOM;

    if (p->type == NBD_CMD_READ)
        room += p->length + (sparse(p) ? 2 * REPLY_ROOM * (p->length / HOLE_MIN + 1) : 0);
    else if (p->type == NBD_CMD_BLOCK_STATUS)
        room += (size_t)__builtin_popcount(p->contexts) * (REPLY_ROOM + (size_t)STATUS_MAX * 16);
    return room;
}

/* The run at offset: how long, and whether it is a hole worth telling. */
static int next_run(const struct piece *p, uint64_t offset, uint64_t end, unsigned flags,
                    uint64_t *len, bool *hole)
{
    struct blk_extent e;
    int ret = blk_extents(p->export->node, offset, end - offset, flags | BLK_HOLES, &e);

    if (ret < 0)
        return ret;
    *len = MIN(e.length, end - offset);
    *hole = (e.flags & BLK_EXT_ZERO) && *len >= HOLE_MIN;
    return 0;
}

/* Data and holes, each with its header. */
static int read_sparse(const struct piece *p, unsigned flags, uint8_t *out, size_t *total)
{
    uint64_t at = p->offset, end = p->offset + p->length;
    uint8_t *last = out;
    size_t n = 0;

    while (at < end) {
        uint64_t len, more;
        bool hole, next_is_hole = false;
        int ret = next_run(p, at, end, flags, &len, &hole);
        while (ret == 0 && !hole && at + len < end && !next_is_hole) {
            ret = next_run(p, at + len, end, flags, &more, &next_is_hole);
            if (ret == 0 && !next_is_hole)
                len += more;
        }
        if (ret < 0)
            return ret;
        last = out + n;
        if (hole) {
            n += reply_hole(p, false, at, len, out + n);
        } else {
            n += reply_data(p, false, at, len, out + n);
            ret = blk_read(p->export->node, at, out + n, len, flags);
            if (ret < 0)
                return ret;
            n += len;
        }
        at += len;
    }
    if (p->done)
        reply_set_done(last);
    *total = n;
    return 0;
}

int serve_read(const struct piece *p, unsigned flags, uint8_t *out, size_t *len)
{
    if (sparse(p))
        return read_sparse(p, flags, out, len);
    size_t n = reply_data(p, p->done, p->offset, p->length, out);
    *len = n + p->length;
    return blk_read(p->export->node, p->offset, out + n, p->length, flags);
}

/* ---- block status ---------------------------------------------------------------------------------- */

static uint32_t base_state(const struct blk_extent *e)
{
    return (e->flags & (BLK_EXT_DATA | BLK_EXT_ALLOCATED) ? 0u : NBD_STATE_HOLE) |
           (e->flags & BLK_EXT_ZERO ? NBD_STATE_ZERO : 0u);
}

/* Allocation depth: 0 not allocated anywhere, 1 here, 2 in the backing image, ... */
static uint32_t depth_state(const struct blk_extent *e)
{
    return e->flags & BLK_EXT_ALLOCATED ? e->depth + 1 : 0;
}

struct run {
    uint64_t len;
    uint32_t state;
};

/* What the context says of `at`, and of how many bytes. */
static int look(const struct export *e, unsigned context, uint64_t at, uint64_t len,
                struct run *out)
{
    struct blk_extent x;

    if (context >= META_BITMAP) {
        out->len = len;
        out->state =
            blk_bitmap_at(e->bitmap[context - META_BITMAP], at, &out->len) ? NBD_STATE_DIRTY : 0;
        return 0;
    }
    int ret = blk_extents(e->node, at, len, context == META_BASE ? BLK_HOLES : 0, &x);
    if (ret == 0)
        *out = (struct run){ x.length, context == META_BASE ? base_state(&x) : depth_state(&x) };
    return ret;
}

/* Neighbours of one state together, at most max runs. */
static int list_runs(const struct piece *p, unsigned context, struct run *runs, uint32_t max,
                     uint32_t *count)
{
    uint64_t at = p->offset, end = p->offset + p->length;

    *count = 0;
    for (unsigned looks = 0; at < end && looks < STATUS_LOOKS; looks++) {
        struct run r;
        int ret = look(p->export, context, at, end - at, &r);
        if (ret < 0)
            return *count > 0 ? 0 : ret;
        if (*count > 0 && runs[*count - 1].state == r.state)
            runs[*count - 1].len += r.len;
        else if (*count == max)
            break;
        else
            runs[(*count)++] = r;
        at += r.len;
    }
    return 0;
}

static size_t put_runs(const struct piece *p, const struct run *runs, uint32_t count, uint8_t *out)
{
    size_t n = 0;

    for (uint32_t i = 0; i < count; i++) {
        if (p->style == REPLY_EXTENDED) {
            store_be64(out + n, runs[i].len);
            store_be64(out + n + 8, runs[i].state);
            n += 16;
        } else {
            store_be32(out + n, (uint32_t)runs[i].len);
            store_be32(out + n + 4, runs[i].state);
            n += 8;
        }
    }
    return n;
}

int serve_status(const struct piece *p, uint8_t *out, size_t *len)
{
    uint32_t max = p->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : STATUS_MAX, count;
    struct run *runs = malloc(max * sizeof(*runs));
    int ret = 0;

    *len = 0;
    if (!runs)
        return -ENOMEM;
    for (unsigned id = META_BASE; id < META_END && ret == 0; id++) {
        if (!(p->contexts & META_BIT(id)))
            continue;
        ret = list_runs(p, id, runs, max, &count);
        if (ret == 0) {
            bool last = p->contexts >> id == 1; /* no higher bit */
            *len += reply_status(p, last, id, count, out + *len);
            *len += put_runs(p, runs, count, out + *len);
        }
    }
    free(runs);
    return ret;
}

/* ---- changes ------------------------------------------------------------------------------------------ */

/* Brings what is there into the caches on the way. */
static int warm(const struct piece *p)
{
    size_t n = MIN(p->length, (uint64_t)PIECE);
    uint8_t *buf = malloc(n);
    int ret = buf ? 0 : -ENOMEM;

    for (uint64_t at = 0; at < p->length && ret == 0; at += n)
        ret = blk_read(p->export->node, p->offset + at, buf, MIN(n, p->length - at), 0);
    free(buf);
    return ret;
}

int serve_change(const struct piece *p, const void *data, unsigned flags)
{
    struct blk_node *node = p->export->node;
    unsigned fua = p->flags & NBD_CMD_FLAG_FUA ? BLK_FUA : 0;
    int ret;

    switch (p->type) {
    case NBD_CMD_WRITE:
        return blk_write(node, p->offset, data, p->length, flags | fua);
    case NBD_CMD_WRITE_ZEROES:
        return blk_zero(node, p->offset, p->length,
                        fua | (p->flags & NBD_CMD_FLAG_NO_HOLE ? 0 : BLK_MAY_UNMAP) |
                            (p->flags & NBD_CMD_FLAG_FAST_ZERO ? BLK_NO_FALLBACK : 0));
    case NBD_CMD_TRIM:
        ret = blk_discard(node, p->offset, p->length);
        return ret == 0 && fua ? blk_flush(node) : ret;
    case NBD_CMD_FLUSH:
        return blk_flush(node);
    case NBD_CMD_CACHE:
        return warm(p);
    default:
        return -EINVAL;
    }
}
