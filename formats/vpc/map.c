/* Guest offset to place, with sector bitmaps; and places for writes. See vpc.h. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vpc.h"

enum { SECTOR = 512, BITS = 8 * BAT_SECTOR }; /* bits of one sector of a bitmap */

/* What plan->priv holds. */
enum { PRIV_RECORD, PRIV_BLOCK, PRIV_NEW };

/* Where a sector of the disk is. */
struct spot {
    uint8_t *entry;     /* of the block table */
    uint32_t left;      /* entries from it on in the same piece */
    uint64_t record;    /* 0: none */
    uint8_t *bits;      /* the bitmap's sector that has the bit */
    uint32_t bit;       /* its number there */
    uint32_t bits_left; /* from it on, of this block */
};

static uint64_t in_block(const struct vpc *v, uint64_t off)
{
    return off % v->bat.block_size;
}

/* ---- bits ------------------------------------------------------------------------------------------- */

static bool bit_at(const uint8_t *bits, uint32_t i)
{
    return bits[i / 8] & (0x80 >> i % 8);
}

/* How many bits from i on are as that one is, at most max. */
static uint32_t bits_alike(const uint8_t *bits, uint32_t i, uint32_t max)
{
    bool value = bit_at(bits, i);
    uint32_t n = 1;

    while (n < max) {
        if ((i + n) % 8 == 0 && max - n >= 8 && bits[(i + n) / 8] == (value ? 0xff : 0))
            n += 8;
        else if (bit_at(bits, i + n) == value)
            n++;
        else
            break;
    }
    return n;
}

static void set_bits(uint8_t *bits, uint32_t i, uint32_t count)
{
    for (; count > 0; i++, count--)
        bits[i / 8] |= (uint8_t)(0x80 >> i % 8);
}

/* ---- finding ------------------------------------------------------------------------------------------ */

/* The piece of the record's bitmap that has the bit of this guest offset. */
static int find_bits(struct vpc *v, uint64_t off, bool exclusive, bool nowait, struct spot *s)
{
    uint32_t bit = (uint32_t)(in_block(v, off) / SECTOR);
    void *bits;

    int ret = table_cache_get(v->bat.inner, s->record + bit / BITS * BAT_SECTOR, exclusive, nowait,
                              &bits);
    s->bits = bits;
    s->bit = bit % BITS;
    s->bits_left = MIN(BITS - s->bit, v->bat.block_size / SECTOR - bit);
    return ret;
}

/* The lock is held. */
static int find(struct vpc *v, uint64_t off, bool exclusive, bool nowait, struct spot *s)
{
    uint64_t block = off / v->bat.block_size;
    int ret;

    do {
        memset(s, 0, sizeof(*s));
        ret = bat_get(&v->bat, block, exclusive, nowait, &s->entry, &s->left);
        if (ret != 0 || !bat_stored(&v->bat, bat_load(&v->bat, s->entry)))
            continue;
        s->record = bat_place(&v->bat, bat_load(&v->bat, s->entry));
        ret = bat_check_place(&v->bat, block, s->record);
        if (ret == 0)
            ret = find_bits(v, off, exclusive, nowait, s);
    } while (ret == TABLE_RELOCKED);
    return ret;
}

/* Bytes from off on that are as the first one, by the bitmap; at most len. */
static uint64_t run_of_bits(const struct spot *s, uint64_t off, uint64_t len)
{
    uint64_t need = div_round_up(off % SECTOR + len, SECTOR);
    uint32_t n = bits_alike(s->bits, s->bit, (uint32_t)MIN(need, (uint64_t)s->bits_left));

    return MIN((uint64_t)n * SECTOR - off % SECTOR, len);
}

static uint64_t run_of_free(const struct vpc *v, const struct spot *s, uint64_t off, uint64_t len)
{
    uint64_t need = div_round_up(in_block(v, off) + len, v->bat.block_size);
    uint32_t n = 1, max = (uint32_t)MIN(need, (uint64_t)s->left);

    while (n < max && !bat_stored(&v->bat, bat_load(&v->bat, s->entry + 4 * (size_t)n)))
        n++;
    return MIN((uint64_t)n * v->bat.block_size - in_block(v, off), len);
}

