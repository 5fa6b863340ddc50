/* What an L1 table reaches: its L2 tables and all that they map. snapshot.h has the rules. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "snapshot.h"
#include "subcluster.h"

/* Frees kept in memory before they are carried out. */
#define MANY_FREED 8192

/* ---- walking -------------------------------------------------------------------------------------------- */

/* `each` is called for every run of host bytes that one reference holds: neighbouring clusters together, each
 * compressed cluster by itself, and last the table (table true). The lock is not held. */
struct walk {
    struct qcow2 *q;
    int (*each)(struct walk *w, uint64_t host, uint64_t len, bool table);
    int (*between)(struct qcow2 *q); /* after each table */
    uint64_t calls, limit;           /* limit: stop after so many calls; 0: none */
    uint64_t host, len;              /* the run that grows */
    uint8_t *slice;                  /* a copy */
};

static int call(struct walk *w, uint64_t host, uint64_t len, bool table)
{
    if (w->limit && w->calls == w->limit)
        return 0;
    int ret = w->each(w, host, len, table);
    if (ret == 0)
        w->calls++;
    return ret;
}

static int end_run(struct walk *w)
{
    uint64_t len = w->len;

    w->len = 0;
    return len ? call(w, w->host, len, false) : 0;
}

static int walk_entry(struct walk *w, uint64_t entry)
{
    struct qcow2 *q = w->q;
    uint64_t host = entry_host(entry), len;

    if (entry & QE_COMPRESSED) {
        int ret = end_run(w);
        compressed_place(q->cluster_bits, entry, &host, &len);
        return ret == 0 ? call(w, host, len, false) : ret;
    }
    if (!host)
        return 0;
    if (in_cluster(q, host))
        return qcow2_corrupt(q, "guest data at %#" PRIx64 " is not cluster aligned", host);
    if (w->len && w->host + w->len == host) {
        w->len += q->cluster_size;
        return 0;
    }
    int ret = end_run(w);
    w->host = host;
    w->len = q->cluster_size;
    return ret;
}

static int copy_slice(struct walk *w, uint64_t offset)
{
    void *p;
    int ret;

    WRLOCK_SCOPE(&w->q->lock);
    do {
        ret = table_cache_get(w->q->l2, offset, true, false, &p);
    } while (ret == TABLE_RELOCKED);
    if (ret == 0)
        memcpy(w->slice, p, w->q->slice_size);
    return ret;
}

static int walk_table(struct walk *w, uint64_t table)
{
    struct qcow2 *q = w->q;
    int ret = 0;

    for (uint32_t at = 0; at < q->cluster_size && ret == 0; at += q->slice_size) {
        ret = copy_slice(w, table + at);
        for (uint32_t i = 0; i < slice_left(q, 0) && ret == 0; i++)
            ret = walk_entry(w, l2_entry_at(q, w->slice, i));
    }
    if (ret == 0)
        ret = end_run(w);
    return ret == 0 ? call(w, table, q->cluster_size, true) : ret;
}

static int walk_tree(struct walk *w, const struct qcow2_l1 *l1)
{
    struct qcow2 *q = w->q;
    int ret = 0;

    w->slice = malloc(q->slice_size);
    if (!w->slice)
        return -ENOMEM;
    for (uint32_t i = 0; i < l1->size && ret == 0; i++) {
        uint64_t table = l1->at[i] & L1E_OFFSET;
        if (!table)
            continue;
        if (in_cluster(q, table) || (l1->at[i] & L1E_RESERVED))
            ret = qcow2_corrupt(q, "L1 entry %" PRIu32 " is %#" PRIx64 ": not a table's offset", i,
                                l1->at[i]);
        if (ret == 0)
            ret = walk_table(w, table);
        if (ret == 0)
            ret = w->between(q);
    }
    free(w->slice);
    return ret;
}

/* ---- one reference more ------------------------------------------------------------------------------------ */

static int keep_clusters(struct qcow2 *q, uint64_t cluster, uint64_t count)
{
    uint64_t min, max;
    int ret = qcow2_ref_range(q, cluster, count, &min, &max);

    if (ret != 0)
        return ret;
    if (min == 0)
        return qcow2_corrupt(q, "cluster %" PRIu64 " or one behind it is in use but not counted",
                             cluster);
    return max == q->refcount_max ? -ERANGE : qcow2_ref_add(q, cluster, count, 1);
}

static int keep(struct walk *w, uint64_t host, uint64_t len, bool table)
{
    struct qcow2 *q = w->q;
    uint64_t first = cluster_of(q, host), last = cluster_of(q, host + len - 1);
    (void)table;

    WRLOCK_SCOPE(&q->lock);
    for (uint64_t c = first; c <= last;) {
        uint64_t n = MIN(qcow2_ref_slice_left(q, c), last + 1 - c);
        int ret = keep_clusters(q, c, n);
        if (ret < 0 && c > first)
            qcow2_release(q, first << q->cluster_bits, (c - first) << q->cluster_bits);
        if (ret < 0)
            return ret;
        if (ret == 0)
            c += n;
    }
    return 0;
}

