/* Zeroing and giving space back without writing: fallocate on files, ioctls on block devices.
 *
 * "Not supported" is learned for the life of the descriptor, so that a file system which cannot is
 * asked once. */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/fs.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "file.h"

static bool is_refusal(int code)
{
    return code == EOPNOTSUPP || code == ENOSYS || code == ENOTTY;
}

/* 0, a negative errno, or -ENOTSUP which is noted in *learned. */
static int settle(int r, _Atomic bool *learned)
{
    if (r == 0)
        return 0;
    if (is_refusal(errno)) {
        atomic_store(learned, true);
        return -ENOTSUP;
    }
    /* This range does not suit, another may. */
    return errno == EINVAL ? -ENOTSUP : -errno;
}

static int allocate(struct file_state *s, int mode, uint64_t off, uint64_t len,
                    _Atomic bool *learned)
{
    int r;

    if (atomic_load_explicit(learned, memory_order_relaxed))
        return -ENOTSUP;
    do {
        r = fallocate(s->fd, mode, (off_t)off, (off_t)len);
    } while (r < 0 && errno == EINTR);
    return settle(r, learned);
}

static int punch(struct file_state *s, uint64_t off, uint64_t len)
{
    return allocate(s, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len, &s->no_punch);
}

static int device_ioctl(struct file_state *s, unsigned long what, uint64_t off, uint64_t len,
                        _Atomic bool *learned)
{
    uint64_t range[2] = { off, len };

    if (atomic_load_explicit(learned, memory_order_relaxed))
        return -ENOTSUP;
    return settle(ioctl(s->fd, what, range), learned);
}

/* All of the range lies within the file. */
static int zero_within(struct file_state *s, uint64_t off, uint64_t len, unsigned flags)
{
    int r = -ENOTSUP;

    if (flags & BLK_MAY_UNMAP)
        r = punch(s, off, len);
    if (r == -ENOTSUP)
        r = allocate(s, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, off, len, &s->no_zero_range);
    if (r == -ENOTSUP && s->device && !(flags & BLK_NO_FALLBACK))
        r = device_ioctl(s, BLKZEROOUT, off, len, &s->no_zeroout);
    return r;
}

/* Some of it lies past the end: the file grows by a hole. */
static int zero_growing(struct file_state *s, uint64_t off, uint64_t len, unsigned flags)
{
    uint64_t end = off + len;
    struct stat st;
    int r = 0;

    WRLOCK_SCOPE(&s->size_lock);
    if (fstat(s->fd, &st) < 0)
        return -errno;
    if (off < (uint64_t)st.st_size)
        r = zero_within(s, off, MIN(end, (uint64_t)st.st_size) - off, flags);
    if (r == 0 && end > (uint64_t)st.st_size && ftruncate(s->fd, (off_t)end) < 0)
        r = -errno;
    if (r == 0)
        file_raise_end(s, end);
    return r;
}

int file_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct file_state *s = node_state(n);
    int r;

    if (s->device || off + len <= atomic_load(&s->end))
        r = zero_within(s, off, len, flags);
    else
        r = zero_growing(s, off, len, flags);
    atomic_fetch_add(&s->holes.punches, 1);
    atomic_fetch_add(&s->holes.writes, 1); /* ZERO_RANGE fills a hole with unwritten space */
    if (r == 0 && (flags & BLK_FUA) && !node_no_flush(n))
        r = file_sync(n);
    return r;
}

int file_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct file_state *s = node_state(n);
    int r;

    if (s->device)
        r = device_ioctl(s, BLKDISCARD, off, len, &s->no_discard);
    else
        r = punch(s, off, len);
    atomic_fetch_add(&s->holes.punches, 1);
    return r;
}
