#include "tables.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/vector.h"

void blob_add(struct blob *b, const void *bytes, size_t length)
{
    if (!length)
        return;
    if (b->failed || vector_reserve(b, b->len + length)) {
        b->failed = true;
        return;
    }
    memcpy(b->at + b->len, bytes, length);
    b->len += length;
}

void blob_zero(struct blob *b, size_t length)
{
    if (!length)
        return;
    if (b->failed || vector_reserve(b, b->len + length)) {
        b->failed = true;
        return;
    }
    memset(b->at + b->len, 0, length);
    b->len += length;
}

void blob_number(struct blob *b, uint64_t value, unsigned size)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    blob_add(b, bytes, size);
}

int tables_make(struct q35 *q, struct tables *t)
{
    *t = (struct tables){ 0 };
    acpi_make(q, t);
    smbios_make(q, &t->smbios, &t->smbios_anchor);
    bool failed = t->acpi.failed || t->rsdp.failed || t->loader.failed || t->smbios.failed ||
                  t->smbios_anchor.failed;
    return failed ? -ENOMEM : 0;
}

void tables_free(struct tables *t)
{
    vector_free(&t->acpi);
    vector_free(&t->rsdp);
    vector_free(&t->loader);
    vector_free(&t->smbios);
    vector_free(&t->smbios_anchor);
}

/* ---- the loader, for machines without firmware ---------------------------------------------- */

enum { COMMAND = 128, NAME = 56, ADD_POINTER = 2, ADD_CHECKSUM = 3 };

static bool is_rsdp(const uint8_t *name)
{
    return !strcmp((const char *)name, "etc/acpi/rsdp");
}

static void place_one(const uint8_t *c, uint8_t *rsdp, uint8_t *acpi, uint64_t rsdp_at,
                      uint64_t acpi_at)
{
    uint8_t *file = is_rsdp(c + 4) ? rsdp : acpi;
    if (load_le32(c) == ADD_POINTER) {
        uint8_t *field = file + load_le32(c + 4 + 2 * NAME);
        uint64_t base = is_rsdp(c + 4 + NAME) ? rsdp_at : acpi_at;
        if (c[8 + 2 * NAME] == 8)
            store_le64(field, load_le64(field) + base);
        else
            store_le32(field, load_le32(field) + (uint32_t)base);
    } else if (load_le32(c) == ADD_CHECKSUM) {
        const uint8_t *from = file + load_le32(c + 8 + NAME);
        uint8_t sum = 0;
        for (uint32_t i = 0; i < load_le32(c + 12 + NAME); i++)
            sum += from[i];
        file[load_le32(c + 4 + NAME)] -= sum;
    }
}

int tables_place(struct tables *t, uint64_t address, struct blob *out)
{
    *out = (struct blob){ 0 };
    blob_add(out, t->rsdp.at, t->rsdp.len);
    blob_zero(out, -t->rsdp.len & 63);
    size_t acpi = out->len;
    blob_add(out, t->acpi.at, t->acpi.len);
    if (out->failed)
        return -ENOMEM;
    for (size_t i = 0; i + COMMAND <= t->loader.len; i += COMMAND)
        place_one(t->loader.at + i, out->at, out->at + acpi, address, address + acpi);
    return 0;
}
