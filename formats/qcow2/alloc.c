/* Finding free clusters.
 *
 * First fit from alloc_hint, below which nothing is free. Runs end with a refcount slice, so that a run's
 * refcounts change together. All with the lock held exclusively.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

/* A place on a device that does not grow may lie behind its end. */
static uint64_t room_from(const struct qcow2 *q, uint64_t cluster)
{
    if (q->grows)
        return UINT64_MAX;
    uint64_t clusters = blk_size(q->file) >> q->cluster_bits;
    return cluster < clusters ? clusters - cluster : 0;
}

/* The first free run at or behind the hint, which moves along. */
static int find_run(struct qcow2 *q, uint64_t want, uint64_t *cluster, uint64_t *count)
{
    for (;;) {
        uint64_t from = q->alloc_hint;
        if (from >= (uint64_t)INT64_MAX >> q->cluster_bits)
            return -EFBIG;
        int ret = qcow2_ref_ensure_block(q, from);
        if (ret < 0)
            return ret;
        if (ret > 0)
            continue;
        ret = qcow2_ref_find_free(q, from, want, cluster, count);
        if (ret != 0)
            return ret;
        if (*count > 0)
            break;
        q->alloc_hint = from + qcow2_ref_slice_left(q, from);
    }
    *count = MIN(*count, room_from(q, *cluster));
    return *count ? 0 : -ENOSPC;
}

int qcow2_alloc(struct qcow2 *q, uint64_t want, uint64_t *host, uint64_t *got, bool *fresh)
{
    uint64_t cluster, count;
    node_event(q->file, EVENT_CLUSTER_ALLOC);
    int ret = find_run(q, want, &cluster, &count);

    if (ret != 0)
        return ret;
    *host = cluster << q->cluster_bits;
    *fresh = q->grows && *host >= q->fresh;
    if (*host < q->fresh) /* a run is fresh as a whole or not at all */
        count = MIN(count, cluster_of(q, q->fresh) - cluster);
    const char *there = qcow2_overlap_find(q, *host, count << q->cluster_bits);
    if (there)
        return qcow2_corrupt(q, "cluster %" PRIu64 " counts as free but holds %s", cluster, there);
    ret = qcow2_ref_add(q, cluster, count, 1);
    if (ret != 0)
        return ret;
    q->alloc_hint = cluster + count;
    q->fresh = MAX(q->fresh, (cluster + count) << q->cluster_bits);
    *got = count;
    return 0;
}

/* All refcount slices of the range are in the cache (0), or one was loaded just now. A process that died may have
 * counted clusters behind the end of the file that it never wrote: then `fresh` moves behind them. */
static int touch_slices(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t value;

    for (uint64_t c = first; c < first + count; c++) {
        int ret = qcow2_ref_get(q, c, &value);
        if (ret != 0)
            return ret;
        if (value) {
            q->fresh = (c + 1) << q->cluster_bits;
            return TABLE_RELOCKED;
        }
    }
    return 0;
}

/* On a device: the first gap that is large enough, as far as one refcount slice tells. */
static int alloc_gap(struct qcow2 *q, uint64_t count, uint64_t *host)
{
    uint64_t hint = q->alloc_hint, got;
    bool fresh;
    int ret;

    while ((ret = qcow2_alloc(q, count, host, &got, &fresh)) == 0 && got < count) {
        qcow2_release(q, *host, got << q->cluster_bits);
        q->alloc_hint = cluster_of(q, *host) + got;
    }
    q->alloc_hint = MIN(hint, q->alloc_hint); /* the gaps that were too small are still free */
    return ret;
}

