/* Admin commands, NVM Express 1.4 section 5. All run with the lock held. */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/macros.h"
#include "base/round.h"
#include "nvme.h"
#include "padded.h"

#include <stdio.h>
#include <string.h>

enum {
    DELETE_SQ = 0,
    CREATE_SQ = 1,
    GET_LOG = 2,
    DELETE_CQ = 4,
    CREATE_CQ = 5,
    IDENTIFY = 6,
    ABORT = 8,
    SET_FEATURES = 9,
    GET_FEATURES = 10,
    ASYNC_EVENT = 12,
};
enum { NSID = 4, PRP1 = 24, CDW10 = 40, CDW11 = 44, CDW12 = 48, CDW13 = 52 };

static uint32_t word(const struct nvme_request *q, unsigned at)
{
    return load_le32(q->command + at);
}

/* What the command asks for, at most n bytes of it, into the guest's buffer. */
static uint16_t give(struct nvme_request *q, const void *from, uint64_t n)
{
    uint16_t status = nvme_map(q, n, true);

    if (!status)
        dma_write(&q->data, from, n);
    return status;
}

/* ---- queues, 5.3 to 5.6 -------------------------------------------------------------------------- */

/* Size and place, the same in both commands. */
static uint16_t check_queue(const struct nvme_request *q, uint32_t id, uint32_t size)
{
    uint64_t base = load_le64(q->command + PRP1);

    if (!id || id >= q->n->max_queues)
        return NVME_QID_INVALID | NVME_DNR;
    if (size < 2 || size > NVME_QUEUE_SIZE)
        return NVME_QUEUE_SIZE_INVALID | NVME_DNR;
    if (!(word(q, CDW11) & 1) || base % NVME_PAGE) /* contiguous, CAP.CQR */
        return NVME_INVALID_FIELD | NVME_DNR;
    return NVME_OK;
}

static uint16_t create_cq(struct nvme_request *q)
{
    struct nvme *n = q->n;
    uint32_t id = word(q, CDW10) & 0xffff, size = (word(q, CDW10) >> 16) + 1;
    uint32_t vector = word(q, CDW11) >> 16;

    uint16_t status = check_queue(q, id, size);
    if (status)
        return status;
    if (n->cq[id].used)
        return NVME_QID_INVALID | NVME_DNR;
    if (vector >= n->vectors || (vector && !pci_msix_on(&n->pci)))
        return NVME_VECTOR_INVALID | NVME_DNR;
    n->cq[id] = (struct nvme_cq){ .used = true,
                                  .interrupts = word(q, CDW11) & 2,
                                  .phase = 1,
                                  .size = (uint16_t)size,
                                  .vector = (uint16_t)vector,
                                  .base = load_le64(q->command + PRP1) };
    n->cq[id].done_end = &n->cq[id].done;
    return NVME_OK;
}

static uint16_t create_sq(struct nvme_request *q)
{
    struct nvme *n = q->n;
    uint32_t id = word(q, CDW10) & 0xffff, size = (word(q, CDW10) >> 16) + 1;
    uint32_t cq = word(q, CDW11) >> 16;

    uint16_t status = check_queue(q, id, size);
    if (status)
        return status;
    if (n->sq[id].used)
        return NVME_QID_INVALID | NVME_DNR;
    if (!cq || cq >= n->max_queues || !n->cq[cq].used)
        return NVME_CQ_INVALID | NVME_DNR;
    n->sq[id] = (struct nvme_sq){ .used = true,
                                  .size = (uint16_t)size,
                                  .cq = (uint16_t)cq,
                                  .base = load_le64(q->command + PRP1) };
    n->cq[cq].users++;
    return NVME_OK;
}

/* What is under way ends first; nothing more is fetched meanwhile. */
static uint16_t delete_sq(struct nvme_request *q)
{
    struct nvme *n = q->n;
    uint32_t id = word(q, CDW10) & 0xffff;

    if (!id || id >= n->max_queues || !n->sq[id].used || n->sq[id].deleting)
        return NVME_QID_INVALID | NVME_DNR;
    if (n->sq[id].under_way) {
        n->sq[id].deleting = q;
        return NVME_PENDING;
    }
    n->sq[id].used = false;
    n->cq[n->sq[id].cq].users--;
    return NVME_OK;
}

