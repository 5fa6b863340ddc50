/* The LPC bridge, 8086:2918: interrupt routing, power management and the ports of odds and ends.
 *
 * Source: Intel I/O Controller Hub 9 data sheet, chapter 13 (LPC), 13.8 (power management). */
#include "q35.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "devices/timer.h"

#include <string.h>

enum { PMBASE = 0x40, ACPI_CONTROL = 0x44, PIRQ_AD = 0x60, PIRQ_EH = 0x68, RCBA = 0xf0 };
enum { PM_SIZE = 0x80, RCBA_SIZE = 0x4000 };
enum { /* power management registers */
       PM1_STATUS = 0x00,
       PM1_ENABLE = 0x02,
       PM1_CONTROL = 0x04,
       PM1_TIMER = 0x08,
       GPE0 = 0x20,
       SMI_ENABLE = 0x30,
};
enum {
    PM1_BUTTON = 1 << 8,
    PM1_WAKE = 1 << 15,
    PM1_STATUS_BITS = 0xd731,
    CONTROL_SCI = 1,
    CONTROL_SLEEP = 1 << 13
};
enum { TIMER_HZ = 3579545, S5 = 0 };

/* ---- interrupts ----------------------------------------------------------------------------- */

/* ISA's interrupt 0 is pin 2 of the I/O APIC; the rest are themselves. */
void q35_isa_set(void *opaque, unsigned line, bool up)
{
    struct q35 *q = opaque;
    pic_set(q->pic, line, up);
    ioapic_set(q->ioapic, line ? line : 2, up);
}

/* As in our DSDT's _PRT, and as SeaBIOS has it. */
unsigned q35_pirq(unsigned device, unsigned pin)
{
    return device < 25 ? 4 + ((device + pin) & 3) : pin & 3;
}

/* With the lock held: 8259 inputs are the OR of the PIRQs that lead there. */
static void update_pic(struct q35 *q)
{
    const struct q35_lpc *l = &q->lpc;
    uint16_t up = 0;
    for (unsigned n = 0; n < 8; n++) {
        uint8_t route = *pci_config((struct pci_function *)(uintptr_t)&l->pci,
                                    n < 4 ? PIRQ_AD + n : PIRQ_EH + n - 4);
        if (l->pins[n] && !(route & 0x80))
            up |= (uint16_t)(1 << (route & 15));
    }
    uint16_t changed = up ^ l->pic_lines;
    q->lpc.pic_lines = up;
    for (unsigned n = 0; n < 16; n++) {
        if (changed >> n & 1)
            pic_set(q->pic, n, up >> n & 1);
    }
}

void q35_pci_interrupt(void *opaque, unsigned device, unsigned pin, bool up)
{
    struct q35 *q = opaque;
    struct q35_lpc *l = &q->lpc;
    unsigned n = q35_pirq(device, pin);
    LOCK_SCOPE(&l->lock);
    bool was = l->pins[n];
    l->pins[n] = (l->pins[n] & ~(1u << device)) | (uint32_t)up << device;
    if (was == (l->pins[n] != 0))
        return;
    ioapic_set(q->ioapic, Q35_GSI_PIRQA + n, l->pins[n]);
    update_pic(q);
}

/* With the lock held. */
static void update_sci(struct q35 *q)
{
    const struct q35_lpc *l = &q->lpc;
    q35_isa_set(q, Q35_SCI, l->pm1_control & CONTROL_SCI && l->pm1_status & l->pm1_enable & 0x521);
}

/* ---- power management ----------------------------------------------------------------------- */

static uint32_t pm_timer(const struct q35 *q)
{
    uint64_t ns = clock_now(q->m->clock);
    return (uint32_t)((unsigned __int128)ns * TIMER_HZ / 1000000000u) & 0xffffff;
}

