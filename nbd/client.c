/* Leaf: an export of an NBD server, through libnbd.
 *
 *     nbd://HOST[:PORT][/EXPORT]      nbd+unix:///[EXPORT]?socket=PATH      nbd+vsock://CID[:PORT][/EXPORT]
 *     nbds://...                      the same with TLS (tls-certificates=DIR, tls-psk-file=FILE)
 *     nbd:HOST:PORT[:exportname=EXPORT]      nbd:unix:PATH[:exportname=EXPORT]     as QEMU had them once
 *
 * There are several connections where the server allows that. A request goes out on one of them, and whoever
 * waits for an answer there first polls for all who do: no thread is needed, and a single request
 * is answered without waking anybody.
 *
 * When a connection breaks, the requests under way on it are sent again on a new one, for as long as
 * reconnect-delay says; without it they fail. What had been written and not flushed before that is as
 * safe as the server made it.
 *
 * Locks: connection.lock guards the handle. It is not held while waiting for the server.
 */
#include <errno.h>
#include <libnbd.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "base/macros.h"
#include "base/round.h"
#include "block/driver.h"
#include "client.h"

enum {
    MAX_CONNECTIONS = 16,
    DEFAULT_CONNECTIONS = 4,
    MAX_LENGTH = 1 << 30, /* of zero, trim and block status: what each server takes */
    RETRY_MS = 100,
    EXTRA_MS = 200,
};

/* ---- options ----------------------------------------------------------------------------------------- */

struct nbd_options {
    char *uri, *host, *port, *path, *export;
    json_t *server;
    char *tls_creds, *tls_certificates, *tls_psk_file, *tls_username, *tls_hostname;
    uint64_t reconnect_delay, open_timeout, connections;
};

#define AT(m) .at = offsetof(struct nbd_options, m)

static const struct opt_def nbd_options[] = {
    { .name = "uri", .type = OPT_STRING, AT(uri), .help = "the export, as nbd://HOST/EXPORT" },
    { .name = "server",
      .type = OPT_JSON,
      AT(server),
      .help = "server.type=inet|unix|vsock with host and port, path, or cid and port" },
    { .name = "host", .type = OPT_STRING, AT(host), .help = "the server, for server.type=inet" },
    { .name = "port", .type = OPT_STRING, AT(port), .help = "its port (10809)" },
    { .name = "path", .type = OPT_STRING, AT(path), .help = "its socket, for server.type=unix" },
    { .name = "export", .type = OPT_STRING, AT(export), .help = "name of the export" },
    { .name = "tls-creds",
      .type = OPT_STRING,
      AT(tls_creds),
      .help = "TLS with the keys of this object (--object tls-creds-...,id=)" },
    { .name = "tls-certificates",
      .type = OPT_STRING,
      AT(tls_certificates),
      .help = "TLS with the certificates in this folder" },
    { .name = "tls-psk-file",
      .type = OPT_STRING,
      AT(tls_psk_file),
      .help = "TLS with a key of this file" },
    { .name = "tls-username", .type = OPT_STRING, AT(tls_username), .help = "whose key" },
    { .name = "tls-hostname",
      .type = OPT_STRING,
      AT(tls_hostname),
      .help = "whom the server's certificate must name" },
    { .name = "reconnect-delay",
      .type = OPT_NUMBER,
      AT(reconnect_delay),
      .max = 1000000,
      .help = "seconds for which requests wait while the connection is broken (0)" },
    { .name = "open-timeout",
      .type = OPT_NUMBER,
      AT(open_timeout),
      .max = 1000000,
      .help = "seconds to try to connect at first (0: once)" },
    { .name = "connections",
      .type = OPT_NUMBER,
      AT(connections),
      .max = MAX_CONNECTIONS,
      .help = "at once, where the server allows more than one (4)" },
    OPT_END,
};

/* ---- state ---------------------------------------------------------------------------------------------- */

/* Where to connect; set by open, then only read. */
struct target {
    char *uri, *host, *port, *path, *export;
    uint32_t cid;
    bool vsock;
    char *tls_certificates, *tls_psk_file, *tls_username, *tls_hostname;
    bool tls;
    int64_t reconnect_ms;
};

/* A request that waits for its answer. */
struct waiter {
    struct waiter *next;
    pthread_cond_t wake;
    bool done, polls; /* its turn to poll */
    int error;
};

