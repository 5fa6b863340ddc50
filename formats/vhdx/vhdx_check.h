/* Check and repair: check.c finds, repair.c mends. */
#ifndef VHDX_CHECK_H
#define VHDX_CHECK_H

#include "vhdx.h"

struct vcheck {
    struct vhdx *v;
    unsigned fix; /* enum blk_fix */
    struct blk_check *out;
    const struct blk_check_hooks *hooks;
    struct error **err;
    uint64_t units;     /* MiB that the file has, the last one whole or not */
    uint64_t end;       /* MiB behind all that is in use */
    struct bitmap used; /* MiB that something refers to */
    bool changed;       /* entries in memory */
};

void vhdx_check_say(struct vcheck *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* One finding that counts as a corruption; true: it is to be mended. */
bool vhdx_check_corrupt(struct vcheck *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

int vhdx_check_mend_header(struct vcheck *c);
int vhdx_check_mend_regions(struct vcheck *c);
/* The block gets storage of its own, with what it reads now. */
int vhdx_check_move_block(struct vcheck *c, uint64_t index);
/* Nothing useful is there: the block reads as zeroes. */
void vhdx_check_drop_block(struct vcheck *c, uint64_t index);
/* [unit, unit + count) is given back. */
int vhdx_check_punch(struct vcheck *c, uint64_t unit, uint64_t count);
/* What was changed in memory becomes durable. */
int vhdx_check_write_back(struct vcheck *c);

#endif
