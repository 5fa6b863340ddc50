/* Event loops: each watches its connections, and a mailbox for what workers tell it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/cores.h"
#include "internal.h"

enum { EVENTS = 64, TICK_MS = 1000, LOOK_NS = 40000, LOOK_SOON_NS = 100000 };

int64_t clock_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static _Thread_local struct loop *mine; /* the loop that this thread is */

/* ---- the mailbox ------------------------------------------------------------------------------------ */

void loop_wake(struct loop *l)
{
    uint64_t one = 1;

    if (write(l->wake.fd, &one, sizeof(one)) < 0)
        return; /* it is awake already */
}

void loop_mail(struct conn *c)
{
    struct loop *l = c->loop;

    if (c->mailed)
        return;
    c->mailed = true;
    {
        LOCK_SCOPE(&l->lock);
        c->mail_next = l->mail;
        l->mail = c;
    }
    if (mine != l)
        loop_wake(l);
}

static struct conn *take_mail(struct loop *l)
{
    LOCK_SCOPE(&l->lock);
    struct conn *c = l->mail;
    l->mail = NULL;
    return c;
}

static bool has_mail(struct loop *l)
{
    LOCK_SCOPE(&l->lock);
    return l->mail;
}

/* ---- what epoll watches ------------------------------------------------------------------------------- */

static void watch_conn(struct conn *c)
{
    uint64_t sent;
    bool blocked;
    {
        LOCK_SCOPE(&c->lock);
        blocked = c->blocked;
        sent = c->sent;
    }
    if (!blocked) {
        c->stalled_since = 0;
    } else if (!c->stalled_since || sent != c->stalled_at) {
        c->stalled_since = clock_ns();
        c->stalled_at = sent;
    }
    uint32_t events = (c->paused || c->eof ? 0u : EPOLLIN) | (blocked ? EPOLLOUT : 0u);
    if (events == c->events || c->state == CONN_CLOSED)
        return;
    struct epoll_event e = { .events = events, .data.ptr = &c->watch };
    if (epoll_ctl(c->loop->epoll, EPOLL_CTL_MOD, c->watch.fd, &e) == 0)
        c->events = events;
}

static void adopt(struct conn *c)
{
    struct loop *l = c->loop;
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = &c->watch };

    c->next = l->conns;
    if (c->next)
        c->next->prev = c;
    l->conns = c;
    c->events = EPOLLIN;
    c->adopted = true;
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, c->watch.fd, &e) < 0)
        conn_close(c);
    else
        handshake_greet(c);
}

/* A closed connection is freed once nobody refers to it. */
static void bury(struct conn *c)
{
    struct loop *l = c->loop;
    {
        LOCK_SCOPE(&c->lock);
        if (c->mailed)
            return; /* the mail will come by */
    }
    if (!conn_is_over(c))
        return;
    if (c->next)
        c->next->prev = c->prev;
    if (c->prev)
        c->prev->next = c->next;
    else
        l->conns = c->next;
    struct nbd_server *s = c->server;
    conn_free(c);
    server_client_gone(s);
}

static void read_mail(struct loop *l)
{
    struct conn *next;

    for (struct conn *c = take_mail(l); c; c = next) {
        next = c->mail_next;
        {
            LOCK_SCOPE(&c->lock);
            c->mailed = false;
        }
        if (!c->adopted)
            adopt(c);
        conn_look_after(c);
        watch_conn(c);
        bury(c);
    }
}

/* ---- time ---------------------------------------------------------------------------------------------- */

/* Handshakes that take too long, and clients that take no replies while memory is short. */
static void look_around(struct loop *l)
{
    int64_t now = clock_ns();
    bool short_of = atomic_load(&l->server->held) > l->server->config.memory / 2;

    for (struct conn *c = l->conns, *next; c; c = next) {
        next = c->next;
        bool late = c->state < CONN_REQUESTS && now > c->deadline;
        bool stalled = short_of && c->stalled_since &&
                       now - c->stalled_since > STALLED_SEC * INT64_C(1000000000);
        if (late || stalled) {
            server_log(l->server, "%s: closed: %s", c->peer,
                       late ? "it did not choose an export in time" : "it does not take replies");
            conn_close(c);
            bury(c);
        }
    }
}

/* ---- stopping ------------------------------------------------------------------------------------------- */

