/* Streams: grains one behind the other, each behind a marker, then tables, directory, footer, end. They can be made and
 * read in one go. The header says "see the footer", which is the file's last but one sector.
 *
 * Nothing that is on the disk is overwritten: whoever changes a stream goes on behind its end, and every flush ends
 * with tables (those that changed), a directory and a footer of its own. So the file is a log:
 *
 *     grains -> flush -> changed tables, directory -> flush -> footer, end -> flush
 *
 * Invariants
 *  S1  A footer is on the disk only when all that it leads to is.
 *  S2  Where the file does not end with a footer (a power cut), the last one is found from marker to marker, and what
 *      follows it is taken as far as it can be decoded: each encoding ends with a checksum.
 *
 * An image that holds nothing yet is the exception: its first grain is written over its directory, so that a disk that
 * is written in one go can be read in one go. Without the footer, S2 finds what there was: nothing.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iszero.h"
#include "base/macros.h"
#include "base/round.h"
#include "vmdk.h"

#define MAX_TABLES (UINT64_C(4) << 30) /* bytes in memory, of a disk of 64 TiB */

enum { FOOTER_BYTES = 3 * 512 }; /* marker, footer, end */

static uint64_t gd_bytes(const struct vmdk_extent *e)
{
    return align_up((uint64_t)e->gd_entries * 4, SECTOR);
}

static uint64_t table_bytes(const struct vmdk_extent *e)
{
    return align_up(e->gt_size, SECTOR);
}

static void put_marker(uint8_t *at, unsigned type, uint64_t sectors)
{
    memset(at, 0, SECTOR);
    store_le64(at, sectors);
    store_le32(at + 12, type);
}

static void put_footer(uint8_t at[FOOTER_BYTES], const struct vmdk_header *header, uint64_t gd)
{
    struct vmdk_header h = *header;

    h.gd = gd / SECTOR;
    put_marker(at, MARKER_FOOTER, 1);
    vmdk_header_build(&h, at + SECTOR);
    put_marker(at + 2 * SECTOR, MARKER_EOS, 0);
}

/* ---- the footer ------------------------------------------------------------------------------------------- */

/* A footer says what the header says, and where the directory is. */
static bool footer_fits(const struct vmdk_extent *e, const struct vmdk_header *f)
{
    const struct vmdk_header *h = &e->header;

    return f->gd != VMDK_GD_AT_END && f->gd != 0 && f->gd <= INT64_MAX / SECTOR &&
           f->capacity == h->capacity && f->grain == h->grain && f->gt_entries == h->gt_entries;
}

static bool read_footer(struct vmdk_extent *e, uint64_t at, struct vmdk_header *f)
{
    return vmdk_header_read(e->file, at, f, NULL) == 0 && footer_fits(e, f);
}

static bool footer_at_end(struct vmdk_extent *e, struct vmdk_header *f)
{
    uint64_t end = round_down(blk_size(e->file), SECTOR);
    uint8_t marker[16];

    if (end < FOOTER_BYTES || blk_read(e->file, end - FOOTER_BYTES, marker, 16, 0) < 0)
        return false;
    e->stream_end = end;
    return load_le32(marker + 8) == 0 && load_le32(marker + 12) == MARKER_FOOTER &&
           read_footer(e, end - 2 * SECTOR, f);
}

/* ---- by the markers ------------------------------------------------------------------------------------------ */

struct walk {
    struct vmdk *v;
    struct vmdk_extent *e;
    uint64_t at, end; /* of the file */
    uint8_t marker[512];
    struct vmdk_header footer;
    bool have_footer;
    uint64_t tail; /* behind the last footer */
    uint8_t *in, *out;
};

/* A hole reads as one end marker behind the other. */
static uint64_t hole_length(const struct walk *w)
{
    struct blk_extent x;
    int ret = blk_extents(w->e->file, w->at, w->end - w->at, BLK_HOLES, &x);

    return ret == 0 && (x.flags & BLK_EXT_ZERO) ? MAX(round_down(x.length, SECTOR), SECTOR)
                                                : SECTOR;
}

