/* Making an image: all but the header first, and durable; then the header. */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vdi.h"

enum {
    PIECE = 1 << 20,
    /* Data begin on a whole MiB, as in VirtualBox's own images: fast, and the block map has room to grow. */
    DATA_ALIGN = 1 << 20,
    MIN_CREATE_BLOCK = 4096,
};

static const struct opt_choice preallocation_choices[] = {
    { "off", BLK_PREALLOC_OFF },
    { "metadata", BLK_PREALLOC_METADATA },
    { "falloc", BLK_PREALLOC_FALLOC },
    { "full", BLK_PREALLOC_FULL },
    { NULL, 0 },
};

#define AT(member) offsetof(struct vdi_create, member)

const struct opt_def vdi_create_table[] = {
    { .name = "size", .type = OPT_SIZE, .at = AT(size), .help = "size of the disk" },
    { .name = "static",
      .type = OPT_BOOL,
      .at = AT(is_static),
      .def = "off",
      .help = "every block has its place from the beginning" },
    { .name = "preallocation",
      .type = OPT_ENUM,
      .at = AT(preallocation),
      .choices = preallocation_choices,
      .help = "off; metadata (as static=on), falloc (and space), full (and zeroes)" },
    { .name = "block_size",
      .type = OPT_SIZE,
      .at = AT(block_size),
      .help = "size of blocks, 4k to 1G (1M)" },
    { .name = "backing_file",
      .type = OPT_STRING,
      .at = AT(backing_file),
      .help = "VDI in the same folder that holds what this one does not" },
    { .name = "backing_fmt",
      .type = OPT_STRING,
      .at = AT(backing_fmt),
      .help = "format of the backing file: vdi" },
    OPT_END,
};

struct layout {
    uint64_t size, blocks, block_size, map_bytes, data, end;
    bool is_static;
};

/* A parent is found by its UUID in the image's folder, so there it must be. */
int vdi_check_backing(const char *name, const char *format, bool is_static, struct error **err)
{
    const char *stated = name;

    if (!name || !name[0])
        return 0;
    if (!strncmp(name, "./", 2))
        name += 2;
    if (strchr(name, '/'))
        return error_set(err, EINVAL,
                         "backing_file '%s' is not in the image's own folder: VDI images find "
                         "their parent there, by its UUID",
                         stated);
    if (format && strcmp(format, "vdi") != 0)
        return error_set(err, EINVAL, "the parent of a VDI image must be vdi, not %s", format);
    if (is_static)
        return error_set(err, EINVAL, "an image with a backing file cannot be static");
    return 0;
}

static int plan(const struct vdi_create *o, struct layout *l, struct error **err)
{
    *l = (struct layout){ .block_size = o->block_size ? o->block_size : VDI_BLOCK };
    l->is_static = o->is_static || o->preallocation != BLK_PREALLOC_OFF;
    if (!is_pow2(l->block_size) || l->block_size < MIN_CREATE_BLOCK ||
        l->block_size > VDI_MAX_BLOCK)
        return error_set(err, EINVAL,
                         "block_size %" PRIu64 " is not a power of two from 4096 to 1 GiB",
                         l->block_size);
    if (o->size > INT64_MAX - 511)
        return error_set(err, EFBIG, "the size is above the limit of 8 EiB");
    l->size = round_up(o->size, 512);
    l->blocks = div_round_up(l->size, l->block_size);
    if (l->blocks > BAT_MAX_ENTRIES)
        return error_set(err, EFBIG,
                         "a disk of %" PRIu64 " bytes has more than %u blocks of %" PRIu64
                         " bytes: use a larger block_size",
                         l->size, BAT_MAX_ENTRIES, l->block_size);
    l->map_bytes = vdi_map_bytes(l->blocks);
    l->data = align_up(VDI_HEADER + l->map_bytes, DATA_ALIGN);
    l->end = l->data + (l->is_static ? l->blocks * l->block_size : 0);
    return vdi_check_backing(o->backing_file, o->backing_fmt, l->is_static, err);
}

int vdi_check_create(const void *options, struct error **err)
{
    struct layout l;
    return plan(options, &l, err);
}

static int make_uuid(uint8_t *u)
{
    if (getrandom(u, VDI_UUID, 0) != VDI_UUID)
        return -EIO;
    u[7] = (u[7] & 0x0f) | 0x40; /* version 4: the word is little-endian */
    u[8] = (u[8] & 0x3f) | 0x80;
    return 0;
}