static uint64_t place_of(const struct vpc *v, const struct spot *s, uint64_t off)
{
    return s->record + v->bat.prefix + in_block(v, off);
}

/* ---- reading --------------------------------------------------------------------------------------------- */

static int map_fixed(struct vpc *v, uint64_t off, uint64_t len, struct mapping *m)
{
    m->kind = MAP_DATA;
    m->child = v->bat.file;
    m->child_offset = off;
    m->length = len;
    m->maybe_holes = true;
    return 0;
}

static int lock_shared(struct vpc *v, bool nowait)
{
    if (!nowait)
        rwlock_share(&v->bat.lock);
    else if (!rwlock_try_share(&v->bat.lock))
        return -EAGAIN;
    return 0;
}

int vpc_map_read(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags, struct mapping *m)
{
    struct vpc *v = node_state(n);
    struct spot s;

    m->offset = off;
    if (v->type == VPC_FIXED)
        return map_fixed(v, off, len, m);
    int ret = lock_shared(v, flags & BLK_NOWAIT);
    if (ret < 0)
        return ret;
    ret = find(v, off, false, flags & BLK_NOWAIT, &s);
    if (ret == 0 && s.record && bit_at(s.bits, s.bit)) {
        m->kind = MAP_DATA;
        m->child = v->bat.file;
        m->child_offset = place_of(v, &s, off);
        m->length = run_of_bits(&s, off, len);
    } else if (ret == 0) {
        m->kind = v->type == VPC_DIFFERENCING ? MAP_UNALLOCATED : MAP_ZERO;
        m->length = s.record ? run_of_bits(&s, off, len) : run_of_free(v, &s, off, len);
    }
    rwlock_release(&v->bat.lock); /* taken above, by trying or waiting */
    return ret;
}

/* ---- writing --------------------------------------------------------------------------------------------- */

static void plan_in_place(struct vpc *v, const struct spot *s, uint64_t off, uint64_t len,
                          struct write_plan *p)
{
    p->kind = WRITE_IN_PLACE;
    p->child = v->bat.file;
    p->child_offset = place_of(v, s, off);
    p->length = run_of_bits(s, off, len);
}

/* Whole sectors of one block: their bits are set when they are written. */
static void plan_sectors(struct vpc *v, uint64_t off, uint64_t len, struct write_plan *p)
{
    p->length = MIN(len, v->bat.block_size - in_block(v, off));
    p->unit_offset = round_down(off, SECTOR);
    p->unit_length = round_up(off + p->length, SECTOR) - p->unit_offset;
}

static int begin_new(struct vpc *v, uint64_t off, uint64_t len, struct write_plan *p)
{
    struct spot s = { 0 };
    uint64_t got;
    bool fresh;
    int ret = bat_alloc(&v->bat, 1, &s.record, &got, &fresh);

    if (ret < 0)
        return ret;
    p->kind = WRITE_NEW;
    p->child = v->bat.file;
    p->child_offset = place_of(v, &s, off);
    p->priv[PRIV_RECORD] = s.record;
    p->priv[PRIV_NEW] = true;
    plan_sectors(v, off, len, p);
    if (v->type == VPC_DIFFERENCING)
        return 0;
    p->storage_is_zero = fresh;
    if (!fresh) { /* all bits are set, so the whole block is read */
        p->unit_offset = off - in_block(v, off);
        p->unit_length = v->bat.block_size;
    }
    return 0;
}

static int begin_reserved(struct vpc *v, uint64_t off, uint64_t len, struct write_plan *p)
{
    struct spot s;
    int ret = bat_commit_if_pressed(&v->bat);

    if (ret < 0)
        return ret;
    p->priv[PRIV_BLOCK] = off / v->bat.block_size;
    WRLOCK_SCOPE(&v->bat.lock);
    ret = find(v, off, true, false, &s);
    if (ret < 0)
        return ret;
    if (!s.record)
        return begin_new(v, off, len, p);
    if (bit_at(s.bits, s.bit)) {
        plan_in_place(v, &s, off, len, p);
        return 0;
    }
    p->kind = WRITE_NEW;
    p->child = v->bat.file;
    p->child_offset = place_of(v, &s, off);
    p->priv[PRIV_RECORD] = s.record;
    p->priv[PRIV_NEW] = false;
    plan_sectors(v, off, run_of_bits(&s, off, len), p);
    return 0;
}

