/* Refcounts of another width.
 *
 * The new table and its blocks are allocated like anything else, so the old refcounts count them, and are
 * filled with what the old ones say, themselves included. When they are on the disk, one write of the header
 * (table, its size and the width lie within one sector) puts them in force. Then the old structures
 * are freed. At every moment one complete set is in force; a crash leaves the other one as leaks.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "internal.h"

enum { MAX_TRIES = 16 };

struct widen {
    struct qcow2 *q;
    uint32_t order;
    uint64_t max;       /* what a refcount of that width can say */
    uint64_t per_block; /* refcounts of that width */
    /* found by counting */
    uint64_t blocks, last; /* new blocks that count anything; the index of the last */
    /* the new structures: the table, then the blocks */
    uint64_t host, clusters; /* where, and how many clusters in all */
    uint64_t table;          /* clusters of the table */
    uint64_t *entries;
    uint8_t *block;   /* being filled */
    uint64_t filling; /* its index */
    uint64_t written; /* blocks */
    uint64_t entries_n;
};

/* Called for each cluster in use, in order. */
typedef int use_fn(struct widen *w, uint64_t cluster, uint64_t refs, struct error **err);

uint64_t qcow2_refcount_steps(const struct qcow2 *q)
{
    return 2 * (uint64_t)q->reftable_entries;
}

/* ---- walking over the old ones ----------------------------------------------------------------------- */

static int ref_get(struct qcow2 *q, uint64_t cluster, uint64_t *refs)
{
    int ret;

    WRLOCK_SCOPE(&q->lock);
    do {
        ret = qcow2_ref_get(q, cluster, refs);
    } while (ret == TABLE_RELOCKED);
    return ret;
}

static int failed(struct widen *w, int ret, const char *what, struct error **err)
{
    return error_set(err, -ret, "%s: could not %s: %s", blk_filename(w->q->node), what,
                     strerror(-ret));
}

