/* The threads that serve.
 *
 * The kernel hands requests to those who read in turn, so that many readers would go through as many cold buffers.
 * Only `most_reading` wait for requests at a time, one for each core and two at least; the others are parked. When
 * every reader is busy one of those takes over, but only if requests have been slow of late: with a disk that makes
 * them wait, so many run at once as there are threads, while one that answers from memory would lose more by
 * waking somebody than by waiting for the reader to come back.
 *
 * Signals are blocked everywhere; the thread that called waits for them, and for the last word of a reader.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#include "base/cleanup.h"
#include "base/cores.h"
#include "base/macros.h"

enum { SLOW = 1000000, SLOW_FOR = 200000000 }; /* nanoseconds */

struct loop {
    struct fuse_export *x;
    atomic_llong slow_until; /* by the monotonic clock */
    pthread_t caller;
    unsigned most, most_reading; /* never change */

    pthread_mutex_t lock;
    pthread_cond_t wanted; /* a parked thread is to go on */
    unsigned count, reading, parked;
    bool ending;
    int result;
    pthread_t *threads;
    struct fuse_buf *buffers; /* one for each */
    bool *is_reading;         /* the thread is in the kernel for a request, or as good as */
    unsigned gone;            /* threads that have ended */
};

struct start {
    struct loop *loop;
    unsigned number;
};

static void *work(void *arg);

static long long now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Under lock. A thread that cannot be had is one less. */
static int add_thread(struct loop *l)
{
    struct start *s = malloc(sizeof(*s));
    if (!s)
        return -ENOMEM;
    *s = (struct start){ l, l->count };
    int r = pthread_create(&l->threads[l->count], NULL, work, s);
    if (r != 0) {
        free(s);
        return -r;
    }
    l->count++;
    return 0;
}

static bool begin_reading(struct loop *l, unsigned number)
{
    LOCK_SCOPE(&l->lock);
    while (l->reading >= l->most_reading && !l->ending) {
        l->parked++;
        pthread_cond_wait(&l->wanted, &l->lock);
        l->parked--;
    }
    l->reading++;
    l->is_reading[number] = true;
    if (l->ending) {
        l->is_reading[number] = false;
        l->gone++;
    }
    return !l->ending;
}

/* r: what reading gave. Somebody must always read. */
static void end_reading(struct loop *l, unsigned number, int r)
{
    LOCK_SCOPE(&l->lock);
    l->reading--;
    l->is_reading[number] = false;
    if (r == -EINTR || r == -EAGAIN)
        return;   /* begin_reading knows whether it is the end */
    if (r <= 0) { /* unmounted, or broken */
        if (!l->ending)
            l->result = r;
        l->ending = true;
        pthread_cond_broadcast(&l->wanted);
        pthread_kill(l->caller, SIGTERM);
        return;
    }
    if (l->reading > 0 || now() > atomic_load(&l->slow_until))
        return;
    if (l->parked > 0)
        pthread_cond_signal(&l->wanted);
    else if (l->count < l->most && !l->ending)
        add_thread(l);
}

static void process(struct loop *l, struct fuse_buf *buf)
{
    long long began = now();

    fuse_session_process_buf(l->x->session, buf);
    long long end = now();
    if (end - began > SLOW)
        atomic_store(&l->slow_until, end + SLOW_FOR);
}

static void *work(void *arg)
{
    struct start s = *(struct start *)arg;
    struct loop *l = s.loop;
    struct fuse_buf *buf = &l->buffers[s.number];

    free(arg);
    while (begin_reading(l, s.number)) {
        int r = fuse_session_receive_buf(l->x->session, buf);
        end_reading(l, s.number, r);
        if (r > 0)
            process(l, buf);
    }
    return NULL;
}

/* Nothing but a signal wakes a reader while the mount lives on for those who have files open. It may come just before the
 * reading begins and be lost, so it is sent until all have seen it; never to a thread that works on a request. */
static void nothing(int number)
{
    (void)number;
}

static bool all_gone(struct loop *l)
{
    LOCK_SCOPE(&l->lock);
    for (unsigned i = 0; i < l->count; i++) {
        if (l->is_reading[i])
            pthread_kill(l->threads[i], SIGUSR1);
    }
    return l->gone == l->count;
}

static void finish(struct loop *l)
{
    const struct timespec moment = { .tv_nsec = 1000000 };
    {
        LOCK_SCOPE(&l->lock);
        l->ending = true; /* no thread is added from now on */
        pthread_cond_broadcast(&l->wanted);
    }
    while (!all_gone(l))
        nanosleep(&moment, NULL);
    for (unsigned i = 0; i < l->count; i++) {
        pthread_join(l->threads[i], NULL);
        free(l->buffers[i].mem);
    }
}

int loop_run(struct fuse_export *x)
{
    struct loop l = {
        .x = x,
        .caller = pthread_self(),
        .most = x->threads,
        .most_reading = MAX(usable_cores(), 2u),
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .wanted = PTHREAD_COND_INITIALIZER,
    };
    sigset_t set;
    int number, r = -ENOMEM;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = nothing }, NULL);
    l.is_reading = calloc(l.most, sizeof(*l.is_reading));
    l.threads = calloc(l.most, sizeof(*l.threads));
    l.buffers = calloc(l.most, sizeof(*l.buffers));
    if (l.threads && l.buffers && l.is_reading) {
        LOCK_SCOPE(&l.lock);
        r = add_thread(&l);
        for (unsigned i = 1; r == 0 && i < MIN(l.most, l.most_reading); i++)
            add_thread(&l);
    }
    if (r == 0) {
        sigwait(&set, &number);
        finish(&l);
        r = l.result == -ENODEV ? 0 : l.result;
    }
    free(l.threads);
    free(l.buffers);
    free(l.is_reading);
    return r;
}
