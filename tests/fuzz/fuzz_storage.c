/* The disk front ends under a guest that does anything: registers, ports, configuration space and the memory their rings lie
 * in, from the input.
 *
 * The first byte picks the device; what follows are operations, each a byte and its operands. One of them sets the device up
 * as a driver would, so that rubbish in the rings is looked at. RAM is an allocation of its own: what leaves it is seen.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "cpu/memory_map.h"
#include "devices/device.h"
#include "devices/pci.h"
#include "emulator/blockdev.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { RAM = 256 << 10, DEVICES = 3 };
#define BAR(n) (UINT64_C(0xe0000000) + ((uint64_t)(n) << 20))

struct input {
    const uint8_t *at, *end;
};

struct machine {
    struct memory *memory;
    struct pci_bus *pci;
    struct device *devices;
    struct device_host host;
    uint8_t *ram;
    const struct memory_io *ports;
    void *ports_opaque;
    unsigned bar; /* where its registers are */
};

static struct machine machines[DEVICES];

static uint64_t take(struct input *in, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes && in->at < in->end; i++)
        value |= (uint64_t)*in->at++ << (8 * i);
    return value;
}

static int map_ports(void *opaque, uint16_t port, uint32_t size, const struct memory_io *io,
                     void *device)
{
    struct machine *m = opaque;
    (void)port, (void)size;
    m->ports = io;
    m->ports_opaque = device;
    return 0;
}

static void unmap_ports(void *opaque, uint16_t port)
{
    (void)port;
    ((struct machine *)opaque)->ports = NULL;
}

static void add(struct machine *m, const char *text)
{
    json_t *j = json_loads(text, 0, NULL);
    int r = device_add(&m->devices, &m->host, j, NULL);
    assert(r == 0);
    (void)r;
    json_decref(j);
}

static void node(const char *text)
{
    json_t *j = json_loads(text, 0, NULL);
    int r = blockdev_add(j, NULL);
    assert(r == 0);
    (void)r;
    json_decref(j);
}

static void make(struct machine *m, unsigned which)
{
    static const unsigned bars[DEVICES] = { 4, 0, 5 };
    m->memory = memory_new();
    m->ram = aligned_alloc(4096, RAM);
    memory_add_ram(m->memory, 0, RAM, m->ram, 0);
    struct pci_host host = {
        .memory = m->memory, .opaque = m, .map_ports = map_ports, .unmap_ports = unmap_ports
    };
    m->pci = pci_bus_new(&host);
    m->host = (struct device_host){ .memory = m->memory, .pci = m->pci, .machine = m };
    m->bar = bars[which];
    if (which == 0) {
        node("{\"driver\":\"memory\",\"node-name\":\"v\",\"size\":65536}");
        add(m, "{\"driver\":\"virtio-blk-pci\",\"drive\":\"v\",\"addr\":\"5\",\"num-queues\":2}");
    } else if (which == 1) {
        node("{\"driver\":\"memory\",\"node-name\":\"n\",\"size\":65536}");
        add(m, "{\"driver\":\"nvme\",\"drive\":\"n\",\"addr\":\"5\",\"max_ioqpairs\":4}");
    } else {
        node("{\"driver\":\"memory\",\"node-name\":\"h\",\"size\":65536}");
        node("{\"driver\":\"memory\",\"node-name\":\"c\",\"size\":65536,\"read-only\":true}");
        add(m, "{\"driver\":\"ich9-ahci\",\"addr\":\"5\"}");
        add(m, "{\"driver\":\"ide-hd\",\"drive\":\"h\"}");
        add(m, "{\"driver\":\"ide-cd\",\"drive\":\"c\"}");
    }
}

static void configure(struct machine *m)
{
    for (unsigned bar = 0; bar < PCI_BARS; bar++) {
        uint32_t kind = pci_config_read(m->pci, 5 << 3, 0x10 + 4 * bar, 4);
        pci_config_write(m->pci, 5 << 3, 0x10 + 4 * bar, 4, kind & 1 ? 0xc000 : (uint32_t)BAR(bar));
        if ((kind & 7) == 4)
            pci_config_write(m->pci, 5 << 3, 0x10 + 4 * ++bar, 4, 0);
    }
    pci_config_write(m->pci, 5 << 3, 4, 2, 7);
}

static void put(struct machine *m, uint64_t at, unsigned size, uint64_t value)
{
    memory_store(m->memory, BAR(m->bar) + at, size, value);
}

