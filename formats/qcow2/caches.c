#include "caches.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

#define MIN_L2_CACHE  (UINT64_C(1) << 20)
#define MAX_L2_CACHE  (UINT64_C(32) << 20)
#define MIN_REF_CACHE (UINT64_C(1) << 20)
#define MAX_CACHE     (UINT64_C(1) << 32)

/* ---- options ---------------------------------------------------------------------------------------- */

#define AT(m) .at = offsetof(struct qcow2_options, m)

const struct opt_def qcow2_options[] = {
    { .name = "l2-cache-size",
      .type = OPT_SIZE,
      AT(l2_cache_size),
      .help = "memory for L2 tables (default: what covers the disk, at most 32 MiB)" },
    { .name = "refcount-cache-size",
      .type = OPT_SIZE,
      AT(refcount_cache_size),
      .help = "memory for refcount blocks" },
    { .name = "cache-size",
      .type = OPT_SIZE,
      AT(cache_size),
      .help = "memory for both, when they are not given" },
    { .name = "cache-clean-interval",
      .type = OPT_NUMBER,
      AT(clean_interval),
      .max = UINT32_MAX,
      .help = "seconds after which unused tables leave memory (default: 0, never)" },
    { .name = "l2-cache-entry-size",
      .type = OPT_SIZE,
      AT(entry_size),
      .help = "accepted: entries have 4 KiB" },
    { .name = "lazy-refcounts",
      .type = OPT_BOOL,
      AT(lazy_refcounts),
      .help = "accepted: refcounts are always written in order here" },
    { .name = "pass-discard-request",
      .type = OPT_BOOL,
      AT(pass_request),
      .given = offsetof(struct qcow2_options, pass_given),
      .help = "freed space is given back to the file (default: as its discard option says)" },
    { .name = "pass-discard-snapshot",
      .type = OPT_BOOL,
      AT(pass_snapshot),
      .help = "accepted: it goes with pass-discard-request" },
    { .name = "pass-discard-other",
      .type = OPT_BOOL,
      AT(pass_other),
      .help = "accepted: it goes with pass-discard-request" },
    { .name = "overlap-check",
      .type = OPT_JSON,
      AT(overlap_check),
      .help = "accepted: every write is checked, always" },
    OPT_END,
};

/* ---- giving back ------------------------------------------------------------------------------------- */

/* A thread that comes by now and then. It takes the metadata lock, and nothing else under it. */
struct qcow2_cleaner {
    struct qcow2 *q;
    uint64_t interval; /* seconds */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop;
};

static void trim(struct qcow2 *q)
{
    WRLOCK_SCOPE(&q->lock);
    table_cache_trim(q->l2);
    table_cache_trim(q->refs);
}

static bool wait_or_stop(struct qcow2_cleaner *c)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)c->interval;
    LOCK_SCOPE(&c->lock);
    while (!c->stop)
        if (pthread_cond_timedwait(&c->changed, &c->lock, &until) == ETIMEDOUT)
            break;
    return !c->stop;
}

static void *clean(void *arg)
{
    struct qcow2_cleaner *c = arg;

    while (wait_or_stop(c))
        trim(c->q);
    return NULL;
}

static void free_cleaner(struct qcow2_cleaner *c)
{
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static int start_cleaner(struct qcow2 *q, uint64_t interval)
{
    struct qcow2_cleaner *c = calloc(1, sizeof(*c));
    pthread_condattr_t attr;

    if (!c)
        return -ENOMEM;
    *c = (struct qcow2_cleaner){ .q = q, .interval = interval };
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->changed, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&c->thread, NULL, clean, c) != 0) {
        free_cleaner(c);
        return -ENOMEM;
    }
    q->cleaner = c;
    return 0;
}

static void stop_cleaner(struct qcow2_cleaner *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->thread, NULL);
    free_cleaner(c);
}

/* ---- making ---------------------------------------------------------------------------------------- */

static unsigned cache_count(const struct qcow2 *q, uint64_t bytes, uint64_t least)
{
    return (unsigned)(MIN(MAX(bytes, least), MAX_CACHE) / q->slice_size);
}

int qcow2_caches_make(struct qcow2 *q, const struct qcow2_options *o)
{
    uint64_t whole = (q->header.size >> q->cluster_bits << q->entry_bits) + q->slice_size;
    uint64_t l2 = o->l2_cache_size ? o->l2_cache_size
                  : o->cache_size  ? o->cache_size / 5 * 4
                                   : MIN(whole, MAX_L2_CACHE);
    uint64_t refs =
        o->refcount_cache_size ? o->refcount_cache_size : MAX(o->cache_size / 5, l2 / 4);

    q->keeps_freed = o->pass_given && !o->pass_request;
    int ret = table_cache_new(&q->l2, q->file, &q->lock, q->slice_size,
                              cache_count(q, l2, MIN_L2_CACHE), EVENT_L2_LOAD, EVENT_L2_UPDATE);
    if (ret == 0)
        ret = table_cache_new(&q->refs, q->file, &q->lock, q->slice_size,
                              cache_count(q, refs, MIN_REF_CACHE), EVENT_REFBLOCK_LOAD,
                              EVENT_REFBLOCK_UPDATE_PART);
    if (ret == 0 && o->clean_interval)
        ret = start_cleaner(q, o->clean_interval);
    return ret;
}

void qcow2_caches_free(struct qcow2 *q)
{
    stop_cleaner(q->cleaner);
    table_cache_free(q->l2);
    table_cache_free(q->refs);
}
