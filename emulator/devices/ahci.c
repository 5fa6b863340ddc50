/* The controller's and the ports' registers (AHCI 1.0 section 3) and the resets (section 10.4). */
#include "ahci.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "cpu/memory.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
    BAR_REGISTERS = 5,
    REGISTERS_SIZE = 0x1000,
    HBA_CAP = 0x00,
    HBA_CONTROL = 0x04,
    HBA_INTERRUPTS = 0x08,
    HBA_PORTS = 0x0c,
    HBA_VERSION = 0x10,
    CONTROL_RESET = 1,
    CONTROL_INTERRUPTS = 2,
    PORTS = 0x100,
    PORT_SIZE = 0x80,
};
/* 6 ports, 32 slots, AHCI only, 1.5 Gb/s, NCQ, 64-bit addresses */
#define CAP     ((AHCI_PORTS - 1) | 31 << 8 | 1 << 18 | 1 << 20 | 1 << 30 | UINT32_C(1) << 31)
#define AHCI_ON (UINT32_C(1) << 31)

enum {
    PORT_LIST = 0x00,
    PORT_FISES = 0x08,
    PORT_INTERRUPTS = 0x10,
    PORT_ENABLED = 0x14,
    PORT_COMMAND = 0x18,
    PORT_TASK = 0x20,
    PORT_SIGNATURE = 0x24,
    PORT_STATUS = 0x28,
    PORT_CONTROL = 0x2c,
    PORT_ERRORS = 0x30,
    PORT_ACTIVE = 0x34,
    PORT_ISSUE = 0x38,
};
enum {
    CMD_START = 1,
    CMD_SPIN_UP = 2,
    CMD_POWER = 4,
    CMD_OVERRIDE = 8,
    CMD_RECEIVE = 1 << 4,
    CMD_RECEIVING = 1 << 14,
    CMD_RUNNING = 1 << 15,
    CMD_ATAPI = 1 << 24,
};
enum { SIGNATURE_DISK = 0x101, SIGNATURE_CD = (int)0xeb140101u };

/* ---- interrupts ------------------------------------------------------------------------------------ */

/* With the lock held. happened: something new, which is worth a message. */
static void update(struct ahci *a, bool happened)
{
    a->interrupts |= a->pending;
    bool up = a->interrupts && a->control & CONTROL_INTERRUPTS;
    pci_pin(&a->pci, up);
    if (up && happened)
        pci_notify(&a->pci, 0);
}

/* With the port's lock held, after its causes or what is enabled changed. */
static void update_port(struct ahci_port *p, bool happened)
{
    struct ahci *a = p->ahci;
    uint32_t bit = UINT32_C(1) << p->number;

    LOCK_SCOPE(&a->lock);
    bool wants = p->interrupts & p->enabled;
    a->pending = wants ? a->pending | bit : a->pending & ~bit;
    update(a, happened && wants);
}

void ahci_port_interrupt(struct ahci_port *p, uint32_t causes)
{
    p->interrupts |= causes;
    update_port(p, causes & p->enabled);
}

/* ---- ports -------------------------------------------------------------------------------------------- */

void ahci_port_greet(struct ahci_port *p)
{
    struct ide_drive *drive = p->drive;

    if (!drive) {
        p->task = 0x7f;
        p->signature = UINT32_MAX;
        return;
    }
    p->signature = drive->cd ? (uint32_t)SIGNATURE_CD : SIGNATURE_DISK;
    p->task = 1 << 8 | (drive->cd ? 0 : ATA_READY); /* error 1: the device's own tests passed */
    drive->write_cache = drive->disk.o.write_cache;
    drive->look_ahead = drive->smart = true;
    drive->multiple = 16;
    drive->sense_key = drive->sense_code = drive->sense_more = 0;
    drive->locked = false;
    p->greet = true;
    ahci_post_signature(p);
}

