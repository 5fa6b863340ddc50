/* The log as it was found (Spec 2.3): a ring of entries, each of which says what pages of metadata are to become.
 *
 * An entry counts when its checksum is right and it bears the header's log GUID. Entries whose numbers follow each
 * other are a sequence; it is whole when the newest entry's tail is one of its entries. The whole sequence with
 * the highest numbers is the active one: from its tail on, it is replayed.
 *
 * Nothing in a log is believed before it is checked: entries can claim to be as long as the ring and overlap, so that
 * there is a limit to the bytes that are summed; what they change lies in metadata, inside the file.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "crc32c.h"
#include "vhdx.h"

/* Twice what the largest disk takes: no file has to become longer. */
#define MAX_FILE (2 * VHDX_MAX_SIZE)

enum { PIECE = 64 << 10 };

struct entry {
    uint64_t at, length; /* in the log */
    uint64_t tail, sequence;
    uint32_t descriptors;
    uint64_t flushed, last;
};

struct scan {
    struct blk_node *file;
    const struct vhdx_header *h;
    uint64_t budget; /* bytes that may still be summed */
    uint8_t *piece;  /* PIECE bytes */
    struct error **err;
};

/* Where in the file a place of the ring is. */
static uint64_t ring(const struct scan *s, uint64_t at)
{
    return s->h->log_offset + at % s->h->log_length;
}

/* At most PIECE bytes of the ring, on from `at`, which may be behind its end. */
static int ring_read(const struct scan *s, uint64_t at, uint8_t *buf, size_t len)
{
    size_t first = (size_t)MIN((uint64_t)len, s->h->log_length - at % s->h->log_length);
    int ret = blk_read(s->file, ring(s, at), buf, first, 0);

    if (ret == 0 && first < len)
        ret = blk_read(s->file, s->h->log_offset, buf + first, len - first, 0);
    return ret;
}

static uint64_t header_bytes(uint32_t descriptors)
{
    return align_up(LOG_HEADER + (uint64_t)descriptors * LOG_DESCRIPTOR, VHDX_PAGE);
}

/* What the first sector says, if that may be an entry. */
static bool parse_entry(const struct scan *s, uint64_t at, const uint8_t *b, struct entry *e)
{
    struct vhdx_guid guid = guid_load(b + LOG_GUID);

    *e = (struct entry){
        .at = at,
        .length = load_le32(b + LOG_LENGTH),
        .tail = load_le32(b + LOG_TAIL),
        .sequence = load_le64(b + LOG_SEQUENCE),
        .descriptors = load_le32(b + LOG_DESCRIPTORS),
        .flushed = load_le64(b + LOG_FLUSHED),
        .last = load_le64(b + LOG_LAST),
    };
    return load_le32(b) == SIG_LOG && guid_equal(&guid, &s->h->log) && e->sequence > 0 &&
           e->length > 0 && e->length <= s->h->log_length && e->length % VHDX_PAGE == 0 &&
           e->tail < s->h->log_length && e->tail % VHDX_PAGE == 0 &&
           header_bytes(e->descriptors) <= e->length;
}

/* 1: the checksum is right. */
static int sum_entry(struct scan *s, const struct entry *e, uint32_t stated)
{
    uint32_t crc = 0;

    if (e->length > s->budget)
        return error_set(s->err, EINVAL,
                         "%s: its log is damaged: too many places of it claim to be entries",
                         blk_filename(s->file));
    s->budget -= e->length;
    for (uint64_t done = 0; done < e->length; done += PIECE) {
        size_t n = (size_t)MIN(e->length - done, (uint64_t)PIECE);
        int ret = ring_read(s, e->at + done, s->piece, n);
        if (ret < 0)
            return ret;
        if (done == 0)
            store_le32(s->piece + LOG_CHECKSUM, 0);
        crc = crc32c(crc, s->piece, n);
    }
    return crc == stated;
}

