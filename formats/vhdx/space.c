/* Which MiB of the file are in use: no structure on the disk says it, so a writer collects what the image refers to
 * when it opens it. What nothing refers to is free, however it came about.
 *
 * The file grows by more than a block at a time; what is left over is cut off when the image is closed. It has
 * grown before a place in the new part is given away, so that nobody writes behind its end.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/macros.h"
#include "base/round.h"
#include "vhdx.h"

#define MAX_UNITS (2 * VHDX_MAX_SIZE / VHDX_MIB)

enum { LEAST_GROWTH = 8, MOST_GROWTH = 1024 }; /* MiB */

/* ---- collecting ------------------------------------------------------------------------------------- */

/* Room in the bitmap for so many MiB. */
static int make_room(struct vhdx *v, uint64_t units)
{
    struct bitmap larger;

    if (units <= v->used.bits)
        return 0;
    if (units > MAX_UNITS)
        return -EFBIG;
    if (bitmap_init(&larger, MIN(MAX(units, v->used.bits * 2), MAX_UNITS)) < 0)
        return -ENOMEM;
    if (v->used.words)
        memcpy(larger.words, v->used.words, div_round_up(v->used.bits, 64) * 8);
    bitmap_free(&v->used);
    v->used = larger;
    return 0;
}

static int say(char **what, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int say(char **what, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    if (vasprintf(what, fmt, args) < 0)
        *what = NULL;
    va_end(args);
    return -EINVAL;
}

/* [offset, offset + len) is in use from now on; len is what must be in the file of a place of `units` MiB. */
static int mark(struct vhdx *v, uint64_t offset, uint64_t len, uint64_t units, char **what)
{
    uint64_t unit = offset / VHDX_MIB;

    if (!range_inside(offset, len, blk_size(v->file)))
        return say(what,
                   "%" PRIu64 " bytes at %" PRIu64 " are referred to, beyond the end of the file",
                   len, offset);
    int ret = make_room(v, unit + units);
    if (ret < 0)
        return ret;
    if (bitmap_next_set(&v->used, unit) < unit + units)
        return say(what, "two things lie at offset %" PRIu64 " (block of %" PRIu64 " MiB)", offset,
                   units);
    bitmap_set_range(&v->used, unit, units);
    v->units = MAX(v->units, unit + units);
    return 0;
}

static int mark_fixed(struct vhdx *v, char **what)
{
    const struct vhdx_header *h = &v->headers.current;
    int ret = mark(v, 0, VHDX_REGION_SLOT + 2 * VHDX_SLOT, 1, what);

    if (ret == 0)
        ret = mark(v, h->log_offset, h->log_length, h->log_length / VHDX_MIB, what);
    for (size_t i = 0; i < v->regions.all.len && ret == 0; i++) {
        const struct vhdx_place *p = &v->regions.all.at[i].place;
        uint64_t size = blk_size(v->file), there = p->offset < size ? size - p->offset : 0;
        /* a region need not be there to its end */
        ret =
            mark(v, p->offset, MIN(p->length, MAX(there, UINT64_C(1))), p->length / VHDX_MIB, what);
    }
    return ret;
}

static int mark_blocks(struct vhdx *v, char **what)
{
    uint64_t blocks = div_round_up(v->meta.size, v->meta.block_size);
    uint64_t chunk = UINT64_C(1) << v->chunk_bits;
    int ret = 0;

    for (uint64_t b = 0; b < blocks && ret == 0; b++) {
        uint64_t entry = v->bat[bat_index(v, b)];
        uint64_t need = MIN((uint64_t)v->meta.block_size, v->meta.size - b * v->meta.block_size);
        enum vhdx_state state = entry_state(entry);
        if (state == 4 || state == 5 || (state == BLOCK_PARTIAL && !v->differencing))
            ret = say(what, "block %" PRIu64 " has the BAT entry %#" PRIx64, b, entry);
        else if (entry_stored(entry))
            ret = mark(v, entry & BAT_OFFSET, need, block_units(v), what);
    }
    for (uint64_t b = 0; v->differencing && b < blocks && ret == 0; b += chunk) {
        uint64_t entry = v->bat[bitmap_index(v, b)];
        if (entry_state(entry) == BLOCK_PRESENT)
            ret = mark(v, entry & BAT_OFFSET, VHDX_MIB, 1, what);
    }
    return ret;
}

int vhdx_space_build(struct vhdx *v, char **what)
{
    uint64_t size = blk_size(v->file);

    bitmap_free(&v->used);
    v->units = v->grows ? div_round_up(size, VHDX_MIB) : size / VHDX_MIB;
    v->hint = 0;
    *what = NULL;
    int ret = make_room(v, v->units + 1);
    if (ret == 0)
        ret = mark_fixed(v, what);
    if (ret == 0)
        ret = mark_blocks(v, what);
    v->fresh = v->grows ? v->units : UINT64_MAX;
    return ret;
}

uint64_t vhdx_space_end(const struct vhdx *v)
{
    uint64_t end = 0;

    for (uint64_t at = bitmap_next_set(&v->used, 0); at < v->units;) {
        end = MIN(bitmap_next_clear(&v->used, at), v->units);
        at = bitmap_next_set(&v->used, end);
    }
    return end;
}

/* ---- taking --------------------------------------------------------------------------------------------- */

/* The first gap of `count` MiB at or behind `from`; one that reaches the file's end may be shorter. */
static uint64_t find_gap(const struct vhdx *v, uint64_t from, uint64_t count)
{
    for (;;) {
        uint64_t start = bitmap_next_clear(&v->used, from);
        if (start >= v->units)
            return v->units;
        uint64_t end = bitmap_next_set(&v->used, start);
        if (end >= v->units || end - start >= count)
            return start;
        from = end;
    }
}

static int grow(struct vhdx *v, uint64_t need)
{
    uint64_t more = MIN(MAX(v->units / 8, (uint64_t)LEAST_GROWTH), (uint64_t)MOST_GROWTH);
    uint64_t units = MAX(need, v->units + more);

    if (!v->grows)
        return -ENOSPC;
    if (need > MAX_UNITS)
        return -EFBIG;
    units = MIN(units, MAX_UNITS);
    int ret = make_room(v, units + 1);
    if (ret == 0)
        ret = blk_resize(v->file, units * VHDX_MIB, BLK_PREALLOC_OFF, NULL);
    if (ret < 0)
        return ret;
    v->units = units;
    v->trim = true;
    return 0;
}

int vhdx_space_take(struct vhdx *v, uint64_t count, uint64_t *unit, bool *clean)
{
    bool block = count == block_units(v);
    uint64_t at = find_gap(v, block ? v->hint : 0, count);

    node_event(v->file, EVENT_CLUSTER_ALLOC);
    if (at + count > v->units) {
        int ret = grow(v, at + count);
        if (ret < 0)
            return ret;
    }
    bitmap_set_range(&v->used, at, count);
    *unit = at;
    *clean = at >= v->fresh;
    if (v->grows)
        v->fresh = MAX(v->fresh, at + count);
    if (block)
        v->hint = at + count;
    return 0;
}

void vhdx_space_release(struct vhdx *v, uint64_t unit, uint64_t count)
{
    bitmap_clear_range(&v->used, unit, count);
    /* a gap may have begun before */
    v->hint = MIN(v->hint, unit > block_units(v) ? unit - block_units(v) : 0);
    v->trim = true;
}

int vhdx_space_clean(struct vhdx *v, uint64_t unit, uint64_t count, bool clean)
{
    return clean ? 0 : blk_zero(v->file, unit * VHDX_MIB, count * VHDX_MIB, BLK_MAY_UNMAP);
}
