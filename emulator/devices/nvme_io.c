/* The NVM command set, NVM Express 1.4 section 6. */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/iov.h"
#include "base/macros.h"
#include "nvme.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { FLUSH = 0, WRITE = 1, READ = 2, COMPARE = 5, WRITE_ZEROES = 8, DATASET = 9 };
enum { NSID = 4, CDW10 = 40, CDW11 = 44, CDW12 = 48 };
#define FUA        (UINT32_C(1) << 30)
#define DEALLOCATE (UINT32_C(1) << 25) /* write zeroes: may give the space back */
enum { RANGE = 16, RANGES = 256, DATASET_DEALLOCATE = 4 };

static uint16_t failure(const struct nvme_request *q, int error)
{
    switch (error) {
    case -ENOSPC:
        return NVME_CAPACITY;
    case -EROFS:
        return NVME_READ_ONLY | NVME_DNR;
    case -ENOMEM:
        return NVME_INTERNAL_ERROR;
    default:
        return q->d.r.op == BLOCKDEV_READ ? NVME_READ_FAULT : NVME_WRITE_FAULT;
    }
}

static void ended(struct disk_request *d, int result)
{
    struct nvme_request *q = (struct nvme_request *)d;

    if (result == 0 && d->r.op == BLOCKDEV_READ)
        dma_written(&q->data, d->r.length);
    nvme_end(q, result < 0 ? failure(q, result) : NVME_OK);
}

/* Blocks slba.. of the command, as bytes; a status. */
static uint16_t take_range(struct nvme_request *q, uint64_t block, uint64_t count)
{
    const struct nvme *n = q->n;

    if (!range_inside(block, count, n->blocks))
        return NVME_LBA_RANGE | NVME_DNR;
    q->d.r.offset = block << n->block_bits;
    q->d.r.length = count << n->block_bits;
    return NVME_OK;
}

static uint64_t count_of(const struct nvme_request *q)
{
    return UINT64_C(1) + load_le16(q->command + CDW12);
}

static unsigned durable(const struct nvme_request *q)
{
    bool fua = load_le32(q->command + CDW12) & FUA || !q->n->write_cache;
    return fua ? BLOCKDEV_FUA : 0;
}

static uint16_t transfer(struct nvme_request *q, bool write)
{
    struct nvme *n = q->n;
    uint64_t count = count_of(q);

    uint16_t status = take_range(q, load_le64(q->command + CDW10), count);
    if (!status && write && blockdev_read_only(n->disk.blockdev))
        status = NVME_READ_ONLY | NVME_DNR;
    if (!status)
        status = nvme_map(q, count << n->block_bits, !write);
    if (status)
        return status;
    q->d.r.op = write ? BLOCKDEV_WRITE : BLOCKDEV_READ;
    q->d.r.flags = write ? durable(q) : 0;
    q->d.r.iov = q->data.iov;
    q->d.r.iovcnt = q->data.count;
    *(write ? &n->writes : &n->reads) += 1;
    *(write ? &n->written_blocks : &n->read_blocks) += count;
    return NVME_BEGIN;
}

static uint16_t write_zeroes(struct nvme_request *q)
{
    uint16_t status = take_range(q, load_le64(q->command + CDW10), count_of(q));

    if (!status && blockdev_read_only(q->n->disk.blockdev))
        status = NVME_READ_ONLY | NVME_DNR;
    if (status)
        return status;
    q->d.r.op = BLOCKDEV_ZERO;
    q->d.r.flags = durable(q) | (load_le32(q->command + CDW12) & DEALLOCATE ? BLOCKDEV_UNMAP : 0);
    return NVME_BEGIN;
}

/* ---- compare ---------------------------------------------------------------------------------- */

static void compare_ended(struct disk_request *d, int result)
{
    struct nvme_request *q = (struct nvme_request *)d;
    uint16_t status = result < 0 ? failure(q, result) : NVME_OK;
    const uint8_t *disk = q->buffer;

    for (int i = 0; i < q->data.count && !status; i++) {
        if (memcmp(disk, q->data.iov[i].iov_base, q->data.iov[i].iov_len) != 0)
            status = NVME_COMPARE_FAILURE | NVME_DNR;
        disk += q->data.iov[i].iov_len;
    }
    nvme_end(q, status);
}