static uint64_t pm_bytes(struct q35 *q, uint64_t offset, unsigned size)
{
    struct q35_lpc *l = &q->lpc;
    uint8_t now[PM_SIZE];
    uint64_t value = 0;
    memcpy(now, l->rest, sizeof now);
    store_le16(now + PM1_STATUS, l->pm1_status);
    store_le16(now + PM1_ENABLE, l->pm1_enable);
    store_le32(now + PM1_CONTROL, l->pm1_control);
    store_le32(now + PM1_TIMER, pm_timer(q));
    memcpy(now + GPE0, l->gpe, sizeof l->gpe);
    for (unsigned i = 0; i < size && offset + i < PM_SIZE; i++)
        value |= (uint64_t)now[offset + i] << (8 * i);
    return value;
}

static uint64_t pm_read(void *opaque, uint64_t offset, unsigned size)
{
    struct q35 *q = opaque;
    LOCK_SCOPE(&q->lpc.lock);
    return pm_bytes(q, offset, size);
}

/* One byte; true: the guest wants to be switched off. */
static bool pm_write_byte(struct q35_lpc *l, unsigned at, uint8_t value)
{
    switch (at) {
    case PM1_STATUS: /* ones clear */
        l->pm1_status &= (uint16_t)~value;
        break;
    case PM1_STATUS + 1:
        l->pm1_status &= (uint16_t) ~(value << 8);
        break;
    case PM1_ENABLE:
        l->pm1_enable = (uint16_t)((l->pm1_enable & 0xff00) | (value & 0x21));
        break;
    case PM1_ENABLE + 1:
        l->pm1_enable = (uint16_t)((l->pm1_enable & 0xff) | (value & 5) << 8);
        break;
    case PM1_CONTROL: /* without system management mode the mode is ACPI's for ever */
        l->pm1_control = (uint16_t)((l->pm1_control & 0xff00) | (value & 7) | CONTROL_SCI);
        break;
    case PM1_CONTROL + 1:
        l->pm1_control = (uint16_t)((l->pm1_control & 0xff) | (value & 0x1c) << 8);
        return value & CONTROL_SLEEP >> 8 && (value >> 2 & 7) == S5;
    default:
        if (at >= GPE0 && at < GPE0 + 8)
            l->gpe[at - GPE0] &= (uint8_t)~value;
        else if (at >= GPE0 + 8 && at < GPE0 + 16)
            l->gpe[at - GPE0] = value;
        else if (at >= 0x10 && at < PM_SIZE && (at < SMI_ENABLE || at >= SMI_ENABLE + 8))
            l->rest[at] = value;
    }
    return false;
}

static void pm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct q35 *q = opaque;
    bool off = false;
    {
        LOCK_SCOPE(&q->lpc.lock);
        for (unsigned i = 0; i < size && offset + i < PM_SIZE; i++)
            off |= pm_write_byte(&q->lpc, (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
        update_sci(q);
    }
    if (off)
        machine_request(q->m, MACHINE_GUEST_OFF);
}

static const struct memory_io pm_io = { pm_read, pm_write };

void q35_power_button(struct machine *m)
{
    struct q35 *q = q35_of(m);
    LOCK_SCOPE(&q->lpc.lock);
    q->lpc.pm1_status |= PM1_BUTTON;
    update_sci(q);
}

/* ---- chipset configuration registers -------------------------------------------------------- */

static uint64_t rcba_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque, (void)offset, (void)size;
    return 0;
}

static void rcba_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque, (void)offset, (void)size, (void)value;
}

static const struct memory_io rcba_io = { rcba_read, rcba_write };

/* ---- single ports --------------------------------------------------------------------------- */

static uint64_t port92_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct q35 *q = opaque;
    (void)offset, (void)size;
    return q->lpc.port92;
}

static void port92_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct q35 *q = opaque;
    (void)offset, (void)size;
    bool rises = value & ~q->lpc.port92 & 1;
    q->lpc.port92 = (uint8_t)value; /* bit 1, address line 20, is on whatever it says */
    if (rises)
        machine_request(q->m, MACHINE_GUEST_RESET);
}

/* Advanced power management: firmware's mailbox to system management mode, which nobody reads here. */
static uint64_t apm_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct q35 *q = opaque;
    (void)size;
    return q->lpc.apm[offset & 1];
}

static void apm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct q35 *q = opaque;
    (void)size;
    q->lpc.apm[offset & 1] = (uint8_t)value;
}

