#include "block/table_cache.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "block/block.h"

#define NONE      UINT32_MAX
#define WRITE_MAX (1 << 20)

enum entry_state { EMPTY, LOADING, CLEAN, DIRTY };

struct entry {
    uint64_t offset;
    uint32_t next; /* in the bucket's chain */
    _Atomic uint8_t state;
    uint8_t writing;          /* in a batch that has not landed */
    _Atomic uint8_t recently; /* used since the clock's hand passed */
};

struct table_cache {
    struct blk_node *child;
    enum blk_event load_event, update_event;
    struct rwlock *lock; /* the driver's; guards all but what is atomic */
    uint32_t size;
    unsigned count;
    uint8_t *memory;
    struct entry *entries;
    uint32_t *buckets;
    uint32_t mask;
    uint32_t hand;
    _Atomic unsigned busy; /* dirty or writing */
    _Atomic unsigned dirty;

    pthread_mutex_t wait; /* with `loaded`: for sleeping while another thread loads */
    pthread_cond_t loaded;
};

struct table_batch {
    struct table_cache *c;
    unsigned count;
    struct {
        uint64_t offset;
        uint32_t entry;
    } * at;
    uint8_t *copy; /* in the order of `at`, which is sorted by offset */
};

/* ---- making -------------------------------------------------------------------------------------- */

