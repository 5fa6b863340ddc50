/* ACPI tables and the commands that tell firmware where to put them and what to fill in.
 *
 * Source: ACPI specification 6.4, chapter 5; MCFG: PCI Firmware Specification 3.0, table 4-3; the loader's commands: QEMU's documented
 * interface for firmware (etc/table-loader). */
#include "q35.h"

#include "tables.h"

#include "base/bytes.h"

#include <stdio.h>
#include <string.h>

enum { HEADER = 36, FACS = 64, FADT = 244 };
enum { ALLOCATE = 1, ADD_POINTER = 2, ADD_CHECKSUM = 3, ZONE_HIGH = 1, ZONE_LOW = 2, NAME = 56 };
static const char file_tables[] = "etc/acpi/tables", file_rsdp[] = "etc/acpi/rsdp";

/* ---- loader commands ------------------------------------------------------------------------ */

static void add_name(struct blob *b, const char *name)
{
    blob_add(b, name, strlen(name));
    blob_zero(b, NAME - strlen(name));
}

static void end_command(struct blob *b)
{
    blob_zero(b, -b->len & 127);
}

static void allocate(struct blob *b, const char *file, uint32_t align, uint8_t zone)
{
    blob_number(b, ALLOCATE, 4);
    add_name(b, file);
    blob_number(b, align, 4);
    blob_number(b, zone, 1);
    end_command(b);
}

/* The field at this offset holds an offset into the tables and becomes an address. */
static void add_pointer(struct blob *b, const char *file, size_t offset, uint8_t size)
{
    blob_number(b, ADD_POINTER, 4);
    add_name(b, file);
    add_name(b, file_tables);
    blob_number(b, offset, 4);
    blob_number(b, size, 1);
    end_command(b);
}

static void add_checksum(struct blob *b, const char *file, size_t offset, size_t start,
                         size_t length)
{
    blob_number(b, ADD_CHECKSUM, 4);
    add_name(b, file);
    blob_number(b, offset, 4);
    blob_number(b, start, 4);
    blob_number(b, length, 4);
    end_command(b);
}

/* ---- tables --------------------------------------------------------------------------------- */

static size_t begin(struct blob *b, const char *signature, uint8_t revision)
{
    blob_zero(b, -b->len & 7);
    size_t at = b->len;
    blob_add(b, signature, 4);
    blob_zero(b, 4); /* length */
    blob_number(b, revision, 1);
    blob_zero(b, 1); /* checksum */
    blob_add(b, "PLATTR", 6);
    blob_add(b, "PLATTERQ", 8);
    blob_number(b, 1, 4);
    blob_add(b, "PLTR", 4);
    blob_number(b, 1, 4);
    return at;
}

static void end(struct tables *t, size_t at)
{
    if (t->acpi.failed)
        return;
    store_le32(t->acpi.at + at + 4, (uint32_t)(t->acpi.len - at));
    add_checksum(&t->loader, file_tables, at + 9, at, t->acpi.len - at);
}

static size_t make_facs(struct blob *b)
{
    blob_zero(b, -b->len & 63);
    size_t at = b->len;
    blob_add(b, "FACS", 4);
    blob_number(b, FACS, 4);
    blob_zero(b, FACS - 8);
    return at;
}

static size_t make_dsdt(struct q35 *q, struct tables *t)
{
    size_t at = begin(&t->acpi, "DSDT", 2);
    dsdt_make(q, &t->acpi);
    end(t, at);
    return at;
}