static uint16_t delete_cq(struct nvme_request *q)
{
    struct nvme *n = q->n;
    uint32_t id = word(q, CDW10) & 0xffff;

    if (!id || id >= n->max_queues || !n->cq[id].used)
        return NVME_QID_INVALID | NVME_DNR;
    if (n->cq[id].users)
        return NVME_DELETION_INVALID | NVME_DNR;
    n->cq[id].used = false; /* without a submission queue its list is empty */
    return NVME_OK;
}

/* ---- identify, 5.15 -------------------------------------------------------------------------------- */

enum { IDENTIFY_SIZE = 4096 };

/* Figure 247 */
static void identify_controller(const struct nvme *n, uint8_t *id)
{
    const char *serial = n->disk.o.serial ? n->disk.o.serial : "platter";

    store_le16(id, 0x1b36);
    store_le16(id + 2, 0x1af4);
    padded(id + 4, 20, serial);
    padded(id + 24, 40, "Platter NVMe Ctrl");
    padded(id + 64, 8, "1.0");
    id[72] = 6; /* commands at a time, as a power of two, when rounds are fair */
    id[77] = NVME_MDTS;
    store_le32(id + 80, 0x00010400);
    id[111] = 1; /* a controller for I/O */
    id[258] = 3; /* aborts at a time, from 0 */
    id[259] = NVME_EVENTS - 1;
    id[260] = 3; /* one firmware, not to be changed */
    id[262] = NVME_ERRORS - 1;
    store_le16(id + 266, 343);
    store_le16(id + 268, 373);
    id[512] = 0x66; /* entries of 2^6 and 2^4 bytes */
    id[513] = 0x44;
    store_le32(id + 516, 1);
    store_le16(id + 520, 1 | 4 | 8);                /* compare, dataset, write zeroes */
    id[525] = (uint8_t)(6 | n->disk.o.write_cache); /* flushes all namespaces, too */
    snprintf((char *)id + 768, 256, "nqn.2014-08.org.nvmexpress:1b361af4-%s", serial);
    store_le16(id + 2048, 0x9c4); /* the one power state: 25 W */
    store_le32(id + 2052, 16);
    store_le32(id + 2056, 4);
}

/* Two namespaces with one name would be two ways to one disk. */
static uint64_t eui64(const struct nvme *n)
{
    return UINT64_C(0x5254000000000000) + n->number;
}

/* Figure 245 */
static void identify_namespace(const struct nvme *n, uint8_t *id)
{
    const struct disk_options *o = &n->disk.o;
    uint64_t grain = MAX(o->discard_granularity, o->physical) >> n->block_bits;

    store_le64(id, n->blocks);
    store_le64(id + 8, n->blocks);
    store_le64(id + 16, n->blocks);
    id[24] = 1 | 16; /* thin, and it says which sizes it likes */
    id[33] = 8;      /* write zeroes may deallocate */
    uint16_t like = (uint16_t)MIN((o->physical >> n->block_bits) - 1, UINT64_C(0xffff));
    uint16_t give_back = (uint16_t)MIN(MAX(grain, UINT64_C(1)) - 1, UINT64_C(0xffff));
    store_le16(id + 64, like);
    store_le16(id + 66, like);
    store_le16(id + 68, give_back);
    store_le16(id + 70, give_back);
    store_be64(id + 120, eui64(n));
    id[128 + 2] = (uint8_t)n->block_bits;
    if (blockdev_read_only(n->disk.blockdev))
        id[99] = 1; /* NSATTR: write protected */
}

static uint16_t identify(struct nvme_request *q)
{
    const struct nvme *n = q->n;
    uint8_t id[IDENTIFY_SIZE] = { 0 };
    uint32_t nsid = word(q, NSID);

    switch (word(q, CDW10) & 0xff) {
    case 0:
        if (nsid == NVME_NSID || nsid == NVME_ALL_NAMESPACES)
            identify_namespace(n, id);
        else if (nsid != NVME_NSID)
            return NVME_INVALID_NAMESPACE | NVME_DNR;
        break;
    case 1:
        identify_controller(n, id);
        break;
    case 2: /* namespaces above this one */
        if (nsid >= NVME_ALL_NAMESPACES - 1)
            return NVME_INVALID_NAMESPACE | NVME_DNR;
        if (nsid < NVME_NSID)
            store_le32(id, NVME_NSID);
        break;
    case 3: /* names of the namespace: type, length, value */
        if (nsid != NVME_NSID)
            return NVME_INVALID_NAMESPACE | NVME_DNR;
        id[0] = 1;
        id[1] = 8;
        store_be64(id + 4, eui64(n));
        break;
    default:
        return NVME_INVALID_FIELD | NVME_DNR;
    }
    return give(q, id, sizeof(id));
}

