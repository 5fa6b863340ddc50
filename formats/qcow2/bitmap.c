/* Persistent dirty bitmaps: read. QEMU's document qcow2.txt, "Bitmaps extension" and "Bitmaps".
 *
 * An image that has some opens for reading only, since whoever writes would have to keep them up; so they stand still
 * as long as the node is open.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json_text.h"
#include "base/macros.h"
#include "base/round.h"
#include "bitmap.h"
#include "internal.h"

#define MEMORY_MAX (UINT64_C(256) << 20) /* bytes of one bitmap that are kept */

struct entry {
    uint64_t table;
    uint32_t table_size; /* entries */
    uint32_t flags;
    unsigned granularity_bits;
    const uint8_t *name;
    size_t name_len;
};

static int bad(struct qcow2 *q, const char *what, struct error **err)
{
    return error_set(err, EINVAL, "%s: the directory of bitmaps is damaged: %s",
                     blk_filename(q->file), what);
}

/* Bytes past the end of the file read as zeroes, which would mean something. */
static bool inside(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t end = blk_size(q->file);
    return offset % q->cluster_size == 0 && offset <= end && length <= end - offset;
}

/* ---- the directory -------------------------------------------------------------------------------------- */

/* *dir NULL: there are none. */
static int read_directory(struct qcow2 *q, uint8_t **dir, uint64_t *len, struct error **err)
{
    uint8_t ext[QCOW2_BITMAPS_EXT];
    int ret;

    *dir = NULL;
    if (!(q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0; /* somebody wrote without keeping them up */
    ret = qcow2_read_extension(q->file, &q->header, QCOW2_EXT_BITMAPS, ext, sizeof(ext), err);
    if (ret <= 0)
        return ret;
    uint64_t size = load_be64(ext + 8), offset = load_be64(ext + 16);
    if (ret < QCOW2_BITMAPS_EXT || size > QCOW2_BITMAP_DIRECTORY_MAX || !inside(q, offset, size))
        return bad(q, "its place or its size", err);
    uint8_t *b = malloc(size ? size : 1);
    if (!b)
        return error_set(err, ENOMEM, "out of memory");
    ret = blk_read(q->file, offset, b, size, 0);
    if (ret < 0) {
        free(b);
        return error_set(err, -ret, "%s: could not read the directory of bitmaps: %s",
                         blk_filename(q->file), strerror(-ret));
    }
    *dir = b;
    *len = size;
    return 0;
}

/* The entry at *at, which moves to the next; 1, 0 at the end, or a negative errno. */
static int next_entry(struct qcow2 *q, const uint8_t *dir, uint64_t len, uint64_t *at,
                      struct entry *out, struct error **err)
{
    const uint8_t *b = dir + *at;

    if (len - *at < QCOW2_BITMAP_ENTRY)
        return len == *at ? 0 : bad(q, "it ends within an entry", err);
    uint64_t name = load_be16(b + 18), extra = load_be32(b + 20);
    uint64_t size = round_up(QCOW2_BITMAP_ENTRY + extra + name, 8);
    if (size > len - *at)
        return bad(q, "an entry leaves it", err);
    *out = (struct entry){
        .table = load_be64(b),
        .table_size = load_be32(b + 8),
        .flags = load_be32(b + 12),
        .granularity_bits = b[17],
        .name = b + QCOW2_BITMAP_ENTRY + extra,
        .name_len = name,
    };
    if (out->granularity_bits > 62 || b[16] != 1)
        return bad(q, "a bitmap of a kind that is not known", err);
    *at += size;
    return 1;
}

static json_t *describe(const struct entry *e)
{
    json_t *flags = json_array();

    if (flags && (e->flags & QCOW2_BITMAP_IN_USE))
        json_array_append_new(flags, json_string("in-use"));
    if (flags && (e->flags & QCOW2_BITMAP_AUTO))
        json_array_append_new(flags, json_string("auto"));
    return json_pack("{s:o, s:o, s:I}", "flags", flags, "name",
                     json_textn((const char *)e->name, e->name_len), "granularity",
                     (json_int_t)1 << e->granularity_bits);
}

json_t *qcow2_bitmaps_json(struct qcow2 *q)
{
    _cleanup_free_ uint8_t *dir = NULL;
    uint64_t len = 0, at = 0;
    struct entry e;

    if (read_directory(q, &dir, &len, NULL) < 0 || !dir)
        return NULL;
    json_t *list = json_array();
    while (list && next_entry(q, dir, len, &at, &e, NULL) > 0)
        json_array_append_new(list, describe(&e));
    if (json_array_size(list) > 0)
        return list;
    json_decref(list);
    return NULL;
}

/* ---- the bits -------------------------------------------------------------------------------------------- */

static int read_cluster(struct qcow2 *q, uint64_t host, uint8_t *buf, struct bitmap *bits,
                        uint64_t first, uint64_t count)
{
    int ret = blk_read(q->file, host, buf, q->cluster_size, 0);

    for (uint64_t i = 0; i < count && ret == 0; i++)
        if (buf[i / 8] >> (i % 8) & 1)
            bitmap_set(bits, first + i);
    return ret;
}

/* Each entry of the table is a cluster of bits, or says that all of them are clear or set. */
static int read_bits(struct qcow2 *q, const uint8_t *table, const struct entry *e,
                     struct bitmap *bits, struct error **err)
{
    uint64_t each = (uint64_t)q->cluster_size * 8;
    _cleanup_free_ uint8_t *buf = malloc(q->cluster_size);

    if (!buf)
        return error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < e->table_size; i++) {
        uint64_t entry = load_be64(table + 8 * (size_t)i), host = entry & QCOW2_BITMAP_OFFSET;
        uint64_t first = i * each, count = MIN(each, bits->bits - first);
        int ret = 0;
        if ((entry & ~(QCOW2_BITMAP_OFFSET | 1)) || (host && (entry & 1)) ||
            (host && !inside(q, host, q->cluster_size)))
            return bad(q, "an entry of a bitmap's table", err);
        if (host)
            ret = read_cluster(q, host, buf, bits, first, count);
        else if (entry & 1)
            bitmap_set_range(bits, first, count);
        if (ret < 0)
            return error_set(err, -ret, "%s: could not read a bitmap: %s", blk_filename(q->file),
                             strerror(-ret));
    }
    return 0;
}

static int load(struct qcow2 *q, const char *name, const struct entry *e, struct bitmap *bits,
                struct error **err)
{
    uint64_t count = div_round_up(q->header.size, UINT64_C(1) << e->granularity_bits);
    uint64_t clusters = div_round_up(count, (uint64_t)q->cluster_size * 8);

    if (e->flags & QCOW2_BITMAP_IN_USE)
        return error_set(err, EBUSY,
                         "%s: the bitmap '%s' is inconsistent: whoever wrote last did not save it",
                         blk_filename(q->file), name);
    if (count / 8 > MEMORY_MAX)
        return error_set(err, EFBIG, "%s: the bitmap '%s' has %" PRIu64 " bits, which are too many",
                         blk_filename(q->file), name, count);
    if (e->table_size != clusters || !inside(q, e->table, 8 * clusters))
        return bad(q, "a bitmap's table does not fit the disk", err);
    _cleanup_free_ uint8_t *table = malloc(e->table_size ? 8 * (size_t)e->table_size : 1);
    if (!table || bitmap_init(bits, count) < 0)
        return error_set(err, ENOMEM, "out of memory");
    int ret = blk_read(q->file, e->table, table, 8 * (size_t)e->table_size, 0);
    if (ret < 0)
        ret = error_set(err, -ret, "%s: could not read a bitmap's table: %s", blk_filename(q->file),
                        strerror(-ret));
    else
        ret = read_bits(q, table, e, bits, err);
    if (ret < 0)
        bitmap_free(bits);
    return ret;
}

int qcow2_bitmap_load(struct blk_node *n, const char *name, struct bitmap *bits,
                      unsigned *granularity_bits, struct error **err)
{
    struct qcow2 *q = node_state(n);
    _cleanup_free_ uint8_t *dir = NULL;
    uint64_t len = 0, at = 0;
    struct entry e;
    int ret = read_directory(q, &dir, &len, err);

    if (ret < 0)
        return ret;
    while (dir && (ret = next_entry(q, dir, len, &at, &e, err)) > 0)
        if (e.name_len == strlen(name) && !memcmp(e.name, name, e.name_len)) {
            *granularity_bits = e.granularity_bits;
            return load(q, name, &e, bits, err);
        }
    return ret < 0
               ? ret
               : error_set(err, ENOENT, "%s: there is no bitmap '%s'", blk_filename(q->file), name);
}
