/* Places for writes: found, reserved, published; and clusters unmapped by zeroes and discards. */
#include <errno.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

/* ---- in place ------------------------------------------------------------------------------------------ */

static bool writable_in_place(const struct qcow2 *q, uint64_t entry)
{
    return entry_exclusive(entry) && entry_kind(q, entry) == ENTRY_NORMAL;
}

/* Entries from index on that lie one behind the other and are all as `entry` is. */
static uint32_t count_in_a_row(const struct qcow2 *q, const uint8_t *slice, uint32_t index,
                               uint32_t max, uint64_t entry)
{
    uint32_t n = 1;

    while (n < max && slice_entry(slice, index + n) == entry + (uint64_t)n * q->cluster_size)
        n++;
    return n;
}

static uint32_t clusters_wanted(const struct qcow2 *q, uint64_t off, uint64_t len, uint32_t index)
{
    uint64_t n = (in_cluster(q, off) + len + q->cluster_size - 1) >> q->cluster_bits;
    return (uint32_t)MIN(n, (uint64_t)slice_left(q, index));
}

int qcow2_check_place(struct qcow2 *q, uint64_t off, uint64_t host, uint64_t len)
{
    int ret = qcow2_check_host(q, off, host);

    if (ret < 0 || q->external)
        return ret;
    const char *there = qcow2_overlap_find(q, host, len);
    if (there)
        return qcow2_corrupt(q, "guest offset %#llx is mapped to %#llx, where %s lies",
                             (unsigned long long)off, (unsigned long long)host, there);
    return 0;
}

static int plan_in_place(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                         uint64_t len, struct write_plan *p)
{
    uint64_t entry = slice_entry(slice, index), host = entry_host(entry);
    uint32_t n = count_in_a_row(q, slice, index, clusters_wanted(q, off, len, index), entry);

    p->kind = WRITE_IN_PLACE;
    p->child = qcow2_data(q);
    p->child_offset = host + in_cluster(q, off);
    p->length = MIN(len, (uint64_t)n * q->cluster_size - in_cluster(q, off));
    return qcow2_check_place(q, off, host, (uint64_t)n * q->cluster_size);
}

/* The common case, with the lock shared. */
static int begin_in_place(struct qcow2 *q, uint64_t off, uint64_t len, bool nowait,
                          struct write_plan *p)
{
    uint8_t *slice;
    uint32_t index;
    int ret;

    if (nowait) {
        if (!rwlock_try_share(&q->lock))
            return -EAGAIN;
    } else {
        rwlock_share(&q->lock);
    }
    do {
        ret = qcow2_l2_slice(q, off, false, nowait, &slice, &index);
    } while (ret == TABLE_RELOCKED);
    if (ret == -ENOENT)
        ret = WRITE_NEEDS_RESERVATION;
    else if (ret == 0 && q->extended)
        ret = qcow2_sub_begin(q, slice, index, off, len, false, p);
    else if (ret == 0)
        ret = writable_in_place(q, slice_entry(slice, index))
                  ? plan_in_place(q, slice, index, off, len, p)
                  : WRITE_NEEDS_RESERVATION;
    rwlock_release(&q->lock); /* taken above, by trying or waiting */
    return ret;
}

/* ---- new places ------------------------------------------------------------------------------------------ */

void qcow2_clip_plan(const struct qcow2 *q, struct write_plan *p)
{
    uint64_t end = MAX(q->header.size, p->offset + p->length);

    if (q->external && p->kind == WRITE_NEW && end < p->unit_offset + p->unit_length)
        p->unit_length = end - p->unit_offset;
}

void qcow2_plan_new(struct qcow2 *q, enum new_kind kind, uint64_t host, uint64_t clusters,
                    uint64_t off, uint64_t len, struct write_plan *p)
{
    p->kind = WRITE_NEW;
    p->child = qcow2_data(q);
    p->unit_offset = off - in_cluster(q, off);
    p->unit_length = clusters << q->cluster_bits;
    p->length = MIN(len, p->unit_length - in_cluster(q, off));
    p->child_offset = host + in_cluster(q, off);
    p->priv[PRIV_KIND] = kind;
    p->priv[PRIV_HOST] = host;
    p->priv[PRIV_LENGTH] = p->unit_length;
}

