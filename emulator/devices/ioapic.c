#include "ioapic.h"

#include "base/cleanup.h"
#include "cpu/memory.h"
#include "lapic.h"

#include <string.h>

enum { /* a redirection entry */
       ENTRY_LOGICAL = 1 << 11,
       ENTRY_PENDING = 1 << 12,
       ENTRY_REMOTE = 1 << 14, /* a CPU is at it */
       ENTRY_LEVEL = 1 << 15,
       ENTRY_MASKED = 1 << 16,
};
#define ENTRY_WRITABLE ((uint64_t)0xff << 56 | 0x1afff)

struct ioapic {
    struct lapics *lapics;
    pthread_mutex_t
        lock; /* held while a message is delivered: local APICs do not call back with their lock held */
    uint8_t select;
    uint32_t id;
    uint32_t levels; /* of the pins */
    uint64_t entries[IOAPIC_PINS];
};

static void deliver(struct ioapic *a, unsigned pin)
{
    uint64_t e = a->entries[pin];
    lapics_deliver(a->lapics, (uint32_t)(e >> 56), e & ENTRY_LOGICAL, e >> 8 & 7, (uint8_t)e,
                   e & ENTRY_LEVEL);
}

/* A level that is up and not being served. */
static void service(struct ioapic *a, unsigned pin)
{
    uint64_t *e = &a->entries[pin];
    if (!(a->levels >> pin & 1) || !(*e & ENTRY_LEVEL) || *e & (ENTRY_MASKED | ENTRY_REMOTE))
        return;
    *e |= ENTRY_REMOTE;
    deliver(a, pin);
}

void ioapic_set(struct ioapic *a, unsigned pin, bool up)
{
    if (pin >= IOAPIC_PINS)
        return;
    LOCK_SCOPE(&a->lock);
    bool was = a->levels >> pin & 1;
    a->levels = (a->levels & ~(1u << pin)) | (uint32_t)up << pin;
    if (a->entries[pin] & ENTRY_LEVEL)
        service(a, pin);
    else if (up && !was && !(a->entries[pin] & ENTRY_MASKED))
        deliver(a, pin);
}

void ioapic_eoi(struct ioapic *a, uint8_t vector)
{
    LOCK_SCOPE(&a->lock);
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        uint64_t *e = &a->entries[pin];
        if ((uint8_t)*e != vector || !(*e & ENTRY_REMOTE))
            continue;
        *e &= ~(uint64_t)ENTRY_REMOTE;
        service(a, pin);
    }
}

static uint32_t read_selected(const struct ioapic *a)
{
    unsigned pin = (a->select - 0x10u) / 2;
    switch (a->select) {
    case 0:
    case 2:
        return a->id;
    case 1:
        return (IOAPIC_PINS - 1) << 16 | 0x20;
    default:
        if (a->select < 0x10 || pin >= IOAPIC_PINS)
            return 0;
        return (uint32_t)(a->entries[pin] >> (a->select & 1 ? 32 : 0));
    }
}

static void write_selected(struct ioapic *a, uint32_t value)
{
    unsigned pin = (a->select - 0x10u) / 2;
    if (a->select == 0)
        a->id = value & 0x0f000000;
    if (a->select < 0x10 || pin >= IOAPIC_PINS)
        return;
    uint64_t *e = &a->entries[pin], mask = (uint64_t)0xffffffff << (a->select & 1 ? 32 : 0);
    mask &= ENTRY_WRITABLE;
    *e = (*e & ~mask) | ((a->select & 1 ? (uint64_t)value << 32 : value) & mask);
    if (!(*e & ENTRY_LEVEL))
        *e &= ~(uint64_t)ENTRY_REMOTE; /* how Linux ends a level interrupt on old ones */
    service(a, pin);
}

static uint64_t io_read(void *opaque, uint64_t offset, unsigned size)
{
    struct ioapic *a = opaque;
    (void)size;
    LOCK_SCOPE(&a->lock);
    if (offset == 0)
        return a->select;
    return offset == 0x10 ? read_selected(a) : 0;
}

static void io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ioapic *a = opaque;
    (void)size;
    if (offset == 0x40) {
        ioapic_eoi(a, (uint8_t)value);
        return;
    }
    LOCK_SCOPE(&a->lock);
    if (offset == 0)
        a->select = (uint8_t)value;
    else if (offset == 0x10)
        write_selected(a, (uint32_t)value);
}

const struct memory_io ioapic_io = { io_read, io_write };

void ioapic_reset(struct ioapic *a)
{
    LOCK_SCOPE(&a->lock);
    a->select = 0;
    a->id = 0;
    a->levels = 0;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        a->entries[pin] = ENTRY_MASKED;
}

struct ioapic *ioapic_new(struct lapics *lapics)
{
    struct ioapic *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->lapics = lapics;
    pthread_mutex_init(&a->lock, NULL);
    ioapic_reset(a);
    return a;
}

void ioapic_free(struct ioapic *a)
{
    if (!a)
        return;
    pthread_mutex_destroy(&a->lock);
    free(a);
}
