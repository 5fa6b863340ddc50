/* Places for writes: found, reserved, published; and grains unmapped by zeroes and discards. */
#include <errno.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vmdk.h"

enum { PRIV_OFFSET, PRIV_COUNT };

static uint32_t entry_of(uint64_t offset)
{
    return (uint32_t)(offset / SECTOR);
}

/* ---- in place ----------------------------------------------------------------------------------------- */

/* Grains from entry k on that [off, off + len) touches and this table maps. */
static uint32_t grains_wanted(const struct vmdk_extent *e, uint64_t off, uint64_t len, uint32_t k)
{
    uint64_t n = div_round_up(in_grain(e, off) + len, e->grain);
    return (uint32_t)MIN(n, (uint64_t)(e->gt_entries - k));
}

static int plan_in_place(struct vmdk *v, struct vmdk_extent *e, const uint8_t *table, uint32_t k,
                         uint64_t offset, uint64_t off, uint64_t len, struct write_plan *p)
{
    uint32_t max = grains_wanted(e, off, len, k), n = 0;
    uint64_t next = offset;
    int ret = 0;

    do {
        ret = vmdk_check_place(v, e, off, next);
        n++;
    } while (ret == 0 && n < max && grain_at(e, table, k + n, &next) == GRAIN_DATA &&
             next == offset + (uint64_t)n * e->grain);
    p->kind = WRITE_IN_PLACE;
    p->child = e->file;
    p->child_offset = offset + in_grain(e, off);
    p->length = MIN(len, (uint64_t)n * e->grain - in_grain(e, off));
    return ret;
}

/* The common case, with the lock shared. */
static int begin_in_place(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t len,
                          bool nowait, struct write_plan *p)
{
    uint32_t k = index_of(e, off);
    uint64_t offset;
    uint8_t *table;
    int ret;

    if (nowait) {
        if (!rwlock_try_share(&v->lock))
            return -EAGAIN;
    } else {
        rwlock_share(&v->lock);
    }
    do {
        ret = vmdk_table(v, e, gt_of(e, off), false, nowait, &table);
    } while (ret == TABLE_RELOCKED);
    if (ret == -ENOENT)
        ret = WRITE_NEEDS_RESERVATION;
    else if (ret == 0)
        ret = grain_at(e, table, k, &offset) == GRAIN_DATA
                  ? plan_in_place(v, e, table, k, offset, off, len, p)
                  : WRITE_NEEDS_RESERVATION;
    rwlock_release(&v->lock); /* taken above, by trying or waiting */
    return ret;
}

/* ---- new places ----------------------------------------------------------------------------------------- */

static void plan_new(const struct vmdk_extent *e, uint64_t offset, uint32_t count, uint64_t off,
                     uint64_t len, struct write_plan *p)
{
    uint64_t bytes = (uint64_t)count * e->grain;

    p->kind = WRITE_NEW;
    p->child = e->file;
    p->unit_offset = off - in_grain(e, off);
    p->length = MIN(len, bytes - in_grain(e, off));
    p->unit_length = MIN(bytes, e->end - p->unit_offset);
    p->child_offset = offset + in_grain(e, off);
    p->priv[PRIV_OFFSET] = offset;
    p->priv[PRIV_COUNT] = count;
}

static int begin_new(struct vmdk *v, struct vmdk_extent *e, const uint8_t *table, uint32_t k,
                     uint64_t off, uint64_t len, struct write_plan *p)
{
    uint32_t max = grains_wanted(e, off, len, k), n = table ? 1 : max, got;
    uint64_t offset;
    bool fresh;

    while (table && n < max && grain_at(e, table, k + n, &offset) != GRAIN_DATA)
        n++;
    int ret = vmdk_alloc(v, e, n, &offset, &got, &fresh);
    if (ret < 0)
        return ret;
    plan_new(e, offset, got, off, len, p);
    p->storage_is_zero = fresh;
    return 0;
}

static int begin_encoded(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t len,
                         uint64_t encoded, struct write_plan *p)
{
    uint64_t offset;
    int ret = vmdk_alloc_bytes(v, e, encoded, &offset);

    if (ret < 0)
        return ret;
    plan_new(e, offset, 1, off, len, p);
    return 0;
}

