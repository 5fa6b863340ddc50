/* Which alignment O_DIRECT wants on a file: the kernel says so, or trial reads tell. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "file.h"

enum { LARGEST = 4096 };

static bool ask_kernel(int fd, struct node_limits *limits)
{
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) && is_pow2(stx.stx_dio_offset_align) &&
        is_pow2(stx.stx_dio_mem_align)) {
        limits->align = stx.stx_dio_offset_align;
        limits->mem_align = stx.stx_dio_mem_align;
        return true;
    }
#else
    (void)fd;
    (void)limits;
#endif
    return false;
}

static bool reads(int fd, unsigned char *to, size_t len)
{
    return pread(fd, to, len, 0) >= 0 || errno != EINVAL;
}

/* The smallest power of two from 512 that the kernel takes. When it takes a single byte, too, it
 * did not look: a file may be empty, or a hole, or the file system copies anyway. Then the largest.
 */
static int try_reads(int fd, struct node_limits *limits)
{
    _cleanup_free_ unsigned char *buf = aligned_alloc(LARGEST, 2 * LARGEST);
    uint32_t align = 512, mem = 512;

    if (!buf)
        return -ENOMEM;
    if (reads(fd, buf + 1, 1)) {
        limits->align = limits->mem_align = LARGEST;
        return 0;
    }
    while (align < LARGEST && !reads(fd, buf, align))
        align *= 2;
    while (mem < LARGEST && !reads(fd, buf + mem, LARGEST))
        mem *= 2;
    if (!reads(fd, buf, align))
        return -EINVAL;
    limits->align = align;
    limits->mem_align = mem;
    return 0;
}

int file_probe_direct(int fd, bool device, struct node_limits *limits)
{
    int block = 0;

    if (ask_kernel(fd, limits))
        return 0;
    if (device && ioctl(fd, BLKSSZGET, &block) == 0 && block > 0 && is_pow2((uint64_t)block)) {
        limits->align = limits->mem_align = (uint32_t)block;
        return 0;
    }
    return try_reads(fd, limits);
}
