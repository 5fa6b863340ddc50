/* The controller's registers (NVM Express 1.4 section 3.1) and its queues (section 4). */
#include "nvme.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/round.h"
#include "cpu/memory.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BAR_REGISTERS = 0,
    BAR_MSIX = 4,
    REGISTERS_SIZE = 0x4000,
    DOORBELLS = 0x1000,
    CAP = 0x00,
    VS = 0x08,
    INTMS = 0x0c,
    INTMC = 0x10,
    CC = 0x14,
    CSTS = 0x1c,
    AQA = 0x24,
    ASQ = 0x28,
    ACQ = 0x30,
    REGISTERS_END = 0x38,
};
enum {
    CC_EN = 1,
    CC_SHN = 3 << 14,
    CSTS_RDY = 1,
    CSTS_CFS = 2,
    CSTS_SHST = 3 << 2,
    SHST_DONE = 2 << 2
};
enum { BATCH = 32 };

/* On this thread commands are begun: what ends at once raises interrupts together. */
static _Thread_local const struct nvme *beginning;

static void fetch(struct nvme *n, unsigned sq);

/* ---- completions ----------------------------------------------------------------------------------- */

void nvme_fatal(struct nvme *n)
{
    n->csts |= CSTS_CFS;
}

static void free_request(struct nvme_request *q)
{
    dma_free(&q->data);
    free(q->buffer);
    free(q);
}

/* Section 7.5.1.1: the pin is up while a queue that interrupts holds what was not taken. */
static void update_pin(struct nvme *n)
{
    bool up = false;

    for (unsigned i = 0; i < n->max_queues; i++) {
        const struct nvme_cq *cq = &n->cq[i];
        up |= cq->used && cq->interrupts && cq->head != cq->tail;
    }
    pci_pin(&n->pci, up && !(n->mask & 1));
}

static void raise_interrupts(struct nvme *n)
{
    bool messages = pci_msix_on(&n->pci);

    for (unsigned i = 0; i < n->max_queues; i++) {
        if (messages && n->cq[i].raise)
            pci_notify(&n->pci, n->cq[i].vector);
        n->cq[i].raise = false;
    }
    if (!messages)
        update_pin(n);
}

/* The last word, with the phase, is written when the rest is there. */
static bool post(struct nvme *n, struct nvme_cq *cq, const struct nvme_request *q)
{
    uint64_t address = cq->base + (uint64_t)cq->tail * NVME_COMPLETION, length = NVME_COMPLETION;
    uint8_t *at = pci_dma_map(&n->pci, address, true, &length);

    if (!at || length < NVME_COMPLETION) {
        nvme_fatal(n);
        return false;
    }
    store_le32(at, q->result);
    store_le32(at + 4, 0);
    store_le16(at + 8, n->sq[q->sq].head);
    store_le16(at + 10, q->sq);
    uint32_t last = q->id | (uint32_t)(q->status << 1 | cq->phase) << 16;
    atomic_store_explicit((_Atomic uint32_t *)(void *)(at + 12), htole32(last),
                          memory_order_release);
    pci_dma_done(&n->pci, address, NVME_COMPLETION);
    cq->raise = cq->interrupts;
    if (++cq->tail == cq->size) {
        cq->tail = 0;
        cq->phase ^= 1;
    }
    return true;
}

static bool is_full(const struct nvme_cq *cq)
{
    return (cq->tail + 1) % cq->size == cq->head;
}

/* A command less of this queue: perhaps somebody waits for its end. */
static void leave(struct nvme *n, unsigned id)
{
    struct nvme_sq *sq = &n->sq[id];
    struct nvme_request *waits = sq->deleting;

    if (--sq->under_way || !waits)
        return;
    *sq = (struct nvme_sq){ .used = false, .cq = sq->cq };
    n->cq[sq->cq].users--;
    nvme_end_locked(waits, NVME_OK);
}

/* What has ended goes to the guest as far as there is room. */
static void post_all(struct nvme *n, struct nvme_cq *cq)
{
    while (cq->done && !is_full(cq) && !(n->csts & CSTS_CFS)) {
        struct nvme_request *q = cq->done;
        if (!post(n, cq, q))
            return;
        cq->done = q->next;
        if (!cq->done)
            cq->done_end = &cq->done;
        unsigned sq = q->sq;
        free_request(q);
        leave(n, sq);
    }
}

