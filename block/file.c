/* Leaf: regular files and block devices.
 *
 * Data operations run in parallel without a lock, with two exceptions:
 *
 * 1. Growing. A zero request past the end of the file is done by ftruncate, which would cut off
 * what another thread just wrote farther out. So whoever may grow the file holds size_lock shared
 * and ftruncate holds it exclusively. `end` is a lower bound of the file's length; it falls only in
 * resize, which runs alone.
 * 2. The hole cache, see file.h: its counters are bumped after the file has changed.
 *
 * A failed sync is remembered: the kernel reports lost pages once and then forgets them, so a later
 * sync that succeeds proves nothing about earlier writes.
 */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "base/iszero.h"
#include "base/macros.h"
#include "base/round.h"
#include "block/driver_leaves.h"

/* Pieces handed to the kernel at once after a short transfer. */
enum { PIECES = 128 };

/* ---- reading and writing -------------------------------------------------------------------- */

/* One call for as much as the kernel takes. Answers bytes or a negative errno. */
static ssize_t transfer_once(struct file_state *s, bool write, uint64_t off,
                             const struct iovec *iov, int iovcnt, int rwf)
{
    ssize_t r;

    do {
        if (write) {
            r = rwf ? pwritev2(s->fd, iov, iovcnt, (off_t)off, rwf)
                    : pwritev(s->fd, iov, iovcnt, (off_t)off);
        } else {
            r = rwf ? preadv2(s->fd, iov, iovcnt, (off_t)off, rwf)
                    : preadv(s->fd, iov, iovcnt, (off_t)off);
        }
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

/* Moves all of len, calling as often as it takes. *moved gets what was done also on failure; a read
 * that meets the end of the file succeeds with less. */
static int transfer(struct blk_node *n, bool write, uint64_t off, const struct iovec *iov,
                    int iovcnt, uint64_t len, int rwf, uint64_t *moved)
{
    struct file_state *s = node_state(n);
    struct iov_cursor at = iov_begin(iov, iovcnt);
    struct iovec pieces[PIECES];

    *moved = 0;
    while (*moved < len) {
        uint64_t asked = len - *moved;
        bool whole = *moved == 0 && iovcnt <= IOV_MAX;
        ssize_t r;

        if (whole) {
            r = transfer_once(s, write, off, iov, iovcnt, rwf);
        } else {
            struct iov_cursor next = at;
            int count = iov_slice_some(&next, &asked, pieces, PIECES);

            r = transfer_once(s, write, off + *moved, pieces, count, rwf);
        }
        if (r < 0)
            return (int)r;
        if (r == 0)
            return write ? -ENOSPC : 0;
        *moved += (uint64_t)r;
        iov_skip(&at, (uint64_t)r);
        /* Direct reads stop at the end of the file, wherever that is; from there on the kernel
         * would refuse the offset. */
        if (!write && s->direct && !is_aligned(off + *moved, node_limits(n)->align))
            return 0;
    }
    return 0;
}

static int file_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                       uint64_t len, unsigned flags)
{
    struct file_state *s = node_state(n);
    bool nowait = (flags & BLK_NOWAIT) && !s->in_memory;
    uint64_t moved;
    int r;

    if (nowait && (s->direct || atomic_load_explicit(&s->no_nowait, memory_order_relaxed)))
        return -EAGAIN;
    r = transfer(n, false, off, iov, iovcnt, len, nowait ? RWF_NOWAIT : 0, &moved);
    if (nowait && (r == -EOPNOTSUPP || r == -ENOSYS)) {
        atomic_store(&s->no_nowait, true);
        return -EAGAIN;
    }
    if (r == 0 && moved < len) {
        struct iov_cursor rest = iov_begin(iov, iovcnt);

        iov_skip(&rest, moved);
        iov_fill(&rest, 0, len - moved);
    }
    return r;
}

void file_raise_end(struct file_state *s, uint64_t end)
{
    uint64_t known = atomic_load(&s->end);

    while (known < end && !atomic_compare_exchange_weak(&s->end, &known, end)) {
    }
}

int file_sync(struct blk_node *n)
{
    struct file_state *s = node_state(n);
    int r = atomic_load(&s->sync_error);

    if (r)
        return -r;
    while (fdatasync(s->fd) < 0) {
        if (errno == EINVAL || errno == EROFS)
            return 0; /* special files without anything to sync */
        if (errno != EINTR) {
            r = errno;
            atomic_store(&s->sync_error, r);
            return -r;
        }
    }
    return 0;
}

/* Writes and, when asked, makes it durable in the same call. */
static int write_through(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                         uint64_t len, bool durable)
{
    struct file_state *s = node_state(n);
    uint64_t moved;
    int r;

    if (durable && atomic_load(&s->sync_error))
        return -atomic_load(&s->sync_error);
    if (durable && !atomic_load_explicit(&s->no_dsync, memory_order_relaxed)) {
        r = transfer(n, true, off, iov, iovcnt, len, RWF_DSYNC, &moved);
        if (r == -EIO) {
            /* Maybe of earlier writes, and then told only once. */
            atomic_store(&s->sync_error, EIO);
        }
        if (r != -EOPNOTSUPP && r != -ENOSYS)
            return r;
        atomic_store(&s->no_dsync, true);
    }
    r = transfer(n, true, off, iov, iovcnt, len, 0, &moved);
    return r == 0 && durable ? file_sync(n) : r;
}

static int file_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                        uint64_t len, unsigned flags)
{
    struct file_state *s = node_state(n);
    bool durable = (flags & BLK_FUA) && !node_no_flush(n);
    int r;

    if (flags & BLK_NOWAIT)
        return -EAGAIN;
    if (s->device || off + len <= atomic_load_explicit(&s->end, memory_order_relaxed)) {
        r = write_through(n, off, iov, iovcnt, len, durable);
    } else {
        RDLOCK_SCOPE(&s->size_lock);
        r = write_through(n, off, iov, iovcnt, len, durable);
        if (r == 0)
            file_raise_end(s, off + len);
    }
    atomic_fetch_add(&s->holes.writes, 1);
    return r;
}