/* 1: there is an entry at this place. */
static int read_entry(struct scan *s, uint64_t at, struct entry *e)
{
    uint8_t b[VHDX_PAGE];
    int ret = ring_read(s, at, b, sizeof(b));

    if (ret < 0 || !parse_entry(s, at % s->h->log_length, b, e))
        return ret;
    return sum_entry(s, e, load_le32(b + LOG_CHECKSUM));
}

/* ---- the active sequence ------------------------------------------------------------------------------ */

struct sequence {
    uint64_t tail; /* where the first entry to replay is */
    struct entry head;
    bool found;
};

/* The sequence that begins with `first`; *length gets its bytes. */
static int follow(struct scan *s, const struct entry *first, struct sequence *best,
                  uint64_t *length)
{
    struct entry head = *first, next;
    VECTOR(uint64_t) starts = VECTOR_INIT;
    bool whole = false;
    int ret = vector_push(&starts, first->at);

    *length = first->length;
    while (ret == 0 && *length < s->h->log_length) {
        ret = read_entry(s, first->at + *length, &next);
        if (ret <= 0 || next.sequence != head.sequence + 1 ||
            next.length > s->h->log_length - *length)
            break;
        *length += next.length;
        head = next;
        ret = vector_push(&starts, next.at);
    }
    for (size_t i = 0; i < starts.len; i++)
        whole |= starts.at[i] == head.tail;
    vector_free(&starts);
    if (ret >= 0 && whole && (!best->found || head.sequence > best->head.sequence))
        *best = (struct sequence){ .tail = head.tail, .head = head, .found = true };
    return MIN(ret, 0);
}

/* A hole at this place of the log: where it ends. */
static uint64_t skip_hole(const struct scan *s, uint64_t at)
{
    struct blk_extent e = { 0 };

    if (at % PIECE == 0 && blk_extents(s->file, ring(s, at), s->h->log_length - at, 0, &e) == 0 &&
        (e.flags & BLK_EXT_ZERO))
        return align_down(e.length, VHDX_PAGE);
    return 0;
}

static int find_sequence(struct scan *s, struct sequence *best)
{
    uint64_t at = 0, length;
    struct entry e;

    while (at < s->h->log_length) {
        uint64_t hole = skip_hole(s, at);
        int ret = hole ? 0 : read_entry(s, at, &e);
        length = hole ? hole : VHDX_PAGE;
        if (ret > 0)
            ret = follow(s, &e, best, &length);
        if (ret < 0)
            return ret;
        at += length;
    }
    return 0;
}

/* ---- its changes ------------------------------------------------------------------------------------------ */

/* A log may change metadata: region tables and what lies behind the header section, but not itself. */
static bool may_change(const struct scan *s, const struct vhdx_change *c, uint64_t end)
{
    const struct vhdx_header *h = s->h;
    bool tables = c->offset >= VHDX_REGION_SLOT &&
                  range_inside(c->offset, c->length, VHDX_REGION_SLOT + 2 * VHDX_SLOT);

    if (c->offset % VHDX_PAGE || c->length % VHDX_PAGE || !range_inside(c->offset, c->length, end))
        return false;
    bool in_log =
        c->offset < h->log_offset + h->log_length && c->offset + c->length > h->log_offset;
    return tables || (c->offset >= VHDX_MIB && !in_log);
}

static int bad_entry(const struct scan *s, const struct entry *e, const char *what)
{
    return error_set(s->err, EINVAL, "%s: its log cannot be replayed: entry %" PRIu64 " %s",
                     blk_filename(s->file), e->sequence, what);
}

