/* Making an image.
 *
 * Everything but the header is written first and made durable, then the header: at no moment does
 * the file look like an image that is not whole. Where the file held something before (a block
 * device), its old header goes first and the places of the new tables are zeroed.
 *
 * Tables are written in pieces of PIECE bytes, so that preallocating a large disk takes no memory.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "layout.h"

enum { PIECE = 4 << 20 };

/* ---- options ---------------------------------------------------------------------------------------- */

static const struct opt_choice compat_choices[] = {
    { "0.10", 2 }, { "1.1", 3 }, { "v2", 2 }, { "v3", 3 }, { NULL, 0 },
};

static const struct opt_choice preallocation_choices[] = {
    { "off", BLK_PREALLOC_OFF },
    { "metadata", BLK_PREALLOC_METADATA },
    { "falloc", BLK_PREALLOC_FALLOC },
    { "full", BLK_PREALLOC_FULL },
    { NULL, 0 },
};

static const struct opt_choice compression_choices[] = {
    { "zlib", QCOW2_ZLIB },
    { "zstd", QCOW2_ZSTD },
    { NULL, 0 },
};

#define AT(member) offsetof(struct qcow2_create_options, member)
#define ENCRYPT(key)                                                     \
    {                                                                    \
        .name = "encrypt." key, .type = OPT_STRING, .at = AT(encryption) \
    }

/* In the order in which qemu-img sums them up. */
const struct opt_def qcow2_create_table[] = {
    { .name = "encryption", .type = OPT_STRING, .at = AT(encryption) },
    ENCRYPT("format"),
    ENCRYPT("key-secret"),
    ENCRYPT("cipher-alg"),
    ENCRYPT("cipher-mode"),
    ENCRYPT("ivgen-alg"),
    ENCRYPT("ivgen-hash-alg"),
    ENCRYPT("hash-alg"),
    ENCRYPT("iter-time"),
    { .name = "cluster_size",
      .type = OPT_SIZE,
      .at = AT(cluster_size),
      .def = "65536",
      .help = "size of clusters, 512 to 2M" },
    { .name = "extended_l2",
      .type = OPT_BOOL,
      .at = AT(extended_l2),
      .def = "off",
      .help = "32 subclusters in each cluster" },
    { .name = "preallocation",
      .type = OPT_ENUM,
      .at = AT(preallocation),
      .choices = preallocation_choices,
      .help = "what to set aside: off, metadata (tables), falloc (and space), full (and zeroes)" },
    { .name = "compression_type",
      .type = OPT_ENUM,
      .at = AT(compression_type),
      .def = "zlib",
      .choices = compression_choices,
      .help = "how compressed clusters are compressed" },
    { .name = "size", .type = OPT_SIZE, .at = AT(size), .help = "size of the disk" },
    { .name = "compat",
      .type = OPT_ENUM,
      .at = AT(compat),
      .choices = compat_choices,
      .help = "version of the format: v2 (0.10) or v3 (1.1)" },
    { .name = "backing_file",
      .type = OPT_STRING,
      .at = AT(backing_file),
      .help = "image that holds what this one does not" },
    { .name = "backing_fmt",
      .type = OPT_STRING,
      .at = AT(backing_fmt),
      .help = "format of the backing file" },
    { .name = "data_file",
      .type = OPT_STRING,
      .at = AT(data_file),
      .help = "file of its own for guest data" },
    { .name = "data_file_raw",
      .type = OPT_BOOL,
      .at = AT(data_file_raw),
      .help = "the data file reads the same as the disk" },
    { .name = "lazy_refcounts",
      .type = OPT_BOOL,
      .at = AT(lazy_refcounts),
      .def = "off",
      .help = "postpone refcount updates" },
    { .name = "refcount_bits",
      .type = OPT_NUMBER,
      .at = AT(refcount_bits),
      .def = "16",
      .help = "width of a refcount, 1 to 64" },
    OPT_END,
};

/* ---- the header's cluster ------------------------------------------------------------------------------ */

struct feature {
    uint8_t type, bit; /* type: 0 incompatible, 1 compatible, 2 autoclear */
    const char *name;
};