struct connection {
    pthread_mutex_t lock;
    struct nbd_handle *h; /* NULL: none, after it broke */
    struct waiter *waiters;
    bool polling;
    int wake_fd;         /* the one who polls looks again */
    int64_t given_up_at; /* connecting again failed then: others need not try at once */
};

struct nbd_state {
    struct target target;
    struct connection at[MAX_CONNECTIONS];
    unsigned count;
    _Atomic unsigned next;
    uint64_t size;
    bool can_zero, can_fast_zero, can_trim, can_flush, can_fua, knows_holes;
};

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000) + t.tv_nsec / 1000000;
}

/* ---- connecting -------------------------------------------------------------------------------------------- */

static int set_tls(struct nbd_handle *h, const struct target *t)
{
    if (!t->tls)
        return 0;
    if (nbd_set_tls(h, LIBNBD_TLS_REQUIRE) < 0)
        return -1;
    if (t->tls_certificates && nbd_set_tls_certificates(h, t->tls_certificates) < 0)
        return -1;
    if (t->tls_psk_file && nbd_set_tls_psk_file(h, t->tls_psk_file) < 0)
        return -1;
#ifdef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
    if (t->tls_hostname && nbd_set_tls_hostname(h, t->tls_hostname) < 0)
        return -1;
#endif
    return t->tls_username ? nbd_set_tls_username(h, t->tls_username) : 0;
}

static int begin_connect(struct nbd_handle *h, const struct target *t)
{
    if (nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0)
        return -1;
    if (t->uri)
        return nbd_set_uri_allow_local_file(h, true) < 0 ? -1 : nbd_aio_connect_uri(h, t->uri);
    if (set_tls(h, t) < 0 || (t->export && nbd_set_export_name(h, t->export) < 0))
        return -1;
    if (t->path)
        return nbd_aio_connect_unix(h, t->path);
    if (t->vsock)
        return nbd_aio_connect_vsock(h, t->cid, (uint32_t)strtoul(t->port, NULL, 10));
    return nbd_aio_connect_tcp(h, t->host, t->port);
}

/* limit_ms: at most so long; 0: as long as it takes. */
static int connect_handle(struct nbd_handle *h, const struct target *t, int64_t limit_ms)
{
    int64_t until = now_ms() + limit_ms;

    if (begin_connect(h, t) < 0)
        return -1;
    while (nbd_aio_is_connecting(h) > 0) {
        int64_t left = until - now_ms();
        if ((limit_ms && left <= 0) || nbd_poll(h, limit_ms ? (int)left : -1) < 0)
            return -1;
    }
    return nbd_aio_is_ready(h) > 0 ? 0 : -1;
}

/* -errno; the sentence is in libnbd's thread-local error. */
static int make_handle(const struct target *t, int64_t limit_ms, struct nbd_handle **out)
{
    struct nbd_handle *h = nbd_create();

    *out = NULL;
    if (!h || connect_handle(h, t, limit_ms) < 0) {
        int error = nbd_get_errno();
        nbd_close(h);
        return error > 0 ? -error : -EIO;
    }
    *out = h;
    return 0;
}

static int connect_within(const struct target *t, uint64_t seconds, struct nbd_handle **out)
{
    int64_t until = now_ms() + (int64_t)seconds * 1000;
    int ret;

    while ((ret = make_handle(t, 0, out)) < 0 && now_ms() < until)
        usleep(RETRY_MS * 1000);
    return ret;
}

/* ---- requests ------------------------------------------------------------------------------------------------ */

struct request {
    enum { CMD_READ, CMD_WRITE, CMD_ZERO, CMD_TRIM, CMD_FLUSH, CMD_STATUS } kind;
    uint64_t offset, length;
    void *buf;
    uint32_t flags;
    struct blk_extent *extent;
};

static int completed(void *opaque, int *error)
{
    struct waiter *w = opaque;

    w->done = true;
    w->error = *error;
    pthread_cond_signal(&w->wake);
    return 1; /* retire it */
}

/* The first run: what the core asks for. */
static int take_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
                        size_t count, int *error)
{
    struct blk_extent *e = opaque;
    uint64_t length = 0;

    (void)offset, (void)error;
    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || count < 2)
        return 0;
    uint32_t state = entries[1];
    for (size_t i = 0; i + 1 < count && entries[i + 1] == state; i += 2)
        length += entries[i];
    e->length = MIN(e->length, length);
    e->flags = (state & LIBNBD_STATE_HOLE ? 0u : BLK_EXT_ALLOCATED) |
               (state & LIBNBD_STATE_ZERO ? BLK_EXT_ZERO : 0u) |
               ((state & (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO)) == 0 ? BLK_EXT_DATA : 0u);
    return 0;
}