int qcow2_alloc_exact(struct qcow2 *q, uint64_t count, uint64_t *host)
{
    uint64_t got;
    bool fresh;

    if (count == 1)
        return qcow2_alloc(q, 1, host, &got, &fresh);
    if (!q->grows)
        return alloc_gap(q, count, host);

    /* Behind everything: a table of many clusters seldom finds a gap. */
    uint64_t first = cluster_of(q, q->fresh);
    int ret = qcow2_ref_cover(q, first, count);
    if (ret == 1)
        return TABLE_RELOCKED;
    if (ret == 0)
        ret = touch_slices(q, first, count);
    if (ret != 0)
        return ret;
    for (uint64_t c = first; c < first + count;) {
        uint64_t n = MIN(qcow2_ref_slice_left(q, c), first + count - c);
        ret = qcow2_ref_add(q, c, n, 1);
        if (ret != 0)
            return ret < 0 ? ret : -EIO;
        c += n;
    }
    *host = first << q->cluster_bits;
    q->fresh = MAX(q->fresh, (first + count) << q->cluster_bits);
    return 0;
}

int qcow2_write_new_table(struct qcow2 *q, const void *table, uint64_t bytes, uint64_t *host)
{
    int ret;
    {
        WRLOCK_SCOPE(&q->lock);
        do {
            ret = qcow2_alloc_exact(q, bytes >> q->cluster_bits, host);
        } while (ret == TABLE_RELOCKED);
    }
    if (ret < 0) {
        *host = 0;
        return ret;
    }
    ret = blk_write(q->file, *host, table, bytes, 0);
    if (ret < 0) {
        WRLOCK_SCOPE(&q->lock);
        qcow2_release(q, *host, bytes);
        *host = 0;
    }
    return ret;
}

/* ---- compressed data ------------------------------------------------------------------------------------ */

/* Whether the last cluster of compressed data can take another reference. */
static int packed_usable(struct qcow2 *q)
{
    uint64_t refs;

    if (!q->packed_next)
        return 0;
    int ret = qcow2_ref_get(q, cluster_of(q, q->packed_next), &refs);
    if (ret != 0)
        return ret;
    if (refs == 0 || refs == q->refcount_max)
        q->packed_next = 0;
    return 0;
}

int qcow2_alloc_bytes(struct qcow2 *q, uint64_t len, uint64_t *host)
{
    uint64_t new_host, got;
    bool fresh;
    node_event(q->file, EVENT_CLUSTER_ALLOC_BYTES);
    int ret = packed_usable(q);

    if (ret != 0)
        return ret;
    uint64_t packed = q->packed_next;
    uint64_t room = packed ? q->cluster_size - in_cluster(q, packed) : 0;
    if (len <= room) {
        ret = qcow2_ref_add(q, cluster_of(q, packed), 1, 1);
        if (ret != 0)
            return ret;
        *host = packed;
        q->packed_next = len == room ? 0 : packed + len;
        return 0;
    }
    ret = qcow2_alloc(q, 1, &new_host, &got, &fresh);
    if (ret != 0)
        return ret;
    if (packed && new_host == packed + room) {
        ret = qcow2_ref_add(q, cluster_of(q, packed), 1, 1); /* cached since packed_usable */
        if (ret != 0) {
            qcow2_release(q, new_host, q->cluster_size);
            return ret;
        }
        *host = packed;
        len -= room;
    } else {
        *host = new_host;
    }
    q->packed_next = len == q->cluster_size ? 0 : new_host + len;
    return 0;
}

/* ---- giving back ----------------------------------------------------------------------------------------- */

void qcow2_release(struct qcow2 *q, uint64_t host, uint64_t len)
{
    uint64_t last = cluster_of(q, host + len - 1);

    for (uint64_t c = cluster_of(q, host); c <= last;) {
        uint64_t n = MIN(qcow2_ref_slice_left(q, c), last + 1 - c), refs;
        int ret;
        do {
            ret = qcow2_ref_add(q, c, n, -1);
        } while (ret == TABLE_RELOCKED);
        if (ret < 0)
            return;
        if (q->packed_next && cluster_of(q, q->packed_next) >= c &&
            cluster_of(q, q->packed_next) < c + n &&
            qcow2_ref_get(q, cluster_of(q, q->packed_next), &refs) == 0 && refs == 0)
            q->packed_next = 0;
        q->alloc_hint = MIN(q->alloc_hint, c);
        c += n;
    }
}