static int file_flush(struct blk_node *n)
{
    return node_no_flush(n) ? 0 : file_sync(n);
}

/* ---- size ----------------------------------------------------------------------------------- */

static int64_t file_actual_size(struct blk_node *n)
{
    struct file_state *s = node_state(n);
    struct stat st;

    if (fstat(s->fd, &st) < 0)
        return -errno;
    return (int64_t)st.st_blocks * 512;
}

static int file_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc,
                       struct error **err)
{
    struct file_state *s = node_state(n);
    uint64_t now;
    int r = file_length(s->fd, s->device, &now);

    if (r < 0)
        return error_set(err, -r, "%s: its size cannot be read: %s", blk_filename(n), strerror(-r));
    if (s->device) {
        return size <= now ? 0
                           : error_set(err, ENOTSUP,
                                       "%s: a block device cannot grow: it has %" PRIu64
                                       " bytes, %" PRIu64 " were asked for",
                                       blk_filename(n), now, size);
    }
    r = file_set_length(s->fd, blk_filename(n), now, size, prealloc, err);
    if (r == 0)
        atomic_store(&s->end, size);
    atomic_fetch_add(&s->holes.writes, 1);
    atomic_fetch_add(&s->holes.punches, 1);
    return r;
}

/* ---- open and close ------------------------------------------------------------------------- */

struct file_options {
    char *filename;
    int locking;
    int aio;
};

static const struct opt_choice locking_choices[] = {
    { "auto", LOCKING_AUTO }, { "on", LOCKING_ON }, { "off", LOCKING_OFF }, { NULL, 0 }
};

static const struct opt_choice aio_choices[] = {
    { "threads", 0 }, { "native", 1 }, { "io_uring", 2 }, { NULL, 0 }
};

static const struct opt_def file_options[] = {
    { .name = "filename",
      .type = OPT_STRING,
      .at = offsetof(struct file_options, filename),
      .help = "path of the file" },
    { .name = "locking",
      .type = OPT_ENUM,
      .at = offsetof(struct file_options, locking),
      .def = "auto",
      .choices = locking_choices,
      .help = "lock the file against other programs' use; auto: where the file system can" },
    { .name = "aio",
      .type = OPT_ENUM,
      .at = offsetof(struct file_options, aio),
      .def = "threads",
      .choices = aio_choices,
      .help = "accepted for compatibility; I/O is always blocking calls on many threads" },
    OPT_END,
};

/* What can be no disk image is refused before open, which may hang on it. */
static int refuse_kind(const char *filename, mode_t mode, bool device_only, struct error **err)
{
    const char *kind = S_ISDIR(mode)    ? "a directory"
                       : S_ISFIFO(mode) ? "a pipe"
                       : S_ISSOCK(mode) ? "a socket"
                       : S_ISCHR(mode)  ? "a character device"
                                        : NULL;

    if (kind) {
        return error_set(err, S_ISDIR(mode) ? EISDIR : EINVAL,
                         "%s: is %s, not a file or block device", filename, kind);
    }
    if (device_only && !S_ISBLK(mode)) {
        return error_set(err, ENOTBLK, "%s: is not a block device: use the driver 'file'",
                         filename);
    }
    return 0;
}

static int refuse_open(struct blk_node *n, const char *filename, int code, struct error **err)
{
    if (code == EINVAL && node_direct(n)) {
        return error_set(err, code,
                         "%s: its file system does not support direct I/O (cache modes none and "
                         "directsync): use cache mode writeback",
                         filename);
    }
    return error_set(err, code, "%s: could not be opened for %s: %s", filename,
                     node_writable(n) ? "writing" : "reading", strerror(code));
}

static int open_descriptor(struct blk_node *n, const char *filename, bool device_only,
                           struct error **err)
{
    struct file_state *s = node_state(n);
    struct statfs fs;
    int flags = O_CLOEXEC | O_NOCTTY | (node_writable(n) ? O_RDWR : O_RDONLY);
    struct stat st;
    int r;

