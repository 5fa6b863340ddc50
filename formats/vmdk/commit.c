/* Metadata to the disk, in order.
 *
 * States of a grain: fresh or free -> taken by write_begin -> mapped in memory -> mapped on the disk; and back:
 * unmapped in memory (`freed`) -> unmapped on the disk (`quarantine`) -> free.
 *
 *     data -> flush -> grain tables, both copies -> (flush -> directory entries) -> flush -> quarantine, punch, free
 *
 * Invariants
 *  V1  A mapping is not on the disk before its data is.
 *  V2  A grain table is on the disk, as zeroes at least, before a directory names it.
 *  V3  Space that was unmapped is taken again only when its unmapping is durable, both in the tables and in their
 *      copies, every request that ran then has ended, and its hole punch is done.
 *  V4  The first change of a session comes after a new CID, which is durable: a delta disk above must see it.
 *
 * Threads: commit_lock is held by who writes metadata; the lock only while copies are taken.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "vmdk.h"

/* ---- the CID -------------------------------------------------------------------------------------------- */

int vmdk_write_cid(struct vmdk *v, bool parent, uint32_t cid)
{
    struct vmdk_desc *d = &v->desc;
    size_t at = parent ? d->parent_cid_at : d->cid_at;
    size_t len = parent ? d->parent_cid_len : d->cid_len;
    char digits[9];

    if (at == 0)
        return 0;
    if (len < 8) /* only so many were there: the rest of the descriptor stays where it is */
        cid &= (UINT32_C(1) << (4 * len)) - 1;
    snprintf(digits, sizeof(digits), "%0*x", (int)len, cid);
    int ret = blk_write(v->file, v->desc_offset + at, digits, len, 0);
    if (ret == 0)
        ret = blk_flush(v->file);
    if (ret < 0)
        return ret;
    memcpy(d->text + at, digits, len);
    *(parent ? &d->parent_cid : &d->cid) = cid;
    return 0;
}

static uint32_t random_cid(uint32_t old)
{
    uint32_t cid = old;

    if (getrandom(&cid, sizeof(cid), GRND_NONBLOCK) != sizeof(cid) || cid == old)
        cid = old * 1664525 + 1013904223;
    return cid == NO_PARENT || cid == old ? old ^ 1 : cid;
}

int vmdk_change_cid(struct vmdk *v)
{
    if (atomic_load_explicit(&v->cid_changed, memory_order_acquire))
        return 0;
    LOCK_SCOPE(&v->cid_lock);
    if (atomic_load(&v->cid_changed))
        return 0;
    int ret = vmdk_write_cid(v, false, random_cid(v->desc.cid)); /* V4 */
    if (ret == 0)
        atomic_store(&v->cid_changed, true);
    return ret;
}

/* ---- taking copies ----------------------------------------------------------------------------------------- */

struct copy {
    struct table_batch *tables;
    uint8_t *gd, *rgd; /* entries [from, to) as on the disk */
    uint32_t from, to;
    freed_list freed;
    bool unsynced;
};

static uint8_t *copy_gd(const uint32_t *gd, uint32_t from, uint32_t to)
{
    uint8_t *out = malloc((size_t)(to - from) * 4);

    for (uint32_t i = from; out && i < to; i++)
        store_le32(out + (size_t)(i - from) * 4, gd[i]);
    return out;
}

static int take_gd(struct vmdk_extent *e, struct copy *c)
{
    if (!e->gd_dirty)
        return 0;
    c->from = e->gd_from;
    c->to = e->gd_to;
    c->gd = copy_gd(e->gd, c->from, c->to);
    c->rgd = e->redundant ? copy_gd(e->rgd, c->from, c->to) : NULL;
    if (!c->gd || (e->redundant && !c->rgd))
        return -ENOMEM;
    e->gd_dirty = false;
    return 0;
}

static int take(struct vmdk *v, struct vmdk_extent *e, struct copy *c)
{
    WRLOCK_SCOPE(&v->lock);
    int ret = table_cache_collect(e->cache, &c->tables);
    if (ret == 0)
        ret = take_gd(e, c);
    if (ret < 0)
        return ret;
    c->freed.at = e->freed.at;
    c->freed.len = e->freed.len;
    c->freed.cap = e->freed.cap;
    memset(&e->freed, 0, sizeof(e->freed));
    c->unsynced = e->unsynced;
    e->unsynced = false;
    return 0;
}

/* After a failure: what this commit took is dirty again. */
static void put_back(struct vmdk *v, struct vmdk_extent *e, struct copy *c)
{
    WRLOCK_SCOPE(&v->lock);
    if (c->gd) {
        e->gd_from = e->gd_dirty ? MIN(e->gd_from, c->from) : c->from;
        e->gd_to = e->gd_dirty ? MAX(e->gd_to, c->to) : c->to;
        e->gd_dirty = true;
    }
    for (size_t i = 0; i < c->freed.len; i++)
        (void)vector_push(&e->freed, c->freed.at[i]);
    e->unsynced |= c->unsynced;
}

/* ---- writing them --------------------------------------------------------------------------------------------- */

struct copies {
    struct vmdk *v;
    struct vmdk_extent *e;
};

