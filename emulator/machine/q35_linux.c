/* A Linux kernel without firmware: what firmware would have set up, then the kernel's 32-bit entry.
 *
 * Source: Documentation/arch/x86/boot.rst (boot protocol 2.15), zero-page.rst. The kernel is read at each reset, since the
 * guest has written over it. */
#include "q35.h"

#include "tables.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/round.h"
#include "base/vector.h"
#include "x86/system.h"

#include <string.h>
#include <sys/stat.h>

enum { /* where things are placed below 1 MiB */
       GDT_AT = 0x8000,
       STACK_AT = 0x9000,
       PARAMS_AT = 0x10000,
       COMMAND_LINE_AT = 0x20000,
       COMMAND_LINE_MOST = 0x10000,
       LOW_END = 0x9fc00,
       TABLES_AT = 0xe0000,
       TABLES_END = 0xf0000,
       SMBIOS_AT = 0xf0000,
};
enum { /* the header within the kernel file and the parameters */
       H_ACPI_RSDP = 0x070,
       H_E820_COUNT = 0x1e8,
       H_SETUP_SECTORS = 0x1f1,
       H_BOOT_FLAG = 0x1fe,
       H_JUMP = 0x201,
       H_MAGIC = 0x202,
       H_VERSION = 0x206,
       H_LOADER = 0x210,
       H_FLAGS = 0x211,
       H_CODE32 = 0x214,
       H_RAMDISK = 0x218,
       H_RAMDISK_SIZE = 0x21c,
       H_COMMAND_LINE = 0x228,
       H_RAMDISK_MOST = 0x22c,
       H_RELOCATABLE = 0x234,
       H_COMMAND_LINE_SIZE = 0x238,
       H_PREFERRED = 0x258,
       H_INIT_SIZE = 0x260,
       H_E820 = 0x2d0,
};
enum { E820_RAM = 1, E820_RESERVED = 2 };

struct kernel {
    uint64_t at, end, ramdisk_most;
    uint32_t command_line_most;
};

/* ---- files ---------------------------------------------------------------------------------- */

static FILE *open_file(const char *what, const char *path, uint64_t *size, struct error **err)
{
    struct stat st;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &st)) {
        error_set(err, errno, "The %s '%s' cannot be opened: %s", what, path, strerror(errno));
        if (file)
            fclose(file);
        return NULL;
    }
    *size = (uint64_t)st.st_size;
    return file;
}

/* Into RAM; the range has been checked. */
static int read_into(FILE *file, const char *path, uint8_t *to, uint64_t offset, uint64_t size,
                     struct error **err)
{
    if (fseek(file, (long)offset, SEEK_SET) || fread(to, 1, size, file) != size)
        return error_set(err, EIO, "'%s' cannot be read", path);
    return 0;
}

static int check_header(const uint8_t *h, uint64_t size, const char *path, struct error **err)
{
    if (size < 0x400 || load_le16(h + H_BOOT_FLAG) != 0xaa55 || memcmp(h + H_MAGIC, "HdrS", 4))
        return error_set(err, EINVAL, "The kernel '%s' is no bzImage", path);
    if (load_le16(h + H_VERSION) < 0x206 || !(h[H_FLAGS] & 1))
        return error_set(err, EINVAL,
                         "The kernel '%s' speaks boot protocol %d.%02d; 2.06 is needed", path,
                         h[H_VERSION + 1], h[H_VERSION]);
    return 0;
}

