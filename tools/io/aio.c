/* Thread rules: `lock` guards the list and the count; a request belongs to the main thread until it
 * is submitted, then to its worker, and again to the main thread when it is on the list. */
#include "aio.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "io.h"
#include "request.h"

/* A request that is held at a breakpoint keeps its thread. */
enum { THREADS = 16 };

struct aio {
    struct pool *pool;
    int event;

    pthread_mutex_t lock;
    /* under lock */
    struct aio_request *finished, **tail;
    unsigned running; /* submitted, not on the list yet */
};

static struct aio *aio_create(void)
{
    struct aio *aio = calloc(1, sizeof(*aio));
    if (!aio)
        return NULL;
    aio->tail = &aio->finished;
    pthread_mutex_init(&aio->lock, NULL);
    aio->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (aio->event < 0 || pool_create(&aio->pool, THREADS, "aio") < 0) {
        aio_destroy(aio);
        return NULL;
    }
    return aio;
}

void aio_destroy(struct aio *aio)
{
    if (!aio)
        return;
    if (aio->pool)
        aio_wait(aio);
    pool_destroy(aio->pool);
    if (aio->event >= 0)
        close(aio->event);
    pthread_mutex_destroy(&aio->lock);
    free(aio);
}

void aio_request_free(struct aio_request *request)
{
    buffer_free(&request->buf);
    free(request->iov);
    free(request);
}

/* ---- a worker's side
 * ------------------------------------------------------------------------------ */

static int perform(const struct aio_request *r)
{
    switch (r->kind) {
    case AIO_READ:
        return request_readv(r->node, r->offset, r->iov, r->iovcnt);
    case AIO_WRITE:
        return request_writev(r->node, r->offset, r->iov, r->iovcnt, r->flags);
    case AIO_ZERO:
        return request_zero(r->node, r->offset, (uint64_t)r->length, r->flags);
    }
    return -ENOTSUP;
}

static void work(void *arg)
{
    struct aio_request *r = arg;
    struct aio *aio = r->aio;
    r->result = perform(r);
    stopwatch_stop(&r->watch);
    LOCK_SCOPE(&aio->lock);
    *aio->tail = r;
    aio->tail = &r->next;
    aio->running--;
    uint64_t one = 1;
    if (write(aio->event, &one, sizeof(one)) < 0)
        return; /* it is readable already */
}

/* ---- the main thread's side
 * ----------------------------------------------------------------------- */

bool aio_submit(struct aio **aio, struct aio_request *r)
{
    if (!*aio)
        *aio = aio_create();
    if (!*aio) {
        complain("could not start the threads of asynchronous requests");
        aio_request_free(r);
        return false;
    }
    r->aio = *aio;
    r->next = NULL;
    r->job = (struct pool_job){ .fn = work, .arg = r };
    r->watch = stopwatch_start();
    {
        LOCK_SCOPE(&r->aio->lock);
        r->aio->running++;
    }
    pool_submit(r->aio->pool, &r->job);
    return true;
}

static void tell(const struct aio_request *r)
{
    bool reading = r->kind == AIO_READ;
    if (r->result < 0) {
        printf("%s failed: %s\n", reading ? "readv" : "aio_write", strerror(-r->result));
        return;
    }
    if (reading && r->pattern >= 0)
        buffer_verify(&r->buf, r->offset, 0, r->buf.len, r->pattern);
    if (r->quiet)
        return;
    if (r->dump)
        buffer_dump(&r->buf, r->offset);
    report(reading ? "read" : "wrote", &r->watch, r->offset, r->length, r->machine);
}

/* Takes the list. True: nothing runs any more. */
static bool take(struct aio *aio, struct aio_request **list)
{
    uint64_t count;
    if (read(aio->event, &count, sizeof(count)) < 0)
        count = 0; /* nobody rang; the list tells */
    LOCK_SCOPE(&aio->lock);
    *list = aio->finished;
    aio->finished = NULL;
    aio->tail = &aio->finished;
    return aio->running == 0;
}

static bool reap(struct aio *aio)
{
    struct aio_request *list;
    bool idle = take(aio, &list);
    while (list) {
        struct aio_request *next = list->next;
        tell(list);
        aio_request_free(list);
        list = next;
    }
    return idle;
}

void aio_reap(struct aio *aio)
{
    if (aio)
        reap(aio);
}

static void wait_event(int fd, int milliseconds)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };
    poll(&p, 1, milliseconds);
}

void aio_wait(struct aio *aio)
{
    while (aio && !reap(aio))
        wait_event(aio->event, -1);
}

static int64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000) + ts.tv_nsec / 1000000;
}

void aio_sleep(struct aio *aio, int64_t milliseconds)
{
    int64_t end = now_ms() + milliseconds;
    for (int64_t left; (left = end - now_ms()) > 0;) {
        wait_event(aio ? aio->event : -1, left < INT32_MAX ? (int)left : INT32_MAX);
        aio_reap(aio);
    }
}

int aio_fd(const struct aio *aio)
{
    return aio ? aio->event : -1;
}
