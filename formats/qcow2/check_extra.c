/* Counting what is not the active disk: snapshots, bitmaps, an encryption header, and the refcount
 * structure itself.
 *
 * Tables of snapshots and bitmaps do not overlap in a good image, so together they are no longer than
 * the file: the budget that keeps a bad one from sending us through the same bytes for ever (C3).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "bitmap.h"
#include "check.h"

enum {
    SNAPSHOT_FIXED = 40, /* bytes of a snapshot table entry before what varies */
    SNAPSHOT_EXTRA_MAX = 1024,
    SNAPSHOTS_MAX = 64 << 20, /* bytes of the whole table */
    BITMAP_PIECE = 1 << 20,
};

static bool spend(struct qcheck *c, uint64_t bytes)
{
    if (bytes > c->budget)
        return false;
    c->budget -= bytes;
    return true;
}

/* ---- snapshots --------------------------------------------------------------------------------------- */

struct snapshot {
    uint64_t l1_offset, length; /* length: of its entry in the table */
    uint32_t l1_size;
    char name[64]; /* "ID (NAME)", cut short */
};

/* 0; -ENODATA: the entry is not all there. */
static int read_snapshot(struct qcheck *c, uint64_t at, struct snapshot *s)
{
    uint8_t b[SNAPSHOT_FIXED], text[48] = { 0 };

    if (qcheck_outside(c, at, SNAPSHOT_FIXED) || at + SNAPSHOT_FIXED > c->file_len)
        return -ENODATA;
    int ret = qcheck_read(c, at, b, sizeof(b));
    if (ret < 0)
        return ret;
    uint32_t id = load_be16(b + 12), name = load_be16(b + 14), extra = load_be32(b + 36);
    *s = (struct snapshot){
        .l1_offset = load_be64(b),
        .l1_size = load_be32(b + 8),
        .length = align_up((uint64_t)SNAPSHOT_FIXED + extra + id + name, 8),
    };
    if (extra > SNAPSHOT_EXTRA_MAX || s->length > c->file_len - at + 8)
        return -ENODATA;
    uint32_t shown = MIN(id + name, (uint32_t)sizeof(text));
    ret = qcheck_read(c, at + SNAPSHOT_FIXED + extra, text, shown);
    if (ret < 0)
        return ret;
    int id_shown = (int)MIN(id, shown);
    snprintf(s->name, sizeof(s->name), "%.*s (%.*s)", MIN(id_shown, 20), (const char *)text,
             MIN((int)shown - id_shown, 20), (const char *)text + id_shown);
    return 0;
}

static int snapshot_l1(struct qcheck *c, const struct snapshot *s)
{
    uint64_t bytes = (uint64_t)s->l1_size * 8;

    if (s->l1_offset % c->size) {
        qcheck_finding(c, false,
                       "snapshot %s l1_offset=%#" PRIx64 ": L1 table is not cluster "
                       "aligned; snapshot table entry corrupted",
                       s->name, s->l1_offset);
    } else if (bytes > QCOW2_MAX_L1_BYTES) {
        qcheck_finding(c, false,
                       "snapshot %s l1_size=%#" PRIx32 ": L1 table is too large; "
                       "snapshot table entry corrupted",
                       s->name, s->l1_size);
    } else if (!spend(c, bytes)) {
        qcheck_finding(c, false, "snapshot %s: the L1 tables are longer than the file", s->name);
    } else if (qcheck_count(c, s->l1_offset, bytes)) {
        int ret = qcheck_protect(c, QCHECK_INACTIVE_L1, s->l1_offset, bytes);
        return ret < 0 ? ret : qcheck_inactive(c, s->l1_offset, s->l1_size);
    }
    c->lost_snapshot = true;
    return 0;
}