static int take_descriptor(const struct scan *s, const struct entry *e, const uint8_t *d,
                           uint64_t *sector, uint64_t end, struct vhdx_replay *out)
{
    struct vhdx_change c = { .offset = load_le64(d + 16), .length = VHDX_PAGE };

    if (load_le64(d + 24) != e->sequence)
        return bad_entry(s, e, "has a descriptor of another one");
    if (load_le32(d) == SIG_ZERO) {
        c.zero = true;
        c.length = load_le64(d + 8);
    } else if (load_le32(d) == SIG_DESC) {
        uint8_t head[8], tail[4];
        c.sector = (e->at + *sector) % s->h->log_length;
        if (*sector >= e->length)
            return bad_entry(s, e, "has more data descriptors than data");
        int ret = blk_read(s->file, ring(s, c.sector), head, sizeof(head), 0);
        if (ret == 0)
            ret = blk_read(s->file, ring(s, c.sector) + VHDX_PAGE - 4, tail, sizeof(tail), 0);
        if (ret < 0)
            return ret;
        if (load_le32(head) != SIG_DATA || load_le32(head + 4) != e->sequence >> 32 ||
            load_le32(tail) != (uint32_t)e->sequence)
            return bad_entry(s, e, "has a data sector of another one");
        memcpy(c.edge, d + 8, 8);
        memcpy(c.edge + 8, d + 4, 4);
        *sector += VHDX_PAGE;
    } else {
        return bad_entry(s, e, "has a descriptor of an unknown kind");
    }
    if (!may_change(s, &c, end))
        return bad_entry(s, e, "changes a place that is not metadata or not in the file");
    return c.length ? vector_push(&out->changes, c) : 0;
}