static size_t make_fadt(struct q35 *q, struct tables *t, size_t facs, size_t dsdt)
{
    struct blob *b = &t->acpi;
    size_t at = begin(b, "FACP", 3);
    blob_zero(b, FADT - HEADER);
    if (b->failed)
        return at;
    uint8_t *f = b->at + at;
    store_le32(f + 36, (uint32_t)facs);
    store_le32(f + 40, (uint32_t)dsdt);
    store_le16(f + 46, Q35_SCI);
    store_le32(f + 56, Q35_PM_BASE);
    store_le32(f + 64, Q35_PM_BASE + 4);
    store_le32(f + 76, Q35_PM_BASE + 8);
    store_le32(f + 80, Q35_PM_BASE + 0x20);
    f[88] = 4;                                                         /* PM1 event block */
    f[89] = 2;                                                         /* PM1 control block */
    f[91] = 4;                                                         /* timer */
    f[92] = 16;                                                        /* GPE0 */
    store_le16(f + 96, 0xfff);                                         /* no C2 */
    store_le16(f + 98, 0xfff);                                         /* no C3 */
    f[108] = 0x32;                                                     /* the century in CMOS */
    store_le16(f + 109, (uint16_t)(q->m->config->no_display ? 7 : 3)); /* ISA, 8042, no VGA */
    /* WBINVD, C1, no sleep button, no RTC wake in fixed registers, a reset register. */
    store_le32(f + 112, 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10);
    f[116] = 1; /* the reset register is a port of 8 bits */
    f[117] = 8;
    store_le64(f + 120, 0xcf9);
    f[128] = 6;
    add_pointer(&t->loader, file_tables, at + 36, 4);
    add_pointer(&t->loader, file_tables, at + 40, 4);
    end(t, at);
    return at;
}

static size_t make_madt(struct q35 *q, struct tables *t)
{
    struct blob *b = &t->acpi;
    size_t at = begin(b, "APIC", 3);
    blob_number(b, LAPIC_BASE, 4);
    blob_number(b, 1, 4); /* there are 8259s */
    for (unsigned n = 0; n < q->m->config->cpus; n++) {
        blob_add(b, (const uint8_t[]){ 0, 8, (uint8_t)n, (uint8_t)n }, 4);
        blob_number(b, 1, 4);
    }
    blob_add(b, (const uint8_t[]){ 1, 12, 0, 0 }, 4);
    blob_number(b, IOAPIC_BASE, 4);
    blob_number(b, 0, 4);
    blob_add(b, (const uint8_t[]){ 2, 10, 0, 0, 2, 0, 0, 0, 0, 0 }, 10);   /* ISA 0 is pin 2 */
    blob_add(b, (const uint8_t[]){ 2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0 }, 10); /* level, high */
    blob_add(b, (const uint8_t[]){ 4, 6, 0xff, 0, 0, 1 }, 6);              /* NMI on LINT1 */
    end(t, at);
    return at;
}

static size_t make_mcfg(struct tables *t)
{
    struct blob *b = &t->acpi;
    size_t at = begin(b, "MCFG", 1);
    blob_zero(b, 8);
    blob_number(b, Q35_ECAM, 8);
    blob_number(b, 0, 2);
    blob_add(b, (const uint8_t[]){ 0, 255, 0, 0, 0, 0 }, 6);
    end(t, at);
    return at;
}

static size_t make_root(struct tables *t, const char *signature, uint8_t size, const size_t *list,
                        unsigned n)
{
    struct blob *b = &t->acpi;
    size_t at = begin(b, signature, 1);
    for (unsigned i = 0; i < n; i++) {
        add_pointer(&t->loader, file_tables, b->len, size);
        blob_number(b, list[i], size);
    }
    end(t, at);
    return at;
}

static void make_rsdp(struct tables *t, size_t rsdt, size_t xsdt)
{
    struct blob *b = &t->rsdp;
    blob_add(b, "RSD PTR ", 8);
    blob_zero(b, 1);
    blob_add(b, "PLATTR", 6);
    blob_number(b, 2, 1);
    blob_number(b, rsdt, 4);
    blob_number(b, 36, 4);
    blob_number(b, xsdt, 8);
    blob_zero(b, 4);
    add_pointer(&t->loader, file_rsdp, 16, 4);
    add_pointer(&t->loader, file_rsdp, 24, 8);
    add_checksum(&t->loader, file_rsdp, 8, 0, 20);
    add_checksum(&t->loader, file_rsdp, 32, 0, 36);
}

void acpi_make(struct q35 *q, struct tables *t)
{
    allocate(&t->loader, file_rsdp, 16, ZONE_LOW);
    allocate(&t->loader, file_tables, 64, ZONE_HIGH);
    size_t facs = make_facs(&t->acpi), dsdt = make_dsdt(q, t), list[3];
    list[0] = make_fadt(q, t, facs, dsdt);
    list[1] = make_madt(q, t);
    list[2] = make_mcfg(t);
    size_t rsdt = make_root(t, "RSDT", 4, list, 3), xsdt = make_root(t, "XSDT", 8, list, 3);
    make_rsdp(t, rsdt, xsdt);
}