static int load_kernel(struct q35 *q, uint8_t *params, struct kernel *k, struct error **err)
{
    const char *path = q->m->config->kernel;
    uint64_t size;
    _cleanup_stream_ FILE *file = open_file("kernel", path, &size, err);
    uint8_t h[0x400] = { 0 };
    if (!file)
        return -EINVAL;
    int r = read_into(file, path, h, 0, MIN(size, (uint64_t)sizeof h), err);
    if (!r)
        r = check_header(h, size, path, err);
    if (r)
        return r;
    uint64_t skip = ((h[H_SETUP_SECTORS] ? h[H_SETUP_SECTORS] : 4u) + 1) * 512u;
    bool places = load_le16(h + H_VERSION) >= 0x20a;
    k->at = places ? load_le64(h + H_PREFERRED) : load_le32(h + H_CODE32);
    uint64_t need = size > skip ? size - skip : 0;
    if (places)
        need = MAX(need, (uint64_t)load_le32(h + H_INIT_SIZE));
    if (size <= skip || k->at < 0x100000 || !checked_add(k->at, need, &k->end) || k->end > q->low)
        return error_set(
            err, ENOMEM, "The kernel '%s' needs 0x%llx bytes at 0x%llx; RAM ends at 0x%llx", path,
            (unsigned long long)need, (unsigned long long)k->at, (unsigned long long)q->low);
    k->ramdisk_most = load_le32(h + H_RAMDISK_MOST);
    k->command_line_most = load_le32(h + H_COMMAND_LINE_SIZE);
    memcpy(params + H_SETUP_SECTORS, h + H_SETUP_SECTORS, H_MAGIC + h[H_JUMP] - H_SETUP_SECTORS);
    return read_into(file, path, q->ram + k->at, skip, size - skip, err);
}

/* As high as the kernel allows. */
static int load_ramdisk(struct q35 *q, uint8_t *params, const struct kernel *k, struct error **err)
{
    const char *path = q->m->config->initrd;
    uint64_t size, end = MIN(q->low, k->ramdisk_most + 1);
    if (!path)
        return 0;
    _cleanup_stream_ FILE *file = open_file("initrd", path, &size, err);
    if (!file)
        return -EINVAL;
    if (size > end || align_down(end - size, GUEST_PAGE_SIZE) < k->end)
        return error_set(err, ENOMEM,
                         "The initrd '%s' has %llu bytes; between the kernel and the end of RAM "
                         "there are %llu",
                         path, (unsigned long long)size,
                         (unsigned long long)(end > k->end ? end - k->end : 0));
    uint64_t at = align_down(end - size, GUEST_PAGE_SIZE);
    store_le32(params + H_RAMDISK, (uint32_t)at);
    store_le32(params + H_RAMDISK_SIZE, (uint32_t)size);
    return read_into(file, path, q->ram + at, 0, size, err);
}

static int set_command_line(struct q35 *q, uint8_t *params, const struct kernel *k,
                            struct error **err)
{
    const char *text = q->m->config->append ? q->m->config->append : "";
    size_t most = MIN(k->command_line_most, (uint32_t)COMMAND_LINE_MOST - 1);
    if (strlen(text) > most)
        return error_set(err, EINVAL, "-append has %zu characters; this kernel takes %zu",
                         strlen(text), most);
    memcpy(q->ram + COMMAND_LINE_AT, text, strlen(text) + 1);
    store_le32(params + H_COMMAND_LINE, COMMAND_LINE_AT);
    return 0;
}

/* ---- parameters ----------------------------------------------------------------------------- */

static void add_range(uint8_t *params, uint64_t at, uint64_t end, uint32_t type)
{
    uint8_t *e = params + H_E820 + 20 * params[H_E820_COUNT];
    if (end <= at)
        return;
    store_le64(e, at);
    store_le64(e + 8, end - at);
    store_le32(e + 16, type);
    params[H_E820_COUNT]++;
}

static void fill_params(struct q35 *q, uint8_t *p)
{
    p[H_LOADER] = 0xff;
    if (!q->m->config->no_display && !q->no_vga) { /* text mode 3, which set_text_mode() makes */
        p[6] = 3;
        p[7] = 80;
        p[14] = 25;
        p[15] = 1;
        p[16] = 16;
    }
    store_le64(p + H_ACPI_RSDP, TABLES_AT);
    add_range(p, 0, LOW_END, E820_RAM);
    add_range(p, LOW_END, 0xa0000, E820_RESERVED);
    add_range(p, TABLES_AT, 0x100000, E820_RESERVED);
    add_range(p, 0x100000, q->low, E820_RAM);
    add_range(p, Q35_ECAM, Q35_ECAM + 0x10000000u, E820_RESERVED);
    add_range(p, Q35_RCBA, Q35_RCBA + 0x4000, E820_RESERVED);
    add_range(p, Q35_HIGH, Q35_HIGH + q->high, E820_RAM);
}

