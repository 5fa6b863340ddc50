/* What all disk front ends share: the options of a disk, and what becomes of a request that failed.
 *
 * A failed request is reported, ignored, or parked while the machine stands still (werror, rerror); parked ones are begun
 * again by disk_resume. Threads: as blockdev.h; no front end holds its lock when it submits, since `done` may come at once.
 */
#ifndef DEVICES_DISK_H
#define DEVICES_DISK_H

#include "base/options.h"
#include "device.h"
#include "emulator/blockdev.h"

#include <pthread.h>

struct disk_options {
    char *drive, *serial;
    uint64_t logical, physical, discard_granularity;
    int rerror, werror;
    bool write_cache;
};

extern const struct opt_choice disk_error_choices[];

/* Rows of a device's table; `m` is its struct disk. */
#define DISK_OPTIONS(owner, m)                                                           \
    { .name = "drive",                                                                   \
      .type = OPT_STRING,                                                                \
      .at = offsetof(owner, m.o.drive),                                                  \
      .help = "the drive or node that it shows" },                                       \
        { .name = "serial",                                                              \
          .type = OPT_STRING,                                                            \
          .at = offsetof(owner, m.o.serial),                                             \
          .help = "its serial number" },                                                 \
        { .name = "logical_block_size",                                                  \
          .type = OPT_SIZE,                                                              \
          .at = offsetof(owner, m.o.logical),                                            \
          .def = "512",                                                                  \
          .min = 512,                                                                    \
          .max = 4096,                                                                   \
          .help = "bytes of a block, 512 or 4096" },                                     \
        { .name = "physical_block_size",                                                 \
          .type = OPT_SIZE,                                                              \
          .at = offsetof(owner, m.o.physical),                                           \
          .def = "512",                                                                  \
          .min = 512,                                                                    \
          .max = 1 << 20,                                                                \
          .help = "bytes that are written at a time" },                                  \
        { .name = "discard_granularity",                                                 \
          .type = OPT_SIZE,                                                              \
          .at = offsetof(owner, m.o.discard_granularity),                                \
          .max = 1 << 30,                                                                \
          .help = "bytes that can be given back; 0: one block" },                        \
        { .name = "rerror",                                                              \
          .type = OPT_ENUM,                                                              \
          .at = offsetof(owner, m.o.rerror),                                             \
          .def = "auto",                                                                 \
          .choices = disk_error_choices,                                                 \
          .help = "what becomes of failed reads" },                                      \
        { .name = "werror",                                                              \
          .type = OPT_ENUM,                                                              \
          .at = offsetof(owner, m.o.werror),                                             \
          .def = "auto",                                                                 \
          .choices = disk_error_choices,                                                 \
          .help = "what becomes of failed writes" },                                     \
    {                                                                                    \
        .name = "write-cache", .type = OPT_BOOL, .at = offsetof(owner, m.o.write_cache), \
        .def = "on", .help = "whether the guest is to flush"                             \
    }

struct disk_request;

struct disk {
    struct disk_options o;
    struct blockdev *blockdev; /* NULL: not opened */
    const struct device_host *host;
    pthread_mutex_t lock;
    struct disk_request *parked; /* under lock; the newest first */
};

struct disk_request {
    struct blockdev_request r; /* op, flags, offset, length, iov, iovcnt are the front end's */
    struct disk *disk;
    /* 0 or a negative errno, -ECANCELED after disk_cancel. May free the request. */
    void (*done)(struct disk_request *r, int result);
    struct disk_request *next; /* while parked */
};

/* Takes the drive named in the options. write: not a read-only kind of device. */
int disk_open(struct disk *disk, struct device *d, bool write, struct error **err);
void disk_close(struct disk *disk);
void disk_submit_all(struct disk *disk, struct disk_request **r, unsigned count);
void disk_submit(struct disk *disk, struct disk_request *r);
void disk_drain(struct disk *disk);
/* Begins what was parked again. */
void disk_resume(struct disk *disk);
/* Nothing is under way when it returns; what was parked has ended with -ECANCELED. Without the front end's lock. */
void disk_cancel(struct disk *disk);

#endif
