/* Where guest data is to be written.
 *
 * A block that is stored is written in place; one that is not gets storage, which reads as zeroes (V7). Without a
 * parent, or when the block reads as zeroes, it is fully present from then on, and only what the guest writes is written.
 * In a differencing image it becomes partially present, and the bitmap says which sectors are here: only sectors that
 * the guest writes in part are filled up from the parent.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vhdx.h"

/* What a plan carries to write_end. */
enum { PRIV_KIND, PRIV_UNIT };
enum new_kind {
    NEW_BLOCK,   /* storage at PRIV_UNIT, of which all counts */
    NEW_PARTIAL, /* storage at PRIV_UNIT, of which only the plan's sectors count */
    NEW_SECTORS, /* more sectors of a block that is partially present */
};

static uint64_t block_start(const struct vhdx *v, uint64_t guest)
{
    return guest - in_block(v, guest);
}

/* Where the block ends, or the disk in it. */
static uint64_t block_end(const struct vhdx *v, uint64_t guest)
{
    return MIN(block_start(v, guest) + v->meta.block_size, v->meta.size);
}

/* ---- in place --------------------------------------------------------------------------------------- */

/* Bytes on from `off` that lie in a row. */
static uint64_t stored_run(const struct vhdx *v, uint64_t off, uint64_t len)
{
    uint64_t block = block_of(v, off), first = v->bat[bat_index(v, block)];
    uint64_t run = block_end(v, off) - off;

    for (uint64_t n = 1; run < len; n++) {
        uint64_t next = v->bat[bat_index(v, block + n)];
        if (next != first + n * v->meta.block_size)
            break;
        run += v->meta.block_size;
    }
    return MIN(run, len);
}

/* *fits: there is storage, of which the plan tells. 0, TABLE_RELOCKED or an error. */
static int plan_in_place(struct vhdx *v, uint64_t off, uint64_t len, bool exclusive, bool nowait,
                         struct write_plan *p, bool *fits)
{
    uint64_t entry = v->bat[bat_index(v, block_of(v, off))];

    *fits = entry_stored(entry);
    if (!*fits)
        return 0;
    int ret = vhdx_check_place(v, off, entry);
    p->length = MIN(len, block_end(v, off) - off);
    if (ret == 0 && entry_state(entry) == BLOCK_PARTIAL)
        ret = vhdx_bits_run(v, off, p->length, exclusive, nowait, fits, &p->length);
    else if (ret == 0)
        p->length = stored_run(v, off, len);
    if (ret != 0)
        return ret;
    p->kind = WRITE_IN_PLACE;
    p->child = v->file;
    p->child_offset = (entry & BAT_OFFSET) + in_block(v, off);
    return 0;
}

static int begin_in_place(struct vhdx *v, uint64_t off, uint64_t len, bool nowait,
                          struct write_plan *p)
{
    bool fits = false;
    int ret;

    if (nowait) {
        if (!rwlock_try_share(&v->lock))
            return -EAGAIN;
    } else {
        rwlock_share(&v->lock);
    }
    ret = plan_in_place(v, off, len, false, nowait, p, &fits);
    rwlock_release(&v->lock); /* taken above, by trying or waiting */
    /* The reservation asks again, with the table in the cache. */
    return ret < 0 ? ret : ret == 0 && fits ? 0 : WRITE_NEEDS_RESERVATION;
}

/* ---- new storage ---------------------------------------------------------------------------------------- */

/* Whole sectors that [off, off+len) touches. */
static void plan_sectors(const struct vhdx *v, uint64_t off, uint64_t len, struct write_plan *p)
{
    p->length = MIN(len, block_end(v, off) - off);
    p->unit_offset = align_down(off, v->meta.logical);
    p->unit_length = align_up(off + p->length, v->meta.logical) - p->unit_offset;
}

/* The chunk's bitmap block is there. The lock is exclusive; TABLE_RELOCKED: it was not held for a while. */
static int ensure_bitmap(struct vhdx *v, uint64_t block)
{
    uint64_t index = bitmap_index(v, block), unit;
    bool clean;

    if (entry_state(v->bat[index]) == BLOCK_PRESENT)
        return 0;
    int ret = vhdx_space_take(v, 1, &unit, &clean);
    if (ret < 0)
        return ret;
    if (!clean) {
        rwlock_release(&v->lock); /* zeroing may take its time */
        ret = vhdx_space_clean(v, unit, 1, clean);
        rwlock_hold(&v->lock);
    }
    if (ret < 0 || entry_state(v->bat[index]) == BLOCK_PRESENT) /* somebody was faster */
        vhdx_space_release(v, unit, 1);
    else
        vhdx_bat_set(v, index, unit * VHDX_MIB | BLOCK_PRESENT);
    return ret < 0 ? ret : clean ? 0 : TABLE_RELOCKED;
}