static void note_error(struct nvme *n, const struct nvme_request *q)
{
    n->errors[n->n_errors % NVME_ERRORS] = (struct nvme_error){
        .count = n->n_errors + 1, .sq = q->sq, .id = q->id, .status = q->status
    };
    n->n_errors++;
}

void nvme_end_locked(struct nvme_request *q, uint16_t status)
{
    struct nvme *n = q->n;
    struct nvme_cq *cq = &n->cq[n->sq[q->sq].cq];

    if (n->resetting) {
        free_request(q);
        return;
    }
    q->status = status;
    q->next = NULL;
    if (status)
        note_error(n, q);
    *cq->done_end = q;
    cq->done_end = &q->next;
    post_all(n, cq);
}

void nvme_end(struct nvme_request *q, uint16_t status)
{
    struct nvme *n = q->n;
    unsigned sq = q->sq;
    {
        LOCK_SCOPE(&n->lock);
        nvme_end_locked(q, status);
        if (beginning == n)
            return;
        raise_interrupts(n);
    }
    fetch(n, sq); /* what did not fit before */
}

void nvme_event(struct nvme *n, uint32_t what)
{
    if (n->event_masked)
        return;
    n->event_masked = true;
    if (!n->events) {
        n->event_due = what;
        return;
    }
    struct nvme_request *q = n->waiting[--n->events];
    q->result = what;
    nvme_end_locked(q, NVME_OK);
}

/* ---- fetching ------------------------------------------------------------------------------------------ */

/* The next command of the queue, NULL when there is none, or no room for it. *stuck: no memory. */
static struct nvme_request *next_command(struct nvme *n, unsigned id)
{
    struct nvme_sq *sq = &n->sq[id];

    if (!sq->used || sq->deleting || n->resetting || n->csts & CSTS_CFS || !(n->csts & CSTS_RDY) ||
        sq->head == sq->tail || sq->under_way >= sq->size + NVME_EVENTS)
        return NULL;
    struct nvme_request *q = calloc(1, sizeof(*q));
    if (!q)
        return NULL;
    uint64_t at = sq->base + (uint64_t)sq->head * NVME_COMMAND;
    if (pci_dma_read(&n->pci, at, q->command, NVME_COMMAND) < 0) {
        nvme_fatal(n);
        free(q);
        return NULL;
    }
    sq->head = (uint16_t)((sq->head + 1) % sq->size);
    sq->under_way++;
    q->n = n;
    q->sq = (uint16_t)id;
    q->id = load_le16(q->command + 2);
    dma_init(&q->data, &n->pci, false);
    return q;
}

/* The next one that is to be begun; those that end at once have. */
static struct disk_request *next_begun(struct nvme *n, unsigned id)
{
    LOCK_SCOPE(&n->lock);
    for (struct nvme_request *q; (q = next_command(n, id));) {
        uint16_t status = id ? nvme_io(q) : nvme_admin(q);
        if (status == NVME_BEGIN)
            return &q->d;
        if (status != NVME_PENDING)
            nvme_end_locked(q, status);
    }
    return NULL;
}

static void fetch(struct nvme *n, unsigned sq)
{
    const struct nvme *outer = beginning;
    unsigned count;

    beginning = n;
    do {
        struct disk_request *batch[BATCH], *q = NULL;
        count = 0;
        while (count < BATCH && (q = next_begun(n, sq)))
            batch[count++] = q;
        disk_submit_all(&n->disk, batch, count);
        LOCK_SCOPE(&n->lock);
        raise_interrupts(n);
    } while (count);
    beginning = outer;
}

/* ---- doorbells -------------------------------------------------------------------------------------------- */

enum { EVENT_BAD_DOORBELL = 0 << 8, EVENT_BAD_VALUE = 1 << 8, EVENT_ERROR_LOG = 1 << 16 };

static void ring_cq(struct nvme *n, unsigned id, uint32_t value)
{
    struct nvme_cq *cq = &n->cq[id];

    if (!cq->used || value >= cq->size) {
        nvme_event(n, (cq->used ? EVENT_BAD_VALUE : EVENT_BAD_DOORBELL) | EVENT_ERROR_LOG);
    } else {
        cq->head = (uint16_t)value;
        post_all(n, cq);
    }
    raise_interrupts(n);
}

