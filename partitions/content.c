/* What lies in a partition: libblkid looks at a copy of the places where file systems say who they are.
 *
 * libblkid wants a file. It gets one in memory, as long as the partition and empty but for its first MiBs, its end,
 * and the place that FAT32 and NTFS keep their label in, which their boot sector names.
 */
#include <blkid/blkid.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iszero.h"
#include "base/macros.h"
#include "base/tame.h"

#include "partitions.h"

enum { PIECE = 64 << 10, HEAD = 2 << 20, TAIL = 512 << 10, LABEL = 64 << 10 };

struct window {
    struct blk_node *node;
    uint64_t start, size;
    int fd;
    uint8_t *buf; /* PIECE bytes */
};

/* Copies what of [at, at + len) lies in the partition; zeroes stay holes. */
static int copy(struct window *w, uint64_t at, uint64_t len)
{
    if (at >= w->size)
        return 0;
    len = MIN(len, w->size - at);
    while (len > 0) {
        size_t n = (size_t)MIN(len, (uint64_t)PIECE);
        int r = blk_read(w->node, w->start + at, w->buf, n, 0);
        if (r < 0)
            return r;
        if (!is_zero(w->buf, n) && pwrite(w->fd, w->buf, n, (off_t)at) != (ssize_t)n)
            return -EIO;
        at += n;
        len -= n;
    }
    return 0;
}

/* Where the root folder of a FAT32 or the file table of an NTFS begins; 0: neither. */
static uint64_t label_place(const uint8_t *boot)
{
    uint64_t sector = load_le16(boot + 11), cluster = sector * boot[13], at, fats;

    if (memcmp(boot + 3, "NTFS    ", 8) == 0)
        return checked_mul(load_le64(boot + 48), cluster, &at) ? at : 0;
    if (memcmp(boot + 82, "FAT32   ", 8) != 0 || load_le32(boot + 44) < 2)
        return 0;
    fats = load_le16(boot + 14) + (uint64_t)boot[16] * load_le32(boot + 36);
    return fats * sector + (uint64_t)(load_le32(boot + 44) - 2) * cluster;
}

static int copy_all(struct window *w)
{
    uint8_t boot[512] = { 0 };

    int ret = copy(w, 0, HEAD);
    if (ret == 0 && w->size > HEAD)
        ret = copy(w, w->size - MIN(w->size, (uint64_t)TAIL), TAIL);
    if (ret == 0 && w->size >= sizeof(boot))
        ret = blk_read(w->node, w->start, boot, sizeof(boot), 0);
    uint64_t place = ret == 0 ? label_place(boot) : 0;
    return place ? copy(w, place, LABEL) : ret;
}

static void take(blkid_probe probe, const char *name, char *out, size_t len)
{
    const char *value = NULL;

    if (blkid_probe_lookup_value(probe, name, &value, NULL) == 0 && value)
        snprintf(out, len, "%s", value);
    tame(out, "");
}

static int probe_file(int fd, uint64_t size, struct partition_content *out)
{
    blkid_probe probe = blkid_new_probe();
    if (!probe)
        return -ENOMEM;
    if (blkid_probe_set_device(probe, fd, 0, (blkid_loff_t)size) == 0) {
        blkid_probe_enable_superblocks(probe, 1);
        blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_LABEL |
                                                     BLKID_SUBLKS_UUID);
        if (blkid_do_safeprobe(probe) == 0) {
            take(probe, "TYPE", out->type, sizeof(out->type));
            take(probe, "LABEL", out->label, sizeof(out->label));
            take(probe, "UUID", out->uuid, sizeof(out->uuid));
        }
    }
    blkid_free_probe(probe);
    return 0;
}

int partition_probe(struct blk_node *node, uint64_t start, uint64_t size,
                    struct partition_content *out)
{
    _cleanup_fd_ int fd = memfd_create("partition", MFD_CLOEXEC);
    _cleanup_free_ uint8_t *buf = malloc(PIECE);
    struct window w = { node, start, size, fd, buf };

    *out = (struct partition_content){ 0 };
    if (!range_inside(start, size, blk_size(node)) || size == 0)
        return -EINVAL;
    if (fd < 0 || !buf)
        return -ENOMEM;
    if (ftruncate(fd, (off_t)size) < 0)
        return -errno;
    int ret = copy_all(&w);
    return ret < 0 ? ret : probe_file(fd, size, out);
}