static int begin_reserved(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t len,
                          unsigned flags, uint64_t encoded, struct write_plan *p)
{
    uint32_t k = index_of(e, off);
    uint64_t offset;
    uint8_t *table;
    int ret = vmdk_commit_if_pressed(v);

    if (ret < 0)
        return ret;
    WRLOCK_SCOPE(&v->lock);
    if (flags & WB_ENCODED)
        return begin_encoded(v, e, off, len, encoded, p);
    do {
        ret = vmdk_table(v, e, gt_of(e, off), true, false, &table);
    } while (ret == TABLE_RELOCKED);
    if (ret == -ENOENT)
        return begin_new(v, e, NULL, k, off, len, p);
    if (ret < 0)
        return ret;
    if (grain_at(e, table, k, &offset) == GRAIN_DATA)
        return plan_in_place(v, e, table, k, offset, off, len, p);
    return begin_new(v, e, table, k, off, len, p);
}

int vmdk_write_begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                     uint64_t encoded_length, struct write_plan *p)
{
    struct vmdk *v = node_state(n);
    struct vmdk_extent *e = vmdk_extent_at(v, off);
    bool nowait = flags & BLK_NOWAIT;

    if (e->read_only || e->kind == EXTENT_ZERO)
        return -EACCES;
    if (nowait && !atomic_load(&v->cid_changed))
        return -EAGAIN;
    int ret = vmdk_change_cid(v);
    if (ret < 0)
        return ret;
    len = MIN(len, e->end - off);
    p->offset = off;
    if (e->kind == EXTENT_FLAT) {
        p->kind = WRITE_IN_PLACE;
        p->child = e->file;
        p->child_offset = e->flat_offset + (off - e->start);
        p->length = len;
        return 0;
    }
    return flags & WB_RESERVED ? begin_reserved(v, e, off, len, flags, encoded_length, p)
                               : begin_in_place(v, e, off, len, nowait, p);
}

/* ---- publishing ------------------------------------------------------------------------------------------- */

/* The table for changing; made when there is none. The lock is exclusive. */
static int table_to_change(struct vmdk *v, struct vmdk_extent *e, uint32_t i, uint8_t **table)
{
    int ret;

    do {
        ret = vmdk_table(v, e, i, true, false, table);
        if (ret == -ENOENT) {
            ret = vmdk_make_table(v, e, i);
            if (ret == 0)
                ret = TABLE_RELOCKED;
        }
    } while (ret == TABLE_RELOCKED);
    return ret;
}

static void replace_entry(struct vmdk *v, struct vmdk_extent *e, uint8_t *table, uint32_t k,
                          uint32_t entry)
{
    uint64_t old;

    if (grain_at(e, table, k, &old) == GRAIN_DATA)
        vmdk_free_later(v, e, old, e->grain);
    store_le32(table + 4 * (size_t)k, entry);
}

int vmdk_write_end(struct blk_node *n, struct write_plan *p, int result)
{
    struct vmdk *v = node_state(n);
    struct vmdk_extent *e = vmdk_extent_at(v, p->unit_offset);
    uint32_t i = gt_of(e, p->unit_offset), k = index_of(e, p->unit_offset);
    uint32_t count = (uint32_t)p->priv[PRIV_COUNT];
    uint8_t *table = NULL;

    WRLOCK_SCOPE(&v->lock);
    if (result >= 0)
        result = table_to_change(v, e, i, &table);
    for (uint32_t g = 0; g < count; g++) {
        uint64_t offset = p->priv[PRIV_OFFSET] + (uint64_t)g * e->grain;
        if (result >= 0)
            replace_entry(v, e, table, k + g, entry_of(offset));
        else if (!e->compressed)
            (void)vector_push(&e->free, offset); /* never mapped: it can be taken at once */
    }
    if (result >= 0)
        vmdk_table_touch(e, i, table);
    e->unsynced = true;
    return result < 0 ? result : 0;
}

/* ---- zeroes and discard ------------------------------------------------------------------------------------- */

/* What an entry becomes; the old one when nothing changes. make: also where nothing is allocated. */
struct unmap {
    uint32_t entry;
    bool make;
};

