/* check: what each entry leads to, and who else leads there.
 *
 * Findings
 *   corruptions  entries that lead out of the file, into metadata, or where another one leads; directories that lead
 *                nowhere
 *   leaks        space that nothing leads to and that takes room on the disk; and what a power cut may leave that loses
 *                nothing: copies of grain tables that lag behind (the first ones count), a stream without its footer
 *                (all whole grains were found), a descriptor that states another size than the header, which counts
 *
 * Repairs: a bad directory or entry is replaced by its copy if that is good, else the entry is emptied; of two that share a
 * grain the second gets a copy of its own; leaks are given back to the file system; a footer is written.
 *
 * Invariants
 *  K1  Each write alone leaves the image no worse: copies of data are durable before a table leads to them, and a
 *      table is whole sectors, rewritten in place.
 *  K2  Work and memory do not grow with what an image claims but with what it holds: a table that was seen is not
 *      read again, holes are not read, and the map of used sectors takes memory where something is used.
 */
#include "vcheck.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"

void vmdk_check_say(struct vcheck *c, const char *fmt, ...)
{
    enum { MAX_MESSAGES = 1000 };
    char text[320];
    va_list args;

    if (!c->hooks->message || c->messages > MAX_MESSAGES)
        return;
    if (c->messages++ == MAX_MESSAGES) {
        c->hooks->message(c->hooks->opaque, "More was found; the rest is only counted.");
        return;
    }
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    c->hooks->message(c->hooks->opaque, text);
}

int vmdk_check_write(struct vcheck *c, uint64_t offset, const void *buf, size_t len)
{
    int ret = blk_write(c->e->file, offset, buf, len, 0);

    if (ret == 0)
        ret = blk_flush(c->e->file);
    return ret < 0 ? error_set(c->err, -ret, "%s: could not write at byte %" PRIu64 ": %s",
                               blk_filename(c->e->file), offset, strerror(-ret))
                   : 0;
}

static int out_of_memory(struct vcheck *c)
{
    return error_set(c->err, ENOMEM, "out of memory for the check");
}

bool vmdk_check_fixes(struct vcheck *c, unsigned what)
{
    return c->fix & what;
}

/* ---- used space ---------------------------------------------------------------------------------------- */

bool vmdk_check_inside(const struct vcheck *c, uint64_t offset, uint64_t len)
{
    return range_inside(offset, len, c->file_len);
}

/* Some of [offset, offset + len) is set; the file may end before that. */
static bool any_set(const struct bitmap *map, uint64_t offset, uint64_t len)
{
    uint64_t first = offset / SECTOR,
             next = first < map->bits ? bitmap_next_set(map, first) : map->bits;

    return next < map->bits && next <= (offset + len - 1) / SECTOR;
}

static bool is_used(const struct vcheck *c, uint64_t offset, uint64_t len)
{
    return any_set(&c->used, offset, len);
}

static void use(struct vcheck *c, uint64_t offset, uint64_t len)
{
    uint64_t first = offset / SECTOR, end = MIN(div_round_up(offset + len, SECTOR), c->used.bits);

    if (len && first < end)
        bitmap_set_range(&c->used, first, end - first);
    c->end = MAX(c->end, offset + len);
}

/* ---- a table's entries ------------------------------------------------------------------------------------- */

/* How much of the file the grain at `offset` takes; 0: it is none, and *why says so. */
static uint64_t grain_length(struct vcheck *c, uint64_t guest, uint64_t offset, const char **why)
{
    const struct vmdk_extent *e = c->e;
    uint8_t marker[GRAIN_MARKER];

    *why = "lies beyond the end of the file";
    if (!vmdk_check_inside(c, offset, 1))
        return 0;
    if (!e->compressed)
        return e->grain;
    *why = "has no marker";
    if (!vmdk_check_inside(c, offset, GRAIN_MARKER) ||
        blk_read(e->file, offset, marker, sizeof(marker), 0) < 0)
        return 0;
    if (!e->markers)
        return SECTOR;
    uint64_t len = GRAIN_MARKER + (uint64_t)load_le32(marker + 8);
    if (len == GRAIN_MARKER)
        return 0;
    *why = "has the marker of another one";
    if (load_le64(marker) * SECTOR != guest)
        return 0;
    *why = "reaches beyond the end of the file";
    return vmdk_check_inside(c, offset, len) ? len : 0;
}

