/* Making an image: header section, log, BAT, metadata, and in a fixed one all its blocks.
 *
 * Everything but the file's signature is written first and made durable: at no moment does the file look like an image
 * that is not whole.
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vhdx.h"

enum { PIECE = 1 << 20 };
enum vhdx_subformat { SUBFORMAT_DYNAMIC, SUBFORMAT_FIXED };

/* ---- options ------------------------------------------------------------------------------------------ */

static const struct opt_choice subformat_choices[] = {
    { "dynamic", SUBFORMAT_DYNAMIC },
    { "fixed", SUBFORMAT_FIXED },
    { NULL, 0 },
};

static const struct opt_choice preallocation_choices[] = {
    { "off", BLK_PREALLOC_OFF },
    { "falloc", BLK_PREALLOC_FALLOC },
    { "full", BLK_PREALLOC_FULL },
    { NULL, 0 },
};

#define AT(member) offsetof(struct vhdx_create_options, member)

/* In the order in which qemu-img sums them up. */
const struct opt_def vhdx_create_table[] = {
    { .name = "size", .type = OPT_SIZE, .at = AT(size), .help = "size of the disk, at most 64T" },
    { .name = "log_size",
      .type = OPT_SIZE,
      .at = AT(log_size),
      .def = "1048576",
      .help = "size of the log, at least 1M" },
    { .name = "block_size",
      .type = OPT_SIZE,
      .at = AT(block_size),
      .def = "0",
      .help = "size of blocks, 1M to 256M; 0: what suits the disk" },
    { .name = "subformat",
      .type = OPT_ENUM,
      .at = AT(subformat),
      .given = AT(subformat_given),
      .choices = subformat_choices,
      .help = "dynamic (blocks come as they are written) or fixed" },
    { .name = "block_state_zero",
      .type = OPT_BOOL,
      .at = AT(state_zero),
      .given = AT(state_zero_given),
      .help = "blocks that were never written are said to read as zeroes (default: on)" },
    { .name = "backing_file",
      .type = OPT_STRING,
      .at = AT(backing_file),
      .help = "VHDX image that holds what this one does not" },
    { .name = "backing_fmt",
      .type = OPT_STRING,
      .at = AT(backing_fmt),
      .help = "format of the backing file: vhdx" },
    { .name = "logical_sector_size",
      .type = OPT_SIZE,
      .at = AT(logical),
      .help = "512 or 4096 (default: the backing file's, else 512)" },
    { .name = "preallocation",
      .type = OPT_ENUM,
      .at = AT(preallocation),
      .choices = preallocation_choices,
      .help = "space to set aside for a fixed image: off, falloc (reserved), full (written)" },
    OPT_END,
};

/* ---- the plan -------------------------------------------------------------------------------------------- */

struct layout {
    uint64_t size;
    uint32_t block_size, block_bits, chunk_bits, logical;
    uint64_t blocks, entries;
    struct vhdx_place log, bat, metadata;
    uint64_t payload, end; /* where blocks begin, and the file ends */
    bool fixed, differencing, state_zero;
};

static uint64_t usual_block_size(uint64_t size)
{
    if (size > UINT64_C(32) << 40)
        return 64 << 20;
    if (size > UINT64_C(100) << 30)
        return 32 << 20;
    return size > UINT64_C(1) << 30 ? 16 << 20 : 8 << 20;
}

static int check_sizes(const struct vhdx_create_options *o, struct error **err)
{
    if (o->size > VHDX_MAX_SIZE)
        return error_set(err, EINVAL, "the disk's size is %" PRIu64 " bytes: the limit is 64 TiB",
                         o->size);
    if (o->log_size > UINT32_MAX - VHDX_MIB)
        return error_set(err, EINVAL, "log_size is %" PRIu64 ": the limit is 4 GiB - 1 MiB",
                         o->log_size);
    if (o->block_size > VHDX_MIB && !is_pow2(MIN(o->block_size, UINT64_C(1) << 62)) &&
        !is_pow2(align_up(MIN(o->block_size, UINT64_C(1) << 62), VHDX_MIB)))
        return error_set(err, EINVAL, "block_size is %" PRIu64 ": it must be a power of two",
                         o->block_size);
    if (o->logical && o->logical != 512 && o->logical != 4096)
        return error_set(err, EINVAL, "logical_sector_size is %" PRIu64 ": it must be 512 or 4096",
                         o->logical);
    return 0;
}