/* The part of [off, end) that one table maps; *next is where it ends. */
static int unmap_table(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t end,
                       const struct unmap *u, uint64_t *next)
{
    uint32_t i = gt_of(e, off), k = index_of(e, off);
    uint8_t *table;
    bool changed = false;
    int ret;

    *next = MIN(end, e->start + (uint64_t)(i + 1) * e->gt_span);
    WRLOCK_SCOPE(&v->lock);
    if (u->make) {
        ret = table_to_change(v, e, i, &table);
    } else {
        do {
            ret = vmdk_table(v, e, i, true, false, &table);
        } while (ret == TABLE_RELOCKED);
    }
    if (ret == -ENOENT)
        return 0;
    if (ret < 0)
        return ret;
    for (; off < *next; off += e->grain, k++) {
        uint32_t old = load_le32(table + 4 * (size_t)k);
        if (old != u->entry && (old != 0 || u->make)) {
            replace_entry(v, e, table, k, u->entry);
            changed = true;
        }
    }
    if (changed)
        vmdk_table_touch(e, i, table);
    return 0;
}

static int unmap_extent(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t end,
                        const struct unmap *u)
{
    while (off < end) {
        int ret = vmdk_commit_if_pressed(v);
        if (ret == 0)
            ret = unmap_table(v, e, off, end, u, &off);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* How zeroes are said in this extent, if they can be without writing them. */
static int how_to_zero(struct vmdk *v, const struct vmdk_extent *e, bool explicit, bool discard,
                       struct unmap *u)
{
    bool backing = node_child(v->node, EDGE_BACKING);

    *u = (struct unmap){ 0 };
    if (!backing && !explicit)
        return 0;
    if (!e->zeroed)
        return -ENOTSUP; /* what lies below would come up */
    u->entry = 1;
    u->make = !discard;
    return 0;
}

/* All extents must be able to before one of them is changed. */
static int can_zero(struct vmdk *v, uint64_t off, uint64_t end, bool explicit, bool discard)
{
    struct unmap u;

    for (struct vmdk_extent *e; off < end; off = e->end) {
        e = vmdk_extent_at(v, off);
        if (e->read_only)
            return -EACCES;
        if (extent_sparse(e) && how_to_zero(v, e, explicit, discard, &u) < 0)
            return -ENOTSUP;
    }
    return 0;
}

static int forget(struct vmdk *v, uint64_t off, uint64_t len, unsigned flags, bool discard)
{
    uint64_t end = off + len;
    bool explicit = flags & BLK_EXPLICIT;
    int ret = can_zero(v, off, end, explicit, discard);

    if (ret == 0)
        ret = vmdk_change_cid(v);
    for (struct vmdk_extent *e; ret == 0 && off < end; off = MIN(end, e->end)) {
        e = vmdk_extent_at(v, off);
        uint64_t stop = MIN(end, e->end), at = e->flat_offset + (off - e->start);
        struct unmap u;
        if (e->kind == EXTENT_ZERO)
            continue;
        if (extent_sparse(e)) {
            (void)how_to_zero(v, e, explicit, discard, &u);
            ret = unmap_extent(v, e, off, stop, &u);
        } else if (discard) {
            ret = blk_discard(e->file, at, stop - off);
        } else {
            ret = blk_zero(e->file, at, stop - off, flags & BLK_MAY_UNMAP);
        }
    }
    return ret;
}

int vmdk_zero_range(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    return forget(node_state(n), off, len, flags, false);
}

int vmdk_discard_range(struct blk_node *n, uint64_t off, uint64_t len)
{
    return forget(node_state(n), off, len, 0, true);
}

int vmdk_forget_grains(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t end)
{
    static const struct unmap nothing;

    return unmap_extent(v, e, off, end, &nothing);
}

/* Every entry says "ask the parent"; and the parent that is there now is the one. */
int vmdk_make_empty(struct blk_node *n, struct error **err)
{
    struct vmdk *v = node_state(n);
    const struct vmdk *parent = node_state_as(node_child(n, EDGE_BACKING), &vmdk_driver);
    int ret = 0;

    for (size_t i = 0; i < v->extents.len && ret == 0; i++) {
        struct vmdk_extent *e = &v->extents.at[i];
        if (e->kind != EXTENT_HOSTED)
            return error_set(err, ENOTSUP, "%s: it has an extent that cannot be emptied",
                             blk_filename(n));
        ret = vmdk_forget_grains(v, e, e->start, e->end);
    }
    if (ret == 0)
        ret = vmdk_commit(v, true);
    if (ret == 0 && parent && parent->desc.cid != v->desc.parent_cid)
        ret = vmdk_write_cid(v, true, parent->desc.cid);
    return ret < 0 ? error_set(err, -ret, "%s: could not be emptied: %s", blk_filename(n),
                               strerror(-ret))
                   : 0;
}
