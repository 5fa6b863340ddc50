/* Sending replies.
 *
 * The loop gathers its replies in one buffer and sends them with one call; workers queue theirs. Whoever queues
 * and finds nobody sending sends, until the queue is empty or the socket full; then the loop waits for room.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

#define IOVS 64

struct chunk *chunk_new(size_t len)
{
    struct chunk *k = malloc(sizeof(*k) + len);

    if (k)
        *k = (struct chunk){ .len = len };
    return k;
}

/* ---- memory ------------------------------------------------------------------------------------- */

void out_release_locked(struct conn *c, size_t held)
{
    c->held -= held;
    atomic_fetch_sub(&c->server->held, held);
    if (c->paused && c->held <= CONN_LIMIT / 2)
        loop_mail(c);
}

/* ---- the wire --------------------------------------------------------------------------------------- */

static ssize_t send_iov(struct conn *c, struct iovec *iov, int count)
{
    if (c->tls)
        return tls_send(c, iov[0].iov_base, iov[0].iov_len);
    struct msghdr m = { .msg_iov = iov, .msg_iovlen = (size_t)count };
    ssize_t n;
    do {
        n = sendmsg(c->watch.fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    return n;
}

/* The connection is no good any more; the loop will close it. */
static void break_off(struct conn *c)
{
    c->broken = true;
    loop_mail(c);
}

/* Takes what was sent off the queue. */
static void advance(struct conn *c, size_t sent)
{
    c->sent += sent;
    while (sent > 0) {
        struct chunk *k = c->out;
        size_t n = MIN(sent, k->len - k->at);
        k->at += n;
        sent -= n;
        if (k->at < k->len)
            return;
        c->out = k->next;
        if (!c->out)
            c->out_end = &c->out;
        out_release_locked(c, k->held);
        free(k);
    }
}

static int gather(struct conn *c, struct iovec *iov)
{
    int count = 0;

    for (struct chunk *k = c->out; k && count < IOVS; k = k->next)
        iov[count++] = (struct iovec){ k->data + k->at, k->len - k->at };
    return count;
}

static void drop_queue(struct conn *c)
{
    while (c->out) {
        struct chunk *k = c->out;
        c->out = k->next;
        out_release_locked(c, k->held);
        free(k);
    }
    c->out_end = &c->out;
}

void out_flush_locked(struct conn *c)
{
    struct iovec iov[IOVS];

    if (c->sending)
        return;
    c->sending = true;
    while (c->out && !c->broken) {
        int count = gather(c, iov);
        pthread_mutex_unlock(&c->lock); /* only the sender takes chunks away */
        ssize_t n = send_iov(c, iov, count);
        int error = n < 0 ? errno : 0;
        pthread_mutex_lock(&c->lock);
        if (n >= 0) {
            advance(c, (size_t)n);
        } else if (error == EAGAIN || error == EWOULDBLOCK) {
            if (!c->blocked)
                loop_mail(c);
            c->blocked = true;
            break;
        } else {
            break_off(c);
        }
    }
    if (!c->out)
        c->blocked = false;
    if (c->broken)
        drop_queue(c);
    c->sending = false;
    if (c->awaited && !c->out)
        loop_mail(c);
}

void out_queue_locked(struct conn *c, struct chunk *k)
{
    k->next = NULL;
    *c->out_end = k;
    c->out_end = &k->next;
}

/* ---- the loop's buffer --------------------------------------------------------------------------------- */

/* What the socket did not take goes into memory of its own. */
static void keep_rest(struct conn *c, const uint8_t *data, size_t len)
{
    struct chunk *k = chunk_new(len);

    if (!k) {
        break_off(c);
        return;
    }
    memcpy(k->data, data, len);
    k->held = len;
    c->held += len;
    atomic_fetch_add(&c->server->held, len);
    out_queue_locked(c, k);
}

void out_send(struct conn *c)
{
    struct loop *l = c->loop;
    size_t len = l->out_len, sent = 0;
    bool tried = false;

    l->out_len = 0;
    if (len == 0)
        return;
    LOCK_SCOPE(&c->lock);
    if (c->broken)
        return;
    if (!c->out && !c->sending) {
        struct iovec iov = { l->out, len };
        c->sending = tried = true;
        pthread_mutex_unlock(&c->lock); /* `sending` keeps the others away */
        ssize_t n = send_iov(c, &iov, 1);
        bool full = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
        pthread_mutex_lock(&c->lock);
        c->sending = false;
        if (n < 0 && !full) {
            break_off(c);
            return;
        }
        sent = n > 0 ? (size_t)n : 0;
        c->sent += sent;
    }
    if (sent < len) {
        /* The rest goes before what workers queued meanwhile: half a reply is gone, or TLS has taken its first
         * bytes. */
        struct chunk *behind = c->out, **behind_end = c->out_end;
        if (tried) {
            c->out = NULL;
            c->out_end = &c->out;
        }
        keep_rest(c, l->out + sent, len - sent);
        if (tried && behind) {
            *c->out_end = behind;
            c->out_end = behind_end;
        }
    }
    if (!c->blocked)
        out_flush_locked(c);
}

uint8_t *out_room(struct conn *c, size_t len)
{
    struct loop *l = c->loop;

    if (len > OUT_BYTES)
        return NULL;
    if (OUT_BYTES - l->out_len < len)
        out_send(c);
    return l->out + l->out_len;
}
