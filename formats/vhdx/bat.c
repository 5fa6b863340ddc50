/* The block allocation table, which is in memory as a whole: what of it is a hole in the file takes none. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vhdx.h"

enum { PIECE = 1 << 20, PER_PAGE = VHDX_PAGE / 8 };

uint64_t vhdx_entries_for(uint64_t size, uint32_t block_bits, uint32_t chunk_bits,
                          bool differencing)
{
    uint64_t blocks = div_round_up(size, UINT64_C(1) << block_bits);
    uint64_t chunks = div_round_up(blocks, UINT64_C(1) << chunk_bits);

    if (differencing)
        return chunks * ((UINT64_C(1) << chunk_bits) + 1);
    return blocks ? blocks + ((blocks - 1) >> chunk_bits) : 0;
}

static int load_piece(struct vhdx *v, uint64_t at, size_t len, uint8_t *piece)
{
    struct blk_extent e = { 0 };
    uint64_t offset = v->regions.bat.offset + at;

    if (!v->dirty && offset < blk_size(v->file) && blk_extents(v->file, offset, len, 0, &e) == 0 &&
        (e.flags & BLK_EXT_ZERO) && e.length == len)
        return 0;
    int ret = vhdx_read(v, offset, piece, len);
    for (size_t i = 0; i < len / 8 && ret == 0; i++) {
        uint64_t entry = load_le64(piece + 8 * i);
        if (entry) /* untouched memory stays untouched */
            v->bat[at / 8 + i] = entry;
    }
    return ret;
}

int vhdx_bat_check(struct vhdx *v, struct error **err)
{
    uint64_t bytes = v->entries * 8, end = MAX(blk_size(v->file), v->replay.last);

    if (!range_inside(v->regions.bat.offset, bytes, end))
        return error_set(err, EINVAL,
                         "%s: the BAT, %" PRIu64 " bytes at %" PRIu64
                         ", is not inside the file, which has %" PRIu64 " bytes",
                         blk_filename(v->file), bytes, v->regions.bat.offset, end);
    return 0;
}

int vhdx_bat_load(struct vhdx *v, struct error **err)
{
    uint64_t bytes = v->entries * 8;
    int ret = 0;

    free(v->bat);
    bitmap_free(&v->bat_dirty);
    v->bat = calloc(v->entries ? v->entries : 1, sizeof(*v->bat));
    _cleanup_free_ uint8_t *piece = malloc(PIECE);
    if (!v->bat || !piece || bitmap_init(&v->bat_dirty, div_round_up(bytes, VHDX_PAGE) + 1) < 0)
        return error_set(err, ENOMEM, "%s: out of memory for a BAT of %" PRIu64 " entries",
                         blk_filename(v->file), v->entries);
    atomic_store(&v->bat_pages, 0);
    for (uint64_t at = 0; at < bytes && ret == 0; at += PIECE)
        ret = load_piece(v, at, (size_t)MIN(bytes - at, (uint64_t)PIECE), piece);
    return ret < 0 ? error_set(err, -ret, "%s: could not read the BAT: %s", blk_filename(v->file),
                               strerror(-ret))
                   : 0;
}

void vhdx_bat_touch_page(struct vhdx *v, uint64_t page)
{
    if (bitmap_test(&v->bat_dirty, page))
        return;
    bitmap_set(&v->bat_dirty, page);
    atomic_fetch_add(&v->bat_pages, 1);
}

void vhdx_bat_set(struct vhdx *v, uint64_t index, uint64_t entry)
{
    v->bat[index] = entry;
    vhdx_bat_touch_page(v, index / PER_PAGE);
}

void vhdx_bat_page(const struct vhdx *v, uint64_t page, uint8_t out[VHDX_PAGE])
{
    for (uint64_t i = 0; i < PER_PAGE; i++) {
        uint64_t index = page * PER_PAGE + i;
        store_le64(out + 8 * i, index < v->entries ? v->bat[index] : 0);
    }
}