/* Bytes of what begins at w->at; 0: it is nothing that belongs there. */
static uint64_t piece_length(struct walk *w)
{
    const struct vmdk_extent *e = w->e;
    uint64_t val = load_le64(w->marker);
    uint32_t size = load_le32(w->marker + 8), type = load_le32(w->marker + 12);

    if (size > 0)
        return val < e->header.capacity && val % e->header.grain == 0 &&
                       size <= e->grain + ENCODE_ROOM
                   ? align_up(GRAIN_MARKER + (uint64_t)size, SECTOR)
                   : 0;
    switch (type) {
    case MARKER_EOS:
        return is_zero(w->marker, sizeof(w->marker)) ? hole_length(w) : 0;
    case MARKER_GT:
        return val == table_bytes(e) / SECTOR ? SECTOR + table_bytes(e) : 0;
    case MARKER_GD:
        return val == gd_bytes(e) / SECTOR ? SECTOR + gd_bytes(e) : 0;
    case MARKER_FOOTER:
        return val == 1 ? 2 * SECTOR : 0;
    default:
        return 0;
    }
}

/* The piece at w->at: its length, 0 at the end of what makes sense, or an error. */
static int64_t look(struct walk *w)
{
    if (!range_inside(w->at, SECTOR, w->end))
        return 0;
    int ret = blk_read(w->e->file, w->at, w->marker, SECTOR, 0);
    if (ret < 0)
        return ret;
    uint64_t len = piece_length(w);
    return range_inside(w->at, len, w->end) ? (int64_t)len : 0;
}

static bool is_marker(const struct walk *w, uint32_t type)
{
    return load_le32(w->marker + 8) == 0 && load_le32(w->marker + 12) == type;
}

static int find_last_footer(struct walk *w)
{
    int64_t len;

    w->tail = w->at;
    while ((len = look(w)) > 0) {
        struct vmdk_header f;
        if (is_marker(w, MARKER_FOOTER) && read_footer(w->e, w->at + SECTOR, &f)) {
            w->footer = f;
            w->have_footer = true;
            w->tail = w->at + (uint64_t)len;
        }
        w->at += (uint64_t)len;
    }
    return (int)len;
}

static int note_grain(struct vmdk_extent *e, uint64_t guest, uint64_t offset)
{
    uint32_t i = (uint32_t)(guest / e->gt_span), k = (uint32_t)(guest % e->gt_span / e->grain);

    if (offset / SECTOR > UINT32_MAX)
        return -EFBIG;
    if (!e->tables[i])
        e->tables[i] = calloc(1, e->gt_size);
    if (!e->tables[i])
        return -ENOMEM;
    store_le32(e->tables[i] + 4 * (size_t)k, (uint32_t)(offset / SECTOR));
    e->table_dirty[i] = 1;
    return 0;
}

/* One grain behind the last footer; 1: it is whole. */
static int take_grain(struct walk *w, uint64_t len)
{
    struct vmdk_extent *e = w->e;
    uint64_t guest = load_le64(w->marker) * SECTOR;
    struct mapping m = { .unit_offset = e->start + guest, .unit_length = e->grain };
    int ret = blk_read(e->file, w->at, w->in, len, 0);

    if (ret < 0)
        return ret;
    ret = vmdk_decode_extent(e, &m, w->in, len, w->out, e->grain);
    if (ret == -EIO)
        return 0;
    if (ret == 0)
        ret = note_grain(e, guest, w->at);
    return ret < 0 ? ret : 1;
}

static int take_tail(struct walk *w)
{
    int64_t len;

    w->at = w->tail;
    while ((len = look(w)) > 0) {
        if (load_le32(w->marker + 8) > 0) {
            int ret = take_grain(w, (uint64_t)len);
            if (ret <= 0)
                return ret;
        }
        w->at += (uint64_t)len;
        if (!is_zero(w->marker, sizeof(w->marker)))
            w->e->stream_end = w->at;
    }
    return (int)len;
}

static int make_tables(struct vmdk_extent *e)
{
    uint32_t n = e->gd_entries ? e->gd_entries : 1;

    e->tables = calloc(n, sizeof(*e->tables));
    e->table_dirty = calloc(n, 1);
    return e->tables && e->table_dirty ? 0 : -ENOMEM;
}