/* Sends one; its cookie, or -1. */
static int64_t issue(struct nbd_handle *h, const struct request *r, struct waiter *w)
{
    nbd_completion_callback done = { .callback = completed, .user_data = w };

    switch (r->kind) {
    case CMD_READ:
        return nbd_aio_pread(h, r->buf, r->length, r->offset, done, 0);
    case CMD_WRITE:
        return nbd_aio_pwrite(h, r->buf, r->length, r->offset, done, r->flags);
    case CMD_ZERO:
        return nbd_aio_zero(h, r->length, r->offset, done, r->flags);
    case CMD_TRIM:
        return nbd_aio_trim(h, r->length, r->offset, done, r->flags);
    case CMD_FLUSH:
        return nbd_aio_flush(h, done, 0);
    default:
        return nbd_aio_block_status(
            h, r->length, r->offset,
            (nbd_extent_callback){ .callback = take_extents, .user_data = r->extent }, done,
            r->flags);
    }
}

static void kick(struct connection *c)
{
    uint64_t one = 1;

    if (write(c->wake_fd, &one, sizeof(one)) < 0)
        return; /* it is awake already */
}

/* Lock held; waits for the socket without it, and lets libnbd do what can be done. */
static void poll_once(struct connection *c)
{
    struct nbd_handle *h = c->h;
    unsigned direction = nbd_aio_get_direction(h);
    struct pollfd fds[2] = {
        { .fd = nbd_aio_get_fd(h),
          .events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                            (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0)) },
        { .fd = c->wake_fd, .events = POLLIN },
    };
    uint64_t count;

    c->polling = true;
    pthread_mutex_unlock(&c->lock); /* others send meanwhile */
    int n = poll(fds, 2, -1);
    pthread_mutex_lock(&c->lock);
    c->polling = false;
    if (n <= 0)
        return;
    if ((fds[1].revents & POLLIN) && read(c->wake_fd, &count, sizeof(count)) < 0)
        count = 0;
    direction = nbd_aio_get_direction(h);
    if ((fds[0].revents & (POLLIN | POLLHUP | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_READ))
        nbd_aio_notify_read(h);
    else if ((fds[0].revents & (POLLOUT | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
        nbd_aio_notify_write(h);
}

static bool is_dead(struct connection *c)
{
    return !c->h || nbd_aio_is_dead(c->h) > 0 || nbd_aio_is_closed(c->h) > 0;
}

/* All who wait on a broken connection are told. */
static void fail_waiters(struct connection *c)
{
    for (struct waiter *w = c->waiters; w; w = w->next)
        if (!w->done) {
            w->done = true;
            w->error = ENOTCONN;
            pthread_cond_signal(&w->wake);
        }
}

static void add_waiter(struct connection *c, struct waiter *w)
{
    w->next = c->waiters;
    c->waiters = w;
}

/* Takes it out; somebody else who waits polls from now on. */
static void remove_waiter(struct connection *c, struct waiter *w)
{
    struct waiter **p = &c->waiters;

    while (*p != w)
        p = &(*p)->next;
    *p = w->next;
    if (c->polling)
        return;
    for (struct waiter *next = c->waiters; next; next = next->next)
        if (!next->done) {
            pthread_cond_signal(&next->wake);
            return;
        }
}

/* Lock held. -ENOTCONN: the connection is broken, nobody knows whether it was carried out. */
static int run(struct connection *c, const struct request *r)
{
    struct waiter w = { .wake = PTHREAD_COND_INITIALIZER };

    if (is_dead(c))
        return -ENOTCONN;
    add_waiter(c, &w);
    if (issue(c->h, r, &w) < 0) {
        int error = nbd_get_errno();
        bool dead = is_dead(c);
        remove_waiter(c, &w);
        return dead ? -ENOTCONN : -(error > 0 ? error : EIO);
    }
    if (c->polling && (nbd_aio_get_direction(c->h) & LIBNBD_AIO_DIRECTION_WRITE))
        kick(c); /* it did not go out whole */
    while (!w.done) {
        if (c->polling) {
            pthread_cond_wait(&w.wake, &c->lock);
        } else {
            poll_once(c);
            if (is_dead(c))
                fail_waiters(c);
        }
    }
    remove_waiter(c, &w);
    pthread_cond_destroy(&w.wake);
    return w.error && is_dead(c) ? -ENOTCONN : -w.error;
}

/* ---- again, after it broke -------------------------------------------------------------------------------------- */

/* Lock held: a new handle, once nobody waits on the old one. */
static int revive(const struct nbd_state *s, struct connection *c)
{
    struct nbd_handle *h;

    if (!is_dead(c))
        return 0;
    if (c->waiters)
        return -EAGAIN; /* they are leaving */
    if (now_ms() - c->given_up_at < RETRY_MS)
        return -EAGAIN;
    nbd_close(c->h);
    c->h = NULL;
    int ret = make_handle(&s->target, 0, &h);
    if (ret == 0 && (uint64_t)nbd_get_size(h) != s->size) {
        nbd_close(h); /* not the disk that it was */
        return -ESTALE;
    }
    if (ret == 0)
        c->h = h;
    else
        c->given_up_at = now_ms();
    return ret;
}

static int call(struct blk_node *n, const struct request *r)
{
    struct nbd_state *s = node_state(n);
    struct connection *c = &s->at[atomic_fetch_add(&s->next, 1) % s->count];
    int64_t since = 0;

    for (;;) {
        int ret;
        {
            LOCK_SCOPE(&c->lock);
            ret = since ? revive(s, c) : 0;
            if (ret == 0)
                ret = run(c, r);
            else if (ret == -ESTALE)
                return -EIO;
            else
                ret = -ENOTCONN;
        }
        if (ret != -ENOTCONN)
            return ret;
        if (!since)
            since = now_ms();
        if (now_ms() - since >= s->target.reconnect_ms)
            return -EIO;
        usleep(RETRY_MS * 1000 / 4);
    }
}

/* ---- data ---------------------------------------------------------------------------------------------------------- */

static int leaf_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                       uint64_t len, unsigned flags)
{
    struct request r = { .kind = CMD_READ, .offset = off, .length = len };

    if (flags & BLK_NOWAIT)
        return -EAGAIN;
    if (iovcnt == 1) {
        r.buf = iov[0].iov_base;
        return call(n, &r);
    }
    _cleanup_free_ void *buf = malloc(len);
    if (!buf)
        return -ENOMEM;
    r.buf = buf;
    int ret = call(n, &r);
    struct iov_cursor at = iov_begin(iov, iovcnt);
    if (ret == 0)
        iov_write(&at, buf, len);
    return ret;
}

static int leaf_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                        uint64_t len, unsigned flags)
{
    const struct nbd_state *s = node_state(n);
    bool fua = flags & BLK_FUA;
    struct request r = { .kind = CMD_WRITE,
                         .offset = off,
                         .length = len,
                         .flags = fua && s->can_fua ? LIBNBD_CMD_FLAG_FUA : 0 };
    _cleanup_free_ void *buf = NULL;

    if (flags & BLK_NOWAIT)
        return -EAGAIN;
    r.buf = iov[0].iov_base;
    if (iovcnt > 1) {
        struct iov_cursor at = iov_begin(iov, iovcnt);
        r.buf = buf = malloc(len);
        if (!buf)
            return -ENOMEM;
        iov_read(&at, buf, len);
    }
    int ret = call(n, &r);
    struct request flush = { .kind = CMD_FLUSH };
    return ret == 0 && fua && !s->can_fua && s->can_flush ? call(n, &flush) : ret;
}

/* Longer ranges than a request takes, one after the other. */
static int in_pieces(struct blk_node *n, struct request r, uint64_t len)
{
    int ret = 0;

    for (; len > 0 && ret == 0; r.offset += r.length, len -= r.length) {
        r.length = MIN(len, (uint64_t)MAX_LENGTH);
        ret = call(n, &r);
    }
    return ret;
}

static int leaf_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    const struct nbd_state *s = node_state(n);
    struct request r = { .kind = CMD_ZERO, .offset = off };

    if (!s->can_zero || ((flags & BLK_NO_FALLBACK) && !s->can_fast_zero))
        return -ENOTSUP;
    r.flags = (flags & BLK_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
              (flags & BLK_NO_FALLBACK ? LIBNBD_CMD_FLAG_FAST_ZERO : 0) |
              ((flags & BLK_FUA) && s->can_fua ? LIBNBD_CMD_FLAG_FUA : 0);
    int ret = in_pieces(n, r, len);
    struct request flush = { .kind = CMD_FLUSH };
    return ret == 0 && (flags & BLK_FUA) && !s->can_fua && s->can_flush ? call(n, &flush) : ret;
}

static int leaf_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    const struct nbd_state *s = node_state(n);
    return s->can_trim ? in_pieces(n, (struct request){ .kind = CMD_TRIM, .offset = off }, len) : 0;
}

