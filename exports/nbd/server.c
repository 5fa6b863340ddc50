/* The server: its exports, its listeners, its clients, its beginning and end. */
#include "nbd_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/cores.h"
#include "base/error.h"
#include "base/macros.h"
#include "internal.h"

enum { DEFAULT_WORKERS = 16, DEFAULT_HANDSHAKE_SEC = 10, ACCEPTS = 16, SOCKET_BYTES = 1 << 20 };
#define DEFAULT_MEMORY (UINT64_C(1) << 30)

void server_log(struct nbd_server *s, const char *fmt, ...)
{
    _cleanup_free_ char *text = NULL;
    va_list args;

    if (!s->config.log)
        return;
    va_start(args, fmt);
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    if (n >= 0)
        s->config.log(s->config.opaque, text);
    else
        text = NULL;
}

/* ---- exports ------------------------------------------------------------------------------------------ */

static void export_free(struct export *e)
{
    for (unsigned i = 0; i < e->bitmaps; i++) {
        blk_bitmap_close(e->bitmap[i]);
        free(e->bitmap_name[i]);
    }
    free(e->name);
    free(e->description);
    free(e);
}

static int take_bitmaps(struct export *e, const char *const *names, struct error **err)
{
    int ret = 0;

    for (; names && *names && ret == 0; names++) {
        if (e->bitmaps == EXPORT_BITMAPS)
            return error_set(err, ENOSPC, "there are %d bitmaps for an export at most",
                             EXPORT_BITMAPS);
        if (strlen(*names) > 1023)
            return error_set(err, EINVAL, "the bitmap's name is longer than 1023 bytes");
        ret = blk_bitmap_open(e->node, *names, &e->bitmap[e->bitmaps], err);
        if (ret == 0 && !(e->bitmap_name[e->bitmaps++] = strdup(*names)))
            ret = error_set(err, ENOMEM, "out of memory");
    }
    return ret;
}

struct export *server_export(struct nbd_server *s, const char *name, size_t len)
{
    LOCK_SCOPE(&s->lock);
    for (size_t i = 0; i < s->exports.len; i++) {
        struct export *e = s->exports.at[i];
        if (strlen(e->name) == len && !memcmp(e->name, name, len))
            return e;
    }
    /* The empty name means the only one there is. */
    return len == 0 && s->exports.len == 1 ? s->exports.at[0] : NULL;
}

int nbd_server_add(struct nbd_server *s, const struct nbd_export *x, struct error **err)
{
    if (strlen(x->name) > NBD_MAX_STRING)
        return error_set(err, EINVAL, "the export name has %zu bytes, the limit is %d",
                         strlen(x->name), NBD_MAX_STRING);
    if (x->description && strlen(x->description) > NBD_MAX_STRING)
        return error_set(err, EINVAL, "the export's description has %zu bytes, the limit is %d",
                         strlen(x->description), NBD_MAX_STRING);
    struct export *e = calloc(1, sizeof(*e));
    if (!e)
        return error_set(err, ENOMEM, "out of memory");
    e->name = strdup(x->name);
    e->description = x->description ? strdup(x->description) : NULL;
    e->node = x->node;
    e->read_only = x->read_only || blk_read_only(x->node);
    e->allocation_depth = x->allocation_depth;
    e->hidden = x->hidden;
    int ret = e->name && (e->description || !x->description) ? 0 : -ENOMEM;
    int bitmaps = ret == 0 ? take_bitmaps(e, x->bitmaps, err) : 0;
    if (bitmaps < 0) {
        export_free(e);
        return bitmaps;
    }
    {
        LOCK_SCOPE(&s->lock);
        for (size_t i = 0; ret == 0 && i < s->exports.len; i++)
            if (!strcmp(s->exports.at[i]->name, e->name))
                ret = -EEXIST;
        if (ret == 0)
            ret = vector_push(&s->exports, e);
    }
    if (ret < 0)
        export_free(e);
    return ret == -EEXIST ? error_set(err, EEXIST, "there is an export '%s' already", x->name)
           : ret < 0      ? error_set(err, ENOMEM, "out of memory")
                          : 0;
}

/* ---- clients -------------------------------------------------------------------------------------------- */

void server_update_accepting(struct nbd_server *s)
{
    LOCK_SCOPE(&s->lock);
    unsigned max = s->config.max_clients;
    bool accept = (max == 0 || atomic_load(&s->clients) < max) &&
                  atomic_load(&s->handshakes) < MAX_HANDSHAKES && !atomic_load(&s->stop);

    if (accept == s->accepting)
        return;
    s->accepting = accept;
    for (size_t i = 0; i < s->listeners.len; i++) {
        struct epoll_event e = { .events = accept ? EPOLLIN : 0, .data.ptr = s->listeners.at[i] };
        epoll_ctl(s->loops[0].epoll, EPOLL_CTL_MOD, s->listeners.at[i]->fd, &e);
    }
}

