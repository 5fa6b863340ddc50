/* A file that was compressed as a whole, read as what it was before: what gzip, xz and zstd share.
 *
 * Two ways lead to a byte in the middle. Where the file says which parts of it stand alone (blocks of xz, frames of
 * zstd) and they are small, a part is decoded when it is asked for and kept in a bounded cache (units.c);
 * several are decoded at once. Everything else is decoded once, from the beginning as far as somebody
 * asked, into a hidden temporary file (spool.c).
 *
 * The size must be true when the node is open. xz and most of zstd state it where the decoder holds them to it;
 * what does not (gzip's length is modulo 4 GiB) is decoded to its end at open.
 *
 * Nothing is ever cut short: bytes that cannot be decoded are an error, and so is whatever follows the end.
 */
#ifndef FORMATS_WRAPPED_H
#define FORMATS_WRAPPED_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/vector.h"
#include "block/driver.h"

#define WRAPPED_UNKNOWN UINT64_MAX

enum {
    UNIT_MOST = 64 << 20,    /* of a unit, as it is and decoded */
    UNITS_MOST = 1 << 20,    /* of a file; more are read through the spool */
    CACHE_BYTES = 256 << 20, /* of decoded units */
    MEMORY_MOST = 512 << 20, /* that a decoder may take for its window */
    CHUNK = 256 << 10,       /* read at once */
};

/* Bytes of the file that decode to bytes of the content by themselves. */
struct unit {
    uint64_t file_offset, file_length;
    uint64_t offset, length;
    uint32_t check; /* xz: of the stream it stands in */
};

struct flow {
    const uint8_t *in;
    size_t in_len;
    bool in_ended; /* no more follows what is in `in` */
    uint8_t *out;
    size_t out_len;
};

struct wrapped;

struct codec {
    const char *name;
    /* Finds size and units, as far as the file says: 0, or negative and *err. NULL: it says nothing. */
    int (*index)(struct wrapped *w, struct error **err);
    /* Pure. 0 when just u->length bytes came of it. */
    int (*decode)(const struct unit *u, const uint8_t *in, uint8_t *out);
    /* A decoder of the whole. step moves both ends of the flow on as far as it can; WRAPPED_END when all is
     * decoded and nothing follows; -EIO damaged, -ENODATA cut short, -ENOMEM wants more than MEMORY_MOST. */
    int (*begin)(void **decoder);
    int (*step)(void *decoder, struct flow *flow);
    void (*end)(void *decoder);
};
#define WRAPPED_END 1

enum slot_state { SLOT_EMPTY, SLOT_LOADING, SLOT_READY };

struct slot {
    uint8_t *data; /* room for the largest unit; NULL until first wanted */
    size_t unit;
    enum slot_state state;
    unsigned users;
    uint64_t used; /* when, by the cache's clock */
};

/* Decoded units. lock guards all of it but the data of slots in use or in loading. */
struct cache {
    pthread_mutex_t lock;
    pthread_cond_t change;
    struct slot *slots;
    size_t count, room;
    uint64_t clock;
};

/* The temporary file. lock guards all but the atomics; what lies before `decoded` does not change. */
struct spool {
    int fd;
    pthread_mutex_t lock;
    void *decoder;
    uint8_t *in, *out; /* CHUNK bytes, and four times that */
    size_t in_at, in_len;
    uint64_t file_at;   /* of what is to be read next */
    uint64_t margin;    /* bytes of the file system to leave to others */
    _Atomic bool ended; /* all is decoded, and the checksums agree */
    _Atomic int failed; /* a negative errno, for good */
    _Atomic uint64_t decoded;
};

struct wrapped {
    const struct codec *codec;
    struct blk_node *node, *file;
    uint64_t size, most;       /* size: WRAPPED_UNKNOWN until it is known */
    VECTOR(struct unit) units; /* in order, without gaps; none: the spool serves */
    struct cache cache;
    struct spool spool;
    _Atomic bool warned;
};

/* wrapped.c: all that the drivers have in common. */
struct wrapped_options {
    uint64_t max_size;
};
extern const struct opt_def wrapped_options[];
int wrapped_open(struct blk_node *n, const struct codec *codec, const void *options,
                 struct error **err);
int wrapped_close(struct blk_node *n, struct error **err);
int wrapped_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                   uint64_t len, unsigned flags);
int wrapped_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                    struct blk_extent *out);
/* A sentence for what step, decode or a read of the file answered. `at`: of the file. */
int wrapped_error(const struct wrapped *w, int code, uint64_t at, struct error **err);
/* A request fails: the sentence becomes a warning, once. NULL: it was told before. */
void wrapped_warn(struct wrapped *w, const struct error *err);

#define WRAPPED_DRIVER(codec)                                               \
    .name = codec, .kind = BLK_FILTER, .flags = DRIVER_PARALLEL,            \
    .state_size = sizeof(struct wrapped), .options = wrapped_options,       \
    .options_size = sizeof(struct wrapped_options), .close = wrapped_close, \
    .preadv = wrapped_preadv, .extents = wrapped_extents

/* units.c */
int units_begin(struct wrapped *w);
void units_end(struct wrapped *w);
int units_read(struct wrapped *w, uint64_t off, const struct iovec *iov, int iovcnt, uint64_t len);

/* spool.c */
int spool_begin(struct wrapped *w, struct error **err);
void spool_end(struct wrapped *w);
/* Decodes until `end` bytes are there, or all; a failure has its sentence in *err, the first time. */
int spool_reach(struct wrapped *w, uint64_t end, struct error **err);
int spool_read(struct wrapped *w, uint64_t off, const struct iovec *iov, int iovcnt, uint64_t len);
/* The run of data or zeroes at off, which is decoded. */
uint64_t spool_run(struct wrapped *w, uint64_t off, uint64_t len, bool *data);

#endif