static int leaf_flush_disk(struct blk_node *n)
{
    const struct nbd_state *s = node_state(n);
    struct request r = { .kind = CMD_FLUSH };

    return s->can_flush ? call(n, &r) : 0;
}

static int leaf_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                        struct blk_extent *out)
{
    const struct nbd_state *s = node_state(n);

    if (flags & BLK_NOWAIT)
        return -EAGAIN;
    uint32_t align = node_limits(n)->align;
    /* A server with blocks is asked for whole ones. */
    uint64_t start = round_down(off, align);
    uint64_t stop = MIN(round_up(off + MIN(len, (uint64_t)MAX_LENGTH), align), s->size);
    struct blk_extent e = { .length = stop - start, .flags = BLK_EXT_DATA | BLK_EXT_ALLOCATED };
    struct request r = {
        .kind = CMD_STATUS, .offset = start, .length = stop - start, .extent = &e
    };
    int ret = s->knows_holes ? call(n, &r) : 0;
    if (ret < 0)
        return ret;
    out->length = MIN(len, e.length > off - start ? e.length - (off - start) : 1);
    out->flags = e.flags | BLK_EXT_HOST;
    out->host = n;
    out->host_offset = off;
    return 0;
}

/* ---- opening and closing ------------------------------------------------------------------------------------------ */

