/* The driver record; opening, closing and describing an image. */
#include "qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "bitmap.h"
#include "caches.h"
#include "internal.h"

#define SLICE 4096u

/* ---- corruption --------------------------------------------------------------------------------------- */

int qcow2_corrupt(struct qcow2 *q, const char *fmt, ...)
{
    _cleanup_free_ char *text = NULL;
    uint8_t bits[8];
    va_list args;

    if (atomic_exchange(&q->corrupt_seen, true))
        return -EIO; /* the first finding tells enough */
    va_start(args, fmt);
    if (vasprintf(&text, fmt, args) < 0)
        text = NULL;
    va_end(args);
    node_warn(q->node, "the image is corrupt: %s%s", text ? text : "",
              node_writable(q->node) ? "; no more is written to it, see img check" : "");
    if (!node_writable(q->node))
        return -EIO;
    node_set_failed(q->node);
    if (q->version >= 3) {
        store_be64(bits, q->header.incompatible | QCOW2_INCOMPAT_CORRUPT);
        (void)blk_write(q->file, HDR_INCOMPATIBLE, bits, 8, 0);
    }
    return -EIO;
}

/* ---- loading ------------------------------------------------------------------------------------------ */

/* A table of big-endian numbers as an array in host order. */
static int load_table(struct qcow2 *q, const char *what, uint64_t offset, uint64_t entries,
                      uint64_t **out, struct error **err)
{
    uint64_t *t = calloc(entries ? entries : 1, 8);
    if (!t)
        return error_set(err, ENOMEM, "out of memory for the %s", what);
    int ret = entries ? blk_read(q->file, offset, t, entries * 8, 0) : 0;
    if (ret < 0) {
        free(t);
        return error_set(err, -ret, "%s: could not read the %s: %s", blk_filename(q->file), what,
                         strerror(-ret));
    }
    for (uint64_t i = 0; i < entries; i++)
        t[i] = load_be64(&t[i]);
    free(*out);
    *out = t;
    return 0;
}

/* What lies behind the end of a file reads as zeroes, and an L1 table of zeroes is an empty disk. */
static int l1_is_there(const struct qcow2 *q, struct error **err)
{
    const struct qcow2_header *h = &q->header;
    uint64_t needed =
        (h->size >> q->l1_shift) + 1; /* it may have more entries than the disk needs */
    uint64_t end = h->l1_offset + MIN((uint64_t)h->l1_size, needed) * 8, size = blk_size(q->file);

    if (end <= size || h->size == 0 ||
        (node_open_flags(q->node) & (BLK_OPEN_SHARED | BLK_OPEN_REPAIR | BLK_OPEN_NO_IO)))
        return 0;
    return error_set(err, EINVAL,
                     "%s: the L1 table ends at %#" PRIx64
                     ", beyond the end of the file at %#" PRIx64 ": was it truncated?",
                     blk_filename(q->file), end, size);
}

static int load_tables(struct qcow2 *q, struct error **err)
{
    const struct qcow2_header *h = &q->header;
    int ret = l1_is_there(q, err);

    if (ret == 0)
        ret = load_table(q, "L1 table", h->l1_offset, h->l1_size, &q->l1, err);
    if (ret < 0)
        return ret;
    q->reftable_entries = h->reftable_clusters << (q->cluster_bits - 3);
    ret =
        load_table(q, "refcount table", h->reftable_offset, q->reftable_entries, &q->reftable, err);
    q->fresh = q->grows ? cluster_up(q, blk_size(q->file)) : UINT64_MAX;
    q->alloc_hint = 0;
    q->packed_next = 0;
    q->l1_dirty = false;
    return ret;
}

static void set_geometry(struct qcow2 *q)
{
    const struct qcow2_header *h = &q->header;

    q->cluster_bits = h->cluster_bits;
    q->cluster_size = 1u << h->cluster_bits;
    q->version = h->version;
    q->refcount_order = h->refcount_order;
    q->refcount_max =
        h->refcount_order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << h->refcount_order)) - 1;
    q->extended = h->incompatible & QCOW2_INCOMPAT_EXTL2;
    q->entry_bits = q->extended ? 4 : 3;
    q->l1_shift = l1_shift_for(q->cluster_bits, q->extended);
    q->sub_bits = q->extended ? q->cluster_bits - 5 : q->cluster_bits;
    q->l2_entries = q->cluster_size >> q->entry_bits;
    q->slice_size = MIN(q->cluster_size, SLICE);
    q->slice_entries = q->slice_size >> q->entry_bits;
    q->compression = (enum qcow2_compression)h->compression_type;
    q->grows = node_grows(q->file);
    q->data = q->file;
    q->stored_mask = L2E_OFFSET;
}

