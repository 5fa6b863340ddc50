/* Copying within an overlay that gets another backing file: what its own layer does not hold shall read
 * as before, so it is written into the overlay wherever the other chain reads differently.
 *
 * Where both chains rest on the same bytes of the same file nothing needs to be read.
 */
#include "copy.h"

#include <string.h>
#include <sys/stat.h>

#include "base/iszero.h"
#include "base/macros.h"

static bool same_file(const struct blk_node *a, const struct blk_node *b)
{
    struct stat x, y;

    if (a == b)
        return true;
    if (a->drv != b->drv || strcmp(a->drv->name, "file") != 0)
        return false;
    return stat(a->filename, &x) == 0 && stat(b->filename, &y) == 0 && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

static bool same_bytes(const struct blk_extent *a, const struct blk_extent *b)
{
    unsigned need = BLK_EXT_HOST | BLK_EXT_DATA;

    return (a->flags & need) == need && (b->flags & need) == need &&
           !((a->flags | b->flags) & BLK_EXT_COMPRESSED) && a->host_offset == b->host_offset &&
           same_file(a->host, b->host);
}

int rebase_run(const struct blk_copy_args *a, uint64_t off, uint64_t len, enum work_kind *kind,
               uint64_t *run)
{
    struct blk_extent mine, other = { .flags = BLK_EXT_ZERO };
    uint64_t size = a->other ? blk_size(a->other) : 0;
    int ret = blk_extents(a->dst, off, len, 0, &mine);

    if (ret < 0)
        return ret;
    *run = mine.length;
    *kind = WORK_SKIP;
    if ((mine.flags & BLK_EXT_ALLOCATED) && mine.depth == 0)
        return 0;
    if (off < size) {
        ret = blk_extents(a->other, off, MIN(*run, size - off), 0, &other);
        if (ret < 0)
            return ret;
        *run = other.length;
    }
    bool zero = mine.flags & BLK_EXT_ZERO, other_zero = other.flags & BLK_EXT_ZERO;
    if ((zero && other_zero) || same_bytes(&mine, &other))
        return 0;
    *kind = zero ? WORK_ZERO : WORK_DATA;
    return 0;
}

int rebase_read_other(const struct blk_copy_args *a, uint64_t off, uint8_t *buf, uint64_t len)
{
    uint64_t size = a->other ? blk_size(a->other) : 0;
    uint64_t there = off < size ? MIN(len, size - off) : 0;

    memset(buf + there, 0, len - there);
    return there ? blk_read(a->other, off, buf, there, 0) : 0;
}

static enum work_kind compare_one(const uint8_t *ours, const uint8_t *others, uint64_t len)
{
    if (memcmp(ours, others, len) == 0)
        return WORK_SKIP;
    return is_zero(ours, len) ? WORK_ZERO : WORK_DATA;
}

uint64_t rebase_compare(const uint8_t *ours, const uint8_t *others, uint64_t len, uint64_t granule,
                        enum work_kind *kind)
{
    uint64_t run = MIN(granule, len);

    *kind = compare_one(ours, others, run);
    while (run < len) {
        uint64_t next = MIN(granule, len - run);
        if (compare_one(ours + run, others + run, next) != *kind)
            break;
        run += next;
    }
    return run;
}
