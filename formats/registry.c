/* The one table of drivers. A program links what stands here; there are no constructors whose order
 * or absence nobody sees. */
#include "block/driver.h"
#include "block/driver_leaves.h"

/* Each format's one exported symbol. */
extern const struct driver raw_driver;
extern const struct driver qcow2_driver;
extern const struct driver vdi_driver;
extern const struct driver vpc_driver;
extern const struct driver vmdk_driver;
extern const struct driver gzip_driver;
extern const struct driver xz_driver;
extern const struct driver zstd_driver;
extern const struct driver nbd_driver; /* nbd/ */
extern const struct driver vhdx_driver;

const struct driver *const driver_table[] = {
    /* protocols */
    &file_driver,
    &host_device_driver,
    &null_co_driver,
    &null_aio_driver,
    &memory_driver,
    &nbd_driver,
    /* filters */
    &throttle_driver,
    &copy_on_read_driver,
    &compress_driver,
    &preallocate_driver,
    &blkdebug_driver,
    &blklogwrites_driver,
    &blkverify_driver,
    &delay_driver,
    &gzip_driver,
    &xz_driver,
    &zstd_driver,
    /* formats */
    &raw_driver,
    &qcow2_driver,
    &vdi_driver,
    &vpc_driver,
    &vmdk_driver,
    &vhdx_driver,
    NULL,
};