static const struct feature features[] = {
    { 0, 0, "dirty bit" },        { 0, 1, "corrupt bit" },         { 0, 2, "external data file" },
    { 0, 3, "compression type" }, { 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
    { 2, 0, "bitmaps" },          { 2, 1, "raw external data" },
};

enum { FEATURE_BYTES = 48 };

static uint8_t *put_extension(uint8_t *at, uint32_t type, const void *data, uint32_t len)
{
    store_be32(at, type);
    store_be32(at + 4, len);
    if (len)
        memcpy(at + 8, data, len);
    return at + 8 + align_up(len, 8);
}

void qcow2_feature_names(uint8_t table[QCOW2_FEATURE_NAMES])
{
    static_assert(sizeof(features) / sizeof(features[0]) * FEATURE_BYTES == QCOW2_FEATURE_NAMES,
                  "qcow2.h says how long the table is");
    memset(table, 0, QCOW2_FEATURE_NAMES);
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        uint8_t *row = table + i * FEATURE_BYTES;
        row[0] = features[i].type;
        row[1] = features[i].bit;
        memcpy(row + 2, features[i].name, strlen(features[i].name));
    }
}

static uint8_t *put_features(uint8_t *at)
{
    uint8_t table[QCOW2_FEATURE_NAMES];

    qcow2_feature_names(table);
    return put_extension(at, QCOW2_EXT_FEATURES, table, sizeof(table));
}

static size_t text_len(const char *s)
{
    return s ? strlen(s) : 0;
}

static void header_fill(struct qcow2_header *h, const struct qcow2_create_options *o,
                        const struct qcow2_layout *lay)
{
    bool zstd = o->compression_type == QCOW2_ZSTD;

    *h = (struct qcow2_header){
        .version = o->compat == 2 ? 2 : 3,
        .cluster_bits = lay->cluster_bits,
        .size = lay->size,
        .l1_size = (uint32_t)lay->l1_entries,
        .l1_offset = lay->l1 ? (1 + lay->reftable + lay->refblocks) << lay->cluster_bits : 0,
        .reftable_offset = UINT64_C(1) << lay->cluster_bits,
        .reftable_clusters = (uint32_t)lay->reftable,
        .incompatible = (zstd ? QCOW2_INCOMPAT_COMPRESSION : 0) |
                        (o->extended_l2 ? QCOW2_INCOMPAT_EXTL2 : 0) |
                        (lay->external ? QCOW2_INCOMPAT_DATA_FILE : 0),
        .compatible = o->lazy_refcounts ? QCOW2_COMPAT_LAZY : 0,
        .autoclear = o->data_file_raw ? QCOW2_AUTOCLEAR_RAW_DATA : 0,
        .refcount_order = lay->refcount_order,
        .header_length = o->compat == 2 ? QCOW2_V2_HEADER : 112,
        .compression_type = (uint8_t)o->compression_type,
    };
}

