/* The tables that a system finds in memory: ACPI and SMBIOS, as files for firmware and placed by ourselves where there is none. */
#ifndef MACHINE_TABLES_H
#define MACHINE_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct q35;

/* A growing row of bytes. Running out of memory is remembered. */
struct blob {
    uint8_t *at;
    size_t len, cap;
    bool failed;
};

void blob_add(struct blob *b, const void *bytes, size_t length);
void blob_zero(struct blob *b, size_t length);
void blob_number(struct blob *b, uint64_t value, unsigned size); /* little-endian */

struct tables {
    struct blob acpi, rsdp, loader, smbios, smbios_anchor;
};

int tables_make(struct q35 *q, struct tables *t); /* 0 or -ENOMEM; to be freed in any case */
void tables_free(struct tables *t);

/* Carries the loader's commands out with the tables at this address of RAM, the RSDP first. The bytes to write there. */
int tables_place(struct tables *t, uint64_t address, struct blob *out);

/* acpi.c */
void acpi_make(struct q35 *q, struct tables *t);
/* dsdt.c: the body, behind the header. */
void dsdt_make(struct q35 *q, struct blob *b);
/* smbios.c */
void smbios_make(struct q35 *q, struct blob *tables, struct blob *anchor);

#endif
