/* The virtio block device, Virtio 1.1 section 5.2. */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/round.h"
#include "disk.h"
#include "virtio.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SECTOR = 512,
    ID_SIZE = 20,
    BATCH = 32,
    MOST_SECTORS = 1 << 21, /* of a discard: 1 GiB */
    MOST_DATA = 256 << 20,
};

/* Features, 5.2.3. */
#define F_SEG_MAX      (UINT64_C(1) << 2)
#define F_GEOMETRY     (UINT64_C(1) << 4)
#define F_RO           (UINT64_C(1) << 5)
#define F_BLK_SIZE     (UINT64_C(1) << 6)
#define F_FLUSH        (UINT64_C(1) << 9)
#define F_TOPOLOGY     (UINT64_C(1) << 10)
#define F_CONFIG_WCE   (UINT64_C(1) << 11)
#define F_MQ           (UINT64_C(1) << 12)
#define F_DISCARD      (UINT64_C(1) << 13)
#define F_WRITE_ZEROES (UINT64_C(1) << 14)

/* Requests and their ends, 5.2.6. */
enum {
    T_IN = 0,
    T_OUT = 1,
    T_FLUSH = 4,
    T_GET_ID = 8,
    T_DISCARD = 11,
    T_WRITE_ZEROES = 13,
    T_BARRIER = 0x80000000u, /* of old drivers; the device has no such feature */
};
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };
enum { HEADER = 16, RANGE = 16, RANGE_UNMAP = 1 };

struct virtio_blk {
    struct virtio v;
    struct disk disk;
    uint64_t num_queues, queue_size, seg_max;
    bool config_wce, discard, write_zeroes;
    uint64_t sectors;
    bool write_back; /* under v.lock: as the guest chose it in the configuration */
};

struct request {
    struct disk_request d;
    struct virtio_blk *blk;
    unsigned queue;
    struct virtio_chain chain;
    uint8_t *status; /* the last byte of chain.in, and where the guest has it */
    uint64_t status_address;
};

/* ---- the end of a request -------------------------------------------------------------------- */

/* On this thread requests of a queue are begun: the guest is told when all that end at once have. */
static _Thread_local const struct virtio *beginning;

static void finish(struct request *q, uint8_t status, uint32_t data)
{
    struct virtio *v = &q->blk->v;

    LOCK_SCOPE(&v->lock);
    if (!v->resetting) {
        *q->status = status;
        pci_dma_done(&v->pci, q->status_address, 1);
        if (data)
            dma_written(&q->chain.in, data);
    }
    virtio_push(v, q->queue, &q->chain, data + 1);
    if (beginning != v)
        virtio_tell(v, q->queue);
    free(q);
}

static void ended(struct disk_request *d, int result)
{
    struct request *q = (struct request *)d;
    uint32_t data = d->r.op == BLOCKDEV_READ && result == 0 ? (uint32_t)d->r.length : 0;

    finish(q, result == 0 ? S_OK : result == -ENOTSUP ? S_UNSUPP : S_IOERR, data);
}

/* ---- what is asked ----------------------------------------------------------------------------- */

/* Whether writes must be durable when they end, 5.2.6.2: a driver that cannot flush, or wants it so. */
static bool write_through(const struct virtio_blk *b)
{
    if (virtio_has(&b->v, F_CONFIG_WCE))
        return !b->write_back;
    return !virtio_has(&b->v, F_FLUSH);
}

static bool in_range(const struct virtio_blk *b, uint64_t sector, uint64_t bytes)
{
    uint64_t offset;

    return bytes % b->disk.o.logical == 0 && checked_mul(sector, SECTOR, &offset) &&
           offset % b->disk.o.logical == 0 && range_inside(offset, bytes, b->sectors * SECTOR);
}

static int parse_transfer(struct request *q, uint64_t sector, bool write)
{
    struct virtio_blk *b = q->blk;
    struct blockdev_request *r = &q->d.r;
    const struct dma *data = write ? &q->chain.out : &q->chain.in;

    /* Pieces may overlap, so the sum says nothing about memory; the bound is so that a reset does not wait for ever. */
    if (data->length > MOST_DATA || !in_range(b, sector, data->length))
        return S_IOERR;
    if (write && blockdev_read_only(b->disk.blockdev))
        return S_IOERR;
    r->op = write ? BLOCKDEV_WRITE : BLOCKDEV_READ;
    r->flags = write && write_through(b) ? BLOCKDEV_FUA : 0;
    r->offset = sector * SECTOR;
    r->length = data->length;
    r->iov = data->iov;
    r->iovcnt = data->count;
    return -1;
}

