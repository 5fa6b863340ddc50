/* Accesses as a hostile guest makes them: to ports, registers in memory, configuration space and local APICs of a q35 with every
 * device, with RAM full of anything. Nothing may crash, hang or touch what is not the guest's. */
#include "internal.h"
#include "q35.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "devices/timer.h"
#include "emulator/blockdev.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RAM = 4 << 20, BARS_AT = 0xc0000000, BAR_STEP = 1 << 20, PORTS_AT = 0xc000, STEPS = 400 };

static struct machine *machine;
static char firmware[] = "/tmp/fuzz-firmware-XXXXXX";
static struct machine_config config = {
    .type = "q35", .ram = RAM, .cpus = 2, .firmware = firmware
};

static void must(int r, struct error *err)
{
    if (r < 0) {
        fprintf(stderr, "%s\n", error_text(err));
        abort();
    }
}

static void add_disk(const char *node)
{
    struct error *err = NULL;
    _cleanup_json_ json_t *o = json_pack("{s:s, s:s, s:i, s:b}", "driver", "null-co", "node-name",
                                         node, "size", 1 << 20, "read-zeroes", 1);
    must(blockdev_add(o, &err), err);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const char *const devices[][2] = {
        { "virtio-blk-pci", "a" }, { "virtio-blk-pci-transitional", "b" },
        { "nvme", "c" },           { "ide-hd", "d" },
        { "ide-cd", "e" },         { "isa-debug-exit", NULL },
        { "isa-debugcon", NULL },
    };
    struct error *err = NULL;
    static uint8_t rom[65536];
    (void)argc, (void)argv;
    int fd = mkstemp(firmware);
    if (fd < 0 || write(fd, rom, sizeof rom) != sizeof rom)
        abort();
    close(fd);
    config.devices = json_array();
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++) {
        json_t *d = json_pack("{s:s}", "driver", devices[i][0]);
        if (devices[i][1]) {
            add_disk(devices[i][1]);
            json_object_set_new(d, "drive", json_string(devices[i][1]));
        }
        if (!strcmp(devices[i][0], "nvme"))
            json_object_set_new(d, "serial", json_string("s"));
        json_array_append_new(config.devices, d);
    }
    must(machine_new(&config, &machine, &err), err);
    unlink(firmware);
    clock_run(machine->clock, true);
    return 0;
}

struct input {
    const uint8_t *at;
    size_t left;
};

static uint32_t take(struct input *in, unsigned bytes)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < bytes && in->left; i++, in->at++, in->left--)
        v |= (uint32_t)*in->at << (8 * i);
    return v;
}

/* Where firmware would have put things. */
static void place(struct pci_bus *bus)
{
    const struct pci_function *f;
    uint32_t memory = BARS_AT, ports = PORTS_AT;
    for (unsigned i = 0; (f = pci_function_at(bus, i)); i++) {
        for (unsigned bar = 0; bar < PCI_BARS; bar++) {
            bool io = pci_config_read(bus, f->devfn, 0x10 + 4 * bar, 4) & 1;
            pci_config_write(bus, f->devfn, 0x10 + 4 * bar, 4, io ? ports : memory);
            if (pci_config_read(bus, f->devfn, 0x10 + 4 * bar, 4) == 0)
                continue;
            *(io ? &ports : &memory) += io ? 0x100 : BAR_STEP;
            bar += (pci_config_read(bus, f->devfn, 0x10 + 4 * bar, 4) & 7) == 4;
        }
        pci_config_write(bus, f->devfn, 4, 2, 7);
    }
    pci_config_write(bus, 0, 0x60, 4, Q35_ECAM | 1);
    pci_config_write(bus, 0x1f << 3, 0x40, 4, Q35_PM_BASE | 1);
    pci_config_write(bus, 0x1f << 3, 0x44, 1, 0x80);
}

static void access_memory(uint64_t at, unsigned size, bool write, struct input *in)
{
    uint8_t bytes[8] = { 0 };
    if (!write) {
        memory_read(machine->memory, at, bytes, size);
        return;
    }
    uint64_t value = take(in, size > 4 ? 4 : size);
    memcpy(bytes, &value, 8);
    memory_write(machine->memory, at, bytes, size);
}

static void access_config(struct input *in, bool write)
{
    const struct pci_function *f = pci_function_at(machine->pci, take(in, 1) % 10);
    unsigned size = 1u << take(in, 1) % 3, offset = take(in, 2) & (4096 - size);
    if (!f)
        return;
    if (write)
        pci_config_write(machine->pci, f->devfn, offset, size, take(in, size));
    else
        pci_config_read(machine->pci, f->devfn, offset, size);
}

static void access_apic(struct input *in, bool write)
{
    struct q35 *q = q35_of(machine);
    unsigned cpu = take(in, 1) & 1;
    uint32_t n = take(in, 1);
    uint32_t msr = n < 0x40 ? 0x800 + n : n & 1 ? 0x1b : 0x6e0;
    uint64_t value = take(in, 4);
    value |= (uint64_t)(msr == 0x830 ? take(in, 1) & 3 : 0) << 32;
    if (write)
        lapic_write_msr(q->lapics, cpu, msr, value);
    else
        lapic_read_msr(q->lapics, cpu, msr, &value);
    lapic_acknowledge(q->lapics, cpu);
}

/* Descriptors, queues, commands: runs of bytes anywhere in RAM. */
static void fill_ram(struct input *in)
{
    uint32_t at = take(in, 3) % (RAM - 256), length = take(in, 1);
    if (length > in->left)
        length = (uint32_t)in->left;
    memory_write(machine->memory, at, in->at, length);
    in->at += length;
    in->left -= length;
}

static void step(struct input *in)
{
    static const uint32_t windows[] = { IOAPIC_BASE, LAPIC_BASE, 0xa0000, 0xc0000,
                                        0xf0000,     Q35_ECAM,   0 };
    struct q35 *q = q35_of(machine);
    unsigned op = take(in, 1), size = 1u << (op >> 4 & 1) << (op >> 5 & 1);
    bool write = op & 0x80;
    switch (op & 15) {
    case 0:
    case 1:
        if (write)
            ports_out(q->ports, (uint16_t)take(in, 2), size, take(in, 4));
        else
            ports_in(q->ports, (uint16_t)take(in, 2), size);
        break;
    case 2:
    case 3:
    case 4:
        access_memory(BARS_AT + take(in, 1) % 12 * (uint64_t)BAR_STEP + take(in, 2), size, write,
                      in);
        break;
    case 5:
        ports_out(q->ports, (uint16_t)(PORTS_AT + take(in, 2) % 0x600), size, take(in, 4));
        break;
    case 6:
        access_memory(windows[take(in, 1) % 7] + take(in, 2), size, write, in);
        break;
    case 7:
    case 8:
        access_config(in, write);
        break;
    case 9:
        access_apic(in, write);
        break;
    case 10:
    case 11:
    case 12:
        fill_ram(in);
        break;
    case 13:
        free(machine_screen_text(machine));
        break;
    case 14:
        machine_send_key(machine, "ctrl-alt-delete", NULL);
        break;
    default:
        devices_drain(machine->devices);
        devices_resume(machine->devices);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    struct error *err = NULL;
    devices_drain(machine->devices);
    devices_reset(machine->devices);
    must(machine->ops->reset(machine, &err), err);
    devices_resume(machine->devices);
    place(machine->pci);
    for (unsigned n = 0; in.left && n < STEPS; n++)
        step(&in);
    return 0;
}
