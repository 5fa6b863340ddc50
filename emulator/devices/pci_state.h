/* What pci.c and pci_msi.c share of a function. */
#ifndef DEVICES_PCI_STATE_H
#define DEVICES_PCI_STATE_H

#include "pci.h"

#include <pthread.h>
#include <stdatomic.h>

/* Configuration space, PCI 3.0 section 6.1 and 6.2. */
enum {
    PCI_VENDOR = 0x00,
    PCI_DEVICE = 0x02,
    PCI_COMMAND = 0x04,
    PCI_COMMAND_IO = 1,
    PCI_COMMAND_MEMORY = 2,
    PCI_COMMAND_MASTER = 4,
    PCI_COMMAND_NO_PIN = 0x400,
    PCI_STATUS = 0x06,
    PCI_STATUS_PIN = 8,
    PCI_STATUS_CAPABILITIES = 0x10,
    PCI_REVISION = 0x08,
    PCI_CLASS = 0x09,
    PCI_HEADER_TYPE = 0x0e,
    PCI_BAR = 0x10,
    PCI_SUBSYSTEM_VENDOR = 0x2c,
    PCI_SUBSYSTEM = 0x2e,
    PCI_ROM = 0x30,
    PCI_CAPABILITIES = 0x34,
    PCI_LINE = 0x3c,
    PCI_PIN = 0x3d,
};

enum { BAR_NONE, BAR_MEMORY, BAR_PORTS, BAR_ROM };
enum { BAR_OF_ROM = PCI_BARS, BARS_ALL = PCI_BARS + 1 };

struct pci_bar {
    unsigned kind, flags;
    uint64_t size;
    const struct memory_io *io;
    void *opaque; /* or the RAM */
    bool mapped;
    uint64_t at; /* where, while mapped */
};

struct pci_bus {
    struct pci_host host;
    /* Guards configuration, BARs, vectors and pins of all functions. Held while a message is sent or a pin goes to the host:
     * neither calls back. */
    pthread_mutex_t lock;
    struct pci_function *functions[256];
    uint8_t pins[32][4]; /* how many functions pull each */
};

struct pci_state {
    uint8_t config[PCI_CONFIG_SIZE], mask[PCI_CONFIG_SIZE];
    bool express, interrupt;
    unsigned capabilities_end; /* the first free byte */
    struct pci_bar bars[BARS_ALL];
    void *rom;           /* page-aligned copy */
    bool pin, pulled;    /* what the device wants, what the host sees */
    _Atomic bool master; /* copies that other threads read */

    unsigned msi; /* offset of the capability, 0: none */
    unsigned msix, vectors;
    uint8_t *table; /* entries of 16 bytes, then pending bits */
};

/* With the bus's lock held: capabilities changed, perhaps vectors are free to go. */
void pci_msi_update(struct pci_function *f);
void pci_msi_reset(struct pci_function *f);
bool pci_msi_on(const struct pci_function *f); /* MSI or MSI-X: the pin is silent */
void pci_msi_free(struct pci_function *f);
void pci_pin_update(struct pci_function *f);

#endif
