/* Shows a node of the block graph as files: on a folder as disk, p1, p2, ..., or on one existing file.
 *
 *     fuse_export_new(&export, &config, &err);     mounts; takes the reference to the node over
 *     fuse_export_run(export);                     until it is unmounted, or a signal says so
 *     fuse_export_free(export, &err);              unmounts, flushes and closes the node
 *
 * Errors     0 or a negative errno, and a sentence in *err.
 * Threads    All by one thread, which takes SIGTERM, SIGINT and SIGHUP while it runs: they are blocked before
 *            there are other threads, so that none of those takes them. SIGUSR1 is its own.
 */
#ifndef EXPORTS_FUSE_EXPORT_H
#define EXPORTS_FUSE_EXPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "block/block.h"
#include "partitions/partitions.h"

struct fuse_export;
struct error;

struct fuse_export_config {
    struct blk_node *node;
    const char *mountpoint; /* a folder, or a regular file */
    const char *source;     /* what lists of mounts call it */
    /* What becomes p1, p2, ...; NULL: nothing. Borrowed during fuse_export_new. */
    const struct partition_table *table;
    bool writable;  /* the node is, too */
    bool growable;  /* writes behind the end of the disk make it longer; the node may be resized */
    bool direct_io; /* requests reach the node as they are, past the page cache */
    /* The kernel collects writes and hands them over later: quicker, but what it could not hand over shows at
     * fsync only, and of two files that share bytes one sees old ones for longer. */
    bool writeback;
    bool allow_other; /* users other than the one who mounts */
    unsigned threads; /* at most; 0: 16 */
};

/* On failure the node is still the caller's. */
int fuse_export_new(struct fuse_export **out, const struct fuse_export_config *config,
                    struct error **err);
int fuse_export_run(struct fuse_export *export);
/* NULL is fine. The error tells of what could not be flushed. */
int fuse_export_free(struct fuse_export *export, struct error **err);

/* An ioctl of the root (the folder, or the file that is mounted on): the process behind a mount. It is no
 * extended attribute, since a kernel that finds those asks for one at each write. */
#define FUSE_EXPORT_PID _IOR('P', 0x51, int64_t)

#endif
