/* The host bridge, 8086:29c0: ways to configuration space, and RAM or firmware from C0000 to FFFFF.
 *
 * Source: Intel 3 Series Express Chipset Family data sheet, section 5.1 (device 0). */
#include "q35.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"

#include <string.h>

enum { PCIEXBAR = 0x60, PAM0 = 0x90, PAM_BYTES = 7, SMRAM = 0x9d };
enum { SHADOW = 0xc0000, SHADOW_END = 0x100000, SHADOW_PIECE = 0x4000 };
enum { PAM_READ = 1, PAM_WRITE = 2, PAM_UNMAPPED = 4 /* ours: nothing lies over RAM yet */ };

/* ---- C0000 to FFFFF ------------------------------------------------------------------------- */

static uint32_t piece_start(unsigned n)
{
    return SHADOW + n * SHADOW_PIECE;
}

static uint32_t piece_size(unsigned n)
{
    return n == Q35_PAM - 1 ? 0x10000 : SHADOW_PIECE;
}

/* What is there when it is not RAM: the end of the firmware, from E0000 on. */
static const uint8_t *firmware_at(const struct q35 *q, uint64_t address)
{
    uint64_t from_end = SHADOW_END - address;
    if (!q->firmware || address < 0xe0000 || from_end > q->firmware_size)
        return NULL;
    return q->firmware + q->firmware_size - from_end;
}

/* Reads and writes go different ways: firmware or nothing is read, RAM is perhaps written. */
static uint64_t split_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct q35_piece *p = opaque;
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++) {
        const uint8_t *byte = firmware_at(p->q, piece_start(p->n) + offset + i);
        value |= (uint64_t)(byte ? *byte : 0xff) << (8 * i);
    }
    return value;
}

static void split_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    const struct q35_piece *p = opaque;
    if (!(p->pam & PAM_WRITE))
        return;
    for (unsigned i = 0; i < size; i++)
        p->q->ram[piece_start(p->n) + offset + i] = (uint8_t)(value >> (8 * i));
}

static const struct memory_io split_io = { split_read, split_write };

static void set_pam(struct q35 *q, unsigned n, uint8_t want)
{
    struct memory *memory = q->m->memory;
    struct q35_piece *p = &q->bridge.pieces[n];
    uint32_t start = piece_start(n), size = piece_size(n);
    if (p->pam == want)
        return;
    if (p->pam != (PAM_READ | PAM_WRITE) && p->pam != PAM_UNMAPPED)
        memory_remove(memory, start);
    p->pam = want;
    if (want == PAM_READ) {
        memory_add_ram(memory, start, size, q->ram + start, MEMORY_ROM);
    } else if (!(want & PAM_READ)) {
        const uint8_t *bytes = firmware_at(q, start);
        if (bytes && !want)
            memory_add_ram(memory, start, size, (void *)(uintptr_t)bytes, MEMORY_ROM);
        else
            memory_add_io(memory, start, size, &split_io, p);
    }
}

/* PAM0 is F0000; each of the others is two pieces, from C0000 on. */
static void update_pam(struct q35 *q)
{
    const uint8_t *pam = pci_config(&q->bridge.pci, PAM0);
    set_pam(q, Q35_PAM - 1, pam[0] >> 4 & 3);
    for (unsigned n = 0; n < Q35_PAM - 1; n++)
        set_pam(q, n, pam[1 + n / 2] >> (n & 1 ? 4 : 0) & 3);
}

/* ---- configuration space -------------------------------------------------------------------- */

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
    struct q35 *q = opaque;
    if (offset >> 20) /* bus 0 only */
        return UINT64_MAX;
    if (size == 8)
        return ecam_read(opaque, offset, 4) | ecam_read(opaque, offset + 4, 4) << 32;
    return pci_config_read(q->m->pci, (uint8_t)(offset >> 12), offset & 0xfff, size);
}

static void ecam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct q35 *q = opaque;
    if (offset >> 20)
        return;
    if (size == 8) {
        ecam_write(opaque, offset, 4, (uint32_t)value);
        ecam_write(opaque, offset + 4, 4, value >> 32);
        return;
    }
    pci_config_write(q->m->pci, (uint8_t)(offset >> 12), offset & 0xfff, size, (uint32_t)value);
}

static const struct memory_io ecam_io = { ecam_read, ecam_write };

