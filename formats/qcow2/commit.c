/* The order in which metadata reaches the disk, and the quarantine of what was freed.
 *
 * A commit takes, at one moment and under the lock, a copy of everything dirty. Then, without the
 * lock, in this order:
 *
 *      -- flush --               of the data file, if there is one (Q2)
 *      refcount blocks           increments before the references to come (Q1)
 *      -- flush --               with it lands all data written so far (Q2)
 *      L2 tables
 *      -- flush --               (only if an L1 entry follows) (Q3)
 *      L1 entries
 *      -- flush --               now what these tables no longer refer to is durably unmapped
 *      quarantine until the epoch has passed, hole punches, decrements (Q1, Q4)
 *
 * What changes meanwhile belongs to the next commit: the copies agree among themselves, so no table on the
 * disk is ever ahead of what it relies on.
 *
 * A failed step leaves everything dirty again. When the disk was merely full, a later commit may
 * succeed; any other failure is sticky.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

/* Frees kept in memory before a commit is forced: 24 bytes each. */
#define MAX_FREED 16384
/* Clusters: their counts dirty a small part of the smallest cache. */
#define RELEASED_AT_ONCE UINT64_C(16384)

/* One commit's copies. */
struct commit {
    struct table_batch *refs, *l2;
    uint8_t *l1; /* disk order */
    uint32_t l1_from, l1_to;
    freed_list freed;
    bool unsynced;
};

void qcow2_l1_touch(struct qcow2 *q, uint32_t i)
{
    if (!q->l1_dirty) {
        q->l1_dirty_from = i;
        q->l1_dirty_to = i + 1;
    } else {
        q->l1_dirty_from = MIN(q->l1_dirty_from, i);
        q->l1_dirty_to = MAX(q->l1_dirty_to, i + 1);
    }
    q->l1_dirty = true;
}

static int push_freed(struct qcow2 *q, uint64_t host, uint64_t len)
{
    uint64_t packed = cluster_of(q, q->packed_next);
    if (cluster_of(q, host) <= packed && packed <= cluster_of(q, host + len - 1))
        q->packed_next = 0;
    if (q->freed.len > 0) {
        struct freed *last = &q->freed.at[q->freed.len - 1];
        /* Whole clusters only: a shared one loses a reference for each piece in it. */
        if (last->offset + last->length == host && !in_cluster(q, host | len | last->length)) {
            last->length += len;
            return 0;
        }
    }
    struct freed f = { .offset = host, .length = len };
    (void)vector_push(&q->freed, f); /* without memory it leaks, which check mends */
    if (q->freed.len > MAX_FREED)
        atomic_store(&q->many_freed, true);
    return 0;
}

static int free_unless(struct qcow2 *q, uint64_t host, uint64_t len, const char *there)
{
    if (there)
        return qcow2_corrupt(q, "%#llx is to be freed, where %s lies", (unsigned long long)host,
                             there);
    return push_freed(q, host, len);
}

int qcow2_free_later(struct qcow2 *q, uint64_t host, uint64_t len)
{
    /* Tables that go away have left the overlap set before: this one is in use (Q5). */
    return free_unless(q, host, len, qcow2_overlap_find(q, host, len));
}

int qcow2_free_table_later(struct qcow2 *q, uint64_t host)
{
    const char *there = qcow2_overlap_find(q, host, q->cluster_size);
    return free_unless(q, host, q->cluster_size,
                       there && strcmp(there, OVERLAP_L2) != 0 ? there : NULL);
}

/* ---- taking copies ----------------------------------------------------------------------------------- */

static int take_l1(struct qcow2 *q, struct commit *c)
{
    if (!q->l1_dirty)
        return 0;
    c->l1_from = q->l1_dirty_from;
    c->l1_to = q->l1_dirty_to;
    c->l1 = malloc((size_t)(c->l1_to - c->l1_from) * 8);
    if (!c->l1)
        return -ENOMEM;
    for (uint32_t i = c->l1_from; i < c->l1_to; i++)
        store_be64(c->l1 + (size_t)(i - c->l1_from) * 8, q->l1[i]);
    q->l1_dirty = false;
    return 0;
}

static int take(struct qcow2 *q, struct commit *c)
{
    WRLOCK_SCOPE(&q->lock);
    int ret = table_cache_collect(q->refs, &c->refs);
    if (ret == 0)
        ret = table_cache_collect(q->l2, &c->l2);
    if (ret == 0)
        ret = take_l1(q, c);
    if (ret < 0)
        return ret;
    c->freed.at = q->freed.at;
    c->freed.len = q->freed.len;
    c->freed.cap = q->freed.cap;
    memset(&q->freed, 0, sizeof(q->freed));
    atomic_store(&q->many_freed, false);
    c->unsynced = q->unsynced;
    q->unsynced = false;
    return 0;
}

/* After a failure: what this commit took is dirty again. */
static void put_back(struct qcow2 *q, struct commit *c)
{
    WRLOCK_SCOPE(&q->lock);
    if (c->l1) {
        qcow2_l1_touch(q, c->l1_from);
        qcow2_l1_touch(q, c->l1_to - 1);
    }
    for (size_t i = 0; i < c->freed.len; i++)
        (void)vector_push(&q->freed, c->freed.at[i]);
    q->unsynced |= c->unsynced;
}

/* ---- writing them ---------------------------------------------------------------------------------------- */

/* An external data file; guest data that lies in the image's own file goes with its flushes. */
static int flush_data(struct qcow2 *q)
{
    struct blk_node *data = q->external ? qcow2_data(q) : NULL;
    return data ? blk_flush(data) : 0;
}

