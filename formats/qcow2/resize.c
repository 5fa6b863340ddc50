/* Changing the disk's size. Exclusive: no request is in flight. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

static int failed(struct qcow2 *q, int ret, const char *what, struct error **err)
{
    return error_set(err, -ret, "%s: could not %s: %s", blk_filename(q->node), what,
                     strerror(-ret));
}

/* ---- a larger L1 table ------------------------------------------------------------------------------- */

/* From here on the header names the new table; the old one is freed. Owns l1. */
static int publish_l1(struct qcow2 *q, uint64_t host, uint64_t entries, uint64_t *l1)
{
    struct qcow2_header *h = &q->header;
    uint64_t old = h->l1_offset, old_len = (uint64_t)h->l1_size * 8;

    node_event(q->file, EVENT_L1_GROW_ACTIVATE_TABLE);
    WRLOCK_SCOPE(&q->lock);
    h->l1_offset = host;
    h->l1_size = (uint32_t)entries;
    int ret = qcow2_header_update(q, HDR_L1_SIZE, HDR_L1_OFFSET + 8);
    if (ret == 0)
        ret = blk_flush(q->file);
    if (ret < 0) {
        /* Which table the header names is unknown; the one in memory is good for reading. */
        h->l1_offset = old;
        h->l1_size = (uint32_t)(old_len / 8);
        free(l1);
        node_set_failed(q->node);
        return ret;
    }
    free(q->l1);
    q->l1 = l1;
    if (old_len > 0) {
        qcow2_overlap_remove(q, old, old_len);
        qcow2_free_later(q, old, cluster_up(q, old_len));
    }
    return qcow2_overlap_add(q, host, entries * 8, "the L1 table");
}

static int grow_l1(struct qcow2 *q, uint64_t entries)
{
    uint64_t host, bytes = cluster_up(q, entries * 8);

    node_event(q->file, EVENT_L1_GROW_ALLOC_TABLE);
    int ret = qcow2_commit(q, true); /* the table in memory is the one on the disk */
    if (ret < 0)
        return ret;
    uint64_t *l1 = calloc(1, bytes);
    _cleanup_free_ uint8_t *disk = calloc(1, bytes);
    if (!l1 || !disk) {
        free(l1);
        return -ENOMEM;
    }
    memcpy(l1, q->l1, (size_t)q->header.l1_size * 8);
    for (uint32_t i = 0; i < q->header.l1_size; i++)
        store_be64(disk + (size_t)i * 8, l1[i]);
    node_event(q->file, EVENT_L1_GROW_WRITE_TABLE);
    ret = qcow2_write_new_table(q, disk, bytes, &host);
    if (ret == 0)
        ret = qcow2_commit(q, true); /* refcounts of the new table, then */
    if (ret == 0)
        ret = blk_flush(q->file); /* the table itself */
    if (ret < 0) {
        free(l1);
        return ret;
    }
    return publish_l1(q, host, entries, l1);
}

/* ---- preallocation ------------------------------------------------------------------------------------- */

int qcow2_store_zeroes(struct qcow2 *q, uint64_t off, uint64_t end)
{
    while (off < end) {
        struct write_plan p = { .offset = off };
        int ret = qcow2_write_begin(q->node, off, end - off, WB_RESERVED, 0, &p);
        if (ret < 0)
            return ret;
        if (p.kind == WRITE_NEW) {
            uint64_t start = p.child_offset - in_cluster(q, off);
            ret = 0;
            if (q->external)
                ; /* zeroed when the data file grew */
            else if (!p.storage_is_zero)
                ret = blk_zero(q->file, start, p.unit_length, 0);
            else if (blk_size(q->file) < start + p.unit_length)
                ret = blk_resize(q->file, start + p.unit_length, BLK_PREALLOC_OFF, NULL);
            ret = qcow2_write_end(q->node, &p, ret);
            if (ret < 0)
                return ret;
        }
        off += p.length;
    }
    return 0;
}

/* Puts storage behind the mapped clusters of [off, end). */
static int fill(struct qcow2 *q, uint64_t off, uint64_t end, enum blk_prealloc how)
{
    if (how == BLK_PREALLOC_METADATA || q->external)
        return 0;
    while (off < end) {
        struct mapping m = { 0 };
        int ret = qcow2_map_read(q->node, off, end - off, 0, &m);
        /* written zeroes are storage, whatever the file system */
        if (ret == 0 && m.kind == MAP_DATA)
            ret = blk_zero(q->file, m.child_offset, m.length, 0);
        if (ret < 0)
            return ret;
        off += m.length;
    }
    return 0;
}

int qcow2_grow_l1_for(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct error **err)
{
    uint64_t need = offset <= INT64_MAX && bytes <= INT64_MAX - offset
                        ? l1_entries_for(q->l1_shift, offset + bytes)
                        : UINT64_MAX / 8;

    if (need * 8 > QCOW2_MAX_L1_BYTES)
        return error_set(err, EFBIG,
                         "%s: %" PRIu64 " bytes are too many for clusters of %u bytes: "
                         "the limit is %" PRIu64,
                         blk_filename(q->node), offset + bytes, q->cluster_size,
                         (uint64_t)QCOW2_MAX_L1_BYTES / 8 << q->l1_shift);
    int ret = need > q->header.l1_size ? grow_l1(q, need) : 0;
    return ret < 0 ? failed(q, ret, "make a larger L1 table", err) : 0;
}

