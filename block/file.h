/* What the parts of the file driver share. Private to file*.c. */
#ifndef BLOCK_FILE_H
#define BLOCK_FILE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/rwlock.h"
#include "block/driver.h"

/* ---- file_holes.c --------------------------------------------------------------------------- */

enum { HOLE_RUNS = 8 };

/* Runs of data and of nothing that the file system told us about, since asking it again costs a
 * walk through the whole run. A hole is forgotten once anything was written, data once anything was
 * punched: the counters are bumped after the change is made, and a run is valid while its counter
 * stands where it stood before the file system was asked. */
struct hole_cache {
    _Atomic uint64_t writes, punches;

    pthread_mutex_t lock;
    /* under lock */
    struct hole_run {
        uint64_t start, end; /* empty: not used */
        bool data;
        uint64_t stamp; /* punches for data, writes for a hole */
    } run[HOLE_RUNS];
    unsigned next; /* to be replaced */
};

void hole_cache_init(struct hole_cache *cache);
void hole_cache_destroy(struct hole_cache *cache);

/* ---- the node's state ----------------------------------------------------------------------- */

/* Threads: what is not atomic is set by open and then only read; size_lock see file.c. */
struct file_state {
    int fd;
    bool device;
    bool direct;
    bool in_memory; /* tmpfs: no read waits for a disk */
    bool shared;    /* others may change the file: holes are not to be remembered */

    /* Learned from the first refusal, never unlearned. */
    _Atomic bool no_nowait, no_dsync, no_punch, no_zero_range, no_zeroout, no_discard;

    /* The errno of the first failed sync; 0 while all went well. */
    _Atomic int sync_error;

    /* Shared by what may grow the file, exclusive for ftruncate. */
    struct rwlock size_lock;
    _Atomic uint64_t end; /* the file is at least this long */

    struct hole_cache holes;
};

int file_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                 struct blk_extent *out);

/* file.c: makes what was written durable; a failure is remembered. */
int file_sync(struct blk_node *n);
/* After a write that ended there. */
void file_raise_end(struct file_state *s, uint64_t end);

/* file_zero.c */
int file_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
int file_discard(struct blk_node *n, uint64_t off, uint64_t len);

/* file_copy.c */
int file_copy_range(struct blk_node *src, uint64_t src_off, struct blk_node *dst, uint64_t dst_off,
                    uint64_t len, uint64_t *done);

/* file_direct.c: the alignment that O_DIRECT asks for. */
int file_probe_direct(int fd, bool device, struct node_limits *limits);

/* file_lock.c */
enum file_locking { LOCKING_AUTO, LOCKING_ON, LOCKING_OFF };
/* Takes the locks that this use of the file asks for; they end with the descriptor. */
int file_lock(int fd, const char *filename, bool writer, enum file_locking mode,
              struct error **err);

/* file_create.c */
struct file_create {
    uint64_t size;
    int preallocation; /* enum blk_prealloc */
    bool nocow;
    uint64_t extent_size_hint;
};
extern const struct opt_def file_create_options[];
int file_create(const char *filename, const void *options, struct error **err);
/* The length of a regular file or block device. */
int file_length(int fd, bool device, uint64_t *out);
/* Sets the length; what is new is allocated as asked, on failure it is short again. */
int file_set_length(int fd, const char *filename, uint64_t from, uint64_t to,
                    enum blk_prealloc prealloc, struct error **err);

#endif
