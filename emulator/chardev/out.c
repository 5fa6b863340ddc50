/* What goes out: at once when the other end takes it, else kept in a ring and sent by the loop.
 *
 * A full ring holds the writer up for a while, which slows a guest down to the speed of its terminal. Who reads
 * nothing for a second is given up: from then on what does not fit is dropped until there is room.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

enum { PATIENCE_MS = 1000 };

uint64_t chardev_milliseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* How many bytes were taken, without waiting; 0: none now. A peer that is gone takes all. */
static size_t put_now(struct chardev *c, const uint8_t *data, size_t length)
{
    struct pollfd p = { .fd = c->out, .events = POLLOUT };
    /* A pipe that polls as writable takes this much without blocking (pipe(7)). */
    size_t some = MIN(length, (size_t)4096);

    if (poll(&p, 1, 0) <= 0 || !(p.revents & (POLLOUT | POLLERR | POLLHUP)))
        return 0;
    ssize_t n = write(c->out, data, some);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : length;
    return (size_t)n;
}

void chardev_flush_some(struct chardev *c)
{
    while (c->out >= 0 && c->pending_len > 0) {
        size_t run = MIN(c->pending_len, CHARDEV_PENDING - c->pending_at);
        size_t n = put_now(c, c->pending + c->pending_at, run);
        if (n == 0)
            return;
        c->pending_at = (c->pending_at + n) % CHARDEV_PENDING;
        c->pending_len -= n;
        c->stuck = false;
        pthread_cond_broadcast(&c->room);
    }
}

static void wait_for_room(struct chardev *c)
{
    struct timespec until;

    loop_wake(); /* it is to look for room */
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += PATIENCE_MS / 1000;
    while (c->pending_len == CHARDEV_PENDING && c->out >= 0 && !c->stuck)
        if (pthread_cond_timedwait(&c->room, &c->lock, &until) == ETIMEDOUT)
            c->stuck = true;
}

static void keep(struct chardev *c, const uint8_t *data, size_t length)
{
    while (length > 0) {
        if (c->pending_len == CHARDEV_PENDING && !c->stuck && !loop_is_me())
            wait_for_room(c);
        if (c->pending_len == CHARDEV_PENDING || c->out < 0)
            return;
        size_t at = (c->pending_at + c->pending_len) % CHARDEV_PENDING;
        size_t run = MIN(length, MIN(CHARDEV_PENDING - c->pending_len, CHARDEV_PENDING - at));
        memcpy(c->pending + at, data, run);
        c->pending_len += run;
        data += run;
        length -= run;
    }
}

void chardev_put(struct chardev *c, const void *data, size_t length)
{
    LOCK_SCOPE(&c->lock);
    const uint8_t *at = data;

    if (c->log >= 0 && write(c->log, data, length) < 0) {
        close(c->log); /* the disk is full, say: the guest goes on */
        c->log = -1;
    }
    if (c->out < 0)
        return;
    chardev_flush_some(c);
    while (length > 0 && c->pending_len == 0) {
        size_t n = put_now(c, at, length);
        if (n == 0)
            break;
        at += n;
        length -= n;
    }
    if (length > 0) {
        keep(c, at, length);
        loop_wake();
    }
}

/* 0xff begins a command of telnet's, two of them are one byte of data. */
static void put_telnet(struct chardev *c, const uint8_t *data, size_t length)
{
    static const uint8_t two[] = { 0xff, 0xff };

    while (length > 0) {
        const uint8_t *ff = memchr(data, 0xff, length);
        size_t run = ff ? (size_t)(ff - data) : length;
        if (run > 0)
            chardev_put(c, data, run);
        if (!ff)
            return;
        chardev_put(c, two, sizeof(two));
        data += run + 1;
        length -= run + 1;
    }
}

void chardev_write(struct chardev *c, const void *data, size_t length)
{
    if (!c || length == 0)
        return;
    if (c->o.telnet)
        put_telnet(c, data, length);
    else
        chardev_put(c, data, length);
}

void chardev_disconnect(struct chardev *c)
{
    {
        LOCK_SCOPE(&c->lock);
        if (c->out >= 0 && c->out != c->in)
            close(c->out);
        if (c->in >= 0)
            close(c->in);
        c->in = c->out = -1;
        c->connected = false;
        c->pending_at = c->pending_len = 0;
        c->stuck = false;
        c->telnet = 0;
        if (c->o.reconnect)
            c->retry = chardev_milliseconds() + c->o.reconnect * 1000;
        pthread_cond_broadcast(&c->room);
    }
    chardev_tell(c, CHARDEV_CLOSED);
}
