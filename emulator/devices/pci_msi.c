/* Interrupts as messages: MSI (PCI 3.0 section 6.8.1) and MSI-X (6.8.2). */
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/round.h"
#include "cpu/memory.h"
#include "pci_state.h"

#include <stdlib.h>
#include <string.h>

enum {
    MSI_CONTROL = 2,
    MSI_ON = 1,
    MSI_ADDRESS = 4,
    MSI_DATA = 12,
    MSI_MASK = 16,
    MSI_PENDING = 20,
    MSI_LENGTH = 24,
    MSIX_CONTROL = 2,
    MSIX_ON = 0x8000,
    MSIX_MASKED = 0x4000,
    MSIX_ENTRY = 16,
};

bool pci_msi_on(const struct pci_function *f)
{
    const struct pci_state *s = f->state;
    return (s->msi && s->config[s->msi + MSI_CONTROL] & MSI_ON) ||
           (s->msix && load_le16(s->config + s->msix + MSIX_CONTROL) & MSIX_ON);
}

static void send(struct pci_function *f, uint64_t address, uint32_t data)
{
    const struct pci_host *h = &f->bus->host;
    /* A message is a write by the device: without leave to write there is none. */
    if (h->message && f->state->master)
        h->message(h->opaque, address, data);
}

/* ---- MSI ------------------------------------------------------------------------------------ */

int pci_msi(struct pci_function *f, unsigned vectors)
{
    struct pci_state *s = f->state;
    if (!is_pow2(vectors) || vectors > 32 || s->msi)
        return -EINVAL;
    unsigned at = pci_capability(f, 5, MSI_LENGTH);
    if (!at)
        return -ENOSPC;
    s->msi = at;
    /* 64-bit addresses, a mask for each vector */
    store_le16(s->config + at + MSI_CONTROL, (uint16_t)(0x180 | log2_floor(vectors) << 1));
    store_le16(s->mask + at + MSI_CONTROL, 0x71);
    store_le32(s->mask + at + MSI_ADDRESS, 0xfffffffc);
    store_le32(s->mask + at + MSI_ADDRESS + 4, 0xffffffff);
    store_le16(s->mask + at + MSI_DATA, 0xffff);
    store_le32(s->mask + at + MSI_MASK, vectors == 32 ? 0xffffffff : (1u << vectors) - 1);
    return 0;
}

static void msi_send(struct pci_function *f, unsigned vector)
{
    uint8_t *c = f->state->config + f->state->msi;
    unsigned able = c[MSI_CONTROL] >> 1 & 7, granted = c[MSI_CONTROL] >> 4 & 7;
    unsigned count = 1u << (granted < able ? granted : able);
    vector &= count - 1;
    if (load_le32(c + MSI_MASK) >> vector & 1) {
        store_le32(c + MSI_PENDING, load_le32(c + MSI_PENDING) | 1u << vector);
        return;
    }
    store_le32(c + MSI_PENDING, load_le32(c + MSI_PENDING) & ~(1u << vector));
    send(f, load_le64(c + MSI_ADDRESS), (load_le16(c + MSI_DATA) & ~(count - 1)) | vector);
}

/* ---- MSI-X ---------------------------------------------------------------------------------- */

static uint8_t *pending_byte(const struct pci_state *s, unsigned vector)
{
    return s->table + s->vectors * MSIX_ENTRY + vector / 8;
}

static void msix_send(struct pci_function *f, unsigned vector)
{
    struct pci_state *s = f->state;
    const uint8_t *entry = s->table + vector * MSIX_ENTRY;
    uint8_t bit = (uint8_t)(1 << vector % 8);
    if (load_le16(s->config + s->msix + MSIX_CONTROL) & MSIX_MASKED || entry[12] & 1) {
        *pending_byte(s, vector) |= bit;
        return;
    }
    *pending_byte(s, vector) &= (uint8_t)~bit;
    send(f, load_le64(entry), load_le32(entry + 8));
}

/* Bytes of table and pending bits as the guest sees them: the bits stand behind the table's room. */
static uint64_t pending_at(const struct pci_state *s)
{
    return s->bars[s->config[s->msix + 4] & 7].size / 2;
}