static int check_kind(const struct vhdx_create_options *o, struct error **err)
{
    bool backing = o->backing_file && o->backing_file[0];

    if (backing && o->subformat == SUBFORMAT_FIXED)
        return error_set(err, EINVAL, "a fixed image cannot have a backing file");
    if (backing && o->backing_fmt && strcmp(o->backing_fmt, "vhdx") != 0)
        return error_set(err, EINVAL, "the backing file of a VHDX image must be vhdx, not %s",
                         o->backing_fmt);
    return 0;
}

static int plan(const struct vhdx_create_options *o, const struct vhdx *parent, struct layout *l,
                struct error **err)
{
    int ret = check_sizes(o, err);

    if (ret == 0)
        ret = check_kind(o, err);
    if (ret < 0)
        return ret;
    uint64_t block = o->block_size ? align_up(MIN(o->block_size, 256 * VHDX_MIB), VHDX_MIB)
                                   : usual_block_size(o->size);
    l->logical = o->logical ? (uint32_t)o->logical : parent ? parent->meta.logical : 512;
    l->size = align_up(o->size, l->logical);
    l->block_size = (uint32_t)block;
    l->block_bits = log2_floor(block);
    l->chunk_bits = 23 + log2_floor(l->logical) - l->block_bits;
    l->fixed = o->subformat == SUBFORMAT_FIXED;
    l->differencing = o->backing_file && o->backing_file[0];
    l->state_zero = o->state_zero_given ? o->state_zero : true;
    l->blocks = div_round_up(l->size, block);
    l->entries = vhdx_entries_for(l->size, l->block_bits, l->chunk_bits, l->differencing);
    l->log = (struct vhdx_place){ VHDX_MIB, align_up(MAX(o->log_size, VHDX_MIB), VHDX_MIB) };
    l->bat = (struct vhdx_place){ l->log.offset + l->log.length,
                                  align_up(MAX(l->entries * 8, UINT64_C(1)), VHDX_MIB) };
    l->metadata = (struct vhdx_place){ l->bat.offset + l->bat.length, VHDX_MIB };
    l->payload = l->end = l->metadata.offset + l->metadata.length;
    if (l->fixed)
        l->end += l->blocks * block;
    return 0;
}

/* ---- metadata --------------------------------------------------------------------------------------------- */

/* The region: a table of items, which lie behind it one after another. */
struct metadata {
    uint8_t *bytes;
    unsigned count;
    uint32_t at; /* of the next item */
};

static uint8_t *add_item(struct metadata *m, const struct vhdx_guid *guid, uint32_t flags,
                         uint32_t len)
{
    uint8_t *e = m->bytes + 32 + (size_t)m->count * 32, *item = m->bytes + m->at;

    memcpy(e, guid->b, 16);
    store_le32(e + 16, m->at);
    store_le32(e + 20, len);
    store_le32(e + 24, flags);
    m->count++;
    m->at += len;
    return item;
}

static int add_locator(struct metadata *m, const struct vhdx_create_options *o,
                       const struct vhdx *parent, struct error **err)
{
    size_t len;
    _cleanup_free_ uint8_t *item =
        vhdx_locator_build(o->backing_file, &parent->headers.current.data_write, &len, err);

    if (!item)
        return -EINVAL;
    memcpy(add_item(m, &vhdx_item_parent, META_FLAG_REQUIRED, (uint32_t)len), item, len);
    return 0;
}

