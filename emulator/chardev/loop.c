/* The chardevs' thread: waits for whoever has something to say, and sends what could not be sent at once. */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/vector.h"
#include "internal.h"

enum { IN, OUT, LISTENER, FDS_EACH };

static struct {
    pthread_t thread;
    bool started;
    int wake;
    atomic_bool stop;
    pthread_mutex_t dispatch;
} loop = { .wake = -1, .dispatch = PTHREAD_MUTEX_INITIALIZER };

static _Thread_local bool is_me;

pthread_mutex_t *dispatch_lock(void)
{
    return &loop.dispatch;
}

bool loop_is_me(void)
{
    return is_me;
}

void loop_wake(void)
{
    uint64_t one = 1;
    if (loop.wake >= 0 && write(loop.wake, &one, sizeof(one)) < 0)
        return; /* it is awake already */
}

/* Whether the one who listens has room is asked outside of the chardev's lock: it may be about to write. */
static bool wants_input(struct chardev *c)
{
    chardev_deliver(c);
    return c->input_len == 0;
}

static void describe(struct chardev *c, struct pollfd p[FDS_EACH], int *timeout)
{
    bool wants = wants_input(c);
    LOCK_SCOPE(&c->lock);

    p[IN] = (struct pollfd){ .fd = wants ? c->in : -1, .events = POLLIN };
    p[OUT] = (struct pollfd){ .fd = c->pending_len ? c->out : -1, .events = POLLOUT };
    p[LISTENER] = (struct pollfd){ .fd = c->connected ? -1 : c->listener, .events = POLLIN };
    if (c->retry) {
        uint64_t now = chardev_milliseconds();
        int left = c->retry > now ? (int)(c->retry - now) : 0;
        if (*timeout < 0 || left < *timeout)
            *timeout = left;
    }
}

static void try_connect(struct chardev *c)
{
    bool done;
    {
        LOCK_SCOPE(&c->lock);
        c->retry = 0;
        done = c->kind->connect && c->kind->connect(c);
        c->connected = done;
        if (!done && c->o.reconnect)
            c->retry = chardev_milliseconds() + c->o.reconnect * 1000;
    }
    if (!done)
        return;
    if (c->o.telnet)
        telnet_greet(c);
    chardev_tell(c, CHARDEV_OPENED);
}

static void read_some(struct chardev *c)
{
    ssize_t n = read(c->in, c->input, sizeof(c->input));

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0) {
        c->input_at = 0;
        c->input_len = c->kind->filter ? c->kind->filter(c, c->input, (size_t)n) : (size_t)n;
        chardev_deliver(c);
        return;
    }
    if (c->kind->connect) {
        chardev_disconnect(c);
        return;
    }
    LOCK_SCOPE(&c->lock); /* the end of standard input: writing goes on */
    c->in = -1;
}

static void attend(struct chardev *c, const struct pollfd p[FDS_EACH])
{
    uint64_t now = chardev_milliseconds();

    if (p[OUT].revents) {
        LOCK_SCOPE(&c->lock);
        chardev_flush_some(c);
    }
    if (p[LISTENER].revents || (c->retry && c->retry <= now))
        try_connect(c);
    else if (p[IN].revents && c->in == p[IN].fd)
        read_some(c);
}

static void *run(void *unused)
{
    VECTOR(struct pollfd) fds = VECTOR_INIT;
    uint64_t count;

    is_me = true;
    while (!atomic_load(&loop.stop)) {
        int timeout = -1;
        fds.len = 0;
        if (vector_push(&fds, (struct pollfd){ .fd = loop.wake, .events = POLLIN }) < 0)
            break;
        for (struct chardev *c = chardevs_first(); c; c = c->next) {
            if (vector_reserve(&fds, fds.len + FDS_EACH) < 0)
                break;
            describe(c, fds.at + fds.len, &timeout);
            fds.len += FDS_EACH;
        }
        if (poll(fds.at, fds.len, timeout) < 0 && errno != EINTR)
            break;
        if (fds.at[0].revents && read(loop.wake, &count, sizeof(count)) < 0)
            count = 0;
        size_t i = 1;
        for (struct chardev *c = chardevs_first(); c && i < fds.len; c = c->next, i += FDS_EACH)
            attend(c, fds.at + i);
    }
    vector_free(&fds);
    return unused;
}

int loop_start(struct error **err)
{
    if (loop.started)
        return 0;
    loop.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop.wake < 0)
        return error_set(err, errno, "chardev: cannot make an eventfd");
    int ret = pthread_create(&loop.thread, NULL, run, NULL);
    if (ret != 0)
        return error_set(err, ret, "chardev: cannot start a thread");
    loop.started = true;
    return 0;
}

void loop_stop(void)
{
    if (!loop.started)
        return;
    atomic_store(&loop.stop, true);
    loop_wake();
    pthread_join(loop.thread, NULL);
    close(loop.wake);
    loop.wake = -1;
    loop.started = false;
    atomic_store(&loop.stop, false);
}