void server_client_gone(struct nbd_server *s)
{
    unsigned left = atomic_fetch_sub(&s->clients, 1) - 1;

    server_update_accepting(s);
    if (left == 0 && !s->config.persistent && atomic_load(&s->served) > 0)
        nbd_server_stop(s);
}

/* "192.0.2.1", "2001:db8::1", "vsock:3", "unix". */
static void name_peer(const struct sockaddr_storage *a, char *out, size_t len)
{
    const void *at = NULL;

    if (a->ss_family == AF_INET)
        at = &((const struct sockaddr_in *)(const void *)a)->sin_addr;
    else if (a->ss_family == AF_INET6)
        at = &((const struct sockaddr_in6 *)(const void *)a)->sin6_addr;
    if (at && inet_ntop(a->ss_family, at, out, (socklen_t)len))
        return;
    if (a->ss_family == AF_VSOCK)
        snprintf(out, len, "vsock:%u", ((const struct sockaddr_vm *)(const void *)a)->svm_cid);
    else
        snprintf(out, len, "%s", a->ss_family == AF_UNIX ? "unix" : "a client");
}

static void tune(int fd, int family)
{
    int one = 1, size = SOCKET_BYTES;

    if (family == AF_INET || family == AF_INET6) {
        setsockopt(fd, IPPROTO_TCP, 1 /* TCP_NODELAY */, &one, sizeof(one));
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    } else if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0) {
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    }
}

/* The loop takes over; fd is closed on failure. */
static int take_client(struct nbd_server *s, int fd, const char *peer)
{
    struct loop *l = &s->loops[atomic_fetch_add(&s->next_loop, 1) % s->loop_count];
    struct conn *c = conn_new(s, l, fd, peer);

    if (!c) {
        close(fd);
        return -ENOMEM;
    }
    atomic_fetch_add(&s->clients, 1);
    atomic_fetch_add(&s->handshakes, 1);
    atomic_fetch_add(&s->served, 1);
    LOCK_SCOPE(&c->lock);
    loop_mail(c);
    return 0;
}

void server_accept(struct nbd_server *s, struct watch *listener)
{
    for (int i = 0; i < ACCEPTS; i++) {
        struct sockaddr_storage a = { 0 };
        socklen_t len = sizeof(a);
        char peer[64];

        server_update_accepting(s);
        {
            LOCK_SCOPE(&s->lock);
            if (!s->accepting)
                return;
        }
        int fd = accept4(listener->fd, (struct sockaddr *)&a, &len, SOCK_CLOEXEC);
        if (fd < 0)
            return; /* nobody is there any more, or no descriptors are: the next event tells */
        name_peer(&a, peer, sizeof(peer));
        if (s->config.allow && !s->config.allow(s->config.opaque, peer)) {
            server_log(s, "%s: refused: its address is not allowed", peer);
            close(fd);
            continue;
        }
        tune(fd, a.ss_family);
        (void)take_client(s, fd, peer);
    }
}

int nbd_server_listen(struct nbd_server *s, int fd, struct error **err)
{
    struct watch *w = malloc(sizeof(*w));
    int ret = w ? 0 : -ENOMEM;

    if (ret == 0) {
        *w = (struct watch){ .kind = WATCH_LISTENER, .fd = fd };
        LOCK_SCOPE(&s->lock);
        ret = vector_push(&s->listeners, w);
    }
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = w };
    if (ret == 0 && epoll_ctl(s->loops[0].epoll, EPOLL_CTL_ADD, fd, &e) < 0)
        return error_set(err, errno, "cannot wait for clients: %s", strerror(errno));
    return ret < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