/* A copy of its own for an entry that shares its grain; 0 bytes: it cannot have one. */
static int copy_grain(struct vcheck *c, uint64_t offset, uint64_t *to)
{
    struct vmdk_extent *e = c->e;
    _cleanup_free_ uint8_t *buf = calloc(1, e->grain);
    uint64_t there = MIN((uint64_t)e->grain, c->file_len - offset);

    *to = round_up(MAX(blk_size(e->file), c->end), e->grain);
    if (!buf)
        return out_of_memory(c);
    if ((*to + e->grain) / SECTOR > UINT32_MAX)
        return error_set(c->err, EFBIG, "%s: no room for copies of shared grains",
                         blk_filename(e->file));
    int ret = blk_read(e->file, offset, buf, there, 0);
    if (ret < 0)
        return error_set(c->err, -ret, "%s: could not read the grain at %" PRIu64 ": %s",
                         blk_filename(e->file), offset, strerror(-ret));
    ret = vmdk_check_write(c, *to, buf, e->grain);
    c->end = MAX(c->end, *to + e->grain);
    return ret;
}

/* Mends entry k: its grain is bad, or `shared`. */
static int mend_entry(struct vcheck *c, uint8_t *table, const uint8_t *second, uint32_t k,
                      uint64_t guest, uint64_t offset, bool shared, bool *changed)
{
    const char *why;
    uint64_t other, to;
    uint32_t entry = 0;

    if (!vmdk_check_fixes(c, BLK_FIX_ERRORS))
        return 0;
    if (second && grain_at(c->e, second, k, &other) == GRAIN_DATA && other != offset) {
        uint64_t len = grain_length(c, guest, other, &why);
        if (len && other >= SECTOR && !is_used(c, other, len)) {
            use(c, other, len);
            entry = (uint32_t)(other / SECTOR);
        }
    }
    if (!entry && shared && !c->e->compressed) {
        int ret = copy_grain(c, offset, &to);
        if (ret < 0)
            return ret;
        entry = (uint32_t)(to / SECTOR);
    }
    store_le32(table + 4 * (size_t)k, entry);
    c->out->corruptions_fixed++;
    *changed = true;
    return 0;
}

static int check_entry(struct vcheck *c, uint8_t *table, const uint8_t *second, uint32_t k,
                       uint64_t guest, bool *changed)
{
    const struct vmdk_extent *e = c->e;
    const char *why;
    uint64_t offset;

    if (grain_at(e, table, k, &offset) != GRAIN_DATA)
        return 0;
    uint64_t len = grain_length(c, guest, offset, &why);
    if (len == 0 || offset < SECTOR) {
        c->out->corruptions++;
        vmdk_check_say(c, "ERROR guest offset %#" PRIx64 ": its grain at %#" PRIx64 " %s",
                       e->start + guest, offset, len ? "lies on the header" : why);
        return mend_entry(c, table, second, k, guest, offset, false, changed);
    }
    if (e->kind == EXTENT_SE)
        return 0; /* grains are numbered: no two overlap in part, and nothing is mended */
    if (is_used(c, offset, len)) {
        bool meta = any_set(&c->meta, offset, len);
        c->out->corruptions++;
        vmdk_check_say(c, "ERROR guest offset %#" PRIx64 ": its grain at %#" PRIx64 " %s",
                       e->start + guest, offset,
                       meta ? "lies on metadata" : "belongs to another one, too");
        return mend_entry(c, table, second, k, guest, offset, !meta, changed);
    }
    use(c, offset, len);
    c->out->allocated_clusters++;
    c->out->compressed_clusters += e->compressed;
    c->out->fragmented_clusters += c->last && offset != c->last;
    c->last = offset + (e->compressed ? align_up(len, SECTOR) : len);
    return 0;
}

/* ---- tables -------------------------------------------------------------------------------------------------- */

