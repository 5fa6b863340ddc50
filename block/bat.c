/* Images with one table of blocks: entries, records, commits. See bat.h. */
#include "bat.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "bat_scan.h"

/* Frees kept in memory before a commit is forced. */
#define MAX_FREED 16384
/* Room made at a time: a part of what is there, within these bounds. */
#define MIN_AHEAD       (UINT64_C(4) << 20)
#define MAX_AHEAD       (UINT64_C(128) << 20)
#define MAX_TABLE_CACHE (UINT64_C(16) << 20)

int bat_corrupt(struct bat *b, const char *fmt, ...)
{
    char text[300];
    va_list args;

    if (atomic_exchange(&b->corrupt, true))
        return -EIO; /* the first finding tells enough */
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    node_warn(b->node, "the image is corrupt: %s%s", text,
              node_writable(b->node) ? "; no more is written to it, see img check" : "");
    if (node_writable(b->node)) {
        atomic_store(&b->failed, true);
        node_set_failed(b->node);
    }
    return -EIO;
}

/* ---- opening and closing -------------------------------------------------------------------------- */

void bat_init_locks(struct bat *b)
{
    rwlock_init(&b->lock);
    pthread_mutex_init(&b->commit_lock, NULL);
}

static int make_cache(struct bat *b)
{
    uint64_t whole = div_round_up((uint64_t)b->all_entries * 4, BAT_SECTOR);
    uint64_t count = MAX(MIN(whole, MAX_TABLE_CACHE / BAT_SECTOR), UINT64_C(64));

    return table_cache_new(&b->table, b->file, &b->lock, BAT_SECTOR, (unsigned)count, EVENT_L2_LOAD,
                           EVENT_L2_UPDATE);
}

int bat_open(struct bat *b, struct error **err)
{
    struct bat_scan s;
    int ret = make_cache(b);

    b->grows = node_grows(b->file);
    if (ret < 0)
        return error_set(err, ENOMEM, "out of memory for the metadata cache");
    if (!node_writable(b->node) || (node_open_flags(b->node) & BLK_OPEN_REPAIR))
        return 0;
    ret = bat_scan(b, &s, NULL);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the block table: %s", blk_filename(b->file),
                         strerror(-ret));
    if (s.bad_count > 0)
        ret = error_set(err, EINVAL,
                        "%s: the image is corrupt: block %" PRIu32 " of the disk %s: it is not "
                        "opened for writing, see img check -r all",
                        blk_filename(b->file), s.bad.at[0].block, bat_bad_text(s.bad.at[0].kind));
    else
        ret = bat_adopt(b, &s);
    bat_scan_free(&s);
    return ret;
}

void bat_free(struct bat *b)
{
    table_cache_free(b->table);
    table_cache_free(b->inner);
    vector_free(&b->free);
    vector_free(&b->freed);
    vector_free(&b->quarantine);
    pthread_mutex_destroy(&b->commit_lock);
    rwlock_destroy(&b->lock);
}

int bat_close(struct bat *b, struct error **err)
{
    int ret = 0;

    if (node_writable(b->node) && b->end > 0 && !atomic_load(&b->failed)) {
        ret = bat_settle(b);
        if (ret == 0 && (b->holes || b->grown))
            ret = b->holes ? bat_compact(b) : b->format->trim(b);
        if (ret < 0)
            error_set(err, -ret, "%s: could not write its metadata: %s", blk_filename(b->node),
                      strerror(-ret));
    }
    bat_free(b);
    return ret;
}

/* ---- entries ---------------------------------------------------------------------------------------- */

int bat_get(struct bat *b, uint64_t block, bool exclusive, bool nowait, uint8_t **at,
            uint32_t *left)
{
    uint64_t byte = block * 4, within = byte % BAT_SECTOR;
    void *sector;

    int ret =
        table_cache_get(b->table, b->table_offset + byte - within, exclusive, nowait, &sector);
    if (ret != 0)
        return ret;
    *at = (uint8_t *)sector + within;
    *left = (uint32_t)MIN((BAT_SECTOR - within) / 4, b->all_entries - block);
    return 0;
}

void bat_set(struct bat *b, uint8_t *at, uint32_t entry)
{
    uint32_t old = bat_load(b, at);

    if (old == entry)
        return;
    bat_store(b, at, entry);
    table_cache_dirty(b->table, at); /* any byte of it names the table */
    if (bat_stored(b, old))
        bat_free_later(b, bat_place(b, old));
}

