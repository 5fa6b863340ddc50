/* A node, as the core sees it. Drivers see driver.h, everybody else block.h.
 *
 * Life: node_new -> driver open -> in the graph, with references -> last blk_close -> driver close
 * -> freed. Edges hold a reference each, and a node never outlives what it rests on.
 *
 * Threads: the identity members are set before the node is shared and then only read. `size`,
 * `failed` and `refs` are atomics. Edges change only with the gate closed.
 */
#ifndef BLOCK_NODE_H
#define BLOCK_NODE_H

#include <stdatomic.h>

#include "base/vector.h"
#include "block/driver.h"
#include "gate.h"
#include "reserve.h"

enum detect_zeroes { DETECT_OFF, DETECT_ON, DETECT_UNMAP };

/* Edges beyond those that have a name of their own: "extents.0", "extents.1", ... */
struct extent_edge {
    char name[24];
    struct blk_node *node;
};
struct opening; /* graph.c */

/* What every node can be told, whatever its driver. */
struct node_options {
    char *node_name;
    bool read_only, read_only_given;
    bool direct, direct_given;
    bool no_flush, no_flush_given;
    int discard; /* enum discard_mode */
    bool discard_given;
    int detect_zeroes; /* enum detect_zeroes */
    bool force_share, force_share_given;
};

struct blk_node {
    void *state; /* first: node_state() in driver.h */

    /* identity */
    const struct driver *drv;
    char *name;     /* node name, "" */
    char *filename; /* as one would open it again */
    unsigned open_flags;
    bool read_only, direct, no_flush, writethrough, unmap;
    enum detect_zeroes detect;
    bool probed;      /* format guessed */
    bool guard_magic; /* raw was guessed: keep other formats' magic out of the first bytes */
    bool opened;      /* the driver's open succeeded */
    bool grows;       /* leaves: writing past the end makes it longer */
    struct node_limits limits;
    char *backing_filename, *backing_format; /* as the image states them; NULL: none */
    char *backing_resolved;                  /* as opened from here */
    bool has_data_file;
    char *data_filename; /* as the image states it; NULL: it does not */

    /* edges */
    struct blk_node *edge[EDGE_COUNT];
    VECTOR(struct extent_edge) extents;
    const struct opening *opening; /* while the driver's open runs */
    /* While the driver's create writes to this file: the name it will have (NULL: its own), and the backing
     * node of the image in the making (NULL: none). While change_backing runs: the new one. */
    const char *final_name;
    struct blk_node *create_backing;

    _Atomic uint64_t size;
    _Atomic bool failed;
    _Atomic int refs;

    struct gate gate;
    struct reserve_table reserve;
    pthread_mutex_t serial; /* held around data members of drivers that are not DRIVER_PARALLEL */

    struct blk_node *next_named; /* under the registry's lock in node.c */
};

struct blk_node *node_new(const struct driver *drv);
/* Drops a node that never opened: edges are closed, memory freed. */
void node_discard(struct blk_node *n);

/* The registry of named nodes. Lookup returns a new reference. */
int node_register(struct blk_node *n, const char *name, struct error **err);
struct blk_node *node_find(const char *name);

/* Takes the reference over, also when it fails. */
int node_add_extent(struct blk_node *n, struct blk_node *extent, struct error **err);

/* The leaf that holds the node's own bytes. */
struct blk_node *node_leaf(struct blk_node *n);
const char *edge_name(const struct blk_node *n, enum node_edge edge);

/* mapped.c: reads, writes, ... of drivers that map. Called by io.c, inside the gate. */
int mapped_read(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt, uint64_t len,
                unsigned flags);
int mapped_write(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                 uint64_t len, unsigned flags);
int mapped_write_compressed(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                            uint64_t len);
/* One unit that drv->encode encoded; len is what of it lies on the disk. */
int mapped_store_encoded(struct blk_node *n, uint64_t off, uint64_t len, const void *enc,
                         uint64_t enc_len);
int mapped_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
int mapped_discard(struct blk_node *n, uint64_t off, uint64_t len);
int mapped_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                   struct blk_extent *out);

/* Data members of drivers that are not DRIVER_PARALLEL run one at a time. */
static inline void driver_lock(struct blk_node *n)
{
    if (!(n->drv->flags & DRIVER_PARALLEL))
        pthread_mutex_lock(&n->serial);
}

static inline void driver_unlock(struct blk_node *n)
{
    if (!(n->drv->flags & DRIVER_PARALLEL))
        pthread_mutex_unlock(&n->serial);
}

/* One of the functions that write iov at off, inside the gate. */
typedef int io_write_fn(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                        uint64_t len, unsigned flags);

/* io.c, for mapped.c: writes zeroes as data, in bounded pieces. */
int io_write_zeroes(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                    io_write_fn *write);

/* io.c, for copy.c: a write of one unit that is encoded already. */
int io_write_encoded(struct blk_node *n, uint64_t off, uint64_t len, const void *enc,
                     uint64_t enc_len);

/* io.c, for bounce.c: one call of the driver, with the events of a write around it. */
int io_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt, uint64_t len,
               unsigned flags);

/* control.c, with the gate closed: the driver's resize and what the core adds to it. */
int control_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc,
                   struct error **err);

/* bounce.c: requests that do not fit limits.align or mem_align. */
bool bounce_needed(const struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                   uint64_t len);
int bounce_read(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt, uint64_t len,
                unsigned flags);
int bounce_write(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                 uint64_t len, unsigned flags);

/* probe.c */
#define PROBE_BYTES 2048
const struct driver *driver_find(const char *name);
/* Scores all formats on the first bytes; never NULL (raw is the fallback). */
const struct driver *probe_bytes(const uint8_t buf[PROBE_BYTES], const char *filename);
/* The filter for a file that is compressed as a whole; NULL: it is not. */
const struct driver *probe_wrapped(const uint8_t buf[PROBE_BYTES]);
int probe_wrapping(struct blk_node *file, const struct driver **out, struct error **err);
int probe_node(struct blk_node *file, const char *filename, const struct driver **out,
               struct error **err);

/* follow.c */
/* The length of "nbd" in "nbd://host", 0 when the name has no protocol. */
size_t protocol_length(const char *name);
int may_follow(const char *from, enum blk_follow follow, const char *name, struct error **err);
int may_follow_data(const struct blk_node *n, enum blk_follow follow, const char *name,
                    struct error **err);
/* stated: as in the image; name: what that means from here. */
int may_follow_extent(const char *from, enum blk_follow follow, const char *stated,
                      const char *name, struct error **err);

/* graph.c */
/* While n is opened: what it may refer to. */
enum blk_follow graph_follow(const struct blk_node *n);
/* What a name means that a file states: relative ones lie beneath its folder. To be freed; NULL: no memory. */
char *graph_resolve(const char *from, const char *name);
/* The driver that makes a file of that name. */
const struct driver *graph_creator(const char *filename, struct error **err);
int graph_open_file(const char *filename, unsigned flags, const char *cache, struct blk_node **out,
                    struct error **err);

#endif