static int read_table(struct vcheck *c, uint32_t i, uint8_t *buf)
{
    struct vmdk_extent *e = c->e;

    if (e->tables) {
        memcpy(buf, e->tables[i], e->gt_size);
        return 0;
    }
    return blk_read(e->file, table_place(e, i), buf, e->gt_size, 0);
}

static int write_table(struct vcheck *c, uint32_t i, const uint8_t *buf)
{
    struct vmdk_extent *e = c->e;

    if (!e->tables)
        return vmdk_check_write(c, table_place(e, i), buf, e->gt_size);
    memcpy(e->tables[i], buf, e->gt_size);
    vmdk_table_touch(e, i, e->tables[i]);
    return 0;
}

/* The copy says the same, or is made to. */
static int check_copy(struct vcheck *c, uint32_t i, const uint8_t *table, const uint8_t *second)
{
    if (!memcmp(table, second, c->e->gt_size))
        return 0;
    c->out->leaks++;
    vmdk_check_say(c, "Leaked: the redundant copy of grain table %" PRIu32 " is out of date", i);
    if (!c->fix)
        return 0;
    int ret = vmdk_check_write(c, c->e->rgd[i] * SECTOR, table, c->e->gt_size);
    c->out->leaks_fixed += ret == 0;
    return ret;
}

static bool has_table(const struct vmdk_extent *e, uint32_t i)
{
    return e->tables ? e->tables[i] != NULL : e->gd[i] != 0;
}

static int check_table(struct vcheck *c, uint32_t i, uint8_t *table, uint8_t *second)
{
    struct vmdk_extent *e = c->e;
    bool copy = e->redundant && e->rgd[i] && e->rgd[i] != e->gd[i], changed = false;
    uint64_t guest = (uint64_t)i * e->gt_span;
    int ret = read_table(c, i, table);

    if (ret == 0 && copy)
        ret = blk_read(e->file, e->rgd[i] * SECTOR, second, e->gt_size, 0);
    if (ret < 0) {
        c->out->check_errors++;
        vmdk_check_say(c, "ERROR grain table %" PRIu32 " cannot be read: %s", i, strerror(-ret));
        return 0;
    }
    for (uint32_t k = 0; k < e->gt_entries && guest < e->end - e->start; k++, guest += e->grain) {
        ret = check_entry(c, table, copy ? second : NULL, k, guest, &changed);
        if (ret < 0)
            return ret;
    }
    if (changed)
        ret = write_table(c, i, table);
    return ret == 0 && copy ? check_copy(c, i, table, second) : ret;
}

static int check_tables(struct vcheck *c)
{
    struct vmdk_extent *e = c->e;
    _cleanup_free_ uint8_t *mem = malloc(2 * (size_t)e->gt_size);
    int ret = mem ? 0 : out_of_memory(c);

    for (uint32_t i = 0; i < e->gd_entries && ret == 0; i++) {
        if (has_table(e, i) && !(c->skip && bitmap_test(c->skip, i)))
            ret = check_table(c, i, mem, mem + e->gt_size);
        if (ret == 0 && c->hooks->progress &&
            c->hooks->progress(c->hooks->opaque, e->start + i * e->gt_span, blk_size(c->v->node)))
            ret = -ECANCELED;
    }
    return ret;
}

/* ---- directories ------------------------------------------------------------------------------------------------ */

/* A table's place that is not in the file, or used by something else. */
static bool bad_place(const struct vcheck *c, uint64_t place)
{
    return place < SECTOR || !vmdk_check_inside(c, place, c->e->gt_size) ||
           is_used(c, place, c->e->gt_size);
}

static void use_meta(struct vcheck *c, uint64_t offset, uint64_t len)
{
    use(c, offset, len);
    if (len && vmdk_check_inside(c, offset, len))
        bitmap_set_range(&c->meta, offset / SECTOR, div_round_up(len, SECTOR));
}

