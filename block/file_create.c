/* Making files, their length, and space set aside in advance. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "file.h"

static const struct opt_choice preallocation_choices[] = {
    { "off", BLK_PREALLOC_OFF },
    { "falloc", BLK_PREALLOC_FALLOC },
    { "full", BLK_PREALLOC_FULL },
    { NULL, 0 },
};

const struct opt_def file_create_options[] = {
    { .name = "size",
      .type = OPT_SIZE,
      .at = offsetof(struct file_create, size),
      .max = INT64_MAX,
      .help = "length of the file" },
    { .name = "preallocation",
      .type = OPT_ENUM,
      .at = offsetof(struct file_create, preallocation),
      .def = "off",
      .choices = preallocation_choices,
      .help = "space to set aside: off, falloc (reserved), full (written)" },
    { .name = "nocow",
      .type = OPT_BOOL,
      .at = offsetof(struct file_create, nocow),
      .def = "off",
      .help = "turn copy-on-write off (btrfs)" },
    { .name = "extent_size_hint",
      .type = OPT_SIZE,
      .at = offsetof(struct file_create, extent_size_hint),
      .max = UINT32_MAX,
      .help = "size of the pieces in which the file system allocates (xfs)" },
    OPT_END,
};

int file_length(int fd, bool device, uint64_t *out)
{
    struct stat st;

    if (device)
        return ioctl(fd, BLKGETSIZE64, out) < 0 ? -errno : 0;
    if (fstat(fd, &st) < 0)
        return -errno;
    *out = (uint64_t)st.st_size;
    return 0;
}

/* ---- setting the length --------------------------------------------------------------------- */

static int write_zeroes(int fd, uint64_t from, uint64_t to)
{
    enum { BLOCK = 1 << 20 };
    _cleanup_free_ void *block = calloc(1, BLOCK);

    if (!block)
        return -ENOMEM;
    while (from < to) {
        ssize_t r = pwrite(fd, block, (size_t)MIN(to - from, (uint64_t)BLOCK), (off_t)from);

        if (r < 0 && errno != EINTR)
            return -errno;
        from += r > 0 ? (uint64_t)r : 0;
    }
    return fdatasync(fd) < 0 ? -errno : 0;
}

/* The same through the page cache: `from` may lie anywhere. Nobody else uses the descriptor
 * meanwhile. */
static int write_zeroes_cached(int fd, uint64_t from, uint64_t to)
{
    int flags = fcntl(fd, F_GETFL), r;

    if (flags < 0 || !(flags & O_DIRECT))
        return write_zeroes(fd, from, to);
    if (fcntl(fd, F_SETFL, flags & ~O_DIRECT) < 0)
        return -errno;
    r = write_zeroes(fd, from, to);
    if (fcntl(fd, F_SETFL, flags) < 0 && r == 0)
        r = -errno;
    return r;
}

static int grow_allocated(int fd, uint64_t from, uint64_t to, enum blk_prealloc prealloc)
{
    int r;

    if (prealloc == BLK_PREALLOC_FALLOC) {
        do {
            r = fallocate(fd, 0, (off_t)from, (off_t)(to - from));
        } while (r < 0 && errno == EINTR);
        if (r == 0 || (errno != EOPNOTSUPP && errno != ENOSYS))
            return r < 0 ? -errno : 0;
        /* No such call on this file system: written space is set aside, too. */
    }
    return write_zeroes_cached(fd, from, to);
}

int file_set_length(int fd, const char *filename, uint64_t from, uint64_t to,
                    enum blk_prealloc prealloc, struct error **err)
{
    int r;

    if (prealloc == BLK_PREALLOC_METADATA) {
        return error_set(err, ENOTSUP,
                         "%s: preallocation=metadata means nothing for a plain file: use off, "
                         "falloc or full",
                         filename);
    }
    if (to < from && prealloc != BLK_PREALLOC_OFF) {
        return error_set(err, EINVAL, "%s: preallocation cannot be asked for while shrinking",
                         filename);
    }
    if (to <= from || prealloc == BLK_PREALLOC_OFF) {
        r = ftruncate(fd, (off_t)to) < 0 ? -errno : 0;
    } else {
        r = grow_allocated(fd, from, to, prealloc);
        if (r < 0 && ftruncate(fd, (off_t)from) < 0) {
            error_set(err, -r,
                      "%s: could not grow to %" PRIu64 " bytes (%s) nor shrink back to %" PRIu64
                      " (%s)",
                      filename, to, strerror(-r), from, strerror(errno));
        }
    }
    if (r < 0) {
        error_set(err, -r, "%s: could not be made %" PRIu64 " bytes long: %s", filename, to,
                  strerror(-r));
    }
    return r;
}

/* ---- making --------------------------------------------------------------------------------- */

/* Hints: a file system that does not know them loses nothing. The file must be empty. */
static void give_hints(int fd, const struct file_create *o)
{
    if (o->nocow) {
        int attr;

        if (ioctl(fd, FS_IOC_GETFLAGS, &attr) == 0) {
            attr |= FS_NOCOW_FL;
            ioctl(fd, FS_IOC_SETFLAGS, &attr);
        }
    }
    if (o->extent_size_hint) {
        struct fsxattr attr;

        if (ioctl(fd, FS_IOC_FSGETXATTR, &attr) == 0) {
            attr.fsx_xflags |= FS_XFLAG_EXTSIZE;
            attr.fsx_extsize = (uint32_t)o->extent_size_hint;
            ioctl(fd, FS_IOC_FSSETXATTR, &attr);
        }
    }
}

static int check_device(int fd, const char *filename, uint64_t size, struct error **err)
{
    uint64_t length;
    int r = file_length(fd, true, &length);

    if (r < 0)
        return error_set(err, -r, "%s: its size cannot be read: %s", filename, strerror(-r));
    if (size > length) {
        return error_set(err, ENOSPC,
                         "%s: the block device has %" PRIu64 " bytes, %" PRIu64 " are needed",
                         filename, length, size);
    }
    return 0;
}

/* Empties an existing file only once the lock is ours: somebody may be running from it. */
static int fill_file(int fd, const char *filename, const struct file_create *o, struct error **err)
{
    struct stat st;
    int r;

    if (fstat(fd, &st) < 0)
        return error_set(err, errno, "%s: %s", filename, strerror(errno));
    r = file_lock(fd, filename, true, LOCKING_AUTO, err);
    if (r < 0)
        return r;
    if (S_ISBLK(st.st_mode))
        return check_device(fd, filename, o->size, err);
    if (!S_ISREG(st.st_mode))
        return error_set(err, EINVAL, "%s: is not a file or block device", filename);
    if (ftruncate(fd, 0) < 0)
        return error_set(err, errno, "%s: could not be emptied: %s", filename, strerror(errno));
    give_hints(fd, o);
    return file_set_length(fd, filename, 0, o->size, (enum blk_prealloc)o->preallocation, err);
}

int file_create(const char *filename, const void *options, struct error **err)
{
    const int flags = O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    _cleanup_fd_ int fd = open(filename, flags | O_CREAT | O_EXCL, 0644);
    bool is_new = fd >= 0;
    int r;

    if (fd < 0 && errno == EEXIST) {
        /* Without O_EXCL a link that leads nowhere yet is followed, too. */
        fd = open(filename, flags | O_CREAT, 0644);
    }
    if (fd < 0)
        return error_set(err, errno, "%s: could not be created: %s", filename, strerror(errno));
    r = fill_file(fd, filename, options, err);
    if (r < 0 && is_new)
        unlink(filename);
    return r;
}
