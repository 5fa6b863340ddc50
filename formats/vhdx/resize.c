/* Changing the disk's size: the size in the metadata, and the BAT, which moves where it has no room to grow.
 *
 * Growing writes the new entries first, behind what is in use, then the size goes through the log. A BAT that moves is
 * complete in its new place before the log says, in one entry, where it is and how large the disk is; its old
 * place is then free. Shrinking writes the size first: what lies behind it is not needed any more, and a crash leaves
 * space that nothing refers to.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vhdx.h"

enum { PER_PAGE = VHDX_PAGE / 8, MAX_REGION_PAGES = VHDX_REGION_TABLE / VHDX_PAGE };

static int failed(struct vhdx *v, int ret, const char *what, struct error **err)
{
    return error_set(err, -ret, "%s: could not %s: %s", blk_filename(v->node), what,
                     strerror(-ret));
}

/* ---- the size, and the region tables -------------------------------------------------------------------- */

/* Through the log: the disk's size, and with `regions` both region tables. */
static int publish(struct vhdx *v, uint64_t size, const struct vhdx_regions *regions)
{
    uint8_t page[VHDX_PAGE];
    uint64_t at = align_down(v->meta.size_at, VHDX_PAGE);
    struct vhdx_page pages[1 + 2 * MAX_REGION_PAGES] = { { at, page } };
    size_t count = 1;
    _cleanup_free_ uint8_t *table = malloc(VHDX_REGION_TABLE);

    if (!table)
        return -ENOMEM;
    int ret = vhdx_read(v, at, page, VHDX_PAGE);
    if (ret < 0)
        return ret;
    store_le64(page + (v->meta.size_at - at), size);
    if (regions) {
        vhdx_regions_build(regions, table);
        /* the first page has the checksum; behind the last entry nothing changes */
        size_t used = div_round_up(16 + regions->all.len * 32, VHDX_PAGE);
        for (size_t i = 0; i < 2 * used; i++)
            pages[count++] = (struct vhdx_page){
                VHDX_REGION_SLOT + i / used * VHDX_SLOT + i % used * VHDX_PAGE,
                table + i % used * VHDX_PAGE,
            };
    }
    LOCK_SCOPE(&v->commit_lock);
    ret = vhdx_log_pages(v, pages, count);
    if (ret < 0)
        node_set_failed(v->node);
    return ret;
}

/* ---- growing --------------------------------------------------------------------------------------------- */

/* The BAT in memory gets this many entries; new ones are `state` of payload blocks. */
static int extend_memory(struct vhdx *v, uint64_t size, uint64_t entries, enum vhdx_state state)
{
    struct bitmap dirty;
    uint64_t *bat = calloc(entries ? entries : 1, sizeof(*bat));

    if (!bat || bitmap_init(&dirty, div_round_up(entries, PER_PAGE) + 1) < 0) {
        free(bat);
        return -ENOMEM;
    }
    memcpy(bat, v->bat, MIN(entries, v->entries) * sizeof(*bat));
    uint64_t first = div_round_up(v->meta.size, v->meta.block_size);
    for (uint64_t b = first; state && b < div_round_up(size, v->meta.block_size); b++)
        bat[bat_index(v, b)] = state;
    free(v->bat);
    bitmap_free(&v->bat_dirty);
    v->bat = bat;
    v->bat_dirty = dirty;
    v->entries = entries;
    atomic_store(&v->bat_pages, 0);
    return 0;
}

/* Writes the pages from entry `from` on at `offset`. Entries in use do not change by it. */
static int write_entries(struct vhdx *v, uint64_t offset, uint64_t from)
{
    uint8_t piece[16 * VHDX_PAGE];
    uint64_t pages = div_round_up(v->entries, PER_PAGE);
    int ret = 0;

    for (uint64_t p = from / PER_PAGE; p < pages && ret == 0;) {
        uint64_t n = MIN(pages - p, (uint64_t)16);
        for (uint64_t i = 0; i < n; i++)
            vhdx_bat_page(v, p + i, piece + i * VHDX_PAGE);
        ret = blk_write(v->file, offset + p * VHDX_PAGE, piece, n * VHDX_PAGE, 0);
        p += n;
    }
    return ret;
}

static int take_clean(struct vhdx *v, uint64_t count, uint64_t *unit)
{
    bool clean;
    int ret;
    {
        WRLOCK_SCOPE(&v->lock);
        ret = vhdx_space_take(v, count, unit, &clean);
    }
    return ret == 0 ? vhdx_space_clean(v, *unit, count, clean) : ret;
}

/* Storage for the blocks that are new, before anything refers to it. */
static int fill_blocks(struct vhdx *v, uint64_t old, uint64_t size, enum blk_prealloc prealloc)
{
    uint64_t first = div_round_up(old, v->meta.block_size), unit;
    int ret = 0;

    for (uint64_t b = first; b < div_round_up(size, v->meta.block_size) && ret == 0; b++) {
        ret = take_clean(v, block_units(v), &unit);
        if (ret == 0 && prealloc > BLK_PREALLOC_METADATA) /* written zeroes are storage */
            ret = blk_zero(v->file, unit * VHDX_MIB, v->meta.block_size, 0);
        if (ret == 0)
            v->bat[bat_index(v, b)] = unit * VHDX_MIB | BLOCK_PRESENT;
    }
    return ret;
}