/* Discard and write zeroes: one range for each request, as the configuration says. */
static int parse_range(struct request *q, uint32_t type)
{
    struct virtio_blk *b = q->blk;
    struct blockdev_request *r = &q->d.r;
    bool zeroes = type == T_WRITE_ZEROES;
    uint8_t range[RANGE];

    if (!virtio_has(&b->v, zeroes ? F_WRITE_ZEROES : F_DISCARD))
        return S_UNSUPP;
    if (q->chain.out.length != RANGE || dma_read(&q->chain.out, range, RANGE) < RANGE)
        return S_IOERR;
    uint64_t sector = load_le64(range), count = load_le32(range + 8);
    uint32_t flags = load_le32(range + 12);
    if (flags & ~(zeroes ? (uint32_t)RANGE_UNMAP : 0))
        return S_UNSUPP;
    if (count > MOST_SECTORS || !in_range(b, sector, count * SECTOR))
        return S_IOERR;
    r->op = zeroes ? BLOCKDEV_ZERO : BLOCKDEV_DISCARD;
    r->flags = (flags & RANGE_UNMAP ? BLOCKDEV_UNMAP : 0) |
               (zeroes && write_through(b) ? BLOCKDEV_FUA : 0);
    r->offset = sector * SECTOR;
    r->length = count * SECTOR;
    return -1;
}

static int get_id(struct request *q)
{
    char id[ID_SIZE] = { 0 };
    const char *serial = q->blk->disk.o.serial;

    if (serial)
        memcpy(id, serial, MIN(strlen(serial), (size_t)ID_SIZE));
    dma_write(&q->chain.in, id, sizeof(id));
    return S_OK;
}

/* The status that ends it at once, or -1: it is to be begun. With the lock held. */
static int parse(struct request *q)
{
    struct dma *out = &q->chain.out, *in = &q->chain.in;
    uint8_t header[HEADER];

    dma_read(out, header, HEADER);
    dma_cut_front(out, HEADER);
    const struct iovec *last = &in->iov[in->count - 1];
    q->status = (uint8_t *)last->iov_base + last->iov_len - 1;
    q->status_address = in->address[in->count - 1] + last->iov_len - 1;
    dma_cut_back(in, 1);
    uint32_t type = load_le32(header) & ~(uint32_t)T_BARRIER;
    uint64_t sector = load_le64(header + 8);
    switch (type) {
    case T_IN:
    case T_OUT:
        return parse_transfer(q, sector, type == T_OUT);
    case T_FLUSH:
        q->d.r.op = BLOCKDEV_FLUSH;
        return -1;
    case T_GET_ID:
        return get_id(q);
    case T_DISCARD:
    case T_WRITE_ZEROES:
        return parse_range(q, type);
    }
    return S_UNSUPP;
}

/* The next request that is to be begun, NULL when there is none. *stuck: for lack of memory, which a later bell may find. */
static struct request *next_request(struct virtio_blk *b, unsigned queue, bool *stuck)
{
    for (;;) {
        struct request *q = calloc(1, sizeof(*q));
        *stuck = !q;
        if (!q)
            return NULL;
        q->blk = b;
        q->queue = queue;
        q->d.done = ended;
        int status;
        {
            LOCK_SCOPE(&b->v.lock);
            int popped = virtio_pop(&b->v, queue, &q->chain);
            if (popped <= 0) {
                *stuck = popped < 0;
                free(q);
                return NULL;
            }
            if (q->chain.out.length < HEADER || q->chain.in.length < 1) {
                virtio_broken(&b->v);
                virtio_chain_free(&q->chain);
                free(q);
                return NULL;
            }
            status = parse(q);
        }
        if (status < 0)
            return q;
        finish(q, (uint8_t)status, 0);
    }
}