int table_cache_new(struct table_cache **out, struct blk_node *child, struct rwlock *lock,
                    uint32_t size, unsigned count, enum blk_event load, enum blk_event update)
{
    struct table_cache *c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    uint32_t buckets = 16;
    while (buckets < count)
        buckets *= 2;
    c->child = child;
    c->load_event = load;
    c->update_event = update;
    c->lock = lock;
    c->size = size;
    c->count = count;
    c->mask = buckets - 1;
    c->entries = calloc(count, sizeof(*c->entries));
    c->buckets = malloc(buckets * sizeof(*c->buckets));
    c->memory = mmap(NULL, (size_t)size * count, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    pthread_mutex_init(&c->wait, NULL);
    pthread_cond_init(&c->loaded, NULL);
    if (!c->entries || !c->buckets || c->memory == MAP_FAILED) {
        table_cache_free(c);
        return -ENOMEM;
    }
    memset(c->buckets, 0xff, buckets * sizeof(*c->buckets));
    *out = c;
    return 0;
}

void table_cache_free(struct table_cache *c)
{
    if (!c)
        return;
    if (c->memory && c->memory != MAP_FAILED)
        munmap(c->memory, (size_t)c->size * c->count);
    pthread_cond_destroy(&c->loaded);
    pthread_mutex_destroy(&c->wait);
    free(c->buckets);
    free(c->entries);
    free(c);
}

/* ---- the index ------------------------------------------------------------------------------------- */

static uint32_t *bucket_of(const struct table_cache *c, uint64_t offset)
{
    uint64_t h = (offset / c->size) * UINT64_C(0x9e3779b97f4a7c15);
    return &c->buckets[(h >> 32) & c->mask];
}

static uint32_t find(const struct table_cache *c, uint64_t offset)
{
    uint32_t i = *bucket_of(c, offset);
    while (i != NONE && c->entries[i].offset != offset)
        i = c->entries[i].next;
    return i;
}

static void insert(struct table_cache *c, uint32_t i, uint64_t offset)
{
    uint32_t *bucket = bucket_of(c, offset);
    c->entries[i].offset = offset;
    c->entries[i].next = *bucket;
    *bucket = i;
}

static void take_out(struct table_cache *c, uint32_t i)
{
    uint32_t *p = bucket_of(c, c->entries[i].offset);
    while (*p != i)
        p = &c->entries[*p].next;
    *p = c->entries[i].next;
}

static void *table_at(const struct table_cache *c, uint32_t i)
{
    return c->memory + (size_t)i * c->size;
}

static void set_state(struct table_cache *c, struct entry *e, enum entry_state to)
{
    bool was = e->state == DIRTY, is = to == DIRTY;
    if (was != is)
        atomic_fetch_add(&c->dirty, is ? 1u : -1u);
    if ((was || e->writing) != (is || e->writing))
        atomic_fetch_add(&c->busy, is ? 1u : -1u);
    e->state = (uint8_t)to;
}

static void set_writing(struct table_cache *c, struct entry *e, bool writing)
{
    bool dirty = e->state == DIRTY;
    if ((dirty || e->writing) != (dirty || writing))
        atomic_fetch_add(&c->busy, writing ? 1u : -1u);
    e->writing = writing;
}

/* An entry that may be given up: the clock's hand passes those used since it last came by. */
static uint32_t victim(struct table_cache *c)
{
    for (unsigned turn = 0; turn < 3 * c->count; turn++) {
        uint32_t i = c->hand;
        struct entry *e = &c->entries[i];
        c->hand = c->hand + 1 == c->count ? 0 : c->hand + 1;
        if (e->state == EMPTY)
            return i;
        if (e->state != CLEAN || e->writing)
            continue;
        if (atomic_exchange(&e->recently, 0) == 0) {
            take_out(c, i); /* T1 */
            set_state(c, e, EMPTY);
            return i;
        }
    }
    return NONE;
}

/* ---- looking up ---------------------------------------------------------------------------------------- */

static void relock(struct table_cache *c, bool exclusive)
{
    if (exclusive)
        rwlock_hold(c->lock);
    else
        rwlock_share(c->lock);
}

/* Exclusive on the way in; dropped on the way out. */
static int load(struct table_cache *c, uint32_t i, uint64_t offset)
{
    struct entry *e = &c->entries[i];

    insert(c, i, offset);
    set_state(c, e, LOADING);
    rwlock_release(c->lock);
    node_event(c->child, c->load_event);
    int ret = blk_read(c->child, offset, table_at(c, i), c->size, 0);
    rwlock_hold(c->lock);
    if (ret < 0)
        take_out(c, i);
    e->recently = 1;
    {
        LOCK_SCOPE(&c->wait);
        set_state(c, e, ret < 0 ? EMPTY : CLEAN);
        pthread_cond_broadcast(&c->loaded);
    }
    rwlock_release(c->lock);
    return ret;
}

/* Exclusive on the way in; dropped on the way out. */
static void await_load(struct table_cache *c, uint32_t i)
{
    struct entry *e = &c->entries[i];

    LOCK_SCOPE(&c->wait);
    rwlock_release(c->lock); /* whoever loads needs it; he broadcasts under `wait` */
    while (e->state == LOADING)
        pthread_cond_wait(&c->loaded, &c->wait);
}

int table_cache_get(struct table_cache *c, uint64_t offset, bool exclusive, bool nowait,
                    void **table)
{
    uint32_t i = find(c, offset);
    int ret = 0;

    if (i != NONE && c->entries[i].state != LOADING) {
        if (!atomic_load_explicit(&c->entries[i].recently, memory_order_relaxed))
            atomic_store_explicit(&c->entries[i].recently, 1, memory_order_relaxed);
        *table = table_at(c, i);
        return 0;
    }
    if (nowait)
        return -EAGAIN;
    if (!exclusive) {
        rwlock_release(c->lock); /* rwlocks cannot be upgraded */
        rwlock_hold(c->lock);
        i = find(c, offset);
    }
    if (i == NONE) {
        i = victim(c);
        if (i == NONE) {
            rwlock_release(c->lock);
            ret = -ENOBUFS;
        } else {
            ret = load(c, i, offset);
        }
    } else if (c->entries[i].state == LOADING) {
        await_load(c, i);
    } else {
        rwlock_release(c->lock);
    }
    relock(c, exclusive);
    return ret < 0 ? ret : TABLE_RELOCKED;
}

/* ---- changing ------------------------------------------------------------------------------------------- */

void table_cache_dirty(struct table_cache *c, void *table)
{
    struct entry *e = &c->entries[(size_t)((uint8_t *)table - c->memory) / c->size];

    assert(e->state == CLEAN || e->state == DIRTY);
    set_state(c, e, DIRTY);
}

static void forget(struct table_cache *c, uint32_t i)
{
    struct entry *e = &c->entries[i];

    take_out(c, i);
    set_state(c, e, EMPTY);
}

void table_cache_drop(struct table_cache *c, uint64_t offset, uint64_t len)
{
    for (uint64_t at = offset; at < offset + len; at += c->size) {
        uint32_t i = find(c, at);
        if (i != NONE && c->entries[i].state != LOADING)
            forget(c, i);
    }
}

void table_cache_clear(struct table_cache *c)
{
    for (uint32_t i = 0; i < c->count; i++)
        if (c->entries[i].state != EMPTY)
            forget(c, i);
}

void table_cache_trim(struct table_cache *c)
{
    bool pages =
        c->size % (size_t)sysconf(_SC_PAGESIZE) == 0; /* else neighbours would lose theirs */

    for (uint32_t i = 0; i < c->count; i++) {
        struct entry *e = &c->entries[i];
        if (e->state != CLEAN || e->writing || atomic_exchange(&e->recently, 0))
            continue;
        forget(c, i);
        if (pages)
            madvise(table_at(c, i), c->size, MADV_DONTNEED);
    }
}

bool table_cache_pressed(struct table_cache *c)
{
    return atomic_load_explicit(&c->busy, memory_order_relaxed) > c->count / 2;
}

bool table_cache_has_dirty(struct table_cache *c)
{
    return atomic_load(&c->dirty) > 0;
}

/* ---- writing back ----------------------------------------------------------------------------------------- */

static int by_offset(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

int table_cache_collect(struct table_cache *c, struct table_batch **out)
{
    struct table_batch *b = calloc(1, sizeof(*b));
    unsigned dirty = atomic_load(&c->dirty);

    if (!b)
        return -ENOMEM;
    b->c = c;
    b->at = calloc(dirty ? dirty : 1, sizeof(*b->at));
    b->copy = malloc((size_t)(dirty ? dirty : 1) * c->size);
    if (!b->at || !b->copy) {
        free(b->at);
        free(b->copy);
        free(b);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < c->count && b->count < dirty; i++)
        if (c->entries[i].state == DIRTY) {
            b->at[b->count].offset = c->entries[i].offset;
            b->at[b->count++].entry = i;
        }
    qsort(b->at, b->count, sizeof(*b->at), by_offset);
    for (unsigned k = 0; k < b->count; k++) { /* T3 */
        struct entry *e = &c->entries[b->at[k].entry];
        memcpy(b->copy + (size_t)k * c->size, table_at(c, b->at[k].entry), c->size);
        set_writing(c, e, true);
        set_state(c, e, CLEAN);
    }
    *out = b;
    return 0;
}

bool table_batch_empty(const struct table_batch *b)
{
    return b->count == 0;
}

const void *table_batch_at(const struct table_batch *b, unsigned i, uint64_t *offset)
{
    if (i >= b->count)
        return NULL;
    *offset = b->at[i].offset;
    return b->copy + (size_t)i * b->c->size;
}

/* Tables that lie one behind the other, from number k on. */
static unsigned neighbours(const struct table_batch *b, const uint64_t *places, unsigned k)
{
    uint32_t size = b->c->size;
    unsigned n = 1;

    while (k + n < b->count && places[k + n] == places[k] + (uint64_t)n * size &&
           (n + 1) * size <= WRITE_MAX)
        n++;
    return n;
}

int table_batch_write_at(struct table_batch *b, uint64_t (*where)(void *opaque, uint64_t offset),
                         void *opaque)
{
    uint32_t size = b->c->size;
    uint64_t *places = calloc(b->count ? b->count : 1, sizeof(*places));
    int ret = 0;

    if (!places)
        return -ENOMEM;
    for (unsigned k = 0; k < b->count; k++)
        places[k] = where ? where(opaque, b->at[k].offset) : b->at[k].offset;
    for (unsigned k = 0, n; k < b->count && ret == 0; k += n) {
        n = neighbours(b, places, k);
        if (places[k] == 0)
            continue;
        node_event(b->c->child, b->c->update_event);
        ret = blk_write(b->c->child, places[k], b->copy + (size_t)k * size, (size_t)n * size, 0);
    }
    free(places);
    return ret;
}

int table_batch_write(struct table_batch *b)
{
    return table_batch_write_at(b, NULL, NULL);
}

void table_batch_finish(struct table_batch *b, bool ok)
{
    struct table_cache *c = b->c;

    rwlock_hold(c->lock);
    for (unsigned k = 0; k < b->count; k++) {
        struct entry *e = &c->entries[b->at[k].entry];
        set_writing(c, e, false);
        /* Dropped or reused meanwhile: the entry is not what was written any more. */
        if (!ok && e->state == CLEAN && e->offset == b->at[k].offset)
            set_state(c, e, DIRTY);
    }
    rwlock_release(c->lock);
    free(b->at);
    free(b->copy);
    free(b);
}
