/* Serves nodes of the block graph to NBD clients.
 *
 *     nbd_server_new(&server, &config, &err);
 *     nbd_server_add(server, &export, &err);       takes the reference to its node over
 *     nbd_server_listen(server, fd, &err);         any listening stream socket, taken over
 *     nbd_server_run(server);                      until nbd_server_stop, or the last client has gone
 *     nbd_server_free(server, &err);               flushes and closes the nodes
 *
 * Errors     0 or a negative errno, and a sentence in *err.
 * Threads    nbd_server_stop and nbd_server_stats may be called from any thread; the rest by one.
 *            nbd_server_stop_flag is for signal handlers.
 * Source     doc/proto.md of the NBD project: fixed newstyle handshake, simple, structured and extended
 *            replies.
 */
#ifndef EXPORTS_NBD_SERVER_H
#define EXPORTS_NBD_SERVER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"

struct nbd_server;
struct nbd_tls; /* nbd_tls.h */
struct error;

struct nbd_config {
    unsigned threads;       /* event loops; 0: one per core */
    unsigned workers;       /* threads for requests that wait; 0: 16 */
    unsigned max_clients;   /* at once; 0: no limit */
    unsigned handshake_sec; /* time for a client to choose an export; 0: 10 */
    bool persistent;        /* runs on when the last client has gone */
    uint64_t memory;        /* bytes of requests under way, for all clients together; 0: 1 GiB */
    struct nbd_tls *tls;    /* NULL: none. Borrowed */
    bool tls_optional;      /* without TLS, too */
    /* A client may connect: NULL says all may. peer: "192.0.2.1", "unix", "vsock". Any thread. */
    bool (*allow)(void *opaque, const char *peer);
    void (*log)(void *opaque,
                const char *text); /* one line on what goes on; NULL: silent. Any thread */
    void *opaque;
};

struct nbd_export {
    const char *name;        /* "" is the default export */
    const char *description; /* or NULL */
    struct blk_node *node;
    bool read_only;
    bool allocation_depth; /* offers the context qemu:allocation-depth */
    const char *const
        *bitmaps; /* offers qemu:dirty-bitmap:NAME for each, 8 at most; NULL at the end, or NULL */
    bool hidden;  /* not listed, but there for who knows its name */
};

int nbd_server_new(struct nbd_server **out, const struct nbd_config *config, struct error **err);
/* Also while it runs. -EEXIST: the name is taken. On failure the node is still the caller's. */
int nbd_server_add(struct nbd_server *server, const struct nbd_export *export, struct error **err);
int nbd_server_listen(struct nbd_server *server, int fd, struct error **err);
/* A client that is there already: stdin, or a socket handed over. Taken over. */
int nbd_server_client(struct nbd_server *server, int fd, struct error **err);

int nbd_server_run(struct nbd_server *server);
/* New requests are no longer read; those under way end and are answered. Called again: at once. */
void nbd_server_stop(struct nbd_server *server);

/* {"clients": ..., "exports": [{"name": ..., "reads": ..., "read-bytes": ..., ...}]}; NULL: no memory. */
json_t *nbd_server_stats(struct nbd_server *server);

/* NULL is fine. The error tells of what could not be flushed. */
int nbd_server_free(struct nbd_server *server, struct error **err);

#endif
