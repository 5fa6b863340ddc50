/* The server's parts and what they ask of each other.
 *
 * A few loops, one thread each, own the connections: only its loop reads from a connection, parses, and closes it.
 * What can be answered without waiting is answered there and then; the rest goes to a pool, whose workers send
 * their replies themselves. Replies are queued on the connection and sent by whoever finds nobody sending, so
 * that several leave in one call.
 *
 * Invariants
 *  N1  conn.jobs counts jobs of the pool that may still touch the connection; it is freed by its loop when
 *      it is closed and jobs is 0.
 *  N2  conn.held is the memory of its requests and queued replies. Above CONN_LIMIT nothing more is read from
 *      the client, so that a client that sends and never reads stops itself. The sum over all clients
 *      stays below config.memory plus CONN_SMALL for each.
 *  N3  Each request is answered exactly once: the last of its pieces has the flag DONE.
 *  N4  After STARTTLS nothing is left of what was said before it.
 *
 * Locks: conn.lock, then loop.lock; server.lock is taken alone. No lock is held during I/O of an image.
 */
#ifndef NBD_INTERNAL_H
#define NBD_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/vector.h"
#include "nbd_server.h"
#include "proto.h"

enum {
    IN_BYTES = 512 << 10,   /* read from a socket at once */
    OUT_BYTES = 1 << 20,    /* replies gathered before they are sent */
    PIECE = 1 << 20,        /* requests are carried out in pieces of this */
    MAX_REQUEST = 32 << 20, /* bytes of data in a request or reply */
    CONN_LIMIT = 64 << 20,  /* N2 */
    CONN_SMALL = 64 << 10,  /* what a client gets even when memory is short */
    INLINE_MAX = 512 << 10, /* longer requests are not answered by the loop itself */
    OPTION_MAX = 64 << 10,  /* bytes of an option that we look at */
    SPARSE_MIN = 64 << 10,  /* reads from here on are answered with holes */
    EXPORT_BITMAPS = 8,
    MAX_HANDSHAKES = 256, /* clients that have not chosen an export yet */
    STALLED_SEC = 30,     /* without taking a reply, when memory is short */
    DRAIN_SEC = 10,       /* for replies to leave when the server stops */
};

/* ---- what is served ----------------------------------------------------------------------------- */

enum op { OP_READ, OP_WRITE, OP_ZERO, OP_TRIM, OP_FLUSH, OP_CACHE, OP_STATUS, OP_COUNT };

struct counters {
    _Atomic uint64_t requests[OP_COUNT], bytes[OP_COUNT], errors;
};

struct export
{
    char *name, *description;
    struct blk_node *node;
    bool read_only, allocation_depth, hidden;
    struct blk_bitmap *bitmap[EXPORT_BITMAPS]; /* offered as contexts of these names */
    char *bitmap_name[EXPORT_BITMAPS];
    unsigned bitmaps;
    _Atomic int64_t
        patience; /* clock_ns before which writes are not tried inline: the last one waited */
    _Atomic unsigned clients;
    struct counters counters;
};

/* ---- connections ----------------------------------------------------------------------------------- */

/* Bytes to send, in memory of its own. */
struct chunk {
    struct chunk *next;
    size_t len, at; /* sent up to here */
    size_t held;    /* of conn.held, given back when it is gone */
    uint8_t data[];
};

/* A request that is not answered by the loop itself. */
struct request {
    uint64_t cookie, offset, length;
    uint16_t type, flags;
    bool cut;        /* into several pieces */
    unsigned pieces; /* under conn.lock: not ended yet */
    int error;       /* under conn.lock: the first */
};

struct job {
    struct pool_job pool;
    struct conn *conn;
    struct request *request;
    uint64_t offset, length;
    size_t held;         /* of conn.held */
    struct chunk *reply; /* room for what is said without data */
    size_t room;         /* bytes that data has room for */
    uint8_t data[];      /* of a write */
};

