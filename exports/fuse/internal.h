/* The parts of the FUSE export.
 *
 *   names.c   which files there are; never changes once it is mounted
 *   data.c    reading, writing, space: ranges of a file become ranges of the node
 *   ops.c     the requests of the kernel
 *   loop.c    the threads that serve
 *   export.c  mounting, the end
 *
 * Threads: requests come on many threads at once. The names are read-only, the node takes care of itself, what is
 * left stands under `lock`. The kernel keeps a page cache for each file: what was written through `disk` is seen
 * through `p1` when that is opened anew.
 */
#ifndef FUSE_INTERNAL_H
#define FUSE_INTERNAL_H

#define FUSE_USE_VERSION 312

#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>

#include "fuse_export.h"

#include "base/vector.h"

enum { MAX_TRANSFER = 1 << 20 };

/* A name. Its inode number is its place in the list plus 1, which makes the first one FUSE_ROOT_ID. */
struct name {
    fuse_ino_t parent;
    char *text;
    mode_t kind;           /* S_IFDIR S_IFREG S_IFLNK */
    char *target;          /* of a link */
    uint64_t offset, size; /* of a file; the whole disk's size is asked of the node */
    bool whole;
};

/* How much space a file takes, kept until it is old. */
struct usage {
    uint64_t bytes;
    unsigned epoch; /* of the writes */
    time_t at;
    bool known;
};

struct fuse_export {
    struct blk_node *node;
    VECTOR(struct name) names;
    struct usage *usage; /* one for each name, under lock */
    struct fuse_session *session;
    bool writable, growable, direct_io, writeback, mounted, single;
    unsigned threads;
    struct timespec born;
    uid_t uid;
    gid_t gid;

    atomic_uint epoch; /* counts changes */
    pthread_mutex_t lock;
    pthread_mutex_t growing; /* held while the disk becomes longer */
};

/* names.c */
int names_make(struct fuse_export *x, const struct partition_table *table, bool single);
void names_free(struct fuse_export *x);
struct name *name_of(struct fuse_export *x, fuse_ino_t ino); /* NULL: none */
uint64_t file_size(struct fuse_export *x, const struct name *file);

/* data.c: 0 or a negative errno. Offsets are of the file. */
int data_write(struct fuse_export *x, const struct name *file, uint64_t off, const void *buf,
               size_t len, bool durable);
int data_fallocate(struct fuse_export *x, const struct name *file, int mode, uint64_t off,
                   uint64_t len);
int data_resize(struct fuse_export *x, const struct name *file, uint64_t size);
int data_seek(struct fuse_export *x, const struct name *file, uint64_t off, bool data,
              uint64_t *out);
/* What the file takes of the disk, as far as a short look tells. */
uint64_t data_usage(struct fuse_export *x, fuse_ino_t ino);

/* loop.c: until it is unmounted or a signal comes. */
int loop_run(struct fuse_export *x);

/* ops.c */
extern const struct fuse_lowlevel_ops fuse_ops;

#endif
