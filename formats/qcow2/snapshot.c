/* The table of internal snapshots (Spec, snapshots): read, not changed. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

#define FIXED     40
#define MAX_EXTRA 1024
#define MAX_TABLE (UINT64_C(64) << 20)

struct snapshot {
    uint32_t date_sec, date_nsec, l1_size, extra;
    uint64_t l1_offset, vm_clock, vm_state, icount;
    uint16_t id_len, name_len;
    uint64_t length; /* in the table, padding included */
};

static void parse(const uint8_t *b, struct snapshot *s)
{
    *s = (struct snapshot){
        .l1_offset = load_be64(b),
        .l1_size = load_be32(b + 8),
        .id_len = load_be16(b + 12),
        .name_len = load_be16(b + 14),
        .date_sec = load_be32(b + 16),
        .date_nsec = load_be32(b + 20),
        .vm_clock = load_be64(b + 24),
        .vm_state = load_be32(b + 32),
        .icount = UINT64_MAX,
        .extra = load_be32(b + 36),
    };
    s->length = (FIXED + (uint64_t)s->extra + s->id_len + s->name_len + 7) & ~UINT64_C(7);
}

static int read_one(struct qcow2 *q, uint64_t at, unsigned i, struct snapshot *s, uint8_t *b,
                    struct error **err)
{
    const char *name = blk_filename(q->file);
    int ret = blk_read(q->file, at, b, FIXED, 0);

    if (ret < 0)
        return error_set(err, -ret, "%s: could not read snapshot %u: %s", name, i, strerror(-ret));
    parse(b, s);
    if (s->extra > MAX_EXTRA)
        return error_set(err, EFBIG, "%s: snapshot %u has %u bytes of extra data, the limit is %d",
                         name, i, s->extra, MAX_EXTRA);
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
    ret = blk_read(q->file, at + FIXED, b, s->length - FIXED, 0);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read snapshot %u: %s", name, i, strerror(-ret));
    if (s->extra >= 8)
        s->vm_state = load_be64(b);
    if (s->extra >= 24)
        s->icount = load_be64(b + 16);
    return 0;
}

static json_t *describe(const struct snapshot *s, const uint8_t *rest)
{
    const char *id = (const char *)rest + s->extra;
    json_t *o =
        json_pack("{s:o, s:o, s:I, s:I, s:I, s:I, s:I}", "id", json_stringn(id, s->id_len), "name",
                  json_stringn(id + s->id_len, s->name_len), "vm-state-size",
                  (json_int_t)s->vm_state, "date-sec", (json_int_t)s->date_sec, "date-nsec",
                  (json_int_t)s->date_nsec, "vm-clock-sec", (json_int_t)(s->vm_clock / 1000000000),
                  "vm-clock-nsec", (json_int_t)(s->vm_clock % 1000000000));
    if (o && s->icount != UINT64_MAX)
        json_object_set_new(o, "icount", json_integer((json_int_t)s->icount));
    return o;
}

int qcow2_snapshots_read(struct qcow2 *q, json_t *list, struct error **err)
{
    uint64_t at = q->header.snapshots_offset, start = at;
    _cleanup_free_ uint8_t *b = malloc(FIXED + MAX_EXTRA + 2 * 65536);

    if (!b)
        return error_set(err, ENOMEM, "out of memory");
    for (unsigned i = 0; i < q->header.nb_snapshots; i++) {
        struct snapshot s = { 0 };
        int ret = read_one(q, at, i, &s, b, err);
        if (ret < 0)
            return ret;
        at += s.length;
        if (at - start > MAX_TABLE)
            return error_set(err, EFBIG, "%s: the snapshot table is longer than 64 MiB",
                             blk_filename(q->file));
        json_t *o = list ? describe(&s, b) : NULL;
        if (list && (!o || json_array_append_new(list, o) < 0))
            return error_set(err, EINVAL, "%s: the name of snapshot %u is not UTF-8",
                             blk_filename(q->file), i);
    }
    return 0;
}
