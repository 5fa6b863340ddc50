/* Metadata items: block size, disk size, sector sizes, parent. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/round.h"
#include "vhdx.h"

enum { TABLE_COUNT = 10, TABLE_HEADER = 32, TABLE_ENTRY = 32 };

/* What is known, and how many bytes it has at least. */
enum item { PARAMETERS, SIZE, ID, LOGICAL, PHYSICAL, PARENT, ITEMS };

static const struct {
    const struct vhdx_guid *guid;
    const char *name;
    uint32_t bytes;
} known[ITEMS] = {
    [PARAMETERS] = { &vhdx_item_parameters, "file parameters", 8 },
    [SIZE] = { &vhdx_item_size, "virtual disk size", 8 },
    [ID] = { &vhdx_item_id, "virtual disk id", 16 },
    [LOGICAL] = { &vhdx_item_logical, "logical sector size", 4 },
    [PHYSICAL] = { &vhdx_item_physical, "physical sector size", 4 },
    [PARENT] = { &vhdx_item_parent, "parent locator", 20 },
};

static int find_item(const uint8_t *guid)
{
    for (int i = 0; i < ITEMS; i++)
        if (!memcmp(known[i].guid->b, guid, 16))
            return i;
    return -1;
}

static int take_entry(struct vhdx *v, const uint8_t *e, struct vhdx_place *items,
                      struct error **err)
{
    const struct vhdx_place *region = &v->regions.metadata;
    uint32_t offset = load_le32(e + 16), length = load_le32(e + 20), flags = load_le32(e + 24);
    struct vhdx_guid guid = guid_load(e);
    int i = find_item(e);
    char text[VHDX_GUID_TEXT];

    vhdx_guid_print(&guid, text);
    if (i < 0 && (flags & META_FLAG_REQUIRED))
        return error_set(err, ENOTSUP,
                         "%s: the image requires readers to know metadata item %s, which is not "
                         "known here",
                         blk_filename(v->file), text);
    if (i < 0 || (flags & META_FLAG_USER))
        return 0;
    if (offset < META_TABLE || length > META_MAX_ITEM || length < known[i].bytes ||
        !range_inside(offset, length, region->length))
        return error_set(err, EINVAL,
                         "%s: the metadata item '%s' has %" PRIu32 " bytes at %" PRIu32
                         ": it must have at least %" PRIu32 " between 64 KiB and %" PRIu64,
                         blk_filename(v->file), known[i].name, length, offset, known[i].bytes,
                         region->length);
    if (items[i].length)
        return error_set(err, EINVAL, "%s: the metadata item '%s' is there twice",
                         blk_filename(v->file), known[i].name);
    items[i] = (struct vhdx_place){ region->offset + offset, length };
    return 0;
}

static int read_table(struct vhdx *v, struct vhdx_place *items, struct error **err)
{
    _cleanup_free_ uint8_t *t = malloc(META_TABLE);
    if (!t)
        return error_set(err, ENOMEM, "out of memory");
    int ret = vhdx_read(v, v->regions.metadata.offset, t, META_TABLE);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the metadata table: %s",
                         blk_filename(v->file), strerror(-ret));
    unsigned count = load_le16(t + TABLE_COUNT);
    if (memcmp(t, SIG_METADATA, 8) != 0 || count > VHDX_MAX_ENTRIES)
        return error_set(err, EINVAL,
                         "%s: the metadata table has no signature, or %u entries (at most %d)",
                         blk_filename(v->file), count, VHDX_MAX_ENTRIES);
    for (unsigned i = 0; i < count && ret == 0; i++)
        ret = take_entry(v, t + TABLE_HEADER + (size_t)i * TABLE_ENTRY, items, err);
    return ret;
}

static int read_locator(struct vhdx *v, struct error **err)
{
    const struct vhdx_place *at = &v->meta.locator;
    _cleanup_free_ uint8_t *item = malloc(at->length);

    if (!item)
        return error_set(err, ENOMEM, "out of memory");
    int ret = vhdx_read(v, at->offset, item, at->length);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the parent locator: %s",
                         blk_filename(v->file), strerror(-ret));
    return vhdx_locator_parse(blk_filename(v->file), item, at->length, &v->meta, err);
}

