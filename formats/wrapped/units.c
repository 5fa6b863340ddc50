/* Units decoded when they are asked for, and the newest of them kept.
 *
 * Requests for one unit come in droves, since whoever copies asks for small pieces in order. The first of them
 * decodes; one that finds the unit in loading decodes the next one meanwhile, so that all cores have
 * work, and else waits.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "base/macros.h"
#include "wrapped.h"

enum { SLOTS_LEAST = 3, SLOTS_MOST = 64, AHEAD = 4 };

int units_begin(struct wrapped *w)
{
    struct cache *c = &w->cache;

    for (size_t i = 0; i < w->units.len; i++)
        c->room = MAX(c->room, (size_t)w->units.at[i].length);
    c->count = MAX(MIN((size_t)CACHE_BYTES / c->room, (size_t)SLOTS_MOST), (size_t)SLOTS_LEAST);
    c->slots = calloc(c->count, sizeof(*c->slots));
    if (!c->slots)
        return -ENOMEM;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->change, NULL);
    return 0;
}

void units_end(struct wrapped *w)
{
    struct cache *c = &w->cache;

    if (!c->slots)
        return;
    for (size_t i = 0; i < c->count; i++)
        free(c->slots[i].data);
    free(c->slots);
    c->slots = NULL;
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->change);
}

static struct slot *slot_of(struct cache *c, size_t unit)
{
    for (size_t i = 0; i < c->count; i++)
        if (c->slots[i].state != SLOT_EMPTY && c->slots[i].unit == unit)
            return &c->slots[i];
    return NULL;
}

/* One that nobody needs: empty, else the one used longest ago. NULL: none. */
static struct slot *slot_free(struct cache *c)
{
    struct slot *best = NULL;

    for (size_t i = 0; i < c->count; i++) {
        struct slot *s = &c->slots[i];
        if (s->state == SLOT_EMPTY)
            return s;
        if (s->state == SLOT_READY && s->users == 0 && (!best || s->used < best->used))
            best = s;
    }
    return best;
}

static int decode(struct wrapped *w, const struct unit *u, struct slot *s)
{
    _cleanup_free_ uint8_t *in = malloc((size_t)u->file_length);

    if (!s->data)
        s->data = malloc(w->cache.room);
    if (!in || !s->data)
        return -ENOMEM;
    int ret = blk_read(w->file, u->file_offset, in, (size_t)u->file_length, 0);
    return ret < 0 ? ret : w->codec->decode(u, in, s->data);
}

/* With the lock held, which is dropped while the unit is decoded. */
static int load(struct wrapped *w, size_t unit, struct slot *s)
{
    struct cache *c = &w->cache;

    s->state = SLOT_LOADING;
    s->unit = unit;
    pthread_mutex_unlock(&c->lock); /* others may use the cache meanwhile */
    int ret = decode(w, &w->units.at[unit], s);
    pthread_mutex_lock(&c->lock);
    s->state = ret < 0 ? SLOT_EMPTY : SLOT_READY;
    s->used = ++c->clock;
    pthread_cond_broadcast(&c->change);
    return ret;
}

/* Instead of idling: decodes one of the units that will be asked for soon. False: there is nothing to do. */
static bool load_ahead(struct wrapped *w, size_t unit)
{
    struct cache *c = &w->cache;
    size_t last = MIN(unit + MIN((size_t)AHEAD, c->count / 2), w->units.len - 1);

    for (size_t next = unit + 1; next <= last; next++) {
        struct slot *s = slot_of(c, next) ? NULL : slot_free(c);
        if (s)
            return load(w, next, s) == 0;
    }
    return false;
}

/* The unit's slot, with one more user. */
static int get(struct wrapped *w, size_t unit, struct slot **out)
{
    struct cache *c = &w->cache;

    LOCK_SCOPE(&c->lock);
    for (;;) {
        struct slot *s = slot_of(c, unit);
        if (s && s->state == SLOT_READY) {
            s->users++;
            s->used = ++c->clock;
            *out = s;
            return 0;
        }
        if (s && load_ahead(w, unit))
            continue;
        s = slot_of(c, unit);
        struct slot *room = s ? NULL : slot_free(c);
        if (s && s->state == SLOT_READY)
            continue;
        if (!room) {
            pthread_cond_wait(&c->change, &c->lock);
            continue;
        }
        int ret = load(w, unit, room);
        if (ret < 0)
            return ret;
    }
}

static void put(struct cache *c, struct slot *s)
{
    LOCK_SCOPE(&c->lock);
    s->users--;
    pthread_cond_broadcast(&c->change);
}

/* The unit that holds the byte. */
static size_t find(const struct wrapped *w, uint64_t off)
{
    size_t low = 0, high = w->units.len;

    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (w->units.at[mid].offset <= off)
            low = mid;
        else
            high = mid;
    }
    return low;
}

int units_read(struct wrapped *w, uint64_t off, const struct iovec *iov, int iovcnt, uint64_t len)
{
    struct iov_cursor at = iov_begin(iov, iovcnt);

    for (size_t unit = find(w, off); len > 0; unit++) {
        const struct unit *u = &w->units.at[unit];
        uint64_t n = MIN(len, u->offset + u->length - off);
        struct slot *s;

        int ret = get(w, unit, &s);
        if (ret < 0) {
            _cleanup_error_ struct error *err = NULL;
            ret = wrapped_error(w, ret, u->file_offset, &err);
            wrapped_warn(w, err);
            return ret;
        }
        iov_write(&at, s->data + (off - u->offset), (size_t)n);
        put(&w->cache, s);
        off += n;
        len -= n;
    }
    return 0;
}
