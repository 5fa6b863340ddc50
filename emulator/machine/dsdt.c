/* What ACPI's interpreter is told of the machine: its buses, their windows and interrupts, ISA devices, soft-off.
 *
 * Source: ACPI specification 6.4, chapter 20 (encoding of AML) and 6.4 (resource descriptors). */
#include "q35.h"

#include "tables.h"

#include "base/bytes.h"

#include <string.h>

enum { /* AML */
       OP_ONE = 0x01,
       OP_NAME = 0x08,
       OP_BYTE = 0x0a,
       OP_WORD = 0x0b,
       OP_DWORD = 0x0c,
       OP_SCOPE = 0x10,
       OP_BUFFER = 0x11,
       OP_PACKAGE = 0x12,
       OP_METHOD = 0x14,
       OP_EXT = 0x5b,
       OP_DEVICE = 0x82,
       OP_ARG0 = 0x68,
       OP_STORE = 0x70,
};

static void byte(struct blob *b, unsigned value)
{
    blob_number(b, value, 1);
}

static void number(struct blob *b, uint32_t value)
{
    if (value < 2) {
        byte(b, value);
    } else if (value < 0x100) {
        byte(b, OP_BYTE);
        blob_number(b, value, 1);
    } else if (value < 0x10000) {
        byte(b, OP_WORD);
        blob_number(b, value, 2);
    } else {
        byte(b, OP_DWORD);
        blob_number(b, value, 4);
    }
}

static void name(struct blob *b, const char *s)
{
    byte(b, OP_NAME);
    blob_add(b, s, strlen(s));
}

/* The length of what follows, in the form of three bytes, is filled in by end(). */
static size_t begin_length(struct blob *b)
{
    blob_zero(b, 3);
    return b->len - 3;
}

static void end(struct blob *b, size_t at)
{
    if (b->failed)
        return;
    size_t length = b->len - at;
    b->at[at] = (uint8_t)(0x80 | (length & 15));
    b->at[at + 1] = (uint8_t)(length >> 4);
    b->at[at + 2] = (uint8_t)(length >> 12);
}

static size_t begin_scope(struct blob *b, const char *path)
{
    byte(b, OP_SCOPE);
    size_t at = begin_length(b);
    blob_add(b, path, strlen(path));
    return at;
}

static size_t begin_device(struct blob *b, const char *s)
{
    byte(b, OP_EXT);
    byte(b, OP_DEVICE);
    size_t at = begin_length(b);
    blob_add(b, s, 4);
    return at;
}

static size_t begin_package(struct blob *b, unsigned elements)
{
    byte(b, OP_PACKAGE);
    size_t at = begin_length(b);
    byte(b, elements);
    return at;
}

/* "PNP0A08" as a compressed number (section 19.3.4). */
static void eisa_id(struct blob *b, const char *key, const char *id)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < 3; i++)
        v = v << 5 | (uint32_t)(id[i] - 0x40);
    v = v << 16 | (uint32_t)strtoul(id + 3, NULL, 16);
    name(b, key);
    byte(b, OP_DWORD);
    blob_number(b, __builtin_bswap32(v), 4);
}

static void name_number(struct blob *b, const char *key, uint32_t value)
{
    name(b, key);
    number(b, value);
}

/* ---- resources ------------------------------------------------------------------------------ */

/* A _CRS: a buffer of descriptors and the end tag. */
static void resources(struct blob *b, const struct blob *r)
{
    name(b, "_CRS");
    byte(b, OP_BUFFER);
    size_t at = begin_length(b);
    number(b, (uint32_t)r->len + 2);
    blob_add(b, r->at, r->len);
    blob_add(b, (const uint8_t[]){ 0x79, 0 }, 2);
    b->failed |= r->failed;
    end(b, at);
}

static void io_ports(struct blob *r, uint16_t at, uint8_t count)
{
    byte(r, 0x47);
    byte(r, 1); /* all 16 bits are decoded */
    blob_number(r, at, 2);
    blob_number(r, at, 2);
    byte(r, 1);
    byte(r, count);
}

static void irq(struct blob *r, unsigned n)
{
    byte(r, 0x22);
    blob_number(r, 1u << n, 2);
}

static void fixed_memory(struct blob *r, uint32_t at, uint32_t size)
{
    byte(r, 0x86);
    blob_number(r, 9, 2);
    byte(r, 1);
    blob_number(r, at, 4);
    blob_number(r, size, 4);
}

enum { SPACE_MEMORY, SPACE_IO, SPACE_BUS };

/* What the bridge passes on; the size of a field, 2, 4 or 8 bytes, decides the descriptor. */
static void window(struct blob *r, unsigned space, unsigned field, uint64_t first, uint64_t last)
{
    byte(r, field == 2 ? 0x88 : field == 4 ? 0x87 : 0x8a);
    blob_number(r, 3 + 5 * field, 2);
    byte(r, space);
    byte(r, 0x0c); /* fixed at both ends, produced */
    byte(r, space == SPACE_IO ? 3 : space == SPACE_MEMORY ? 1 : 0);
    blob_number(r, 0, field);
    blob_number(r, first, field);
    blob_number(r, last, field);
    blob_number(r, 0, field);
    blob_number(r, last - first + 1, field);
}