int qcheck_snapshots(struct qcheck *c)
{
    const struct qcow2_header *h = &c->q->header;
    uint64_t at = h->snapshots_offset, start = at;
    int ret = 0;

    if (h->nb_snapshots == 0)
        return 0;
    for (uint32_t i = 0; i < h->nb_snapshots && ret == 0; i++) {
        struct snapshot s;
        ret = read_snapshot(c, at, &s);
        if (ret == -ENODATA || (ret == 0 && at - start > SNAPSHOTS_MAX)) {
            qcheck_finding(c, false, "snapshot table entry %" PRIu32 " is incomplete", i);
            c->lost_snapshot = true;
            at += SNAPSHOT_FIXED;
            ret = 0;
            break;
        }
        if (ret == 0) {
            ret = snapshot_l1(c, &s);
            at += s.length;
        }
    }
    if (qcheck_count(c, start, at - start) && ret == 0)
        ret = qcheck_protect(c, QCHECK_SNAPSHOTS, start, at - start);
    return ret;
}

/* ---- header extensions --------------------------------------------------------------------------------- */

static int bitmap_table(struct qcheck *c, uint64_t offset, uint64_t entries)
{
    _cleanup_free_ uint8_t *piece = malloc(BITMAP_PIECE);

    if (!piece)
        return -ENOMEM;
    for (uint64_t at = 0; at < entries * 8; at += BITMAP_PIECE) {
        size_t len = (size_t)MIN(entries * 8 - at, (uint64_t)BITMAP_PIECE);
        if (qcheck_hole(c, offset + at, len))
            continue;
        int ret = qcheck_read(c, offset + at, piece, len);
        if (ret < 0)
            return ret;
        for (size_t i = 0; i < len; i += 8) {
            uint64_t host = load_be64(piece + i) & QCOW2_BITMAP_OFFSET;
            if (host)
                qcheck_count(c, host, c->size);
        }
    }
    return 0;
}

static int bitmap_directory(struct qcheck *c, const uint8_t *dir, uint64_t len)
{
    for (uint64_t at = 0; at + QCOW2_BITMAP_ENTRY <= len;) {
        const uint8_t *b = dir + at;
        uint64_t offset = load_be64(b), entries = load_be32(b + 8);
        if (offset % c->size || entries > QCOW2_BITMAP_TABLE_MAX || !spend(c, entries * 8)) {
            qcheck_finding(c, false,
                           "bitmap table offset=%#" PRIx64 " size=%" PRIu64
                           ": bitmap directory entry corrupted",
                           offset, entries);
        } else if (entries && qcheck_count(c, offset, entries * 8)) {
            int ret = bitmap_table(c, offset, entries);
            if (ret < 0)
                return ret;
        }
        at += align_up((uint64_t)QCOW2_BITMAP_ENTRY + load_be16(b + 18) + load_be32(b + 20), 8);
    }
    return 0;
}

