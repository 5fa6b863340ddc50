/* Functions on the root bus: configuration space, BARs, pins, DMA. Interrupt messages are in pci_msi.c. */
#include "pci.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/round.h"
#include "cpu/memory.h"
#include "pci_state.h"

#include <stdlib.h>
#include <string.h>

struct pci_bus *pci_bus_new(const struct pci_host *host)
{
    struct pci_bus *bus = calloc(1, sizeof *bus);
    if (!bus)
        return NULL;
    bus->host = *host;
    pthread_mutex_init(&bus->lock, NULL);
    return bus;
}

void pci_bus_free(struct pci_bus *bus)
{
    if (!bus)
        return;
    pthread_mutex_destroy(&bus->lock);
    free(bus);
}

/* "5" or "5.1", numbers in hexadecimal; -1: neither. */
static int parse_address(const char *addr)
{
    char *end;
    unsigned long device = strtoul(addr, &end, 16), function = 0;
    if (end == addr || device > 31)
        return -1;
    if (*end == '.') {
        const char *from = end + 1;
        function = strtoul(from, &end, 16);
        if (end == from || function > 7)
            return -1;
    }
    return *end ? -1 : (int)(device << 3 | function);
}

static int choose(struct pci_bus *bus, const char *addr, struct error **err)
{
    if (addr) {
        int devfn = parse_address(addr);
        if (devfn < 0)
            return error_set(err, EINVAL,
                             "addr '%s' is no PCI address: DEVICE or DEVICE.FUNCTION, 0 to 1f and "
                             "0 to 7 in hexadecimal",
                             addr);
        if (bus->functions[devfn])
            return error_set(err, EBUSY, "PCI address %02x.%x is taken by %04x:%04x", devfn >> 3,
                             devfn & 7, load_le16(bus->functions[devfn]->state->config),
                             load_le16(bus->functions[devfn]->state->config + 2));
        return devfn;
    }
    for (int device = 0; device < 32; device++) {
        bool free_slot = true;
        for (int n = 0; n < 8; n++)
            free_slot &= !bus->functions[device << 3 | n];
        if (free_slot)
            return device << 3;
    }
    return error_set(err, ENOSPC, "All 32 places of the PCI bus are taken");
}

/* PCI Express Base 2.0 section 7.8: an endpoint within the root complex, with nothing to set. */
static void add_express(struct pci_function *f)
{
    unsigned at = pci_capability(f, 0x10, 60);
    uint8_t *c = f->state->config + at;
    store_le16(c + 2, 2 | 9 << 4);
    store_le32(c + 4, 1 << 15);               /* role-based errors */
    store_le16(f->state->mask + at + 8, 0xf); /* error reporting may be asked for */
}

static void fill_header(struct pci_function *f, const struct pci_identity *id)
{
    struct pci_state *s = f->state;
    uint8_t *c = s->config, *m = s->mask;
    store_le16(c + PCI_VENDOR, id->vendor);
    store_le16(c + PCI_DEVICE, id->device);
    c[PCI_REVISION] = id->revision;
    c[PCI_CLASS] = (uint8_t)id->class_code;
    store_le16(c + PCI_CLASS + 1, (uint16_t)(id->class_code >> 8));
    c[PCI_HEADER_TYPE] = id->multifunction ? 0x80 : 0;
    store_le16(c + PCI_SUBSYSTEM_VENDOR, id->subsystem_vendor);
    store_le16(c + PCI_SUBSYSTEM, id->subsystem);
    c[PCI_PIN] = id->interrupt;
    store_le16(m + PCI_COMMAND, 0x547); /* what a device without quirks lets be set */
    m[0x0c] = m[0x0d] = 0xff;           /* cache line size, latency */
    m[PCI_LINE] = 0xff;
}

int pci_add(struct pci_bus *bus, struct pci_function *f, const struct pci_identity *id,
            const char *addr, struct error **err)
{
    LOCK_SCOPE(&bus->lock);
    int devfn = choose(bus, addr, err);
    if (devfn < 0)
        return devfn;
    struct pci_state *s = calloc(1, sizeof *s);
    if (!s)
        return error_set(err, ENOMEM, "No memory left for a PCI function");
    f->bus = bus;
    f->devfn = (uint8_t)devfn;
    f->state = s;
    s->express = id->express;
    s->interrupt = id->interrupt;
    s->capabilities_end = 0x40;
    fill_header(f, id);
    if (id->express)
        add_express(f);
    bus->functions[devfn] = f;
    return 0;
}