/* The tables that a directory names. */
static int load_tables(struct vmdk_extent *e)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < e->gd_entries; i++)
        count += e->gd[i] != 0;
    if (count * e->gt_size > MIN(blk_size(e->file), MAX_TABLES))
        return -EFBIG; /* they share places, or take more memory than is fair */
    for (uint32_t i = 0; i < e->gd_entries; i++) {
        if (!e->gd[i])
            continue;
        e->tables[i] = malloc(e->gt_size);
        if (!e->tables[i])
            return -ENOMEM;
        int ret = blk_read(e->file, e->gd[i] * SECTOR, e->tables[i], e->gt_size, 0);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int load_footer(struct walk *w)
{
    struct vmdk_extent *e = w->e;

    e->gd = calloc(e->gd_entries ? e->gd_entries : 1, sizeof(*e->gd));
    int ret = e->gd ? make_tables(e) : -ENOMEM;
    if (ret < 0 || !w->have_footer)
        return ret;
    uint64_t bytes = (uint64_t)e->gd_entries * 4, at = w->footer.gd * SECTOR;
    if (!range_inside(at, bytes, w->end))
        return -EINVAL;
    ret = blk_read(e->file, at, e->gd, bytes, 0);
    for (uint32_t i = 0; ret == 0 && i < e->gd_entries; i++) {
        e->gd[i] = load_le32(&e->gd[i]);
        if (e->gd[i] && !range_inside(e->gd[i] * SECTOR, e->gt_size, w->end))
            ret = -EINVAL;
    }
    return ret < 0 ? ret : load_tables(e);
}

static int find_by_markers(struct vmdk *v, struct vmdk_extent *e)
{
    struct walk w = { .v = v, .e = e, .end = blk_size(e->file) };

    w.at = MAX(e->header.overhead, UINT64_C(1));
    if (w.at > INT64_MAX / SECTOR)
        return -EINVAL;
    w.at *= SECTOR;
    e->stream_end = w.at;
    _cleanup_free_ uint8_t *mem = malloc(2 * ((size_t)e->grain + 2 * ENCODE_ROOM));
    if (!mem)
        return -ENOMEM;
    w.in = mem;
    w.out = mem + e->grain + 2 * ENCODE_ROOM;
    int ret = find_last_footer(&w);
    if (ret == 0)
        ret = load_footer(&w);
    if (ret == 0) {
        e->stream_end = w.tail;
        ret = take_tail(&w);
    }
    e->footer_lost = e->dirty = true;
    return ret;
}

int vmdk_stream_find(struct vmdk *v, struct vmdk_extent *e, struct error **err)
{
    struct vmdk_header f;

    if (!e->compressed || !e->markers)
        return error_set(err, EINVAL,
                         "%s: its grain directory is said to be at the end, but its grains have no "
                         "markers",
                         blk_filename(e->file));
    if (footer_at_end(e, &f)) {
        e->header.gd = f.gd;
        e->header.flags &= ~(uint32_t)VMDK_REDUNDANT;
        return 0;
    }
    int ret = find_by_markers(v, e);
    if (ret < 0)
        return error_set(err, -ret,
                         "%s: it does not end with a footer, and its grains cannot be "
                         "found without: %s",
                         blk_filename(e->file), strerror(-ret));
    if (!(node_open_flags(v->node) & (BLK_OPEN_QUIET | BLK_OPEN_NO_IO)))
        node_warn(
            v->node,
            "it does not end with a footer: the grains are found by their markers; img check -r "
            "leaks writes the footer");
    return 0;
}

int vmdk_stream_load(struct vmdk *v, struct vmdk_extent *e, struct error **err)
{
    bool empty = true;

    (void)v;
    int ret = make_tables(e);
    if (ret == 0)
        ret = load_tables(e);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read its grain tables: %s",
                         blk_filename(e->file), strerror(-ret));
    for (uint32_t i = 0; i < e->gd_entries; i++)
        empty = empty && !e->gd[i];
    if (empty && e->header.gd == e->header.overhead + 1)
        e->stream_end = e->header.overhead * SECTOR;
    return 0;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

struct log {
    uint8_t *mem;
    uint64_t at, len; /* in the file; without the footer */
    uint8_t footer[FOOTER_BYTES];
};

static void put_table(struct vmdk_extent *e, uint32_t i, struct log *l)
{
    uint8_t *to = l->mem + l->len;

    put_marker(to, MARKER_GT, table_bytes(e) / SECTOR);
    memset(to + SECTOR, 0, table_bytes(e));
    memcpy(to + SECTOR, e->tables[i], e->gt_size);
    e->gd[i] = (uint32_t)((l->at + l->len) / SECTOR + 1);
    l->len += SECTOR + table_bytes(e);
}

/* Copies what changed, and takes the place for it. The lock is exclusive. */
static int take_log(struct vmdk_extent *e, struct log *l)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < e->gd_entries; i++)
        count += e->table_dirty[i];
    uint64_t room = count * (SECTOR + table_bytes(e)) + SECTOR + gd_bytes(e);
    l->mem = malloc(room);
    if (!l->mem)
        return -ENOMEM;
    l->at = e->fresh;
    int ret = vmdk_alloc_bytes(NULL, e, room + FOOTER_BYTES, &l->at);
    if (ret < 0)
        return ret;
    for (uint32_t i = 0; i < e->gd_entries; i++) {
        if (!e->table_dirty[i])
            continue;
        if (is_zero(e->tables[i], e->gt_size))
            e->gd[i] = 0;
        else
            put_table(e, i, l);
        e->table_dirty[i] = 0;
    }
    uint8_t *to = l->mem + l->len;
    put_marker(to, MARKER_GD, gd_bytes(e) / SECTOR);
    memset(to + SECTOR, 0, gd_bytes(e));
    for (uint32_t i = 0; i < e->gd_entries; i++)
        store_le32(to + SECTOR + 4 * (size_t)i, e->gd[i]);
    put_footer(l->footer, &e->header, l->at + l->len + SECTOR);
    l->len += SECTOR + gd_bytes(e);
    /* Tables that became empty leave some of the room unused: what is behind the footer is not the end yet. */
    e->fresh = l->at + l->len + FOOTER_BYTES;
    e->dirty = false;
    return 0;
}