static int build_metadata(uint8_t *bytes, const struct vhdx_create_options *o,
                          const struct layout *l, const struct vhdx *parent, struct error **err)
{
    struct metadata m = { .bytes = bytes, .at = META_TABLE };
    uint32_t disk = META_FLAG_DISK | META_FLAG_REQUIRED;
    struct vhdx_guid id;

    if (parent)
        id = parent->meta.id;
    else if (vhdx_guid_new(&id) < 0)
        return error_set(err, EIO, "no random numbers for a GUID");
    uint8_t *p = add_item(&m, &vhdx_item_parameters, META_FLAG_REQUIRED, 8);
    store_le32(p, l->block_size);
    store_le32(p + 4,
               (l->fixed ? PARAM_LEAVE_ALLOCATED : 0) | (l->differencing ? PARAM_HAS_PARENT : 0));
    store_le64(add_item(&m, &vhdx_item_size, disk, 8), l->size);
    memcpy(add_item(&m, &vhdx_item_id, disk, 16), id.b, 16);
    store_le32(add_item(&m, &vhdx_item_logical, disk, 4), l->logical);
    store_le32(add_item(&m, &vhdx_item_physical, disk, 4), l->logical);
    int ret = parent ? add_locator(&m, o, parent, err) : 0;
    memcpy(bytes, SIG_METADATA, 8);
    store_le16(bytes + 10, (uint16_t)m.count);
    return ret;
}

/* ---- writing ------------------------------------------------------------------------------------------------ */

static int write_bat(struct blk_node *file, const struct layout *l)
{
    uint64_t state = l->differencing || !l->state_zero ? BLOCK_NOT_PRESENT : BLOCK_ZERO;
    uint64_t per_chunk = (UINT64_C(1) << l->chunk_bits) + 1;
    int ret = 0;

    if (!l->fixed && state == BLOCK_NOT_PRESENT)
        return 0; /* zeroes, as they are there */
    _cleanup_free_ uint8_t *piece = malloc(PIECE);
    if (!piece)
        return -ENOMEM;
    for (uint64_t i = 0; i < l->entries && ret == 0;) {
        size_t n = (size_t)MIN(l->entries - i, (uint64_t)PIECE / 8);
        for (size_t k = 0; k < n; k++) {
            uint64_t index = i + k, block = index - index / per_chunk;
            bool bitmap = index % per_chunk == per_chunk - 1;
            uint64_t entry =
                l->fixed ? (l->payload + block * l->block_size) | BLOCK_PRESENT : state;
            store_le64(piece + 8 * k, bitmap ? 0 : entry);
        }
        ret = blk_write(file, l->bat.offset + i * 8, piece, n * 8, 0);
        i += n;
    }
    return ret;
}

static int write_regions(struct blk_node *file, const struct layout *l)
{
    struct vhdx_region both[2] = {
        { .guid = vhdx_region_bat, .place = l->bat, .required = true },
        { .guid = vhdx_region_metadata, .place = l->metadata, .required = true },
    };
    struct vhdx_regions r = { .all = { both, 2, 2 } };
    _cleanup_free_ uint8_t *table = malloc(VHDX_REGION_TABLE);

    if (!table)
        return -ENOMEM;
    vhdx_regions_build(&r, table);
    int ret = blk_write(file, VHDX_REGION_SLOT, table, VHDX_REGION_TABLE, 0);
    if (ret == 0)
        ret = blk_write(file, VHDX_REGION_SLOT + VHDX_SLOT, table, VHDX_REGION_TABLE, 0);
    return ret;
}

static int write_headers(struct blk_node *file, const struct layout *l)
{
    uint8_t page[VHDX_PAGE];
    struct vhdx_header h = { .log_offset = l->log.offset, .log_length = (uint32_t)l->log.length };
    int ret = vhdx_guid_new(&h.file_write);

    if (ret == 0)
        ret = vhdx_guid_new(&h.data_write);
    for (unsigned i = 0; i < 2 && ret == 0; i++) {
        h.sequence = i + 1;
        vhdx_header_build(&h, page);
        ret = blk_write(file, VHDX_HEADER_SLOT + (uint64_t)i * VHDX_SLOT, page, VHDX_PAGE, 0);
    }
    return ret;
}

/* The last thing: from here on it is an image. */
static int write_signature(struct blk_node *file)
{
    static const char creator[] = "Platter";
    uint8_t b[8 + VHDX_CREATOR] = { 0 };

    memcpy(b, SIG_FILE, 8);
    for (size_t i = 0; creator[i]; i++)
        store_le16(b + 8 + 2 * i, (uint16_t)creator[i]);
    int ret = blk_flush(file);
    if (ret == 0)
        ret = blk_write(file, 0, b, sizeof(b), 0);
    return ret == 0 ? blk_flush(file) : ret;
}