/* ---- log pages, 5.14 ---------------------------------------------------------------------------------- */

enum { LOG_ERROR = 1, LOG_SMART = 2, LOG_FIRMWARE = 3, LOG_SIZE = 64 * NVME_ERRORS };

static uint64_t fill_errors(const struct nvme *n, uint8_t *log)
{
    for (unsigned i = 0; i < NVME_ERRORS && i < n->n_errors; i++) { /* the newest first */
        const struct nvme_error *e = &n->errors[(n->n_errors - 1 - i) % NVME_ERRORS];
        uint8_t *at = log + 64 * i;
        store_le64(at, e->count);
        store_le16(at + 8, e->sq);
        store_le16(at + 10, e->id);
        store_le16(at + 12, (uint16_t)(e->status << 1));
        store_le16(at + 14, 0xffff);
        store_le32(at + 24, NVME_NSID);
    }
    return 64 * NVME_ERRORS;
}

static uint64_t fill_smart(const struct nvme *n, uint8_t *log)
{
    store_le16(log + 1, 323); /* kelvin */
    log[3] = 100;
    log[4] = 10;
    /* in thousands of 512 bytes */
    store_le64(log + 32, div_round_up(n->read_blocks << (n->block_bits - 9), 1000));
    store_le64(log + 48, div_round_up(n->written_blocks << (n->block_bits - 9), 1000));
    store_le64(log + 64, n->reads);
    store_le64(log + 80, n->writes);
    store_le64(log + 176, n->n_errors);
    return 512;
}

static uint64_t fill_log(const struct nvme *n, unsigned page, uint8_t *log)
{
    switch (page) {
    case LOG_ERROR:
        return fill_errors(n, log);
    case LOG_SMART:
        return fill_smart(n, log);
    case LOG_FIRMWARE:
        log[0] = 1;
        padded(log + 8, 8, "1.0");
        return 512;
    }
    return 0;
}

static uint16_t get_log(struct nvme_request *q)
{
    uint8_t log[LOG_SIZE] = { 0 };
    uint64_t dwords = word(q, CDW10) >> 16 | (uint64_t)(word(q, CDW11) & 0xffff) << 16;
    uint64_t offset = load_le64(q->command + CDW12), size;

    size = fill_log(q->n, word(q, CDW10) & 0xff, log);
    if (!size)
        return NVME_LOG_INVALID | NVME_DNR;
    if (offset >= size || offset & 3)
        return NVME_INVALID_FIELD | NVME_DNR;
    uint16_t status = give(q, log + offset, MIN((dwords + 1) * 4, size - offset));
    bool keep = word(q, CDW10) & (1 << 15);
    if (!status && !keep && (word(q, CDW10) & 0xff) == LOG_ERROR)
        q->n->event_masked = false;
    return status;
}

/* ---- features, 5.21 and 5.9 ------------------------------------------------------------------------------ */

enum {
    F_ARBITRATION = 1,
    F_POWER = 2,
    F_TEMPERATURE = 4,
    F_ERROR_RECOVERY = 5,
    F_WRITE_CACHE = 6,
    F_QUEUES = 7,
    F_COALESCING = 8,
    F_VECTOR = 9,
    F_ATOMICITY = 10,
    F_EVENTS = 11,
};

static uint32_t queues_granted(const struct nvme *n)
{
    uint32_t io = (uint32_t)n->max_queues - 2; /* without the admin pair, from 0 */
    return io | io << 16;
}