static int unkeep(struct walk *w, uint64_t host, uint64_t len, bool table)
{
    (void)table;
    WRLOCK_SCOPE(&w->q->lock);
    qcow2_release(w->q, host, len);
    return 0;
}

int qcow2_tree_keep(struct qcow2 *q, const struct qcow2_l1 *l1)
{
    struct walk w = { .q = q, .each = keep, .between = qcow2_commit_if_pressed };
    int ret = walk_tree(&w, l1);

    if (ret == 0 || w.calls == 0)
        return ret;
    struct walk back = {
        .q = q, .each = unkeep, .between = qcow2_commit_if_pressed, .limit = w.calls
    };
    if (walk_tree(&back, l1) < 0)
        node_set_failed(q->node); /* what it counted too often leaks */
    return ret;
}

int qcow2_tree_unkeep(struct qcow2 *q, const struct qcow2_l1 *l1)
{
    struct walk w = { .q = q, .each = unkeep, .between = qcow2_commit_if_pressed };
    return walk_tree(&w, l1);
}

/* ---- one reference less ------------------------------------------------------------------------------------- */

static int drop(struct walk *w, uint64_t host, uint64_t len, bool table)
{
    WRLOCK_SCOPE(&w->q->lock);
    return table ? qcow2_free_table_later(w->q, host) : qcow2_free_later(w->q, host, len);
}

static int settle_if_many(struct qcow2 *q)
{
    return q->freed.len > MANY_FREED ? qcow2_settle(q) : 0;
}

int qcow2_tree_drop(struct qcow2 *q, const struct qcow2_l1 *l1)
{
    struct walk w = { .q = q, .each = drop, .between = settle_if_many };
    return walk_tree(&w, l1);
}

/* ---- flags --------------------------------------------------------------------------------------------------- */

/* The entry with COPIED as its storage's refcount wants it. */
static int flagged(struct qcow2 *q, uint64_t entry, uint64_t host, bool shared, uint64_t *out)
{
    uint64_t refs = 2;
    int ret = shared ? 0 : qcow2_ref_get(q, cluster_of(q, host), &refs);

    *out = (entry & ~QE_COPIED) | (refs == 1 ? QE_COPIED : 0);
    return ret;
}

/* Entries from *index on; TABLE_RELOCKED: go on from there with the slice looked up again. */
static int flag_entries(struct qcow2 *q, uint8_t *slice, uint32_t *index, bool shared)
{
    for (; *index < slice_left(q, 0); ++*index) {
        uint64_t entry = l2_entry_at(q, slice, *index), wanted;
        if ((entry & QE_COMPRESSED) || !entry_host(entry))
            continue;
        int ret = flagged(q, entry, entry_host(entry), shared, &wanted);
        if (ret != 0)
            return ret;
        if (wanted != entry) {
            l2_set_entry_at(q, slice, *index, wanted);
            table_cache_dirty(q->l2, slice);
        }
    }
    return 0;
}

static int flag_table(struct qcow2 *q, uint64_t table, bool shared)
{
    WRLOCK_SCOPE(&q->lock);
    for (uint32_t at = 0; at < q->cluster_size; at += q->slice_size) {
        uint32_t index = 0;
        void *slice;
        int ret;
        do {
            ret = table_cache_get(q->l2, table + at, true, false, &slice);
            if (ret == 0)
                ret = flag_entries(q, slice, &index, shared);
        } while (ret == TABLE_RELOCKED);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int flag_l1_entry(struct qcow2 *q, uint32_t i, bool shared)
{
    uint64_t wanted;
    int ret;

    WRLOCK_SCOPE(&q->lock);
    do {
        ret = flagged(q, q->l1[i], q->l1[i] & L1E_OFFSET, shared, &wanted);
    } while (ret == TABLE_RELOCKED);
    if (ret == 0 && wanted != q->l1[i]) {
        q->l1[i] = wanted;
        qcow2_l1_touch(q, i);
    }
    return ret;
}

int qcow2_tree_flags(struct qcow2 *q, bool shared)
{
    int ret = 0;

    for (uint32_t i = 0; i < q->header.l1_size && ret == 0; i++) {
        uint64_t l1e = q->l1[i];
        if (!(l1e & L1E_OFFSET) || (shared && !(l1e & QE_COPIED)))
            continue; /* shared before: nothing below it has the flag (S2) */
        ret = flag_table(q, l1e & L1E_OFFSET, shared);
        if (ret == 0)
            ret = flag_l1_entry(q, i, shared);
        if (ret == 0)
            ret = qcow2_commit_if_pressed(q);
    }
    return ret == 0 ? qcow2_commit(q, true) : ret;
}
