/* The header: reading it with suspicion, naming what it asks for, changing single fields. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/strbuf.h"
#include "internal.h"

#define KNOWN_INCOMPAT                                                            \
    (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_COMPRESSION | \
     QCOW2_INCOMPAT_EXTL2 | QCOW2_INCOMPAT_DATA_FILE)
#define MAX_HEADER    2097152u /* it must lie in the first cluster */
#define MAX_DATA_NAME 4095

/* ---- reading ------------------------------------------------------------------------------------- */

static void parse_v3(const uint8_t *b, struct qcow2_header *h)
{
    h->incompatible = load_be64(b + HDR_INCOMPATIBLE);
    h->compatible = load_be64(b + HDR_COMPATIBLE);
    h->autoclear = load_be64(b + HDR_AUTOCLEAR);
    h->refcount_order = load_be32(b + HDR_REFCOUNT_ORDER);
    h->header_length = load_be32(b + HDR_HEADER_LENGTH);
    h->compression_type = h->header_length > HDR_COMPRESSION_TYPE ? b[HDR_COMPRESSION_TYPE] : 0;
}

static void parse(const uint8_t *b, struct qcow2_header *h)
{
    *h = (struct qcow2_header){
        .version = load_be32(b + HDR_VERSION),
        .backing_offset = load_be64(b + HDR_BACKING_OFFSET),
        .backing_size = load_be32(b + HDR_BACKING_SIZE),
        .cluster_bits = load_be32(b + HDR_CLUSTER_BITS),
        .size = load_be64(b + HDR_SIZE),
        .crypt_method = load_be32(b + HDR_CRYPT_METHOD),
        .l1_size = load_be32(b + HDR_L1_SIZE),
        .l1_offset = load_be64(b + HDR_L1_OFFSET),
        .reftable_offset = load_be64(b + HDR_REFTABLE_OFFSET),
        .reftable_clusters = load_be32(b + HDR_REFTABLE_CLUSTERS),
        .nb_snapshots = load_be32(b + HDR_NB_SNAPSHOTS),
        .snapshots_offset = load_be64(b + HDR_SNAPSHOTS_OFFSET),
        .refcount_order = 4,
        .header_length = QCOW2_V2_HEADER,
    };
    if (h->version >= 3)
        parse_v3(b, h);
}

/* A table of `bytes` bytes at `offset`: aligned, within what 63 bits address. */
static int check_table(const char *name, const char *what, uint64_t offset, uint64_t bytes,
                       uint64_t limit, uint32_t cluster_size, struct error **err)
{
    if (bytes > limit)
        return error_set(err, EFBIG, "%s: the %s has %" PRIu64 " bytes, the limit is %" PRIu64,
                         name, what, bytes, limit);
    if (offset % cluster_size)
        return error_set(err, EINVAL, "%s: the %s's offset %#" PRIx64 " is not cluster aligned",
                         name, what, offset);
    if (offset > (uint64_t)INT64_MAX - bytes)
        return error_set(err, EINVAL, "%s: the %s's offset %#" PRIx64 " is beyond 8 EiB", name,
                         what, offset);
    return 0;
}

static int check_numbers(const char *name, const struct qcow2_header *h, struct error **err)
{
    if (h->version < 2 || h->version > 3)
        return error_set(err, ENOTSUP, "%s: qcow2 version %u is not supported (2 and 3 are)", name,
                         h->version);
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS || h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return error_set(err, EINVAL, "%s: cluster_bits is %u, it must be from %d to %d", name,
                         h->cluster_bits, QCOW2_MIN_CLUSTER_BITS, QCOW2_MAX_CLUSTER_BITS);
    if (h->version >= 3 &&
        (h->header_length < QCOW2_V3_HEADER || h->header_length > 1u << h->cluster_bits))
        return error_set(err, EINVAL,
                         "%s: header_length is %u, it must be from %d to the cluster "
                         "size",
                         name, h->header_length, QCOW2_V3_HEADER);
    if (h->refcount_order > 6)
        return error_set(err, EINVAL, "%s: refcount_order is %u, the limit is 6", name,
                         h->refcount_order);
    if (h->size > INT64_MAX)
        return error_set(err, EFBIG, "%s: the virtual size %" PRIu64 " is above the limit of 8 EiB",
                         name, h->size);
    if ((h->incompatible & QCOW2_INCOMPAT_EXTL2) && h->cluster_bits < 14)
        return error_set(err, EINVAL, "%s: extended L2 entries need clusters of at least 16 KiB",
                         name);
    if (h->crypt_method > 2)
        return error_set(err, ENOTSUP, "%s: encryption method %u is unknown (1 is AES, 2 LUKS)",
                         name, h->crypt_method);
    if (h->backing_offset && h->backing_size > QCOW2_MAX_BACKING_NAME)
        return error_set(err, EINVAL, "%s: the backing file name has %u bytes, the limit is %d",
                         name, h->backing_size, QCOW2_MAX_BACKING_NAME);
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    if (h->backing_offset &&
        (h->backing_offset > cluster || h->backing_size > cluster - h->backing_offset))
        return error_set(err, EINVAL, "%s: the backing file name lies outside the first cluster",
                         name);
    if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS)
        return error_set(err, EFBIG, "%s: it has %u snapshots, the limit is %d", name,
                         h->nb_snapshots, QCOW2_MAX_SNAPSHOTS);
    return 0;
}