/* Room for completions may be room for commands, of any queue that ends there. */
static void find_waiting(const struct nvme *n, unsigned cq, bool waiting[NVME_QUEUES])
{
    for (unsigned i = 0; i < n->max_queues; i++)
        waiting[i] = n->sq[i].used && n->sq[i].cq == cq && n->sq[i].head != n->sq[i].tail;
}

static void ring(struct nvme *n, uint64_t number, uint32_t value)
{
    bool waiting[NVME_QUEUES] = { false };
    unsigned id = (unsigned)(number / 2);
    {
        LOCK_SCOPE(&n->lock);
        if (id >= n->max_queues || !(n->csts & CSTS_RDY) || n->resetting)
            return;
        struct nvme_sq *sq = &n->sq[id];
        if (number & 1) {
            ring_cq(n, id, value & 0xffff);
            find_waiting(n, id, waiting);
        } else if (!sq->used || (value & 0xffff) >= sq->size) {
            nvme_event(n, (sq->used ? EVENT_BAD_VALUE : EVENT_BAD_DOORBELL) | EVENT_ERROR_LOG);
            raise_interrupts(n);
        } else {
            sq->tail = (uint16_t)value;
            waiting[id] = true;
        }
    }
    for (unsigned i = 0; i < NVME_QUEUES; i++)
        if (waiting[i])
            fetch(n, i);
}

/* ---- enabling, resetting, shutting down -------------------------------------------------------------------- */

static void free_list(struct nvme_request *q)
{
    for (struct nvme_request *next; q; q = next) {
        next = q->next;
        free_request(q);
    }
}

/* With the lock held and nothing under way. */
static void clear_queues(struct nvme *n)
{
    for (unsigned i = 0; i < n->max_queues; i++) {
        free_list(n->cq[i].done);
        if (n->sq[i].deleting)
            free_request(n->sq[i].deleting);
        n->sq[i] = (struct nvme_sq){ .used = false };
        n->cq[i] = (struct nvme_cq){ .used = false };
    }
    for (unsigned i = 0; i < n->events; i++)
        free_request(n->waiting[i]);
    n->events = 0;
    n->event_due = n->event_config = n->coalescing = 0;
    n->event_masked = false;
    n->temperature_limit = 343;
    n->arbitration = 6;
    n->write_cache = n->disk.o.write_cache;
    n->csts = n->mask = 0;
    pci_pin(&n->pci, false);
}

/* Section 7.3.2: AQA, ASQ and ACQ stay. */
static void reset_controller(struct nvme *n)
{
    LOCK_SCOPE(&n->reset_lock);
    {
        LOCK_SCOPE(&n->lock);
        n->resetting = true;
    }
    disk_cancel(&n->disk);
    LOCK_SCOPE(&n->lock);
    clear_queues(n);
    n->resetting = false;
}

/* With the lock held. CC names entries of 64 and 16 bytes, pages of 4 KiB and the NVM command set. */
static void enable(struct nvme *n)
{
    uint32_t sq_size = (n->aqa & 0xfff) + 1, cq_size = (n->aqa >> 16 & 0xfff) + 1;
    unsigned commands = n->cc >> 16 & 15, completions = n->cc >> 20 & 15;

    if (n->cc >> 4 & 0x7f || (commands && commands != 6) || (completions && completions != 4) ||
        sq_size < 2 || cq_size < 2 || (n->asq | n->acq) % NVME_PAGE) {
        nvme_fatal(n);
        return;
    }
    n->sq[0] = (struct nvme_sq){ .used = true, .size = (uint16_t)sq_size, .base = n->asq };
    n->cq[0] = (struct nvme_cq){ .used = true,
                                 .interrupts = true,
                                 .phase = 1,
                                 .users = 1,
                                 .size = (uint16_t)cq_size,
                                 .base = n->acq };
    n->cq[0].done_end = &n->cq[0].done;
    n->csts = CSTS_RDY; /* a shutdown is over with it */
}

struct shutdown {
    struct disk_request d;
    struct nvme *n;
};

