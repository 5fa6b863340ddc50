/* An NVM Express 1.4 controller with one namespace: what nvme.c (registers, queues), nvme_admin.c and nvme_io.c share.
 *
 * Life of a command: fetched from its submission queue under the lock, parsed, begun without the lock; when it ends it is
 * put on its completion queue's list and from there, as soon as there is room, into the guest's memory. A queue has no more
 * than its own size under way, however fast the guest rings.
 *
 * Threads: `lock` guards everything but what realize made. While `resetting`, what ends is forgotten.
 */
#ifndef DEVICES_NVME_H
#define DEVICES_NVME_H

#include "disk.h"
#include "dma.h"
#include "pci.h"

#include <pthread.h>

enum {
    NVME_PAGE = 4096, /* the only memory page size: CAP.MPSMIN = MPSMAX = 0 */
    NVME_COMMAND = 64,
    NVME_COMPLETION = 16,
    NVME_QUEUES = 65, /* pairs, the admin queues included */
    NVME_QUEUE_SIZE = 2048,
    NVME_MDTS = 7, /* pages of a transfer, as a power of two */
    NVME_MOST_DATA = NVME_PAGE << NVME_MDTS,
    NVME_EVENTS = 4, /* asynchronous event requests under way */
    NVME_ERRORS = 16,
    NVME_NSID = 1,
    NVME_ALL_NAMESPACES = 0xffffffffu,
};

/* Status field, section 4.6.1: type << 8 | code. */
enum {
    NVME_OK = 0,
    NVME_INVALID_OPCODE = 0x001,
    NVME_INVALID_FIELD = 0x002,
    NVME_TRANSFER_ERROR = 0x004,
    NVME_INTERNAL_ERROR = 0x006,
    NVME_INVALID_NAMESPACE = 0x00b,
    NVME_SEQUENCE_ERROR = 0x00c,
    NVME_PRP_OFFSET = 0x013,
    NVME_LBA_RANGE = 0x080,
    NVME_CAPACITY = 0x081,
    NVME_CQ_INVALID = 0x100,
    NVME_QID_INVALID = 0x101,
    NVME_QUEUE_SIZE_INVALID = 0x102,
    NVME_EVENT_LIMIT = 0x105,
    NVME_VECTOR_INVALID = 0x108,
    NVME_LOG_INVALID = 0x109,
    NVME_DELETION_INVALID = 0x10c,
    NVME_NOT_SAVEABLE = 0x10d,
    NVME_READ_ONLY = 0x182,
    NVME_WRITE_FAULT = 0x280,
    NVME_READ_FAULT = 0x281,
    NVME_COMPARE_FAILURE = 0x285,
    NVME_DNR = 0x4000, /* do not try again */
};

struct nvme;

struct nvme_request {
    struct disk_request d;
    struct nvme *n;
    struct nvme_request *next; /* on a completion queue's list */
    uint16_t sq, id, status;
    uint32_t result;
    uint16_t sq_head; /* when it was fetched */
    uint8_t command[NVME_COMMAND];
    struct dma data;
    uint8_t *buffer;     /* compare: what the disk holds; deallocate: the ranges */
    struct iovec bounce; /* compare */
    unsigned at, ranges; /* deallocate: the next one */
};

struct nvme_sq {
    bool used;
    uint16_t size, head, tail, cq;
    uint16_t under_way;
    uint64_t base;
    struct nvme_request *deleting; /* ends when nothing is under way */
};

struct nvme_cq {
    bool used, interrupts, raise;
    uint8_t phase;
    uint16_t size, head, tail, vector, users;
    uint64_t base;
    struct nvme_request *done, **done_end;
};

struct nvme_error { /* an entry of the error log, section 5.14.1.1 */
    uint64_t count;
    uint16_t sq, id, status;
};

struct nvme {
    struct device device;
    struct pci_function pci;
    struct disk disk;
    char *addr;
    uint64_t pairs, vectors;    /* pairs: of I/O queues */
    pthread_mutex_t reset_lock; /* outside `lock` */
    pthread_mutex_t lock;
    bool made;
    unsigned max_queues;     /* the admin pair included */
    uint64_t blocks, number; /* of the disk; of the controller in this process */
    unsigned block_bits;
    /* under lock */
    uint32_t cc, csts, aqa, mask;
    uint64_t asq, acq;
    bool resetting, write_cache;
    struct nvme_sq sq[NVME_QUEUES];
    struct nvme_cq cq[NVME_QUEUES];
    struct nvme_request *waiting[NVME_EVENTS]; /* for events */
    unsigned events;
    uint32_t event_due; /* 0: none; what the completion says */
    bool event_masked;  /* told, and the log was not read yet */
    uint32_t event_config, temperature_limit, arbitration, coalescing;
    uint64_t reads, writes, read_blocks, written_blocks; /* for the log */
    uint64_t n_errors;
    struct nvme_error errors[NVME_ERRORS];
};

/* ---- nvme.c --------------------------------------------------------------------------------- */

/* It has ended: status, result. Without the lock; frees it. */
void nvme_end(struct nvme_request *q, uint16_t status);
/* With the lock held; the caller rings with nvme_raise afterwards. */
void nvme_end_locked(struct nvme_request *q, uint16_t status);
void nvme_fatal(struct nvme *n);
/* The guest is told about an event, section 5.2; with the lock held. */
void nvme_event(struct nvme *n, uint32_t what);

/* ---- nvme_prp.c ----------------------------------------------------------------------------- */

/* The guest's buffer of this length as the command's PRP entries say; write: the device fills it. A status. */
uint16_t nvme_map(struct nvme_request *q, uint64_t length, bool write);

/* ---- nvme_admin.c, nvme_io.c ------------------------------------------------------------------ */

/* With the lock held. Answers NVME_PENDING: it ends later, or is to be begun by the caller. */
enum { NVME_PENDING = 0xffff, NVME_BEGIN = 0xfffe };
uint16_t nvme_admin(struct nvme_request *q);
uint16_t nvme_io(struct nvme_request *q);

#endif
