/* What may be wrong with an image that opens: a header or region table of which one copy is lost; BAT entries that say
 * nonsense, or lead out of the file, or to where something else lies; space that nothing refers to.
 *
 * Free space is a hole in the file, since nothing else says that it is free. What is not referred to and still takes room
 * counts as leaked.
 */
#include "vhdx_check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"

#define MAX_UNITS (2 * VHDX_MAX_SIZE / VHDX_MIB)

enum { PROGRESS = 65536 };

static void say(struct vcheck *c, const char *prefix, const char *fmt, va_list args)
{
    _cleanup_free_ char *text = NULL, *all = NULL;

    if (!c->hooks->message || vasprintf(&text, fmt, args) < 0)
        return;
    if (asprintf(&all, "%s%s", prefix, text) < 0)
        all = NULL;
    c->hooks->message(c->hooks->opaque, all ? all : prefix);
}

void vhdx_check_say(struct vcheck *c, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    say(c, "", fmt, args);
    va_end(args);
}

bool vhdx_check_corrupt(struct vcheck *c, const char *fmt, ...)
{
    bool mend = c->fix & BLK_FIX_ERRORS;
    va_list args;

    va_start(args, fmt);
    say(c, mend ? "Repairing " : "ERROR ", fmt, args);
    va_end(args);
    if (mend)
        c->out->corruptions_fixed++;
    else
        c->out->corruptions++;
    return mend;
}

/* ---- what lies where ------------------------------------------------------------------------------------ */

static bool is_free(const struct vcheck *c, uint64_t unit, uint64_t count)
{
    return bitmap_next_set(&c->used, unit) >= unit + count;
}

static void use(struct vcheck *c, uint64_t unit, uint64_t count)
{
    count = unit < c->used.bits ? MIN(count, c->used.bits - unit) : 0;
    bitmap_set_range(&c->used, MIN(unit, c->used.bits), count);
    c->end = MAX(c->end, unit + count);
}

static int mark_structures(struct vcheck *c)
{
    const struct vhdx *v = c->v;

    use(c, 0, 1);
    use(c, v->headers.current.log_offset / VHDX_MIB, v->headers.current.log_length / VHDX_MIB);
    for (size_t i = 0; i < v->regions.all.len; i++)
        use(c, v->regions.all.at[i].place.offset / VHDX_MIB,
            v->regions.all.at[i].place.length / VHDX_MIB);
    return 0;
}

static int check_copies(struct vcheck *c)
{
    const struct vhdx *v = c->v;
    int ret = 0;

    for (unsigned i = 0; i < 2 && ret == 0; i++)
        if (v->headers.damaged[i] && vhdx_check_corrupt(c, "header %u: it is not valid", i + 1))
            ret = vhdx_check_mend_header(c);
    for (unsigned i = 0; i < 2 && ret == 0; i++)
        if (v->regions.damaged[i] &&
            vhdx_check_corrupt(c, "region table %u: it is not valid, or not like the first", i + 1))
            ret = vhdx_check_mend_regions(c);
    if (v->dirty)
        vhdx_check_say(c, "The log holds changes that are not in their places yet; the next writer "
                          "replays it");
    return ret;
}

/* ---- the BAT ------------------------------------------------------------------------------------------------ */

static bool state_known(const struct vhdx *v, uint64_t entry)
{
    enum vhdx_state s = entry_state(entry);

    return s <= BLOCK_UNMAPPED || s == BLOCK_PRESENT || (s == BLOCK_PARTIAL && v->differencing);
}

/* A block that is stored, of which `need` bytes must be in the file. */
static int check_stored(struct vcheck *c, uint64_t block, uint64_t index, uint64_t need)
{
    struct vhdx *v = c->v;
    uint64_t host = v->bat[index] & BAT_OFFSET, unit = host / VHDX_MIB;
    bool inside = host >= VHDX_MIB && range_inside(host, need, c->units * VHDX_MIB);

    c->out->allocated_clusters++;
    if (!inside) {
        if (vhdx_check_corrupt(c,
                               "block %" PRIu64 ": it is mapped to %#" PRIx64
                               ", not in the file or in its header",
                               block, host))
            vhdx_check_drop_block(c, index);
        return 0;
    }
    if (!is_free(c, unit, MIN(block_units(v), c->units - unit))) {
        bool mend = vhdx_check_corrupt(
            c, "block %" PRIu64 ": it is mapped to %#" PRIx64 ", where something else lies", block,
            host);
        return mend ? vhdx_check_move_block(c, index) : 0;
    }
    use(c, unit, block_units(v));
    return 0;
}

static int check_entry(struct vcheck *c, uint64_t block, uint64_t *expected)
{
    struct vhdx *v = c->v;
    uint64_t index = bat_index(v, block), entry = v->bat[index];
    uint64_t need = MIN((uint64_t)v->meta.block_size, v->meta.size - (block << v->block_bits));

    if (!state_known(v, entry)) {
        if (vhdx_check_corrupt(c, "block %" PRIu64 ": its BAT entry is %#" PRIx64, block, entry))
            vhdx_check_drop_block(c, index);
        return 0;
    }
    if ((entry & BAT_RESERVED) &&
        vhdx_check_corrupt(c,
                           "block %" PRIu64 ": reserved bits of its BAT entry are set: %#" PRIx64,
                           block, entry)) {
        vhdx_bat_set(v, index, entry & ~BAT_RESERVED);
        c->changed = true;
    }
    if (!entry_stored(entry))
        return 0;
    if (*expected && (entry & BAT_OFFSET) != *expected)
        c->out->fragmented_clusters++;
    *expected = (entry & BAT_OFFSET) + v->meta.block_size;
    return check_stored(c, block, index, need);
}

