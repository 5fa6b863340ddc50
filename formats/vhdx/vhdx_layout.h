/* What stands where in a VHDX file ([MS-VHDX], called Spec here). All integers are little endian. */
#ifndef VHDX_LAYOUT_H
#define VHDX_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"

#define VHDX_MIB      (UINT64_C(1) << 20)
#define VHDX_MAX_SIZE (UINT64_C(64) << 40)
#define VHDX_PAGE     4096u /* what the log replaces at once */

/* The header section: the file's first MiB (Spec 2.2). */
enum {
    VHDX_HEADER_SLOT = 64 << 10,  /* the first header is here, the second one slot on */
    VHDX_REGION_SLOT = 192 << 10, /* so for the region tables */
    VHDX_SLOT = 64 << 10,
    VHDX_REGION_TABLE = 64 << 10, /* bytes that its checksum covers */
    VHDX_MAX_ENTRIES = 2047,      /* of a region or metadata table */
    VHDX_CREATOR = 512,           /* bytes behind the file's signature */
};

/* Fields of a header. */
enum {
    HDR_SIGNATURE = 0,
    HDR_CHECKSUM = 4,
    HDR_SEQUENCE = 8,
    HDR_FILE_WRITE = 16,
    HDR_DATA_WRITE = 32,
    HDR_LOG_GUID = 48,
    HDR_LOG_VERSION = 64,
    HDR_VERSION = 66,
    HDR_LOG_LENGTH = 68,
    HDR_LOG_OFFSET = 72,
};

/* Fields of a log entry (Spec 2.3). */
enum {
    LOG_SIGNATURE = 0,
    LOG_CHECKSUM = 4,
    LOG_LENGTH = 8,
    LOG_TAIL = 12,
    LOG_SEQUENCE = 16,
    LOG_DESCRIPTORS = 24,
    LOG_GUID = 32,
    LOG_FLUSHED = 48,
    LOG_LAST = 56,
    LOG_HEADER = 64, /* bytes; descriptors follow */
    LOG_DESCRIPTOR = 32,
};

#define SIG_FILE     "vhdxfile"
#define SIG_METADATA "metadata"
#define SIG_HEADER   0x64616568u /* "head" */
#define SIG_REGION   0x69676572u /* "regi" */
#define SIG_LOG      0x65676f6cu /* "loge" */
#define SIG_ZERO     0x6f72657au /* "zero" */
#define SIG_DESC     0x63736564u /* "desc" */
#define SIG_DATA     0x61746164u /* "data" */

/* Entries of the block allocation table (Spec 2.5.1). */
enum vhdx_state {
    BLOCK_NOT_PRESENT = 0,
    BLOCK_UNDEFINED = 1,
    BLOCK_ZERO = 2,
    BLOCK_UNMAPPED = 3,
    BLOCK_PRESENT = 6,
    BLOCK_PARTIAL = 7,
};
#define BAT_STATE    UINT64_C(7)
#define BAT_RESERVED UINT64_C(0xffff8)
#define BAT_OFFSET   (~(VHDX_MIB - 1))

/* Sectors that one sector bitmap block describes: a MiB of bits. */
#define VHDX_BITMAP_SECTORS (UINT64_C(1) << 23)

/* Metadata items (Spec 2.6). */
enum {
    META_TABLE = 64 << 10, /* items lie behind it */
    META_MAX_ITEM = 1 << 20,
    META_MAX_ALL = 1 << 20,
    META_FLAG_USER = 1,
    META_FLAG_DISK = 2,
    META_FLAG_REQUIRED = 4,
    PARAM_LEAVE_ALLOCATED = 1,
    PARAM_HAS_PARENT = 2,
};

struct vhdx_guid {
    uint8_t b[16]; /* as on disk */
};

extern const struct vhdx_guid vhdx_region_bat, vhdx_region_metadata;
extern const struct vhdx_guid vhdx_item_parameters, vhdx_item_size, vhdx_item_id, vhdx_item_logical,
    vhdx_item_physical, vhdx_item_parent, vhdx_locator_type;

static inline bool guid_equal(const struct vhdx_guid *a, const struct vhdx_guid *b)
{
    return memcmp(a->b, b->b, sizeof(a->b)) == 0;
}

static inline struct vhdx_guid guid_load(const uint8_t *from)
{
    struct vhdx_guid g;

    memcpy(g.b, from, sizeof(g.b));
    return g;
}

static inline bool guid_zero(const struct vhdx_guid *g)
{
    return guid_equal(g, &(struct vhdx_guid){ { 0 } });
}

/* A new random one. */
int vhdx_guid_new(struct vhdx_guid *out);
/* "{b04aefb7-d19e-4a81-b789-25b8e9445913}" with any case, braces or not; false: it is none. */
bool vhdx_guid_parse(const char *text, struct vhdx_guid *out);
enum { VHDX_GUID_TEXT = 39 };
void vhdx_guid_print(const struct vhdx_guid *g, char out[VHDX_GUID_TEXT]);

#endif
