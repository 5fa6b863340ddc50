/* Ranges of a file become ranges of the node. */
#include <errno.h>
#include <linux/falloc.h>
#include <time.h>

#include "internal.h"

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/macros.h"

/* A fully fragmented disk has more runs than a stat may wait for: the rest is taken to be like the part seen. */
enum { USAGE_RUNS = 8192, USAGE_SECONDS = 1 };

static void changed(struct fuse_export *x)
{
    atomic_fetch_add(&x->epoch, 1);
}

/* Makes the disk at least so long. */
static int grow(struct fuse_export *x, uint64_t size)
{
    LOCK_SCOPE(&x->growing);
    if (blk_size(x->node) >= size)
        return 0;
    return blk_resize(x->node, size, BLK_PREALLOC_OFF, NULL);
}

/* Is [off, off + len) in the file, or can it be made to be? */
static int make_room(struct fuse_export *x, const struct name *file, uint64_t off, uint64_t len)
{
    uint64_t end;

    if (!checked_add(off, len, &end) || end > INT64_MAX)
        return -EFBIG;
    if (end <= file_size(x, file))
        return 0;
    return x->growable && file->whole ? grow(x, end) : -ENOSPC;
}

int data_write(struct fuse_export *x, const struct name *file, uint64_t off, const void *buf,
               size_t len, bool durable)
{
    int r = make_room(x, file, off, len);

    if (r == 0)
        r = blk_write(x->node, file->offset + off, buf, len, durable ? BLK_FUA : 0);
    changed(x);
    return r;
}

int data_fallocate(struct fuse_export *x, const struct name *file, int mode, uint64_t off,
                   uint64_t len)
{
    bool keep = mode & FALLOC_FL_KEEP_SIZE;
    int what = mode & ~FALLOC_FL_KEEP_SIZE;
    uint64_t size = file_size(x, file);

    /* Plain allocation inside the disk promises space, which not every format can keep free; the C library
     * then writes zeroes where nothing is, which every one can. */
    if (what == 0 && (keep || off + len <= size))
        return -EOPNOTSUPP;
    if (what == 0)
        return make_room(x, file, off, len);
    if (what != FALLOC_FL_ZERO_RANGE && !(what == FALLOC_FL_PUNCH_HOLE && keep))
        return -EOPNOTSUPP;
    if (!keep) {
        int r = make_room(x, file, off, len);
        if (r < 0)
            return r;
        size = file_size(x, file);
    }
    if (off >= size)
        return 0;
    len = MIN(len, size - off);
    int r = blk_zero(x->node, file->offset + off, len,
                     what == FALLOC_FL_PUNCH_HOLE ? BLK_MAY_UNMAP : 0);
    changed(x);
    return r;
}

int data_resize(struct fuse_export *x, const struct name *file, uint64_t size)
{
    uint64_t now = file_size(x, file);

    /* Opening with O_TRUNC, as dd and cp do, comes here as size 0. Devices ignore that, and so do these files:
     * a disk is never cut, which by mistake would cost all of it. */
    if (size == now || size == 0)
        return 0;
    if (size < now)
        return -EPERM;
    if (!x->growable || !file->whole)
        return -ENOSPC;
    int r = size > INT64_MAX ? -EFBIG : grow(x, size);
    changed(x);
    return r;
}

static bool is_data(const struct blk_extent *e)
{
    return (e->flags & BLK_EXT_DATA) && !(e->flags & BLK_EXT_ZERO);
}

int data_seek(struct fuse_export *x, const struct name *file, uint64_t off, bool data,
              uint64_t *out)
{
    uint64_t size = file_size(x, file);

    if (off >= size)
        return -ENXIO;
    while (off < size) {
        struct blk_extent e;
        int r = blk_extents(x->node, file->offset + off, size - off, BLK_HOLES, &e);
        if (r < 0)
            return r;
        if (is_data(&e) == data)
            break;
        off += e.length;
    }
    if (off >= size && data)
        return -ENXIO;
    *out = MIN(off, size);
    return 0;
}

static uint64_t count_usage(struct fuse_export *x, const struct name *file)
{
    uint64_t size = file_size(x, file), at = 0, used = 0;

    for (unsigned n = 0; n < USAGE_RUNS && at < size; n++) {
        struct blk_extent e;
        if (blk_extents(x->node, file->offset + at, size - at, BLK_HOLES, &e) < 0)
            break;
        if (is_data(&e))
            used += e.length;
        at += e.length;
    }
    if (at < size && at > 0)
        used = (uint64_t)((double)used / (double)at * (double)size);
    return at == 0 ? size : used;
}

uint64_t data_usage(struct fuse_export *x, fuse_ino_t ino)
{
    const struct name *file = name_of(x, ino);
    unsigned epoch = atomic_load(&x->epoch);
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    {
        LOCK_SCOPE(&x->lock);
        const struct usage *u = &x->usage[ino - 1];
        if (u->known && (u->epoch == epoch || now.tv_sec - u->at < USAGE_SECONDS))
            return u->bytes;
    }
    uint64_t bytes = count_usage(x, file);
    LOCK_SCOPE(&x->lock);
    x->usage[ino - 1] = (struct usage){ bytes, epoch, now.tv_sec, true };
    return bytes;
}
