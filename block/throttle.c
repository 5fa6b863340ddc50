/* Filter: holds requests back to a rate.
 *
 * Every limit is a queue with a clock of its own, `free_at`: when it has worked off all that was
 * let through. A request may pass as soon as free_at is no more than `slack` ahead of now, and then
 * moves free_at on by its cost. The slack is what may come at once: a tenth of a second's worth, or
 * with a burst rate, burst rate times burst length, which a second queue of the burst rate lets
 * through no faster than that.
 *
 * Threads: `lock` guards the clocks. A request books its place in all queues at once under the lock
 * and sleeps outside it, so requests pass in the order they came.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "block/driver_leaves.h"
#include "filter.h"

#define SECOND UINT64_C(1000000000)

enum unit { BYTES, OPS, UNITS };
enum direction { TOTAL, READ, WRITE, DIRECTIONS };

struct limit {
    uint64_t rate, burst, burst_length;
};

struct throttle_options {
    struct limit limit[UNITS][DIRECTIONS];
    uint64_t iops_size;
};

struct queue {
    double rate;  /* units per second; 0: no limit */
    double slack; /* nanoseconds */
    double free_at;
};

struct throttle_state {
    uint64_t iops_size; /* bytes that count as one operation; 0: any */
    struct timespec start;

    pthread_mutex_t lock;
    /* under lock */
    struct queue queue[UNITS][DIRECTIONS][2]; /* the mean rate and the burst rate */
};

#define LIMIT_(key, unit, direction, what)                                                      \
    { .name = "limits." key "-max",                                                             \
      .type = OPT_NUMBER,                                                                       \
      .at = offsetof(struct throttle_options, limit[unit][direction].burst),                    \
      .max = MOST_RATE,                                                                         \
      .help = what " per second in a burst" },                                                  \
        { .name = "limits." key "-max-length",                                                  \
          .type = OPT_NUMBER,                                                                   \
          .at = offsetof(struct throttle_options, limit[unit][direction].burst_length),         \
          .def = "1",                                                                           \
          .min = 1,                                                                             \
          .max = 86400,                                                                         \
          .help = "how many seconds a burst may last" },                                        \
    {                                                                                           \
        .name = "limits." key, .type = unit == BYTES ? OPT_SIZE : OPT_NUMBER,                   \
        .at = offsetof(struct throttle_options, limit[unit][direction].rate), .max = MOST_RATE, \
        .help = what " per second; 0: no limit"                                                 \
    }
#define MOST_RATE UINT64_C(1000000000000000)

static const struct opt_def throttle_options[] = {
    LIMIT_("iops-total", OPS, TOTAL, "requests"),
    LIMIT_("iops-read", OPS, READ, "reads"),
    LIMIT_("iops-write", OPS, WRITE, "writes"),
    LIMIT_("bps-total", BYTES, TOTAL, "bytes"),
    LIMIT_("bps-read", BYTES, READ, "bytes read"),
    LIMIT_("bps-write", BYTES, WRITE, "bytes written"),
    { .name = "limits.iops-size",
      .type = OPT_SIZE,
      .at = offsetof(struct throttle_options, iops_size),
      .help = "longer requests count as several of this many bytes" },
    OPT_END,
};

/* ---- the clocks ----------------------------------------------------------------------------- */

/* Nanoseconds since open. */
static double now_of(const struct throttle_state *s)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)(t.tv_sec - s->start.tv_sec) * (double)SECOND +
           (double)(t.tv_nsec - s->start.tv_nsec);
}

static double cost_of(const struct throttle_state *s, enum unit unit, uint64_t len)
{
    if (unit == BYTES)
        return (double)len;
    return s->iops_size ? (double)div_round_up(len, s->iops_size) : 1;
}

static void set_queue(struct queue *queue, uint64_t rate, double seconds)
{
    queue->rate = (double)rate;
    queue->slack = seconds * (double)SECOND;
}