static int write_copies(struct qcow2 *q, struct commit *c, bool durable)
{
    bool l2 = !table_batch_empty(c->l2);
    int ret = durable || c->unsynced ? flush_data(q) : 0;

    if (ret == 0)
        ret = table_batch_write(c->refs);
    if (ret == 0 && (l2 || c->l1) && (c->unsynced || !table_batch_empty(c->refs)))
        ret = blk_flush(q->file);
    if (ret == 0)
        ret = table_batch_write(c->l2);
    if (ret == 0 && c->l1 && l2)
        ret = blk_flush(q->file);
    if (c->l1)
        node_event(q->file, EVENT_L1_UPDATE);
    if (ret == 0 && c->l1)
        ret = blk_write(q->file, q->header.l1_offset + (uint64_t)c->l1_from * 8, c->l1,
                        (size_t)(c->l1_to - c->l1_from) * 8, 0);
    if (ret == 0 && (durable || c->freed.len > 0))
        ret = blk_flush(q->file);
    return ret;
}

/* ---- quarantine ------------------------------------------------------------------------------------------- */

/* The first run of clusters in [cluster, last] that only this free refers to; count 0: none. */
static uint64_t last_references(struct qcow2 *q, uint64_t *cluster, uint64_t last)
{
    uint64_t count = 0, refs;

    WRLOCK_SCOPE(&q->lock);
    while (*cluster + count <= last) {
        int ret;
        do {
            ret = qcow2_ref_get(q, *cluster + count, &refs);
        } while (ret == TABLE_RELOCKED);
        if (ret < 0)
            return count;
        if (refs == 1)
            count++;
        else if (count > 0)
            break;
        else
            ++*cluster;
    }
    return count;
}

/* Gives space back to the file system while nobody can take it yet: its count is still one, and
 * nothing adds to it (packed data does not grow into a cluster that lost a piece). */
static void punch(struct qcow2 *q, const struct freed *f)
{
    uint64_t last = cluster_of(q, f->offset + f->length - 1);

    for (uint64_t c = cluster_of(q, f->offset); c <= last;) {
        uint64_t count = last_references(q, &c, last);
        if (count == 0)
            return;
        (void)blk_discard(q->file, c << q->cluster_bits, count << q->cluster_bits); /* a hint */
        c += count;
    }
}

/* Makes room in the cache. Counts may reach the disk at any time: those that grew are ahead of their use, those that
 * shrank have been through quarantine. What cannot be written stays dirty. */
static void write_refs_if_pressed(struct qcow2 *q)
{
    struct table_batch *b;
    int ret;

    if (!table_cache_pressed(q->refs))
        return;
    {
        WRLOCK_SCOPE(&q->lock);
        ret = table_cache_collect(q->refs, &b);
    }
    if (ret == 0)
        table_batch_finish(b, table_batch_write(b) == 0);
}

/* A run may be as long as the disk: it goes a few tables at a time. */
static void release_run(struct qcow2 *q, uint64_t host, uint64_t len)
{
    while (len > 0) {
        uint64_t piece = MIN(len, RELEASED_AT_ONCE << q->cluster_bits);
        {
            WRLOCK_SCOPE(&q->lock);
            qcow2_release(q, host, piece);
        }
        write_refs_if_pressed(q);
        host += piece;
        len -= piece;
    }
}

/* Releases what no request can see any more (Q4). */
static void release_passed(struct qcow2 *q, bool all)
{
    freed_list done = VECTOR_INIT;

    quarantine_take(q->node, &q->lock, &q->quarantine, all, &done);
    for (size_t i = 0; i < done.len; i++) {
        if (node_unmap(q->file) && !q->keeps_freed)
            punch(q, &done.at[i]);
        node_event(q->file, EVENT_CLUSTER_FREE);
        release_run(q, done.at[i].offset, done.at[i].length);
    }
    vector_free(&done);
}

/* ---- commit ------------------------------------------------------------------------------------------------- */

static bool nothing_pending(struct qcow2 *q)
{
    RDLOCK_SCOPE(&q->lock);
    return !table_cache_has_dirty(q->refs) && !table_cache_has_dirty(q->l2) && !q->l1_dirty &&
           q->freed.len == 0;
}

int qcow2_commit(struct qcow2 *q, bool durable)
{
    struct commit c = { 0 };
    int ret;

    LOCK_SCOPE(&q->commit_lock);
    node_event(q->file, durable ? EVENT_FLUSH_TO_DISK : EVENT_FLUSH_TO_OS);
    if (nothing_pending(q)) {
        release_passed(q, false);
        ret = durable ? flush_data(q) : 0;
        return ret == 0 && durable ? blk_flush(q->file) : ret;
    }
    ret = take(q, &c);
    if (ret == 0)
        ret = write_copies(q, &c, durable);
    if (ret < 0)
        put_back(q, &c);
    if (c.l2)
        table_batch_finish(c.l2, ret == 0);
    if (c.refs)
        table_batch_finish(c.refs, ret == 0);
    if (ret == 0)
        quarantine_enter(q->node, &q->lock, &q->quarantine, &c.freed);
    else if (ret != -ENOSPC && ret != -EDQUOT && ret != -ENOMEM)
        node_set_failed(q->node);
    free(c.l1);
    vector_free(&c.freed);
    release_passed(q, false);
    return ret;
}

int qcow2_settle(struct qcow2 *q)
{
    int ret = qcow2_commit(q, true);

    if (ret < 0)
        return ret;
    {
        LOCK_SCOPE(&q->commit_lock);
        release_passed(q, true);
    }
    return qcow2_commit(q, true);
}

int qcow2_commit_if_pressed(struct qcow2 *q)
{
    if (!atomic_load_explicit(&q->many_freed, memory_order_relaxed) &&
        !table_cache_pressed(q->l2) && !table_cache_pressed(q->refs))
        return 0;
    return qcow2_commit(q, false);
}
