/* Space in sparse extents.
 *
 * A VMDK does not say which of its space is free, so new grains go behind all that was ever used (`fresh`), or where
 * this session unmapped some. What was freed in earlier sessions stays unused; check finds it and gives it back to the
 * file system.
 *
 * The file is made longer ahead of need: what lies beyond its end may not be mapped, and the guest need not write the end
 * of a grain. Nothing but zeroes is there, so that new grains read as zeroes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "base/round.h"
#include "vmdk.h"

enum { AHEAD = 4 << 20 };

#define MAX_FILE (UINT32_MAX * SECTOR) /* entries are sectors in 32 bits */

static int extend(struct vmdk_extent *e, uint64_t end)
{
    static const uint8_t zero;
    uint64_t to = MIN(end + AHEAD, MAX_FILE);

    if (end > MAX_FILE)
        return -EFBIG;
    if (end <= e->extended)
        return 0;
    int ret = blk_write(e->file, to - 1, &zero, 1, 0);
    if (ret < 0 && to > end) {
        to = end;
        ret = blk_write(e->file, to - 1, &zero, 1, 0);
    }
    if (ret == 0)
        e->extended = to;
    return ret;
}

int vmdk_alloc(struct vmdk *v, struct vmdk_extent *e, uint32_t count, uint64_t *offset,
               uint32_t *got, bool *fresh)
{
    (void)v;
    if (e->free.len > 0) {
        *offset = e->free.at[--e->free.len];
        *got = 1;
        *fresh = false;
        return 0;
    }
    uint64_t at = round_up(e->fresh, e->grain), end = at + (uint64_t)count * e->grain;
    int ret = extend(e, end);
    if (ret < 0)
        return ret;
    e->fresh = end;
    *offset = at;
    *got = count;
    *fresh = true;
    return 0;
}

/* Encoded grains are written whole, so that the file grows with them. */
int vmdk_alloc_bytes(struct vmdk *v, struct vmdk_extent *e, uint64_t bytes, uint64_t *offset)
{
    uint64_t end = e->fresh + align_up(bytes, SECTOR);

    (void)v;
    if (end > MAX_FILE)
        return -EFBIG;
    *offset = e->fresh;
    e->fresh = end;
    e->dirty |= e->tables != NULL;
    return 0;
}

/* ---- tables ------------------------------------------------------------------------------------------- */

void vmdk_table_touch(struct vmdk_extent *e, uint32_t i, uint8_t *table)
{
    if (!e->tables) {
        table_cache_dirty(e->cache, table);
        return;
    }
    e->table_dirty[i] = 1;
    e->dirty = true;
}

static void touch_gd(struct vmdk_extent *e, uint32_t i)
{
    e->gd_from = e->gd_dirty ? MIN(e->gd_from, i) : i;
    e->gd_to = e->gd_dirty ? MAX(e->gd_to, i + 1) : i + 1;
    e->gd_dirty = true;
}

/* Room for `bytes` of tables, which reads as zeroes on the disk when a directory names it. */
static int table_room(struct vmdk *v, struct vmdk_extent *e, uint64_t bytes, uint64_t *at)
{
    if (e->gt_room_end - e->gt_room < bytes) {
        uint32_t count = (uint32_t)div_round_up(bytes, e->grain), got = 0;
        uint64_t offset = 0;
        bool fresh;
        int ret = e->compressed ? vmdk_alloc_bytes(v, e, bytes, &offset)
                                : vmdk_alloc(v, e, count, &offset, &got, &fresh);
        if (ret < 0)
            return ret;
        if (!e->compressed &&
            got < count) { /* a freed grain is too small: behind all of it, then */
            (void)vector_push(&e->free, offset);
            offset = round_up(e->fresh, e->grain);
            got = count;
            ret = extend(e, offset + (uint64_t)count * e->grain);
            if (ret < 0)
                return ret;
            e->fresh = offset + (uint64_t)count * e->grain;
        }
        e->gt_room = offset;
        e->gt_room_end = offset + (e->compressed ? bytes : (uint64_t)got * e->grain);
    }
    int ret = blk_zero(e->file, e->gt_room, bytes, 0);
    if (ret < 0)
        return ret;
    *at = e->gt_room;
    e->gt_room += bytes;
    return 0;
}

static void insert_order(struct vmdk_extent *e, uint32_t i)
{
    uint32_t k = e->order_len;

    /* Room for all was made with the array, and this one had no place. */
    while (k > 0 && e->gd[e->order[k - 1]] > e->gd[i]) {
        e->order[k] = e->order[k - 1];
        k--;
    }
    e->order[k] = i;
    e->order_len++;
}

int vmdk_make_table(struct vmdk *v, struct vmdk_extent *e, uint32_t i)
{
    uint64_t bytes = align_up(e->gt_size, SECTOR), at;

    if (e->tables) {
        e->tables[i] = calloc(1, e->gt_size);
        return e->tables[i] ? 0 : -ENOMEM;
    }
    node_event(e->file, EVENT_L2_ALLOC_WRITE);
    int ret = table_room(v, e, e->redundant ? 2 * bytes : bytes, &at);
    if (ret < 0)
        return ret;
    ret = vmdk_meta_add(e, at, e->redundant ? 2 * bytes : bytes);
    if (ret < 0)
        return ret;
    table_cache_drop(e->cache, at, e->gt_size);
    e->gd[i] = (uint32_t)(at / SECTOR);
    if (e->redundant) {
        e->rgd[i] = (uint32_t)((at + bytes) / SECTOR);
        insert_order(e, i);
    }
    touch_gd(e, i);
    return 0;
}

/* ---- freeing ---------------------------------------------------------------------------------------------- */

void vmdk_free_later(struct vmdk *v, struct vmdk_extent *e, uint64_t offset, uint64_t length)
{
    struct freed f = { .offset = offset, .length = length };

    /* Encodings of any length fit nowhere else, and a stream is read from one marker to the next. */
    if (e->compressed || offset % e->grain || offset >= e->fresh || vmdk_meta_at(e, offset, length))
        return;
    (void)vector_push(&e->freed, f); /* without memory it leaks, which check mends */
    if (e->freed.len > 4096)
        atomic_store(&v->many_freed, true);
}