static void shut_down(struct disk_request *d, int result)
{
    struct shutdown *s = (struct shutdown *)d;
    (void)result; /* there is nobody left to tell */
    {
        LOCK_SCOPE(&s->n->lock);
        if (s->n->csts & CSTS_SHST)
            s->n->csts = (s->n->csts & ~(uint32_t)CSTS_SHST) | SHST_DONE;
    }
    free(s);
}

/* Section 7.6.2: what was written is durable when CSTS says that it is done. */
static void begin_shutdown(struct nvme *n)
{
    struct shutdown *s = calloc(1, sizeof(*s));
    {
        LOCK_SCOPE(&n->lock);
        n->csts = (n->csts & ~(uint32_t)CSTS_SHST) | (s ? 1 << 2 : SHST_DONE);
    }
    if (!s)
        return;
    s->n = n;
    s->d.done = shut_down;
    s->d.r.op = BLOCKDEV_FLUSH;
    disk_drain(&n->disk);
    disk_submit(&n->disk, &s->d);
}

static void write_cc(struct nvme *n, uint32_t value)
{
    uint32_t old;
    {
        LOCK_SCOPE(&n->lock);
        if (n->resetting)
            return;
        old = n->cc;
        n->cc = value & 0x00fffff1;
        if (value & CC_EN && !(old & CC_EN))
            enable(n);
    }
    if (value & CC_SHN && !(old & CC_SHN))
        begin_shutdown(n);
    if (!(value & CC_EN) && old & CC_EN)
        reset_controller(n);
}

/* ---- registers ------------------------------------------------------------------------------------------------ */

static void image_of(const struct nvme *n, uint8_t at[REGISTERS_END])
{
    memset(at, 0, REGISTERS_END);
    /* contiguous queues, 7.5 s to get ready, the NVM command set */
    store_le64(at + CAP, (NVME_QUEUE_SIZE - 1) | 1 << 16 | 15 << 24 | UINT64_C(1) << 37);
    store_le32(at + VS, 0x00010400);
    store_le32(at + INTMS, n->mask);
    store_le32(at + INTMC, n->mask);
    store_le32(at + CC, n->cc);
    store_le32(at + CSTS, n->csts);
    store_le32(at + AQA, n->aqa);
    store_le64(at + ASQ, n->asq);
    store_le64(at + ACQ, n->acq);
}

static uint64_t registers_read(void *opaque, uint64_t offset, unsigned size)
{
    struct nvme *n = opaque;
    uint8_t image[REGISTERS_END];
    uint64_t value = 0;

    LOCK_SCOPE(&n->lock);
    image_of(n, image);
    for (unsigned i = 0; i < size; i++)
        if (offset + i < sizeof(image))
            value |= (uint64_t)image[offset + i] << (8 * i);
    return value;
}

static void set_half(uint64_t *value, bool high, uint32_t part)
{
    unsigned shift = high ? 32 : 0;
    *value = (*value & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)part << shift;
}

static void write_register(struct nvme *n, uint64_t offset, uint32_t value)
{
    if (offset == CC) {
        write_cc(n, value);
        return;
    }
    LOCK_SCOPE(&n->lock);
    switch (offset) {
    case INTMS:
    case INTMC:
        n->mask = offset == INTMS ? n->mask | value : n->mask & ~value;
        raise_interrupts(n);
        break;
    case AQA:
        n->aqa = value & 0x0fff0fff;
        break;
    case ASQ:
    case ASQ + 4:
        set_half(&n->asq, offset & 4, value);
        break;
    case ACQ:
    case ACQ + 4:
        set_half(&n->acq, offset & 4, value);
        break;
    }
}

static void registers_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct nvme *n = opaque;

    if (offset >= DOORBELLS) {
        if (offset % 4 == 0 && size == 4)
            ring(n, (offset - DOORBELLS) / 4, (uint32_t)value);
        return;
    }
    write_register(n, offset, (uint32_t)value);
    if (size == 8)
        write_register(n, offset + 4, (uint32_t)(value >> 32));
}

static const struct memory_io registers_io = { registers_read, registers_write };

/* ---- the device ----------------------------------------------------------------------------------------------- */

static atomic_uint_fast64_t controllers;