static int bitmaps(struct qcheck *c, const uint8_t *ext, uint32_t len)
{
    if (len < 24 || !(c->q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0; /* without the bit they are not valid and whoever writes next drops them */
    uint64_t dir_len = load_be64(ext + 8), offset = load_be64(ext + 16);
    if (dir_len > QCOW2_BITMAP_DIRECTORY_MAX || offset % c->size) {
        qcheck_finding(c, false,
                       "bitmap directory offset=%#" PRIx64 " size=%" PRIu64
                       ": bitmaps extension corrupted",
                       offset, dir_len);
        return 0;
    }
    if (!qcheck_count(c, offset, dir_len))
        return 0;
    _cleanup_free_ uint8_t *dir = malloc(dir_len ? dir_len : 1);
    if (!dir)
        return -ENOMEM;
    int ret = qcheck_read(c, offset, dir, dir_len);
    return ret < 0 ? ret : bitmap_directory(c, dir, dir_len);
}

int qcheck_extensions(struct qcheck *c)
{
    const struct qcow2_header *h = &c->q->header;
    uint64_t end = h->backing_offset ? h->backing_offset : c->size;
    int ret = qcheck_read(c, 0, c->table, c->size);

    if (ret < 0)
        return ret;
    _cleanup_free_ uint8_t *b = malloc(c->size);
    if (!b)
        return -ENOMEM;
    memcpy(b, c->table, c->size);
    for (uint64_t at = h->header_length; ret == 0 && at + 8 <= end;) {
        uint32_t type = load_be32(b + at), len = load_be32(b + at + 4);
        if (type == QCOW2_EXT_END || len > end - at - 8)
            break;
        if (type == QCOW2_EXT_BITMAPS)
            ret = bitmaps(c, b + at + 8, len);
        if (type == QCOW2_EXT_ENCRYPTION && len >= 16)
            qcheck_count(c, load_be64(b + at + 8), load_be64(b + at + 16));
        at += 8 + align_up(len, 8);
    }
    return ret;
}

/* ---- the refcount structure ------------------------------------------------------------------------------ */

static uint64_t reftable_bytes(const struct qcheck *c)
{
    return (uint64_t)c->q->header.reftable_clusters << c->bits;
}

/* What of the table can be counted: the place of block i, 0 when there is none or it is wrong. */
static uint64_t block_place(const struct qcheck *c, uint32_t i)
{
    uint64_t e = c->q->reftable[i];

    if ((e & RTE_RESERVED) || e % c->size || e >> c->bits >= c->clusters)
        return 0;
    return e;
}

static int count_block(struct qcheck *c, uint32_t i)
{
    uint64_t e = c->q->reftable[i], place = e & RTE_OFFSET;

    if (e == 0)
        return 0;
    if (e & RTE_RESERVED) {
        qcheck_finding(c, false, "refcount table entry %" PRIu32 " has reserved bits set", i);
    } else if (place % c->size) {
        qcheck_finding(c, false,
                       "refcount block %" PRIu32 " is not cluster aligned; refcount "
                       "table entry corrupted",
                       i);
    } else if (place >> c->bits >= c->clusters) {
        bool mend = qcheck_fixes(c, BLK_FIX_ERRORS);
        qcheck_finding(c, mend, "refcount block %" PRIu32 " is outside image", i);
        c->rebuild = c->rebuild || mend; /* -r leaks can do without */
        c->rebuild_findings += !mend;
        return 0;
    } else {
        qcheck_count(c, place, c->size);
        uint64_t n = MIN(qrefs_get(&c->refs, place >> c->bits), c->q->refcount_max);
        if (n == 1)
            return qcheck_protect(c, QCHECK_REFBLOCK, place, c->size);
        qcheck_finding(c, false, "refcount block %" PRIu32 " refcount=%" PRIu64, i, n);
    }
    c->rebuild_findings++;
    c->rebuild = true;
    return 0;
}

int qcheck_refcount_structure(struct qcheck *c)
{
    const struct qcow2_header *h = &c->q->header;
    int ret = 0;

    if (qcheck_count(c, h->reftable_offset, reftable_bytes(c)))
        ret = qcheck_protect(c, QCHECK_REFTABLE, h->reftable_offset, reftable_bytes(c));
    for (uint32_t i = 0; i < c->q->reftable_entries && ret == 0; i++)
        ret = count_block(c, i);
    return ret;
}

void qcheck_uncount_refcounts(struct qcheck *c)
{
    const struct qcow2_header *h = &c->q->header;
    uint64_t bytes = reftable_bytes(c);

    if (bytes && !qcheck_outside(c, h->reftable_offset, bytes))
        for (uint64_t i = 0; i < h->reftable_clusters; i++)
            qrefs_sub(&c->refs, (h->reftable_offset >> c->bits) + i);
    for (uint32_t i = 0; i < c->q->reftable_entries; i++)
        if (block_place(c, i))
            qrefs_sub(&c->refs, block_place(c, i) >> c->bits);
}