/* With the lock held and nothing under way. */
static void forget_commands(struct ahci_port *p)
{
    p->running = p->issued = p->active = 0;
    p->busy = p->halted = p->reset_asked = false;
}

/* What is under way ends and is forgotten; then `change` happens, with the lock held. */
static void quiesce(struct ahci_port *p, void (*change)(struct ahci_port *p))
{
    LOCK_SCOPE(&p->reset_lock);
    {
        LOCK_SCOPE(&p->lock);
        p->resetting = true;
    }
    if (p->drive)
        disk_cancel(&p->drive->disk);
    LOCK_SCOPE(&p->lock);
    forget_commands(p);
    change(p);
    p->resetting = false;
}

static void stop(struct ahci_port *p)
{
    p->command &= ~(uint32_t)(CMD_START | CMD_RUNNING);
}

/* COMRESET, section 10.4.2. */
static void reset_link(struct ahci_port *p)
{
    stop(p);
    ahci_port_greet(p);
}

/* Of the controller, section 10.4.3. */
static void reset_port(struct ahci_port *p)
{
    p->list = p->fises = 0;
    p->interrupts = p->enabled = p->control = p->errors = 0;
    p->command = CMD_SPIN_UP | CMD_POWER;
    ahci_port_greet(p);
    update_port(p, false);
}

static void reset_controller(struct ahci *a)
{
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        quiesce(&a->ports[i], reset_port);
    LOCK_SCOPE(&a->lock);
    a->control = AHCI_ON;
    a->interrupts = 0;
    update(a, false);
}

static void write_command(struct ahci_port *p, uint32_t value)
{
    const uint32_t settable = CMD_START | CMD_RECEIVE | CMD_ATAPI;
    bool stops;
    {
        LOCK_SCOPE(&p->lock);
        stops = p->command & CMD_START && !(value & CMD_START);
        if (value & CMD_OVERRIDE)
            p->task &= ~(uint32_t)(ATA_BSY | ATA_DRQ);
        uint32_t set = value & settable;
        if (stops)
            set |= CMD_START; /* until what is under way has ended */
        if (set & CMD_START)
            set |= CMD_RUNNING;
        if (set & CMD_RECEIVE)
            set |= CMD_RECEIVING;
        p->command = set | CMD_SPIN_UP | CMD_POWER;
        ahci_post_signature(p);
    }
    if (stops)
        quiesce(p, stop);
}

/* A reset begins with DET = 1 and is over with DET = 0. */
static void write_control(struct ahci_port *p, uint32_t value)
{
    bool over;
    {
        LOCK_SCOPE(&p->lock);
        over = (p->control & 15) == 1 && (value & 15) == 0;
        p->control = value & 0xfff;
        if ((value & 15) == 1)
            p->task = 0x7f;
    }
    if (over)
        quiesce(p, reset_link);
}

static void issue(struct ahci_port *p, uint32_t slots)
{
    {
        LOCK_SCOPE(&p->lock);
        if (!(p->command & CMD_START) || p->resetting)
            return;
        p->issued |= slots;
    }
    ahci_run(p);
}

static void set_half(uint64_t *value, bool high, uint32_t part)
{
    unsigned shift = high ? 32 : 0;
    *value = (*value & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)part << shift;
}

static void port_set(struct ahci_port *p, unsigned at, uint32_t value)
{
    LOCK_SCOPE(&p->lock);
    switch (at) {
    case PORT_LIST:
    case PORT_LIST + 4:
        set_half(&p->list, at & 4, at & 4 ? value : value & ~1023u);
        break;
    case PORT_FISES:
    case PORT_FISES + 4:
        set_half(&p->fises, at & 4, at & 4 ? value : value & ~255u);
        break;
    case PORT_INTERRUPTS:
        p->interrupts &= ~value;
        update_port(p, false);
        break;
    case PORT_ENABLED:
        p->enabled = value & 0xfdc000ff;
        update_port(p, true);
        break;
    case PORT_ERRORS:
        p->errors &= ~value;
        break;
    case PORT_ACTIVE:
        if (p->command & CMD_START)
            p->active |= value;
        break;
    }
}

