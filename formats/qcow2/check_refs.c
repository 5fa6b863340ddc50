/* Counting references.
 *
 * A counter whose top bit is set counts no further; the rest goes into `more`. The addition and
 * the step back of several threads at once stay far below its end.
 *
 * Runs are added four or eight counters at a time: a word of counters without a top bit can be added to
 * as a whole, no counter carries into its neighbour.
 */
#include <assert.h>
#include <errno.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "check.h"

#define TOP8   UINT64_C(0x8080808080808080)
#define ONES8  UINT64_C(0x0101010101010101)
#define TOP16  UINT64_C(0x8000800080008000)
#define ONES16 UINT64_C(0x0001000100010001)

static void *take_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

int qrefs_init(struct qrefs *r, uint64_t clusters, uint32_t refcount_order)
{
    size_t width = refcount_order <= 3 ? 1 : 2;

    *r = (struct qrefs){ .clusters = clusters };
    lock_must_(pthread_mutex_init(&r->lock, NULL));
    r->mapped = (size_t)(clusters + 8) * width;
    void *counters = take_memory(r->mapped);
    r->seen = calloc(1, (size_t)(clusters >> QREFS_SEEN_BITS) + 1);
    if (width == 1)
        r->bytes = counters;
    else
        r->words = counters;
    return counters && r->seen ? 0 : -ENOMEM;
}

void qrefs_free(struct qrefs *r)
{
    void *counters = r->bytes ? (void *)r->bytes : r->words;

    if (counters)
        munmap(counters, r->mapped);
    free(r->seen);
    qmap_free(&r->more);
    pthread_mutex_destroy(&r->lock);
}

static void add_more(struct qrefs *r, uint64_t cluster, uint64_t times)
{
    LOCK_SCOPE(&r->lock);
    uint64_t *value = qmap_at(&r->more, cluster);
    if (value)
        *value += times;
    else
        r->failed = true;
}

static void add_one(struct qrefs *r, uint64_t cluster)
{
    bool full;

    if (r->bytes)
        full = __atomic_fetch_add(&r->bytes[cluster], 1, __ATOMIC_RELAXED) & 0x80;
    else
        full = __atomic_fetch_add(&r->words[cluster], 1, __ATOMIC_RELAXED) & 0x8000;
    if (!full)
        return;
    if (r->bytes)
        __atomic_fetch_sub(&r->bytes[cluster], 1, __ATOMIC_RELAXED);
    else
        __atomic_fetch_sub(&r->words[cluster], 1, __ATOMIC_RELAXED);
    add_more(r, cluster, 1);
}

/* Counters from `cluster` on that one aligned word holds; false: one of them is full. */
static bool add_word(struct qrefs *r, uint64_t cluster)
{
    uint64_t *word =
        r->bytes ? (uint64_t *)(void *)&r->bytes[cluster] : (uint64_t *)(void *)&r->words[cluster];
    uint64_t ones = r->bytes ? ONES8 : ONES16, top = r->bytes ? TOP8 : TOP16;

    if ((__atomic_fetch_add(word, ones, __ATOMIC_RELAXED) & top) == 0)
        return true;
    __atomic_fetch_sub(word, ones, __ATOMIC_RELAXED);
    return false;
}

void qrefs_add(struct qrefs *r, uint64_t cluster, uint64_t count)
{
    uint64_t per = r->bytes ? 8 : 4, end = cluster + count;

    assert(end <= r->clusters);
    if (count == 0)
        return;
    for (uint64_t s = cluster >> QREFS_SEEN_BITS; s <= (end - 1) >> QREFS_SEEN_BITS; s++)
        __atomic_store_n(&r->seen[s], 1, __ATOMIC_RELAXED);
    while (cluster < end) {
        if (cluster % per == 0 && end - cluster >= per && add_word(r, cluster))
            cluster += per;
        else
            add_one(r, cluster++);
    }
}

void qrefs_add_times(struct qrefs *r, uint64_t cluster, uint64_t times)
{
    if (times > 0)
        qrefs_add(r, cluster, 1);
    if (times > 1 && times <= 64)
        while (--times > 0)
            add_one(r, cluster);
    else if (times > 1)
        add_more(r, cluster, times - 1);
}

void qrefs_sub(struct qrefs *r, uint64_t cluster)
{
    uint64_t *more =
        r->more.cap && qmap_find(&r->more, cluster) ? qmap_at(&r->more, cluster) : NULL;

    if (more && *more > 0)
        --*more;
    else if (r->bytes && r->bytes[cluster])
        r->bytes[cluster]--;
    else if (r->words && r->words[cluster])
        r->words[cluster]--;
}

uint64_t qrefs_get(const struct qrefs *r, uint64_t cluster)
{
    uint64_t n = r->bytes ? r->bytes[cluster] : r->words[cluster];

    if (r->more.used == 0)
        return n;
    const uint64_t *more = qmap_find(&r->more, cluster);
    return n + (more ? *more : 0);
}

static bool counted(const struct qrefs *r, uint64_t cluster)
{
    return r->bytes ? r->bytes[cluster] != 0 : r->words[cluster] != 0;
}

uint64_t qrefs_next(const struct qrefs *r, uint64_t from, uint64_t to)
{
    uint64_t piece = UINT64_C(1) << QREFS_SEEN_BITS;

    for (uint64_t i = from; i < to;) {
        uint64_t stop = MIN(align_down(i, piece) + piece, to);
        if (r->seen[i >> QREFS_SEEN_BITS])
            for (; i < stop; i++)
                if (counted(r, i))
                    return i;
        i = stop;
    }
    return to;
}

uint64_t qrefs_end(const struct qrefs *r, uint64_t to)
{
    uint64_t piece = UINT64_C(1) << QREFS_SEEN_BITS;

    while (to > 0) {
        uint64_t start = align_down(to - 1, piece);
        if (r->seen[start >> QREFS_SEEN_BITS])
            for (; to > start; to--)
                if (counted(r, to - 1))
                    return to;
        to = start;
    }
    return 0;
}