/* ---- BARs ----------------------------------------------------------------------------------- */

static unsigned bar_offset(unsigned bar)
{
    return bar == BAR_OF_ROM ? PCI_ROM : PCI_BAR + 4 * bar;
}

/* Where the guest wants it; false: nowhere. */
static bool bar_wanted(const struct pci_state *s, unsigned n, uint64_t *at)
{
    const struct pci_bar *b = &s->bars[n];
    uint16_t command = load_le16(s->config + PCI_COMMAND);
    uint64_t raw = load_le32(s->config + bar_offset(n)), end;
    if (b->kind == BAR_NONE)
        return false;
    if (b->kind == BAR_PORTS) {
        *at = raw & ~(b->size - 1) & 0xffff;
        return command & PCI_COMMAND_IO && *at && *at + b->size <= 0x10000 && raw < 0x10000;
    }
    if (b->kind == BAR_ROM && !(raw & 1))
        return false;
    if (b->flags & PCI_BAR_64)
        raw |= (uint64_t)load_le32(s->config + bar_offset(n) + 4) << 32;
    *at = raw & ~(b->size - 1);
    /* All ones is a question for the size, not a place. */
    return command & PCI_COMMAND_MEMORY && *at && checked_add(*at, b->size, &end) &&
           (b->flags & PCI_BAR_64 ? true : end < UINT32_MAX);
}

static void bar_unmap(struct pci_function *f, struct pci_bar *b)
{
    if (!b->mapped)
        return;
    b->mapped = false;
    if (b->kind == BAR_PORTS)
        f->bus->host.unmap_ports(f->bus->host.opaque, (uint16_t)b->at);
    else
        memory_remove(f->bus->host.memory, b->at);
}

static void bar_map(struct pci_function *f, struct pci_bar *b, uint64_t at)
{
    const struct pci_host *h = &f->bus->host;
    int r;
    if (b->kind == BAR_PORTS)
        r = h->map_ports(h->opaque, (uint16_t)at, (uint32_t)b->size, b->io, b->opaque);
    else if (b->kind == BAR_MEMORY)
        r = memory_add_io(h->memory, at, b->size, b->io, b->opaque);
    else
        r = memory_add_ram(h->memory, at, b->size, b->opaque, MEMORY_ROM);
    b->mapped =
        r == 0; /* with no memory left the device is not there; the host is about to end anyway */
    b->at = at;
}

/* With the lock held. */
static void update_bars(struct pci_function *f)
{
    for (unsigned n = 0; n < BARS_ALL; n++) {
        struct pci_bar *b = &f->state->bars[n];
        uint64_t at = 0;
        bool wanted = bar_wanted(f->state, n, &at);
        if (b->mapped && (!wanted || at != b->at))
            bar_unmap(f, b);
        if (wanted && !b->mapped)
            bar_map(f, b, at);
    }
}

static int bar_add(struct pci_function *f, unsigned n, const struct pci_bar *bar, uint32_t low)
{
    struct pci_state *s = f->state;
    bool wide = bar->flags & PCI_BAR_64;
    uint64_t least = bar->kind == BAR_PORTS ? 4 : bar->kind == BAR_MEMORY ? 16 : GUEST_PAGE_SIZE;
    if (n + wide >= BARS_ALL || (wide && n >= PCI_BARS - 1) || !is_pow2(bar->size) ||
        bar->size < least || bar->size > (wide ? (uint64_t)1 << 38 : (uint64_t)1 << 30))
        return -EINVAL;
    LOCK_SCOPE(&f->bus->lock);
    if (s->bars[n].kind != BAR_NONE)
        return -EBUSY;
    s->bars[n] = *bar;
    uint64_t mask = ~(bar->size - 1);
    store_le32(s->config + bar_offset(n), low);
    store_le32(s->mask + bar_offset(n), (uint32_t)mask);
    if (wide)
        store_le32(s->mask + bar_offset(n) + 4, (uint32_t)(mask >> 32));
    return 0;
}

static uint32_t memory_bits(unsigned flags)
{
    return (flags & PCI_BAR_64 ? 4 : 0) | (flags & PCI_BAR_PREFETCH ? 8 : 0);
}

