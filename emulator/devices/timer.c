/* The clock: CLOCK_MONOTONIC minus what it stood still, and a thread that rings.
 *
 * Alarms that are set stand in a list in order of time. The thread sleeps until the first one is due, takes it out and calls it
 * without the lock; `ringing` names it meanwhile, so that timer_free() can wait.
 */
#include "timer.h"

#include "base/cleanup.h"

#include <stdatomic.h>
#include <sys/prctl.h>
#include <time.h>

struct timer {
    struct clock *clock;
    struct timer *next;
    uint64_t when;
    bool set;
    void (*ring)(void *opaque);
    void *opaque;
};

struct clock {
    /* now = monotonic - offset while it runs, else `stood`. Readers take no lock; a change happens with the CPUs stopped. */
    _Atomic bool runs;
    _Atomic uint64_t offset, stood;

    pthread_mutex_t lock; /* guards what follows and the timers */
    pthread_cond_t wake, rung;
    struct timer *first;
    const struct timer *ringing;
    bool end;
    pthread_t thread;
};

static uint64_t monotonic(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t clock_now(struct clock *clock)
{
    return atomic_load(&clock->runs) ? monotonic() - atomic_load(&clock->offset)
                                     : atomic_load(&clock->stood);
}

void clock_run(struct clock *clock, bool run)
{
    LOCK_SCOPE(&clock->lock);
    if (run == atomic_load(&clock->runs))
        return;
    if (run)
        atomic_store(&clock->offset, monotonic() - atomic_load(&clock->stood));
    else
        atomic_store(&clock->stood, clock_now(clock));
    atomic_store(&clock->runs, run);
    pthread_cond_signal(&clock->wake);
}

static void wait_for_first(struct clock *clock)
{
    if (!clock->first || !atomic_load(&clock->runs)) {
        pthread_cond_wait(&clock->wake, &clock->lock);
        return;
    }
    uint64_t now = clock_now(clock);
    if (clock->first->when <= now)
        return;
    uint64_t ahead = clock->first->when - now; /* far away is as good as half a year */
    uint64_t at = monotonic() + (ahead < (uint64_t)1 << 54 ? ahead : (uint64_t)1 << 54);
    struct timespec until = { .tv_sec = (time_t)(at / 1000000000u),
                              .tv_nsec = (long)(at % 1000000000u) };
    pthread_cond_timedwait(&clock->wake, &clock->lock, &until);
}

static void *ring_all(void *opaque)
{
    struct clock *clock = opaque;
    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL,
          0UL); /* the usual 50 us are long for a guest's tick */
    pthread_mutex_lock(&clock->lock);
    while (!clock->end) {
        struct timer *t = clock->first;
        if (!t || !atomic_load(&clock->runs) || t->when > clock_now(clock)) {
            wait_for_first(clock);
            continue;
        }
        clock->first = t->next;
        t->set = false;
        clock->ringing = t;
        pthread_mutex_unlock(&clock->lock); /* callbacks take their own locks and set timers */
        t->ring(t->opaque);
        pthread_mutex_lock(&clock->lock);
        clock->ringing = NULL;
        pthread_cond_broadcast(&clock->rung);
    }
    pthread_mutex_unlock(&clock->lock); /* the thread ends */
    return NULL;
}

struct clock *clock_new(void)
{
    struct clock *clock = calloc(1, sizeof *clock);
    if (!clock)
        return NULL;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&clock->lock, NULL);
    pthread_cond_init(&clock->wake, &attr);
    pthread_cond_init(&clock->rung, NULL);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&clock->thread, NULL, ring_all, clock)) {
        free(clock);
        return NULL;
    }
    return clock;
}

void clock_free(struct clock *clock)
{
    if (!clock)
        return;
    pthread_mutex_lock(&clock->lock);
    clock->end = true;
    pthread_cond_signal(&clock->wake);
    pthread_mutex_unlock(&clock->lock); /* the thread needs it to end */
    pthread_join(clock->thread, NULL);
    pthread_cond_destroy(&clock->wake);
    pthread_cond_destroy(&clock->rung);
    pthread_mutex_destroy(&clock->lock);
    free(clock);
}

struct timer *timer_new(struct clock *clock, void (*ring)(void *opaque), void *opaque)
{
    struct timer *t = calloc(1, sizeof *t);
    if (t)
        *t = (struct timer){ .clock = clock, .ring = ring, .opaque = opaque };
    return t;
}

static void take_out(struct timer *t)
{
    struct timer **at = &t->clock->first;
    if (!t->set)
        return;
    while (*at != t)
        at = &(*at)->next;
    *at = t->next;
    t->set = false;
}

void timer_free(struct timer *t)
{
    if (!t)
        return;
    struct clock *clock = t->clock;
    pthread_mutex_lock(&clock->lock);
    do {
        take_out(t); /* the callback may have set it anew */
        if (clock->ringing == t)
            pthread_cond_wait(&clock->rung, &clock->lock);
    } while (t->set || clock->ringing == t);
    pthread_mutex_unlock(&clock->lock); /* before the timer goes */
    free(t);
}

void timer_set(struct timer *t, uint64_t when)
{
    struct clock *clock = t->clock;
    LOCK_SCOPE(&clock->lock);
    take_out(t);
    struct timer **at = &clock->first;
    while (*at && (*at)->when <= when)
        at = &(*at)->next;
    t->next = *at;
    t->when = when;
    t->set = true;
    *at = t;
    if (clock->first == t)
        pthread_cond_signal(&clock->wake);
}

void timer_cancel(struct timer *t)
{
    LOCK_SCOPE(&t->clock->lock);
    take_out(t);
}
