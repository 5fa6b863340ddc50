/* Changing the disk's size. Exclusive: no request is in flight.
 *
 * The block map lies before the data. When it must grow and there is no room left, the blocks nearest to it move
 * behind all others; the new map is written where they were, its numbers counted from the new
 * beginning of the data; then one write of the header's sector puts it in force (V1, V2). Until then the old map
 * is whole, and after it nothing refers to the old one.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vdi.h"

enum { PIECE = 64 << 10 };

static int failed(struct vdi *v, int ret, const char *what, struct error **err)
{
    return error_set(err, -ret, "%s: could not %s: %s", blk_filename(v->bat.node), what,
                     strerror(-ret));
}

/* The header's sector as it is, made durable. What is in force after a failure is unknown. */
static int publish(struct vdi *v)
{
    int ret = blk_flush(v->bat.file);

    if (ret == 0)
        ret = vdi_write_header(v);
    if (ret == 0)
        ret = blk_flush(v->bat.file);
    if (ret < 0) {
        atomic_store(&v->bat.failed, true);
        node_set_failed(v->bat.node);
    }
    return ret;
}

/* ---- the map ----------------------------------------------------------------------------------------- */

/* The entries of the old map, each `less` smaller, and new ones behind them, at `offset`. Nothing is dirty. */
static int write_map(struct vdi *v, uint64_t offset, uint64_t blocks, uint32_t less)
{
    struct bat *b = &v->bat;
    uint64_t bytes = vdi_map_bytes(blocks);
    _cleanup_free_ uint8_t *piece = malloc(PIECE);
    int ret = piece ? 0 : -ENOMEM;

    for (uint64_t at = 0; at < bytes && ret == 0; at += PIECE) {
        size_t len = (size_t)MIN(bytes - at, (uint64_t)PIECE);
        uint64_t old = at / 4 < b->all_entries ? MIN(len / 4, b->all_entries - at / 4) : 0;
        memset(piece, 0xff, len);
        if (old > 0)
            ret = blk_read(b->file, b->table_offset + at, piece, old * 4, 0);
        for (uint64_t i = 0; i < old; i++) {
            uint32_t entry = load_le32(piece + 4 * i);
            if (bat_stored(b, entry))
                store_le32(piece + 4 * i, entry - less);
        }
        if (ret == 0)
            ret = blk_write(b->file, offset + at, piece, len, 0);
    }
    return ret;
}

/* The entries behind those in use, in the room that is there. */
static int extend_map(struct vdi *v, uint64_t blocks)
{
    struct bat *b = &v->bat;
    _cleanup_free_ uint8_t *marks = malloc(PIECE);
    uint64_t from = b->table_offset + b->all_entries * UINT64_C(4);
    uint64_t end = b->table_offset + vdi_map_bytes(blocks);
    int ret = marks ? 0 : -ENOMEM;

    if (marks)
        memset(marks, 0xff, PIECE);
    for (; from < end && ret == 0; from += PIECE)
        ret = blk_write(b->file, from, marks, (size_t)MIN(end - from, (uint64_t)PIECE), 0);
    return ret;
}

/* Makes room behind the old map by moving blocks, and writes the new one there. */
static int move_map(struct vdi *v, uint64_t blocks)
{
    struct bat *b = &v->bat;
    uint64_t count = div_round_up(vdi_map_bytes(blocks), b->stride), map = b->base;
    uint64_t data = b->base + count * b->stride;

    if (data > UINT32_MAX)
        return -EFBIG;
    int ret = bat_vacate(b, data);
    if (ret == 0)
        ret = write_map(v, map, blocks, (uint32_t)count);
    if (ret < 0)
        return ret;
    uint64_t claimed = MAX(b->reserved, b->end);
    store_le32(v->header + AT_MAP_OFFSET, (uint32_t)map);
    store_le32(v->header + AT_DATA_OFFSET, (uint32_t)data);
    b->base = data;
    vdi_claim(v, claimed);
    return 0;
}