static int place_tables(struct q35 *q)
{
    struct tables t;
    struct blob placed = { 0 };
    int r = tables_make(q, &t);
    if (!r)
        r = tables_place(&t, TABLES_AT, &placed);
    size_t anchor = align_up(t.smbios_anchor.len, 16);
    if (!r && (placed.len > TABLES_END - TABLES_AT || t.smbios.len > 0x10000 - anchor))
        r = -ENOSPC;
    if (!r) {
        memcpy(q->ram + TABLES_AT, placed.at, placed.len);
        uint8_t *a = q->ram + SMBIOS_AT, sum = 0;
        memcpy(a, t.smbios_anchor.at, t.smbios_anchor.len);
        store_le32(a + 24, (uint32_t)(SMBIOS_AT + anchor));
        a[21] = a[4] = 0;
        for (unsigned i = 16; i < 31; i++)
            sum += a[i];
        a[21] = (uint8_t)-sum;
        sum = 0;
        for (unsigned i = 0; i < 31; i++)
            sum += a[i];
        a[4] = (uint8_t)-sum;
        memcpy(a + anchor, t.smbios.at, t.smbios.len);
    }
    vector_free(&placed);
    tables_free(&t);
    return r;
}

/* ---- chips ---------------------------------------------------------------------------------- */

struct room {
    uint64_t memory, ports;
};

/* Asks a BAR for its size and puts it behind what is there. True: it takes the next one's place, too. */
static bool place_bar(struct pci_bus *bus, uint8_t devfn, unsigned at, struct room *room)
{
    uint32_t old = pci_config_read(bus, devfn, at, 4);
    pci_config_write(bus, devfn, at, 4, UINT32_MAX);
    uint32_t mask = pci_config_read(bus, devfn, at, 4);
    pci_config_write(bus, devfn, at, 4, old);
    bool ports = mask & 1, wide = !ports && (mask & 6) == 4;
    uint64_t size = ~(mask & (ports ? 0xfffffffc : 0xfffffff0)) + 1u;
    uint64_t *next = ports ? &room->ports : &room->memory;
    uint64_t end = ports ? 0x10000 : Q35_PCI_END, where;
    if (!(mask & (ports ? ~3u : ~15u)) || size > 0x40000000)
        return wide; /* none, or too large for the room below 4 GiB: the system may place it */
    where = align_up(*next, size);
    if (where + size > end)
        return wide;
    pci_config_write(bus, devfn, at, 4, (uint32_t)where);
    *next = where + size;
    return wide;
}

static void place_functions(struct pci_bus *bus)
{
    struct room room = { .memory = Q35_PCI_START, .ports = 0xc000 };
    const struct pci_function *f;
    for (unsigned i = 0; (f = pci_function_at(bus, i)); i++) {
        for (unsigned bar = 0; bar < PCI_BARS; bar++)
            bar += place_bar(bus, f->devfn, 0x10 + 4 * bar, &room);
        pci_config_write(bus, f->devfn, 4, 2, 3);
        uint32_t pin = pci_config_read(bus, f->devfn, 0x3d, 1);
        if (pin)
            pci_config_write(bus, f->devfn, 0x3c, 1,
                             q35_pirq(f->devfn >> 3, pin - 1) & 2 ? 11 : 10);
    }
}

static void set_up_chips(struct q35 *q)
{
    struct pci_bus *bus = q->m->pci;
    const uint8_t lpc = 0x1f << 3;
    pci_config_write(bus, 0, 0x64, 4, 0);
    pci_config_write(bus, 0, 0x60, 4, Q35_ECAM | 1);
    pci_config_write(bus, 0, 0x90, 4, 0x33333330);
    pci_config_write(bus, 0, 0x94, 4, 0x00333333);
    pci_config_write(bus, lpc, 0x40, 4, Q35_PM_BASE | 1);
    pci_config_write(bus, lpc, 0x44, 1, 0x80);
    pci_config_write(bus, lpc, 0xf0, 4, Q35_RCBA | 1);
    pci_config_write(bus, lpc, 0x60, 4, 0x0b0b0a0a);
    pci_config_write(bus, lpc, 0x68, 4, 0x0b0b0a0a);
    ports_out(q->ports, 0x4d1, 1, 0x0c); /* 10 and 11 are levels */
    place_functions(bus);
}

