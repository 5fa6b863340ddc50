/* A connection: reading, pausing, ending. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

enum { ROUNDS = 16 }; /* reads before other connections have their turn */

struct conn *conn_new(struct nbd_server *s, struct loop *l, int fd, const char *peer)
{
    struct conn *c = calloc(1, sizeof(*c));

    if (!c)
        return NULL;
    c->watch = (struct watch){ .kind = WATCH_CONN, .fd = fd };
    c->server = s;
    c->loop = l;
    c->out_end = &c->out;
    c->deadline = clock_ns() + (int64_t)s->config.handshake_sec * 1000000000;
    strncpy(c->peer, peer, sizeof(c->peer) - 1);
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

void conn_free(struct conn *c)
{
    while (c->out) {
        struct chunk *k = c->out;
        c->out = k->next;
        free(k);
    }
    atomic_fetch_sub(&c->server->held, c->held);
    tls_end(c);
    close(c->watch.fd);
    pthread_mutex_destroy(&c->lock);
    free(c->pending);
    free(c);
}

bool conn_is_over(struct conn *c)
{
    LOCK_SCOPE(&c->lock);
    return c->state == CONN_CLOSED && c->jobs == 0 && !c->sending;
}

/* Nothing is under way; else the loop hears when that is so. */
static bool is_idle(struct conn *c)
{
    LOCK_SCOPE(&c->lock);
    c->awaited = true;
    return c->jobs == 0 && !c->out && !c->sending;
}

void conn_close(struct conn *c)
{
    if (c->state == CONN_CLOSED)
        return;
    if (c->state != CONN_REQUESTS)
        atomic_fetch_sub(&c->server->handshakes, 1);
    c->state = CONN_CLOSED;
    request_drop(c);
    if (c->export)
        atomic_fetch_sub(&c->export->clients, 1);
    epoll_ctl(c->loop->epoll, EPOLL_CTL_DEL, c->watch.fd, NULL);
    shutdown(c->watch.fd, SHUT_RDWR);
    LOCK_SCOPE(&c->lock);
    c->broken = c->awaited = true;
    loop_mail(c);
}

/* ---- reading -------------------------------------------------------------------------------------- */

static ssize_t receive(struct conn *c, uint8_t *data, size_t len)
{
    struct iovec iov[2];
    struct msghdr m = { .msg_iov = iov };

    /* Data of a write goes to where it is wanted. */
    if (c->filling)
        iov[m.msg_iovlen++] =
            (struct iovec){ c->filling->data + c->filled, c->filling->length - c->filled };
    iov[m.msg_iovlen++] = (struct iovec){ data, len };
    if (c->tls)
        return tls_recv(c, iov[0].iov_base, iov[0].iov_len);
    ssize_t n;
    do {
        n = recvmsg(c->watch.fd, &m, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    return n;
}

static size_t parse(struct conn *c, const uint8_t *data, size_t len)
{
    size_t at = 0;

    /* An option may change how what follows is read. */
    while (at < len) {
        enum conn_state state = c->state;
        size_t n = state == CONN_REQUESTS ? request_parse(c, data + at, len - at)
                   : state == CONN_CLOSED || state == CONN_TLS
                       ? len - at
                       : handshake_parse(c, data + at, len - at);
        at += n;
        if (n == 0 && c->state == state)
            break;
        if (c->eof)
            return len;
    }
    return at;
}

static void keep_pending(struct conn *c, const uint8_t *data, size_t len)
{
    free(c->pending);
    c->pending = NULL;
    c->pending_len = 0;
    if (len == 0)
        return;
    c->pending = malloc(len);
    if (!c->pending) {
        conn_close(c);
        return;
    }
    memcpy(c->pending, data, len);
    c->pending_len = len;
}

/* One read, and what it brings. Whether it is worth to read more. */
static bool input_once(struct conn *c)
{
    uint8_t *in = c->loop->in;
    size_t have = c->pending_len, room = IN_BYTES - have;
    bool fills = c->filling;

    if (have > 0)
        memcpy(in, c->pending, have);
    ssize_t got = receive(c, in + have, room);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        got = 0;
    else if (got < 0)
        conn_close(c);
    else if (got == 0)
        c->eof = true;
    if (c->state == CONN_CLOSED || c->eof)
        return false;
    size_t n = (size_t)got, filled = 0;
    if (fills && n > 0) {
        filled = MIN(n, c->filling->length - c->filled);
        request_filled(c, filled);
    }
    size_t len = have + n - filled;
    size_t used = parse(c, in, len);
    if (c->state != CONN_CLOSED)
        keep_pending(c, in + used, len - used);
    return n > 0 && (c->tls || fills || n == room);
}

static void end_if_done(struct conn *c)
{
    if (c->state == CONN_CLOSED || !c->eof)
        return;
    request_drop(c); /* the rest of it does not come */
    if (c->state != CONN_REQUESTS || is_idle(c))
        conn_close(c);
}

void conn_input(struct conn *c)
{
    if (c->state == CONN_TLS) {
        int ret = tls_handshake(c);
        if (ret < 0)
            conn_close(c);
        if (ret <= 0)
            return;
        c->state = CONN_OPTIONS;
    }
    for (int i = 0; i < ROUNDS && !c->paused && !c->eof && c->state < CONN_CLOSED; i++)
        if (!input_once(c) || c->state == CONN_TLS)
            break;
    out_send(c);
    end_if_done(c);
}

/* ---- what else happens -------------------------------------------------------------------------------- */

/* What had been read before the pause. */
static void go_on(struct conn *c)
{
    uint8_t *in = c->loop->in;
    size_t len = c->pending_len;

    if (len > 0) {
        memcpy(in, c->pending, len);
        size_t used = parse(c, in, len);
        if (c->state != CONN_CLOSED)
            keep_pending(c, in + used, len - used);
    }
    if (!c->paused && c->state != CONN_CLOSED)
        conn_input(c); /* TLS may hold more than the socket shows */
    out_send(c);
}

void conn_look_after(struct conn *c)
{
    bool resume;

    if (c->state == CONN_CLOSED)
        return;
    {
        LOCK_SCOPE(&c->lock);
        c->blocked = false;
        out_flush_locked(c);
        resume = c->paused && c->held <= CONN_LIMIT / 2 && !c->broken;
        c->paused &= !resume;
    }
    if (resume)
        go_on(c);
    if (c->state == CONN_CLOSED)
        return;
    bool broken;
    {
        LOCK_SCOPE(&c->lock);
        broken = c->broken;
    }
    if (broken)
        conn_close(c);
    else
        end_if_done(c);
}