static void notified(struct virtio *v, unsigned queue)
{
    struct virtio_blk *b = (struct virtio_blk *)v;
    const struct virtio *outer = beginning;
    bool more = true, stuck = false;

    beginning = v;
    while (more) {
        struct disk_request *batch[BATCH];
        unsigned n = 0;
        struct request *q = NULL;
        while (n < BATCH && (q = next_request(b, queue, &stuck)))
            batch[n++] = &q->d;
        disk_submit_all(&b->disk, batch, n);
        LOCK_SCOPE(&v->lock);
        virtio_tell(v, queue);
        more = !stuck && (n == BATCH || virtio_rearm(v, queue));
    }
    beginning = outer;
}

/* ---- configuration, 5.2.4 ------------------------------------------------------------------------ */

enum { CONFIG_WRITE_BACK = 32, CONFIG_BYTES = 60 };

static void fill_config(struct virtio *v, uint8_t *c)
{
    const struct virtio_blk *b = (const struct virtio_blk *)v;
    const struct disk_options *o = &b->disk.o;
    uint64_t cylinders = b->sectors / (16 * 63), grain = MAX(o->discard_granularity, o->logical);

    store_le64(c, b->sectors);
    store_le32(c + 12, (uint32_t)b->seg_max);
    store_le16(c + 16, (uint16_t)MIN(cylinders, UINT64_C(16383)));
    c[18] = 16;
    c[19] = 63;
    store_le32(c + 20, (uint32_t)o->logical);
    c[24] = (uint8_t)log2_floor(o->physical / o->logical);
    c[CONFIG_WRITE_BACK] = !write_through(b);
    store_le16(c + 34, (uint16_t)b->num_queues);
    store_le32(c + 36, MOST_SECTORS);
    store_le32(c + 40, 1);
    store_le32(c + 44, (uint32_t)(grain / SECTOR));
    store_le32(c + 48, MOST_SECTORS);
    store_le32(c + 52, 1);
    c[56] = 1;
}

static void config_written(struct virtio *v, unsigned offset, uint8_t value)
{
    if (offset == CONFIG_WRITE_BACK && virtio_has(v, F_CONFIG_WCE))
        ((struct virtio_blk *)v)->write_back = value & 1;
}

static void cancel(struct virtio *v)
{
    struct virtio_blk *b = (struct virtio_blk *)v;

    disk_cancel(&b->disk);
    LOCK_SCOPE(&v->lock);
    b->write_back = b->disk.o.write_cache;
}

static const struct virtio_kind blk_kind = {
    .id = 2,
    .class_code = 0x010000, /* a SCSI controller, for lack of a better one */
    .notified = notified,
    .config = fill_config,
    .config_written = config_written,
    .cancel = cancel,
};

/* ---- the device ------------------------------------------------------------------------------------ */

static void offer(struct virtio_blk *b)
{
    bool read_only = blockdev_read_only(b->disk.blockdev);
    uint64_t f = F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_TOPOLOGY;

    f |= b->disk.o.write_cache ? F_FLUSH : 0;
    f |= b->disk.o.write_cache && b->config_wce ? F_CONFIG_WCE : 0;
    f |= read_only ? F_RO : 0;
    f |= !read_only && b->discard ? F_DISCARD : 0;
    f |= !read_only && b->write_zeroes ? F_WRITE_ZEROES : 0;
    f |= b->num_queues > 1 ? F_MQ : 0;
    b->v.host_features = f;
}

static int blk_realize(struct device *d, struct error **err)
{
    struct virtio_blk *b = (struct virtio_blk *)d;

    if (!is_pow2(b->queue_size))
        return error_set(err, EINVAL, "queue-size %llu is not a power of 2",
                         (unsigned long long)b->queue_size);
    int r = disk_open(&b->disk, d, true, err);
    if (r < 0)
        return r;
    if (!blockdev_inserted(b->disk.blockdev))
        return error_set(err, ENOMEDIUM, "drive '%s' is empty, and a disk is not", b->disk.o.drive);
    if (!b->seg_max)
        b->seg_max = MIN(b->queue_size, UINT64_C(256)) - 2;
    b->sectors = blockdev_size(b->disk.blockdev) / b->disk.o.logical * (b->disk.o.logical / SECTOR);
    b->write_back = b->disk.o.write_cache;
    offer(b);
    b->v.kind = &blk_kind;
    b->v.queues = (unsigned)b->num_queues;
    b->v.queue_max = (uint16_t)b->queue_size;
    b->v.config_size = CONFIG_BYTES;
    return virtio_realize(&b->v, err);
}