static uint64_t table_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct pci_function *f = opaque;
    const struct pci_state *s = f->state;
    LOCK_SCOPE(&f->bus->lock);
    uint64_t value = 0, bits = pending_at(s);
    for (unsigned i = 0; i < size; i++) {
        uint64_t at = offset + i;
        uint8_t byte = 0;
        if (at < s->vectors * MSIX_ENTRY)
            byte = s->table[at];
        else if (at >= bits && at - bits < (s->vectors + 7) / 8)
            byte = *pending_byte(s, (unsigned)(at - bits) * 8);
        value |= (uint64_t)byte << (8 * i);
    }
    return value;
}

static void table_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_function *f = opaque;
    const struct pci_state *s = f->state;
    LOCK_SCOPE(&f->bus->lock);
    for (unsigned i = 0; i < size && offset + i < s->vectors * MSIX_ENTRY; i++)
        s->table[offset + i] = (uint8_t)(value >> (8 * i));
    pci_msi_update(f);
}

static const struct memory_io table_io = { table_read, table_write };

int pci_msix(struct pci_function *f, unsigned bar, unsigned vectors)
{
    struct pci_state *s = f->state;
    if (!vectors || vectors > 2048 || s->msix || bar >= PCI_BARS)
        return -EINVAL;
    unsigned bytes = vectors * MSIX_ENTRY;
    uint64_t size = (uint64_t)2 << log2_ceil(bytes < 2048 ? 2048 : bytes);
    int r = pci_bar_memory(f, bar, size, 0, &table_io, f);
    if (r)
        return r;
    unsigned at = pci_capability(f, 0x11, 12);
    if (!at)
        return -ENOSPC;
    s->table = calloc(1, bytes + (vectors + 7) / 8);
    if (!s->table)
        return -ENOMEM;
    s->vectors = vectors;
    s->msix = at;
    store_le16(s->config + at + MSIX_CONTROL, (uint16_t)(vectors - 1));
    store_le16(s->mask + at + MSIX_CONTROL, MSIX_ON | MSIX_MASKED);
    store_le32(s->config + at + 4, bar);
    store_le32(s->config + at + 8, (uint32_t)(size / 2) | bar);
    for (unsigned v = 0; v < vectors; v++)
        s->table[v * MSIX_ENTRY + 12] = 1;
    return 0;
}

bool pci_msix_on(struct pci_function *f)
{
    const struct pci_state *s = f->state;
    LOCK_SCOPE(&f->bus->lock);
    return s->msix && load_le16(s->config + s->msix + MSIX_CONTROL) & MSIX_ON;
}

/* ---- both ----------------------------------------------------------------------------------- */

bool pci_notify(struct pci_function *f, unsigned vector)
{
    const struct pci_state *s = f->state;
    LOCK_SCOPE(&f->bus->lock);
    if (s->msix && load_le16(s->config + s->msix + MSIX_CONTROL) & MSIX_ON) {
        if (vector < s->vectors)
            msix_send(f, vector);
        return true;
    }
    if (s->msi && s->config[s->msi + MSI_CONTROL] & MSI_ON) {
        msi_send(f, vector);
        return true;
    }
    return false;
}

void pci_msi_update(struct pci_function *f)
{
    const struct pci_state *s = f->state;
    if (s->msix && load_le16(s->config + s->msix + MSIX_CONTROL) & MSIX_ON) {
        for (unsigned v = 0; v < s->vectors; v++) {
            if (*pending_byte(s, v) >> v % 8 & 1)
                msix_send(f, v);
        }
    } else if (s->msi && s->config[s->msi + MSI_CONTROL] & MSI_ON) {
        uint32_t due = load_le32(s->config + s->msi + MSI_PENDING);
        for (unsigned v = 0; v < 32; v++) {
            if (due >> v & 1)
                msi_send(f, v);
        }
    }
}

void pci_msi_reset(struct pci_function *f)
{
    struct pci_state *s = f->state;
    if (s->msi) {
        s->config[s->msi + MSI_CONTROL] &= 0x8e;
        memset(s->config + s->msi + MSI_ADDRESS, 0, MSI_LENGTH - MSI_ADDRESS);
    }
    if (s->msix) {
        s->config[s->msix + MSIX_CONTROL + 1] &= 0x07;
        memset(s->table, 0, s->vectors * MSIX_ENTRY + (s->vectors + 7) / 8);
        for (unsigned v = 0; v < s->vectors; v++)
            s->table[v * MSIX_ENTRY + 12] = 1;
    }
}

void pci_msi_free(struct pci_function *f)
{
    free(f->state->table);
}