/* Space that reads as zeroes for all that the layout has. */
static int make_room(struct blk_node *file, const struct layout *l, enum blk_prealloc prealloc,
                     struct error **err)
{
    uint64_t size = blk_size(file);

    if (size > 0) {
        int ret = blk_zero(file, 0, MIN(size, VHDX_MIB), 0);
        if (ret == 0)
            ret = blk_flush(file);
        if (ret == 0)
            ret = blk_zero(file, 0, MIN(size, l->end),
                           prealloc == BLK_PREALLOC_OFF ? BLK_MAY_UNMAP : 0);
        if (ret < 0)
            return error_set(err, -ret, "could not clear what was there before: %s",
                             strerror(-ret));
    }
    return size < l->end ? blk_resize(file, l->end, prealloc, err) : 0;
}

int vhdx_check_create(const void *options, struct error **err)
{
    struct layout l = { 0 };

    return plan(options, NULL, &l, err);
}

int vhdx_create(struct blk_node *file, const void *options, struct error **err)
{
    const struct vhdx_create_options *o = options;
    struct blk_node *backing = node_create_backing(file);
    const struct vhdx *parent = node_state_as(backing, &vhdx_driver);
    struct layout l = { 0 };

    int ret = plan(o, parent, &l, err);
    if (ret < 0)
        return ret;
    if (l.differencing && !parent)
        return error_set(err, EINVAL, "the backing file '%s' is not a VHDX image", o->backing_file);
    if (parent && parent->meta.logical != l.logical)
        return error_set(err, EINVAL,
                         "logical_sector_size is %" PRIu32 ", but the backing file's is %" PRIu32,
                         l.logical, parent->meta.logical);
    _cleanup_free_ uint8_t *metadata = calloc(1, VHDX_MIB);
    if (!metadata)
        return error_set(err, ENOMEM, "out of memory");
    ret = build_metadata(metadata, o, &l, parent, err);
    if (ret == 0)
        ret = make_room(file, &l, (enum blk_prealloc)o->preallocation, err);
    if (ret < 0)
        return ret;
    ret = blk_write(file, l.metadata.offset, metadata, META_TABLE + (64 << 10) * 2, 0);
    if (ret == 0)
        ret = write_bat(file, &l);
    if (ret == 0)
        ret = write_regions(file, &l);
    if (ret == 0)
        ret = write_headers(file, &l);
    if (ret == 0)
        ret = write_signature(file);
    return ret < 0 ? error_set(err, -ret, "could not write the new image: %s", strerror(-ret)) : 0;
}

/* ---- measure ------------------------------------------------------------------------------------------------- */

/* Blocks of which something must be stored. */
static int count_blocks(struct blk_node *src, const struct layout *l, uint64_t *count)
{
    uint64_t next = 0; /* no block before this one counts any more */

    *count = 0;
    for (uint64_t off = 0; off < l->size && off < blk_size(src);) {
        struct blk_extent e = { 0 };
        int ret = blk_extents(src, off, blk_size(src) - off, 0, &e);
        if (ret < 0)
            return ret;
        uint64_t first = MAX(off >> l->block_bits, next);
        uint64_t last = (off + e.length - 1) >> l->block_bits;
        if (!(e.flags & BLK_EXT_ZERO) && last >= first) {
            *count += last - first + 1;
            next = last + 1;
        }
        off += e.length;
    }
    return 0;
}

int vhdx_measure(const void *create_options, uint64_t size, struct blk_node *src,
                 struct blk_measure *out, struct error **err)
{
    struct vhdx_create_options o = *(const struct vhdx_create_options *)create_options;
    struct layout l = { 0 };
    uint64_t blocks = 0;

    o.size = size;
    int ret = plan(&o, NULL, &l, err);
    if (ret < 0)
        return ret;
    if (src)
        ret = count_blocks(src, &l, &blocks);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not be measured: %s", blk_filename(src),
                         strerror(-ret));
    out->fully_allocated = l.payload + l.blocks * l.block_size;
    out->required = l.fixed ? out->fully_allocated : l.payload + blocks * l.block_size;
    return 0;
}
