/* What every device is: a row in the table of types, options as -device spells them, and a life.
 *
 *     created  the core allocates `size` bytes, zeroed, and fills the options in
 *     realize  the device checks its options, plugs itself into its bus, makes its registers and timers
 *     reset    to the state after power on; CPUs are stopped, no alarm rings, and drain has returned
 *     drain    returns when no request of the device is under way in the block graph (with the machine stopped, or at
 *              the end); what has not been begun may wait until `resume`
 *     free     what realize made, also after a realize that failed halfway
 *
 * Threads: register callbacks come from any CPU's thread, completions from the graph's threads, alarms from the clock's; a
 * device has a lock of its own and never waits for I/O while it holds it. It may pull interrupts and do DMA under its lock.
 */
#ifndef DEVICES_DEVICE_H
#define DEVICES_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/options.h"

struct clock;
struct error;
struct memory;
struct irq;
struct pci_bus;
struct ports;

/* What the machine lends to its devices. */
struct device_host {
    struct memory *memory;
    struct clock *clock;
    struct pci_bus *pci;
    struct ports *ports; /* what IN and OUT reach; NULL: the machine has none */
    void *machine;
    /* An ISA interrupt, 0 to 15. NULL: the machine has none. */
    struct irq (*isa_irq)(void *machine, unsigned number);
    /* A device ends the machine with this exit status of the process. */
    void (*exit)(void *machine, int status);
    /* A device met an error that stops the machine (werror=stop). NULL: not offered. */
    void (*stop)(void *machine, const char *why);
};

struct device;

struct device_type {
    const char *name;  /* "virtio-blk-pci" */
    const char *alias; /* or NULL */
    const char *help;  /* a few words for -device help */
    const char *bus;   /* "PCI", "IDE" (a port of AHCI), "ISA"; NULL: the machine itself */
    size_t size;       /* of the state, whose first member is struct device */
    const struct opt_def *options; /* members of the state; id, bus, bootindex are the core's */
    int (*realize)(struct device *d, struct error **err);
    void (*reset)(struct device *d);
    void (*drain)(struct device *d);
    void (*resume)(struct device *d);
    void (*free)(struct device *d);
    /* For firmware's order of booting: "/pci@i0cf8/scsi@5/disk@0,0", to be freed; NULL: cannot be booted from. */
    char *(*boot_path)(struct device *d);
};

struct device {
    const struct device_type *type;
    const struct device_host *host;
    struct device *next; /* in the machine's list, in order of creation */
    char *id;            /* NULL: none */
    char *bus;           /* as the user named it, "ide.0"; NULL: any */
    int boot_index;      /* -1: none */
};

/* The table in devices/registry.c; NULL past the last, or when there is none of that name or alias. */
const struct device_type *device_type_at(unsigned i);
const struct device_type *device_type_find(const char *name);

/* "NAME,key=value,..." parsed already: {"driver": NAME, "id": ..., ...}. Realized, and at the end of *list.
 * The object stays as it is. */
int device_add(struct device **list, const struct device_host *host, json_t *options,
               struct error **err);
struct device *device_find(struct device *list, const char *id);
void devices_reset(struct device *list);
void devices_drain(struct device *list);
void devices_resume(struct device *list);
void devices_free(struct device **list); /* the last one first */

#endif