static const struct memory_io port92_io = { port92_read, port92_write };
static const struct memory_io apm_io = { apm_read, apm_write };

/* ---- life ----------------------------------------------------------------------------------- */

static void update_pm_base(struct q35 *q)
{
    struct q35_lpc *l = &q->lpc;
    uint16_t at = 0;
    if (*pci_config(&l->pci, ACPI_CONTROL) & 0x80)
        at = load_le16(pci_config(&l->pci, PMBASE)) & 0xff80;
    if (at == l->pm_base)
        return;
    if (l->pm_base)
        ports_remove(q->ports, l->pm_base, q);
    l->pm_base = at && !ports_add(q->ports, at, PM_SIZE, &pm_io, q) ? at : 0;
}

static void update_rcba(struct q35 *q)
{
    struct q35_lpc *l = &q->lpc;
    uint32_t raw = load_le32(pci_config(&l->pci, RCBA));
    uint64_t at = raw & 1 ? raw & ~(uint32_t)(RCBA_SIZE - 1) : 0;
    if (at == l->rcba)
        return;
    if (l->rcba)
        memory_remove(q->m->memory, l->rcba);
    l->rcba = at && !memory_add_io(q->m->memory, at, RCBA_SIZE, &rcba_io, q) ? at : 0;
}

static void config_written(struct pci_function *f, unsigned offset, unsigned size)
{
    struct q35 *q = f->opaque;
    (void)offset, (void)size;
    LOCK_SCOPE(&q->lpc.lock);
    update_pm_base(q);
    update_rcba(q);
    update_pic(q);
}

int q35_lpc_realize(struct q35 *q, struct error **err)
{
    struct q35_lpc *l = &q->lpc;
    static const struct pci_identity id = { .vendor = 0x8086,
                                            .device = 0x2918,
                                            .subsystem_vendor = 0x1af4,
                                            .subsystem = 0x1100,
                                            .class_code = 0x060100,
                                            .revision = 2,
                                            .multifunction = true };
    int r = pci_add(q->m->pci, &l->pci, &id, "1f.0", err);
    if (r)
        return r;
    l->pci.opaque = q;
    l->pci.config_written = config_written;
    store_le32(pci_config(&l->pci, PMBASE), 1);
    store_le16(pci_config_mask(&l->pci, PMBASE), 0xff80);
    *pci_config_mask(&l->pci, ACPI_CONTROL) = 0x80;
    memset(pci_config_mask(&l->pci, PIRQ_AD), 0x8f, 4);
    memset(pci_config_mask(&l->pci, PIRQ_EH), 0x8f, 4);
    store_le32(pci_config_mask(&l->pci, RCBA), 0xffffc001);
    r = ports_add(q->ports, 0x92, 1, &port92_io, q);
    if (!r)
        r = ports_add(q->ports, 0xb2, 2, &apm_io, q);
    return r ? error_set(err, -r, "No memory left for the LPC bridge") : 0;
}

void q35_lpc_reset(struct q35 *q)
{
    struct q35_lpc *l = &q->lpc;
    pci_reset(&l->pci);
    LOCK_SCOPE(&l->lock);
    store_le32(pci_config(&l->pci, PMBASE), 1);
    *pci_config(&l->pci, ACPI_CONTROL) = 0;
    memset(pci_config(&l->pci, PIRQ_AD), 0x80, 4);
    memset(pci_config(&l->pci, PIRQ_EH), 0x80, 4);
    store_le32(pci_config(&l->pci, RCBA), 0);
    l->pm1_status = l->pm1_enable = 0;
    l->pm1_control = CONTROL_SCI;
    memset(l->gpe, 0, sizeof l->gpe);
    memset(l->rest, 0, sizeof l->rest);
    l->rest[SMI_ENABLE] = 0x20; /* tells firmware that system management mode is not to be set up */
    l->reset_control = l->port92 = 0;
    l->apm[0] = l->apm[1] = 0;
    update_pm_base(q);
    update_rcba(q);
    update_pic(q);
    update_sci(q);
}

void q35_lpc_free(struct q35 *q)
{
    if (q->lpc.pci.state)
        pci_remove(&q->lpc.pci);
}
