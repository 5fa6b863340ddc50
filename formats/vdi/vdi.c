/* The driver record; opening, closing and checking an image. */
#include "vdi.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/iszero.h"
#include "base/macros.h"
#include "base/round.h"

/* ---- the header ----------------------------------------------------------------------------------- */

int vdi_write_header(struct vdi *v)
{
    return blk_write(v->bat.file, 0, v->header, VDI_HEADER, 0);
}

void vdi_claim(struct vdi *v, uint64_t end)
{
    v->bat.claimed = end;
    store_le32(v->header + AT_ALLOCATED, (uint32_t)((end - v->bat.base) / v->bat.stride));
}

void vdi_set_geometry(struct vdi *v)
{
    const uint8_t *h = v->header;
    struct bat *b = &v->bat;

    b->block_size = load_le32(h + AT_BLOCK_SIZE);
    b->prefix = load_le32(h + AT_BLOCK_EXTRA);
    b->stride = (uint64_t)b->block_size + b->prefix;
    b->factor = (uint32_t)b->stride;
    b->table_offset = load_le32(h + AT_MAP_OFFSET);
    b->base = b->data_start = load_le32(h + AT_DATA_OFFSET);
    b->all_entries = load_le32(h + AT_BLOCKS);
    b->file_end = MAX(blk_size(b->file), b->base);
    b->claimed = b->base + load_le32(h + AT_ALLOCATED) * b->stride;
    v->type = (enum vdi_type)load_le32(h + AT_TYPE);
    v->size = round_up(load_le64(h + AT_DISK_SIZE), 512);
    b->entries = (uint32_t)div_round_up(v->size, b->block_size);
    b->keeps = v->type == VDI_STATIC;
}

static int refuse(struct vdi *v, int number, struct error **err, const char *what, uint64_t value)
{
    return error_set(err, number, "%s: the VDI header's %s is %" PRIu64 " (%#" PRIx64 ")",
                     blk_filename(v->bat.file), what, value, value);
}

static int check_sizes(struct vdi *v, struct error **err)
{
    const uint8_t *h = v->header;
    uint32_t block = load_le32(h + AT_BLOCK_SIZE), extra = load_le32(h + AT_BLOCK_EXTRA);
    uint32_t blocks = load_le32(h + AT_BLOCKS);
    uint64_t size = load_le64(h + AT_DISK_SIZE);

    if (!is_pow2(block) || block < VDI_MIN_BLOCK || block > VDI_MAX_BLOCK)
        return refuse(v, EINVAL, err, "block size, a power of two from 512 to 1 GiB,", block);
    if (extra % 512 || extra > VDI_MAX_BLOCK)
        return refuse(v, EINVAL, err, "room before each block, in whole sectors up to 1 GiB,",
                      extra);
    if (blocks > BAT_MAX_ENTRIES)
        return refuse(v, EFBIG, err, "number of blocks, at most 268435456,", blocks);
    if (size > (uint64_t)blocks * block)
        return error_set(err, EINVAL,
                         "%s: the VDI header's disk size %" PRIu64 " is more than its %" PRIu32
                         " blocks of %" PRIu32 " bytes hold",
                         blk_filename(v->bat.file), size, blocks, block);
    return 0;
}

static int check_places(struct vdi *v, struct error **err)
{
    const uint8_t *h = v->header;
    uint64_t map = load_le32(h + AT_MAP_OFFSET), data = load_le32(h + AT_DATA_OFFSET);
    uint64_t bytes = vdi_map_bytes(load_le32(h + AT_BLOCKS));

    if (map % 512 || map < VDI_HEADER)
        return refuse(v, EINVAL, err, "block map offset, whole sectors behind the header,", map);
    if (data % 512 || data < map + bytes)
        return refuse(v, EINVAL, err, "data offset, whole sectors behind the block map,", data);
    if (map + load_le32(h + AT_BLOCKS) * UINT64_C(4) > blk_size(v->bat.file))
        return error_set(err, EINVAL,
                         "%s: the block map of %" PRIu64 " bytes at %" PRIu64
                         " does not fit into the file: was it truncated?",
                         blk_filename(v->bat.file), bytes, map);
    return 0;
}