static void free_all(struct nbd_state *s)
{
    struct target *t = &s->target;

    for (unsigned i = 0; i < s->count; i++) {
        struct connection *c = &s->at[i];
        if (c->h && !is_dead(c))
            nbd_shutdown(c->h, 0);
        nbd_close(c->h);
        if (c->wake_fd >= 0)
            close(c->wake_fd);
        pthread_mutex_destroy(&c->lock);
    }
    char *const texts[] = { t->uri,          t->host,         t->port,
                            t->path,         t->export,       t->tls_certificates,
                            t->tls_psk_file, t->tls_username, t->tls_hostname };
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        free(texts[i]);
}

static const char *server_text(const struct nbd_options *o, const char *key)
{
    return o->server ? json_string_value(json_object_get(o->server, key)) : NULL;
}

static char *copy(const char *a, const char *b)
{
    return a ? strdup(a) : b ? strdup(b) : NULL;
}

/* The object's folder is laid out as QEMU has it, and libnbd. */
static int set_creds(struct target *t, const char *id, struct error **err)
{
    const char *type = blk_object_text(id, "qom-type"), *dir = blk_object_text(id, "dir");
    const char *user = blk_object_text(id, "username");

    if (!type || strncmp(type, "tls-creds-", 10) != 0 || !dir)
        return error_set(err, ENOENT, "nbd: there are no TLS credentials '%s' with a folder", id);
    if (!strcmp(type, "tls-creds-x509"))
        t->tls_certificates = strdup(dir);
    else if (asprintf(&t->tls_psk_file, "%s/keys.psk", dir) < 0)
        t->tls_psk_file = NULL;
    if (user && !t->tls_username)
        t->tls_username = strdup(user);
    return 0;
}

static int set_target(struct target *t, const struct nbd_options *o, struct error **err)
{
    const char *type = server_text(o, "type");

    t->uri = copy(o->uri, NULL);
    t->path = copy(o->path, server_text(o, "path"));
    t->host = copy(o->host, server_text(o, "host"));
    t->port = copy(o->port, server_text(o, "port"));
    if (!t->port)
        t->port = strdup("10809");
    t->export = copy(o->export, NULL);
    t->tls_certificates = copy(o->tls_certificates, NULL);
    t->tls_psk_file = copy(o->tls_psk_file, NULL);
    t->tls_username = copy(o->tls_username, NULL);
    t->tls_hostname = copy(o->tls_hostname, NULL);
    int ret = o->tls_creds ? set_creds(t, o->tls_creds, err) : 0;
    if (ret < 0)
        return ret;
    t->tls = t->tls_certificates || t->tls_psk_file;
    t->reconnect_ms = (int64_t)o->reconnect_delay * 1000;
    t->vsock = type && !strcmp(type, "vsock");
    if (t->vsock && server_text(o, "cid"))
        t->cid = (uint32_t)strtoul(server_text(o, "cid"), NULL, 10);
    if (t->uri && (t->host || t->path))
        return error_set(err, EINVAL, "nbd: a uri goes without host and path");
    if (!t->uri && !t->vsock && !t->host == !t->path)
        return error_set(err, EINVAL, "nbd: %s",
                         t->host ? "host and path exclude each other"
                                 : "one of uri, host or path must say where the server is");
    return 0;
}