/* Entries of a directory that lead nowhere are replaced by those of the other one, or emptied. */
static int check_places(struct vcheck *c, const char *what, uint32_t *gd, const uint32_t *other,
                        bool *changed)
{
    const struct vmdk_extent *e = c->e;

    for (uint32_t i = 0; i < e->gd_entries; i++) {
        uint64_t place = gd[i] * SECTOR;
        bool same = other && other[i] == gd[i] && gd != e->gd; /* both lead to one table */
        if (!gd[i] || same)
            continue;
        if (!bad_place(c, place)) {
            use_meta(c, place, e->gt_size);
            continue;
        }
        c->out->corruptions++;
        vmdk_check_say(
            c, "ERROR entry %" PRIu32 " of the %s leads to %#" PRIx64 ", where no table can be", i,
            what, place);
        if (vmdk_check_fixes(c, BLK_FIX_ERRORS)) {
            gd[i] = other && other[i] && !bad_place(c, other[i] * SECTOR) ? other[i] : 0;
            if (gd == e->gd && gd[i])
                use_meta(c, gd[i] * SECTOR, e->gt_size);
            if (gd != e->gd)
                gd[i] = e->gd[i];
            c->out->corruptions_fixed++;
            *changed = true;
        } else if (gd == e->gd) {
            bitmap_set(c->skip, i);
        }
    }
    return 0;
}

static int write_gd(struct vcheck *c, uint64_t sector)
{
    const struct vmdk_extent *e = c->e;
    const uint32_t *gd = sector == e->header.gd ? e->gd : e->redundant ? e->rgd : e->gd;
    size_t len = (size_t)e->gd_entries * 4;
    _cleanup_free_ uint8_t *mem = malloc(len);

    if (!mem)
        return out_of_memory(c);
    for (uint32_t i = 0; i < e->gd_entries; i++)
        store_le32(mem + 4 * (size_t)i, gd[i]);
    return vmdk_check_write(c, sector * SECTOR, mem, len);
}

static int write_header(struct vcheck *c)
{
    uint8_t sector[512];

    vmdk_header_build(&c->e->header, sector);
    return vmdk_check_write(c, 0, sector, sizeof(sector));
}

static bool gd_inside(const struct vcheck *c, uint64_t sector)
{
    return sector && sector <= INT64_MAX / SECTOR &&
           vmdk_check_inside(c, sector * SECTOR, (uint64_t)c->e->gd_entries * 4);
}

/* The first directory was so bad that the second was opened. */
static int mend_first(struct vcheck *c)
{
    struct vmdk_extent *e = c->e;

    c->out->corruptions++;
    vmdk_check_say(c, "ERROR the grain directory is bad, the redundant one is good");
    if (!vmdk_check_fixes(c, BLK_FIX_ERRORS))
        return 0;
    int ret;
    if (gd_inside(c, e->header.gd)) {
        ret = write_gd(c, e->header.gd);
    } else {
        e->header.gd = e->header.rgd;
        ret = write_header(c);
    }
    if (ret < 0)
        return ret;
    e->used_redundant = c->v->damaged = false;
    c->out->corruptions_fixed++;
    return 0;
}

static int mend_second(struct vcheck *c)
{
    struct vmdk_extent *e = c->e;

    c->out->corruptions++;
    vmdk_check_say(c, "ERROR the redundant grain directory is bad");
    if (!vmdk_check_fixes(c, BLK_FIX_ERRORS))
        return 0;
    int ret;
    if (gd_inside(c, e->header.rgd)) {
        ret = write_gd(c, e->header.rgd);
    } else {
        e->header.flags &= ~(uint32_t)VMDK_REDUNDANT;
        e->header.rgd = 0;
        ret = write_header(c);
    }
    if (ret == 0)
        c->out->corruptions_fixed++;
    return ret;
}