static void port_write(struct ahci_port *p, unsigned at, uint32_t value)
{
    switch (at) {
    case PORT_COMMAND:
        write_command(p, value);
        break;
    case PORT_CONTROL:
        write_control(p, value);
        break;
    case PORT_ISSUE:
        issue(p, value);
        break;
    default:
        port_set(p, at, value);
    }
}

static uint32_t port_read(struct ahci_port *p, unsigned at)
{
    LOCK_SCOPE(&p->lock);
    switch (at) {
    case PORT_LIST:
    case PORT_LIST + 4:
        return (uint32_t)(p->list >> (at & 4 ? 32 : 0));
    case PORT_FISES:
    case PORT_FISES + 4:
        return (uint32_t)(p->fises >> (at & 4 ? 32 : 0));
    case PORT_INTERRUPTS:
        return p->interrupts;
    case PORT_ENABLED:
        return p->enabled;
    case PORT_COMMAND:
        return p->command;
    case PORT_TASK:
        return p->task;
    case PORT_SIGNATURE:
        return p->signature;
    case PORT_STATUS: /* a device, 1.5 Gb/s, awake; not while the link is being reset */
        return p->drive && (p->control & 15) != 1 ? 0x113 : 0;
    case PORT_CONTROL:
        return p->control;
    case PORT_ERRORS:
        return p->errors;
    case PORT_ACTIVE:
        return p->active;
    case PORT_ISSUE:
        return p->issued;
    }
    return 0;
}

/* ---- the controller -------------------------------------------------------------------------------------- */

static uint32_t read_register(struct ahci *a, uint64_t at)
{
    if (at >= PORTS && at < PORTS + AHCI_PORTS * PORT_SIZE)
        return port_read(&a->ports[(at - PORTS) / PORT_SIZE], at % PORT_SIZE);
    LOCK_SCOPE(&a->lock);
    switch (at) {
    case HBA_CAP:
        return CAP;
    case HBA_CONTROL:
        return a->control;
    case HBA_INTERRUPTS:
        return a->interrupts;
    case HBA_PORTS:
        return (1u << AHCI_PORTS) - 1;
    case HBA_VERSION:
        return 0x00010000;
    }
    return 0;
}

static void write_register(struct ahci *a, uint64_t at, uint32_t value)
{
    if (at >= PORTS && at < PORTS + AHCI_PORTS * PORT_SIZE) {
        port_write(&a->ports[(at - PORTS) / PORT_SIZE], at % PORT_SIZE, value);
    } else if (at == HBA_CONTROL && value & CONTROL_RESET) {
        reset_controller(a);
    } else {
        LOCK_SCOPE(&a->lock);
        if (at == HBA_CONTROL)
            a->control = AHCI_ON | (value & CONTROL_INTERRUPTS);
        else if (at == HBA_INTERRUPTS)
            a->interrupts &= ~value;
        else
            return;
        update(a, true);
    }
}

/* Registers are 32 bits wide; other accesses are parts of one, or two. */
static uint64_t registers_read(void *opaque, uint64_t offset, unsigned size)
{
    struct ahci *a = opaque;
    uint64_t at = offset & ~UINT64_C(3);
    uint64_t value = read_register(a, at);

    if (size + (offset & 3) > 4)
        value |= (uint64_t)read_register(a, at + 4) << 32;
    return (value >> (8 * (offset & 3))) & (UINT64_MAX >> (64 - 8 * size));
}

static void registers_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ahci *a = opaque;

    if (offset & 3)
        return; /* section 3: software writes them whole */
    write_register(a, offset, (uint32_t)value);
    if (size == 8)
        write_register(a, offset + 4, (uint32_t)(value >> 32));
}

