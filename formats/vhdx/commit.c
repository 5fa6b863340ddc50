/* The order in which things reach the disk, and the quarantine of what was freed.
 *
 * A commit takes, at one moment and under the lock, copies of all metadata pages that changed. Then, without it:
 *
 *      -- flush --        guest data and copied edges (V2), and what the entry before said (V1)
 *      log entry
 *      -- flush --        now it is durable, though not in its place; the first time the header follows (V5)
 *      pages in place
 *      quarantine of what these pages no longer refer to, until the epoch has passed (V3)
 *
 * All pages of a commit go into one entry, unless they are too many; bitmaps come before the entries that rely on them.
 *
 * A failed step leaves all pages dirty again. When the disk was merely full, a later commit may succeed; any
 * other failure is sticky.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "vhdx.h"

#define MAX_FREED 16384

/* One commit's copies. */
struct commit {
    vhdx_pages pages;
    struct table_batch *bits;
    uint8_t *bat;      /* copies of pages of the BAT */
    uint64_t *numbers; /* which they are */
    uint64_t count;
    freed_list freed;
};

/* ---- the session ------------------------------------------------------------------------------------ */

/* Whoever has a child of this image must learn that it was written to; so before the first write. */
static int begin_session(struct vhdx *v)
{
    LOCK_SCOPE(&v->session_lock);
    if (atomic_load(&v->session))
        return 0;
    int ret = vhdx_guid_new(&v->headers.current.file_write);
    v->headers.current.data_write = v->next_data_write;
    if (ret == 0)
        ret = vhdx_header_write(v->file, &v->headers);
    if (ret == 0)
        atomic_store(&v->session, true);
    return ret;
}

int vhdx_session(struct vhdx *v)
{
    return atomic_load_explicit(&v->session, memory_order_acquire) ? 0 : begin_session(v);
}

/* ---- taking copies ------------------------------------------------------------------------------------ */

static int take_bat(struct vhdx *v, struct commit *c)
{
    uint64_t count = atomic_load(&v->bat_pages);

    if (count == 0)
        return 0;
    c->bat = malloc(count * VHDX_PAGE);
    c->numbers = malloc(count * sizeof(*c->numbers));
    if (!c->bat || !c->numbers || vector_reserve(&c->pages, c->pages.len + count) < 0)
        return -ENOMEM;
    for (uint64_t p = bitmap_next_set(&v->bat_dirty, 0); p < v->bat_dirty.bits && c->count < count;
         p = bitmap_next_set(&v->bat_dirty, p + 1)) {
        uint8_t *copy = c->bat + c->count * VHDX_PAGE;
        vhdx_bat_page(v, p, copy);
        c->numbers[c->count++] = p;
        bitmap_clear(&v->bat_dirty, p);
        (void)vector_push(&c->pages, (struct vhdx_page){
                                         .offset = v->regions.bat.offset + p * VHDX_PAGE,
                                         .bytes = copy,
                                     });
    }
    atomic_store(&v->bat_pages, 0);
    return 0;
}

static int take_bits(struct vhdx *v, struct commit *c)
{
    struct vhdx_page page;

    if (!v->bits)
        return 0;
    int ret = table_cache_collect(v->bits, &c->bits);
    for (unsigned i = 0; ret == 0 && (page.bytes = table_batch_at(c->bits, i, &page.offset)); i++)
        ret = vector_push(&c->pages, page);
    return ret;
}

static int take(struct vhdx *v, struct commit *c)
{
    WRLOCK_SCOPE(&v->lock);
    int ret = take_bits(v, c);
    if (ret == 0)
        ret = take_bat(v, c);
    if (ret < 0)
        return ret;
    memcpy(&c->freed, &v->freed, sizeof(c->freed));
    memset(&v->freed, 0, sizeof(v->freed));
    atomic_store(&v->many_freed, false);
    return 0;
}

static void put_back(struct vhdx *v, struct commit *c)
{
    WRLOCK_SCOPE(&v->lock);
    for (uint64_t i = 0; i < c->count; i++)
        vhdx_bat_touch_page(v, c->numbers[i]);
    for (size_t i = 0; i < c->freed.len; i++)
        (void)vector_push(&v->freed, c->freed.at[i]);
}