int bat_check_place(struct bat *b, uint64_t block, uint64_t record)
{
    uint64_t size = blk_size(b->file);

    if (record >= b->data_start && (record < size || node_open_flags(b->node) & BLK_OPEN_SHARED))
        return 0;
    return bat_corrupt(
        b, "block %" PRIu64 " of the disk is mapped to %#" PRIx64 ", %s: was it truncated?", block,
        record, record < size ? "where no blocks are" : "beyond the end of the file");
}

/* ---- records ------------------------------------------------------------------------------------------ */

/* The last place that an entry can name. */
static uint64_t place_limit(const struct bat *b)
{
    uint64_t last = bat_place(b, b->mark_from - 1);
    return b->grows ? last : MIN(last, blk_size(b->file));
}

static uint64_t ahead(const struct bat *b, uint64_t want)
{
    uint64_t room = MIN(MAX((b->end - b->data_start) / 8, MIN_AHEAD), MAX_AHEAD);
    return MAX(want, room / b->stride) * b->stride;
}

/* Room up to `to`, and more if there is. */
static int make_room(struct bat *b, uint64_t to, uint64_t more)
{
    uint64_t limit = place_limit(b);

    if (to <= b->reserved)
        return 0;
    if (to > limit)
        return b->grows ? -EFBIG : -ENOSPC;
    if (more > to && more <= limit)
        to = more;
    int ret = b->format->reserve(b, to);
    if (ret < 0)
        return ret;
    b->reserved = to;
    b->unsynced = true;
    b->grown = true;
    return 0;
}

static int take_free(struct bat *b, uint64_t want, uint64_t *record, uint64_t *got)
{
    struct freed *run = &b->free.at[b->free.len - 1];
    uint64_t n = MIN(want, run->length);

    *record = run->offset;
    *got = n;
    run->offset += n * b->stride;
    run->length -= n;
    if (run->length == 0)
        b->free.len--;
    return 0;
}

static int take_new(struct bat *b, uint64_t want, uint64_t *record, uint64_t *got, bool *fresh)
{
    uint64_t bytes;

    if (__builtin_mul_overflow(want, b->stride, &bytes) || bytes > MAX_AHEAD)
        want = MAX(MAX_AHEAD / b->stride, UINT64_C(1));
    uint64_t to = b->end + want * b->stride;
    int ret = make_room(b, to, b->end + ahead(b, want));
    if ((ret == -EFBIG || ret == -ENOSPC) && want > 1)
        return take_new(b, 1, record, got, fresh);
    if (ret < 0)
        return ret;
    *record = b->end;
    *got = want;
    *fresh = b->grows && b->end + b->prefix >= b->fresh;
    b->end = to;
    return 0;
}

int bat_alloc(struct bat *b, uint64_t want, uint64_t *record, uint64_t *got, bool *fresh)
{
    int ret;

    node_event(b->file, EVENT_CLUSTER_ALLOC);
    *fresh = false;
    if (b->free.len > 0)
        ret = take_free(b, want, record, got);
    else
        ret = take_new(b, want, record, got, fresh);
    if (ret < 0 || !b->format->prepare)
        return ret;
    for (uint64_t i = 0; i < *got && ret == 0; i++)
        ret = b->format->prepare(b, *record + i * b->stride);
    b->unsynced = true;
    if (ret < 0)
        bat_release(b, *record, *got);
    return ret;
}

int bat_alloc_bytes(struct bat *b, uint64_t bytes, uint64_t *offset)
{
    int ret = make_room(b, b->end + bytes, 0);

    if (ret < 0)
        return ret;
    *offset = b->end;
    b->end += bytes;
    return 0;
}

void bat_release(struct bat *b, uint64_t record, uint64_t count)
{
    struct freed run = { .offset = record, .length = count };

    b->holes = true;
    if (b->free.len > 0) {
        struct freed *last = &b->free.at[b->free.len - 1];
        if (last->offset + last->length * b->stride == record) {
            last->length += count;
            return;
        }
    }
    (void)vector_push(&b->free,
                      run); /* without memory it is found again when the image is closed */
}

void bat_free_later(struct bat *b, uint64_t record)
{
    struct freed run = { .offset = record, .length = 1 };

    b->holes = true;
    if (b->freed.len > 0) {
        struct freed *last = &b->freed.at[b->freed.len - 1];
        if (last->offset + last->length * b->stride == record) {
            last->length++;
            return;
        }
    }
    (void)vector_push(&b->freed, run);
    if (b->freed.len > MAX_FREED)
        atomic_store(&b->many_freed, true);
}