static int plan_new(struct vhdx *v, uint64_t off, uint64_t len, struct write_plan *p, bool *clean)
{
    uint64_t block = block_of(v, off), entry = v->bat[bat_index(v, block)], unit;
    int ret = 0;

    plan_sectors(v, off, len, p);
    p->kind = WRITE_NEW;
    p->child = v->file;
    *clean = true;
    if (entry_state(entry) == BLOCK_PARTIAL) {
        p->child_offset = (entry & BAT_OFFSET) + in_block(v, off);
        p->priv[PRIV_KIND] = NEW_SECTORS;
        return 0;
    }
    bool parent = v->differencing && entry_state(entry) == BLOCK_NOT_PRESENT;
    bool whole = !in_block(v, off) && off + p->length == block_end(v, off);
    p->priv[PRIV_KIND] = parent && !whole ? NEW_PARTIAL : NEW_BLOCK;
    if (p->priv[PRIV_KIND] == NEW_PARTIAL) {
        ret = ensure_bitmap(v, block);
    } else { /* what the guest does not write is zero already */
        p->unit_offset = off;
        p->unit_length = p->length;
    }
    if (ret == 0)
        ret = vhdx_space_take(v, block_units(v), &unit, clean);
    if (ret != 0)
        return ret;
    p->child_offset = unit * VHDX_MIB + in_block(v, off);
    p->priv[PRIV_UNIT] = unit;
    return 0;
}

static int begin_reserved(struct vhdx *v, uint64_t off, uint64_t len, struct write_plan *p)
{
    bool clean = true, fits;
    int ret = vhdx_commit_if_pressed(v);

    if (ret < 0)
        return ret;
    {
        WRLOCK_SCOPE(&v->lock);
        do {
            ret = plan_in_place(v, off, len, true, false, p, &fits);
            if (ret == 0 && !fits)
                ret = plan_new(v, off, len, p, &clean);
        } while (ret == TABLE_RELOCKED);
    }
    if (ret == 0 && !clean) {
        uint64_t unit = p->priv[PRIV_UNIT];
        ret = vhdx_space_clean(v, unit, block_units(v), clean);
        if (ret < 0) {
            WRLOCK_SCOPE(&v->lock);
            vhdx_space_release(v, unit, block_units(v));
        }
    }
    return ret;
}

int vhdx_write_begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                     uint64_t encoded, struct write_plan *p)
{
    struct vhdx *v = node_state(n);

    (void)encoded;
    p->offset = off;
    if (!atomic_load_explicit(&v->session, memory_order_acquire)) {
        int ret = flags & BLK_NOWAIT ? -EAGAIN : vhdx_session(v);
        if (ret < 0)
            return ret;
    }
    if (flags & WB_RESERVED)
        return begin_reserved(v, off, len, p);
    return begin_in_place(v, off, len, flags & BLK_NOWAIT, p);
}

/* ---- publishing -------------------------------------------------------------------------------------------- */

/* The bits of a block that becomes partially present: none but the plan's sectors. What they said before
 * was about storage that is gone. */
static int publish_bits(struct vhdx *v, const struct write_plan *p)
{
    uint64_t start = block_start(v, p->offset);
    int ret = 0;

    if (p->priv[PRIV_KIND] == NEW_PARTIAL)
        ret = vhdx_bits_set(v, start, block_end(v, p->offset) - start, false);
    return ret == 0 ? vhdx_bits_set(v, p->unit_offset, p->unit_length, true) : ret;
}

int vhdx_write_end(struct blk_node *n, struct write_plan *p, int result)
{
    struct vhdx *v = node_state(n);
    uint64_t index = bat_index(v, block_of(v, p->offset)), unit = p->priv[PRIV_UNIT];
    int ret = result;

    WRLOCK_SCOPE(&v->lock);
    if (ret == 0 && p->priv[PRIV_KIND] != NEW_BLOCK)
        do {
            ret = publish_bits(v, p);
        } while (ret == TABLE_RELOCKED);
    if (p->priv[PRIV_KIND] == NEW_SECTORS)
        return ret;
    if (ret < 0)
        vhdx_space_release(v, unit, block_units(v));
    else
        vhdx_bat_set(v, index,
                     unit * VHDX_MIB |
                         (p->priv[PRIV_KIND] == NEW_BLOCK ? BLOCK_PRESENT : BLOCK_PARTIAL));
    return ret;
}
