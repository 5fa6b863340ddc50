/* Persistent dirty bitmaps: their layout on the disk and what is asked of them. */
#ifndef QCOW2_BITMAP_H
#define QCOW2_BITMAP_H

#include <jansson.h>
#include <stdint.h>

#include "base/bitmap.h"

struct blk_node;
struct error;
struct qcow2;

enum {
    QCOW2_BITMAPS_EXT = 24,  /* bytes of the header extension */
    QCOW2_BITMAP_ENTRY = 24, /* of an entry of the directory, without name and extra data */
    QCOW2_BITMAP_DIRECTORY_MAX = 64 << 20,
    QCOW2_BITMAP_IN_USE = 1, /* flags */
    QCOW2_BITMAP_AUTO = 2,
};
#define QCOW2_BITMAP_TABLE_MAX UINT64_C(0x8000000) /* entries */
#define QCOW2_BITMAP_OFFSET    UINT64_C(0x00fffffffffffe00)

/* For info: [{"flags": [...], "name": ..., "granularity": ...}]; NULL: there are none. */
json_t *qcow2_bitmaps_json(struct qcow2 *q);
/* The driver's bitmap_load. */
int qcow2_bitmap_load(struct blk_node *n, const char *name, struct bitmap *bits,
                      unsigned *granularity_bits, struct error **err);

#endif