int vpc_write_begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                    uint64_t encoded, struct write_plan *p)
{
    struct vpc *v = node_state(n);
    struct spot s;

    (void)encoded;
    p->offset = off;
    if (v->type == VPC_FIXED) {
        p->kind = WRITE_IN_PLACE;
        p->child = v->bat.file;
        p->child_offset = off;
        p->length = len;
        return 0;
    }
    if (flags & WB_RESERVED)
        return begin_reserved(v, off, len, p);
    int ret = lock_shared(v, flags & BLK_NOWAIT);
    if (ret < 0)
        return ret;
    ret = find(v, off, false, flags & BLK_NOWAIT, &s);
    if (ret == 0 && s.record && bit_at(s.bits, s.bit))
        plan_in_place(v, &s, off, len, p);
    else if (ret == 0)
        ret = WRITE_NEEDS_RESERVATION;
    rwlock_release(&v->bat.lock); /* taken above, by trying or waiting */
    return ret;
}

/* The bits of [off, end), which lie in one block. A new record's entry is not there yet. */
static int mark_written(struct vpc *v, uint64_t record, uint64_t off, uint64_t end)
{
    while (off < end) {
        struct spot s = { .record = record };
        int ret = find_bits(v, off, true, false, &s);
        if (ret < 0)
            return ret;
        if (ret == TABLE_RELOCKED)
            continue;
        uint32_t n = (uint32_t)MIN((end - off) / SECTOR, (uint64_t)s.bits_left);
        set_bits(s.bits, s.bit, n);
        table_cache_dirty(v->bat.inner, s.bits);
        off += (uint64_t)n * SECTOR;
    }
    return 0;
}

static int publish(struct vpc *v, const struct write_plan *p)
{
    uint64_t record = p->priv[PRIV_RECORD];
    uint32_t left;
    uint8_t *at;
    int ret = 0;

    if (v->type == VPC_DIFFERENCING || !p->priv[PRIV_NEW])
        ret = mark_written(v, record, p->unit_offset, p->unit_offset + p->unit_length);
    if (ret < 0 || !p->priv[PRIV_NEW])
        return ret;
    do {
        ret = bat_get(&v->bat, p->priv[PRIV_BLOCK], true, false, &at, &left);
    } while (ret == TABLE_RELOCKED);
    if (ret == 0)
        bat_set(&v->bat, at, bat_entry(&v->bat, record));
    return ret;
}

int vpc_write_end(struct blk_node *n, struct write_plan *p, int result)
{
    struct vpc *v = node_state(n);

    WRLOCK_SCOPE(&v->bat.lock);
    v->bat.unsynced = true;
    if (result < 0) {
        if (p->priv[PRIV_NEW])
            bat_release(&v->bat, p->priv[PRIV_RECORD], 1);
        return result;
    }
    result = publish(v, p);
    if (result < 0)
        v->bat.holes =
            true; /* its bits may be on their way to the disk: free when the image is closed */
    return result;
}

/* ---- zeroes and discard -------------------------------------------------------------------------------------- */

int vpc_zero_range(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct vpc *v = node_state(n);

    if (v->type == VPC_FIXED)
        return blk_zero(v->bat.file, off, len, flags & BLK_MAY_UNMAP);
    if (v->type == VPC_DIFFERENCING)
        return -ENOTSUP; /* nothing says zero but zeroes */
    return bat_zero_range(n, off, len, flags & ~(unsigned)BLK_EXPLICIT);
}

int vpc_discard_range(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct vpc *v = node_state(n);

    if (v->type == VPC_FIXED)
        return blk_discard(v->bat.file, off, len);
    if (v->type == VPC_DIFFERENCING)
        return -ENOTSUP; /* the parent's old data would come up again */
    return bat_discard_range(n, off, len);
}