/* Books a request and answers how long it has to wait; -1 when it would have to and must not. */
static double book(struct throttle_state *s, enum direction direction, uint64_t len, bool nowait)
{
    LOCK_SCOPE(&s->lock);
    double now = now_of(s), wait = 0;
    struct queue *of[UNITS * 2 * 2];
    double cost[UNITS * 2 * 2];
    unsigned count = 0;

    for (unsigned unit = 0; unit < UNITS; unit++) {
        for (unsigned i = 0; i < 4; i++) {
            struct queue *queue = &s->queue[unit][i < 2 ? TOTAL : direction][i % 2];

            if (queue->rate > 0) {
                cost[count] = cost_of(s, (enum unit)unit, len) / queue->rate * (double)SECOND;
                of[count++] = queue;
                wait = MAX(wait, queue->free_at - queue->slack - now);
            }
        }
    }
    if (nowait && wait > 0)
        return -1;
    for (unsigned i = 0; i < count; i++)
        of[i]->free_at = MAX(of[i]->free_at, now) + cost[i];
    return wait;
}

/* 0 once the request may pass, or -EAGAIN. */
static int pass(struct blk_node *n, enum direction direction, uint64_t len, unsigned flags)
{
    struct throttle_state *s = node_state(n);
    double wait = book(s, direction, len, flags & BLK_NOWAIT);
    struct timespec left;

    if (wait < 0)
        return -EAGAIN;
    left.tv_sec = (time_t)(wait / (double)SECOND);
    left.tv_nsec = (long)(wait - (double)left.tv_sec * (double)SECOND);
    while (wait > 0 && nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
    return 0;
}

/* ---- data ----------------------------------------------------------------------------------- */

static int throttle_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                           uint64_t len, unsigned flags)
{
    int r = pass(n, READ, len, flags);

    return r < 0 ? r : filter_preadv(n, off, iov, iovcnt, len, flags);
}

static int throttle_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                            uint64_t len, unsigned flags)
{
    int r = pass(n, WRITE, len, flags);

    return r < 0 ? r : filter_pwritev(n, off, iov, iovcnt, len, flags);
}

static int throttle_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    int r = pass(n, WRITE, len, flags);

    return r < 0 ? r : filter_zero(n, off, len, flags);
}

static int throttle_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    int r = pass(n, WRITE, len, 0);

    return r < 0 ? r : filter_discard(n, off, len);
}

/* ---- control -------------------------------------------------------------------------------- */

static int check_limit(const struct limit *limit, struct error **err)
{
    if (limit->burst && limit->burst < limit->rate) {
        return error_set(err, EINVAL,
                         "a burst limit (...-max) is below the limit that it should exceed: %llu "
                         "is less than %llu",
                         (unsigned long long)limit->burst, (unsigned long long)limit->rate);
    }
    if (limit->burst && !limit->rate)
        return error_set(err, EINVAL, "a burst limit (...-max) is given without the limit itself");
    return 0;
}

static int throttle_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct throttle_options *o = options;
    struct throttle_state *s = node_state(n);

    for (unsigned unit = 0; unit < UNITS; unit++) {
        for (unsigned direction = 0; direction < DIRECTIONS; direction++) {
            const struct limit *limit = &o->limit[unit][direction];
            struct queue *queue = s->queue[unit][direction];
            int r = check_limit(limit, err);

            if (r < 0)
                return r;
            set_queue(&queue[0], limit->rate,
                      limit->burst
                          ? (double)limit->burst * (double)limit->burst_length / (double)limit->rate
                          : 0.1);
            set_queue(&queue[1], limit->burst, 0.1);
        }
    }
    s->iops_size = o->iops_size;
    clock_gettime(CLOCK_MONOTONIC, &s->start);
    pthread_mutex_init(&s->lock, NULL);
    filter_adopt(n);
    return 0;
}

static int throttle_close(struct blk_node *n, struct error **err)
{
    struct throttle_state *s = node_state(n);

    (void)err;
    pthread_mutex_destroy(&s->lock);
    return 0;
}

const struct driver throttle_driver = {
    .name = "throttle",
    .kind = BLK_FILTER,
    /* Grows as far as the node below does. */
    .flags = DRIVER_PARALLEL | DRIVER_GROWS,
    .state_size = sizeof(struct throttle_state),
    .options = throttle_options,
    .options_size = sizeof(struct throttle_options),
    .open = throttle_open,
    .close = throttle_close,
    .preadv = throttle_preadv,
    .pwritev = throttle_pwritev,
    .zero = throttle_zero,
    .discard = throttle_discard,
    .extents = filter_extents, /* asking where the bytes are moves none */
    .resize = filter_resize,
};