/* Bitmap blocks before all others: a block that lies there, too, can be moved, they cannot. */
static void check_bitmaps(struct vcheck *c, uint64_t blocks)
{
    struct vhdx *v = c->v;
    uint64_t chunk = UINT64_C(1) << v->chunk_bits;

    for (uint64_t b = 0; v->differencing && b < blocks; b += chunk) {
        uint64_t entry = v->bat[bitmap_index(v, b)], unit = (entry & BAT_OFFSET) / VHDX_MIB;
        bool there = entry_state(entry) == BLOCK_PRESENT;
        if (there && unit > 0 && unit < c->units && is_free(c, unit, 1)) {
            use(c, unit, 1);
            continue;
        }
        bool needed = there;
        for (uint64_t k = b; !needed && k < MIN(b + chunk, blocks); k++)
            needed = entry_state(v->bat[bat_index(v, k)]) == BLOCK_PARTIAL;
        if (!needed)
            continue;
        c->out->corruptions++; /* which sectors were here, nobody knows any more */
        vhdx_check_say(c,
                       "ERROR the sector bitmap of the blocks from %" PRIu64
                       " on is not there: its BAT entry is %#" PRIx64,
                       b, entry);
    }
}

static int check_bat(struct vcheck *c)
{
    uint64_t blocks = div_round_up(c->v->meta.size, c->v->meta.block_size), expected = 0;
    int ret = 0;

    c->out->total_clusters = blocks;
    check_bitmaps(c, blocks);
    for (uint64_t b = 0; b < blocks && ret == 0; b++) {
        ret = check_entry(c, b, &expected);
        if (b % PROGRESS == 0 && c->hooks->progress &&
            c->hooks->progress(c->hooks->opaque, b, blocks))
            ret = -ECANCELED;
    }
    return ret;
}

/* ---- leaks ---------------------------------------------------------------------------------------------------- */

/* MiB of a gap that take room. */
static int gap_leaks(struct vcheck *c, uint64_t from, uint64_t to, uint64_t *leaks)
{
    uint64_t end = MIN(to * VHDX_MIB, blk_size(c->v->file)), counted = 0;

    for (uint64_t off = from * VHDX_MIB; off < end;) {
        struct blk_extent e = { 0 };
        int ret = blk_extents(c->v->file, off, end - off, 0, &e);
        if (ret < 0)
            return ret;
        if (!(e.flags & BLK_EXT_ZERO)) {
            uint64_t first = MAX(off / VHDX_MIB, counted);
            uint64_t last = (off + e.length - 1) / VHDX_MIB + 1;
            *leaks += last > first ? last - first : 0;
            counted = last;
        }
        off += e.length;
    }
    return 0;
}

static int check_leaks(struct vcheck *c)
{
    int ret = 0;

    for (uint64_t at = 0; at < c->units && ret == 0;) {
        uint64_t from = bitmap_next_clear(&c->used, at), leaks = 0;
        uint64_t to = from < c->units ? MIN(bitmap_next_set(&c->used, from), c->units) : from;
        at = to;
        if (from >= c->units)
            break;
        ret = gap_leaks(c, from, to, &leaks);
        if (ret < 0 || leaks == 0)
            continue;
        bool mend = c->fix & BLK_FIX_LEAKS;
        vhdx_check_say(c, "%s %" PRIu64 " MiB at %#" PRIx64 " that nothing refers to",
                       mend ? "Repairing" : "Leaked", leaks, from * VHDX_MIB);
        if (mend)
            ret = vhdx_check_punch(c, from, to - from);
        if (mend)
            c->out->leaks_fixed += leaks;
        else
            c->out->leaks += leaks;
    }
    return ret;
}

/* ---- check ------------------------------------------------------------------------------------------------------ */

static int check(struct vcheck *c)
{
    uint64_t size = blk_size(c->v->file);

    c->units = div_round_up(MAX(size, c->v->replay.last), VHDX_MIB);
    if (c->units > MAX_UNITS)
        return error_set(c->err, EFBIG, "%s: the file has %" PRIu64 " bytes: too many to check",
                         blk_filename(c->v->file), size);
    if (bitmap_init(&c->used, c->units + block_units(c->v)) < 0)
        return -ENOMEM;
    int ret = mark_structures(c);
    if (ret == 0)
        ret = check_copies(c);
    if (ret == 0)
        ret = check_bat(c);
    if (ret == 0 && c->changed)
        ret = vhdx_check_write_back(c);
    c->out->image_end_offset = c->end * VHDX_MIB;
    /* While entries are wrong, nobody knows what is not referred to. */
    if (ret == 0 && !c->out->corruptions)
        ret = check_leaks(c);
    return ret;
}

int vhdx_check(struct blk_node *n, unsigned fix, struct blk_check *out,
               const struct blk_check_hooks *hooks, struct error **err)
{
    struct vhdx *v = node_state(n);
    struct vcheck c = { .v = v, .fix = fix, .out = out, .hooks = hooks, .err = err };

    if (!v->bat)
        return error_set(err, ENOTSUP, "%s: was opened to be described only", blk_filename(n));
    int ret = v->writing ? vhdx_settle(v) : 0;
    if (ret == 0)
        ret = check(&c);
    bitmap_free(&c.used);
    if (ret < 0 && ret != -ECANCELED)
        error_set(err, -ret, "%s: could not be checked: %s", blk_filename(n), strerror(-ret));
    if (ret == 0 && fix && (out->corruptions_fixed || out->leaks_fixed))
        ret = vhdx_load(v, err);
    return ret;
}