/* The map has room for so many blocks; the header in memory says so, but is not written yet. */
static int grow_map(struct vdi *v, uint64_t blocks)
{
    struct bat *b = &v->bat;
    uint64_t bytes = vdi_map_bytes(blocks);
    int ret = bat_settle(b);

    if (ret < 0 || blocks <= b->all_entries)
        return ret;
    if (b->table_offset + bytes <= b->base) {
        ret = extend_map(v, blocks);
    } else if (VDI_HEADER + bytes <= b->table_offset) {
        ret = write_map(v, VDI_HEADER, blocks, 0); /* an earlier one lay there */
        if (ret == 0)
            store_le32(v->header + AT_MAP_OFFSET, VDI_HEADER);
    } else {
        ret = move_map(v, blocks);
    }
    if (ret == 0)
        store_le32(v->header + AT_BLOCKS, (uint32_t)blocks);
    return ret;
}

/* What the header says now. Nothing is dirty and nothing in quarantine. */
static void adopt(struct vdi *v)
{
    struct bat *b = &v->bat;

    table_cache_clear(b->table);
    vdi_set_geometry(v);
    b->file_end = MAX(b->file_end, b->reserved);
}

/* ---- resize ------------------------------------------------------------------------------------------- */

static int grow(struct vdi *v, uint64_t size, struct error **err)
{
    uint8_t old[VDI_HEADER];
    uint64_t blocks = div_round_up(size, v->bat.block_size), old_size = v->size;

    if (blocks > BAT_MAX_ENTRIES)
        return error_set(err, EFBIG, "%s: %" PRIu64 " bytes are more than %u blocks of %u bytes",
                         blk_filename(v->bat.node), size, BAT_MAX_ENTRIES, v->bat.block_size);
    memcpy(old, v->header, sizeof(old));
    int ret = grow_map(v, blocks);
    if (ret == 0) {
        store_le64(v->header + AT_DISK_SIZE, size);
        ret = publish(v);
    }
    if (ret < 0) {
        uint64_t end = MAX(v->bat.reserved, v->bat.end); /* blocks may have moved there */
        memcpy(v->header, old, sizeof(old));
        vdi_set_geometry(v);
        vdi_claim(v, end);
        return failed(v, ret, "make the block map larger", err);
    }
    adopt(v);
    if (v->type == VDI_STATIC) {
        ret = bat_store_zeroes(&v->bat, old_size, size);
        if (ret == 0)
            ret = bat_settle(&v->bat);
    }
    return ret < 0 ? failed(v, ret, "allocate the new part", err) : 0;
}

/* The header first: from then on nothing behind it is needed, and a crash leaves leaks. */
static int shrink(struct vdi *v, uint64_t size, struct error **err)
{
    struct bat *b = &v->bat;
    uint64_t from = round_up(size, b->block_size), end = (uint64_t)b->all_entries * b->block_size;
    uint8_t old[VDI_HEADER];

    memcpy(old, v->header, sizeof(old));
    int ret = bat_settle(b);
    store_le64(v->header + AT_DISK_SIZE, size);
    if (ret == 0)
        ret = publish(v);
    if (ret < 0) {
        memcpy(v->header, old, sizeof(old));
        return failed(v, ret, "write the new size", err);
    }
    adopt(v);
    if (from < end)
        ret = bat_unmap(b, from, end - from, true);
    if (ret == 0)
        ret = bat_settle(b);
    if (ret == 0) { /* the map ends with the disk */
        store_le32(v->header + AT_BLOCKS, b->entries);
        ret = publish(v);
    }
    if (ret == 0) {
        adopt(v);
        ret = bat_compact(b);
    }
    return ret < 0 ? failed(v, ret, "free what lies behind the new end", err) : 0;
}

int vdi_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err)
{
    struct vdi *v = node_state(n);

    if (prealloc != BLK_PREALLOC_OFF)
        return error_set(err, ENOTSUP, "%s: VDI images are not preallocated when they grow",
                         blk_filename(n));
    if (size % 512)
        return error_set(err, EINVAL, "%s: the new size must be a multiple of 512 bytes",
                         blk_filename(n));
    if (size == v->size)
        return 0;
    return size < v->size ? shrink(v, size, err) : grow(v, size, err);
}
