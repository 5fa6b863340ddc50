/* The emulator's way to disks: a thin client of block/block.h, and the only one in the emulator.
 *
 * Nodes are opened as -blockdev and -drive say. A disk front end takes one by name and sends requests, many at once;
 * they run on a pool of the machine's and end with a callback.
 *
 * Units: bytes. Threads: blockdev_submit from any thread, never blocks for I/O (it may answer at once from within, when the
 * graph can do so without waiting: `done` must take that). Callbacks come from pool threads or from the caller's.
 */
#ifndef EMULATOR_BLOCKDEV_H
#define EMULATOR_BLOCKDEV_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/pool.h"

struct blockdev;
struct error;

/* -blockdev: {"driver": ..., "node-name": ..., ...}; read-only, discard, detect-zeroes, cache.* as QEMU has them. Kept under
 * its node-name until blockdevs_close. Takes no reference to options. */
int blockdev_add(json_t *options, struct error **err);
/* -drive: {"file": ..., "format": ..., "if": ..., "id": ..., "cache": ..., "snapshot": ..., ...}. The node gets `id` as
 * its name (a made-up one when there is none), which *name points to. Keys that say how it is plugged in (if, index, bus,
 * unit, media, serial, werror, rerror) stay in the object for the machine. */
int blockdev_add_drive(json_t *options, bool snapshot, const char **name, struct error **err);
/* -object: "secret,id=..." or JSON; what descriptions refer to. */
int blockdev_add_object(const char *spec, struct error **err);
/* For -blockdev help: prints the drivers, or with a name the options of one. */
void blockdev_help(const char *driver);
/* For `info block`: number i, NULL past the last. */
struct blockdev *blockdev_at(unsigned i);
/* As `info block` prints it; to be freed. */
char *blockdev_describe(struct blockdev *b);
/* All flushed and closed; an error says whose newest writes may be lost. */
int blockdevs_close(struct error **err);

enum blockdev_on_error { ON_ERROR_REPORT, ON_ERROR_IGNORE, ON_ERROR_STOP, ON_ERROR_ENOSPC };

/* What a front end says of itself when it takes the node: one front end for each node, unless all only read. */
struct blockdev_user {
    const char *device; /* its id, for messages */
    bool write;         /* would write, if the node is writable; false: will only read */
};
int blockdev_take(const char *name, const struct blockdev_user *user, struct blockdev **out,
                  struct error **err);
void blockdev_release(struct blockdev *b);

bool blockdev_inserted(
    struct blockdev *b); /* false: a drive without a file; all else is 0 and fails */
uint64_t blockdev_size(struct blockdev *b);
bool blockdev_read_only(struct blockdev *b);

enum blockdev_op { BLOCKDEV_READ, BLOCKDEV_WRITE, BLOCKDEV_ZERO, BLOCKDEV_DISCARD, BLOCKDEV_FLUSH };
enum { BLOCKDEV_FUA = 1, BLOCKDEV_UNMAP = 2 /* zero: may give the space back */ };

struct blockdev_request {
    enum blockdev_op op;
    unsigned flags;
    uint64_t offset, length; /* in range, or it ends with -EINVAL */
    const struct iovec *iov; /* read, write: together `length` bytes, there until done */
    int iovcnt;
    void (*done)(struct blockdev_request *r, int result); /* 0 or a negative errno; may free r */
    /* blockdev.c's, from submission to `done` */
    struct blockdev *device;
    struct blockdev_request *next; /* merged with this one, and goes on where it ends */
    struct iovec *merged;
    struct pool_job job;
};
void blockdev_submit(struct blockdev *b, struct blockdev_request *r);
/* Several at once: neighbours that go on where the one before ends may become one request of the graph. */
void blockdev_submit_all(struct blockdev *b, struct blockdev_request **r, unsigned count);
/* Returns when nothing submitted is under way. Not from `done`. */
void blockdev_drain(struct blockdev *b);

#endif