/* ---- quarantine ------------------------------------------------------------------------------------------ */

void vhdx_free_later(struct vhdx *v, uint64_t unit, uint64_t count)
{
    struct freed f = { .offset = unit, .length = count };

    if (v->freed.len > 0 &&
        v->freed.at[v->freed.len - 1].offset + v->freed.at[v->freed.len - 1].length == unit)
        v->freed.at[v->freed.len - 1].length += count;
    else
        (void)vector_push(&v->freed, f); /* without memory it stays unused until the next open */
    if (v->freed.len > MAX_FREED)
        atomic_store(&v->many_freed, true);
}

/* A hole is the only sign of free space that the format has, so there shall be one. */
static void release_passed(struct vhdx *v, bool all)
{
    freed_list done = VECTOR_INIT;

    quarantine_take(v->node, &v->lock, &v->quarantine, all, &done);
    for (size_t i = 0; i < done.len; i++) {
        (void)blk_zero(v->file, done.at[i].offset * VHDX_MIB, done.at[i].length * VHDX_MIB,
                       BLK_MAY_UNMAP | BLK_NO_FALLBACK);
        node_event(v->file, EVENT_CLUSTER_FREE);
        WRLOCK_SCOPE(&v->lock);
        vhdx_space_release(v, done.at[i].offset, done.at[i].length);
    }
    vector_free(&done);
}

/* ---- commit ------------------------------------------------------------------------------------------------- */

static bool nothing_pending(struct vhdx *v)
{
    RDLOCK_SCOPE(&v->lock);
    return atomic_load(&v->bat_pages) == 0 && (!v->bits || !table_cache_has_dirty(v->bits)) &&
           v->freed.len == 0;
}

static int write_pages(struct vhdx *v, const struct commit *c)
{
    size_t room = vhdx_log_room(v);
    int ret = 0;

    for (size_t i = 0; i < c->pages.len && ret == 0; i += room)
        ret = vhdx_log_pages(v, c->pages.at + i, MIN(room, c->pages.len - i));
    return ret;
}

static int commit_pending(struct vhdx *v)
{
    struct commit c = { 0 };
    bool stuck = v->log_stuck;
    int ret = take(v, &c);

    if (ret == 0)
        ret = write_pages(v, &c);
    if (ret < 0) {
        put_back(v, &c);
        v->log_stuck = stuck; /* these pages are dirty again, the next commit writes them */
    }
    if (c.bits)
        table_batch_finish(c.bits, ret == 0);
    if (ret == 0)
        quarantine_enter(v->node, &v->lock, &v->quarantine, &c.freed);
    else if (ret != -ENOSPC && ret != -EDQUOT && ret != -ENOMEM)
        node_set_failed(v->node);
    free(c.bat);
    free(c.numbers);
    vector_free(&c.pages);
    vector_free(&c.freed);
    return ret;
}

int vhdx_commit(struct vhdx *v, bool durable)
{
    LOCK_SCOPE(&v->commit_lock);
    node_event(v->file, durable ? EVENT_FLUSH_TO_DISK : EVENT_FLUSH_TO_OS);
    int ret = 0;
    if (!nothing_pending(v))
        ret = commit_pending(v);
    else if (durable)
        ret = blk_flush(v->file);
    release_passed(v, false);
    return ret;
}

int vhdx_settle(struct vhdx *v)
{
    int ret = vhdx_commit(v, true);

    if (ret < 0)
        return ret;
    LOCK_SCOPE(&v->commit_lock);
    release_passed(v, true);
    return 0;
}

int vhdx_commit_if_pressed(struct vhdx *v)
{
    if (!atomic_load_explicit(&v->many_freed, memory_order_relaxed) &&
        atomic_load_explicit(&v->bat_pages, memory_order_relaxed) < vhdx_log_room(v) / 2 &&
        !(v->bits && table_cache_pressed(v->bits)))
        return 0;
    return vhdx_commit(v, false);
}