static int add_function(struct nvme *n, struct error **err)
{
    const struct pci_identity id = { .vendor = 0x1b36,
                                     .device = 0x0010,
                                     .subsystem_vendor = 0x1af4,
                                     .subsystem = 0x1100,
                                     .class_code = 0x010802,
                                     .revision = 2,
                                     .interrupt = true,
                                     .express = true };

    int r = pci_add(n->device.host->pci, &n->pci, &id, n->addr, err);
    if (r < 0)
        return r;
    pthread_mutex_init(&n->lock, NULL);
    pthread_mutex_init(&n->reset_lock, NULL);
    n->made = true;
    n->pci.opaque = n;
    r = pci_bar_memory(&n->pci, BAR_REGISTERS, REGISTERS_SIZE, PCI_BAR_64, &registers_io, n);
    if (r == 0)
        r = pci_msix(&n->pci, BAR_MSIX, (unsigned)n->vectors);
    return r < 0 ? error_set(err, -r, "its PCI function could not be made: %s", strerror(-r)) : 0;
}

static int nvme_realize(struct device *d, struct error **err)
{
    struct nvme *n = (struct nvme *)d;

    int r = disk_open(&n->disk, d, true, err);
    if (r < 0)
        return r;
    if (!blockdev_inserted(n->disk.blockdev))
        return error_set(err, ENOMEDIUM, "drive '%s' is empty, and a disk is not", n->disk.o.drive);
    n->max_queues = (unsigned)n->pairs + 1;
    n->block_bits = log2_floor(n->disk.o.logical);
    n->blocks = blockdev_size(n->disk.blockdev) >> n->block_bits;
    n->number = atomic_fetch_add(&controllers, 1) + 1;
    r = add_function(n, err);
    if (r == 0)
        clear_queues(n);
    return r;
}

static void nvme_reset(struct device *d)
{
    struct nvme *n = (struct nvme *)d;

    reset_controller(n);
    n->cc = n->aqa = 0;
    n->asq = n->acq = 0;
    pci_reset(&n->pci);
}

static void nvme_drain(struct device *d)
{
    disk_drain(&((struct nvme *)d)->disk);
}

static void nvme_resume(struct device *d)
{
    disk_resume(&((struct nvme *)d)->disk);
}

static void nvme_free(struct device *d)
{
    struct nvme *n = (struct nvme *)d;

    if (n->made)
        reset_controller(n);
    disk_close(&n->disk);
    if (!n->made)
        return;
    pci_remove(&n->pci);
    pthread_mutex_destroy(&n->lock);
    pthread_mutex_destroy(&n->reset_lock);
}

static char *nvme_boot_path(struct device *d)
{
    const struct nvme *n = (const struct nvme *)d;
    char *path = NULL, function[8] = "";

    if (n->pci.devfn & 7)
        snprintf(function, sizeof(function), ",%x", n->pci.devfn & 7);
    if (asprintf(&path, "/pci@i0cf8/pci1b36,0010@%x%s/namespace@1,0", n->pci.devfn >> 3, function) <
        0)
        return NULL;
    return path;
}

static const struct opt_def options[] = {
    DISK_OPTIONS(struct nvme, disk),
    { .name = "addr",
      .type = OPT_STRING,
      .at = offsetof(struct nvme, addr),
      .help = "its place on the PCI bus" },
    { .name = "max_ioqpairs",
      .type = OPT_NUMBER,
      .at = offsetof(struct nvme, pairs),
      .def = "64",
      .min = 1,
      .max = NVME_QUEUES - 1,
      .help = "pairs of queues for I/O" },
    { .name = "msix_qsize",
      .type = OPT_NUMBER,
      .at = offsetof(struct nvme, vectors),
      .def = "65",
      .min = 1,
      .max = NVME_QUEUES,
      .help = "interrupt vectors" },
    OPT_END,
};

const struct device_type device_nvme = {
    .name = "nvme",
    .help = "NVM Express controller with one disk",
    .bus = "PCI",
    .size = sizeof(struct nvme),
    .options = options,
    .realize = nvme_realize,
    .reset = nvme_reset,
    .drain = nvme_drain,
    .resume = nvme_resume,
    .free = nvme_free,
    .boot_path = nvme_boot_path,
};