static uint16_t compare(struct nvme_request *q)
{
    uint64_t count = count_of(q);
    uint16_t status = take_range(q, load_le64(q->command + CDW10), count);

    if (!status)
        status = nvme_map(q, count << q->n->block_bits, false);
    if (status)
        return status;
    q->buffer = malloc(q->d.r.length); /* NVME_MOST_DATA at most */
    if (!q->buffer)
        return NVME_INTERNAL_ERROR;
    q->bounce = (struct iovec){ q->buffer, q->d.r.length };
    q->d.r.op = BLOCKDEV_READ;
    q->d.r.iov = &q->bounce;
    q->d.r.iovcnt = 1;
    q->d.done = compare_ended;
    return NVME_BEGIN;
}

/* ---- dataset management: ranges are given back one after the other ------------------------------ */

/* Sets the next range that has bytes; false: there is none. */
static bool next_range(struct nvme_request *q)
{
    while (q->at < q->ranges) {
        const uint8_t *range = q->buffer + (size_t)RANGE * q->at++;
        q->d.r.offset = load_le64(range + 8) << q->n->block_bits;
        q->d.r.length = (uint64_t)load_le32(range + 4) << q->n->block_bits;
        if (q->d.r.length)
            return true;
    }
    return false;
}

static void dataset_ended(struct disk_request *d, int result)
{
    struct nvme_request *q = (struct nvme_request *)d;

    if (result < 0)
        nvme_end(q, failure(q, result));
    else if (next_range(q))
        disk_submit(&q->n->disk, d);
    else
        nvme_end(q, NVME_OK);
}

static uint16_t dataset(struct nvme_request *q)
{
    uint32_t ranges = (load_le32(q->command + CDW10) & (RANGES - 1)) + 1;

    if (!(load_le32(q->command + CDW11) & DATASET_DEALLOCATE))
        return NVME_OK; /* the rest are hints about access */
    if (blockdev_read_only(q->n->disk.blockdev))
        return NVME_READ_ONLY | NVME_DNR;
    uint16_t status = nvme_map(q, (uint64_t)ranges * RANGE, false);
    if (status)
        return status;
    q->buffer = malloc((size_t)ranges * RANGE);
    if (!q->buffer)
        return NVME_INTERNAL_ERROR;
    dma_read(&q->data, q->buffer, (size_t)ranges * RANGE);
    for (uint32_t i = 0; i < ranges; i++) {
        const uint8_t *range = q->buffer + (size_t)RANGE * i;
        if (!range_inside(load_le64(range + 8), load_le32(range + 4), q->n->blocks))
            return NVME_LBA_RANGE | NVME_DNR;
    }
    q->ranges = ranges;
    q->d.r.op = BLOCKDEV_DISCARD;
    q->d.done = dataset_ended;
    return next_range(q) ? NVME_BEGIN : NVME_OK;
}

uint16_t nvme_io(struct nvme_request *q)
{
    uint32_t nsid = load_le32(q->command + NSID);
    uint8_t opcode = q->command[0];

    q->d.done = ended;
    if (q->command[1] & 0xc3) /* fused commands and SGLs are not offered */
        return NVME_INVALID_FIELD | NVME_DNR;
    if (nsid != NVME_NSID && !(opcode == FLUSH && nsid == NVME_ALL_NAMESPACES))
        return NVME_INVALID_NAMESPACE | NVME_DNR;
    switch (opcode) {
    case FLUSH:
        q->d.r.op = BLOCKDEV_FLUSH;
        return NVME_BEGIN;
    case WRITE:
    case READ:
        return transfer(q, opcode == WRITE);
    case COMPARE:
        return compare(q);
    case WRITE_ZEROES:
        return write_zeroes(q);
    case DATASET:
        return dataset(q);
    }
    return NVME_INVALID_OPCODE | NVME_DNR;
}