/* The BAT lies at `unit` from now on. */
static int move_bat(struct vhdx *v, uint64_t size, uint64_t unit, uint64_t units)
{
    struct vhdx_place old = v->regions.bat;
    struct vhdx_place place = { unit * VHDX_MIB, units * VHDX_MIB };
    int ret = write_entries(v, place.offset, 0);

    for (size_t i = 0; i < v->regions.all.len; i++)
        if (guid_equal(&v->regions.all.at[i].guid, &vhdx_region_bat))
            v->regions.all.at[i].place = place;
    v->regions.bat = place;
    if (ret == 0)
        ret = publish(v, size, &v->regions);
    if (ret < 0)
        return ret;
    WRLOCK_SCOPE(&v->lock);
    vhdx_free_later(v, old.offset / VHDX_MIB, old.length / VHDX_MIB);
    return 0;
}

static int grow(struct vhdx *v, uint64_t size, enum blk_prealloc prealloc)
{
    uint64_t old = v->meta.size, from = v->entries;
    uint64_t entries = vhdx_entries_for(size, v->block_bits, v->chunk_bits, v->differencing);
    /* A parent that is larger than the disk was must not come up in the new part. */
    int ret = extend_memory(v, size, entries, BLOCK_ZERO);

    if (ret == 0 && (v->fixed || prealloc != BLK_PREALLOC_OFF))
        ret = fill_blocks(v, old, size, prealloc);
    if (ret < 0)
        return ret;
    if (entries * 8 > v->regions.bat.length) {
        uint64_t units = div_round_up(entries * 8, VHDX_MIB), unit;
        ret = take_clean(v, units, &unit);
        return ret == 0 ? move_bat(v, size, unit, units) : ret;
    }
    if (v->differencing)
        from = bat_index(v, div_round_up(old, v->meta.block_size));
    ret = write_entries(v, v->regions.bat.offset, from);
    return ret == 0 ? publish(v, size, NULL) : ret;
}

/* ---- shrinking -------------------------------------------------------------------------------------------- */

/* Bitmap blocks of chunks that no block is left of. */
static void free_bitmaps(struct vhdx *v, uint64_t blocks)
{
    uint64_t chunk = UINT64_C(1) << v->chunk_bits;
    uint64_t old = div_round_up(v->meta.size, v->meta.block_size);

    WRLOCK_SCOPE(&v->lock);
    for (uint64_t b = round_up(blocks, chunk); b < old; b += chunk) {
        uint64_t index = bitmap_index(v, b), entry = v->bat[index];
        if (entry_state(entry) != BLOCK_PRESENT)
            continue;
        vhdx_bat_set(v, index, 0);
        table_cache_drop(v->bits, entry & BAT_OFFSET, VHDX_MIB);
        vhdx_free_later(v, (entry & BAT_OFFSET) / VHDX_MIB, 1);
    }
}

static int shrink(struct vhdx *v, uint64_t size)
{
    uint64_t blocks = div_round_up(size, v->meta.block_size);
    int ret = publish(v, size, NULL);

    if (ret == 0)
        ret = vhdx_forget_blocks(v, blocks, div_round_up(v->meta.size, v->meta.block_size),
                                 BLOCK_NOT_PRESENT);
    if (ret == 0 && v->differencing)
        free_bitmaps(v, blocks);
    return ret == 0 ? vhdx_commit(v, true) : ret;
}

/* ---- resize ------------------------------------------------------------------------------------------------ */

static int check_size(struct vhdx *v, uint64_t size, struct error **err)
{
    if (size % v->meta.logical)
        return error_set(err, EINVAL,
                         "%s: the new size must be a multiple of the sector size, %" PRIu32
                         " bytes",
                         blk_filename(v->node), v->meta.logical);
    if (size > VHDX_MAX_SIZE)
        return error_set(err, EFBIG, "%s: the new size is %" PRIu64 " bytes: the limit is 64 TiB",
                         blk_filename(v->node), size);
    return 0;
}

int vhdx_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err)
{
    struct vhdx *v = node_state(n);
    int ret = check_size(v, size, err);

    if (ret < 0 || size == v->meta.size)
        return ret;
    ret = vhdx_session(v);
    if (ret == 0)
        ret = vhdx_commit(v, true);
    if (ret == 0)
        ret = size > v->meta.size ? grow(v, size, prealloc) : shrink(v, size);
    if (ret < 0) {
        node_set_failed(n); /* the BAT in memory may be ahead of the disk */
        return failed(v, ret, "be resized", err);
    }
    v->meta.size = size;
    if (vhdx_entries_for(size, v->block_bits, v->chunk_bits, v->differencing) < v->entries)
        ret = extend_memory(v, size,
                            vhdx_entries_for(size, v->block_bits, v->chunk_bits, v->differencing),
                            BLOCK_NOT_PRESENT);
    if (ret == 0)
        ret = vhdx_settle(v);
    return ret < 0 ? failed(v, ret, "be resized", err) : 0;
}
