/* What a system reads about its machine. Source: SMBIOS reference specification 2.8 (DMTF DSP0134). */
#include "q35.h"

#include "tables.h"

#include "base/bytes.h"
#include "base/macros.h"

#include <string.h>

enum { ANCHOR = 31, HANDLE_MEMORY = 0x1000 };

/* Structures end with their strings, numbered from 1, and an empty one. */
static size_t begin(struct blob *b, uint8_t type, uint8_t length, uint16_t handle)
{
    size_t at = b->len;
    blob_add(b, (const uint8_t[]){ type, length }, 2);
    blob_number(b, handle, 2);
    blob_zero(b, length - 4u);
    return at;
}

static void strings(struct blob *b, const char *const *list, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        blob_add(b, list[i], strlen(list[i]) + 1);
    blob_zero(b, n ? 1 : 2);
}

static void set(struct blob *b, size_t at, uint64_t value, unsigned size)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    if (!b->failed)
        memcpy(b->at + at, bytes, size);
}

static void bios(struct blob *b)
{
    static const char *const text[] = { "Platter", "1", "01/01/2026" };
    size_t at = begin(b, 0, 24, 0);
    set(b, at + 4, 1, 1);
    set(b, at + 5, 2, 1);
    set(b, at + 6, 0xe800, 2);
    set(b, at + 8, 3, 1);
    set(b, at + 10, 8, 8);          /* no characteristics */
    set(b, at + 18, 0x1800, 2);     /* ACPI..: a virtual machine */
    set(b, at + 20, 0xffff0001, 4); /* release 1.0, no embedded controller */
    strings(b, text, ARRAY_SIZE(text));
}

static void system_information(const struct machine_config *c, struct blob *b)
{
    const char *const text[] = { "Platter", "q35", "1", c->name && *c->name ? c->name : "none" };
    size_t at = begin(b, 1, 27, 0x100);
    set(b, at + 4, 1, 1);
    set(b, at + 5, 2, 1);
    set(b, at + 6, 3, 1);
    set(b, at + 26, 4, 1);       /* family: the machine's name */
    set(b, at + 24, 6, 1);       /* woken by the power switch */
    if (c->uuid && !b->failed) { /* section 7.2.1: the first three fields are little-endian */
        uint8_t *u = b->at + at + 8;
        store_le32(u, load_be32(c->uuid));
        store_le16(u + 4, load_be16(c->uuid + 4));
        store_le16(u + 6, load_be16(c->uuid + 6));
        memcpy(u + 8, c->uuid + 8, 8);
    }
    strings(b, text, ARRAY_SIZE(text));
}

static void chassis(struct blob *b)
{
    static const char *const text[] = { "Platter" };
    size_t at = begin(b, 3, 22, 0x300);
    set(b, at + 4, 1, 1);
    set(b, at + 5, 1, 1); /* "other" */
    set(b, at + 9, 0x03030303, 4);
    strings(b, text, ARRAY_SIZE(text));
}

static void memory(uint64_t size, struct blob *b)
{
    static const char *const text[] = { "DIMM 0" };
    uint64_t mib = size >> 20;
    size_t at = begin(b, 16, 23, HANDLE_MEMORY);
    set(b, at + 4, 1, 1); /* "other" */
    set(b, at + 5, 3, 1);
    set(b, at + 6, 6, 1);
    set(b, at + 7, size >> 10 < 0x80000000 ? size >> 10 : 0x80000000, 4);
    set(b, at + 11, 0xfffe, 2);
    set(b, at + 13, 1, 2);
    set(b, at + 15, size, 8);
    strings(b, NULL, 0);
    at = begin(b, 17, 34, 0x1100);
    set(b, at + 4, HANDLE_MEMORY, 2);
    set(b, at + 6, 0xfffe, 2);
    set(b, at + 12, mib < 0x7fff ? mib : 0x7fff, 2);
    set(b, at + 14, 9, 1);
    set(b, at + 16, 1, 1);
    set(b, at + 18, 7, 1);
    set(b, at + 19, 2, 2);
    set(b, at + 28, mib < 0x7fff ? 0 : mib, 4);
    strings(b, text, ARRAY_SIZE(text));
}

/* The structure with the most bytes, for the anchor. */
static size_t longest(const struct blob *b, unsigned *count)
{
    size_t most = 0;
    *count = 0;
    for (size_t at = 0; !b->failed && at + 4 <= b->len;) {
        size_t end = at + b->at[at + 1];
        while (end + 2 <= b->len && (b->at[end] || b->at[end + 1]))
            end++;
        end += 2;
        most = MAX(most, end - at);
        ++*count;
        at = end;
    }
    return most;
}

static uint8_t sum(const uint8_t *bytes, unsigned length)
{
    uint8_t s = 0;
    while (length--)
        s += *bytes++;
    return s;
}

/* Table 1. Firmware fills the address in; placed by ourselves, q35_linux.c does. */
void smbios_make(struct q35 *q, struct blob *tables, struct blob *anchor)
{
    unsigned count;
    bios(tables);
    system_information(q->m->config, tables);
    chassis(tables);
    memory(q->ram_size, tables);
    begin(tables, 127, 4, 0x7f00);
    strings(tables, NULL, 0);
    size_t most = longest(tables, &count);
    blob_zero(anchor, ANCHOR);
    if (anchor->failed)
        return;
    uint8_t *a = anchor->at;
    memcpy(a, "_SM_", 4);
    a[5] = ANCHOR;
    a[6] = 2;
    a[7] = 8;
    store_le16(a + 8, (uint16_t)most);
    memcpy(a + 16, "_DMI_", 5);
    store_le16(a + 22, (uint16_t)tables->len);
    store_le16(a + 28, (uint16_t)count);
    a[30] = 0x28;
    a[21] = (uint8_t)-sum(a + 16, 15);
    a[4] = (uint8_t)-sum(a, ANCHOR);
}