/* ---- what may be opened -------------------------------------------------------------------------------- */

static int check_features(struct qcow2 *q, struct error **err)
{
    bool known;
    _cleanup_free_ char *what = qcow2_unsupported(q->file, &q->header, &known);
    const char *name = blk_filename(q->file);

    if (!what)
        return 0;
    if (known && (node_open_flags(q->node) & BLK_OPEN_NO_IO)) {
        q->unreadable = true;
        return 0;
    }
    return error_set(err, ENOTSUP, "%s: this image uses %s, which is not supported", name, what);
}

static int check_writable(struct qcow2 *q, struct error **err)
{
    const struct qcow2_header *h = &q->header;
    const char *name = blk_filename(q->file);
    bool repair = node_open_flags(q->node) & BLK_OPEN_REPAIR;

    if (h->reftable_clusters == 0 && !repair)
        return error_set(err, EINVAL,
                         "%s: the image has no refcount table: repair it with img "
                         "check -r all",
                         name);
    if (!node_writable(q->node) || repair)
        return 0;
    if (h->incompatible & QCOW2_INCOMPAT_CORRUPT)
        return error_set(err, EACCES,
                         "%s: the image is marked corrupt and can only be opened "
                         "read-only: repair it with img check -r all",
                         name);
    if (h->autoclear & QCOW2_AUTOCLEAR_BITMAPS)
        return error_set(err, ENOTSUP,
                         "%s: the image has persistent bitmaps and can only be "
                         "opened read-only",
                         name);
    return 0;
}

/* ---- open ------------------------------------------------------------------------------------------------ */

/* Bits of features that we do not keep up must not survive our writes. */
static int clear_autoclear(struct qcow2 *q, struct error **err)
{
    uint64_t kept = q->external_raw ? QCOW2_AUTOCLEAR_RAW_DATA : 0;

    if (!node_writable(q->node) || q->header.autoclear == kept ||
        (node_open_flags(q->node) & BLK_OPEN_REPAIR))
        return 0;
    q->header.autoclear = kept;
    int ret = qcow2_header_update(q, HDR_AUTOCLEAR, HDR_AUTOCLEAR + 8);
    if (ret == 0)
        ret = blk_flush(q->file);
    return ret < 0 ? error_set(err, -ret, "%s: could not update the header: %s",
                               blk_filename(q->file), strerror(-ret))
                   : 0;
}