static int modern_realize(struct device *d, struct error **err)
{
    ((struct virtio *)d)->disable_legacy = VIRTIO_ON;
    return blk_realize(d, err);
}

static int transitional_realize(struct device *d, struct error **err)
{
    ((struct virtio *)d)->disable_legacy = VIRTIO_OFF;
    return blk_realize(d, err);
}

static void blk_reset(struct device *d)
{
    virtio_reset((struct virtio *)d);
}

static void blk_drain(struct device *d)
{
    disk_drain(&((struct virtio_blk *)d)->disk);
}

static void blk_resume(struct device *d)
{
    disk_resume(&((struct virtio_blk *)d)->disk);
}

/* What was parked ends before the lock that its end takes goes. */
static void blk_free(struct device *d)
{
    struct virtio_blk *b = (struct virtio_blk *)d;

    if (b->v.made) {
        LOCK_SCOPE(&b->v.lock);
        b->v.resetting = true;
    }
    disk_close(&b->disk);
    virtio_free(&b->v);
}

static char *blk_boot_path(struct device *d)
{
    const struct virtio *v = (const struct virtio *)d;
    char *path = NULL;
    char function[8] = "";

    if (v->pci.devfn & 7)
        snprintf(function, sizeof(function), ",%x", v->pci.devfn & 7);
    if (asprintf(&path, "/pci@i0cf8/scsi@%x%s/disk@0,0", v->pci.devfn >> 3, function) < 0)
        return NULL;
    return path;
}

static const struct opt_def options[] = {
    VIRTIO_OPTIONS,
    DISK_OPTIONS(struct virtio_blk, disk),
    { .name = "num-queues",
      .type = OPT_NUMBER,
      .at = offsetof(struct virtio_blk, num_queues),
      .def = "1",
      .min = 1,
      .max = VIRTIO_QUEUES,
      .help = "queues, for guests with several CPUs" },
    { .name = "queue-size",
      .type = OPT_NUMBER,
      .at = offsetof(struct virtio_blk, queue_size),
      .def = "256",
      .min = 4,
      .max = VIRTIO_QUEUE_SIZE,
      .help = "entries of a queue" },
    { .name = "seg-max",
      .type = OPT_NUMBER,
      .at = offsetof(struct virtio_blk, seg_max),
      .max = 254,
      .help = "pieces of a request; 0: as the queue holds" },
    { .name = "config-wce",
      .type = OPT_BOOL,
      .at = offsetof(struct virtio_blk, config_wce),
      .def = "on",
      .help = "the guest may turn the write cache off" },
    { .name = "discard",
      .type = OPT_BOOL,
      .at = offsetof(struct virtio_blk, discard),
      .def = "on",
      .help = "offers discard" },
    { .name = "write-zeroes",
      .type = OPT_BOOL,
      .at = offsetof(struct virtio_blk, write_zeroes),
      .def = "on",
      .help = "offers to write zeroes" },
    OPT_END,
};

#define COMMON                                                                               \
    .bus = "PCI", .size = sizeof(struct virtio_blk), .options = options, .reset = blk_reset, \
    .drain = blk_drain, .resume = blk_resume, .free = blk_free, .boot_path = blk_boot_path

const struct device_type device_virtio_blk_pci = {
    .name = "virtio-blk-pci",
    .alias = "virtio-blk",
    .help = "virtio block device",
    .realize = blk_realize,
    COMMON,
};

const struct device_type device_virtio_blk_pci_transitional = {
    .name = "virtio-blk-pci-transitional",
    .help = "virtio block device, also for old drivers",
    .realize = transitional_realize,
    COMMON,
};

const struct device_type device_virtio_blk_pci_non_transitional = {
    .name = "virtio-blk-pci-non-transitional",
    .help = "virtio block device, for drivers of virtio 1.0 and later",
    .realize = modern_realize,
    COMMON,
};