/* Header, extensions and the backing file's name; *len gets how many bytes. NULL: does not fit. */
static uint8_t *header_build(const struct qcow2_create_options *o, const struct qcow2_layout *lay,
                             size_t *len, struct error **err)
{
    size_t cluster = (size_t)1 << lay->cluster_bits;
    size_t fmt = text_len(o->backing_fmt), name = text_len(o->backing_file);
    size_t data = text_len(o->data_file);
    struct qcow2_header h;

    if (name > QCOW2_MAX_BACKING_NAME) {
        error_set(err, EINVAL, "the backing file's name has %zu bytes, the limit is %d", name,
                  QCOW2_MAX_BACKING_NAME);
        return NULL;
    }
    header_fill(&h, o, lay);
    size_t need = h.header_length + (fmt ? 8 + align_up(fmt, 8) : 0) +
                  (data ? 8 + align_up(data, 8) : 0) + 8 + name;
    if (fmt > cluster || data > cluster || need > cluster) {
        error_set(err, ENOSPC,
                  "the names of the backing file, its format and the data file do not fit into the "
                  "header's cluster of %zu bytes: use a larger cluster_size",
                  cluster);
        return NULL;
    }
    uint8_t *b = calloc(1, cluster);
    if (!b) {
        error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    uint8_t *at = b + h.header_length;
    if (fmt)
        at = put_extension(at, QCOW2_EXT_BACKING, o->backing_fmt, (uint32_t)fmt);
    if (data)
        at = put_extension(at, QCOW2_EXT_DATA_FILE, o->data_file, (uint32_t)data);
    /* The names are a service to readers, so they go where there is room. */
    if (h.version >= 3 && need + 8 + ARRAY_SIZE(features) * FEATURE_BYTES <= cluster)
        at = put_features(at);
    at = put_extension(at, QCOW2_EXT_END, NULL, 0);
    if (name) {
        memcpy(at, o->backing_file, name);
        h.backing_offset = (uint64_t)(at - b);
        h.backing_size = (uint32_t)name;
    }
    uint8_t fixed[112];
    uint32_t fixed_len = qcow2_header_build(&h, fixed);
    memcpy(b, fixed, fixed_len);
    *len = (size_t)(at - b) + name;
    return b;
}

/* ---- tables ------------------------------------------------------------------------------------------------ */

/* Writes `bytes` bytes at `offset` that fill() makes piece by piece. */
struct table_writer {
    struct blk_node *file;
    const struct qcow2_layout *lay;
    uint8_t *piece;
};

typedef void fill_fn(const struct qcow2_layout *lay, uint8_t *piece, uint64_t from, size_t len);

static int write_table(const struct table_writer *w, uint64_t offset, uint64_t bytes, fill_fn *fill)
{
    for (uint64_t at = 0; at < bytes; at += PIECE) {
        size_t len = (size_t)MIN(bytes - at, (uint64_t)PIECE);
        fill(w->lay, w->piece, at, len);
        int ret = blk_write(w->file, offset + at, w->piece, len, 0);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Entries that point to clusters in a row, beginning with cluster `first`, `count` in all. */
static void fill_pointers(const struct qcow2_layout *lay, uint8_t *piece, uint64_t from, size_t len,
                          uint64_t first, uint64_t count, uint64_t flags)
{
    for (size_t i = 0; i < len / 8; i++) {
        uint64_t n = from / 8 + i;
        store_be64(piece + 8 * i, n < count ? (first + n) << lay->cluster_bits | flags : 0);
    }
}

static void fill_reftable(const struct qcow2_layout *lay, uint8_t *piece, uint64_t from, size_t len)
{
    fill_pointers(lay, piece, from, len, 1 + lay->reftable, lay->refblocks, 0);
}

static void fill_l1(const struct qcow2_layout *lay, uint8_t *piece, uint64_t from, size_t len)
{
    fill_pointers(lay, piece, from, len, 1 + lay->reftable + lay->refblocks + lay->l1, lay->l2,
                  QE_COPIED);
}

/* Extended entries have storage, but no subcluster uses it yet. */
static void fill_l2(const struct qcow2_layout *lay, uint8_t *piece, uint64_t from, size_t len)
{
    uint64_t first = lay->external ? 0 : lay->total - lay->data;
    uint64_t count = div_round_up(lay->size, UINT64_C(1) << lay->cluster_bits);

    memset(piece, 0, len);
    for (size_t at = 0; at < len; at += (size_t)1 << lay->entry_bits) {
        uint64_t n = (from + at) >> lay->entry_bits;
        store_be64(piece + at, n < count ? (first + n) << lay->cluster_bits | QE_COPIED : 0);
    }
}

/* All clusters of the image are in use once. */
static void fill_refblocks(const struct qcow2_layout *lay, uint8_t *piece, uint64_t from,
                           size_t len)
{
    uint64_t n = (len * 8) >> lay->refcount_order, first = (from * 8) >> lay->refcount_order;
    uint64_t used = lay->total > first ? MIN(n, lay->total - first) : 0;

    if (from == 0 || used < n) {
        memset(piece, 0, len);
        for (uint64_t i = 0; i < used; i++)
            refcount_store(piece, i, lay->refcount_order, 1);
    }
}

/* What of a table is not zero, in bytes, to whole sectors. */
static uint64_t used_bytes(uint64_t bits, uint64_t clusters, uint32_t cluster_bits)
{
    return MIN(align_up(div_round_up(bits, 8), 512), clusters << cluster_bits);
}

static int write_tables(struct blk_node *file, const struct qcow2_layout *lay)
{
    struct table_writer w = { .file = file, .lay = lay };
    uint32_t bits = lay->cluster_bits;
    uint64_t at = UINT64_C(1) << bits;
    uint64_t reftable = used_bytes(lay->refblocks * 64, lay->reftable, bits);
    uint64_t refblocks = used_bytes(lay->total << lay->refcount_order, lay->refblocks, bits);
    uint64_t largest = MAX(MAX(reftable, refblocks), lay->l2 << bits);

    _cleanup_free_ uint8_t *piece = malloc(MIN(largest, (uint64_t)PIECE));
    if (!piece)
        return -ENOMEM;
    w.piece = piece;
    int ret = write_table(&w, at, reftable, fill_reftable);
    at += lay->reftable << bits;
    if (ret == 0)
        ret = write_table(&w, at, refblocks, fill_refblocks);
    at += lay->refblocks << bits;
    if (ret == 0)
        ret = write_table(&w, at, used_bytes(lay->l2 * 64, lay->l1, bits), fill_l1);
    at += lay->l1 << bits;
    if (ret == 0)
        ret = write_table(&w, at, lay->l2 << bits, fill_l2);
    return ret;
}

/* ---- create --------------------------------------------------------------------------------------------------- */

/* Space that reads as zeroes for all that the layout has. */
static int make_room(struct blk_node *file, const struct qcow2_layout *lay,
                     enum blk_prealloc prealloc, struct error **err)
{
    uint64_t end = lay->total << lay->cluster_bits, size = blk_size(file);
    int ret = 0;

    if (prealloc == BLK_PREALLOC_METADATA)
        prealloc = BLK_PREALLOC_OFF;
    if (size > 0) {
        uint64_t old = MIN(size, end);
        ret = blk_zero(file, 0, MIN(size, (uint64_t)4096), 0);
        if (ret == 0)
            ret = blk_flush(file);
        if (ret == 0)
            ret = blk_zero(file, 0, old, prealloc == BLK_PREALLOC_OFF ? BLK_MAY_UNMAP : 0);
        if (ret < 0)
            return error_set(err, -ret, "could not clear what was there before: %s",
                             strerror(-ret));
    }
    return size < end ? blk_resize(file, end, prealloc, err) : 0;
}

/* Plans the layout, or says why these options make no image. */
static int plan(const struct qcow2_create_options *o, struct qcow2_layout *lay, struct error **err)
{
    /* A raw data file is the disk, whether or not anything was written yet. */
    bool full = o->preallocation != BLK_PREALLOC_OFF || o->data_file_raw;
    int ret = qcow2_layout_plan(lay, o, o->size, full, err);

    if (ret < 0)
        return ret;
    if (lay->reftable << lay->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
        return error_set(err, EFBIG,
                         "the refcount table of a preallocated disk of %" PRIu64
                         " bytes would be above its limit of 8 MiB: use a larger cluster_size or "
                         "smaller refcount_bits",
                         o->size);
    return 0;
}

int qcow2_check_create(const void *options, struct error **err)
{
    struct qcow2_layout lay;
    size_t header_len;
    int ret = plan(options, &lay, err);

    if (ret < 0)
        return ret;
    _cleanup_free_ uint8_t *header = header_build(options, &lay, &header_len, err);
    return header ? 0 : -EINVAL;
}

int qcow2_create(struct blk_node *file, const void *options, struct error **err)
{
    const struct qcow2_create_options *o = options;
    struct qcow2_layout lay;
    size_t header_len;

    int ret = plan(o, &lay, err);
    if (ret < 0)
        return ret;
    _cleanup_free_ uint8_t *header = header_build(o, &lay, &header_len, err);
    if (!header)
        return -EINVAL;
    ret = make_room(file, &lay, (enum blk_prealloc)o->preallocation, err);
    if (ret < 0)
        return ret;
    ret = write_tables(file, &lay);
    if (ret == 0)
        ret = blk_flush(file);
    if (ret == 0)
        ret = blk_write(file, 0, header, header_len, 0);
    return ret < 0 ? error_set(err, -ret, "could not write: %s", strerror(-ret)) : 0;
}
