/* How a new image is laid out: header, refcount table, refcount blocks, L1 table, and when space is
 * preallocated L2 tables and data, all in one piece from the start of the file. */
#ifndef QCOW2_LAYOUT_H
#define QCOW2_LAYOUT_H

#include "qcow2.h"

struct qcow2_layout {
    uint32_t cluster_bits, refcount_order;
    uint32_t entry_bits, l1_shift; /* as in struct qcow2 */
    bool external;                 /* data lies in another file */
    uint64_t size;                 /* virtual, a multiple of 512 */
    uint64_t l1_entries;
    /* in clusters, in the order of the file; the header is one */
    uint64_t reftable, refblocks, l1, l2, data;
    uint64_t total;
};

/* The layout for a disk of `size` with these options. full: with L2 tables and data for the whole disk. An error when
 * the options make no image, -EFBIG when the format cannot hold it. */
int qcow2_layout_plan(struct qcow2_layout *lay, const struct qcow2_create_options *o, uint64_t size,
                      bool full, struct error **err);

#endif