/* After a failure it is not known which tables are on the disk: all are written again. */
static void all_dirty(struct vmdk_extent *e)
{
    for (uint32_t i = 0; i < e->gd_entries; i++)
        e->table_dirty[i] = e->tables[i] != NULL;
    e->dirty = true;
}

int vmdk_stream_commit(struct vmdk *v, struct vmdk_extent *e)
{
    struct log l = { 0 };
    int ret = 0;
    {
        WRLOCK_SCOPE(&v->lock);
        if (e->dirty)
            ret = take_log(e, &l);
        e->unsynced = false;
    }
    if (ret == 0)
        ret = blk_flush(e->file);
    if (ret == 0 && l.mem) {
        ret = blk_write(e->file, l.at, l.mem, l.len, 0);
        if (ret == 0)
            ret = blk_flush(e->file); /* S1 */
        if (ret == 0)
            ret = blk_write(e->file, l.at + l.len, l.footer, FOOTER_BYTES, 0);
        if (ret == 0)
            ret = blk_flush(e->file);
    }
    if (ret == 0 && l.mem)
        e->log_end = l.at + l.len + FOOTER_BYTES;
    if (ret < 0) {
        WRLOCK_SCOPE(&v->lock);
        all_dirty(e);
    }
    free(l.mem);
    return ret;
}

int vmdk_stream_create(struct blk_node *file, const struct vmdk_header *h)
{
    struct vmdk_extent e = { .header = *h,
                             .gt_entries = h->gt_entries,
                             .gd_entries =
                                 (uint32_t)div_round_up(h->capacity, h->grain * h->gt_entries) };
    uint64_t at = h->overhead * SECTOR, len = SECTOR + gd_bytes(&e);
    _cleanup_free_ uint8_t *mem = calloc(1, len + FOOTER_BYTES);

    if (!mem)
        return -ENOMEM;
    put_marker(mem, MARKER_GD, gd_bytes(&e) / SECTOR);
    put_footer(mem + len, h, at + SECTOR);
    return blk_write(file, at, mem, len + FOOTER_BYTES, 0);
}