/* Mode 3 as far as the dump of the screen looks. */
static void set_text_mode(struct q35 *q)
{
    static const uint8_t crtc[][2] = { { 0x11, 0x0e }, { 0x01, 79 },  { 0x07, 0x1f },
                                       { 0x09, 0x4f }, { 0x0c, 0 },   { 0x0d, 0 },
                                       { 0x12, 0x8f }, { 0x13, 40 },  { 0x17, 0xa3 },
                                       { 0x0a, 0x0d }, { 0x0b, 0x0e } };
    struct ports *p = q->ports;
    ports_out(p, 0x3c2, 1, 0x67);
    ports_out(p, 0x3c4, 2, 0x0302);
    ports_out(p, 0x3c4, 2, 0x0204);
    ports_out(p, 0x3ce, 2, 0x1005);
    ports_out(p, 0x3ce, 2, 0x0e06);
    ports_out(p, 0x3ce, 2, 0xff08);
    for (unsigned i = 0; i < ARRAY_SIZE(crtc); i++)
        ports_out(p, 0x3d4, 2, (uint32_t)crtc[i][1] << 8 | crtc[i][0]);
    ports_in(p, 0x3da, 1);
    ports_out(p, 0x3c0, 1, 0x10);
    ports_out(p, 0x3c0, 1, 0x0c);
    ports_out(p, 0x3c0, 1, 0x20);
    for (unsigned i = 0; i < 80 * 25; i++)
        memory_write(q->m->memory, 0xb8000 + 2 * i, (const uint8_t[]){ ' ', 7 }, 2);
}

/* All memory is cached but the room for devices. */
static void set_up_cpus(struct q35 *q, const struct kernel *k)
{
    static const uint64_t gdt[] = { 0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff };
    for (unsigned n = 0; n < q->m->config->cpus; n++) {
        x86_write_msr(q->cpus[n], 0x200, Q35_PCI_START);
        x86_write_msr(q->cpus[n], 0x201, 0xffc0000800);
        x86_write_msr(q->cpus[n], 0x2ff, 0xc06);
    }
    struct x86 *c = q->cpus[0];
    memcpy(q->ram + GDT_AT, gdt, sizeof gdt);
    c->gdt_base = GDT_AT;
    c->gdt_limit = sizeof gdt - 1;
    c->cr0 = CR0_PE | CR0_ET;
    seg_set(c, CS, 0x10, 0, 0xffffffff, 0xc09b);
    for (unsigned s = ES; s <= DS; s++) {
        if (s != CS)
            seg_set(c, s, 0x18, 0, 0xffffffff, 0xc093);
    }
    c->cpu.r[RSI] = PARAMS_AT;
    c->cpu.r[RSP] = STACK_AT;
    c->cpu.r[IR_PC] = k->at;
    x86_update_mode(c);
}

int q35_start_kernel(struct q35 *q, struct error **err)
{
    struct kernel k;
    if (q->low < 2 << 20)
        return error_set(err, ENOMEM, "A kernel needs 2 MiB of RAM at least");
    uint8_t *params = q->ram + PARAMS_AT;
    memset(params, 0, GUEST_PAGE_SIZE);
    int r = load_kernel(q, params, &k, err);
    if (!r)
        r = load_ramdisk(q, params, &k, err);
    if (!r)
        r = set_command_line(q, params, &k, err);
    if (r)
        return r;
    fill_params(q, params);
    r = place_tables(q);
    if (r)
        return error_set(err, -r, "The ACPI tables for %u CPUs do not fit", q->m->config->cpus);
    set_up_chips(q);
    if (!q->m->config->no_display && !q->no_vga)
        set_text_mode(q);
    set_up_cpus(q, &k);
    memory_written(q->m->memory, 0, q->low);
    return 0;
}
