/* From a command slot to its end: AHCI 1.0 section 4.2 (headers, tables, received FISes) and 5.3 (what a port does). */
#include "ahci.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/macros.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    HEADER = 32,
    HEADER_ATAPI = 1 << 5,
    HEADER_CLEAR_BUSY = 1 << 10,
    TABLE_PACKET = 0x40,
    TABLE_PRDT = 0x80,
    PRD = 16,
    FIS_H2D = 0x27,
    FIS_D2H = 0x34,
    FIS_PIO = 0x5f,
    FIS_BITS = 0xa1,
    FIS_IS_COMMAND = 0x80,
    FIS_INTERRUPT = 0x40,
    FIS_CONTROL = 15,
    CONTROL_RESET = 4,
    RECEIVED_PIO = 0x20,
    RECEIVED_D2H = 0x40,
    RECEIVED_BITS = 0x58,
    CMD_START = 1,
    CMD_RECEIVE = 1 << 4,
    READ_QUEUED = 0x60,
    WRITE_QUEUED = 0x61,
    BATCH = AHCI_SLOTS,
};

/* On this thread commands of the port are begun: what ends at once need not begin the next one. */
static _Thread_local const struct ahci_port *beginning;

/* ---- received FISes ---------------------------------------------------------------------------- */

static void post(struct ahci_port *p, unsigned at, const uint8_t *fis, size_t n)
{
    if (p->command & CMD_RECEIVE)
        pci_dma_write(&p->ahci->pci, p->fises + at, fis, n); /* to nowhere: the guest's loss */
}

static void post_registers(struct ahci_port *p, const struct ahci_request *q)
{
    uint8_t fis[20] = { FIS_D2H,   FIS_INTERRUPT, q->status, q->error,  q->lba[0], q->lba[1],
                        q->lba[2], q->fis[7],     q->lba[3], q->lba[4], q->lba[5] };
    fis[12] = q->count;
    post(p, RECEIVED_D2H, fis, sizeof(fis));
}

static void post_pio(struct ahci_port *p, const struct ahci_request *q)
{
    uint8_t fis[20] = { FIS_PIO,
                        FIS_INTERRUPT | 0x20,
                        ATA_READY | ATA_DRQ,
                        q->error,
                        q->lba[0],
                        q->lba[1],
                        q->lba[2],
                        q->fis[7] };
    fis[12] = q->count;
    fis[15] = q->status;
    store_le16(fis + 16, (uint16_t)MIN(q->moved, UINT64_C(0xfffe)));
    post(p, RECEIVED_PIO, fis, sizeof(fis));
}

void ahci_post_signature(struct ahci_port *p)
{
    uint8_t fis[20] = { FIS_D2H, 0, (uint8_t)p->task, (uint8_t)(p->task >> 8) };

    if (!p->greet || !(p->command & CMD_RECEIVE))
        return;
    p->greet = false;
    fis[4] = (uint8_t)(p->signature >> 8);
    fis[5] = (uint8_t)(p->signature >> 16);
    fis[6] = (uint8_t)(p->signature >> 24);
    fis[12] = (uint8_t)p->signature;
    post(p, RECEIVED_D2H, fis, sizeof(fis));
}

/* ---- the end of a command ------------------------------------------------------------------------- */

static void free_request(struct ahci_request *q)
{
    dma_free(&q->data);
    free(q->buffer);
    free(q);
}

static void end_queued(struct ahci_port *p, const struct ahci_request *q, bool failed)
{
    uint8_t fis[8] = { FIS_BITS, FIS_INTERRUPT, q->status & 0x77, q->error };

    if (failed) {
        p->drive->failed_tag = q->tag;
        p->drive->failed_status = q->status;
        p->drive->failed_error = q->error;
    } else {
        store_le32(fis + 4, UINT32_C(1) << q->tag);
        p->active &= ~(UINT32_C(1) << q->tag);
    }
    post(p, RECEIVED_BITS, fis, sizeof(fis));
    ahci_port_interrupt(p, PORT_I_BITS | (failed ? PORT_I_TASK : 0));
}

/* 6.2.2: after an error the slot stays issued and the port stands until ST was cleared. */
static void end_locked(struct ahci_request *q)
{
    struct ahci_port *p = q->port;
    uint32_t bit = UINT32_C(1) << q->slot;
    bool failed = q->status & ATA_ERR || q->bus_error;

    p->running &= ~bit;
    if (q->end != AHCI_END_QUEUED)
        p->busy = false;
    if (p->resetting)
        return;
    p->task = (uint32_t)q->error << 8 | q->status;
    p->halted |= failed;
    if (q->bus_error) {
        ahci_port_interrupt(p, PORT_I_BUS);
        return;
    }
    if (q->end == AHCI_END_QUEUED) {
        end_queued(p, q, failed);
        return;
    }
    uint8_t moved[4];
    store_le32(moved, (uint32_t)q->moved);
    pci_dma_write(&p->ahci->pci, q->header + 4, moved, sizeof(moved));
    if (!failed)
        p->issued &= ~bit;
    if (q->end == AHCI_END_PIO && !failed) {
        post_pio(p, q);
        ahci_port_interrupt(p, PORT_I_PIO);
    } else {
        post_registers(p, q);
        ahci_port_interrupt(p, PORT_I_D2H | (failed ? PORT_I_TASK : 0));
    }
}

