/* Images with one table of blocks: reading, writing and zeroing blocks that are data and nothing else (VDI). See
 * bat.h. */
#include <errno.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "bat.h"

/* What plan->priv holds. */
enum { PRIV_RECORD, PRIV_COUNT, PRIV_BLOCK };

static uint64_t in_block(const struct bat *b, uint64_t off)
{
    return off % b->block_size;
}

static int lock_shared(struct bat *b, bool nowait)
{
    if (!nowait)
        rwlock_share(&b->lock);
    else if (!rwlock_try_share(&b->lock))
        return -EAGAIN;
    return 0;
}

/* Blocks that [off, off + len) touches, at most those that the sector of entries has. */
static uint32_t blocks_wanted(const struct bat *b, uint64_t off, uint64_t len, uint32_t left)
{
    return (uint32_t)MIN(div_round_up(in_block(b, off) + len, b->block_size), (uint64_t)left);
}

/* Entries that continue the first one: the next place, or the same mark. */
static uint32_t count_alike(const struct bat *b, const uint8_t *at, uint32_t max)
{
    uint32_t first = bat_load(b, at), n = 1;

    while (n < max) {
        uint32_t e = bat_load(b, at + 4 * (size_t)n);
        bool alike = bat_stored(b, first)
                         ? !b->prefix && bat_stored(b, e) &&
                               bat_place(b, e) == bat_place(b, first) + n * b->stride
                         : e == first;
        if (!alike)
            break;
        n++;
    }
    return n;
}

/* ---- reading ---------------------------------------------------------------------------------------- */

static int map_entry(struct bat *b, const uint8_t *at, uint32_t left, uint64_t off, uint64_t len,
                     struct mapping *m)
{
    uint32_t entry = bat_load(b, at), n = count_alike(b, at, blocks_wanted(b, off, len, left));

    m->length = MIN((uint64_t)n * b->block_size - in_block(b, off), len);
    if (bat_stored(b, entry)) {
        m->kind = MAP_DATA;
        m->child = b->file;
        m->child_offset = bat_place(b, entry) + b->prefix + in_block(b, off);
        m->maybe_holes = b->keeps;
        return bat_check_place(b, off / b->block_size, bat_place(b, entry));
    }
    m->kind =
        entry == b->free_mark && node_child(b->node, EDGE_BACKING) ? MAP_UNALLOCATED : MAP_ZERO;
    return 0;
}

int bat_map_read(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags, struct mapping *m)
{
    struct bat *b = node_state(n);
    bool nowait = flags & BLK_NOWAIT;
    uint32_t left;
    uint8_t *at;
    int ret = lock_shared(b, nowait);

    if (ret < 0)
        return ret;
    m->offset = off;
    do {
        ret = bat_get(b, off / b->block_size, false, nowait, &at, &left);
    } while (ret == TABLE_RELOCKED);
    if (ret == 0)
        ret = map_entry(b, at, left, off, len, m);
    rwlock_release(&b->lock); /* taken above, by trying or waiting */
    return ret;
}

/* ---- writing ------------------------------------------------------------------------------------------ */

static int plan_in_place(struct bat *b, const uint8_t *at, uint32_t left, uint64_t off,
                         uint64_t len, struct write_plan *p)
{
    struct mapping m;
    int ret = map_entry(b, at, left, off, len, &m);

    p->kind = WRITE_IN_PLACE;
    p->child = b->file;
    p->child_offset = m.child_offset;
    p->length = m.length;
    return ret;
}

static int begin_in_place(struct bat *b, uint64_t off, uint64_t len, bool nowait,
                          struct write_plan *p)
{
    uint32_t left;
    uint8_t *at;
    int ret = lock_shared(b, nowait);

    if (ret < 0)
        return ret;
    do {
        ret = bat_get(b, off / b->block_size, false, nowait, &at, &left);
    } while (ret == TABLE_RELOCKED);
    if (ret == 0)
        ret = bat_stored(b, bat_load(b, at)) ? plan_in_place(b, at, left, off, len, p)
                                             : WRITE_NEEDS_RESERVATION;
    rwlock_release(&b->lock); /* taken above, by trying or waiting */
    return ret;
}

static int begin_new(struct bat *b, const uint8_t *at, uint32_t left, uint64_t off, uint64_t len,
                     struct write_plan *p)
{
    uint32_t max = blocks_wanted(b, off, len, left), n = 1;
    uint64_t record, got;
    bool fresh;

    while (n < max && !b->prefix && !bat_stored(b, bat_load(b, at + 4 * (size_t)n)))
        n++;
    int ret = bat_alloc(b, n, &record, &got, &fresh);
    if (ret < 0)
        return ret;
    p->kind = WRITE_NEW;
    p->child = b->file;
    p->child_offset = record + b->prefix + in_block(b, off);
    p->unit_offset = off - in_block(b, off);
    p->unit_length = got * b->block_size;
    p->length = MIN(len, p->unit_length - in_block(b, off));
    p->storage_is_zero = fresh;
    p->priv[PRIV_RECORD] = record;
    p->priv[PRIV_COUNT] = got;
    p->priv[PRIV_BLOCK] = off / b->block_size;
    if (fresh && !node_child(b->node, EDGE_BACKING)) {
        /* the rest of the blocks reads as zeroes there and here: no edges */
        p->unit_offset = off;
        p->unit_length = p->length;
    }
    return 0;
}

