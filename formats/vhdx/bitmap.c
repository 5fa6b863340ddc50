/* Sector bitmaps: which sectors of a partially present block are here and which are the parent's (Spec 2.4).
 *
 * Bit n of a chunk's bitmap block is the chunk's sector n. The table cache keeps pages of the blocks; an image that is
 * read-only with a log to be replayed is read around it.
 */
#include <errno.h>
#include <string.h>

#include "base/macros.h"
#include "vhdx.h"

enum { PAGE_BITS = VHDX_PAGE * 8 };

/* The page with the bit for guest offset `off`: its place in the file, and the bit's number in it. */
static int page_of(struct vhdx *v, uint64_t off, uint64_t *place, uint32_t *bit)
{
    uint64_t entry = v->bat[bitmap_index(v, block_of(v, off))];
    uint64_t sector = (off >> v->sector_bits) & (VHDX_BITMAP_SECTORS - 1);

    *bit = (uint32_t)(sector % PAGE_BITS);
    *place = (entry & BAT_OFFSET) + sector / PAGE_BITS * VHDX_PAGE;
    if (entry_state(entry) != BLOCK_PRESENT || (entry & BAT_OFFSET) < VHDX_MIB)
        return vhdx_corrupt(v, "a block is partially present, but its sector bitmap is not there");
    return 0;
}

static bool bit_set(const uint8_t *page, uint32_t bit)
{
    return page[bit / 8] >> (bit % 8) & 1;
}

/* Bits on from `bit` that are like it, at most `max`. */
static uint32_t count_alike(const uint8_t *page, uint32_t bit, uint32_t max)
{
    bool first = bit_set(page, bit);
    uint8_t all = first ? 0xff : 0;
    uint32_t n = 1;

    while (n < max) {
        uint32_t at = bit + n;
        if (at % 8 == 0 && max - n >= 8 && page[at / 8] == all) {
            n += 8;
            continue;
        }
        if (bit_set(page, at) != first)
            break;
        n++;
    }
    return n;
}

int vhdx_bits_run(struct vhdx *v, uint64_t off, uint64_t len, bool exclusive, bool nowait,
                  bool *present, uint64_t *run)
{
    uint8_t copy[VHDX_PAGE];
    const uint8_t *page = copy;
    uint64_t place;
    uint32_t bit;
    void *table;

    int ret = page_of(v, off, &place, &bit);
    if (ret < 0)
        return ret;
    if (v->dirty) {
        ret = vhdx_read(v, place, copy, VHDX_PAGE);
    } else {
        ret = table_cache_get(v->bits, place, exclusive, nowait, &table);
        page = table;
    }
    if (ret != 0)
        return ret;
    uint64_t in_sector = off & (v->meta.logical - 1);
    uint64_t wanted = (in_sector + len + v->meta.logical - 1) >> v->sector_bits;
    uint32_t n = count_alike(page, bit, (uint32_t)MIN(wanted, (uint64_t)(PAGE_BITS - bit)));
    *present = bit_set(page, bit);
    *run = MIN(len, ((uint64_t)n << v->sector_bits) - in_sector);
    return 0;
}

static void set_bits(uint8_t *page, uint32_t bit, uint32_t count, bool present)
{
    for (uint32_t i = bit; i < bit + count;) {
        if (i % 8 == 0 && bit + count - i >= 8) {
            uint32_t bytes = (bit + count - i) / 8;
            memset(page + i / 8, present ? 0xff : 0, bytes);
            i += bytes * 8;
            continue;
        }
        uint8_t mask = (uint8_t)(1u << (i % 8));
        page[i / 8] = (uint8_t)(present ? page[i / 8] | mask : page[i / 8] & ~mask);
        i++;
    }
}

int vhdx_bits_set(struct vhdx *v, uint64_t off, uint64_t len, bool present)
{
    uint64_t first = off >> v->sector_bits;
    uint64_t end = (off + len + v->meta.logical - 1) >> v->sector_bits;

    while (first < end) {
        uint64_t place;
        uint32_t bit;
        void *table;
        int ret = page_of(v, first << v->sector_bits, &place, &bit);
        if (ret == 0)
            ret = table_cache_get(v->bits, place, true, false, &table);
        if (ret != 0)
            return ret;
        uint32_t n = (uint32_t)MIN(end - first, (uint64_t)(PAGE_BITS - bit));
        set_bits(table, bit, n, present);
        table_cache_dirty(v->bits, table);
        first += n;
    }
    return 0;
}
