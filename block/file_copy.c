/* Copies from file to file inside the kernel; file systems that can share blocks do. */
#include <errno.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "file.h"

/* Small enough to be interrupted between two calls, large enough not to matter. */
#define MOST_AT_ONCE (UINT64_C(1) << 30)

/* These pairs of files cannot, or not for this range; reading and writing may. */
static bool means_cannot(int code)
{
    return code == EXDEV || code == EINVAL || code == ENOSYS || code == EOPNOTSUPP ||
           code == EPERM || code == ETXTBSY || code == EBADF;
}

static int copy(struct file_state *from, uint64_t src_off, struct file_state *to, uint64_t dst_off,
                uint64_t len, uint64_t *done)
{
    while (*done < len) {
        off64_t in = (off64_t)(src_off + *done), out = (off64_t)(dst_off + *done);
        ssize_t r =
            copy_file_range(from->fd, &in, to->fd, &out, (size_t)MIN(len - *done, MOST_AT_ONCE), 0);

        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return means_cannot(errno) ? -ENOTSUP : -errno;
        if (r == 0)
            return -ENOTSUP; /* the source ends here, or its length is not what it seems */
        *done += (uint64_t)r;
    }
    return 0;
}

int file_copy_range(struct blk_node *src, uint64_t src_off, struct blk_node *dst, uint64_t dst_off,
                    uint64_t len, uint64_t *done)
{
    struct file_state *from = node_state(src), *to = node_state(dst);
    int r;

    *done = 0;
    if (from->device || to->device)
        return -ENOTSUP;
    {
        RDLOCK_SCOPE(&to->size_lock);
        r = copy(from, src_off, to, dst_off, len, done);
        if (*done)
            file_raise_end(to, dst_off + *done);
    }
    atomic_fetch_add(&to->holes.writes, 1);
    atomic_fetch_add(&to->holes.punches, 1);
    return r;
}