enum conn_state { CONN_FLAGS, CONN_OPTIONS, CONN_TLS, CONN_REQUESTS, CONN_CLOSED };
enum reply_style { REPLY_SIMPLE, REPLY_STRUCTURED, REPLY_EXTENDED };
/* Contexts by number, and as bits of conn.contexts; from META_BITMAP on the export's bitmaps. */
enum { META_BASE = 1, META_DEPTH, META_BITMAP, META_END = META_BITMAP + EXPORT_BITMAPS };
#define META_BIT(context) (1u << (context))

enum watch_kind { WATCH_LISTENER, WATCH_WAKE, WATCH_CONN };

/* What epoll hands back; first member of what it stands for. */
struct watch {
    enum watch_kind kind;
    int fd;
};

struct conn {
    struct watch watch;
    struct nbd_server *server;
    struct loop *loop;
    struct conn *prev, *next; /* in loop->conns */
    char peer[64];

    /* the loop's */
    enum conn_state state;
    bool no_zeroes, fixed, secure;
    enum reply_style style;
    struct export *export;
    unsigned contexts;              /* META_BIT(...) that replies to block status tell */
    struct export *contexts_export; /* which they were asked for */
    int64_t deadline;               /* of the handshake */
    int64_t stalled_since;          /* no reply was taken since, though some wait; 0: none do */
    uint64_t stalled_at;            /* bytes sent then */
    uint8_t *pending;               /* read but not parsed */
    size_t pending_len;
    uint64_t skip;           /* bytes to read and forget */
    struct request *writing; /* its data is being read */
    uint64_t writing_at;     /* of it, read so far */
    struct job *filling;     /* the piece that it goes into; NULL: none yet */
    size_t filled;
    uint32_t events; /* as epoll has them */
    bool adopted, eof;
    bool paused; /* written under conn.lock */

    pthread_mutex_t lock; /* guards what follows */
    struct chunk *out, **out_end;
    bool sending, blocked, broken;
    bool awaited; /* the loop wants to hear when nothing is under way any more */
    unsigned jobs;
    uint64_t held;
    uint64_t sent; /* bytes, so that progress can be seen */
    bool mailed;
    struct conn *mail_next; /* under loop->lock */
    void *tls;              /* gnutls_session_t */
};

/* ---- loops and the server ---------------------------------------------------------------------------- */

struct loop {
    struct nbd_server *server;
    struct watch wake; /* eventfd */
    pthread_t thread;
    int epoll;
    bool started;
    bool may_look, looks; /* before it sleeps: the last events came soon */
    uint8_t *in, *out;
    size_t out_len; /* replies of the connection at hand */
    struct job *
        spare; /* of a write that was carried out here, for the next one: fresh memory costs page faults */
    struct conn *conns;
    int64_t drain_until;

    pthread_mutex_t lock;
    struct conn *mail; /* connections that something happened to */
};

struct nbd_server {
    struct nbd_config config;
    struct loop *loops;
    unsigned loop_count;
    struct pool *pool;
    _Atomic unsigned clients, handshakes, next_loop;
    _Atomic uint64_t held, served;
    _Atomic unsigned stop; /* how often it was asked to */
    int stop_fd;           /* eventfd that wakes nbd_server_run */

    pthread_mutex_t lock; /* guards what follows */
    VECTOR(struct export *) exports;
    VECTOR(struct watch *) listeners;
    bool accepting;
};