void ahci_end(struct ahci_request *q)
{
    struct ahci_port *p = q->port;
    {
        LOCK_SCOPE(&p->lock);
        end_locked(q);
        free_request(q);
    }
    if (beginning != p)
        ahci_run(p);
}

/* ---- data ----------------------------------------------------------------------------------------------- */

int ahci_map(struct ahci_request *q, uint64_t n, bool write, bool is_short)
{
    uint32_t entries = q->flags >> 16;

    dma_free(&q->data);
    q->data.write = write;
    for (uint32_t i = 0; i < entries && q->data.length < n; i++) {
        uint8_t prd[PRD];
        uint64_t at = q->table + TABLE_PRDT + (uint64_t)i * PRD;
        int r = pci_dma_read(&q->port->ahci->pci, at, prd, sizeof(prd));
        if (r == 0)
            r = dma_add(&q->data, load_le64(prd),
                        MIN((load_le32(prd + 12) & 0x3fffff) + UINT64_C(1), n - q->data.length));
        if (r < 0)
            return r;
    }
    return q->data.length < n && !is_short ? -EMSGSIZE : 0;
}

/* ---- the beginning --------------------------------------------------------------------------------------- */

/* Reads header and table of a slot; false: they are not in memory. */
static bool load(struct ahci_request *q)
{
    struct ahci_port *p = q->port;
    struct pci_function *f = &p->ahci->pci;
    uint8_t header[HEADER];

    q->header = p->list + (uint64_t)q->slot * HEADER;
    if (pci_dma_read(f, q->header, header, sizeof(header)) < 0)
        return false;
    q->flags = load_le32(header);
    q->table = load_le64(header + 8) & ~UINT64_C(127);
    return pci_dma_read(f, q->table, q->fis, sizeof(q->fis)) == 0 &&
           (!(q->flags & HEADER_ATAPI) ||
            pci_dma_read(f, q->table + TABLE_PACKET, q->packet, sizeof(q->packet)) == 0);
}

/* A control FIS: reset set, then cleared. With it nothing ends but the slot. */
static void control(struct ahci_request *q)
{
    struct ahci_port *p = q->port;

    if (q->fis[FIS_CONTROL] & CONTROL_RESET) {
        p->reset_asked = true;
        p->task = ATA_BSY | ATA_READY;
    } else if (p->reset_asked) {
        p->reset_asked = false;
        ahci_port_greet(p);
    }
    if (q->flags & HEADER_CLEAR_BUSY)
        p->task &= ~(uint32_t)(ATA_BSY | ATA_DRQ);
    p->issued &= ~(UINT32_C(1) << q->slot);
    p->running &= ~(UINT32_C(1) << q->slot);
    p->busy = false;
}

static bool is_queued(const struct ahci_request *q)
{
    return !q->port->drive->cd && (q->fis[2] == READ_QUEUED || q->fis[2] == WRITE_QUEUED);
}

/* Whether the command may run beside what runs already. */
static bool may_run(const struct ahci_request *q)
{
    const struct ahci_port *p = q->port;
    return !p->busy && (is_queued(q) || !p->running);
}

/* The request of the lowest slot that is issued and may run, loaded; NULL: none. */
static struct ahci_request *next_request(struct ahci_port *p)
{
    uint32_t waiting = p->issued & ~p->running;

    if (!waiting || !(p->command & CMD_START) || p->halted || p->resetting || p->busy || !p->drive)
        return NULL;
    struct ahci_request *q = calloc(1, sizeof(*q));
    if (!q)
        return NULL;
    q->port = p;
    q->slot = (uint8_t)__builtin_ctz(waiting);
    dma_init(&q->data, &p->ahci->pci, false);
    if (!load(q)) {
        p->halted = true;
        ahci_port_interrupt(p, PORT_I_BUS);
        free(q);
        return NULL;
    }
    if (!may_run(q)) {
        free(q);
        return NULL;
    }
    p->running |= UINT32_C(1) << q->slot;
    return q;
}

/* Queued commands leave their slot at once; the tag stays active until they end. */
static void accept_queued(struct ahci_request *q)
{
    struct ahci_port *p = q->port;

    q->end = AHCI_END_QUEUED;
    q->tag = q->fis[12] >> 3 & 31;
    p->issued &= ~(UINT32_C(1) << q->slot);
    p->task = ATA_READY;
}

/* The next one that is to be begun; those that end at once have. */
static struct disk_request *next_begun(struct ahci_port *p)
{
    LOCK_SCOPE(&p->lock);
    for (struct ahci_request *q; (q = next_request(p));) {
        bool begun = false;
        if (q->fis[0] == FIS_H2D && !(q->fis[1] & FIS_IS_COMMAND)) {
            control(q);
            free_request(q);
            continue;
        }
        if (is_queued(q)) {
            accept_queued(q);
        } else {
            p->busy = true;
            p->task = ATA_BSY | ATA_READY;
        }
        if (q->fis[0] == FIS_H2D)
            begun = ata_command(q);
        else
            ata_abort(q);
        if (begun)
            return &q->d;
        end_locked(q);
        free_request(q);
    }
    return NULL;
}

void ahci_run(struct ahci_port *p)
{
    const struct ahci_port *outer = beginning;
    unsigned count;

    if (!p->drive)
        return;
    beginning = p;
    do {
        struct disk_request *batch[BATCH], *q = NULL;
        count = 0;
        while (count < BATCH && (q = next_begun(p)))
            batch[count++] = q;
        disk_submit_all(&p->drive->disk, batch, count);
    } while (count);
    beginning = outer;
}
