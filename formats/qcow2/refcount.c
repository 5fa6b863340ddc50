/* Refcounts: one number per host cluster, in blocks that a table names (Spec, host cluster
 * management). Blocks are cached by slices, as L2 tables are.
 *
 * Everything here runs with the lock held exclusively. What answers TABLE_RELOCKED has changed
 * nothing, and the caller starts over.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

/* ---- slices ------------------------------------------------------------------------------------------ */

static uint64_t per_slice(const struct qcow2 *q)
{
    return (uint64_t)q->slice_size * 8 >> q->refcount_order;
}

uint64_t qcow2_ref_slice_left(const struct qcow2 *q, uint64_t cluster)
{
    return per_slice(q) - cluster % per_slice(q);
}

/* The host offset of the block that counts this cluster, 0: there is none. */
static int block_of(struct qcow2 *q, uint64_t cluster, uint64_t *block)
{
    uint64_t i = cluster / refblock_entries(q);
    uint64_t rte = i < q->reftable_entries ? q->reftable[i] : 0;

    *block = rte & RTE_OFFSET;
    if ((rte & RTE_RESERVED) || in_cluster(q, *block))
        return qcow2_corrupt(
            q, "refcount table entry %" PRIu64 " is %#" PRIx64 ": not a block's offset", i, rte);
    return 0;
}

/* The slice with the refcount of this cluster. -ENOENT: no block. */
static int slice_of(struct qcow2 *q, uint64_t cluster, uint8_t **slice, uint64_t *index)
{
    uint64_t block;
    void *p;
    int ret = block_of(q, cluster, &block);

    if (ret < 0)
        return ret;
    if (!block)
        return -ENOENT;
    uint64_t in_block = cluster % refblock_entries(q);
    ret =
        table_cache_get(q->refs, block + in_block / per_slice(q) * q->slice_size, true, false, &p);
    if (ret != 0)
        return ret;
    *slice = p;
    *index = in_block % per_slice(q);
    return 0;
}

int qcow2_ref_get(struct qcow2 *q, uint64_t cluster, uint64_t *value)
{
    uint8_t *slice;
    uint64_t i;
    int ret = slice_of(q, cluster, &slice, &i);

    *value = 0;
    if (ret == -ENOENT)
        return 0;
    if (ret == 0)
        *value = refcount_load(slice, i, q->refcount_order);
    return ret;
}

int qcow2_ref_range(struct qcow2 *q, uint64_t cluster, uint64_t count, uint64_t *min, uint64_t *max)
{
    uint8_t *slice;
    uint64_t i;
    int ret = slice_of(q, cluster, &slice, &i);

    *min = *max = 0;
    if (ret != 0)
        return ret == -ENOENT ? 0 : ret;
    assert(i + count <= per_slice(q));
    *min = UINT64_MAX;
    for (uint64_t k = 0; k < count; k++) {
        uint64_t v = refcount_load(slice, i + k, q->refcount_order);
        *min = MIN(*min, v);
        *max = MAX(*max, v);
    }
    return 0;
}

int qcow2_ref_add(struct qcow2 *q, uint64_t cluster, uint64_t count, int delta)
{
    uint8_t *slice;
    uint64_t i;
    int ret = slice_of(q, cluster, &slice, &i);

    if (ret == -ENOENT)
        return qcow2_corrupt(q, "cluster %" PRIu64 " is in use but has no refcount", cluster);
    if (ret != 0)
        return ret;
    assert(i + count <= per_slice(q));
    for (uint64_t k = 0; k < count; k++) {
        uint64_t v = refcount_load(slice, i + k, q->refcount_order);
        if (delta < 0 ? v == 0 : v == q->refcount_max)
            return qcow2_corrupt(q, "the refcount of cluster %" PRIu64 " would leave its range",
                                 cluster + k);
        refcount_store(slice, i + k, q->refcount_order, delta < 0 ? v - 1 : v + 1);
    }
    table_cache_dirty(q->refs, slice);
    return 0;
}

/* The first index from i on whose refcount is zero (or, with in_use, is not); n when there is none. */
static uint64_t scan(const struct qcow2 *q, const uint8_t *slice, uint64_t i, uint64_t n,
                     bool in_use)
{
    while (i < n) {
        if (q->refcount_order == 4 && !in_use && i % 4 == 0 && i + 4 <= n) {
            /* four at once: is any half-word of the eight bytes zero? */
            uint64_t w;
            memcpy(&w, slice + 2 * i, 8);
            if (!((w - UINT64_C(0x0001000100010001)) & ~w & UINT64_C(0x8000800080008000))) {
                i += 4;
                continue;
            }
        }
        if ((refcount_load(slice, i, q->refcount_order) != 0) == in_use)
            return i;
        i++;
    }
    return n;
}