static int check_directories(struct vcheck *c)
{
    struct vmdk_extent *e = c->e;
    uint64_t len = (uint64_t)e->gd_entries * 4;
    bool first = false, second = false;
    bool bad_second = !e->redundant && !e->used_redundant && !e->stream && e->header.rgd &&
                      (e->header.flags & VMDK_REDUNDANT);

    use_meta(c, e->header.gd * SECTOR, gd_inside(c, e->header.gd) ? len : 0);
    if (e->redundant || e->used_redundant)
        use_meta(c, e->header.rgd * SECTOR, gd_inside(c, e->header.rgd) ? len : 0);
    int ret = check_places(c, "grain directory", e->gd, e->redundant ? e->rgd : NULL, &first);
    if (ret == 0 && e->redundant)
        ret = check_places(c, "redundant grain directory", e->rgd, e->gd, &second);
    if (ret == 0 && first && !e->stream)
        ret = write_gd(c, e->header.gd);
    if (ret == 0 && second)
        ret = write_gd(c, e->header.rgd);
    if (ret == 0 && first)
        c->v->damaged = false;
    if (ret == 0 && e->used_redundant)
        ret = mend_first(c);
    if (ret == 0 && bad_second)
        ret = mend_second(c);
    /* What the writer knows of its tables' places is of before. */
    if (ret == 0 && c->fix && e->order && vmdk_note_metadata(c->v, e) < 0)
        ret = out_of_memory(c);
    return ret;
}

/* ---- leaks ------------------------------------------------------------------------------------------------------- */

static int give_back(struct vcheck *c, uint64_t from, uint64_t to)
{
    struct vmdk_extent *e = c->e;

    if (to == c->file_len && from < to && blk_size(e->file) == c->file_len)
        return blk_resize(e->file, from, BLK_PREALLOC_OFF, c->err);
    int ret = blk_zero(e->file, from, to - from, BLK_MAY_UNMAP | BLK_NO_FALLBACK);
    return ret == -ENOTSUP ? 1 : ret;
}

/* A run of sectors that nothing leads to. */
static int check_unused(struct vcheck *c, uint64_t from, uint64_t to)
{
    uint64_t data = 0;

    for (uint64_t at = from; at < to;) {
        struct blk_extent x;
        if (blk_extents(c->e->file, at, to - at, BLK_HOLES, &x) < 0)
            return 0;
        if (!(x.flags & BLK_EXT_ZERO))
            data += x.length;
        at += x.length;
    }
    if (data == 0)
        return 0;
    uint64_t grains = div_round_up(data, c->e->grain);
    c->out->leaks += grains;
    vmdk_check_say(c, "Leaked: %#" PRIx64 " to %#" PRIx64 " is not used", from, to);
    if (!vmdk_check_fixes(c, BLK_FIX_LEAKS))
        return 0;
    int ret = give_back(c, from, to);
    c->out->leaks_fixed += ret == 0 ? grains : 0;
    return ret < 0 ? ret : 0;
}

static int check_leaks(struct vcheck *c)
{
    uint64_t end = c->file_len / SECTOR, at = c->e->header.overhead;

    /* Encodings that were replaced stay where they are: a stream is read from marker to marker. */
    if (c->e->compressed || c->e->kind != EXTENT_HOSTED)
        return 0;
    while (at < end) {
        uint64_t from = bitmap_next_clear(&c->used, at), to;
        if (from >= end)
            break;
        to = MIN(bitmap_next_set(&c->used, from), end);
        /* Whole grains only: between tables and what else is there may be gaps. */
        uint64_t start = round_up(from * SECTOR, c->e->grain);
        uint64_t stop = to == end ? c->file_len : round_down(to * SECTOR, c->e->grain);
        int ret = start < stop ? check_unused(c, start, stop) : 0;
        if (ret < 0)
            return ret;
        at = to;
    }
    return 0;
}

/* ---- an extent ----------------------------------------------------------------------------------------------------- */

static int check_stream(struct vcheck *c)
{
    struct vmdk_extent *e = c->e;

    e->fresh = e->stream_end;
    if (e->footer_lost) {
        c->out->leaks++;
        vmdk_check_say(c, "Leaked: the footer is lost, the grains were found by their markers");
        if (c->fix) {
            e->footer_lost = false;
            e->dirty = true;
            c->out->leaks_fixed++;
        }
    }
    int ret = check_tables(c);
    if (ret == 0 && e->dirty && c->fix)
        ret = vmdk_stream_commit(c->v, e);
    if (ret == 0 && c->fix && e->log_end == e->fresh && blk_size(e->file) > e->fresh)
        ret = blk_resize(e->file, e->fresh, BLK_PREALLOC_OFF, c->err);
    return ret < 0 ? error_set(c->err, -ret, "%s: could not write its directory: %s",
                               blk_filename(e->file), strerror(-ret))
                   : 0;
}