int64_t clock_ns(void);
void server_log(struct nbd_server *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* server.c */
struct export *server_export(struct nbd_server *s, const char *name, size_t len); /* NULL: none */
void server_accept(struct nbd_server *s, struct watch *listener);
void server_client_gone(struct nbd_server *s);
/* Listeners are watched while there is room for clients. */
void server_update_accepting(struct nbd_server *s);

/* loop.c */
int loop_init(struct loop *l, struct nbd_server *s);
int loop_start(struct loop *l);
void loop_wake(struct loop *l);
/* From any thread, conn.lock held: the loop looks after the connection soon. */
void loop_mail(struct conn *c);
void loop_destroy(struct loop *l);

/* conn.c */
struct conn *conn_new(struct nbd_server *s, struct loop *l, int fd, const char *peer);
void conn_input(struct conn *c); /* something can be read */
/* The other things that may have changed: replies can be sent, memory is free again. */
void conn_look_after(struct conn *c);
void conn_close(struct conn *c);   /* nothing more is read or sent */
bool conn_is_over(struct conn *c); /* closed, and nobody refers to it */
void conn_free(struct conn *c);

/* out.c: sending. conn_out and conn_queue take any thread, the others are the loop's. */
struct chunk *chunk_new(size_t len);
/* Room in the loop's buffer for a reply; NULL: there is not so much, even after sending. */
uint8_t *out_room(struct conn *c, size_t len);
void out_send(struct conn *c); /* what is in the loop's buffer */
/* With the connection's lock; takes the chunk. */
void out_queue_locked(struct conn *c, struct chunk *chunk);
/* conn.lock held: sends what is queued, unless somebody does. */
void out_flush_locked(struct conn *c);
/* conn.lock held: memory that was held is free again. */
void out_release_locked(struct conn *c, size_t held);

/* handshake.c */
void handshake_greet(struct conn *c);
/* Takes what it can of the bytes; how many. */
size_t handshake_parse(struct conn *c, const uint8_t *data, size_t len);

/* request.c */
size_t request_parse(struct conn *c, const uint8_t *data, size_t len);
/* n bytes were read into c->filling->data + c->filled. */
void request_filled(struct conn *c, size_t n);
/* The rest of a write's data will not come. */
void request_drop(struct conn *c);

/* job.c: the loop's, but for what happens in the pool. */
/* data: bytes of a write; held: memory to account for beside it. NULL: no memory. */
struct job *job_new(struct conn *c, struct request *r, uint64_t offset, uint64_t length,
                    size_t data, size_t held);
void job_submit(struct job *job);
/* For one that is not handed over. */
void job_free(struct job *job);

/* serve.c: one piece of work on the image, for both the loop (flags BLK_NOWAIT) and the workers. */
struct piece {
    struct export *export;
    enum reply_style style;
    unsigned contexts;
    uint64_t cookie, request_offset, offset, length;
    uint16_t type, flags;
    bool done; /* the last of its request */
};
/* The most that the reply takes. */
size_t serve_room(const struct piece *p);
/* Carries out a read or block status. 0 and *len bytes at `out`, or a negative errno. */
int serve_read(const struct piece *p, unsigned flags, uint8_t *out, size_t *len);
int serve_status(const struct piece *p, uint8_t *out, size_t *len);
int serve_change(const struct piece *p, const void *data, unsigned flags);
enum op serve_op(uint16_t type);
void serve_count(struct export *e, uint16_t type, uint64_t bytes, int result);

/* reply.c: headers. Each returns the bytes written. */
enum { REPLY_ROOM = 64 }; /* no header or error takes more */
size_t reply_ok(const struct piece *p, uint8_t *out);
size_t reply_error(const struct piece *p, int error, uint8_t *out);
/* For reads in pieces: nothing more comes. */
size_t reply_end(const struct piece *p, uint8_t *out);
/* The header of data or of a hole, all but the data; done is in the last one. */
size_t reply_data(const struct piece *p, bool done, uint64_t offset, uint64_t len, uint8_t *out);
size_t reply_hole(const struct piece *p, bool done, uint64_t offset, uint64_t len, uint8_t *out);
/* payload: bytes that follow the context's number (and count). */
size_t reply_status(const struct piece *p, bool done, uint32_t context, uint32_t count,
                    uint8_t *out);
/* Sets the flag DONE in a reply's last header. */
void reply_set_done(uint8_t *header);

/* tls.c */
int tls_start(struct conn *c);
/* 1: done, 0: needs more from the client, else a negative errno. */
int tls_handshake(struct conn *c);
/* As recv and send; -1 and errno. */
ssize_t tls_recv(struct conn *c, void *buf, size_t len);
ssize_t tls_send(struct conn *c, const void *buf, size_t len);
void tls_end(struct conn *c);

#endif