int qcow2_ref_find_free(struct qcow2 *q, uint64_t from, uint64_t want, uint64_t *cluster,
                        uint64_t *count)
{
    uint8_t *slice;
    uint64_t i, n = per_slice(q);
    int ret = slice_of(q, from, &slice, &i);

    *count = 0;
    if (ret != 0)
        return ret;
    uint64_t first = scan(q, slice, i, n, false);
    if (first == n)
        return 0;
    *cluster = from + (first - i);
    *count = scan(q, slice, first, MIN(n, first + want), true) - first;
    return 0;
}

/* ---- making blocks ---------------------------------------------------------------------------------------- */

/* Writes a metadata cluster at once; not through the cache. */
static int write_table(struct qcow2 *q, uint64_t host, const void *table, uint64_t len)
{
    const char *there = qcow2_overlap_find(q, host, len);

    if (there)
        return qcow2_corrupt(q, "a new table at %#" PRIx64 " would overwrite %s", host, there);
    return blk_write(q->file, host, table, len, 0);
}

/* The table names a block that is on the disk already. */
static int hook_up(struct qcow2 *q, uint64_t index, uint64_t host)
{
    uint8_t entry[8];

    store_be64(entry, host);
    node_event(q->file, EVENT_REFBLOCK_ALLOC_HOOKUP);
    int ret = blk_write(q->file, q->header.reftable_offset + index * 8, entry, 8, 0);
    if (ret < 0)
        return ret;
    q->reftable[index] = host;
    q->fresh = MAX(q->fresh, host + q->cluster_size);
    return qcow2_overlap_add(q, host, 1, "a refcount block");
}

/* A block at the first cluster of what it counts, so that it counts itself: nothing is allocated
 * there yet, since there was no block. */
static int make_block(struct qcow2 *q, uint64_t index)
{
    uint64_t cluster = index * refblock_entries(q);
    uint64_t host = cluster << q->cluster_bits;
    _cleanup_free_ uint8_t *block = calloc(1, q->cluster_size);

    if (!block)
        return -ENOMEM;
    if (!q->grows && host + q->cluster_size > blk_size(q->file))
        return -ENOSPC;
    refcount_store(block, 0, q->refcount_order, 1);
    node_event(q->file, EVENT_REFBLOCK_ALLOC_WRITE);
    int ret = write_table(q, host, block, q->cluster_size);
    if (ret == 0)
        ret = blk_flush(q->file);
    if (ret < 0)
        return ret;
    return hook_up(q, index, host);
}

/* New blocks number from .. from + count - 1, one after the other from cluster `at`. They count the
 * clusters [used, at + count) as used once, and nothing else. */