static int fill_header(uint8_t *h, const struct layout *l, const struct vdi *parent)
{
    memset(h, 0, VDI_HEADER);
    memcpy(h, "<<< Platter VirtualBox Disk Image >>>\n", 38);
    store_le32(h + AT_SIGNATURE, VDI_SIGNATURE);
    store_le32(h + AT_VERSION, VDI_VERSION);
    store_le32(h + AT_HEADER_SIZE, VDI_HEADER_SIZE);
    store_le32(h + AT_TYPE, l->is_static ? VDI_STATIC : parent ? VDI_DIFFERENCING : VDI_DYNAMIC);
    store_le32(h + AT_MAP_OFFSET, VDI_HEADER);
    store_le32(h + AT_DATA_OFFSET, (uint32_t)l->data);
    store_le32(h + AT_SECTOR_SIZE, 512);
    store_le64(h + AT_DISK_SIZE, l->size);
    store_le32(h + AT_BLOCK_SIZE, (uint32_t)l->block_size);
    store_le32(h + AT_BLOCKS, (uint32_t)l->blocks);
    store_le32(h + AT_ALLOCATED, l->is_static ? (uint32_t)l->blocks : 0);
    if (parent) {
        memcpy(h + AT_PARENT_UUID, parent->header + AT_UUID, VDI_UUID);
        memcpy(h + AT_PARENT_MODIFIED, parent->header + AT_MODIFIED_UUID, VDI_UUID);
    }
    int ret = make_uuid(h + AT_UUID);
    return ret < 0 ? ret : make_uuid(h + AT_MODIFIED_UUID);
}

static int write_map(struct blk_node *file, const struct layout *l)
{
    _cleanup_free_ uint8_t *piece = malloc(PIECE);
    int ret = 0;

    if (!piece)
        return -ENOMEM;
    for (uint64_t at = 0; at < l->map_bytes && ret == 0; at += PIECE) {
        size_t len = (size_t)MIN(l->map_bytes - at, (uint64_t)PIECE);
        for (size_t i = 0; i < len / 4; i++) {
            uint64_t block = at / 4 + i;
            store_le32(piece + 4 * i,
                       l->is_static && block < l->blocks ? (uint32_t)block : VDI_FREE);
        }
        ret = blk_write(file, VDI_HEADER + at, piece, len, 0);
    }
    return ret;
}

static int make_room(struct blk_node *file, const struct layout *l, enum blk_prealloc how,
                     struct error **err)
{
    uint64_t size = blk_size(file);
    int ret = 0;

    if (how == BLK_PREALLOC_METADATA)
        how = BLK_PREALLOC_OFF;
    if (size > 0) {
        ret = blk_zero(file, 0, MIN(size, (uint64_t)VDI_HEADER), 0);
        if (ret == 0)
            ret = blk_flush(file);
        if (ret == 0)
            ret = blk_zero(file, 0, MIN(size, l->end), how == BLK_PREALLOC_OFF ? BLK_MAY_UNMAP : 0);
        if (ret < 0)
            return error_set(err, -ret, "could not clear what was there before: %s",
                             strerror(-ret));
    }
    return size < l->end ? blk_resize(file, l->end, how, err) : 0;
}

int vdi_create(struct blk_node *file, const void *options, struct error **err)
{
    const struct vdi_create *o = options;
    struct blk_node *below = node_create_backing(file);
    const struct vdi *parent = below ? node_state_as(below, &vdi_driver) : NULL;
    uint8_t header[VDI_HEADER];
    struct layout l;
    int ret = plan(o, &l, err);

    if (ret < 0)
        return ret;
    if (below && !parent)
        return error_set(err, EINVAL, "the backing file is not VDI");
    ret = make_room(file, &l, (enum blk_prealloc)o->preallocation, err);
    if (ret < 0)
        return ret;
    ret = write_map(file, &l);
    if (ret == 0)
        ret = fill_header(header, &l, parent);
    if (ret == 0)
        ret = blk_flush(file);
    if (ret == 0)
        ret = blk_write(file, 0, header, sizeof(header), 0);
    return ret < 0 ? error_set(err, -ret, "could not write: %s", strerror(-ret)) : 0;
}

/* ---- measure ------------------------------------------------------------------------------------------ */

int vdi_measure(const void *options, uint64_t size, struct blk_node *src, struct blk_measure *out,
                struct error **err)
{
    struct vdi_create o = *(const struct vdi_create *)options;
    struct layout l;
    uint64_t count = 0;

    o.size = size;
    int ret = plan(&o, &l, err);
    if (ret < 0)
        return ret;
    if (src)
        ret = bat_measure(src, size, l.block_size, &count);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not tell what holds data: %s", blk_filename(src),
                         strerror(-ret));
    out->fully_allocated = l.data + l.blocks * l.block_size;
    out->required = l.is_static ? out->fully_allocated : l.data + count * l.block_size;
    return 0;
}