int bat_write_begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                    uint64_t encoded, struct write_plan *p)
{
    struct bat *b = node_state(n);
    uint32_t left;
    uint8_t *at;

    (void)encoded;
    p->offset = off;
    if (!(flags & WB_RESERVED))
        return begin_in_place(b, off, len, flags & BLK_NOWAIT, p);
    int ret = bat_commit_if_pressed(b);
    if (ret < 0)
        return ret;
    WRLOCK_SCOPE(&b->lock);
    do {
        ret = bat_get(b, off / b->block_size, true, false, &at, &left);
    } while (ret == TABLE_RELOCKED);
    if (ret < 0)
        return ret;
    return bat_stored(b, bat_load(b, at)) ? plan_in_place(b, at, left, off, len, p)
                                          : begin_new(b, at, left, off, len, p);
}

int bat_write_end(struct blk_node *n, struct write_plan *p, int result)
{
    struct bat *b = node_state(n);
    uint64_t record = p->priv[PRIV_RECORD], count = p->priv[PRIV_COUNT], k = 0;
    uint32_t left;
    uint8_t *at;

    WRLOCK_SCOPE(&b->lock);
    while (result == 0 && k < count) {
        int ret = bat_get(b, p->priv[PRIV_BLOCK] + k, true, false, &at, &left);
        if (ret < 0)
            result = ret;
        for (; ret == 0 && k < count && left > 0; k++, left--, at += 4)
            bat_set(b, at, bat_entry(b, record + k * b->stride));
    }
    b->unsynced = true;
    if (k < count)
        bat_release(b, record + k * b->stride, count - k);
    return result < 0 ? result : 0;
}

/* ---- zeroes and discard ---------------------------------------------------------------------------------- */

int bat_any_stored(struct bat *b, uint64_t off, uint64_t len)
{
    uint64_t block = off / b->block_size, end = div_round_up(off + len, b->block_size);
    uint32_t left;
    uint8_t *at;

    RDLOCK_SCOPE(&b->lock);
    while (block < end) {
        int ret = bat_get(b, block, false, false, &at, &left);
        if (ret < 0)
            return ret;
        for (; ret == 0 && block < end && left > 0; block++, left--, at += 4)
            if (bat_stored(b, bat_load(b, at)))
                return 1;
    }
    return 0;
}

/* As far as one sector of entries goes; *block moves on. */
static int unmap_some(struct bat *b, uint64_t *block, uint64_t end, bool forget)
{
    bool backing = node_child(b->node, EDGE_BACKING);
    uint32_t left;
    uint8_t *at;
    int ret;

    WRLOCK_SCOPE(&b->lock);
    do {
        ret = bat_get(b, *block, true, false, &at, &left);
    } while (ret == TABLE_RELOCKED);
    if (ret < 0)
        return ret;
    for (; *block < end && left > 0; ++*block, left--, at += 4) {
        uint32_t entry = bat_load(b, at);
        if (forget)
            bat_set(b, at, b->free_mark);
        else if (backing || bat_stored(b, entry))
            bat_set(b, at, b->zero_mark);
    }
    return 0;
}

int bat_unmap(struct bat *b, uint64_t off, uint64_t len, bool forget)
{
    uint64_t block = off / b->block_size, end = div_round_up(off + len, b->block_size);

    while (block < end) {
        int ret = bat_commit_if_pressed(b);
        if (ret == 0)
            ret = unmap_some(b, &block, end, forget);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int bat_zero_range(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct bat *b = node_state(n);

    if (b->zero_mark == b->free_mark && (node_child(n, EDGE_BACKING) || (flags & BLK_EXPLICIT)))
        return -ENOTSUP; /* nothing says zero but zeroes */
    if (b->keeps || !(flags & BLK_MAY_UNMAP)) {
        int ret = bat_any_stored(b, off, len);
        if (ret != 0)
            return ret < 0 ? ret : -ENOTSUP;
    }
    return bat_unmap(b, off, len, false);
}

int bat_discard_range(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct bat *b = node_state(n);

    if (b->keeps || (b->zero_mark == b->free_mark && node_child(n, EDGE_BACKING)))
        return -ENOTSUP;
    return bat_unmap(b, off, len, false);
}

/* ---- preallocation ------------------------------------------------------------------------------------------ */

int bat_store_zeroes(struct bat *b, uint64_t off, uint64_t end)
{
    while (off < end) {
        struct write_plan p = { .offset = off };
        int ret = bat_write_begin(b->node, off, end - off, WB_RESERVED, 0, &p);
        if (ret < 0)
            return ret;
        if (p.kind == WRITE_NEW) {
            uint64_t to = p.priv[PRIV_RECORD] + p.priv[PRIV_COUNT] * b->stride;
            ret = p.storage_is_zero
                      ? 0
                      : blk_zero(b->file, p.priv[PRIV_RECORD], to - p.priv[PRIV_RECORD], 0);
            ret = bat_write_end(b->node, &p, ret);
            if (ret < 0)
                return ret;
        }
        off += p.length;
    }
    return 0;
}

/* ---- measure ------------------------------------------------------------------------------------- */

int bat_measure(struct blk_node *src, uint64_t size, uint64_t block_size, uint64_t *count)
{
    uint64_t next = 0; /* the first block that is not counted yet */

    *count = 0;
    for (uint64_t off = 0; off < size;) {
        struct blk_extent e;
        int ret = blk_extents(src, off, size - off, BLK_HOLES, &e);
        if (ret < 0)
            return ret;
        if ((e.flags & BLK_EXT_DATA) && !(e.flags & BLK_EXT_ZERO)) {
            uint64_t first = MAX(off / block_size, next);
            next = div_round_up(off + e.length, block_size);
            *count += next > first ? next - first : 0;
        }
        off += e.length;
    }
    return 0;
}
