/* What the steps of check share. */
#ifndef VMDK_CHECK_H
#define VMDK_CHECK_H

#include "base/bitmap.h"
#include "vmdk.h"

struct vcheck {
    struct vmdk *v;
    struct vmdk_extent *e; /* the one at hand */
    unsigned fix;
    struct blk_check *out;
    const struct blk_check_hooks *hooks;
    struct error **err;
    unsigned messages;

    uint64_t file_len;
    struct bitmap used, meta; /* sectors of the file */
    struct bitmap *skip;      /* tables that are not where one can be */
    uint64_t end;             /* of what is used */
    uint64_t last;            /* where the last grain ended */
};

void vmdk_check_say(struct vcheck *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool vmdk_check_fixes(struct vcheck *c, unsigned what);
bool vmdk_check_inside(const struct vcheck *c, uint64_t offset, uint64_t len);
int vmdk_check_write(struct vcheck *c, uint64_t offset, const void *buf, size_t len);

#endif