/* ---- commit --------------------------------------------------------------------------------------------- */

struct commit {
    struct table_batch *inner, *table;
    freed_list freed;
    bool unsynced;
};

static int take(struct bat *b, struct commit *c)
{
    WRLOCK_SCOPE(&b->lock);
    int ret = b->inner ? table_cache_collect(b->inner, &c->inner) : 0;
    if (ret == 0)
        ret = table_cache_collect(b->table, &c->table);
    if (ret < 0)
        return ret;
    memcpy(&c->freed, &b->freed, sizeof(c->freed));
    memset(&b->freed, 0, sizeof(b->freed));
    atomic_store(&b->many_freed, false);
    c->unsynced = b->unsynced;
    b->unsynced = false;
    return 0;
}

static void put_back(struct bat *b, struct commit *c)
{
    WRLOCK_SCOPE(&b->lock);
    for (size_t i = 0; i < c->freed.len; i++)
        (void)vector_push(&b->freed, c->freed.at[i]);
    b->unsynced |= c->unsynced;
}

static int write_copies(struct bat *b, struct commit *c, bool durable)
{
    bool inner = c->inner && !table_batch_empty(c->inner), table = !table_batch_empty(c->table);
    int ret = 0;

    if ((inner || table) && c->unsynced)
        ret = blk_flush(b->file); /* B1 */
    if (ret == 0 && inner)
        ret = table_batch_write(c->inner);
    if (ret == 0 && inner && table)
        ret = blk_flush(b->file);
    if (ret == 0 && table)
        ret = table_batch_write(c->table);
    if (ret == 0 && (durable || c->freed.len > 0))
        ret = blk_flush(b->file);
    return ret;
}

/* B2 */
static void release_passed(struct bat *b, bool all)
{
    freed_list done = VECTOR_INIT;

    quarantine_take(b->node, &b->lock, &b->quarantine, all, &done);
    for (size_t i = 0; i < done.len; i++) {
        const struct freed *run = &done.at[i];
        if (node_unmap(b->file))
            (void)blk_discard(b->file, run->offset, run->length * b->stride); /* a hint */
        node_event(b->file, EVENT_CLUSTER_FREE);
        WRLOCK_SCOPE(&b->lock);
        bat_release(b, run->offset, run->length);
    }
    vector_free(&done);
}

static bool nothing_pending(struct bat *b)
{
    RDLOCK_SCOPE(&b->lock);
    return !table_cache_has_dirty(b->table) && !(b->inner && table_cache_has_dirty(b->inner)) &&
           b->freed.len == 0;
}

int bat_commit(struct bat *b, bool durable)
{
    struct commit c = { 0 };

    LOCK_SCOPE(&b->commit_lock);
    node_event(b->file, durable ? EVENT_FLUSH_TO_DISK : EVENT_FLUSH_TO_OS);
    if (nothing_pending(b)) {
        release_passed(b, false);
        return durable ? blk_flush(b->file) : 0;
    }
    int ret = take(b, &c);
    if (ret == 0)
        ret = write_copies(b, &c, durable);
    if (ret < 0)
        put_back(b, &c);
    if (c.table)
        table_batch_finish(c.table, ret == 0);
    if (c.inner)
        table_batch_finish(c.inner, ret == 0);
    if (ret == 0) {
        quarantine_enter(b->node, &b->lock, &b->quarantine, &c.freed);
    } else if (ret != -ENOSPC && ret != -EDQUOT && ret != -ENOMEM) {
        atomic_store(&b->failed, true);
        node_set_failed(b->node);
    }
    vector_free(&c.freed);
    release_passed(b, false);
    return ret;
}

int bat_settle(struct bat *b)
{
    int ret = bat_commit(b, true);

    if (ret < 0)
        return ret;
    LOCK_SCOPE(&b->commit_lock);
    release_passed(b, true);
    return 0;
}

int bat_commit_if_pressed(struct bat *b)
{
    if (!atomic_load_explicit(&b->many_freed, memory_order_relaxed) &&
        !table_cache_pressed(b->table) && !(b->inner && table_cache_pressed(b->inner)))
        return 0;
    return bat_commit(b, false);
}

int bat_flush(struct blk_node *n)
{
    return bat_commit(node_state(n), true);
}