/* Nothing more is read; connections close as what is under way ends. Whether all are gone. */
static bool drain(struct loop *l, unsigned stops)
{
    if (l->drain_until == 0)
        l->drain_until = clock_ns() + DRAIN_SEC * INT64_C(1000000000);
    bool at_once = stops > 1 || clock_ns() > l->drain_until;
    for (struct conn *c = l->conns, *next; c; c = next) {
        next = c->next;
        c->eof = true;
        if (at_once)
            conn_close(c);
        conn_look_after(c);
        watch_conn(c);
        bury(c);
    }
    LOCK_SCOPE(&l->lock);
    return !l->conns && !l->mail;
}

/* ---- the thread ------------------------------------------------------------------------------------------ */

static void on_event(struct loop *l, const struct epoll_event *e)
{
    struct watch *w = e->data.ptr;

    if (w->kind == WATCH_LISTENER) {
        server_accept(l->server, w);
    } else if (w->kind == WATCH_WAKE) {
        uint64_t count;
        if (read(w->fd, &count, sizeof(count)) < 0)
            return;
    } else {
        struct conn *c = (struct conn *)(void *)w;
        if (c->state == CONN_CLOSED)
            return;
        if (e->events & EPOLLOUT)
            conn_look_after(c);
        if (e->events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
            if (c->eof || c->paused) {
                /* Nothing is wanted from it, so this is its end. */
                if (e->events & (EPOLLHUP | EPOLLERR))
                    conn_close(c);
            } else {
                conn_input(c);
            }
        }
        watch_conn(c);
        bury(c);
    }
}

/* The next request of a lone client comes a moment after the answer to the last: then looking again for so long
 * costs less than sleeping and being woken. A loop that looked in vain sleeps the next time. */
static int wait_for_events(struct loop *l, struct epoll_event *events)
{
    if (has_mail(l))
        return epoll_wait(l->epoll, events, EVENTS, 0); /* mail to itself wakes nobody */
    int64_t began = clock_ns();
    if (l->looks) {
        do {
            int n = epoll_wait(l->epoll, events, EVENTS, 0);
            if (n != 0)
                return n;
        } while (clock_ns() - began < LOOK_NS);
        l->looks = false;
    }
    int n = epoll_wait(l->epoll, events, EVENTS, TICK_MS);
    l->looks = n > 0 && clock_ns() - began < LOOK_SOON_NS && l->may_look;
    return n;
}

static void *run(void *arg)
{
    struct loop *l = arg;
    struct epoll_event events[EVENTS];
    int64_t tick = clock_ns();

    mine = l;
    for (;;) {
        int n = wait_for_events(l, events);
        for (int i = 0; i < n; i++)
            on_event(l, &events[i]);
        read_mail(l);
        if (clock_ns() - tick > TICK_MS * INT64_C(1000000)) {
            tick = clock_ns();
            look_around(l);
        }
        unsigned stops = atomic_load(&l->server->stop);
        if (stops && drain(l, stops))
            return NULL;
    }
}

int loop_init(struct loop *l, struct nbd_server *s)
{
    l->server = s;
    l->may_look = usable_cores() > 1; /* else it would keep the client from going on */
    pthread_mutex_init(&l->lock, NULL);
    l->wake = (struct watch){ .kind = WATCH_WAKE, .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) };
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    l->in = malloc(IN_BYTES);
    l->out = malloc(OUT_BYTES);
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = &l->wake };
    if (l->wake.fd < 0 || l->epoll < 0 || !l->in || !l->out ||
        epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->wake.fd, &e) < 0)
        return errno ? -errno : -ENOMEM;
    return 0;
}

int loop_start(struct loop *l)
{
    int ret = pthread_create(&l->thread, NULL, run, l);

    l->started = ret == 0;
    return -ret;
}

void loop_destroy(struct loop *l)
{
    if (l->started)
        pthread_join(l->thread, NULL);
    while (l->conns) {
        struct conn *c = l->conns;
        l->conns = c->next;
        conn_free(c);
    }
    if (l->wake.fd > 0)
        close(l->wake.fd);
    if (l->epoll > 0)
        close(l->epoll);
    free(l->spare);
    free(l->in);
    free(l->out);
    pthread_mutex_destroy(&l->lock);
}