/* Clusters from index on that need new storage. slice NULL: there is no table yet. */
static uint32_t count_new(const struct qcow2 *q, const uint8_t *slice, uint32_t index, uint32_t max)
{
    uint32_t n = 1;

    while (slice && n < max) {
        uint64_t e = slice_entry(slice, index + n);
        enum entry_kind kind = entry_kind(q, e);
        if (entry_exclusive(e) && (kind == ENTRY_NORMAL || kind == ENTRY_ZERO_ALLOC))
            break;
        n++;
    }
    return slice ? n : max;
}

static int begin_new(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                     uint64_t len, struct write_plan *p)
{
    uint32_t max = clusters_wanted(q, off, len, index);
    uint64_t entry = slice ? slice_entry(slice, index) : 0, host, got;
    bool fresh = false;

    if (slice && entry_exclusive(entry) && entry_kind(q, entry) == ENTRY_ZERO_ALLOC) {
        uint32_t n = count_in_a_row(q, slice, index, max, entry);
        host = entry_host(entry);
        qcow2_plan_new(q, NEW_REUSED, host, n, off, len, p);
        int ret = qcow2_check_place(q, off, host, p->unit_length);
        qcow2_clip_plan(q, p);
        return ret;
    }
    uint32_t n = count_new(q, slice, index, max);
    if (q->external) {
        qcow2_plan_new(q, NEW_REUSED, off - in_cluster(q, off), n, off, len, p);
        qcow2_clip_plan(q, p);
        return 0;
    }
    int ret = qcow2_alloc(q, n, &host, &got, &fresh);
    if (ret != 0)
        return ret;
    qcow2_plan_new(q, NEW_CLUSTERS, host, got, off, len, p);
    p->storage_is_zero = fresh;
    return 0;
}

static int begin_encoded(struct qcow2 *q, uint64_t off, uint64_t len, uint64_t encoded,
                         struct write_plan *p)
{
    uint64_t host, offset_bits = 62 - (q->cluster_bits - 8);
    int ret = qcow2_alloc_bytes(q, encoded, &host);

    if (ret != 0)
        return ret;
    if ((host + encoded) >> offset_bits) {
        qcow2_release(q, host, encoded);
        return -EFBIG;
    }
    p->kind = WRITE_NEW;
    p->child = q->file;
    p->child_offset = host;
    p->unit_offset = off;
    p->unit_length = q->cluster_size;
    p->length = len;
    p->priv[PRIV_KIND] = NEW_ENCODED;
    p->priv[PRIV_HOST] = host;
    p->priv[PRIV_LENGTH] = encoded;
    return 0;
}

static int begin_reserved(struct qcow2 *q, uint64_t off, uint64_t len, unsigned flags,
                          uint64_t encoded, struct write_plan *p)
{
    uint8_t *slice;
    uint32_t index;
    int ret = qcow2_commit_if_pressed(q);

    if (ret < 0)
        return ret;
    WRLOCK_SCOPE(&q->lock);
    do {
        if (flags & WB_ENCODED) {
            ret = begin_encoded(q, off, len, encoded, p);
            continue;
        }
        ret = qcow2_l2_slice(q, off, true, false, &slice, &index);
        if (ret == -ENOENT) {
            slice = NULL;
            index = l2_index_of(q, off) & (q->slice_entries - 1);
        } else if (ret != 0) {
            continue;
        }
        if (q->extended)
            ret = qcow2_sub_begin(q, slice, index, off, len, true, p);
        else if (slice && writable_in_place(q, slice_entry(slice, index)))
            ret = plan_in_place(q, slice, index, off, len, p);
        else
            ret = begin_new(q, slice, index, off, len, p);
    } while (ret == TABLE_RELOCKED);
    return ret;
}

