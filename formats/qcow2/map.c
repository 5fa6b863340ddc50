/* Guest offset to place. */
#include <errno.h>
#include <inttypes.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

/* Nothing was ever written there: the file was cut, or the table is wrong. Reading it as zeroes
 * would pass off lost data as empty. A file that somebody else extends meanwhile proves nothing. */
static bool beyond_file(const struct qcow2 *q, uint64_t host)
{
    return host >= q->fresh && !(node_open_flags(q->node) & BLK_OPEN_SHARED);
}

int qcow2_check_host(struct qcow2 *q, uint64_t off, uint64_t host)
{
    if (in_cluster(q, host))
        return qcow2_corrupt(
            q, "guest offset %#" PRIx64 " is mapped to %#" PRIx64 ", which is not cluster aligned",
            off, host);
    if (q->external && host != off - in_cluster(q, off))
        return qcow2_corrupt(q,
                             "guest offset %#" PRIx64 " is mapped to %#" PRIx64
                             " of the data file, not to its own place",
                             off, host);
    return 0;
}

int qcow2_clip_to_file(struct qcow2 *q, uint64_t off, uint64_t host, uint64_t *len)
{
    uint64_t end = q->external ? blk_size(qcow2_data(q)) : q->fresh;
    uint64_t there = host < end ? end - host : 0;

    /* the last cluster may be cut */
    if (there > in_cluster(q, off) + *len || (node_open_flags(q->node) & BLK_OPEN_SHARED))
        return 0;
    if (there == 0)
        return qcow2_corrupt(q,
                             "guest offset %#" PRIx64 " is mapped to %#" PRIx64
                             ", beyond the end of the %sfile: was it truncated?",
                             off, host, q->external ? "data " : "");
    there = cluster_up(q, there);
    *len = MIN(*len, there - in_cluster(q, off));
    return 0;
}

int qcow2_l2_slice(struct qcow2 *q, uint64_t guest, bool exclusive, bool nowait, uint8_t **slice,
                   uint32_t *index)
{
    uint64_t i = l1_index_of(q, guest);
    uint64_t l1e = i < q->header.l1_size ? q->l1[i] : 0;
    uint64_t table = l1e & L1E_OFFSET;
    void *p;

    if (!table)
        return -ENOENT;
    if (in_cluster(q, table) || (l1e & L1E_RESERVED))
        return qcow2_corrupt(q, "L1 entry %" PRIu64 " is %#" PRIx64 ": not a table's offset", i,
                             l1e);
    if (beyond_file(q, table))
        return qcow2_corrupt(q,
                             "the L2 table at %#" PRIx64 " lies beyond the end of the file: was "
                             "it truncated?",
                             table);
    uint64_t at = (uint64_t)l2_index_of(q, guest) << q->entry_bits;
    int ret = table_cache_get(q->l2, table + (at & ~(uint64_t)(q->slice_size - 1)), exclusive,
                              nowait, &p);
    if (ret != 0)
        return ret;
    *slice = p;
    *index = (uint32_t)(at & (q->slice_size - 1)) >> q->entry_bits;
    return 0;
}

/* Bytes from guest offset `off` to the end of run of `count` clusters, at most len. */
static uint64_t run_length(const struct qcow2 *q, uint64_t off, uint64_t count, uint64_t len)
{
    return MIN(count * q->cluster_size - in_cluster(q, off), len);
}

/* No L2 table: as far as the L1 table is empty. */
static uint64_t empty_length(const struct qcow2 *q, uint64_t off, uint64_t len)
{
    uint64_t first = l1_index_of(q, off), last = l1_index_of(q, off + len - 1), i = first + 1;

    while (i <= last && i < q->header.l1_size && !(q->l1[i] & L1E_OFFSET))
        i++;
    if (i > last)
        return len;
    return (i << q->l1_shift) - off;
}

