/* Mending what check.c found. Entries change through the log, as always. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vhdx_check.h"

/* The copy that is written is the damaged one, and it comes into force. */
int vhdx_check_mend_header(struct vcheck *c)
{
    return vhdx_header_write(c->v->file, &c->v->headers);
}

int vhdx_check_mend_regions(struct vcheck *c)
{
    struct vhdx_regions *r = &c->v->regions;
    unsigned good = r->damaged[0];
    _cleanup_free_ uint8_t *table = malloc(VHDX_REGION_TABLE);

    if (!table)
        return -ENOMEM;
    int ret = blk_read(c->v->file, VHDX_REGION_SLOT + (uint64_t)good * VHDX_SLOT, table,
                       VHDX_REGION_TABLE, 0);
    if (ret == 0)
        ret = blk_write(c->v->file, VHDX_REGION_SLOT + (uint64_t)(1 - good) * VHDX_SLOT, table,
                        VHDX_REGION_TABLE, 0);
    if (ret == 0)
        ret = blk_flush(c->v->file);
    if (ret == 0)
        r->damaged[0] = r->damaged[1] = false;
    return ret;
}

/* Copies a block's storage behind the end of the file. */
static int copy_storage(struct vcheck *c, uint64_t from, uint64_t to)
{
    struct vhdx *v = c->v;
    uint64_t size = blk_size(v->file);
    _cleanup_free_ uint8_t *piece = malloc(VHDX_MIB);

    if (!piece)
        return -ENOMEM;
    int ret = blk_resize(v->file, to + v->meta.block_size, BLK_PREALLOC_OFF, c->err);
    for (uint64_t at = 0; at < v->meta.block_size && ret == 0; at += VHDX_MIB) {
        uint64_t there = from + at < size ? MIN(VHDX_MIB, size - from - at) : 0;
        if (there == 0)
            break;
        ret = blk_read(v->file, from + at, piece, there, 0);
        if (ret == 0)
            ret = blk_write(v->file, to + at, piece, there, 0);
    }
    return ret;
}

/* The file in MiB has become longer. */
static int follow_end(struct vcheck *c)
{
    struct bitmap larger;

    c->units = div_round_up(blk_size(c->v->file), VHDX_MIB);
    if (c->units + block_units(c->v) <= c->used.bits)
        return 0;
    if (bitmap_init(&larger, (c->units + block_units(c->v)) * 2) < 0)
        return -ENOMEM;
    memcpy(larger.words, c->used.words, div_round_up(c->used.bits, 64) * 8);
    bitmap_free(&c->used);
    c->used = larger;
    return 0;
}

int vhdx_check_move_block(struct vcheck *c, uint64_t index)
{
    struct vhdx *v = c->v;
    uint64_t entry = v->bat[index], unit = c->units;
    int ret = copy_storage(c, entry & BAT_OFFSET, unit * VHDX_MIB);

    if (ret == 0)
        ret = follow_end(c);
    if (ret < 0)
        return ret;
    bitmap_set_range(&c->used, unit, block_units(v));
    c->end = MAX(c->end, unit + block_units(v));
    vhdx_bat_set(v, index, unit * VHDX_MIB | (entry & BAT_STATE));
    c->changed = true;
    return 0;
}

void vhdx_check_drop_block(struct vcheck *c, uint64_t index)
{
    vhdx_bat_set(c->v, index, BLOCK_ZERO);
    c->changed = true;
}

int vhdx_check_punch(struct vcheck *c, uint64_t unit, uint64_t count)
{
    struct vhdx *v = c->v;
    uint64_t from = unit * VHDX_MIB, size = blk_size(v->file);

    if (unit >= c->end && v->grows)
        return blk_resize(v->file, from, BLK_PREALLOC_OFF, c->err);
    uint64_t len = MIN(count * VHDX_MIB, size - from);
    return blk_zero(v->file, from, len, BLK_MAY_UNMAP);
}

int vhdx_check_write_back(struct vcheck *c)
{
    int ret = vhdx_commit(c->v, true);

    return ret == 0 ? vhdx_log_close(c->v) : ret;
}