int qcow2_write_begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                      uint64_t encoded_length, struct write_plan *p)
{
    struct qcow2 *q = node_state(n);

    p->offset = off;
    if (flags & WB_RESERVED)
        return begin_reserved(q, off, len, flags, encoded_length, p);
    return begin_in_place(q, off, len, flags & BLK_NOWAIT, p);
}

/* ---- publishing ------------------------------------------------------------------------------------------ */

/* The L2 table of L1 entry i is at `host` from now on, a cluster taken for it. The lock is exclusive. */
static int install_l2_table(struct qcow2 *q, uint64_t i, uint64_t host)
{
    int ret = qcow2_overlap_add(q, host, 1, OVERLAP_L2);

    if (ret < 0)
        return ret;
    table_cache_drop(q->l2, host, q->cluster_size); /* of a table that lay there once */
    q->l1[i] = host | QE_COPIED;
    qcow2_l1_touch(q, (uint32_t)i);
    return 0;
}

/* Makes an L2 table for L1 entry i. The lock is exclusive. */
static int make_l2_table(struct qcow2 *q, uint64_t i)
{
    uint64_t host;

    node_event(q->file, EVENT_L2_ALLOC_WRITE);
    int ret = qcow2_alloc_exact(q, 1, &host);

    if (ret != 0)
        return ret;
    /* Also where the file reads as zeroes already: the table must be there when L1 names it, though no
     * slice of it may have been written by then (Q3). Past the end this only makes the file longer. */
    ret = blk_zero(q->file, host, q->cluster_size, 0);
    if (ret == 0)
        ret = install_l2_table(q, i, host);
    if (ret < 0)
        qcow2_release(q, host, q->cluster_size);
    return ret;
}

/* The table of L1 entry i is shared with a snapshot: its entries move to one of our own. What they refer to
 * is counted for both already, so that they stay without COPIED. The lock is exclusive, and no slice of a
 * shared table is dirty (S2). */
static int copy_l2_table(struct qcow2 *q, uint64_t i)
{
    uint64_t old = q->l1[i] & L1E_OFFSET, host;
    _cleanup_free_ void *table = malloc(q->cluster_size);

    if (!table)
        return -ENOMEM;
    node_event(q->file, EVENT_L2_ALLOC_COW_READ);
    int ret = qcow2_alloc_exact(q, 1, &host);
    if (ret != 0)
        return ret;
    ret = blk_read(q->file, old, table, q->cluster_size, 0);
    if (ret == 0)
        ret = blk_write(q->file, host, table, q->cluster_size, 0);
    if (ret == 0)
        ret = install_l2_table(q, i, host);
    if (ret < 0) {
        qcow2_release(q, host, q->cluster_size);
        return ret;
    }
    qcow2_overlap_remove(q, old, 1);
    return qcow2_free_later(q, old, q->cluster_size);
}

int qcow2_l2_slice_own(struct qcow2 *q, uint64_t guest, bool make, uint8_t **slice, uint32_t *index)
{
    uint64_t i = l1_index_of(q, guest), l1e = i < q->header.l1_size ? q->l1[i] : 0;
    int ret = qcow2_l2_slice(q, guest, true, false, slice, index);

    if (ret == 0 && !(l1e & QE_COPIED))
        ret = copy_l2_table(q, i);
    else if (ret == -ENOENT && make)
        ret = make_l2_table(q, i);
    else
        return ret;
    return ret == 0 ? TABLE_RELOCKED : ret;
}

void qcow2_free_entry(struct qcow2 *q, uint64_t entry)
{
    uint64_t offset, length;

    if (q->external)
        return; /* the places in a data file are the guest's for ever */
    switch (entry_kind(q, entry)) {
    case ENTRY_NORMAL:
    case ENTRY_ZERO_ALLOC:
        if (in_cluster(q, entry_host(entry))) /* whose would be freed with it? */
            qcow2_corrupt(q, "guest data at %#llx, which is not cluster aligned, is to be freed",
                          (unsigned long long)entry_host(entry));
        else
            qcow2_free_later(q, entry_host(entry), q->cluster_size);
        break;
    case ENTRY_COMPRESSED:
        compressed_place(q->cluster_bits, entry, &offset, &length);
        qcow2_free_later(q, offset, length);
        break;
    default:
        break;
    }
}

