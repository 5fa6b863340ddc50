/* isa-debugcon: a port whose bytes go to a stream; SeaBIOS tells there (0x402) what it does. */
#include "chardev/chardev.h"
#include "device.h"
#include "ports.h"

#include "base/error.h"
#include "cpu/memory.h"

#include <errno.h>

struct debugcon {
    struct device device;
    uint64_t base, readback;
    char *chardev;
    struct chardev *stream;
    struct chardev_user user;
    bool added;
};

static uint64_t read_back(void *opaque, uint64_t offset, unsigned size)
{
    const struct debugcon *d = opaque;
    (void)offset, (void)size;
    return d->readback;
}

static void write_byte(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    const struct debugcon *d = opaque;
    uint8_t byte = (uint8_t)value;
    (void)offset, (void)size;
    if (d->stream)
        chardev_write(d->stream, &byte, 1);
}

static const struct memory_io io = { read_back, write_byte };

static void ignore_input(void *opaque, const uint8_t *data, size_t length)
{
    (void)opaque, (void)data, (void)length;
}

static int debugcon_realize(struct device *device, struct error **err)
{
    struct debugcon *d = (struct debugcon *)device;
    if (!device->host->ports)
        return error_set(err, ENODEV, "This machine has no I/O ports");
    d->user = (struct chardev_user){ .opaque = d, .input = ignore_input };
    int r = d->chardev ? chardev_take(d->chardev, &d->user, &d->stream, err) : 0;
    if (r)
        return r;
    r = ports_add(device->host->ports, (uint16_t)d->base, 1, &io, d);
    if (r)
        return error_set(err, -r, "No memory left for it");
    d->added = true;
    return 0;
}

static void debugcon_free(struct device *device)
{
    struct debugcon *d = (struct debugcon *)device;
    if (d->added)
        ports_remove(device->host->ports, (uint16_t)d->base, d);
    if (d->stream)
        chardev_release(d->stream, &d->user);
}

static const struct opt_def options[] = {
    { .name = "iobase",
      .type = OPT_NUMBER,
      .at = offsetof(struct debugcon, base),
      .def = "0xe9",
      .max = 0xffff,
      .help = "its port" },
    { .name = "readback",
      .type = OPT_NUMBER,
      .at = offsetof(struct debugcon, readback),
      .def = "0xe9",
      .max = 0xff,
      .help = "what is read there" },
    { .name = "chardev",
      .type = OPT_STRING,
      .at = offsetof(struct debugcon, chardev),
      .help = "where the bytes go" },
    OPT_END,
};

const struct device_type device_isa_debugcon = {
    .name = "isa-debugcon",
    .help = "a port for a firmware's messages",
    .bus = "ISA",
    .size = sizeof(struct debugcon),
    .options = options,
    .realize = debugcon_realize,
    .free = debugcon_free,
};