int qcow2_map_compressed(struct qcow2 *q, uint64_t entry, uint64_t off, uint64_t len,
                         struct mapping *m)
{
    if (q->external)
        return qcow2_corrupt(q,
                             "guest offset %#" PRIx64
                             " is compressed, which cannot be with an external data file",
                             off);
    m->kind = MAP_ENCODED;
    m->child = q->file;
    compressed_place(q->cluster_bits, entry, &m->child_offset, &m->encoded_length);
    m->unit_offset = off - in_cluster(q, off);
    m->unit_length = q->cluster_size;
    m->length = run_length(q, off, 1, len);
    return 0;
}

/* Neighbouring entries that continue the first: the next place, or just the same kind. */
static uint32_t count_alike(const struct qcow2 *q, const uint8_t *slice, uint32_t index,
                            uint32_t max, uint64_t first, enum entry_kind kind)
{
    uint64_t step = kind == ENTRY_NORMAL || kind == ENTRY_ZERO_ALLOC ? q->cluster_size : 0;
    uint64_t host = entry_host(first);
    uint32_t n = 1;

    while (n < max) {
        uint64_t e = slice_entry(slice, index + n);
        if (entry_kind(q, e) != kind || entry_host(e) != host + n * step)
            break;
        n++;
    }
    return n;
}

static int map_entry(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                     uint64_t len, struct mapping *m)
{
    uint64_t entry = slice_entry(slice, index), host = entry_host(entry);
    enum entry_kind kind = entry_kind(q, entry);

    if (kind == ENTRY_COMPRESSED)
        return qcow2_map_compressed(q, entry, off, len, m);
    int ret = entry_stored(q, entry) ? qcow2_check_host(q, off, host) : 0;
    if (ret == 0 && kind == ENTRY_NORMAL)
        ret = qcow2_clip_to_file(q, off, host, &len);
    if (ret < 0)
        return ret;
    uint64_t need = (in_cluster(q, off) + len + q->cluster_size - 1) >> q->cluster_bits;
    uint32_t max = (uint32_t)MIN((uint64_t)slice_left(q, index), need);
    uint32_t n = count_alike(q, slice, index, max, entry, kind);
    m->length = run_length(q, off, n, len);
    switch (kind) {
    case ENTRY_NORMAL:
        m->kind = MAP_DATA;
        break;
    case ENTRY_ZERO:
    case ENTRY_ZERO_ALLOC:
        m->kind = MAP_ZERO;
        break;
    default:
        m->kind = MAP_UNALLOCATED;
    }
    m->child = entry_stored(q, entry) ? qcow2_data(q) : NULL;
    m->child_offset = host + in_cluster(q, off);
    return 0;
}

int qcow2_map_read(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                   struct mapping *m)
{
    struct qcow2 *q = node_state(n);
    uint8_t *slice;
    uint32_t index;
    int ret;

    if (q->unreadable)
        return -ENOTSUP;
    m->offset = off;
    if (flags & BLK_NOWAIT) {
        if (!rwlock_try_share(&q->lock))
            return -EAGAIN;
    } else {
        rwlock_share(&q->lock);
    }
    do {
        ret = qcow2_l2_slice(q, off, false, flags & BLK_NOWAIT, &slice, &index);
    } while (ret == TABLE_RELOCKED);
    if (ret == -ENOENT) {
        m->kind = MAP_UNALLOCATED;
        m->length = empty_length(q, off, len);
        ret = 0;
    } else if (ret == 0) {
        ret = q->extended ? qcow2_sub_map(q, slice, index, off, len, m)
                          : map_entry(q, slice, index, off, len, m);
    }
    if (off >= q->header.size && m->kind == MAP_UNALLOCATED)
        m->kind = MAP_ZERO;   /* a machine's state: no layer below has a part in it */
    rwlock_release(&q->lock); /* taken above, by trying or waiting */
    if (ret == 0 && (flags & MAP_STATUS) && !(flags & BLK_NOWAIT) && m->kind == MAP_DATA)
        m->maybe_holes = qcow2_reserved_ahead(q);
    return ret;
}