static int check_hosted(struct vcheck *c)
{
    const struct vmdk *v = c->v;
    struct vmdk_extent *e = c->e;

    use_meta(c, 0, SECTOR);
    if (v->embedded && e->kind == EXTENT_HOSTED && vmdk_check_inside(c, v->desc_offset, 1))
        use_meta(c, v->desc_offset, MIN(v->desc_room, c->file_len - v->desc_offset));
    if (e->tables)
        return check_stream(c);
    int ret = 0;
    if (e->kind == EXTENT_HOSTED)
        ret = check_directories(c);
    if (ret == 0)
        ret = check_tables(c);
    return ret == 0 ? check_leaks(c) : ret;
}

static int check_sparse(struct vcheck *c)
{
    struct vmdk_extent *e = c->e;
    struct bitmap skip = { 0 };

    c->file_len = blk_size(e->file);
    c->end = c->last = 0;
    uint64_t sectors = e->kind == EXTENT_SE ? 1 : div_round_up(c->file_len, SECTOR);
    if (sectors > UINT64_C(1) << 33)
        return error_set(c->err, EFBIG, "%s: the file is above 4 TiB, more than entries can name",
                         blk_filename(e->file));
    int ret = bitmap_init(&c->used, sectors);
    if (ret == 0)
        ret = bitmap_init(&c->meta, sectors);
    if (ret == 0)
        ret = bitmap_init(&skip, e->gd_entries ? e->gd_entries : 1);
    c->skip = &skip;
    ret = ret < 0 ? out_of_memory(c) : check_hosted(c);
    c->skip = NULL;
    bitmap_free(&skip);
    bitmap_free(&c->used);
    bitmap_free(&c->meta);
    c->out->total_clusters += div_round_up(e->end - e->start, e->grain);
    if (c->v->extents.len == 1)
        c->out->image_end_offset = c->end;
    return ret;
}

static void check_flat(struct vcheck *c)
{
    const struct vmdk_extent *e = c->e;

    if (range_inside(e->flat_offset, e->end - e->start, blk_size(e->file)))
        return;
    c->out->corruptions++;
    vmdk_check_say(
        c, "ERROR extent '%s' has %" PRIu64 " bytes, but %" PRIu64 " at %" PRIu64 " are stated",
        e->name, blk_size(e->file), e->end - e->start, e->flat_offset);
}

/* The descriptor states how long a sparse extent is, and its header does. */
static int check_line(struct vcheck *c, size_t i)
{
    struct vmdk *v = c->v;
    const struct vmdk_extent *e = c->e;

    if (i >= v->desc.lines.len || !extent_sparse(e) ||
        v->desc.lines.at[i].sectors == (e->end - e->start) / SECTOR)
        return 0;
    c->out->leaks++;
    vmdk_check_say(c,
                   "Leaked: the descriptor says extent %zu has %" PRIu64
                   " sectors, its header says %" PRIu64,
                   i, v->desc.lines.at[i].sectors, (e->end - e->start) / SECTOR);
    if (!c->fix)
        return 0;
    int ret = vmdk_desc_rewrite(v, i, (e->end - e->start) / SECTOR, c->err);
    c->out->leaks_fixed += ret == 0;
    return ret;
}

int vmdk_check(struct blk_node *n, unsigned fix, struct blk_check *out,
               const struct blk_check_hooks *hooks, struct error **err)
{
    struct vmdk *v = node_state(n);
    struct vcheck c = { .v = v, .fix = fix, .out = out, .hooks = hooks, .err = err };
    int ret = 0;

    for (size_t i = 0; i < v->extents.len && ret == 0; i++) {
        c.e = &v->extents.at[i];
        if (fix && (c.e->kind == EXTENT_COWD || c.e->kind == EXTENT_SE))
            return error_set(err, ENOTSUP, "%s: this kind of extent can only be read",
                             blk_filename(c.e->file));
        if (extent_sparse(c.e))
            ret = check_sparse(&c);
        else if (c.e->kind == EXTENT_FLAT)
            check_flat(&c);
        if (ret == 0)
            ret = check_line(&c, i);
    }
    return ret;
}