static void replace_entry(struct qcow2 *q, uint8_t *slice, uint32_t index, uint64_t entry)
{
    uint64_t old = slice_entry(slice, index);

    slice_set_entry(slice, index, entry);
    table_cache_dirty(q->l2, slice);
    if (entry_host(old) != entry_host(entry) || ((old | entry) & QE_COMPRESSED))
        qcow2_free_entry(q, old);
}

static uint64_t new_entry(const struct qcow2 *q, const struct write_plan *p, uint64_t k)
{
    uint64_t host = p->priv[PRIV_HOST];

    if (p->priv[PRIV_KIND] != NEW_ENCODED)
        return (host + (k << q->cluster_bits)) | QE_COPIED;
    uint64_t sectors = ((host & 511) + p->priv[PRIV_LENGTH] + 511) / 512;
    return QE_COMPRESSED | (sectors - 1) << (62 - (q->cluster_bits - 8)) | host;
}

/* Undoes what has not been published, from cluster k on. */
static void take_back(struct qcow2 *q, const struct write_plan *p, uint64_t k)
{
    uint64_t done = k << q->cluster_bits;

    if (done >= p->priv[PRIV_LENGTH])
        return;
    if (p->priv[PRIV_KIND] == NEW_ENCODED)
        qcow2_release(q, p->priv[PRIV_HOST], p->priv[PRIV_LENGTH]);
    else if (p->priv[PRIV_KIND] == NEW_CLUSTERS)
        qcow2_release(q, p->priv[PRIV_HOST] + done, p->priv[PRIV_LENGTH] - done);
}

static void publish(struct qcow2 *q, uint8_t *slice, uint32_t index, uint64_t entry, uint64_t guest,
                    const struct write_plan *p)
{
    if (q->extended)
        qcow2_sub_publish(q, slice, index, entry, guest, p->unit_offset,
                          p->unit_offset + p->unit_length);
    else
        replace_entry(q, slice, index, entry);
}

int qcow2_write_end(struct blk_node *n, struct write_plan *p, int result)
{
    struct qcow2 *q = node_state(n);
    uint64_t start = p->unit_offset - in_cluster(q, p->unit_offset), k = 0;
    uint64_t end = p->unit_offset + p->unit_length;
    uint64_t count = cluster_of(q, cluster_up(q, end - start));
    uint8_t *slice;
    uint32_t index;

    WRLOCK_SCOPE(&q->lock);
    while (result == 0 && k < count) {
        int ret = qcow2_l2_slice_own(q, start + (k << q->cluster_bits), true, &slice, &index);
        if (ret < 0)
            result = ret;
        if (ret != 0)
            continue;
        for (; k < count && index < q->slice_entries; k++, index++)
            publish(q, slice, index, new_entry(q, p, k), start + (k << q->cluster_bits), p);
    }
    q->unsynced = true;
    if (result < 0)
        take_back(q, p, k);
    return result < 0 ? result : 0;
}

/* ---- zeroes and discard ------------------------------------------------------------------------------------ */

static uint64_t unmapped(const struct qcow2 *q, uint64_t old, enum unmap_mode mode, bool backing)
{
    enum entry_kind kind = entry_kind(q, old);

    if (mode == UNMAP_EMPTY)
        return 0;
    if (kind == ENTRY_UNALLOCATED)
        return backing && mode != UNMAP_DISCARD ? L2E_ZERO : old;
    if (mode == UNMAP_ZERO && entry_exclusive(old) &&
        (kind == ENTRY_NORMAL || kind == ENTRY_ZERO_ALLOC))
        return old | L2E_ZERO;
    if (mode == UNMAP_ZERO && kind == ENTRY_ZERO)
        return old;
    return q->version >= 3 ? L2E_ZERO : 0;
}