/* Where the copy of the table at `place` lies; 0: it has none. */
static uint64_t place_of_copy(void *opaque, uint64_t place)
{
    const struct copies *c = opaque;
    const struct vmdk_extent *e = c->e;
    uint32_t low = 0, high = e->order_len, sector = (uint32_t)(place / SECTOR);

    RDLOCK_SCOPE(&c->v->lock);
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (e->gd[e->order[mid]] < sector)
            low = mid + 1;
        else
            high = mid;
    }
    return low < e->order_len && e->gd[e->order[low]] == sector ? e->rgd[e->order[low]] * SECTOR
                                                                : 0;
}

static int write_gd(struct vmdk_extent *e, const struct copy *c, const uint8_t *entries,
                    uint64_t sector)
{
    node_event(e->file, EVENT_L1_UPDATE);
    return blk_write(e->file, sector * SECTOR + (uint64_t)c->from * 4, entries,
                     (size_t)(c->to - c->from) * 4, 0);
}

static int write_copies(struct vmdk *v, struct vmdk_extent *e, struct copy *c, bool durable)
{
    bool tables = !table_batch_empty(c->tables);
    int ret = 0;

    if ((tables || c->gd) && c->unsynced)
        ret = blk_flush(e->file); /* V1 */
    if (ret == 0)
        ret = table_batch_write(c->tables);
    if (ret == 0 && e->redundant && tables)
        ret = table_batch_write_at(c->tables, place_of_copy, &(struct copies){ v, e });
    if (ret == 0 && c->gd)
        ret = blk_flush(e->file); /* V2 */
    if (ret == 0 && c->gd)
        ret = write_gd(e, c, c->gd, e->header.gd);
    if (ret == 0 && c->rgd)
        ret = write_gd(e, c, c->rgd, e->header.rgd);
    if (ret == 0 && (durable || c->freed.len > 0))
        ret = blk_flush(e->file);
    return ret;
}

/* ---- quarantine -------------------------------------------------------------------------------------------------- */

/* Frees what no request can see any more (V3). */
static void release_passed(struct vmdk *v, struct vmdk_extent *e, bool all)
{
    freed_list done = VECTOR_INIT;

    quarantine_take(v->node, &v->lock, &e->quarantine, all, &done);
    for (size_t i = 0; i < done.len; i++) {
        if (node_unmap(e->file))
            (void)blk_discard(e->file, done.at[i].offset, done.at[i].length); /* a hint */
        node_event(e->file, EVENT_CLUSTER_FREE);
        WRLOCK_SCOPE(&v->lock);
        (void)vector_push(&e->free, done.at[i].offset);
    }
    vector_free(&done);
}

/* ---- commit -------------------------------------------------------------------------------------------------------- */

static bool nothing_pending(struct vmdk *v, struct vmdk_extent *e)
{
    RDLOCK_SCOPE(&v->lock);
    return !table_cache_has_dirty(e->cache) && !e->gd_dirty && e->freed.len == 0;
}

static int commit_extent(struct vmdk *v, struct vmdk_extent *e, bool durable)
{
    struct copy c = { 0 };

    node_event(e->file, durable ? EVENT_FLUSH_TO_DISK : EVENT_FLUSH_TO_OS);
    if (nothing_pending(v, e)) {
        release_passed(v, e, false);
        return durable ? blk_flush(e->file) : 0;
    }
    int ret = take(v, e, &c);
    if (ret == 0)
        ret = write_copies(v, e, &c, durable);
    if (ret < 0)
        put_back(v, e, &c);
    if (c.tables)
        table_batch_finish(c.tables, ret == 0);
    if (ret == 0)
        quarantine_enter(v->node, &v->lock, &e->quarantine, &c.freed);
    free(c.gd);
    free(c.rgd);
    vector_free(&c.freed);
    release_passed(v, e, false);
    return ret;
}

int vmdk_commit(struct vmdk *v, bool durable)
{
    int ret = 0;

    LOCK_SCOPE(&v->commit_lock);
    atomic_store(&v->many_freed, false);
    for (size_t i = 0; i < v->extents.len && ret == 0; i++) {
        struct vmdk_extent *e = &v->extents.at[i];
        if (e->kind == EXTENT_ZERO || e->read_only)
            continue;
        if (e->kind == EXTENT_FLAT)
            ret = durable ? blk_flush(e->file) : 0;
        else if (e->tables)
            ret = durable ? vmdk_stream_commit(v, e) : 0;
        else
            ret = commit_extent(v, e, durable);
    }
    if (ret == 0 && durable && !v->embedded)
        ret = blk_flush(v->file);
    if (ret < 0 && ret != -ENOSPC && ret != -EDQUOT && ret != -ENOMEM)
        node_set_failed(v->node);
    return ret;
}

int vmdk_settle(struct vmdk *v)
{
    int ret = vmdk_commit(v, true);

    if (ret < 0)
        return ret;
    LOCK_SCOPE(&v->commit_lock);
    for (size_t i = 0; i < v->extents.len; i++)
        if (v->extents.at[i].cache && !v->extents.at[i].read_only)
            release_passed(v, &v->extents.at[i], true);
    return 0;
}

int vmdk_flush(struct blk_node *n)
{
    return vmdk_commit(node_state(n), true);
}

int vmdk_commit_if_pressed(struct vmdk *v)
{
    bool pressed = atomic_load_explicit(&v->many_freed, memory_order_relaxed);

    for (size_t i = 0; i < v->extents.len && !pressed; i++)
        pressed = v->extents.at[i].cache && table_cache_pressed(v->extents.at[i].cache);
    return pressed ? vmdk_commit(v, false) : 0;
}