int pci_bar_memory(struct pci_function *f, unsigned bar, uint64_t size, unsigned flags,
                   const struct memory_io *io, void *opaque)
{
    struct pci_bar b = {
        .kind = BAR_MEMORY, .flags = flags, .size = size, .io = io, .opaque = opaque
    };
    return bar_add(f, bar, &b, memory_bits(flags));
}

int pci_bar_ports(struct pci_function *f, unsigned bar, uint32_t size, const struct memory_io *io,
                  void *opaque)
{
    struct pci_bar b = { .kind = BAR_PORTS, .size = size, .io = io, .opaque = opaque };
    return bar_add(f, bar, &b, 1);
}

int pci_rom(struct pci_function *f, const void *bytes, size_t length)
{
    if (!length || length > 16 << 20)
        return -EINVAL;
    uint64_t size = (uint64_t)1 << log2_ceil(MAX(length, (size_t)GUEST_PAGE_SIZE));
    uint8_t *copy = aligned_alloc(GUEST_PAGE_SIZE, size);
    if (!copy)
        return -ENOMEM;
    memset(copy, 0xff, size);
    memcpy(copy, bytes, length);
    struct pci_bar b = { .kind = BAR_ROM, .size = size, .opaque = copy };
    int r = bar_add(f, BAR_OF_ROM, &b, 0);
    if (r) {
        free(copy);
        return r;
    }
    f->state->rom = copy;
    f->state->mask[PCI_ROM] |= 1;
    return 0;
}

/* ---- life ----------------------------------------------------------------------------------- */

void pci_remove(struct pci_function *f)
{
    struct pci_state *s = f->state;
    if (!s)
        return;
    {
        LOCK_SCOPE(&f->bus->lock);
        for (unsigned n = 0; n < BARS_ALL; n++)
            bar_unmap(f, &s->bars[n]);
        s->pin = false;
        pci_pin_update(f);
        f->bus->functions[f->devfn] = NULL;
    }
    pci_msi_free(f);
    free(s->rom);
    free(s);
    f->state = NULL;
}

void pci_reset(struct pci_function *f)
{
    struct pci_state *s = f->state;
    LOCK_SCOPE(&f->bus->lock);
    store_le16(s->config + PCI_COMMAND, 0);
    s->config[PCI_LINE] = 0;
    for (unsigned n = 0; n < BARS_ALL; n++) {
        struct pci_bar *b = &s->bars[n];
        if (b->kind == BAR_NONE)
            continue;
        unsigned at = bar_offset(n), bytes = b->flags & PCI_BAR_64 ? 8 : 4;
        for (unsigned i = 0; i < bytes; i++)
            s->config[at + i] &= (uint8_t)~s->mask[at + i];
    }
    s->master = false;
    pci_msi_reset(f);
    update_bars(f);
    s->pin = false;
    pci_pin_update(f);
}

unsigned pci_capability(struct pci_function *f, uint8_t id, unsigned length)
{
    struct pci_state *s = f->state;
    unsigned at = s->capabilities_end, link = PCI_CAPABILITIES;
    if (!length || at + length > 0x100)
        return 0;
    for (unsigned n = 0; s->config[link] && n < 48; n++)
        link = s->config[link] + 1u;
    s->config[link] = (uint8_t)at;
    s->config[at] = id;
    s->config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
    s->capabilities_end = (at + length + 3) & ~3u;
    return at;
}

uint8_t *pci_config(struct pci_function *f, unsigned offset)
{
    return f->state->config + offset;
}

uint8_t *pci_config_mask(struct pci_function *f, unsigned offset)
{
    return f->state->mask + offset;
}

/* ---- pins and DMA --------------------------------------------------------------------------- */

/* With the lock held: the host sees a pin while any function of the device pulls it. */
void pci_pin_update(struct pci_function *f)
{
    struct pci_state *s = f->state;
    struct pci_bus *bus = f->bus;
    bool silent = load_le16(s->config + PCI_COMMAND) & PCI_COMMAND_NO_PIN || pci_msi_on(f);
    bool pull = s->interrupt && s->pin && !silent;
    if (s->pin)
        s->config[PCI_STATUS] |= PCI_STATUS_PIN;
    else
        s->config[PCI_STATUS] &= (uint8_t)~PCI_STATUS_PIN;
    if (pull == s->pulled)
        return;
    unsigned device = f->devfn >> 3, pin = (s->config[PCI_PIN] - 1u) & 3;
    s->pulled = pull;
    uint8_t before = bus->pins[device][pin];
    bus->pins[device][pin] = (uint8_t)(before + (pull ? 1 : -1));
    if (!before != !bus->pins[device][pin] && bus->host.interrupt)
        bus->host.interrupt(bus->host.opaque, device, pin, pull);
}