static int read_header(struct vdi *v, struct error **err)
{
    const uint8_t *h = v->header;
    struct blk_node *file = v->bat.file;
    int ret = blk_size(file) < VDI_HEADER ? 0 : blk_read(file, 0, v->header, VDI_HEADER, 0);

    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the header: %s", blk_filename(file),
                         strerror(-ret));
    if (load_le32(h + AT_SIGNATURE) != VDI_SIGNATURE)
        return error_set(err, EINVAL, "%s: this is no VDI image: the signature is missing",
                         blk_filename(file));
    if (load_le32(h + AT_VERSION) != VDI_VERSION)
        return error_set(err, ENOTSUP, "%s: the VDI version is %u.%u, only 1.1 is supported",
                         blk_filename(file), load_le32(h + AT_VERSION) >> 16,
                         load_le32(h + AT_VERSION) & 0xffff);
    uint32_t type = load_le32(h + AT_TYPE);
    if (type != VDI_DYNAMIC && type != VDI_STATIC && type != VDI_DIFFERENCING)
        return refuse(v, ENOTSUP, err, "image type, 1, 2 or 4,", type);
    uint32_t sector = load_le32(h + AT_SECTOR_SIZE);
    if (sector != 512)
        return refuse(v, ENOTSUP, err, "sector size, 512,", sector);
    ret = check_sizes(v, err);
    return ret < 0 ? ret : check_places(v, err);
}

/* ---- the parent ---------------------------------------------------------------------------------------- */

static bool has_parent(const struct vdi *v)
{
    return !is_zero(v->header + AT_PARENT_UUID, VDI_UUID);
}

static bool is_parent(const void *what, const uint8_t *head)
{
    const struct vdi *v = what;

    return load_le32(head + AT_SIGNATURE) == VDI_SIGNATURE &&
           !memcmp(head + AT_UUID, v->header + AT_PARENT_UUID, VDI_UUID);
}

