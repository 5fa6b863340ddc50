/* Where a file has data and where it has holes, by lseek. */
#include <errno.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "file.h"

void hole_cache_init(struct hole_cache *cache)
{
    pthread_mutex_init(&cache->lock, NULL);
}

void hole_cache_destroy(struct hole_cache *cache)
{
    pthread_mutex_destroy(&cache->lock);
}

static uint64_t stamp_of(struct hole_cache *cache, bool data)
{
    return atomic_load(data ? &cache->punches : &cache->writes);
}

static bool recall(struct hole_cache *cache, uint64_t off, struct hole_run *out)
{
    LOCK_SCOPE(&cache->lock);
    for (unsigned i = 0; i < HOLE_RUNS; i++) {
        const struct hole_run *run = &cache->run[i];

        if (off >= run->start && off < run->end && run->stamp == stamp_of(cache, run->data)) {
            *out = *run;
            return true;
        }
    }
    return false;
}

static void remember(struct hole_cache *cache, const struct hole_run *run)
{
    unsigned slot;

    LOCK_SCOPE(&cache->lock);
    slot = cache->next;
    /* One that overlaps is older news of the same place. */
    for (unsigned i = 0; i < HOLE_RUNS; i++)
        if (cache->run[i].start < run->end && run->start < cache->run[i].end)
            slot = i;
    cache->run[slot] = *run;
    if (slot == cache->next)
        cache->next = (cache->next + 1) % HOLE_RUNS;
}

static off_t seek(int fd, uint64_t off, int whence)
{
    off_t r;

    do {
        r = lseek(fd, (off_t)off, whence);
    } while (r < 0 && errno == EINTR);
    return r;
}

/* Asks the file system for the run at off. False when it does not know: then all is data. */
static bool ask(struct file_state *s, uint64_t off, struct hole_run *run)
{
    /* The counters first: what changes from here on makes the answer stale. */
    uint64_t punches = atomic_load(&s->holes.punches), writes = atomic_load(&s->holes.writes);
    off_t data = seek(s->fd, off, SEEK_DATA), hole;

    if (data < 0) {
        /* ENXIO: no data from here to the end, which lies there or nearer. */
        *run = (struct hole_run){ off, UINT64_MAX, false, writes };
        return errno == ENXIO;
    }
    if ((uint64_t)data > off) {
        *run = (struct hole_run){ off, (uint64_t)data, false, writes };
        return true;
    }
    hole = seek(s->fd, off, SEEK_HOLE);
    if (hole < 0 || (uint64_t)hole <= off)
        return false; /* cut off in between: to be asked again, not to be believed */
    *run = (struct hole_run){ off, (uint64_t)hole, true, punches };
    return true;
}

int file_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                 struct blk_extent *out)
{
    struct file_state *s = node_state(n);
    struct hole_run run = { off, off + len, true, 0 };

    if (!s->device && !recall(&s->holes, off, &run)) {
        if (flags & BLK_NOWAIT)
            return -EAGAIN;
        if (ask(s, off, &run)) {
            if (run.data || !s->shared)
                remember(&s->holes, &run);
        } else {
            run = (struct hole_run){ off, off + len, true, 0 };
        }
    }
    out->length = MIN(len, run.end - off);
    out->flags = BLK_EXT_ALLOCATED | BLK_EXT_HOST | (run.data ? BLK_EXT_DATA : BLK_EXT_ZERO);
    out->host = n;
    out->host_offset = off;
    return 0;
}