/* Rings at 0x1000, 0x2000 and 0x3000, whatever is in them. */
static void start_virtio(struct machine *m, uint64_t features)
{
    put(m, 0x14, 1, 0);
    put(m, 0x14, 1, 3);
    for (unsigned i = 0; i < 2; i++) {
        put(m, 8, 4, i);
        put(m, 12, 4, (uint32_t)(features >> (32 * i)));
    }
    put(m, 0x14, 1, 11);
    put(m, 0x18, 2, 16);
    put(m, 0x20, 8, 0x1000);
    put(m, 0x28, 8, 0x2000);
    put(m, 0x30, 8, 0x3000);
    put(m, 0x1c, 2, 1);
    put(m, 0x14, 1, 15);
}

static void start_nvme(struct machine *m)
{
    put(m, 0x14, 4, 0);
    put(m, 0x24, 4, 15 << 16 | 15);
    put(m, 0x28, 8, 0x1000);
    put(m, 0x30, 8, 0x2000);
    put(m, 0x14, 4, 1 | 6 << 16 | 4 << 20);
    uint8_t *c = m->ram + 0x1000; /* queues of their own, as the first two commands */
    memset(c, 0, 128);
    c[0] = 5;
    store_le64(c + 24, 0x3000);
    store_le32(c + 40, 15 << 16 | 1);
    store_le32(c + 44, 3);
    c[64] = 1;
    store_le64(c + 64 + 24, 0x4000);
    store_le32(c + 64 + 40, 15 << 16 | 1);
    store_le32(c + 64 + 44, 1 << 16 | 1);
    put(m, 0x1000, 4, 2);
}

static void start_ahci(struct machine *m, unsigned port)
{
    uint64_t at = 0x100 + 0x80 * (uint64_t)port;
    put(m, at + 0x18, 4, 0);
    put(m, at, 8, 0x1000);
    put(m, at + 8, 8, 0x2000);
    put(m, at + 0x14, 4, UINT32_MAX);
    put(m, at + 0x18, 4, 0x11);
}

static void start(struct machine *m, struct input *in)
{
    configure(m);
    if (m == &machines[0])
        start_virtio(m, take(in, 5));
    else if (m == &machines[1])
        start_nvme(m);
    else
        start_ahci(m, (unsigned)take(in, 1) & 1);
}

static void step(struct machine *m, struct input *in)
{
    unsigned op = (unsigned)take(in, 1), size = 1u << (op >> 6);
    uint64_t at, n;

    switch (op & 7) {
    case 0:
    case 1:
        at = take(in, 2) & 0x3fff;
        put(m, at, size, take(in, size));
        break;
    case 2:
        memory_load(m->memory, BAR(m->bar) + (take(in, 2) & 0x3fff), size);
        break;
    case 3:
        at = (take(in, 2) << 2) % RAM;
        n = take(in, 1);
        for (; n && in->at < in->end && at < RAM; n--)
            m->ram[at++] = *in->at++;
        break;
    case 4:
        at = take(in, 1);
        size = size > 4 ? 4 : size;
        if (op & 8)
            pci_config_read(m->pci, 5 << 3, (unsigned)at, size);
        else
            pci_config_write(m->pci, 5 << 3, (unsigned)at, size, (uint32_t)take(in, 4));
        break;
    case 5:
        at = take(in, 1) & 0x7f;
        size = size > 4 ? 4 : size;
        if (m->ports && op & 8)
            m->ports->read(m->ports_opaque, at, size);
        else if (m->ports)
            m->ports->write(m->ports_opaque, at, size, take(in, size));
        break;
    case 6:
        start(m, in);
        break;
    case 7:
        devices_drain(m->devices);
        if (op & 8) {
            devices_reset(m->devices);
            configure(m);
        }
        break;
    }
}

/* The memory map keeps what was replaced as long as it lives, so machines do not live for ever. */
static void unmake_all(void)
{
    for (unsigned i = 0; i < DEVICES; i++) {
        struct machine *m = &machines[i];
        if (!m->memory)
            continue;
        devices_free(&m->devices);
        pci_bus_free(m->pci);
        memory_free(m->memory);
        free(m->ram);
        memset(m, 0, sizeof(*m));
    }
    blockdevs_close(NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static unsigned runs;
    struct input in = { data, data + size };
    if (++runs % 2048 == 0)
        unmake_all();
    struct machine *m = &machines[take(&in, 1) % DEVICES];

    if (!m->memory)
        make(m, (unsigned)(m - machines));
    memset(m->ram, 0, RAM);
    devices_reset(m->devices);
    start(m, &in);
    for (unsigned steps = 0; in.at < in.end && steps < 1000; steps++)
        step(m, &in);
    devices_drain(m->devices);
    return 0;
}