void pci_pin(struct pci_function *f, bool up)
{
    LOCK_SCOPE(&f->bus->lock);
    if (f->state->pin == up)
        return;
    f->state->pin = up;
    pci_pin_update(f);
}

void *pci_dma_map(struct pci_function *f, uint64_t address, bool write, uint64_t *length)
{
    uint64_t there = 0;
    if (!atomic_load_explicit(&f->state->master, memory_order_relaxed))
        return NULL;
    void *host = memory_host(f->bus->host.memory, address, write, &there);
    if (host)
        *length = MIN(*length, there);
    return host;
}

void pci_dma_done(struct pci_function *f, uint64_t address, uint64_t length)
{
    memory_written(f->bus->host.memory, address, length);
}

int pci_dma_read(struct pci_function *f, uint64_t address, void *to, size_t length)
{
    uint8_t *at = to;
    while (length) {
        uint64_t part = length;
        const void *host = pci_dma_map(f, address, false, &part);
        if (!host)
            return -EFAULT;
        memcpy(at, host, part);
        at += part;
        address += part;
        length -= part;
    }
    return 0;
}

int pci_dma_write(struct pci_function *f, uint64_t address, const void *from, size_t length)
{
    const uint8_t *at = from;
    while (length) {
        uint64_t part = length;
        void *host = pci_dma_map(f, address, true, &part);
        if (!host)
            return -EFAULT;
        memcpy(host, at, part);
        pci_dma_done(f, address, part);
        at += part;
        address += part;
        length -= part;
    }
    return 0;
}

/* ---- configuration accesses ----------------------------------------------------------------- */

uint32_t pci_config_read(struct pci_bus *bus, uint8_t devfn, unsigned offset, unsigned size)
{
    uint32_t ones = UINT32_MAX >> (32 - 8 * size), value = 0;
    struct pci_function *f = bus->functions[devfn]; /* those that have a hook stay */
    if (f && f->config_reading)
        f->config_reading(f, offset, size);
    LOCK_SCOPE(&bus->lock);
    f = bus->functions[devfn];
    if (!f || !range_inside(offset, size, f->state->express ? PCI_CONFIG_SIZE : 256))
        return ones;
    for (unsigned i = 0; i < size; i++)
        value |= (uint32_t)f->state->config[offset + i] << (8 * i);
    return value;
}

/* The function to tell, or NULL. */
static struct pci_function *config_store(struct pci_bus *bus, uint8_t devfn, unsigned offset,
                                         unsigned size, uint32_t value)
{
    LOCK_SCOPE(&bus->lock);
    struct pci_function *f = bus->functions[devfn];
    if (!f || !range_inside(offset, size, f->state->express ? PCI_CONFIG_SIZE : 256))
        return NULL;
    struct pci_state *s = f->state;
    for (unsigned i = 0; i < size; i++) {
        uint8_t m = s->mask[offset + i], byte = (uint8_t)(value >> (8 * i));
        s->config[offset + i] = (uint8_t)((s->config[offset + i] & ~m) | (byte & m));
    }
    if (offset < 0x40) {
        s->master = s->config[PCI_COMMAND] & PCI_COMMAND_MASTER;
        update_bars(f);
    } else {
        pci_msi_update(f);
    }
    pci_pin_update(f);
    return f;
}

void pci_config_write(struct pci_bus *bus, uint8_t devfn, unsigned offset, unsigned size,
                      uint32_t value)
{
    struct pci_function *f = config_store(bus, devfn, offset, size, value);
    if (f && f->config_written)
        f->config_written(f, offset, size);
}

struct pci_function *pci_function_at(struct pci_bus *bus, unsigned i)
{
    LOCK_SCOPE(&bus->lock);
    for (unsigned devfn = 0; devfn < ARRAY_SIZE(bus->functions); devfn++) {
        if (bus->functions[devfn] && !i--)
            return bus->functions[devfn];
    }
    return NULL;
}
