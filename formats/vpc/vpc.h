/* Virtual PC's and Hyper-V's disk images (VHD). All numbers are big-endian.
 *
 *      fixed          the disk | footer
 *      dynamic        copy of the footer | dynamic header | block table | records ... | footer
 *      differencing   the same, and the parent's names among it
 *
 * A record is a sector bitmap, in whole sectors, and a block. A bit that is not set says: this sector was never
 * written, it reads as zeroes, or as the parent's. We set all bits when a dynamic image gets a record, since
 * not every reader looks at them; in a differencing image we set those of the sectors that are written.
 *
 * The footer is written where the file is to end, which makes it longer at the same time; what was a footer before
 * becomes part of a bitmap that is written anyway. The copy at the beginning is the one in force.
 *
 * States on the disk (bat.h has the order of writing):
 *  P1  What a change of the dynamic header changes lies in its first sector, which is written as one.
 *  P2  When size changes, the copy of the footer is written first, then the footer.
 *  P3  The copy of the footer is never written but when the size changes. So an image always opens: a power cut
 *      may cost the footer at the end, which the next writer puts there again.
 */
#ifndef VPC_H
#define VPC_H

#include "block/bat.h"

enum vpc_type { VPC_FIXED = 2, VPC_DYNAMIC = 3, VPC_DIFFERENCING = 4 };

enum {
    VPC_FOOTER = 512,
    VPC_HEADER = 1024,
    VPC_BLOCK = 2 << 20,
    VPC_MIN_BLOCK = 512,
    VPC_MAX_BLOCK = 256 << 20,
    VPC_UUID = 16,
    VPC_LOCATORS = 8,

    /* of the footer */
    AT_FEATURES = 8,
    AT_VERSION = 12,
    AT_HEADER_OFFSET = 16,
    AT_TIME = 24,
    AT_CREATOR = 28,
    AT_CREATOR_VERSION = 32,
    AT_CREATOR_OS = 36,
    AT_ORIGINAL_SIZE = 40,
    AT_SIZE = 48,
    AT_CYLINDERS = 56,
    AT_HEADS = 58,
    AT_SECTORS = 59,
    AT_TYPE = 60,
    AT_CHECKSUM = 64,
    AT_UUID = 68,

    /* of the dynamic header */
    AT_NEXT = 8,
    AT_TABLE_OFFSET = 16,
    AT_HEADER_VERSION = 24,
    AT_ENTRIES = 28,
    AT_BLOCK_SIZE = 32,
    AT_HEADER_CHECKSUM = 36,
    AT_PARENT_UUID = 40,
    AT_PARENT_TIME = 56,
    AT_PARENT_NAME = 64,
    PARENT_NAME_BYTES = 512,
    AT_LOCATOR = 576,
    LOCATOR_BYTES = 24,
    /* of a locator */
    LOC_CODE = 0,
    LOC_SPACE = 4,
    LOC_LENGTH = 8,
    LOC_OFFSET = 16,
};

#define VPC_W2RU 0x57327275u /* a relative name, UTF-16 */
#define VPC_W2KU 0x57326b75u /* an absolute one */
#define VPC_MACX 0x4d616358u /* a file URL */

/* 65535 cylinders, 16 heads, 255 sectors: "larger than geometry can tell". */
#define VPC_MAX_CHS     (UINT64_C(65535) * 16 * 255)
#define VPC_MAX_SECTORS UINT64_C(0xff000000) /* 2040 GiB */
#define VPC_FREE        0xffffffffu

struct vpc {
    struct bat bat; /* first: the driver's members of bat.h find it there */
    uint8_t footer[VPC_FOOTER], header[VPC_HEADER];
    uint64_t header_offset, size;
    enum vpc_type type;
    int size_calc;
    bool copy_lost, footer_lost, footer_differs;
};

struct vpc_options {
    int size_calc;
};
enum { SIZE_AUTO, SIZE_CHS, SIZE_CURRENT };

struct vpc_create {
    uint64_t size, align_size, block_size;
    int subformat;
    bool force_size;
    char *backing_file, *backing_fmt;
};

extern const struct driver vpc_driver;
extern const struct opt_def vpc_create_table[];

/* ---- geometry.c ------------------------------------------------------------------------------- */

struct vpc_chs {
    uint16_t cylinders;
    uint8_t heads, sectors;
};
struct vpc_chs vpc_geometry(uint64_t sectors);
static inline uint64_t vpc_chs_sectors(struct vpc_chs g)
{
    return (uint64_t)g.cylinders * g.heads * g.sectors;
}
/* The least number of sectors from `sectors` on that a geometry tells; beyond what geometry can tell, the same. */
uint64_t vpc_round_to_chs(uint64_t sectors, struct vpc_chs *out);
/* The size that the footer means. */
uint64_t vpc_footer_size(const uint8_t *footer, int size_calc);
/* Size and geometry, and the creator where geometry cannot tell the size. The checksum too. */
void vpc_set_size(uint8_t *footer, uint64_t size, bool force);

uint32_t vpc_checksum(const uint8_t *bytes, size_t len, size_t at);
void vpc_sign(uint8_t *bytes, size_t len, size_t at);

static inline uint32_t vpc_bitmap_bytes(uint32_t block_size)
{
    return (block_size / 512 + 4095) / 4096 * 512;
}

/* ---- vpc.c: no request in flight ------------------------------------------------------------------ */

/* Takes what the header says into v->bat. */
void vpc_set_geometry(struct vpc *v);
/* Which parts of the file are no records. 0 or an error. */
int vpc_note_fixed(struct vpc *v, struct error **err);

/* ---- parent.c --------------------------------------------------------------------------------------- */

int vpc_find_parent(struct vpc *v, struct error **err);
int vpc_backing_opened(struct blk_node *n, struct error **err);
int vpc_change_backing(struct blk_node *n, const char *filename, const char *format,
                       struct error **err);
/* In create: the name goes into the header and into a locator of 512 bytes multiples at `offset`, *locator (to be
 * freed), *bytes long. */
int vpc_name_parent(uint8_t *header, const char *name, uint64_t offset, uint8_t **locator,
                    size_t *bytes, struct error **err);

/* ---- map.c ------------------------------------------------------------------------------------------- */

int vpc_map_read(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                 struct mapping *out);
int vpc_write_begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                    uint64_t encoded, struct write_plan *p);
int vpc_write_end(struct blk_node *n, struct write_plan *p, int result);
int vpc_zero_range(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
int vpc_discard_range(struct blk_node *n, uint64_t off, uint64_t len);

/* resize.c: the header at this place, which is on the disk, is the one from now on, and has a parent. */
int vpc_use_header(struct vpc *v, const uint8_t *header, uint64_t place);
/* resize.c: the block table moves to `end` if it lies behind that, and there is room for it in between. */
int vpc_lower(struct bat *b, uint64_t end);

/* ---- create.c, resize.c --------------------------------------------------------------------------------- */

int vpc_check_create(const void *options, struct error **err);
int vpc_create(struct blk_node *file, const void *options, struct error **err);
int vpc_measure(const void *options, uint64_t size, struct blk_node *src, struct blk_measure *out,
                struct error **err);
int vpc_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err);

#endif
