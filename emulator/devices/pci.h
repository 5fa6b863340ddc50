/* PCI and PCI Express: configuration space, BARs, interrupts and DMA of functions on one root bus.
 *
 * Source: PCI Local Bus 3.0 sections 6.1 to 6.8, PCI Express Base 2.0 chapter 7. Units: bytes. The bus has a lock of its own
 * for configuration space; callbacks come without it.
 */
#ifndef DEVICES_PCI_H
#define DEVICES_PCI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct memory;
struct memory_io;
struct pci_bus;

enum { PCI_BARS = 6, PCI_CONFIG_SIZE = 4096 };

/* How a host bridge offers the bus. Ports are what the machine reads by IN and OUT: same callbacks as memory. */
struct pci_host {
    struct memory *memory;
    void *opaque;
    int (*map_ports)(void *opaque, uint16_t port, uint32_t size, const struct memory_io *io,
                     void *device);
    void (*unmap_ports)(void *opaque, uint16_t port);
    /* INTA to INTD of a device, level. pin: 0 to 3. */
    void (*interrupt)(void *opaque, unsigned device, unsigned pin, bool up);
    void (*message)(void *opaque, uint64_t address, uint32_t data); /* MSI, MSI-X */
};

struct pci_bus *pci_bus_new(const struct pci_host *host); /* NULL: no memory */
void pci_bus_free(struct pci_bus *bus);                   /* its functions are removed already */

struct pci_identity {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint32_t class_code; /* 0x010802: base, sub, interface */
    uint8_t revision;
    bool interrupt;     /* has an INTA pin */
    bool express;       /* gets an Express endpoint capability */
    bool multifunction; /* function 0 of a device with more */
};

struct pci_function {
    struct pci_bus *bus;
    uint8_t devfn; /* device << 3 | function */
    /* Called after the guest wrote to configuration space (may be NULL). */
    void (*config_written)(struct pci_function *f, unsigned offset, unsigned size);
    /* Called before it reads there, for registers whose value depends on the moment (may be NULL). */
    void (*config_reading)(struct pci_function *f, unsigned offset, unsigned size);
    void *opaque;
    struct pci_state *state; /* pci.c's: configuration bytes, write masks, BARs, vectors */
};

/* addr: "5" or "5.1" as -device has it; NULL: the first free one. Fails when it is taken. */
int pci_add(struct pci_bus *bus, struct pci_function *f, const struct pci_identity *id,
            const char *addr, struct error **err);
void pci_remove(struct pci_function *f);
/* Commands, BARs and vectors as after power on. */
void pci_reset(struct pci_function *f);

/* Before the machine runs. Sizes are powers of two, at least 16 (memory) or 4 (ports). */
enum { PCI_BAR_64 = 1, PCI_BAR_PREFETCH = 2 };
int pci_bar_memory(struct pci_function *f, unsigned bar, uint64_t size, unsigned flags,
                   const struct memory_io *io, void *opaque);
int pci_bar_ports(struct pci_function *f, unsigned bar, uint32_t size, const struct memory_io *io,
                  void *opaque);
/* An expansion ROM (section 6.2.5.2) of these bytes, which live as long as the function. */
int pci_rom(struct pci_function *f, const void *bytes, size_t length);
/* Room for a capability of so many bytes, its id and link filled in; its offset, or 0 when there is no room. */
unsigned pci_capability(struct pci_function *f, uint8_t id, unsigned length);
/* Raw configuration bytes and which of their bits the guest may write. */
uint8_t *pci_config(struct pci_function *f, unsigned offset);
uint8_t *pci_config_mask(struct pci_function *f, unsigned offset);

/* The table and the pending bits lie in a BAR of their own, which this makes (4 KiB for up to 128 vectors). */
int pci_msix(struct pci_function *f, unsigned bar, unsigned vectors);
int pci_msi(struct pci_function *f, unsigned vectors); /* 1 to 32, a power of two */
bool pci_msix_on(struct pci_function *f);
/* Sends the vector if MSI-X or MSI is on (held back while masked), else nothing: the caller uses the pin. */
bool pci_notify(struct pci_function *f, unsigned vector);
/* The INTx pin; nothing is sent while MSI is on or the command register forbids it. */
void pci_pin(struct pci_function *f, bool up);

/* DMA. -EFAULT where it is not RAM or the function is no bus master; then nothing or some was moved. */
int pci_dma_read(struct pci_function *f, uint64_t address, void *to, size_t length);
int pci_dma_write(struct pci_function *f, uint64_t address, const void *from, size_t length);
/* Where RAM lies in the host, up to *length; NULL as above. Written RAM is told by pci_dma_done. */
void *pci_dma_map(struct pci_function *f, uint64_t address, bool write, uint64_t *length);
void pci_dma_done(struct pci_function *f, uint64_t address, uint64_t length);

/* For the host bridges: configuration accesses of 1, 2 or 4 bytes; bus 0 only, ones elsewhere. */
uint32_t pci_config_read(struct pci_bus *bus, uint8_t devfn, unsigned offset, unsigned size);
void pci_config_write(struct pci_bus *bus, uint8_t devfn, unsigned offset, unsigned size,
                      uint32_t value);
/* For firmware's tables and `info pci`: function number i in order of devfn, NULL past the last. */
struct pci_function *pci_function_at(struct pci_bus *bus, unsigned i);

#endif
