/* The drivers that the core itself brings, for the table in formats/registry.c. */
#ifndef BLOCK_DRIVER_LEAVES_H
#define BLOCK_DRIVER_LEAVES_H

struct driver;

extern const struct driver file_driver;        /* regular files and block devices */
extern const struct driver host_device_driver; /* the same, block devices only */
extern const struct driver null_co_driver;
extern const struct driver null_aio_driver; /* another name for null-co */
extern const struct driver memory_driver;
extern const struct driver throttle_driver;
extern const struct driver copy_on_read_driver;
extern const struct driver compress_driver;
extern const struct driver preallocate_driver;

/* instruments for tests */
extern const struct driver blkdebug_driver;
extern const struct driver blklogwrites_driver;
extern const struct driver blkverify_driver;
extern const struct driver delay_driver;

#endif