static int walk_block(struct widen *w, uint64_t first, uint64_t count, use_fn *fn,
                      struct error **err)
{
    for (uint64_t c = first; c < first + count; c++) {
        uint64_t refs;
        int ret = ref_get(w->q, c, &refs);
        if (ret < 0)
            return failed(w, ret, "read the refcounts", err);
        if (refs)
            ret = fn(w, c, refs, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int walk(struct widen *w, use_fn *fn, struct qcow2_progress *p, struct error **err)
{
    struct qcow2 *q = w->q;
    uint64_t per_block = refblock_entries(q);

    for (uint64_t i = 0; i < q->reftable_entries; i++) {
        int ret = 0;
        if (q->reftable[i] & RTE_OFFSET)
            ret = walk_block(w, i * per_block, per_block, fn, err);
        if (ret < 0)
            return ret;
        if (p && qcow2_step(p, 1) < 0)
            return error_set(err, ECANCELED, "%s: stopped", blk_filename(q->node));
    }
    return 0;
}

/* ---- counting ------------------------------------------------------------------------------------------ */

static int count_use(struct widen *w, uint64_t cluster, uint64_t refs, struct error **err)
{
    uint64_t index = cluster / w->per_block;

    if (refs > w->max)
        return error_set(err, EINVAL,
                         "%s: refcounts cannot have %u bits: the cluster at offset %#" PRIx64
                         " has a refcount of %" PRIu64 ", the limit would be %" PRIu64,
                         blk_filename(w->q->node), 1u << w->order, cluster << w->q->cluster_bits,
                         refs, w->max);
    if (w->blocks == 0 || index != w->last)
        w->blocks++;
    w->last = index;
    return 0;
}

/* How many clusters the new structures take as things are. */
static int count(struct widen *w, uint64_t *need, struct qcow2_progress *p, struct error **err)
{
    w->blocks = w->last = 0;
    int ret = walk(w, count_use, p, err);
    if (ret < 0)
        return ret;
    w->table = div_round_up((w->last + 1) * 8, (uint64_t)w->q->cluster_size);
    if (w->table << w->q->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
        return error_set(err, EFBIG,
                         "%s: with refcounts of %u bits the refcount table would be above its "
                         "limit of 8 MiB",
                         blk_filename(w->q->node), 1u << w->order);
    *need = w->table + w->blocks;
    return 0;
}

static int allocate(struct widen *w, uint64_t clusters, struct error **err)
{
    struct qcow2 *q = w->q;
    int ret;
    {
        WRLOCK_SCOPE(&q->lock);
        do {
            ret = qcow2_alloc_exact(q, clusters, &w->host);
        } while (ret == TABLE_RELOCKED);
    }
    if (ret < 0)
        return failed(w, ret, "allocate the new refcounts", err);
    w->clusters = clusters;
    /* The file first: check does not look for leaks behind its end. */
    uint64_t end = w->host + (clusters << q->cluster_bits);
    if (q->grows && blk_size(q->file) < end)
        ret = blk_resize(q->file, end, BLK_PREALLOC_OFF, NULL);
    return ret < 0 ? failed(w, ret, "make room for the new refcounts", err) : 0;
}

static void give_back(struct widen *w)
{
    if (!w->clusters)
        return;
    WRLOCK_SCOPE(&w->q->lock);
    qcow2_release(w->q, w->host, w->clusters << w->q->cluster_bits);
    w->clusters = 0;
}

/* What is allocated must itself be counted, so this goes round until it suffices. */
static int make_place(struct widen *w, struct qcow2_progress *p, struct error **err)
{
    uint64_t need;
    int ret = count(w, &need, p, err);

    for (unsigned i = 0; ret == 0 && i < MAX_TRIES; i++) {
        uint64_t have = need + i;
        ret = allocate(w, have, err);
        if (ret == 0)
            ret = count(w, &need, NULL, err);
        if (ret < 0 || need <= have)
            return ret;
        give_back(w);
    }
    return ret < 0 ? ret
                   : error_set(err, EFBIG, "%s: found no place for the new refcounts",
                               blk_filename(w->q->node));
}

/* ---- filling ------------------------------------------------------------------------------------------- */

static int write_block(struct widen *w, struct error **err)
{
    struct qcow2 *q = w->q;
    uint64_t host = w->host + ((w->table + w->written) << q->cluster_bits);

    if (w->filling == UINT64_MAX)
        return 0;
    int ret = blk_write(q->file, host, w->block, q->cluster_size, 0);
    if (ret < 0)
        return failed(w, ret, "write a refcount block", err);
    w->entries[w->filling] = host;
    w->written++;
    memset(w->block, 0, q->cluster_size);
    return 0;
}

static int fill_use(struct widen *w, uint64_t cluster, uint64_t refs, struct error **err)
{
    uint64_t index = cluster / w->per_block;

    if (index != w->filling) {
        int ret = write_block(w, err);
        if (ret < 0)
            return ret;
        w->filling = index;
    }
    refcount_store(w->block, cluster % w->per_block, w->order, refs);
    return 0;
}

static int fill(struct widen *w, struct qcow2_progress *p, struct error **err)
{
    struct qcow2 *q = w->q;
    uint64_t bytes = w->table << q->cluster_bits;

    w->entries_n = bytes / 8;
    w->entries = calloc(1, bytes);
    w->block = calloc(1, q->cluster_size);
    _cleanup_free_ uint8_t *disk = malloc(bytes);
    if (!w->entries || !w->block || !disk)
        return error_set(err, ENOMEM, "out of memory");
    w->filling = UINT64_MAX;
    int ret = walk(w, fill_use, p, err);
    if (ret == 0)
        ret = write_block(w, err);
    if (ret < 0)
        return ret;
    for (uint64_t i = 0; i < w->entries_n; i++)
        store_be64(disk + 8 * i, w->entries[i]);
    ret = blk_write(q->file, w->host, disk, bytes, 0);
    if (ret == 0)
        ret = blk_flush(q->file);
    return ret < 0 ? failed(w, ret, "write the new refcount table", err) : 0;
}

/* ---- the switch ------------------------------------------------------------------------------------------ */

static int switch_header(struct widen *w)
{
    struct qcow2_header next = w->q->header;

    node_event(w->q->file, EVENT_REFBLOCK_ALLOC_SWITCH_TABLE);
    next.reftable_offset = w->host;
    next.reftable_clusters = (uint32_t)w->table;
    next.refcount_order = w->order;
    return qcow2_header_switch(w->q, &next, HDR_REFTABLE_OFFSET, HDR_REFCOUNT_ORDER + 4);
}

/* Takes the new structures into memory and frees the old ones. */
static int adopt(struct widen *w, uint64_t old_table, uint64_t old_bytes)
{
    struct qcow2 *q = w->q;
    uint64_t *old = q->reftable, old_n = q->reftable_entries;
    uint64_t used = w->table + w->written;

    table_cache_clear(q->refs);
    q->reftable = w->entries;
    q->reftable_entries = (uint32_t)w->entries_n;
    w->entries = NULL;
    q->refcount_order = w->order;
    q->refcount_max = w->max;
    q->alloc_hint = 0;
    qcow2_overlap_remove(q, old_table, old_bytes);
    for (uint64_t i = 0; i < old_n; i++)
        if (old[i] & RTE_OFFSET)
            qcow2_overlap_remove(q, old[i] & RTE_OFFSET, 1);
    int ret = qcow2_overlap_add(q, w->host, w->table << q->cluster_bits, "the refcount table");
    if (ret == 0)
        ret = qcow2_overlap_add(q, w->host + (w->table << q->cluster_bits),
                                w->written << q->cluster_bits, "a refcount block");
    if (ret == 0 && old_bytes)
        ret = qcow2_free_later(q, old_table, old_bytes);
    for (uint64_t i = 0; i < old_n && ret == 0; i++)
        if (old[i] & RTE_OFFSET)
            ret = qcow2_free_later(q, old[i] & RTE_OFFSET, q->cluster_size);
    if (ret == 0 && used < w->clusters)
        ret = qcow2_free_later(q, w->host + (used << q->cluster_bits),
                               (w->clusters - used) << q->cluster_bits);
    free(old);
    return ret;
}

static int put_in_force(struct widen *w, struct error **err)
{
    struct qcow2 *q = w->q;
    uint64_t table = q->header.reftable_offset;
    uint64_t bytes = (uint64_t)q->header.reftable_clusters << q->cluster_bits;
    int ret;
    {
        WRLOCK_SCOPE(&q->lock);
        ret = switch_header(w);
        if (ret == 0) {
            ret = adopt(w, table, bytes);
            w->clusters = 0; /* no longer ours to give back */
        }
    }
    if (ret == 0)
        ret = qcow2_settle(q);
    return ret < 0 ? failed(w, ret, "put the new refcounts in force", err) : 0;
}

int qcow2_change_refcounts(struct qcow2 *q, uint32_t order, struct qcow2_progress *p,
                           struct error **err)
{
    struct widen w = {
        .q = q,
        .order = order,
        .max = order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1,
        .per_block = (uint64_t)q->cluster_size * 8 >> order,
    };
    int ret = make_place(&w, p, err);

    if (ret == 0) {
        ret = qcow2_commit(q, true);
        if (ret < 0)
            failed(&w, ret, "write the refcounts", err);
    }
    if (ret == 0)
        ret = fill(&w, p, err);
    if (ret == 0)
        ret = put_in_force(&w, err);
    if (ret < 0)
        give_back(&w);
    free(w.entries);
    free(w.block);
    return ret;
}