/* As VirtualBox writes it, and calls its files. */
static void uuid_text(const uint8_t *u, char text[48])
{
    snprintf(text, 48, "{%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x}.vdi", load_le32(u),
             load_le16(u + 4), load_le16(u + 6), u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
}

static int find_parent(struct vdi *v, struct error **err)
{
    char by_uuid[48], *name;

    if (!has_parent(v)) {
        if (v->type != VDI_DIFFERENCING)
            return 0;
        return error_set(err, EINVAL, "%s: a differencing image that names no parent",
                         blk_filename(v->bat.file));
    }
    uuid_text(v->header + AT_PARENT_UUID, by_uuid);
    int ret = node_find_beside(v->bat.node, VDI_HEADER, is_parent, v, &name);
    if (ret == 0)
        ret = node_set_backing(v->bat.node, name ? name : by_uuid, "vdi");
    free(name);
    return ret < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

static int vdi_backing_opened(struct blk_node *n, struct error **err)
{
    const struct vdi *v = node_state(n);
    const struct vdi *parent = node_state_as(node_child(n, EDGE_BACKING), &vdi_driver);
    const char *name = blk_filename(n);

    if (!parent || !is_parent(v, parent->header))
        return error_set(err, EINVAL, "%s: its parent has another UUID", name);
    const uint8_t *want = v->header + AT_PARENT_MODIFIED;
    if (is_zero(want, VDI_UUID) || !memcmp(want, parent->header + AT_MODIFIED_UUID, VDI_UUID))
        return 0;
    return error_set(err, EINVAL,
                     "%s: its parent '%s' was modified since (the modification UUIDs differ); what "
                     "it reads as cannot be told",
                     name, blk_filename(node_child(n, EDGE_BACKING)));
}

/* One sector says all of it. */
static int vdi_change_backing(struct blk_node *n, const char *filename, const char *format,
                              struct error **err)
{
    struct vdi *v = node_state(n);
    const struct vdi *parent = filename ? node_state_as(node_create_backing(n), &vdi_driver) : NULL;
    uint8_t old[VDI_HEADER];
    int ret = vdi_check_backing(filename, format, v->type == VDI_STATIC, err);

    if (ret < 0)
        return ret;
    if (filename && !parent)
        return error_set(err, EINVAL, "%s: its new parent '%s' is not VDI", blk_filename(n),
                         filename);
    memcpy(old, v->header, VDI_HEADER);
    memset(v->header + AT_PARENT_UUID, 0, VDI_UUID);
    memset(v->header + AT_PARENT_MODIFIED, 0, VDI_UUID);
    if (parent) {
        memcpy(v->header + AT_PARENT_UUID, parent->header + AT_UUID, VDI_UUID);
        memcpy(v->header + AT_PARENT_MODIFIED, parent->header + AT_MODIFIED_UUID, VDI_UUID);
    }
    if (v->type != VDI_STATIC)
        store_le32(v->header + AT_TYPE, parent ? VDI_DIFFERENCING : VDI_DYNAMIC);
    ret = bat_flush(n);
    if (ret == 0)
        ret = vdi_write_header(v);
    if (ret == 0)
        ret = blk_flush(v->bat.file);
    if (ret == 0) {
        v->type = (enum vdi_type)load_le32(v->header + AT_TYPE);
        return 0;
    }
    memcpy(v->header, old, VDI_HEADER);
    return error_set(err, -ret, "%s: could not write the header: %s", blk_filename(n),
                     strerror(-ret));
}

/* ---- the blocks ------------------------------------------------------------------------------------------ */

static int vdi_reserve(struct bat *b, uint64_t to)
{
    struct vdi *v = (struct vdi *)b;
    static const uint8_t zeroes[512];
    uint64_t was = b->claimed;

    vdi_claim(v, to);
    /* Written rather than resized: then a flush is all that the new length needs. */
    int ret = b->grows && to > blk_size(b->file)
                  ? blk_write(b->file, to - sizeof(zeroes), zeroes, sizeof(zeroes), 0)
                  : 0;
    if (ret == 0)
        ret = vdi_write_header(v);
    if (ret < 0)
        vdi_claim(v, was);
    return ret;
}

static int vdi_trim(struct bat *b)
{
    struct vdi *v = (struct vdi *)b;

    vdi_claim(v, b->end);
    int ret = vdi_write_header(v);
    if (ret == 0)
        ret = blk_flush(b->file);
    if (ret == 0 && b->grows && blk_size(b->file) != b->end)
        ret = blk_resize(b->file, b->end, BLK_PREALLOC_OFF, NULL);
    b->reserved = b->end;
    return ret;
}

static const struct bat_format vdi_format = { .reserve = vdi_reserve, .trim = vdi_trim };

/* ---- open -------------------------------------------------------------------------------------------------- */

static int open_blocks(struct vdi *v, struct error **err)
{
    struct bat *b = &v->bat;
    int ret = bat_open(b, err);

    if (ret < 0 || b->end <= b->claimed)
        return ret;
    /* Others would put their next block over one that is in use. */
    ret = vdi_reserve(b, b->end);
    b->reserved = b->end;
    return ret < 0 ? error_set(err, -ret, "%s: could not write the header: %s",
                               blk_filename(b->file), strerror(-ret))
                   : 0;
}

static int vdi_open(struct blk_node *n, const void *options, struct error **err)
{
    struct vdi *v = node_state(n);
    struct bat *b = &v->bat;

    (void)options;
    b->node = n;
    b->file = node_child(n, EDGE_FILE);
    b->format = &vdi_format;
    b->free_mark = VDI_FREE;
    b->zero_mark = b->mark_from = VDI_ZERO;
    bat_init_locks(b);
    int ret = read_header(v, err);
    if (ret == 0) {
        vdi_set_geometry(v);
        ret = find_parent(v, err);
    }
    if (ret == 0) {
        node_set_size(n, v->size);
        node_limits(n)->unit = b->block_size;
        ret = open_blocks(v, err);
    }
    if (ret < 0)
        bat_free(b);
    return ret;
}

static int vdi_close(struct blk_node *n, struct error **err)
{
    return bat_close(node_state(n), err);
}

static int vdi_make_empty(struct blk_node *n, struct error **err)
{
    struct bat *b = node_state(n);
    int ret = bat_unmap(b, 0, blk_size(n), true);

    if (ret == 0)
        ret = bat_settle(b);
    return ret < 0
               ? error_set(err, -ret, "%s: could not empty it: %s", blk_filename(n), strerror(-ret))
               : 0;
}

/* ---- check and info ------------------------------------------------------------------------------------------ */

/* The header's number of blocks beside what the map says. bat_check has brought the file in order, if it was asked. */
static int check_count(struct vdi *v, struct bat_report *r, uint64_t said, uint64_t needed,
                       struct error **err)
{
    struct bat *b = &v->bat;
    bool low = said < needed;

    if (said == needed)
        return 0;
    bat_say(r, "%s: the header says that the file has %" PRIu64 " blocks, it has %" PRIu64,
            low ? "ERROR" : "Leaked", said, needed);
    if (!bat_found(r, !low, low ? 1 : said - needed))
        return 0;
    vdi_claim(v, b->base + needed * b->stride);
    int ret = vdi_write_header(v);
    if (ret == 0)
        ret = blk_flush(b->file);
    return ret < 0 ? error_set(err, -ret, "%s: could not write the header: %s",
                               blk_filename(b->node), strerror(-ret))
                   : 0;
}

static int vdi_check(struct blk_node *n, unsigned fix, struct blk_check *out,
                     const struct blk_check_hooks *hooks, struct error **err)
{
    struct vdi *v = node_state(n);
    struct bat *b = &v->bat;
    struct bat_report r = { .fix = fix, .out = out, .hooks = hooks };
    uint64_t said = load_le32(v->header + AT_ALLOCATED);
    int ret = bat_check(b, &r, err);

    if (ret < 0 || out->corruptions)
        return ret;
    uint64_t needed = (out->image_end_offset - b->base) / b->stride;
    if (said > needed && (out->leaks || out->leaks_fixed))
        return 0; /* of the same blocks */
    return check_count(v, &r, said, needed, err);
}

static int vdi_info(struct blk_node *n, struct blk_info *out, struct error **err)
{
    struct vdi *v = node_state(n);

    (void)err;
    out->cluster_size = v->bat.block_size;
    out->corrupt = atomic_load(&v->bat.corrupt);
    return 0;
}

static int vdi_probe(const uint8_t *buf, size_t len, const char *filename)
{
    (void)filename;
    return len >= AT_SIGNATURE + 4 && load_le32(buf + AT_SIGNATURE) == VDI_SIGNATURE ? 100 : 0;
}

const struct driver vdi_driver = {
    .name = "vdi",
    .kind = BLK_FORMAT,
    .flags = DRIVER_PARALLEL | DRIVER_BACKING | DRIVER_UNMAP_ZERO | DRIVER_NEW_ZERO |
             DRIVER_KNOWS_BACKING,
    .state_size = sizeof(struct vdi),
    .create_options = vdi_create_table,
    .create_options_size = sizeof(struct vdi_create),
    .probe = vdi_probe,
    .open = vdi_open,
    .backing_opened = vdi_backing_opened,
    .close = vdi_close,
    .check_create = vdi_check_create,
    .create = vdi_create,
    .flush = bat_flush,
    .map_read = bat_map_read,
    .write_begin = bat_write_begin,
    .write_end = bat_write_end,
    .zero_range = bat_zero_range,
    .discard_range = bat_discard_range,
    .resize = vdi_resize,
    .change_backing = vdi_change_backing,
    .make_empty = vdi_make_empty,
    .check = vdi_check,
    .info = vdi_info,
    .measure = vdi_measure,
};