/* ---- shrinking ------------------------------------------------------------------------------------------ */

/* Unmaps what lies behind `size`, a machine's state included, first in the tables and then the tables themselves. */
static int cut_off(struct qcow2 *q, uint64_t size)
{
    uint64_t from = cluster_up(q, size);
    uint64_t end = (uint64_t)q->header.l1_size << q->l1_shift;
    int ret = from < end ? qcow2_discard_range(q->node, from, end - from) : 0;

    if (ret == -ENOTSUP) /* version 2 with a backing file, which nobody sees there */
        ret = qcow2_forget_range(q, from, end - from);
    if (ret == 0)
        ret = qcow2_commit(q, true);
    return ret;
}

int qcow2_drop_tables(struct qcow2 *q, uint64_t size)
{
    uint64_t keep = l1_entries_for(q->l1_shift, size);
    {
        node_event(q->file, EVENT_L1_SHRINK_FREE_L2_CLUSTERS);
        WRLOCK_SCOPE(&q->lock);
        for (uint64_t i = keep; i < q->header.l1_size; i++) {
            uint64_t table = q->l1[i] & L1E_OFFSET;
            if (!table)
                continue;
            q->l1[i] = 0;
            qcow2_l1_touch(q, (uint32_t)i);
            table_cache_drop(q->l2, table, q->cluster_size);
            qcow2_overlap_remove(q, table, 1);
            qcow2_free_later(q, table, q->cluster_size);
        }
    }
    return qcow2_commit(q, true);
}

/* ---- resize --------------------------------------------------------------------------------------------- */

static int set_size(struct qcow2 *q, uint64_t size)
{
    uint64_t old = q->header.size;

    q->header.size = size;
    int ret = qcow2_header_update(q, HDR_SIZE, HDR_SIZE + 8);
    if (ret == 0)
        ret = blk_flush(q->file);
    if (ret < 0) {
        q->header.size = old;
        node_set_failed(q->node);
    }
    return ret;
}

/* What lies behind `size` goes, from the tables and with them. */
static int free_behind(struct qcow2 *q, uint64_t size)
{
    int ret = cut_off(q, size);

    if (ret == 0)
        ret = qcow2_drop_tables(q, size);
    return ret == 0 ? qcow2_settle(q) : ret;
}

static int shrink(struct qcow2 *q, uint64_t size, struct error **err)
{
    /* The header first: from then on nothing below it is needed, and a crash leaves leaks. */
    int ret = qcow2_commit(q, true);

    if (ret == 0)
        ret = set_size(q, size);
    if (ret < 0)
        return failed(q, ret, "write the new size", err);
    ret = free_behind(q, size);
    if (ret < 0)
        return failed(q, ret, "free what lies behind the new end", err);
    return q->external ? qcow2_external_shrink(q, size, err) : 0;
}

/* A machine's state that an applied snapshot brought must not become part of the disk. */
static int drop_vm_state(struct qcow2 *q)
{
    for (uint64_t i = l1_entries_for(q->l1_shift, q->header.size); i < q->header.l1_size; i++)
        if (q->l1[i] & L1E_OFFSET)
            return free_behind(q, q->header.size);
    return 0;
}

static int grow(struct qcow2 *q, uint64_t size, enum blk_prealloc prealloc, struct error **err)
{
    uint64_t old = q->header.size;
    int ret = drop_vm_state(q);

    if (ret < 0)
        return failed(q, ret, "free a machine's state behind the disk", err);
    ret = qcow2_grow_l1_for(q, 0, size, err);
    if (ret < 0)
        return ret;
    if (q->external) {
        ret = qcow2_external_grow(q, size, prealloc, err);
        if (ret < 0)
            return ret;
        if (q->external_raw && prealloc == BLK_PREALLOC_OFF)
            prealloc = BLK_PREALLOC_METADATA; /* a raw data file is the disk */
    }
    if (prealloc != BLK_PREALLOC_OFF) {
        ret = qcow2_store_zeroes(q, cluster_up(q, old), size);
        if (ret == 0)
            ret = fill(q, cluster_up(q, old), size, prealloc);
        if (ret < 0)
            return failed(q, ret, "preallocate the new part", err);
    }
    ret = qcow2_commit(q, true);
    if (ret == 0)
        ret = set_size(q, size);
    return ret < 0 ? failed(q, ret, "write the new size", err) : 0;
}

int qcow2_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err)
{
    struct qcow2 *q = node_state(n);

    if (size % 512)
        return error_set(err, EINVAL, "%s: the new size must be a multiple of 512 bytes",
                         blk_filename(n));
    if (size == q->header.size)
        return 0;
    if (q->header.nb_snapshots && q->version < 3)
        return error_set(err, ENOTSUP,
                         "%s: an image of version 2 with snapshots cannot be resized: they do not "
                         "say how large the disk was",
                         blk_filename(n));
    if (size < q->header.size)
        return shrink(q, size, err);
    return grow(q, size, prealloc, err);
}