static int read_items(struct vhdx *v, const struct vhdx_place *items, struct error **err)
{
    struct vhdx_meta *m = &v->meta;
    uint8_t b[ITEMS][16] = { 0 };

    for (int i = 0; i < PARENT; i++) {
        if (!items[i].length)
            return error_set(err, EINVAL, "%s: the metadata item '%s' is missing",
                             blk_filename(v->file), known[i].name);
        int ret = vhdx_read(v, items[i].offset, b[i], known[i].bytes);
        if (ret < 0)
            return error_set(err, -ret, "%s: could not read the metadata item '%s': %s",
                             blk_filename(v->file), known[i].name, strerror(-ret));
    }
    m->block_size = load_le32(b[PARAMETERS]);
    m->flags = load_le32(b[PARAMETERS] + 4);
    m->size = load_le64(b[SIZE]);
    m->size_at = items[SIZE].offset;
    m->id = guid_load(b[ID]);
    m->logical = load_le32(b[LOGICAL]);
    m->physical = load_le32(b[PHYSICAL]);
    m->locator = items[PARENT];
    return 0;
}

static int check_items(struct vhdx *v, struct error **err)
{
    const struct vhdx_meta *m = &v->meta;
    const char *name = blk_filename(v->file);

    if (!is_pow2(m->block_size) || m->block_size < VHDX_MIB || m->block_size > 256 * VHDX_MIB)
        return error_set(err, EINVAL,
                         "%s: its block size is %" PRIu32
                         ": it must be a power of two from 1 MiB to 256 MiB",
                         name, m->block_size);
    if (m->logical != 512 && m->logical != 4096)
        return error_set(err, EINVAL,
                         "%s: its logical sector size is %" PRIu32 ": it must be 512 or 4096", name,
                         m->logical);
    if (m->physical != 512 && m->physical != 4096)
        return error_set(err, EINVAL,
                         "%s: its physical sector size is %" PRIu32 ": it must be 512 or 4096",
                         name, m->physical);
    if (m->size > VHDX_MAX_SIZE || m->size % m->logical)
        return error_set(err, EINVAL,
                         "%s: its disk has %" PRIu64
                         " bytes: it must have whole sectors of %" PRIu32 " and at most 64 TiB",
                         name, m->size, m->logical);
    if (m->flags & ~(uint32_t)(PARAM_LEAVE_ALLOCATED | PARAM_HAS_PARENT))
        return error_set(err, ENOTSUP, "%s: its file parameters have unknown flags: %#" PRIx32,
                         name, m->flags);
    if ((m->flags & PARAM_HAS_PARENT) && !m->locator.length)
        return error_set(err, EINVAL, "%s: the image has a parent but no parent locator", name);
    return 0;
}

int vhdx_metadata_read(struct vhdx *v, struct error **err)
{
    struct vhdx_place items[ITEMS] = { 0 };
    int ret = read_table(v, items, err);

    if (ret == 0)
        ret = read_items(v, items, err);
    if (ret == 0)
        ret = check_items(v, err);
    if (ret < 0)
        return ret;
    v->differencing = v->meta.flags & PARAM_HAS_PARENT;
    v->fixed = (v->meta.flags & PARAM_LEAVE_ALLOCATED) && !v->differencing;
    v->block_bits = log2_floor(v->meta.block_size);
    v->sector_bits = log2_floor(v->meta.logical);
    v->chunk_bits = 23 + v->sector_bits - v->block_bits;
    v->entries = vhdx_entries_for(v->meta.size, v->block_bits, v->chunk_bits, v->differencing);
    if (v->entries * 8 > v->regions.bat.length)
        return error_set(err, EINVAL,
                         "%s: a disk of %" PRIu64 " bytes needs %" PRIu64
                         " BAT entries, but its region has %" PRIu64 " bytes",
                         blk_filename(v->file), v->meta.size, v->entries, v->regions.bat.length);
    return v->differencing ? read_locator(v, err) : 0;
}