static int take_entry(const struct scan *s, const struct entry *e, struct vhdx_replay *out)
{
    uint64_t sector = header_bytes(e->descriptors);
    uint64_t end = MAX(blk_size(s->file), out->last);

    for (uint32_t i = 0; i < e->descriptors; i++) {
        uint8_t d[LOG_DESCRIPTOR];
        int ret = ring_read(s, e->at + LOG_HEADER + (uint64_t)i * LOG_DESCRIPTOR, d, sizeof(d));
        if (ret == 0)
            ret = take_descriptor(s, e, d, &sector, end, out);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int take_sequence(struct scan *s, const struct sequence *q, struct vhdx_replay *out)
{
    struct entry e;
    uint64_t at = q->tail;

    out->flushed = q->head.flushed;
    out->last = q->head.last;
    if (out->last > MAX_FILE)
        return error_set(s->err, EINVAL,
                         "%s: its log says that the file has %" PRIu64
                         " bytes: the limit is %" PRIu64,
                         blk_filename(s->file), out->last, MAX_FILE);
    if (out->flushed > blk_size(s->file))
        return error_set(s->err, EINVAL,
                         "%s: its log says that the file had %" PRIu64 " bytes, now it has %" PRIu64
                         ": it was truncated",
                         blk_filename(s->file), out->flushed, blk_size(s->file));
    do {
        s->budget = UINT64_MAX; /* each is summed once more */
        int ret = read_entry(s, at, &e);
        if (ret == 0)
            ret = error_set(s->err, EIO, "%s: its log changed while it was read",
                            blk_filename(s->file));
        if (ret < 0)
            return ret;
        ret = take_entry(s, &e, out);
        if (ret < 0)
            return ret;
        at = (at + e.length) % s->h->log_length;
    } while (e.sequence < q->head.sequence);
    return 0;
}

int vhdx_log_find(struct blk_node *file, const struct vhdx_header *h, struct vhdx_replay *out,
                  struct error **err)
{
    struct scan s = { .file = file, .h = h, .err = err };
    struct sequence best = { 0 };

    if (!range_inside(h->log_offset, h->log_length, blk_size(file)))
        return error_set(err, EINVAL,
                         "%s: its log, %" PRIu32 " bytes at %" PRIu64
                         ", is not inside the file, which has %" PRIu64 " bytes",
                         blk_filename(file), h->log_length, h->log_offset, blk_size(file));
    _cleanup_free_ uint8_t *piece = malloc(PIECE);
    if (!piece)
        return error_set(err, ENOMEM, "out of memory");
    s.piece = piece;
    s.budget = 8 * (uint64_t)h->log_length + (UINT64_C(64) << 20);
    int ret = find_sequence(&s, &best);
    if (ret == 0 && !best.found)
        ret = error_set(err, EINVAL,
                        "%s: the header names a log that must be replayed, but the log holds no "
                        "whole sequence of entries",
                        blk_filename(file));
    if (ret == 0)
        ret = take_sequence(&s, &best, out);
    if (ret < 0) {
        vhdx_replay_free(out);
        error_set(err, -ret, "%s: could not read the log: %s", blk_filename(file), strerror(-ret));
    }
    return ret;
}

void vhdx_replay_free(struct vhdx_replay *r)
{
    vector_free(&r->changes);
}

/* ---- replay ------------------------------------------------------------------------------------------------- */

static int change_bytes(struct blk_node *file, const struct vhdx_header *h,
                        const struct vhdx_change *c, uint8_t page[VHDX_PAGE])
{
    int ret = blk_read(file, h->log_offset + c->sector, page, VHDX_PAGE, 0);

    memcpy(page, c->edge, 8);
    memcpy(page + VHDX_PAGE - 4, c->edge + 8, 4);
    return ret;
}

/* What lies behind the end of the file reads as zeroes. */
static int read_padded(struct blk_node *file, uint64_t offset, uint8_t *buf, size_t len)
{
    uint64_t size = blk_size(file);
    size_t there = offset < size ? (size_t)MIN((uint64_t)len, size - offset) : 0;

    memset(buf + there, 0, len - there);
    return there ? blk_read(file, offset, buf, there, 0) : 0;
}

int vhdx_replayed_read(struct blk_node *file, const struct vhdx_header *h,
                       const struct vhdx_replay *r, uint64_t offset, void *buf, size_t len)
{
    uint8_t page[VHDX_PAGE], *to = buf;
    int ret = read_padded(file, offset, to, len);

    for (size_t i = 0; i < r->changes.len && ret == 0; i++) {
        const struct vhdx_change *c = &r->changes.at[i];
        uint64_t from = MAX(offset, c->offset), end = MIN(offset + len, c->offset + c->length);
        if (from >= end)
            continue;
        if (c->zero) {
            memset(to + (from - offset), 0, end - from);
            continue;
        }
        ret = change_bytes(file, h, c, page);
        memcpy(to + (from - offset), page + (from - c->offset), end - from);
    }
    return ret;
}

static int replay_changes(struct blk_node *file, const struct vhdx_header *h,
                          const struct vhdx_replay *r)
{
    uint8_t page[VHDX_PAGE];
    int ret = 0;

    for (size_t i = 0; i < r->changes.len && ret == 0; i++) {
        const struct vhdx_change *c = &r->changes.at[i];
        if (c->zero) {
            ret = blk_zero(file, c->offset, c->length, BLK_MAY_UNMAP);
            continue;
        }
        ret = change_bytes(file, h, c, page);
        if (ret == 0)
            ret = blk_write(file, c->offset, page, VHDX_PAGE, 0);
    }
    return ret;
}

int vhdx_replay(struct blk_node *file, struct vhdx_headers *h, const struct vhdx_replay *r,
                struct error **err)
{
    int ret = 0;

    if (blk_size(file) < r->last) {
        ret = blk_resize(file, r->last, BLK_PREALLOC_OFF, err);
        if (ret < 0)
            return ret;
    }
    ret = replay_changes(file, &h->current, r);
    if (ret == 0) {
        struct vhdx_guid old = h->current.log;
        h->current.log = (struct vhdx_guid){ { 0 } };
        ret = vhdx_header_write(file, h);
        if (ret < 0)
            h->current.log = old;
    }
    return ret < 0 ? error_set(err, -ret, "%s: could not replay its log: %s", blk_filename(file),
                               strerror(-ret))
                   : 0;
}