static const struct memory_io registers_io = { registers_read, registers_write };

/* ---- the devices --------------------------------------------------------------------------------------------- */

static int ahci_realize(struct device *d, struct error **err)
{
    const struct pci_identity id = { .vendor = 0x8086,
                                     .device = 0x2922,
                                     .subsystem_vendor = 0x1af4,
                                     .subsystem = 0x1100,
                                     .class_code = 0x010601,
                                     .revision = 2,
                                     .interrupt = true };
    struct ahci *a = (struct ahci *)d;

    int r = pci_add(d->host->pci, &a->pci, &id, a->addr, err);
    if (r < 0)
        return r;
    a->pci.opaque = a;
    a->made = true;
    pthread_mutex_init(&a->lock, NULL);
    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        a->ports[i].ahci = a;
        a->ports[i].number = i;
        pthread_mutex_init(&a->ports[i].lock, NULL);
        pthread_mutex_init(&a->ports[i].reset_lock, NULL);
    }
    r = pci_bar_memory(&a->pci, BAR_REGISTERS, REGISTERS_SIZE, 0, &registers_io, a);
    if (r == 0)
        r = pci_msi(&a->pci, 1);
    if (r < 0)
        return error_set(err, -r, "its PCI function could not be made: %s", strerror(-r));
    reset_controller(a);
    return 0;
}

static void ahci_reset(struct device *d)
{
    struct ahci *a = (struct ahci *)d;

    reset_controller(a);
    pci_reset(&a->pci);
}

/* Its drives were made later, so they are gone already. */
static void ahci_free(struct device *d)
{
    struct ahci *a = (struct ahci *)d;

    if (!a->made)
        return;
    pci_remove(&a->pci);
    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        pthread_mutex_destroy(&a->ports[i].lock);
        pthread_mutex_destroy(&a->ports[i].reset_lock);
    }
    pthread_mutex_destroy(&a->lock);
}

static const struct opt_def ahci_options[] = {
    { .name = "addr",
      .type = OPT_STRING,
      .at = offsetof(struct ahci, addr),
      .help = "its place on the PCI bus" },
    OPT_END,
};

const struct device_type device_ahci = {
    .name = "ich9-ahci",
    .alias = "ahci",
    .help = "AHCI controller with 6 ports",
    .bus = "PCI",
    .size = sizeof(struct ahci),
    .options = ahci_options,
    .realize = ahci_realize,
    .reset = ahci_reset,
    .free = ahci_free,
};

/* ---- drives ----------------------------------------------------------------------------------------------------- */

/* AHCI controller number i on the bus, NULL past the last. */
static struct ahci *controller_at(struct pci_bus *bus, unsigned i)
{
    struct pci_function *f;

    for (unsigned n = 0; (f = pci_function_at(bus, n)); n++) {
        const uint8_t *class_code = pci_config(f, 9);
        bool is_ahci = class_code[0] == 1 && class_code[1] == 6 && class_code[2] == 1;
        if (is_ahci && !i--)
            return f->opaque;
    }
    return NULL;
}

/* "ide.2" is port 2 of the controller without an id, "NAME.2" that of the one called so. */
static bool bus_means(const char *bus, const struct ahci *a, unsigned port)
{
    char name[64];
    const char *id = a->device.id ? a->device.id : "ide";

    return snprintf(name, sizeof(name), "%s.%u", id, port) < (int)sizeof(name) &&
           !strcmp(bus, name);
}