static void update_ecam(struct q35 *q)
{
    struct q35_host_bridge *b = &q->bridge;
    uint64_t raw = load_le64(pci_config(&b->pci, PCIEXBAR));
    uint64_t size = (uint64_t)256 << 20 >> (raw >> 1 & 3), at = 0;
    if (raw & 1 && (raw >> 1 & 3) < 3)
        at = raw & 0xff0000000 & ~(size - 1);
    if (at == b->ecam)
        return;
    if (b->ecam)
        memory_remove(q->m->memory, b->ecam);
    b->ecam = 0;
    if (at && !memory_add_io(q->m->memory, at, size, &ecam_io, q))
        b->ecam = at;
}

/* Ports cf8 to cff. CF9, in between, is the reset control. */
static bool target(const struct q35 *q, uint64_t offset, uint8_t *devfn, unsigned *at)
{
    uint32_t a = q->bridge.config_address;
    *devfn = (uint8_t)(a >> 8);
    *at = (a & 0xfc) | (offset & 3);
    return a >> 31 && !(a >> 16 & 0xff);
}

static uint64_t ports_read(void *opaque, uint64_t offset, unsigned size)
{
    struct q35 *q = opaque;
    uint8_t devfn;
    unsigned at;
    if (offset == 0 && size == 4)
        return q->bridge.config_address;
    if (offset == 1 && size == 1)
        return q->lpc.reset_control;
    if (offset < 4 || !target(q, offset, &devfn, &at))
        return UINT64_MAX;
    return pci_config_read(q->m->pci, devfn, at, size);
}

static void ports_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct q35 *q = opaque;
    uint8_t devfn;
    unsigned at;
    if (offset == 0 && size == 4) {
        q->bridge.config_address = (uint32_t)value;
    } else if (offset == 1 && size == 1) {
        q->lpc.reset_control = value & 0xe;
        if (value & 4)
            machine_request(q->m, MACHINE_GUEST_RESET);
    } else if (offset >= 4 && target(q, offset, &devfn, &at)) {
        pci_config_write(q->m->pci, devfn, at, size, (uint32_t)value);
    }
}

static const struct memory_io ports_io = { ports_read, ports_write };

/* ---- life ----------------------------------------------------------------------------------- */

static void config_written(struct pci_function *f, unsigned offset, unsigned size)
{
    struct q35 *q = f->opaque;
    LOCK_SCOPE(&q->lpc.lock); /* CPUs may write at once; this is rare enough to share a lock */
    if (offset < PCIEXBAR + 8 && offset + size > PCIEXBAR)
        update_ecam(q);
    if (offset < PAM0 + PAM_BYTES && offset + size > PAM0)
        update_pam(q);
}

int q35_host_realize(struct q35 *q, struct error **err)
{
    struct q35_host_bridge *b = &q->bridge;
    static const struct pci_identity id = { .vendor = 0x8086,
                                            .device = 0x29c0,
                                            .subsystem_vendor = 0x1af4,
                                            .subsystem = 0x1100,
                                            .class_code = 0x060000 };
    for (unsigned n = 0; n < Q35_PAM; n++)
        b->pieces[n] = (struct q35_piece){ .q = q, .n = n, .pam = PAM_UNMAPPED };
    int r = pci_add(q->m->pci, &b->pci, &id, "0", err);
    if (r)
        return r;
    b->pci.opaque = q;
    b->pci.config_written = config_written;
    store_le64(pci_config_mask(&b->pci, PCIEXBAR), 0xff0000007);
    memset(pci_config_mask(&b->pci, PAM0), 0x33, PAM_BYTES);
    *pci_config_mask(&b->pci, PAM0) = 0x30;
    *pci_config_mask(&b->pci, SMRAM) = 0x7a;
    r = ports_add(q->ports, 0xcf8, 8, &ports_io, q);
    return r ? error_set(err, -r, "No memory left for the host bridge") : 0;
}

void q35_host_reset(struct q35 *q)
{
    struct q35_host_bridge *b = &q->bridge;
    pci_reset(&b->pci);
    memset(pci_config(&b->pci, PCIEXBAR), 0, 8);
    memset(pci_config(&b->pci, PAM0), 0, PAM_BYTES);
    *pci_config(&b->pci, SMRAM) = 2;
    b->config_address = 0;
    update_ecam(q);
    update_pam(q);
}

void q35_host_free(struct q35 *q)
{
    if (q->bridge.pci.state)
        pci_remove(&q->bridge.pci);
}