/* select: 0 the present one, 1 the default, 2 the saved one, 3 what can be done with it. */
static uint16_t get_features(struct nvme_request *q)
{
    struct nvme *n = q->n;
    unsigned feature = word(q, CDW10) & 0xff, select = word(q, CDW10) >> 8 & 7;
    bool now = select == 0;

    if (select > 3)
        return NVME_INVALID_FIELD | NVME_DNR;
    switch (feature) {
    case F_ARBITRATION:
        q->result = now ? n->arbitration : 6;
        break;
    case F_TEMPERATURE:
        q->result = now ? n->temperature_limit : 343;
        break;
    case F_WRITE_CACHE:
        q->result = now ? n->write_cache : n->disk.o.write_cache;
        break;
    case F_QUEUES:
        q->result = queues_granted(n);
        break;
    case F_COALESCING:
        q->result = now ? n->coalescing : 0;
        break;
    case F_VECTOR:
        if ((word(q, CDW11) & 0xffff) >= n->vectors)
            return NVME_INVALID_FIELD | NVME_DNR;
        q->result = (word(q, CDW11) & 0xffff) | 1 << 16; /* nothing is held back */
        break;
    case F_EVENTS:
        q->result = now ? n->event_config : 0;
        break;
    case F_POWER:
    case F_ERROR_RECOVERY:
    case F_ATOMICITY:
        q->result = 0;
        break;
    default:
        return NVME_INVALID_FIELD | NVME_DNR;
    }
    if (select == 3) /* 4: can be changed */
        q->result =
            feature == F_POWER || feature == F_ERROR_RECOVERY || feature == F_ATOMICITY ? 0 : 4;
    return NVME_OK;
}

static uint16_t set_features(struct nvme_request *q)
{
    struct nvme *n = q->n;
    uint32_t value = word(q, CDW11);

    if (word(q, CDW10) & UINT32_C(1) << 31)
        return NVME_NOT_SAVEABLE | NVME_DNR;
    switch (word(q, CDW10) & 0xff) {
    case F_ARBITRATION:
        n->arbitration = value;
        break;
    case F_TEMPERATURE:
        n->temperature_limit = value & 0xffff;
        break;
    case F_WRITE_CACHE:
        n->write_cache = value & 1 && n->disk.o.write_cache;
        break;
    case F_QUEUES:
        if ((value & 0xffff) == 0xffff || value >> 16 == 0xffff)
            return NVME_INVALID_FIELD | NVME_DNR;
        for (unsigned i = 1; i < n->max_queues; i++)
            if (n->cq[i].used || n->sq[i].used)
                return NVME_SEQUENCE_ERROR | NVME_DNR;
        q->result = MIN(value & 0xffff, queues_granted(n) & 0xffff) |
                    MIN(value >> 16, queues_granted(n) >> 16) << 16;
        break;
    case F_COALESCING:
        n->coalescing = value & 0xffff;
        break;
    case F_VECTOR:
        if ((value & 0xffff) >= n->vectors)
            return NVME_INVALID_FIELD | NVME_DNR;
        break;
    case F_EVENTS:
        n->event_config = value;
        break;
    case F_POWER:
    case F_ERROR_RECOVERY:
    case F_ATOMICITY:
        return value & 0x1f ? NVME_INVALID_FIELD | NVME_DNR : NVME_OK;
    default:
        return NVME_INVALID_FIELD | NVME_DNR;
    }
    return NVME_OK;
}

/* ---- the rest --------------------------------------------------------------------------------------------- */

/* The request waits until there is something to tell. */
static uint16_t async_event(struct nvme_request *q)
{
    struct nvme *n = q->n;

    if (n->event_due) {
        q->result = n->event_due;
        n->event_due = 0;
        return NVME_OK;
    }
    if (n->events == NVME_EVENTS)
        return NVME_EVENT_LIMIT | NVME_DNR;
    n->waiting[n->events++] = q;
    return NVME_PENDING;
}

uint16_t nvme_admin(struct nvme_request *q)
{
    if (q->command[1] & 0xc3)
        return NVME_INVALID_FIELD | NVME_DNR;
    switch (q->command[0]) {
    case DELETE_SQ:
        return delete_sq(q);
    case CREATE_SQ:
        return create_sq(q);
    case GET_LOG:
        return get_log(q);
    case DELETE_CQ:
        return delete_cq(q);
    case CREATE_CQ:
        return create_cq(q);
    case IDENTIFY:
        return identify(q);
    case ABORT:
        q->result = 1; /* not aborted: it ends by itself, section 5.1 */
        return NVME_OK;
    case SET_FEATURES:
        return set_features(q);
    case GET_FEATURES:
        return get_features(q);
    case ASYNC_EVENT:
        return async_event(q);
    }
    return NVME_INVALID_OPCODE | NVME_DNR;
}
