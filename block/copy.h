/* What copy.c and its kinds of copies share. */
#ifndef BLOCK_COPY_H
#define BLOCK_COPY_H

#include "node.h"

enum work_kind { WORK_DATA, WORK_ZERO, WORK_SKIP };

/* copy_rebase.c: the kind of the overlay's run at off, and its length. */
int rebase_run(const struct blk_copy_args *a, uint64_t off, uint64_t len, enum work_kind *kind,
               uint64_t *run);

/* Reads what the other chain has at off into buf; zeroes behind its end. */
int rebase_read_other(const struct blk_copy_args *a, uint64_t off, uint8_t *buf, uint64_t len);

/* The length of the run at the start of ours that is to be treated alike, in whole granules (of the disk, off
 * being a multiple) but for the end; and how: WORK_SKIP where both are the same. */
uint64_t rebase_compare(const uint8_t *ours, const uint8_t *others, uint64_t len, uint64_t granule,
                        enum work_kind *kind);

#endif