static void bridge_windows(struct q35 *q, struct blob *b)
{
    struct blob r = { 0 };
    uint64_t above = Q35_HIGH + q->high;
    /* To the next 4 GiB, so that a 64-bit BAR lies as it likes. */
    above = (above + Q35_HIGH) & ~(Q35_HIGH - 1);
    window(&r, SPACE_BUS, 2, 0, 255);
    io_ports(&r, 0xcf8, 8);
    window(&r, SPACE_IO, 2, 0, 0xcf7);
    window(&r, SPACE_IO, 2, 0xd00, 0xffff);
    window(&r, SPACE_MEMORY, 4, 0xa0000, 0xbffff);
    window(&r, SPACE_MEMORY, 4, Q35_PCI_START, Q35_PCI_END - 1);
    window(&r, SPACE_MEMORY, 8, above, above + ((uint64_t)32 << 30) - 1);
    resources(b, &r);
    free(r.at);
}

/* ---- devices -------------------------------------------------------------------------------- */

/* Each pin of each device straight to the I/O APIC. */
static void routing(struct blob *b)
{
    name(b, "_PRT");
    size_t all = begin_package(b, 31 * 4 + 4);
    for (unsigned device = 0; device < 32; device++) {
        for (unsigned pin = 0; pin < 4; pin++) {
            size_t one = begin_package(b, 4);
            number(b, device << 16 | 0xffff);
            number(b, pin);
            number(b, 0);
            number(b, Q35_GSI_PIRQA + q35_pirq(device, pin));
            end(b, one);
        }
    }
    end(b, all);
}

static void isa_device(struct blob *b, const char *s, const char *id, unsigned uid,
                       const struct blob *r)
{
    size_t at = begin_device(b, s);
    eisa_id(b, "_HID", id);
    name_number(b, "_UID", uid);
    name_number(b, "_STA", 0xf);
    resources(b, r);
    end(b, at);
}

static void simple_device(struct blob *b, const char *s, const char *id, unsigned uid,
                          uint16_t port, uint8_t count, uint16_t port2, unsigned line)
{
    struct blob r = { 0 };
    if (count)
        io_ports(&r, port, count);
    if (port2)
        io_ports(&r, port2, count);
    irq(&r, line);
    isa_device(b, s, id, uid, &r);
    free(r.at);
}

static void isa_devices(struct q35 *q, struct blob *b)
{
    static const struct {
        const char *name;
        uint16_t port;
        uint8_t irq;
    } com[MACHINE_SERIALS] = {
        { "COM1", 0x3f8, 4 }, { "COM2", 0x2f8, 3 }, { "COM3", 0x3e8, 4 }, { "COM4", 0x2e8, 3 }
    };
    simple_device(b, "RTC_", "PNP0B00", 0, 0x70, 2, 0, 8);
    simple_device(b, "KBD_", "PNP0303", 0, 0x60, 1, 0x64, 1);
    simple_device(b, "MOU_", "PNP0F13", 0, 0, 0, 0, 12);
    for (unsigned n = 0; n < MACHINE_SERIALS; n++) {
        if (q->serial[n])
            simple_device(b, com[n].name, "PNP0501", n + 1, com[n].port, 8, 0, com[n].irq);
    }
}

/* What nobody else may use: configuration space, power management, the chipset's registers. */
static void motherboard(struct blob *b)
{
    struct blob r = { 0 };
    io_ports(&r, Q35_PM_BASE, 0x80);
    fixed_memory(&r, Q35_ECAM, 0x10000000);
    fixed_memory(&r, Q35_RCBA, 0x4000);
    fixed_memory(&r, IOAPIC_BASE, IOAPIC_SIZE);
    fixed_memory(&r, LAPIC_BASE, LAPIC_SIZE);
    isa_device(b, "MBRD", "PNP0C02", 0, &r);
    free(r.at);
}

void dsdt_make(struct q35 *q, struct blob *b)
{
    name_number(b, "PICF", 0);
    byte(b, OP_METHOD);
    size_t method = begin_length(b);
    blob_add(b, "_PIC", 4);
    byte(b, 1);
    byte(b, OP_STORE);
    byte(b, OP_ARG0);
    blob_add(b, "PICF", 4);
    end(b, method);

    size_t sb = begin_scope(b, "\\_SB_"), pci = begin_device(b, "PCI0");
    eisa_id(b, "_HID", "PNP0A08");
    eisa_id(b, "_CID", "PNP0A03");
    name_number(b, "_ADR", 0);
    name_number(b, "_UID", 0);
    name_number(b, "_BBN", 0);
    bridge_windows(q, b);
    routing(b);
    size_t isa = begin_device(b, "ISA_");
    name_number(b, "_ADR", 0x1f0000);
    isa_devices(q, b);
    end(b, isa);
    end(b, pci);
    motherboard(b);
    end(b, sb);

    name(b, "_S5_"); /* sleep type 0 switches off */
    size_t s5 = begin_package(b, 4);
    for (unsigned n = 0; n < 4; n++)
        number(b, 0);
    end(b, s5);
}