    if (stat(filename, &st) < 0)
        return refuse_open(n, filename, errno, err);
    r = refuse_kind(filename, st.st_mode, device_only, err);
    if (r < 0)
        return r;
    s->fd = open(filename, flags | (node_direct(n) ? O_DIRECT : 0));
    if (s->fd < 0 || fstat(s->fd, &st) < 0)
        return refuse_open(n, filename, errno, err);
    s->device = S_ISBLK(st.st_mode);
    if (s->device)
        node_set_fixed_size(n);
    s->direct = node_direct(n);
    s->in_memory = !s->device && fstatfs(s->fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
    return refuse_kind(filename, st.st_mode, device_only, err);
}

static int learn_size_and_limits(struct blk_node *n, const char *filename, struct error **err)
{
    struct file_state *s = node_state(n);
    uint64_t size;
    int r = file_length(s->fd, s->device, &size);

    if (r < 0)
        return error_set(err, -r, "%s: its size cannot be read: %s", filename, strerror(-r));
    if (s->direct) {
        r = file_probe_direct(s->fd, s->device, node_limits(n));
        if (r < 0) {
            return error_set(err, -r, "%s: no alignment suits its direct I/O: %s", filename,
                             strerror(-r));
        }
    }
    atomic_store(&s->end, size);
    node_set_size(n, size);
    return 0;
}

static void release(struct file_state *s)
{
    hole_cache_destroy(&s->holes);
    rwlock_destroy(&s->size_lock);
    if (s->fd >= 0) {
        close(s->fd);
        s->fd = -1;
    }
}

static int open_any(struct blk_node *n, const struct file_options *o, bool device_only,
                    struct error **err)
{
    struct file_state *s = node_state(n);
    int r;

    if (!o->filename || !o->filename[0]) {
        return error_set(err, EINVAL, "driver %s needs a file name: give filename=NAME",
                         blk_format(n));
    }
    s->fd = -1;
    hole_cache_init(&s->holes);
    /* A steady stream of growing writes must not keep ftruncate out. */
    rwlock_init(&s->size_lock);

    r = open_descriptor(n, o->filename, device_only, err);
    s->shared = (node_open_flags(n) & BLK_OPEN_SHARED) || o->locking == LOCKING_OFF;
    if (r == 0 && !(node_open_flags(n) & BLK_OPEN_SHARED))
        r = file_lock(s->fd, o->filename, node_writable(n), (enum file_locking)o->locking, err);
    if (r == 0)
        r = learn_size_and_limits(n, o->filename, err);
    if (r == 0)
        r = node_set_filename(n, o->filename);
    if (r < 0)
        release(s);
    return r;
}

static int file_open(struct blk_node *n, const void *options, struct error **err)
{
    return open_any(n, options, false, err);
}

static int host_device_open(struct blk_node *n, const void *options, struct error **err)
{
    return open_any(n, options, true, err);
}

/* Direct writes are whole blocks: the last one may have made the file longer than the node is. Cuts
 * off such a rest when it is less than a block and zero. */
static void cut_padding(struct blk_node *n)
{
    struct file_state *s = node_state(n);
    uint32_t align = node_limits(n)->align, mem_align = node_limits(n)->mem_align;
    uint64_t size = blk_size(n), length;
    _cleanup_free_ unsigned char *block = NULL;
    struct iovec iov = { .iov_len = align };

    if (!s->direct || s->device || !node_writable(n) || is_aligned(size, align) ||
        file_length(s->fd, false, &length) < 0 || length != align_up(size, align))
        return;
    block = aligned_alloc(mem_align, align_up(align, mem_align));
    if (!block)
        return;
    iov.iov_base = block;
    if (file_preadv(n, align_down(size, align), &iov, 1, align, 0) == 0 &&
        is_zero(block + size % align, align - size % align) && ftruncate(s->fd, (off_t)size) < 0)
        return; /* the rest stays: the file then is longer by some zeroes */
}

static int file_close(struct blk_node *n, struct error **err)
{
    (void)err;
    cut_padding(n);
    release(node_state(n));
    return 0;
}

/* What both drivers share. */
#define FILE_MEMBERS                                                                              \
    .kind = BLK_PROTOCOL, .state_size = sizeof(struct file_state), .options = file_options,       \
    .options_size = sizeof(struct file_options), .close = file_close, .preadv = file_preadv,      \
    .pwritev = file_pwritev, .zero = file_zero, .discard = file_discard, .extents = file_extents, \
    .copy_range = file_copy_range, .flush = file_flush, .resize = file_resize,                    \
    .actual_size = file_actual_size

const struct driver file_driver = {
    .name = "file",
    .flags = DRIVER_PARALLEL | DRIVER_GROWS | DRIVER_NO_CHILD | DRIVER_UNMAP_ZERO | DRIVER_NEW_ZERO,
    .create_options = file_create_options,
    .create_options_size = sizeof(struct file_create),
    .open = file_open,
    .create_file = file_create,
    FILE_MEMBERS,
};

const struct driver host_device_driver = {
    .name = "host_device",
    .flags = DRIVER_PARALLEL | DRIVER_NO_CHILD | DRIVER_UNMAP_ZERO,
    .open = host_device_open,
    FILE_MEMBERS,
};