static int write_blocks(struct qcow2 *q, uint64_t from, uint64_t count, uint64_t at, uint64_t used)
{
    uint64_t per_block = refblock_entries(q), end = at + count;
    _cleanup_free_ uint8_t *block = malloc(q->cluster_size);

    if (!block)
        return -ENOMEM;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t base = (from + i) * per_block;
        memset(block, 0, q->cluster_size);
        for (uint64_t c = MAX(base, used); c < MIN(base + per_block, end); c++)
            refcount_store(block, c - base, q->refcount_order, 1);
        int ret = write_table(q, (at + i) << q->cluster_bits, block, q->cluster_size);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* ---- growing the table -------------------------------------------------------------------------------------- */

/* A larger table, with the blocks that count the place it lies in, behind everything there is. */
struct new_table {
    uint64_t first;    /* cluster where the new structures begin */
    uint64_t clusters; /* of the table */
    uint64_t from;     /* first block index that is new */
    uint64_t blocks;   /* new blocks, right behind the table */
    uint64_t *entries;
};

static int plan_table(struct qcow2 *q, uint64_t cluster, struct new_table *t)
{
    uint64_t per_block = refblock_entries(q);
    uint64_t per_cluster = q->cluster_size / 8;

    t->from = q->reftable_entries;
    t->first = MAX(cluster, MAX(cluster_of(q, q->fresh), t->from * per_block));
    uint64_t entries = MAX(q->reftable_entries + q->reftable_entries / 2, t->first / per_block + 2);
    for (;;) {
        t->clusters = entries / per_cluster + 1;
        /* every block from the first new index to the one that counts the last new cluster */
        uint64_t last = t->first + t->clusters;
        t->blocks = last / per_block - t->from + 1;
        while ((last + t->blocks) / per_block - t->from + 1 > t->blocks)
            t->blocks++;
        if (t->from + t->blocks <= t->clusters * per_cluster)
            break;
        entries = t->from + t->blocks;
    }
    if (t->clusters << q->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
        return -EFBIG;
    if (!q->grows)
        return -ENOSPC;
    t->entries = calloc(t->clusters, q->cluster_size);
    if (!t->entries)
        return -ENOMEM;
    memcpy(t->entries, q->reftable, (size_t)q->reftable_entries * 8);
    for (uint64_t i = 0; i < t->blocks; i++)
        t->entries[t->from + i] = (t->first + t->clusters + i) << q->cluster_bits;
    return 0;
}

static int write_new_table(struct qcow2 *q, const struct new_table *t)
{
    uint64_t bytes = t->clusters << q->cluster_bits;
    _cleanup_free_ uint8_t *disk = malloc(bytes);

    if (!disk)
        return -ENOMEM;
    for (uint64_t i = 0; i < bytes / 8; i++)
        store_be64(disk + 8 * i, t->entries[i]);
    return write_table(q, t->first << q->cluster_bits, disk, bytes);
}

/* From here on the header names the new table. */
static int publish_table(struct qcow2 *q, struct new_table *t)
{
    struct qcow2_header *h = &q->header;
    uint64_t old = h->reftable_offset, old_len = (uint64_t)h->reftable_clusters << q->cluster_bits;
    int ret = blk_flush(q->file);

    if (ret < 0)
        return ret;
    node_event(q->file, EVENT_REFBLOCK_ALLOC_SWITCH_TABLE);
    h->reftable_offset = t->first << q->cluster_bits;
    h->reftable_clusters = (uint32_t)t->clusters;
    ret = qcow2_header_update(q, HDR_REFTABLE_OFFSET, HDR_REFTABLE_CLUSTERS + 4);
    if (ret == 0)
        ret = blk_flush(q->file);
    if (ret < 0) {
        h->reftable_offset = old;
        h->reftable_clusters = (uint32_t)(old_len >> q->cluster_bits);
        node_set_failed(q->node); /* which of the two tables is in force is unknown */
        return ret;
    }
    free(q->reftable);
    q->reftable = t->entries;
    t->entries = NULL;
    q->reftable_entries = (uint32_t)(t->clusters * (q->cluster_size / 8));
    q->fresh = MAX(q->fresh, (t->first + t->clusters + t->blocks) << q->cluster_bits);
    qcow2_overlap_remove(q, old, old_len);
    ret = qcow2_overlap_add(q, h->reftable_offset, t->clusters << q->cluster_bits,
                            "the refcount table");
    if (ret == 0)
        ret = qcow2_overlap_add(q, h->reftable_offset + (t->clusters << q->cluster_bits),
                                t->blocks << q->cluster_bits, "a refcount block");
    return ret < 0 ? ret : qcow2_free_later(q, old, old_len);
}

static int grow_table(struct qcow2 *q, uint64_t cluster)
{
    struct new_table t = { 0 };
    int ret = plan_table(q, cluster, &t);

    node_event(q->file, EVENT_REFTABLE_GROW);
    if (ret == 0)
        ret = write_blocks(q, t.from, t.blocks, t.first + t.clusters, t.first);
    if (ret == 0)
        ret = write_new_table(q, &t);
    if (ret == 0)
        ret = publish_table(q, &t);
    free(t.entries);
    return ret;
}

int qcow2_ref_ensure_block(struct qcow2 *q, uint64_t cluster)
{
    uint64_t index = cluster / refblock_entries(q);
    int ret;

    if (index >= q->reftable_entries) {
        ret = grow_table(q, cluster);
    } else {
        uint64_t block;
        ret = block_of(q, cluster, &block);
        if (ret < 0 || block)
            return ret;
        ret = make_block(q, index);
    }
    return ret < 0 ? ret : 1;
}

/* How many new blocks, placed behind `end`, count themselves and everything below `end`, given that
 * those below index `from` exist. */
static uint64_t blocks_needed(const struct qcow2 *q, uint64_t from, uint64_t end)
{
    uint64_t per_block = refblock_entries(q), n = 0;

    while (from + n < (end + n + per_block - 1) / per_block)
        n++;
    return n;
}

int qcow2_ref_cover(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t per_block = refblock_entries(q), end = first + count;
    uint64_t from = first / per_block, block;

    if ((end + blocks_needed(q, from, end)) / per_block + 1 >= q->reftable_entries) {
        int ret = grow_table(q, end + end / per_block + 1);
        return ret < 0 ? ret : 1;
    }
    /* Blocks exist up to some index: at `fresh` there is nothing behind. */
    for (; from * per_block < end; from++) {
        int ret = block_of(q, from * per_block, &block);
        if (ret < 0)
            return ret;
        if (!block)
            break;
    }
    uint64_t n = blocks_needed(q, from, end);
    if (n == 0)
        return 0;
    int ret = write_blocks(q, from, n, end, end);
    if (ret == 0)
        ret = blk_flush(q->file);
    for (uint64_t i = 0; i < n && ret == 0; i++)
        ret = hook_up(q, from + i, (end + i) << q->cluster_bits);
    q->fresh = MAX(q->fresh, (end + n) << q->cluster_bits);
    return ret;
}
