/* Rewriting the header's cluster: numbers, extensions, backing file's name.
 *
 * The new cluster is made in memory from the old one; extensions we do not know and header fields beyond
 * those we know are copied as they are. Only the bytes that differ are written, in one write, so that a process
 * that dies leaves the old header or the new one. For most images all of it lies in one sector or page.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "internal.h"

#define MAX_FORMAT 15

/* A cluster being filled from the front. */
struct fill {
    uint8_t *b;
    uint64_t at, size;
    bool full;
};

static void put(struct fill *f, const void *data, uint64_t len)
{
    if (f->full || len > f->size - f->at) {
        f->full = true;
        return;
    }
    if (len)
        memcpy(f->b + f->at, data, len);
    f->at += len;
}

static void put_extension(struct fill *f, uint32_t type, const void *data, uint32_t len)
{
    static const uint8_t zeroes[8];
    uint8_t head[8];

    store_be32(head, type);
    store_be32(head + 4, len);
    put(f, head, 8);
    put(f, data, len);
    put(f, zeroes, (8 - len % 8) % 8);
}

/* What the rewritten header says anew, or not at all. */
static bool replaced(uint32_t type, const struct qcow2_header *h, const struct qcow2_strings *s)
{
    return type == QCOW2_EXT_BACKING || (type == QCOW2_EXT_FEATURES && h->version < 3) ||
           (type == QCOW2_EXT_DATA_FILE && s->data_file);
}

/* Copies the old extensions that stay. *end: where the old ones ended. */
static int copy_extensions(struct fill *f, const uint8_t *old, const struct qcow2 *q,
                           const struct qcow2_header *h, const struct qcow2_strings *s,
                           bool *features, uint64_t *end)
{
    const struct qcow2_header *was = &q->header;
    uint64_t at = was->header_length;
    uint64_t stop = was->backing_offset ? was->backing_offset : q->cluster_size;

    while (at + 8 <= stop) {
        uint32_t type = load_be32(old + at), len = load_be32(old + at + 4);
        if (type == QCOW2_EXT_END)
            break;
        if (len > stop - at - 8)
            return -EINVAL;
        if (type == QCOW2_EXT_FEATURES)
            *features = true;
        if (!replaced(type, h, s))
            put_extension(f, type, old + at + 8, len);
        at += 8 + align_up((uint64_t)len, 8);
    }
    *end = MIN(at + 8, (uint64_t)q->cluster_size);
    return 0;
}

/* Fields of a later version of the format that stand behind those we know. */
static void put_later_fields(struct fill *f, const uint8_t *old, const struct qcow2_header *was,
                             const struct qcow2_header *h)
{
    uint32_t known = HDR_COMPRESSION_TYPE + 8;

    if (h->version >= 3 && was->version >= 3 && was->header_length > known)
        put(f, old + known, was->header_length - known);
}

static uint32_t new_length(const struct qcow2_header *was, const struct qcow2_header *h)
{
    uint32_t whole = HDR_COMPRESSION_TYPE + 8;

    if (h->version < 3)
        return QCOW2_V2_HEADER;
    if (was->version < 3)
        return whole;
    if (was->header_length <= HDR_COMPRESSION_TYPE)
        return was->header_length;
    return MAX(whole, was->header_length);
}

/* Makes the new cluster `b`, which holds a copy of the old one. */
static int build(const struct qcow2 *q, const uint8_t *old, uint8_t *b, struct qcow2_header *h,
                 const struct qcow2_strings *s)
{
    const struct qcow2_header *was = &q->header;
    struct fill f = { .b = b, .size = q->cluster_size };
    uint8_t fixed[112];
    bool features = false;
    uint64_t old_end;

    h->header_length = new_length(was, h);
    f.at = MIN(h->header_length, (uint32_t)sizeof(fixed));
    put_later_fields(&f, old, was, h);
    if (s->backing && s->backing_format && s->backing_format[0])
        put_extension(&f, QCOW2_EXT_BACKING, s->backing_format,
                      (uint32_t)strlen(s->backing_format));
    if (s->data_file)
        put_extension(&f, QCOW2_EXT_DATA_FILE, s->data_file, (uint32_t)strlen(s->data_file));
    int ret = copy_extensions(&f, old, q, h, s, &features, &old_end);
    if (ret < 0)
        return ret;
    uint64_t name = s->backing ? strlen(s->backing) : 0;
    uint8_t table[QCOW2_FEATURE_NAMES];
    /* The names are a service to readers, so they go where there is room. */
    if (h->version >= 3 && was->version < 3 && !features && !f.full &&
        f.at + 16 + sizeof(table) + name <= f.size) {
        qcow2_feature_names(table);
        put_extension(&f, QCOW2_EXT_FEATURES, table, sizeof(table));
    }
    put_extension(&f, QCOW2_EXT_END, NULL, 0);
    h->backing_offset = name ? f.at : 0;
    h->backing_size = (uint32_t)name;
    put(&f, s->backing, name);
    if (f.full)
        return -ENOSPC;
    if (was->backing_offset)
        old_end = MAX(old_end, was->backing_offset + was->backing_size);
    if (f.at < old_end)
        memset(b + f.at, 0, old_end - f.at);
    memcpy(b, fixed, qcow2_header_build(h, fixed));
    return 0;
}