static int set_backing(struct qcow2 *q, struct error **err)
{
    _cleanup_free_ char *backing = NULL, *format = NULL;
    int ret = qcow2_read_strings(q->file, &q->header, &backing, &format, err);

    if (ret < 0 || !backing)
        return ret;
    ret = node_set_backing(q->node, backing, format);
    return ret < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

static void init_locks(struct qcow2 *q)
{
    rwlock_init(&q->lock);
    pthread_mutex_init(&q->commit_lock, NULL);
    pthread_mutex_init(&q->ahead_lock, NULL);
}

static void free_all(struct qcow2 *q)
{
    qcow2_caches_free(q);
    qcow2_overlap_free(q);
    vector_free(&q->freed);
    vector_free(&q->quarantine);
    free(q->l1);
    free(q->reftable);
    free(q->data_name);
    pthread_mutex_destroy(&q->ahead_lock);
    pthread_mutex_destroy(&q->commit_lock);
    rwlock_destroy(&q->lock);
}

/* Q5 needs to know where metadata is; tables that overlap each other already cannot be kept apart. */
static int prepare_writing(struct qcow2 *q, struct error **err)
{
    if (!node_writable(q->node) || (node_open_flags(q->node) & BLK_OPEN_REPAIR))
        return 0;
    const char *clash = NULL;
    int ret = qcow2_overlap_build(q, &clash);
    if (ret == -ENOMEM)
        return error_set(err, ENOMEM, "out of memory");
    if (ret < 0)
        return error_set(err, EINVAL,
                         "%s: the image is corrupt: %s overlaps other metadata: "
                         "see img check",
                         blk_filename(q->file), clash);
    return clear_autoclear(q, err);
}

/* A writer that delayed refcounts went away without bringing them up to date. */
static int repair_dirty(struct qcow2 *q, struct error **err)
{
    struct blk_check result = { 0 };
    static const struct blk_check_hooks silent;

    if (!node_writable(q->node) || !(q->header.incompatible & QCOW2_INCOMPAT_DIRTY) ||
        (node_open_flags(q->node) & BLK_OPEN_REPAIR))
        return 0;
    int ret = qcow2_check(q->node, BLK_FIX_ERRORS | BLK_FIX_LEAKS, &result, &silent, err);
    if (ret == 0 && (result.corruptions || result.check_errors))
        ret = error_set(err, EIO,
                        "%s: the image was not closed and could not be repaired: see img "
                        "check",
                        blk_filename(q->file));
    return ret;
}

static int qcow2_open(struct blk_node *n, const void *options, struct error **err)
{
    struct qcow2 *q = node_state(n);

    q->node = n;
    q->file = node_child(n, EDGE_FILE);
    init_locks(q);
    int ret = qcow2_header_read(q->file, &q->header, err);
    if (ret == 0)
        ret = check_features(q, err);
    if (ret == 0)
        ret = check_writable(q, err);
    if (ret == 0) {
        set_geometry(q);
        ret = qcow2_external_open(q, err);
    }
    if (ret == 0) {
        ret = qcow2_caches_make(q, options);
        if (ret < 0)
            error_set(err, ENOMEM, "out of memory for the metadata caches");
    }
    if (ret == 0)
        ret = load_tables(q, err);
    if (ret == 0 && !(node_open_flags(n) & BLK_OPEN_REPAIR))
        ret = qcow2_snapshots_read(q, NULL, err);
    if (ret == 0)
        ret = set_backing(q, err);
    if (ret == 0) {
        node_set_size(n, q->header.size);
        node_limits(n)->unit = q->cluster_size;
        node_limits(n)->part = q->extended ? 1u << q->sub_bits : 0;
        ret = repair_dirty(q, err);
    }
    if (ret == 0)
        ret = prepare_writing(q, err);
    if (ret < 0)
        free_all(q);
    return ret;
}

int qcow2_reload(struct qcow2 *q, struct error **err)
{
    WRLOCK_SCOPE(&q->lock);
    table_cache_clear(q->l2);
    table_cache_clear(q->refs);
    q->freed.len = q->quarantine.len = 0;
    atomic_store(&q->corrupt_seen, false);
    int ret = qcow2_header_read(q->file, &q->header, err);
    if (ret == 0)
        ret = load_tables(q, err);
    if (ret == 0 && q->overlap) {
        const char *clash = NULL;
        ret = qcow2_overlap_build(q, &clash);
        if (ret < 0)
            error_set(err, -ret, "%s: %s overlaps other metadata", blk_filename(q->file),
                      clash ? clash : "something");
    }
    return ret;
}

static int qcow2_close(struct blk_node *n, struct error **err)
{
    struct qcow2 *q = node_state(n);
    int ret = 0;

    if (node_writable(n) && q->overlap) {
        ret = qcow2_settle(q);
        if (ret < 0)
            error_set(err, -ret, "%s: could not write its metadata: %s", blk_filename(n),
                      strerror(-ret));
    }
    free_all(q);
    return ret;
}

static int qcow2_flush(struct blk_node *n)
{
    return qcow2_commit(node_state(n), true);
}

/* ---- info ------------------------------------------------------------------------------------------------- */

static const char *compression_name(enum qcow2_compression type)
{
    return type == QCOW2_ZSTD ? "zstd" : "zlib";
}

static json_t *specific_v3(struct qcow2 *q)
{
    const struct qcow2_header *h = &q->header;
    bool corrupt = (h->incompatible & QCOW2_INCOMPAT_CORRUPT) || atomic_load(&q->corrupt_seen);

    json_t *o = json_pack("{s:s, s:s, s:b, s:o*, s:i}", "compat", "1.1", "compression-type",
                          compression_name(q->compression), "lazy-refcounts",
                          (int)(h->compatible & QCOW2_COMPAT_LAZY), "bitmaps",
                          qcow2_bitmaps_json(q), "refcount-bits", 1 << h->refcount_order);
    if (o && q->data_name) /* any bytes make a file name; what is no text is told without it */
        json_object_set_new(o, "data-file", json_string(q->data_name));
    if (o && q->external)
        json_object_set_new(o, "data-file-raw", json_boolean(q->external_raw));
    if (o) {
        json_object_set_new(o, "corrupt", json_boolean(corrupt));
        json_object_set_new(o, "extended-l2", json_boolean(q->extended));
    }
    return o;
}

static json_t *specific_v2(struct qcow2 *q)
{
    return json_pack("{s:s, s:s, s:i}", "compat", "0.10", "compression-type",
                     compression_name(q->compression), "refcount-bits",
                     1 << q->header.refcount_order);
}

static int qcow2_info(struct blk_node *n, struct blk_info *out, struct error **err)
{
    struct qcow2 *q = node_state(n);

    RDLOCK_SCOPE(&q->lock);
    out->cluster_size = q->cluster_size;
    out->dirty = q->header.incompatible & QCOW2_INCOMPAT_DIRTY;
    out->corrupt =
        (q->header.incompatible & QCOW2_INCOMPAT_CORRUPT) || atomic_load(&q->corrupt_seen);
    out->encrypted = q->header.crypt_method != 0;
    json_t *data = q->version >= 3 ? specific_v3(q) : specific_v2(q);
    _cleanup_json_ json_t *all =
        data ? json_pack("{s:s, s:o}", "type", "qcow2", "data", data) : NULL;
    out->specific = all ? json_dumps(all, JSON_COMPACT) : NULL;
    if (!out->specific)
        return error_set(err, ENOMEM, "out of memory");
    if (!q->header.nb_snapshots)
        return 0;
    _cleanup_json_ json_t *snapshots = json_array();
    int ret = qcow2_snapshots_read(q, snapshots, err);
    if (ret == 0)
        out->snapshots = json_dumps(snapshots, JSON_COMPACT);
    return ret;
}

/* ---- the record ------------------------------------------------------------------------------------------- */

static int qcow2_probe(const uint8_t *buf, size_t len, const char *filename)
{
    (void)filename;
    if (len < 8 || load_be32(buf) != QCOW2_MAGIC)
        return 0;
    return load_be32(buf + HDR_VERSION) >= 2 ? 100 : 0;
}

static int qcow2_decode(struct blk_node *n, const struct mapping *m, const void *in, size_t in_len,
                        void *out, size_t out_len)
{
    struct qcow2 *q = node_state(n);

    (void)m;
    return qcow2_decompress(q->compression, in, in_len, out, out_len);
}

static int64_t qcow2_encode(struct blk_node *n, uint64_t unit_offset, const void *in, size_t in_len,
                            void *out, size_t out_cap)
{
    (void)unit_offset; /* the encoding does not tell where it belongs */
    struct qcow2 *q = node_state(n);
    return qcow2_compress(q->compression, in, in_len, out, out_cap);
}

extern const struct driver qcow2_driver;
const struct driver qcow2_driver = {
    .name = "qcow2",
    .kind = BLK_FORMAT,
    .flags =
        DRIVER_PARALLEL | DRIVER_BACKING | DRIVER_UNMAP_ZERO | DRIVER_NEW_ZERO | DRIVER_DATA_FILE,
    .state_size = sizeof(struct qcow2),
    .options = qcow2_options,
    .options_size = sizeof(struct qcow2_options),
    .create_options = qcow2_create_table,
    .create_options_size = sizeof(struct qcow2_create_options),
    .amend_options = qcow2_amend_table,
    .amend_options_size = sizeof(struct qcow2_amend_options),
    .probe = qcow2_probe,
    .open = qcow2_open,
    .close = qcow2_close,
    .check_create = qcow2_check_create,
    .create = qcow2_create,
    .flush = qcow2_flush,
    .map_read = qcow2_map_read,
    .write_begin = qcow2_write_begin,
    .write_end = qcow2_write_end,
    .zero_range = qcow2_zero_range,
    .discard_range = qcow2_discard_range,
    .decode = qcow2_decode,
    .encode = qcow2_encode,
    .resize = qcow2_resize,
    .change_backing = qcow2_change_backing,
    .make_empty = qcow2_make_empty,
    .amend = qcow2_amend,
    .check = qcow2_check,
    .info = qcow2_info,
    .measure = qcow2_measure,
    .snapshot_create = qcow2_snapshot_create,
    .snapshot_apply = qcow2_snapshot_apply,
    .snapshot_delete = qcow2_snapshot_delete,
    .snapshot_view = qcow2_snapshot_view,
    .bitmap_load = qcow2_bitmap_load,
    .vm_state = qcow2_vm_state,
};
