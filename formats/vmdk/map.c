/* Guest offset to place. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/deflate.h"
#include "base/macros.h"
#include "base/round.h"
#include "vmdk.h"

enum { WINDOW_BITS = 15 };

struct vmdk_extent *vmdk_extent_at(struct vmdk *v, uint64_t guest)
{
    size_t low = 0, high = v->extents.len - 1;

    while (low < high) {
        size_t mid = (low + high) / 2;
        if (v->extents.at[mid].end > guest)
            high = mid;
        else
            low = mid + 1;
    }
    return &v->extents.at[low];
}

int vmdk_table(struct vmdk *v, struct vmdk_extent *e, uint32_t i, bool exclusive, bool nowait,
               uint8_t **table)
{
    void *p;

    if (e->tables) {
        *table = e->tables[i];
        return *table ? 0 : -ENOENT;
    }
    if (!e->gd[i])
        return -ENOENT;
    uint64_t place = table_place(e, i);
    if (place >= blk_size(e->file))
        return vmdk_corrupt(v, "grain table %" PRIu32 " of %s lies beyond the end of the file", i,
                            blk_filename(e->file));
    int ret = table_cache_get(e->cache, place, exclusive, nowait, &p);
    *table = p;
    return ret;
}

/* Nothing was ever written there: the file was cut, or the entry is wrong. Zeroes would pass off lost data as
 * empty. A file that somebody else extends meanwhile proves nothing. */
int vmdk_check_place(struct vmdk *v, const struct vmdk_extent *e, uint64_t guest, uint64_t offset)
{
    if (offset >= blk_size(e->file) && !(node_open_flags(v->node) & BLK_OPEN_SHARED))
        return vmdk_corrupt(v,
                            "guest offset %#" PRIx64 " is mapped to %#" PRIx64
                            " of %s, beyond the end of the file: was it truncated?",
                            guest, offset, blk_filename(e->file));
    if (offset < SECTOR || vmdk_meta_at(e, offset, e->compressed ? SECTOR : e->grain))
        return vmdk_corrupt(
            v, "guest offset %#" PRIx64 " is mapped to %#" PRIx64 " of %s, where metadata lies",
            guest, offset, blk_filename(e->file));
    return 0;
}

/* Up to where in the file an encoded grain may reach: to the next one, if that is known. */
static uint64_t encoded_limit(const struct vmdk_extent *e, const uint8_t *table, uint32_t k,
                              uint64_t offset)
{
    uint64_t most = (uint64_t)e->grain + ENCODE_ROOM, next;

    if (k + 1 < e->gt_entries && grain_at(e, table, k + 1, &next) == GRAIN_DATA && next > offset &&
        next - offset < most)
        return next - offset;
    return node_grows(e->file) ? most : MIN(most, blk_size(e->file) - offset);
}

static int map_data(struct vmdk *v, struct vmdk_extent *e, const uint8_t *table, uint32_t k,
                    uint64_t offset, uint64_t off, uint64_t len, struct mapping *m)
{
    uint64_t inside = in_grain(e, off), there = e->grain - inside, next = offset;
    int ret = vmdk_check_place(v, e, off, offset);

    if (ret < 0)
        return ret;
    m->child = e->file;
    if (e->compressed) {
        m->kind = MAP_ENCODED;
        m->child_offset = offset;
        m->encoded_length = encoded_limit(e, table, k, offset);
        m->unit_offset = off - inside;
        m->unit_length = e->grain;
        m->length = MIN(len, there);
        return 0;
    }
    m->kind = MAP_DATA;
    m->child_offset = offset + inside;
    uint64_t size = blk_size(e->file);
    while (there < len && ++k < e->gt_entries && grain_at(e, table, k, &next) == GRAIN_DATA &&
           next == m->child_offset + there && next < size)
        there += e->grain;
    m->length = MIN(len, there);
    return 0;
}

/* Entries of the same kind; GRAIN_NONE goes on where there are no tables. */
static void map_alike(struct vmdk_extent *e, const uint8_t *table, uint32_t k, enum grain_kind kind,
                      uint64_t off, uint64_t len, struct mapping *m)
{
    uint64_t there = e->grain - in_grain(e, off), unused;

    while (there < len && ++k < e->gt_entries && grain_at(e, table, k, &unused) == kind)
        there += e->grain;
    m->kind = kind == GRAIN_ZERO ? MAP_ZERO : MAP_UNALLOCATED;
    m->length = MIN(len, there);
}

static bool no_table(const struct vmdk_extent *e, uint32_t i)
{
    return e->tables ? !e->tables[i] : !e->gd[i];
}