static int check_tables(const char *name, const struct qcow2_header *h, struct error **err)
{
    uint32_t cs = 1u << h->cluster_bits;
    int ret = check_table(name, "L1 table", h->l1_offset, (uint64_t)h->l1_size * 8,
                          QCOW2_MAX_L1_BYTES, cs, err);
    if (ret == 0)
        ret = check_table(name, "refcount table", h->reftable_offset,
                          (uint64_t)h->reftable_clusters << h->cluster_bits,
                          QCOW2_MAX_REFTABLE_BYTES, cs, err);
    if (ret == 0 && h->nb_snapshots)
        ret = check_table(name, "snapshot table", h->snapshots_offset, 0, 0, cs, err);
    if (ret < 0)
        return ret;
    bool extended = h->incompatible & QCOW2_INCOMPAT_EXTL2;
    uint64_t need = l1_entries_for(l1_shift_for(h->cluster_bits, extended), h->size);
    if (h->l1_size < need)
        return error_set(err, EINVAL,
                         "%s: the L1 table has %u entries, %" PRIu64 " are needed for "
                         "a disk of %" PRIu64 " bytes",
                         name, h->l1_size, need, h->size);
    return 0;
}

static int check_compression(const char *name, const struct qcow2_header *h, struct error **err)
{
    bool bit = h->incompatible & QCOW2_INCOMPAT_COMPRESSION;

    if (h->compression_type > QCOW2_ZSTD)
        return error_set(err, ENOTSUP, "%s: compression type %u is unknown (0 is zlib, 1 zstd)",
                         name, h->compression_type);
    if (bit != (h->compression_type != QCOW2_ZLIB))
        return error_set(err, EINVAL,
                         "%s: compression type %u and the incompatible feature bit "
                         "for it contradict each other",
                         name, h->compression_type);
    return 0;
}

int qcow2_header_read(struct blk_node *file, struct qcow2_header *h, struct error **err)
{
    const char *name = blk_filename(file);
    uint8_t b[112] = { 0 };
    uint64_t size = blk_size(file);

    if (size < QCOW2_V2_HEADER)
        return error_set(err, EINVAL, "%s: is not a qcow2 image: it has only %" PRIu64 " bytes",
                         name, size);
    int ret = blk_read(file, 0, b, MIN(size, (uint64_t)sizeof(b)), 0);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the header: %s", name, strerror(-ret));
    if (load_be32(b) != QCOW2_MAGIC)
        return error_set(err, EINVAL, "%s: is not a qcow2 image: the magic number is missing",
                         name);
    parse(b, h);
    ret = check_numbers(name, h, err);
    if (ret == 0)
        ret = check_tables(name, h, err);
    return ret < 0 ? ret : check_compression(name, h, err);
}

/* ---- extensions -------------------------------------------------------------------------------------- */

/* The header's cluster up to the backing name, where extensions lie. */
static int read_extensions(struct blk_node *file, const struct qcow2_header *h, uint8_t **out,
                           size_t *len)
{
    uint64_t end = h->backing_offset ? h->backing_offset : 1u << h->cluster_bits;
    bool none = end > MAX_HEADER || end <= h->header_length;
    uint64_t size = blk_size(file);

    *len = none ? 0 : (size_t)(end - h->header_length);
    *out = calloc(1, *len ? *len : 1);
    if (!*out)
        return -ENOMEM;
    uint64_t there = size > h->header_length ? MIN((uint64_t)*len, size - h->header_length) : 0;
    return there ? blk_read(file, h->header_length, *out, there, 0) : 0;
}