static int plug(struct ide_drive *drive, struct error **err)
{
    const char *bus = drive->device.bus;
    struct ahci *a;

    for (unsigned i = 0; (a = controller_at(drive->device.host->pci, i)); i++) {
        for (unsigned port = 0; port < AHCI_PORTS; port++) {
            if (bus && !bus_means(bus, a, port))
                continue;
            if (bus && a->ports[port].drive)
                return error_set(err, EBUSY, "bus: %s has a drive already", bus);
            if (a->ports[port].drive)
                continue;
            drive->controller = a;
            drive->port = port;
            a->ports[port].drive = drive;
            quiesce(&a->ports[port], reset_link);
            return 0;
        }
    }
    if (bus)
        return error_set(err, ENODEV, "bus: there is no port '%s'; ports are ide.0 to ide.%d", bus,
                         AHCI_PORTS - 1);
    return error_set(err, ENODEV, "no port of an AHCI controller is free");
}

static int drive_realize(struct ide_drive *drive, bool cd, struct error **err)
{
    struct device *d = &drive->device;
    const char *name = drive->disk.o.drive;

    int r = disk_open(&drive->disk, d, !cd, err);
    if (r < 0)
        return r;
    if (!cd && !blockdev_inserted(drive->disk.blockdev))
        return error_set(err, ENOMEDIUM, "drive '%s' is empty, and a disk is not", name);
    if (!cd && blockdev_read_only(drive->disk.blockdev))
        return error_set(err, EACCES, "drive '%s' is read-only, and an IDE disk cannot be", name);
    if (drive->disk.o.logical != ATA_SECTOR)
        return error_set(err, EINVAL, "logical_block_size is 512 on this bus");
    drive->cd = cd;
    drive->sectors = blockdev_size(drive->disk.blockdev) / ATA_SECTOR;
    return plug(drive, err);
}

static int disk_realize(struct device *d, struct error **err)
{
    return drive_realize((struct ide_drive *)d, false, err);
}

static int cd_realize(struct device *d, struct error **err)
{
    return drive_realize((struct ide_drive *)d, true, err);
}

static void drive_drain(struct device *d)
{
    disk_drain(&((struct ide_drive *)d)->disk);
}

static void drive_resume(struct device *d)
{
    disk_resume(&((struct ide_drive *)d)->disk);
}

static void unplug(struct ahci_port *p)
{
    p->drive = NULL;
    ahci_port_greet(p);
}

static void drive_free(struct device *d)
{
    struct ide_drive *drive = (struct ide_drive *)d;

    if (drive->controller)
        quiesce(&drive->controller->ports[drive->port], unplug);
    disk_close(&drive->disk);
}

static char *drive_boot_path(struct device *d)
{
    const struct ide_drive *drive = (const struct ide_drive *)d;
    unsigned devfn = drive->controller->pci.devfn;
    char *path = NULL, function[8] = "";

    if (devfn & 7)
        snprintf(function, sizeof(function), ",%x", devfn & 7);
    if (asprintf(&path, "/pci@i0cf8/pci8086,2922@%x%s/drive@%x/disk@0", devfn >> 3, function,
                 drive->port) < 0)
        return NULL;
    return path;
}

static const struct opt_def drive_options[] = {
    DISK_OPTIONS(struct ide_drive, disk),
    { .name = "model",
      .type = OPT_STRING,
      .at = offsetof(struct ide_drive, model),
      .help = "its model, up to 40 characters" },
    { .name = "ver",
      .type = OPT_STRING,
      .at = offsetof(struct ide_drive, firmware),
      .help = "its firmware's version" },
    { .name = "unit",
      .type = OPT_NUMBER,
      .at = offsetof(struct ide_drive, unit),
      .max = 0,
      .help = "always 0: a port has one drive" },
    OPT_END,
};

#define DRIVE                                                                 \
    .bus = "IDE", .size = sizeof(struct ide_drive), .options = drive_options, \
    .drain = drive_drain, .resume = drive_resume, .free = drive_free, .boot_path = drive_boot_path

const struct device_type device_ide_hd = {
    .name = "ide-hd",
    .help = "ATA disk",
    .realize = disk_realize,
    DRIVE,
};

const struct device_type device_ide_cd = {
    .name = "ide-cd",
    .help = "ATAPI CD drive",
    .realize = cd_realize,
    DRIVE,
};