/* One write from the first byte that differs to the last. */
static int write_difference(struct qcow2 *q, const uint8_t *old, const uint8_t *b)
{
    uint64_t from = 0, to = q->cluster_size;

    while (from < to && old[from] == b[from])
        from++;
    while (to > from && old[to - 1] == b[to - 1])
        to--;
    int ret = from < to ? blk_write(q->file, from, b + from, to - from, 0) : 0;
    return ret < 0 ? ret : blk_flush(q->file);
}

static int refuse(struct qcow2 *q, int ret, const struct qcow2_strings *s, struct error **err)
{
    const char *name = blk_filename(q->node);

    if (ret == -ENOSPC)
        return error_set(err, ENOSPC,
                         "%s: the backing file name of %zu bytes does not fit into the header's "
                         "cluster of %u bytes beside what is there",
                         name, s->backing ? strlen(s->backing) : 0, q->cluster_size);
    return error_set(err, -ret, "%s: a header extension is longer than the header's cluster", name);
}

int qcow2_header_rewrite(struct qcow2 *q, const struct qcow2_header *h,
                         const struct qcow2_strings *s, struct error **err)
{
    struct qcow2_header now = *h;
    _cleanup_free_ uint8_t *old = calloc(1, q->cluster_size);
    _cleanup_free_ uint8_t *b = malloc(q->cluster_size);

    if (!old || !b)
        return error_set(err, ENOMEM, "out of memory");
    int ret = blk_read(q->file, 0, old, MIN(blk_size(q->file), (uint64_t)q->cluster_size), 0);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the header: %s", blk_filename(q->node),
                         strerror(-ret));
    memcpy(b, old, q->cluster_size);
    ret = build(q, old, b, &now, s);
    if (ret < 0)
        return refuse(q, ret, s, err);
    ret = write_difference(q, old, b);
    if (ret < 0) {
        node_set_failed(q->node); /* which of the two headers is on the disk is unknown */
        return error_set(err, -ret, "%s: could not write the header: %s", blk_filename(q->node),
                         strerror(-ret));
    }
    WRLOCK_SCOPE(&q->lock);
    q->header = now;
    q->version = now.version;
    return 0;
}

/* ---- another backing file ------------------------------------------------------------------------------- */

static int check_names(struct qcow2 *q, const char *filename, const char *format,
                       struct error **err)
{
    const char *name = blk_filename(q->node);

    if (filename && strlen(filename) > QCOW2_MAX_BACKING_NAME)
        return error_set(err, EINVAL, "%s: the backing file name has %zu bytes, the limit is %d",
                         name, strlen(filename), QCOW2_MAX_BACKING_NAME);
    if (format && strlen(format) > MAX_FORMAT)
        return error_set(err, EINVAL, "%s: the backing format '%s' has %zu bytes, the limit is %d",
                         name, format, strlen(format), MAX_FORMAT);
    if (filename && (q->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA))
        return error_set(err, EINVAL,
                         "%s: its data file is a raw image by itself, so it cannot have a "
                         "backing file",
                         name);
    return 0;
}

int qcow2_change_backing(struct blk_node *n, const char *filename, const char *format,
                         struct error **err)
{
    struct qcow2 *q = node_state(n);
    struct qcow2_strings s = { .backing = filename, .backing_format = format };
    int ret = check_names(q, filename, format, err);

    if (ret < 0)
        return ret;
    ret = qcow2_commit(q, true);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not write its metadata: %s", blk_filename(n),
                         strerror(-ret));
    return qcow2_header_rewrite(q, &q->header, &s, err);
}