static int extensions_or_error(struct blk_node *file, const struct qcow2_header *h, uint8_t **out,
                               size_t *len, struct error **err)
{
    int ret = read_extensions(file, h, out, len);

    if (ret < 0)
        error_set(err, -ret, "%s: could not read the header extensions: %s", blk_filename(file),
                  strerror(-ret));
    return ret;
}

/* The extension of this type: its data and length, NULL when absent. -EINVAL (through *bad) when
 * one reaches outside. */
static const uint8_t *find_extension(const uint8_t *b, size_t len, uint32_t type, uint32_t *ext_len,
                                     bool *bad)
{
    size_t at = 0;

    *bad = false;
    while (len - at >= 8) {
        uint32_t t = load_be32(b + at), l = load_be32(b + at + 4);
        if (t == QCOW2_EXT_END)
            return NULL;
        at += 8;
        if (l > len - at) {
            *bad = true;
            return NULL;
        }
        if (t == type) {
            *ext_len = l;
            return b + at;
        }
        at += MIN((size_t)l + (8 - l % 8) % 8, len - at);
    }
    return NULL;
}

static char *copy_bytes(const uint8_t *b, size_t len)
{
    char *s = calloc(1, len + 1);
    if (s)
        memcpy(s, b, len);
    return s;
}

int qcow2_read_strings(struct blk_node *file, const struct qcow2_header *h, char **backing,
                       char **backing_format, struct error **err)
{
    const char *name = blk_filename(file);
    size_t len;
    uint32_t ext_len;
    bool bad;

    *backing = *backing_format = NULL;
    _cleanup_free_ uint8_t *ext = NULL;
    int ret = extensions_or_error(file, h, &ext, &len, err);
    if (ret < 0)
        return ret;
    const uint8_t *format = find_extension(ext, len, QCOW2_EXT_BACKING, &ext_len, &bad);
    if (bad)
        return error_set(err, EINVAL, "%s: a header extension is longer than the header's cluster",
                         name);
    if (format && ext_len > 15)
        return error_set(err, EINVAL, "%s: the backing format name has %u bytes, the limit is 15",
                         name, ext_len);
    if (!h->backing_offset || !h->backing_size)
        return 0;
    _cleanup_free_ char *text = calloc(1, h->backing_size + 1);
    if (!text)
        return error_set(err, ENOMEM, "out of memory");
    ret = blk_read(file, h->backing_offset, text, h->backing_size, 0);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the backing file name: %s", name,
                         strerror(-ret));
    *backing_format = format ? copy_bytes(format, ext_len) : NULL;
    *backing = text;
    text = NULL;
    return 0;
}

int qcow2_read_data_file(struct blk_node *file, const struct qcow2_header *h, char **out,
                         struct error **err)
{
    const char *name = blk_filename(file);
    uint32_t ext_len;
    size_t len;
    bool bad;

    *out = NULL;
    _cleanup_free_ uint8_t *ext = NULL;
    int ret = extensions_or_error(file, h, &ext, &len, err);
    if (ret < 0)
        return ret;
    const uint8_t *text = find_extension(ext, len, QCOW2_EXT_DATA_FILE, &ext_len, &bad);
    if (!text)
        return 0;
    if (ext_len > MAX_DATA_NAME)
        return error_set(err, EINVAL, "%s: the data file's name has %u bytes, the limit is %d",
                         name, ext_len, MAX_DATA_NAME);
    *out = copy_bytes(text, ext_len);
    return *out ? 0 : error_set(err, ENOMEM, "out of memory");
}

int qcow2_read_extension(struct blk_node *file, const struct qcow2_header *h, uint32_t type,
                         void *to, size_t room, struct error **err)
{
    _cleanup_free_ uint8_t *ext = NULL;
    uint32_t ext_len;
    size_t len;
    bool bad;
    int ret = extensions_or_error(file, h, &ext, &len, err);

    if (ret < 0)
        return ret;
    const uint8_t *data = find_extension(ext, len, type, &ext_len, &bad);
    if (!data)
        return 0;
    memcpy(to, data, MIN(room, (size_t)ext_len));
    return (int)MIN(ext_len, (uint32_t)INT32_MAX);
}