/* What of one cluster lies in [off, end). */
static int unmap_cluster(struct qcow2 *q, uint8_t *slice, uint32_t index, uint64_t off,
                         uint64_t end, enum unmap_mode mode, bool backing)
{
    if (q->extended)
        return qcow2_sub_unmap(q, slice, index, off - in_cluster(q, off), off, end, mode, backing);
    uint64_t old = slice_entry(slice, index), entry = unmapped(q, old, mode, backing);
    if (entry != old)
        replace_entry(q, slice, index, entry);
    return 0;
}

/* Something of what the slice maps of [off, end) is to change; extended entries may be. */
static bool any_to_unmap(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                         uint64_t end, enum unmap_mode mode, bool backing)
{
    for (; off < end && index < q->slice_entries; off += q->cluster_size, index++)
        if (q->extended ||
            unmapped(q, slice_entry(slice, index), mode, backing) != slice_entry(slice, index))
            return true;
    return false;
}

/* The slice for `off`, if something in it is to change; a shared table must not be copied for nothing. 0,
 * TABLE_RELOCKED, -ENOENT (nothing to change up to *next), or an error. *next is where the slice, or without
 * one the table, ends. */
static int slice_to_unmap(struct qcow2 *q, uint64_t off, uint64_t end, enum unmap_mode mode,
                          bool backing, uint8_t **slice, uint32_t *index, uint64_t *next)
{
    int ret = qcow2_l2_slice(q, off, true, false, slice, index);

    if (ret == -ENOENT && (!backing || mode == UNMAP_DISCARD)) {
        *next = (l1_index_of(q, off) + 1) << q->l1_shift;
        return ret;
    }
    if (ret == 0) {
        *next = off - in_cluster(q, off) + (uint64_t)slice_left(q, *index) * q->cluster_size;
        if (!any_to_unmap(q, *slice, *index, off, end, mode, backing))
            return -ENOENT;
    } else if (ret != -ENOENT) {
        return ret;
    }
    return qcow2_l2_slice_own(q, off, true, slice, index);
}

/* The part of [off, end) that one slice maps; *next is where it ends. */
static int unmap_slice(struct qcow2 *q, uint64_t off, uint64_t end, enum unmap_mode mode,
                       bool backing, uint64_t *next)
{
    uint8_t *slice;
    uint32_t index;
    int ret;

    WRLOCK_SCOPE(&q->lock);
    do {
        ret = slice_to_unmap(q, off, end, mode, backing, &slice, &index, next);
    } while (ret == TABLE_RELOCKED);
    for (; ret == 0 && off < end && index < q->slice_entries; index++) {
        ret = unmap_cluster(q, slice, index, off, end, mode, backing);
        off += q->cluster_size - in_cluster(q, off);
    }
    return ret == -ENOENT ? 0 : ret;
}

int qcow2_unmap(struct qcow2 *q, uint64_t off, uint64_t len, enum unmap_mode mode, bool backing)
{
    uint64_t end = off + len;

    while (off < end) {
        int ret = qcow2_commit_if_pressed(q);
        if (ret == 0)
            ret = unmap_slice(q, off, end, mode, backing, &off);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int qcow2_zero_range(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct qcow2 *q = node_state(n);
    bool backing = node_child(n, EDGE_BACKING) || (flags & BLK_EXPLICIT);
    bool release = flags & BLK_MAY_UNMAP;

    if (q->external)
        return qcow2_external_zero(q, off, len, flags);
    if (q->version < 3 && (backing || !release))
        return -ENOTSUP; /* no zero clusters before version 3 */
    return qcow2_unmap(q, off, len, release ? UNMAP_ZERO_FREE : UNMAP_ZERO, backing);
}

int qcow2_discard_range(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct qcow2 *q = node_state(n);
    bool backing = node_child(n, EDGE_BACKING);

    if (q->external)
        return qcow2_external_discard(q, off, len);
    if (q->version < 3 && backing)
        return -ENOTSUP; /* the backing file's old data would come up again */
    return qcow2_unmap(q, off, len, UNMAP_DISCARD, backing);
}

int qcow2_forget_range(struct qcow2 *q, uint64_t off, uint64_t len)
{
    return qcow2_unmap(q, off, len, UNMAP_EMPTY, false);
}
