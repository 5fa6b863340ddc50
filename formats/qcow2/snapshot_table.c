/* The table of internal snapshots (Spec, snapshots). */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json_text.h"
#include "base/macros.h"
#include "base/round.h"
#include "snapshot.h"

#define FIXED     40
#define MAX_EXTRA 1024
#define MAX_TABLE (UINT64_C(64) << 20)
#define MAX_ENTRY (FIXED + MAX_EXTRA + 2 * 65535 + 7)
/* The extra data that we understand: vm state size, disk size, instruction count. */
#define KNOWN_EXTRA 24u

/* ---- reading ------------------------------------------------------------------------------------------ */

/* A window of the file that moves along the table. */
struct window {
    uint64_t at, len; /* what of the file is in buf */
    uint8_t *buf;
};
enum { WINDOW = 256 << 10 };

/* `len` bytes at `at`: at most MAX_ENTRY. NULL: *ret says why. */
static const uint8_t *look_at(struct qcow2 *q, struct window *w, uint64_t at, uint64_t len,
                              int *ret)
{
    if (at < w->at || at + len > w->at + w->len) {
        uint64_t size = blk_size(q->file);
        if (at > size || len > size - at) {
            *ret = -ENODATA;
            return NULL;
        }
        w->at = at;
        w->len = MIN((uint64_t)WINDOW, size - at);
        *ret = blk_read(q->file, at, w->buf, w->len, 0);
        if (*ret < 0) {
            w->len = 0;
            return NULL;
        }
    }
    return w->buf + (at - w->at);
}

static char *copy_text(const uint8_t *b, size_t len)
{
    char *text = malloc(len + 1);
    if (text) {
        memcpy(text, b, len);
        text[len] = '\0';
    }
    return text;
}

static void parse_fixed(const struct qcow2 *q, const uint8_t *b, struct qcow2_snapshot *s,
                        uint32_t *extra)
{
    *s = (struct qcow2_snapshot){
        .l1_offset = load_be64(b),
        .l1_size = load_be32(b + 8),
        .id_len = load_be16(b + 12),
        .name_len = load_be16(b + 14),
        .date_sec = load_be32(b + 16),
        .date_nsec = load_be32(b + 20),
        .vm_clock = load_be64(b + 24),
        .vm_state = load_be32(b + 32),
        .disk_size = q->header.size,
        .icount = UINT64_MAX,
    };
    *extra = load_be32(b + 36);
}

static int parse_rest(const uint8_t *b, uint32_t extra, struct qcow2_snapshot *s)
{
    if (extra >= 8)
        s->vm_state = load_be64(b);
    if (extra >= 16)
        s->disk_size = load_be64(b + 8);
    if (extra >= 24)
        s->icount = load_be64(b + 16);
    if (extra > KNOWN_EXTRA) {
        s->unknown_len = extra - KNOWN_EXTRA;
        s->unknown = malloc(s->unknown_len);
        if (s->unknown)
            memcpy(s->unknown, b + KNOWN_EXTRA, s->unknown_len);
    }
    s->id = copy_text(b + extra, s->id_len);
    s->name = copy_text(b + extra + s->id_len, s->name_len);
    return s->id && s->name && (s->unknown || !s->unknown_len) ? 0 : -ENOMEM;
}

static int check_entry(struct qcow2 *q, unsigned i, const struct qcow2_snapshot *s, uint32_t extra,
                       struct error **err)
{
    const char *name = blk_filename(q->file);

    if (extra > MAX_EXTRA)
        return error_set(err, EFBIG, "%s: snapshot %u has %u bytes of extra data, the limit is %d",
                         name, i, extra, MAX_EXTRA);
    if ((uint64_t)s->l1_size * 8 > QCOW2_MAX_L1_BYTES)
        return error_set(err, EFBIG,
                         "%s: the L1 table of snapshot %u has %u entries, the limit is "
                         "%d",
                         name, i, s->l1_size, QCOW2_MAX_L1_BYTES / 8);
    if (in_cluster(q, s->l1_offset) || s->l1_offset > INT64_MAX)
        return error_set(err, EINVAL,
                         "%s: the L1 table of snapshot %u is at %#" PRIx64
                         ", which is not cluster aligned",
                         name, i, s->l1_offset);
    return 0;
}

/* Entry number i at *at, which moves on. */
static int load_one(struct qcow2 *q, struct window *w, unsigned i, uint64_t *at,
                    struct qcow2_snapshot *s, struct error **err)
{
    uint32_t extra;
    int ret = 0;
    const uint8_t *b = look_at(q, w, *at, FIXED, &ret);

    if (b) {
        parse_fixed(q, b, s, &extra);
        ret = check_entry(q, i, s, extra, err);
        if (ret < 0)
            return ret;
        uint64_t rest = (uint64_t)extra + s->id_len + s->name_len;
        b = look_at(q, w, *at + FIXED, rest, &ret);
        *at += align_up(FIXED + rest, 8);
    }
    if (b)
        ret = parse_rest(b, extra, s);
    if (ret == -ENODATA)
        return error_set(err, EINVAL, "%s: snapshot %u of %u lies behind the end of the file",
                         blk_filename(q->file), i, q->header.nb_snapshots);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read snapshot %u: %s", blk_filename(q->file), i,
                         strerror(-ret));
    return 0;
}