/* ---- features ---------------------------------------------------------------------------------------- */

/* Its name from the image's feature name table, for bits that we never heard of. */
static void add_unknown_bit(struct strbuf *out, const uint8_t *table, uint32_t len, unsigned bit)
{
    strbuf_add(out, strbuf_text(out)[0] ? ", " : "");
    for (uint32_t at = 0; table && at + 48 <= len; at += 48)
        if (table[at] == 0 && table[at + 1] == bit) {
            strbuf_addf(out, "'%.46s'", (const char *)table + at + 2);
            return;
        }
    strbuf_addf(out, "unknown incompatible feature (bit %u)", bit);
}

char *qcow2_unsupported(struct blk_node *file, const struct qcow2_header *h, bool *known)
{
    struct strbuf out = STRBUF_INIT;
    uint64_t unknown = h->incompatible & ~KNOWN_INCOMPAT;

    *known = !unknown;
    if (h->crypt_method)
        strbuf_addf(&out, "%sencryption", strbuf_text(&out)[0] ? ", " : "");
    if (unknown) {
        size_t len;
        uint32_t table_len = 0;
        bool bad;
        _cleanup_free_ uint8_t *ext = NULL;
        const uint8_t *table = NULL;
        if (read_extensions(file, h, &ext, &len) == 0)
            table = find_extension(ext, len, QCOW2_EXT_FEATURES, &table_len, &bad);
        for (unsigned bit = 0; bit < 64; bit++)
            if (unknown >> bit & 1)
                add_unknown_bit(&out, table, table_len, bit);
    }
    if (!strbuf_text(&out)[0]) {
        strbuf_free(&out);
        return NULL;
    }
    return strbuf_take(&out);
}

/* ---- writing ------------------------------------------------------------------------------------------- */

uint32_t qcow2_header_build(const struct qcow2_header *h, uint8_t b[112])
{
    memset(b, 0, 112);
    store_be32(b + HDR_MAGIC, QCOW2_MAGIC);
    store_be32(b + HDR_VERSION, h->version);
    store_be64(b + HDR_BACKING_OFFSET, h->backing_offset);
    store_be32(b + HDR_BACKING_SIZE, h->backing_size);
    store_be32(b + HDR_CLUSTER_BITS, h->cluster_bits);
    store_be64(b + HDR_SIZE, h->size);
    store_be32(b + HDR_CRYPT_METHOD, h->crypt_method);
    store_be32(b + HDR_L1_SIZE, h->l1_size);
    store_be64(b + HDR_L1_OFFSET, h->l1_offset);
    store_be64(b + HDR_REFTABLE_OFFSET, h->reftable_offset);
    store_be32(b + HDR_REFTABLE_CLUSTERS, h->reftable_clusters);
    store_be32(b + HDR_NB_SNAPSHOTS, h->nb_snapshots);
    store_be64(b + HDR_SNAPSHOTS_OFFSET, h->snapshots_offset);
    if (h->version < 3)
        return QCOW2_V2_HEADER;
    store_be64(b + HDR_INCOMPATIBLE, h->incompatible);
    store_be64(b + HDR_COMPATIBLE, h->compatible);
    store_be64(b + HDR_AUTOCLEAR, h->autoclear);
    store_be32(b + HDR_REFCOUNT_ORDER, h->refcount_order);
    store_be32(b + HDR_HEADER_LENGTH, h->header_length);
    if (h->header_length <= HDR_COMPRESSION_TYPE)
        return QCOW2_V3_HEADER;
    b[HDR_COMPRESSION_TYPE] = h->compression_type;
    return 112;
}

int qcow2_header_update(struct qcow2 *q, uint32_t from, uint32_t to)
{
    uint8_t b[112];
    uint32_t len = qcow2_header_build(&q->header, b);

    to = MIN(to, len);
    return from < to ? blk_write(q->file, from, b + from, to - from, 0) : 0;
}

int qcow2_header_switch(struct qcow2 *q, const struct qcow2_header *next, uint32_t from,
                        uint32_t to)
{
    struct qcow2_header old = q->header;

    q->header = *next;
    int ret = qcow2_header_update(q, from, to);
    if (ret == 0)
        ret = blk_flush(q->file);
    if (ret < 0) {
        q->header = old;
        node_set_failed(q->node); /* which of the two is in force is unknown */
    }
    return ret;
}
