/* isa-debug-exit: a port through which a test in the guest ends the machine: status is value * 2 + 1. */
#include "device.h"
#include "ports.h"

#include "base/error.h"
#include "cpu/memory.h"

#include <errno.h>

struct debug_exit {
    struct device device;
    uint64_t base, size;
    bool added;
};

static uint64_t read_nothing(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque, (void)offset, (void)size;
    return 0;
}

static void write_exit(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    const struct debug_exit *d = opaque;
    (void)offset, (void)size;
    if (d->device.host->exit)
        d->device.host->exit(d->device.host->machine, (int)((value << 1 | 1) & 0xff));
}

static const struct memory_io io = { read_nothing, write_exit };

static int debug_exit_realize(struct device *device, struct error **err)
{
    struct debug_exit *d = (struct debug_exit *)device;
    if (!device->host->ports)
        return error_set(err, ENODEV, "This machine has no I/O ports");
    int r = ports_add(device->host->ports, (uint16_t)d->base, (uint32_t)d->size, &io, d);
    if (r)
        return error_set(err, -r, "iobase 0x%llx and iosize 0x%llx leave the ports",
                         (unsigned long long)d->base, (unsigned long long)d->size);
    d->added = true;
    return 0;
}

static void debug_exit_free(struct device *device)
{
    struct debug_exit *d = (struct debug_exit *)device;
    if (d->added)
        ports_remove(device->host->ports, (uint16_t)d->base, d);
}

static const struct opt_def options[] = {
    { .name = "iobase",
      .type = OPT_NUMBER,
      .at = offsetof(struct debug_exit, base),
      .def = "0x501",
      .max = 0xffff,
      .help = "its first port" },
    { .name = "iosize",
      .type = OPT_NUMBER,
      .at = offsetof(struct debug_exit, size),
      .def = "2",
      .min = 1,
      .max = 16,
      .help = "how many ports" },
    OPT_END,
};

const struct device_type device_isa_debug_exit = {
    .name = "isa-debug-exit",
    .help = "a port that ends the emulator",
    .bus = "ISA",
    .size = sizeof(struct debug_exit),
    .options = options,
    .realize = debug_exit_realize,
    .free = debug_exit_free,
};