int nbd_server_client(struct nbd_server *s, int fd, struct error **err)
{
    struct sockaddr_storage a = { 0 };
    socklen_t len = sizeof(a);
    char peer[64];

    if (getpeername(fd, (struct sockaddr *)&a, &len) < 0 && errno != ENOTCONN)
        return error_set(err, errno, "the client's connection is not a socket");
    name_peer(&a, peer, sizeof(peer));
    tune(fd, a.ss_family);
    return take_client(s, fd, peer) < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

/* ---- running ----------------------------------------------------------------------------------------------- */

int nbd_server_new(struct nbd_server **out, const struct nbd_config *config, struct error **err)
{
    struct nbd_server *s = calloc(1, sizeof(*s));
    int ret = 0;

    *out = NULL;
    if (!s)
        return error_set(err, ENOMEM, "out of memory");
    s->config = *config;
    s->config.memory = config->memory ? config->memory : DEFAULT_MEMORY;
    if (!config->handshake_sec)
        s->config.handshake_sec = DEFAULT_HANDSHAKE_SEC;
    s->accepting = true;
    pthread_mutex_init(&s->lock, NULL);
    s->stop_fd = eventfd(0, EFD_CLOEXEC);
    s->loop_count = config->threads ? config->threads : usable_cores();
    s->loops = calloc(s->loop_count, sizeof(*s->loops));
    if (s->stop_fd < 0 || !s->loops)
        ret = -ENOMEM;
    for (unsigned i = 0; i < s->loop_count && ret == 0; i++)
        ret = loop_init(&s->loops[i], s);
    if (ret == 0)
        ret = pool_create(&s->pool, config->workers ? config->workers : DEFAULT_WORKERS, "nbd");
    if (ret < 0) {
        nbd_server_free(s, NULL);
        return error_set(err, -ret, "cannot start the server: %s", strerror(-ret));
    }
    *out = s;
    return 0;
}

int nbd_server_run(struct nbd_server *s)
{
    uint64_t count;
    int ret = 0;

    for (unsigned i = 0; i < s->loop_count && ret == 0; i++)
        ret = loop_start(&s->loops[i]);
    if (ret < 0)
        nbd_server_stop(s);
    /* Each word on stop_fd is passed on: the loops poll `stop` when they are woken. */
    while (!atomic_load(&s->stop))
        if (read(s->stop_fd, &count, sizeof(count)) < 0 && errno != EINTR)
            break;
    server_update_accepting(s);
    for (unsigned i = 0; i < s->loop_count; i++)
        loop_wake(&s->loops[i]);
    for (unsigned i = 0; i < s->loop_count; i++)
        if (s->loops[i].started) {
            pthread_join(s->loops[i].thread, NULL);
            s->loops[i].started = false;
        }
    return ret;
}

void nbd_server_stop(struct nbd_server *s)
{
    uint64_t one = 1;

    atomic_fetch_add(&s->stop, 1);
    if (write(s->stop_fd, &one, sizeof(one)) < 0)
        return; /* it counts to 2^64: somebody else's is there */
    for (unsigned i = 0; i < s->loop_count; i++)
        loop_wake(&s->loops[i]);
}

int nbd_server_free(struct nbd_server *s, struct error **err)
{
    int ret = 0;

    if (!s)
        return 0;
    pool_destroy(s->pool);
    for (unsigned i = 0; s->loops && i < s->loop_count; i++)
        loop_destroy(&s->loops[i]);
    free(s->loops);
    for (size_t i = 0; i < s->listeners.len; i++) {
        close(s->listeners.at[i]->fd);
        free(s->listeners.at[i]);
    }
    vector_free(&s->listeners);
    for (size_t i = 0; i < s->exports.len; i++) {
        int r = blk_close(s->exports.at[i]->node, ret < 0 ? NULL : err);
        ret = ret < 0 ? ret : r;
        export_free(s->exports.at[i]);
    }
    vector_free(&s->exports);
    if (s->stop_fd >= 0)
        close(s->stop_fd);
    pthread_mutex_destroy(&s->lock);
    free(s);
    return ret;
}

/* ---- statistics ---------------------------------------------------------------------------------------------- */

static json_t *export_stats(const struct export *e)
{
    static const char *const names[OP_COUNT] = { "reads",   "writes", "zeroes", "trims",
                                                 "flushes", "caches", "status" };
    json_t *o = json_pack("{s:s, s:I, s:I}", "name", e->name, "clients",
                          (json_int_t)atomic_load(&e->clients), "errors",
                          (json_int_t)atomic_load(&e->counters.errors));

    for (int i = 0; o && i < OP_COUNT; i++) {
        char key[32];
        json_object_set_new(o, names[i],
                            json_integer((json_int_t)atomic_load(&e->counters.requests[i])));
        snprintf(key, sizeof(key), "%s-bytes", names[i]);
        if (i != OP_FLUSH)
            json_object_set_new(o, key,
                                json_integer((json_int_t)atomic_load(&e->counters.bytes[i])));
    }
    return o;
}

json_t *nbd_server_stats(struct nbd_server *s)
{
    json_t *list = json_array();

    LOCK_SCOPE(&s->lock);
    for (size_t i = 0; list && i < s->exports.len; i++)
        json_array_append_new(list, export_stats(s->exports.at[i]));
    return json_pack("{s:I, s:I, s:I, s:o}", "clients", (json_int_t)atomic_load(&s->clients),
                     "served", (json_int_t)atomic_load(&s->served), "memory",
                     (json_int_t)atomic_load(&s->held), "exports", list);
}
