/* VirtualBox's disk images (VDI, version 1.1): a header, a block map, blocks.
 *
 *      header | block map | (data) block 0, block 1, ...
 *
 * A block map entry is the number of a block in the file, counted from where the data begin. All is little-endian.
 * The header also says how many blocks the file has; VirtualBox and QEMU put their next block there. So that
 * number is never below the highest block in use plus one: it is raised ahead of use, and when the image
 * is closed the file is dense and the number exact.
 *
 * States on the disk (bat.h has the order of writing):
 *  V1  All header fields that change together lie in the first sector, which is written as one.
 *  V2  The block map in force is the one the header names; a new one is complete on the disk before.
 */
#ifndef VDI_H
#define VDI_H

#include "block/bat.h"

#define VDI_SIGNATURE 0xbeda107fu
#define VDI_VERSION   0x00010001u
#define VDI_FREE      0xffffffffu /* not in this image: the parent's, or zeroes */
#define VDI_ZERO      0xfffffffeu /* reads as zeroes */

enum vdi_type { VDI_DYNAMIC = 1, VDI_STATIC = 2, VDI_DIFFERENCING = 4 };

enum {
    VDI_HEADER = 512,
    VDI_HEADER_SIZE = 0x180, /* as QEMU writes it */
    VDI_UUID = 16,
    VDI_MIN_BLOCK = 512,
    VDI_MAX_BLOCK = 1 << 30,
    VDI_BLOCK = 1 << 20,

    AT_SIGNATURE = 0x40,
    AT_VERSION = 0x44,
    AT_HEADER_SIZE = 0x48,
    AT_TYPE = 0x4c,
    AT_MAP_OFFSET = 0x154,
    AT_DATA_OFFSET = 0x158,
    AT_SECTOR_SIZE = 0x168,
    AT_DISK_SIZE = 0x170,
    AT_BLOCK_SIZE = 0x178,
    AT_BLOCK_EXTRA = 0x17c,
    AT_BLOCKS = 0x180,
    AT_ALLOCATED = 0x184,
    AT_UUID = 0x188,
    AT_MODIFIED_UUID = 0x198,
    AT_PARENT_UUID = 0x1a8,
    AT_PARENT_MODIFIED = 0x1b8,
};

struct vdi {
    struct bat bat; /* first: the driver's members of bat.h find it there */
    uint8_t header[VDI_HEADER];
    enum vdi_type type;
    uint64_t size;
};

struct vdi_create {
    uint64_t size, block_size;
    bool is_static, static_given;
    int preallocation;
    char *backing_file, *backing_fmt;
};

extern const struct driver vdi_driver;
extern const struct opt_def vdi_create_table[];

static inline uint64_t vdi_map_bytes(uint64_t blocks)
{
    return (blocks * 4 + 511) / 512 * 512;
}

/* vdi.c. Exclusive: writes the first sector as v->header has it. */
int vdi_write_header(struct vdi *v);
/* The file holds blocks up to `end`: what the header says of it. */
void vdi_claim(struct vdi *v, uint64_t end);
/* Takes what the header says into v->bat: after opening and after a change. */
void vdi_set_geometry(struct vdi *v);

/* create.c */
/* A name that VDI can state: of a file in the image's own folder. */
int vdi_check_backing(const char *name, const char *format, bool is_static, struct error **err);
int vdi_check_create(const void *options, struct error **err);
int vdi_create(struct blk_node *file, const void *options, struct error **err);
int vdi_measure(const void *options, uint64_t size, struct blk_node *src, struct blk_measure *out,
                struct error **err);

/* resize.c */
int vdi_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err);

#endif
