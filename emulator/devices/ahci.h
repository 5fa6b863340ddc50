/* An AHCI 1.0 controller (8086:2922, as ICH9 has it) and the disks at its ports: what ahci.c (controller and ports),
 * ahci_command.c (slots and FISes), ata.c, ata_identify.c and atapi.c share.
 *
 * A port runs one command at a time, or up to 32 queued ones (NCQ). A command's place on the disk is fixed when it is taken
 * from its slot, so that a reset can only forget requests, never turn them elsewhere; and it waits until they have ended
 * (no lock held), since they may still write to guest memory.
 *
 * Threads: a port's `lock` guards all of the port and its drive; the controller's `lock` its own registers. A port's lock
 * may be held when the controller's is taken.
 */
#ifndef DEVICES_AHCI_H
#define DEVICES_AHCI_H

#include "disk.h"
#include "dma.h"
#include "pci.h"

#include <pthread.h>

enum { AHCI_PORTS = 6, AHCI_SLOTS = 32, ATA_SECTOR = 512, ATAPI_BLOCK = 2048, ATAPI_COMMAND = 12 };

/* The task file, ATA8-ACS section 6. */
enum {
    ATA_ERR = 0x01,
    ATA_DRQ = 0x08,
    ATA_SEEK = 0x10,
    ATA_DF = 0x20,
    ATA_RDY = 0x40,
    ATA_BSY = 0x80,
    ATA_READY = ATA_RDY | ATA_SEEK,
    ATA_E_ABORT = 0x04,
    ATA_E_NOT_FOUND = 0x10,
    ATA_E_UNCORRECTABLE = 0x40,
};

/* Interrupts of a port, AHCI section 3.3.5. */
enum {
    PORT_I_D2H = 1 << 0,
    PORT_I_PIO = 1 << 1,
    PORT_I_BITS = 1 << 3,
    PORT_I_BUS = 1 << 29,
    PORT_I_TASK = 1 << 30,
};

struct ahci;
struct ahci_port;

struct ide_drive {
    struct device device;
    struct disk disk;
    char *model, *firmware;
    uint64_t unit;
    bool cd;
    struct ahci *controller; /* NULL: not plugged in */
    unsigned port;
    uint64_t sectors; /* of 512 bytes */
    /* under the port's lock */
    bool write_cache, look_ahead, smart;
    uint8_t multiple;
    bool tray_open, locked, medium_changed;
    uint8_t sense_key, sense_code, sense_more;
    uint8_t failed_tag, failed_status, failed_error; /* of the last queued command that failed */
};

enum ahci_end { AHCI_END_D2H, AHCI_END_PIO, AHCI_END_QUEUED };

struct ahci_request {
    struct disk_request d;
    struct ahci_port *port;
    struct ahci_request *next;
    uint8_t slot, tag;
    enum ahci_end end;
    uint64_t header; /* where the guest has the slot's */
    uint32_t flags;  /* its first word */
    uint64_t table;  /* where the command table is */
    uint8_t fis[20]; /* register, host to device */
    uint8_t packet[16];
    /* what the task file says when it has ended */
    uint8_t status, error;
    uint8_t count, lba[6];
    bool bus_error;
    struct dma data;
    uint64_t moved; /* bytes */
    uint8_t *buffer;
    unsigned at, ranges; /* TRIM */
};

struct ahci_port {
    struct ahci *ahci;
    struct ide_drive *drive; /* NULL: nothing there; set before the machine runs */
    unsigned number;
    pthread_mutex_t reset_lock; /* outside `lock` */
    pthread_mutex_t lock;
    uint64_t list, fises;
    uint32_t interrupts, enabled, command, task, signature, control, errors, active, issued;
    uint32_t running;            /* slots taken and not ended */
    bool busy, halted;           /* one that is not queued runs; an error waits for the driver */
    bool resetting, reset_asked; /* by a control FIS, first half */
    bool greet;                  /* the signature's FIS waits for FRE */
};

struct ahci {
    struct device device;
    struct pci_function pci;
    char *addr;
    bool made;
    pthread_mutex_t lock;
    uint32_t control, interrupts, pending; /* pending: ports that have something enabled */
    struct ahci_port ports[AHCI_PORTS];
};

/* ---- ahci.c --------------------------------------------------------------------------------- */

/* With the port's lock held. */
void ahci_port_interrupt(struct ahci_port *p, uint32_t causes);
/* The task file as after power on; the signature is posted as soon as it can be. */
void ahci_port_greet(struct ahci_port *p);

/* ---- ahci_command.c --------------------------------------------------------------------------- */

/* Begins what is issued. Without the lock. */
void ahci_run(struct ahci_port *p);
/* From `done` of a request. Without the lock; frees it. */
void ahci_end(struct ahci_request *q);
void ahci_post_signature(struct ahci_port *p);
/* The guest's buffer, n bytes of it (less when short is set and it is shorter); write: the device fills it. */
int ahci_map(struct ahci_request *q, uint64_t n, bool write, bool is_short);

/* ---- ata.c, atapi.c, ata_identify.c -------------------------------------------------------------- */

/* With the port's lock held: true when q->d is to be begun, false when it has ended. */
bool ata_command(struct ahci_request *q);
bool atapi_packet(struct ahci_request *q);
void ata_identify(const struct ide_drive *drive, uint8_t to[ATA_SECTOR]);
void atapi_identify(const struct ide_drive *drive, uint8_t to[ATA_SECTOR]);
/* Ends a command. */
bool ata_ok(struct ahci_request *q);
bool ata_abort(struct ahci_request *q);
bool ata_fail(struct ahci_request *q, uint8_t error);
/* Bytes for the guest, by PIO or DMA alike. */
bool ata_give(struct ahci_request *q, const void *from, size_t n);
void ata_ended(struct disk_request *d, int result);

#endif