int qcow2_snapshots_load(struct qcow2 *q, qcow2_snapshot_list *out, struct error **err)
{
    uint64_t at = q->header.snapshots_offset, start = at;
    struct window w = { 0 };
    int ret = 0;

    q->snapshots_len = 0;
    if (q->header.nb_snapshots == 0)
        return 0;
    _cleanup_free_ uint8_t *buf = malloc(WINDOW);
    if (!buf)
        return error_set(err, ENOMEM, "out of memory");
    w.buf = buf;
    for (unsigned i = 0; i < q->header.nb_snapshots && ret == 0; i++) {
        struct qcow2_snapshot s = { 0 };
        ret = load_one(q, &w, i, &at, &s, err);
        if (ret == 0 && at - start > MAX_TABLE)
            ret = error_set(err, EFBIG, "%s: the snapshot table is longer than 64 MiB",
                            blk_filename(q->file));
        if (ret == 0 && vector_push(out, s) < 0)
            ret = error_set(err, ENOMEM, "out of memory");
        if (ret < 0)
            qcow2_snapshot_free(&s);
    }
    q->snapshots_len = at - start;
    return ret;
}

void qcow2_snapshot_free(struct qcow2_snapshot *s)
{
    free(s->id);
    free(s->name);
    free(s->unknown);
    *s = (struct qcow2_snapshot){ 0 };
}

void qcow2_snapshots_free(qcow2_snapshot_list *list)
{
    for (size_t i = 0; i < list->len; i++)
        qcow2_snapshot_free(&list->at[i]);
    vector_free(list);
}

/* ---- describing ----------------------------------------------------------------------------------------- */

static json_t *describe(const struct qcow2_snapshot *s)
{
    /* Any bytes make a name, here. */
    json_t *o =
        json_pack("{s:o, s:o, s:I, s:I, s:I, s:I, s:I}", "id", json_textn(s->id, s->id_len), "name",
                  json_textn(s->name, s->name_len), "vm-state-size", (json_int_t)s->vm_state,
                  "date-sec", (json_int_t)s->date_sec, "date-nsec", (json_int_t)s->date_nsec,
                  "vm-clock-sec", (json_int_t)(s->vm_clock / 1000000000), "vm-clock-nsec",
                  (json_int_t)(s->vm_clock % 1000000000));
    if (o && s->icount != UINT64_MAX)
        json_object_set_new(o, "icount", json_integer((json_int_t)s->icount));
    return o;
}

int qcow2_snapshots_read(struct qcow2 *q, json_t *out, struct error **err)
{
    qcow2_snapshot_list list = VECTOR_INIT;
    int ret = qcow2_snapshots_load(q, &list, err);

    for (size_t i = 0; out && i < list.len && ret == 0; i++)
        if (json_array_append_new(out, describe(&list.at[i])) < 0)
            ret = error_set(err, ENOMEM, "out of memory");
    qcow2_snapshots_free(&list);
    return ret;
}

/* ---- writing ---------------------------------------------------------------------------------------------- */

static uint64_t entry_length(const struct qcow2_snapshot *s)
{
    return align_up((uint64_t)FIXED + KNOWN_EXTRA + s->unknown_len + s->id_len + s->name_len, 8);
}

static void build(const struct qcow2_snapshot *s, uint8_t *b)
{
    store_be64(b, s->l1_offset);
    store_be32(b + 8, s->l1_size);
    store_be16(b + 12, s->id_len);
    store_be16(b + 14, s->name_len);
    store_be32(b + 16, s->date_sec);
    store_be32(b + 20, s->date_nsec);
    store_be64(b + 24, s->vm_clock);
    store_be32(b + 32, s->vm_state <= UINT32_MAX ? (uint32_t)s->vm_state : 0);
    store_be32(b + 36, KNOWN_EXTRA + s->unknown_len);
    b += FIXED;
    store_be64(b, s->vm_state);
    store_be64(b + 8, s->disk_size);
    store_be64(b + 16, s->icount);
    b += KNOWN_EXTRA;
    if (s->unknown_len)
        memcpy(b, s->unknown, s->unknown_len);
    memcpy(b + s->unknown_len, s->id, s->id_len);
    memcpy(b + s->unknown_len + s->id_len, s->name, s->name_len);
}

int qcow2_snapshots_write(struct qcow2 *q, const qcow2_snapshot_list *list,
                          struct qcow2_header *next, uint64_t *length)
{
    uint64_t len = 0, host = 0;

    next->nb_snapshots = (uint32_t)list->len;
    next->snapshots_offset = 0;
    for (size_t i = 0; i < list->len; i++)
        len += entry_length(&list->at[i]);
    *length = len;
    if (len > MAX_TABLE || list->len > QCOW2_MAX_SNAPSHOTS)
        return -EFBIG;
    if (len == 0)
        return 0;
    uint64_t bytes = cluster_up(q, len);
    _cleanup_free_ uint8_t *table = calloc(1, bytes);
    if (!table)
        return -ENOMEM;
    for (size_t i = 0, at = 0; i < list->len; i++) {
        build(&list->at[i], table + at);
        at += entry_length(&list->at[i]);
    }
    int ret = qcow2_write_new_table(q, table, bytes, &host);
    if (ret == 0)
        next->snapshots_offset = host;
    return ret;
}