static int fail(struct error **err, const struct target *t, int ret)
{
    const char *text = nbd_get_error();
    return error_set(err, -ret, "%s: %s",
                     t->uri    ? t->uri
                     : t->path ? t->path
                               : t->host,
                     text ? text : strerror(-ret));
}

static void set_limits(struct blk_node *n, struct nbd_handle *h)
{
    int64_t min = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
    int64_t max = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);

    if (min > 1 && min <= 65536)
        node_limits(n)->align = (uint32_t)min;
    node_limits(n)->max_transfer = max > 0 ? MIN((uint64_t)max, UINT64_C(32) << 20) : 32 << 20;
}

static int learn(struct blk_node *n, struct nbd_handle *h, struct error **err)
{
    struct nbd_state *s = node_state(n);
    int64_t size = nbd_get_size(h);

    if (size < 0)
        return fail(err, &s->target, -EIO);
    if (node_writable(n) && nbd_is_read_only(h) > 0)
        return error_set(err, EROFS, "%s: the export is read-only", blk_filename(n));
    s->size = (uint64_t)size;
    s->can_zero = nbd_can_zero(h) > 0;
    s->can_fast_zero = nbd_can_fast_zero(h) > 0;
    s->can_trim = nbd_can_trim(h) > 0;
    s->can_flush = nbd_can_flush(h) > 0;
    s->can_fua = nbd_can_fua(h) > 0;
    s->knows_holes = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
    set_limits(n, h);
    node_set_size(n, s->size);
    return 0;
}

static int add_connection(struct nbd_state *s, struct nbd_handle *h)
{
    struct connection *c = &s->at[s->count];

    *c = (struct connection){ .h = h, .wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) };
    pthread_mutex_init(&c->lock, NULL);
    s->count++;
    return c->wake_fd < 0 ? -errno : 0;
}

static int leaf_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct nbd_options *o = options;
    struct nbd_state *s = node_state(n);
    struct nbd_handle *h;
    unsigned wanted = o->connections ? (unsigned)o->connections : DEFAULT_CONNECTIONS;

    int ret = set_target(&s->target, o, err);
    if (ret == 0) {
        _cleanup_free_ char *name = client_filename(o->uri, s->target.path, s->target.host,
                                                    s->target.port, s->target.export);
        ret = name ? node_set_filename(n, name) : error_set(err, ENOMEM, "out of memory");
    }
    int64_t began = now_ms();
    if (ret == 0) {
        ret = connect_within(&s->target, o->open_timeout, &h);
        if (ret < 0)
            fail(err, &s->target, ret);
    }
    if (ret == 0)
        ret = add_connection(s, h);
    if (ret == 0)
        ret = learn(n, h, err);
    if (ret == 0 && nbd_can_multi_conn(h) <= 0)
        wanted = 1;
    /* More are welcome, not needed: a server that has a limit may leave us waiting. */
    int64_t patience = 4 * (now_ms() - began) + EXTRA_MS;
    while (ret == 0 && s->count < wanted && make_handle(&s->target, patience, &h) == 0)
        ret = add_connection(s, h);
    if (ret < 0)
        free_all(s);
    return ret;
}

static int leaf_close_node(struct blk_node *n, struct error **err)
{
    (void)err;
    free_all(node_state(n));
    return 0;
}

extern const struct driver nbd_driver;
const struct driver nbd_driver = {
    .name = "nbd",
    .kind = BLK_PROTOCOL,
    .flags = DRIVER_PARALLEL | DRIVER_NO_CHILD,
    .state_size = sizeof(struct nbd_state),
    .options = nbd_options,
    .options_size = sizeof(struct nbd_options),
    .describe = client_describe,
    .also_named = "nbds",
    .open = leaf_open,
    .close = leaf_close_node,
    .preadv = leaf_preadv,
    .pwritev = leaf_pwritev,
    .zero = leaf_zero,
    .discard = leaf_discard,
    .extents = leaf_extents,
    .flush = leaf_flush_disk,
};