static void map_no_table(struct vmdk_extent *e, uint32_t i, uint64_t off, uint64_t len,
                         struct mapping *m)
{
    uint64_t there = e->gt_span - (off - e->start) % e->gt_span;

    while (there < len && ++i < e->gd_entries && no_table(e, i))
        there += e->gt_span;
    m->kind = MAP_UNALLOCATED;
    m->length = MIN(len, there);
}

static int map_sparse(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t len,
                      bool nowait, struct mapping *m)
{
    uint32_t i = gt_of(e, off), k = index_of(e, off);
    uint8_t *table;
    uint64_t offset;
    int ret;

    do {
        ret = vmdk_table(v, e, i, false, nowait, &table);
    } while (ret == TABLE_RELOCKED);
    if (ret == -ENOENT) {
        map_no_table(e, i, off, len, m);
        return 0;
    }
    if (ret < 0)
        return ret;
    enum grain_kind kind = grain_at(e, table, k, &offset);
    if (kind == GRAIN_DATA)
        return map_data(v, e, table, k, offset, off, len, m);
    map_alike(e, table, k, kind, off, len, m);
    return 0;
}

int vmdk_map_read(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags, struct mapping *m)
{
    struct vmdk *v = node_state(n);
    struct vmdk_extent *e = vmdk_extent_at(v, off);

    len = MIN(len, e->end - off);
    *m = (struct mapping){ .kind = MAP_ZERO, .offset = off, .length = len };
    if (e->kind == EXTENT_ZERO)
        return 0;
    if (e->kind == EXTENT_FLAT) {
        m->kind = MAP_DATA;
        m->child = e->file;
        m->child_offset = e->flat_offset + (off - e->start);
        m->maybe_holes = true;
        return 0;
    }
    if (flags & BLK_NOWAIT) {
        if (!rwlock_try_share(&v->lock))
            return -EAGAIN;
    } else {
        rwlock_share(&v->lock);
    }
    int ret = map_sparse(v, e, off, len, flags & BLK_NOWAIT, m);
    rwlock_release(&v->lock); /* taken above, by trying or waiting */
    return ret;
}

/* ---- encoded grains -------------------------------------------------------------------------------------- */

/* The marker says for which sector of the disk it is and how long the encoding is: neither is believed. Of the disk's last
 * grain only what the disk has of it need be there. */
int vmdk_decode_extent(const struct vmdk_extent *e, const struct mapping *m, const void *in,
                       size_t in_len, void *out, size_t out_len)
{
    const uint8_t *b = in;
    size_t skip = e->markers ? GRAIN_MARKER : 0, len = in_len;

    if (in_len < GRAIN_MARKER)
        return -EIO;
    if (e->markers) {
        if (load_le64(b) != (m->unit_offset - e->start) / SECTOR ||
            load_le32(b + 8) > in_len - GRAIN_MARKER)
            return -EIO;
        len = load_le32(b + 8);
    }
    int64_t got = deflate_decode(DEFLATE_ZLIB, WINDOW_BITS, b + skip, len, out, out_len);
    if (got < 0)
        return (int)got;
    if ((size_t)got < out_len) {
        if (m->unit_offset + (uint64_t)got < e->end)
            return -EIO;
        memset((uint8_t *)out + got, 0, out_len - (size_t)got);
    }
    return 0;
}

int vmdk_decode(struct blk_node *n, const struct mapping *m, const void *in, size_t in_len,
                void *out, size_t out_len)
{
    return vmdk_decode_extent(vmdk_extent_at(node_state(n), m->unit_offset), m, in, in_len, out,
                              out_len);
}

/* Marker, encoding, and zeroes up to a whole sector. */
int64_t vmdk_encode(struct blk_node *n, uint64_t unit_offset, const void *in, size_t in_len,
                    void *out, size_t out_cap)
{
    struct vmdk *v = node_state(n);
    struct vmdk_extent *e = vmdk_extent_at(v, unit_offset);
    uint8_t *b = out;
    size_t skip = e->markers ? GRAIN_MARKER : 0;

    if (out_cap < in_len + skip + SECTOR)
        return -EINVAL;
    int64_t len =
        deflate_encode(DEFLATE_ZLIB, WINDOW_BITS, in, in_len, b + skip, out_cap - skip - SECTOR);
    if (len < 0)
        return len;
    if (e->markers) {
        store_le64(b, (unit_offset - e->start) / SECTOR);
        store_le32(b + 8, (uint32_t)len);
    }
    size_t end = skip + (size_t)len, whole = align_up(end, SECTOR);
    memset(b + end, 0, whole - end);
    return (int64_t)whole;
}
