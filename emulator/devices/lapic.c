/* A local APIC has a lock of its own; one that sends has released it before it takes the receiver's. */
#include "lapic.h"

#include "base/cleanup.h"
#include "cpu/cpu.h"
#include "timer.h"

enum { /* registers, table 10-1, by number (offset / 16) */
       R_ID = 0x02,
       R_VERSION = 0x03,
       R_TPR = 0x08,
       R_APR = 0x09,
       R_PPR = 0x0a,
       R_EOI = 0x0b,
       R_LDR = 0x0d,
       R_DFR = 0x0e,
       R_SVR = 0x0f,
       R_ISR = 0x10,
       R_TMR = 0x18,
       R_IRR = 0x20,
       R_ESR = 0x28,
       R_ICR = 0x30,
       R_ICR_HIGH = 0x31,
       R_LVT_TIMER = 0x32,
       R_LVT_LINT0 = 0x35,
       R_LVT_LINT1 = 0x36,
       R_LVT_LAST = 0x37,
       R_TIMER_START = 0x38,
       R_TIMER_NOW = 0x39,
       R_TIMER_DIVIDE = 0x3e,
       R_SELF = 0x3f,
};
enum { LVT_MASKED = 0x10000, LVTS = 6, SVR_ON = 0x100, BASE_ON = 0x800, BASE_X2 = 0x400 };
enum { M_FIXED, M_LOWEST, M_SMI, M_NMI = 4, M_INIT, M_START, M_EXTINT };
enum { MSR_BASE = 0x1b, MSR_DEADLINE = 0x6e0, MSR_X2 = 0x800 };
/* A guest's tick is not to come so fast that ringing is all the host does. */
enum { SHORTEST_PERIOD = 20000 };

struct lapic {
    struct lapics *all;
    unsigned id;
    pthread_mutex_t lock;
    uint64_t base;
    uint32_t tpr, svr, ldr, dfr, esr, esr_new, lvt[LVTS], divide;
    uint64_t icr;
    uint32_t isr[8], irr[8], tmr[8];
    bool pic; /* level of LINT0 */
    struct timer *timer;
    uint64_t deadline;   /* TSC; 0: none */
    uint64_t start, due; /* of the count, on the clock; due 0: not counting */
    uint32_t count;      /* the initial one */
};

struct lapics {
    struct lapic_host host;
    struct clock *clock;
    unsigned cpus;
    struct lapic one[];
};

/* ---- priorities ----------------------------------------------------------------------------- */

static int highest(const uint32_t bits[8])
{
    for (int word = 7; word >= 0; word--) {
        if (bits[word])
            return word * 32 + 31 - __builtin_clz(bits[word]);
    }
    return -1;
}

static void set_bit(uint32_t bits[8], unsigned n, bool on)
{
    bits[n / 32] = (bits[n / 32] & ~(1u << n % 32)) | (uint32_t)on << n % 32;
}

static unsigned ppr(const struct lapic *l)
{
    int served = highest(l->isr);
    unsigned s = served < 0 ? 0 : (unsigned)served & 0xf0;
    return (l->tpr & 0xf0) >= s ? l->tpr : s;
}

static bool is_on(const struct lapic *l)
{
    return l->base & BASE_ON && l->svr & SVR_ON;
}

/* The vector that the CPU would get, or -1. */
static int deliverable(const struct lapic *l)
{
    int vector = is_on(l) ? highest(l->irr) : -1;
    return vector >= 0 && ((unsigned)vector & 0xf0) > (ppr(l) & 0xf0) ? vector : -1;
}

/* Section 10.4.3: an APIC that is switched off lets the 8259 through to its CPU. */
static bool from_pic(const struct lapic *l)
{
    uint32_t lint = l->lvt[R_LVT_LINT0 - R_LVT_TIMER];
    if (!(l->base & BASE_ON))
        return l->pic && l->id == 0;
    return l->pic && !(lint & LVT_MASKED) && (lint >> 8 & 7) == M_EXTINT;
}

/* With the lock held. */
static void update(struct lapic *l)
{
    const struct lapic_host *h = &l->all->host;
    h->line(h->opaque, l->id, deliverable(l) >= 0 || from_pic(l));
}

static void post(struct lapic *l, uint8_t vector, bool level)
{
    if (vector < 16) {
        l->esr_new |= 1 << 6;
        return;
    }
    if (!is_on(l))
        return;
    set_bit(l->irr, vector, true);
    set_bit(l->tmr, vector, level);
    update(l);
}

int lapic_acknowledge(struct lapics *all, unsigned cpu)
{
    struct lapic *l = &all->one[cpu];
    LOCK_SCOPE(&l->lock);
    int vector = deliverable(l);
    if (vector >= 0) {
        set_bit(l->irr, (unsigned)vector, false);
        set_bit(l->isr, (unsigned)vector, true);
    } else if (from_pic(l)) {
        vector = LAPIC_FROM_PIC;
    }
    update(l);
    return vector;
}

static void reset_one(struct lapic *l)
{
    memset(l->isr, 0, sizeof l->isr);
    memset(l->irr, 0, sizeof l->irr);
    memset(l->tmr, 0, sizeof l->tmr);
    l->tpr = l->ldr = l->esr = l->esr_new = l->divide = l->count = 0;
    l->icr = l->deadline = l->due = 0;
    l->dfr = 0xffffffff;
    l->svr = 0xff;
    for (unsigned n = 0; n < LVTS; n++)
        l->lvt[n] = LVT_MASKED;
    timer_cancel(l->timer);
}

/* ---- delivery ------------------------------------------------------------------------------- */

static void deliver_to(struct lapic *l, unsigned mode, uint8_t vector, bool level)
{
    const struct lapic_host *h = &l->all->host;
    LOCK_SCOPE(&l->lock);
    switch (mode) {
    case M_FIXED:
    case M_LOWEST:
        post(l, vector, level);
        break;
    case M_NMI:
        h->nmi(h->opaque, l->id);
        break;
    case M_INIT:
        reset_one(l);
        l->base &= ~(uint64_t)BASE_X2;
        update(l);
        h->init(h->opaque, l->id);
        break;
    case M_START:
        h->start(h->opaque, l->id, vector);
        break;
    default:
        break; /* there is no system management mode; the 8259 has its own wire */
    }
}

/* Sections 10.6.2.1 and 10.6.2.2, and 10.12.10 for the extended mode. */
static bool is_meant(struct lapic *l, uint32_t destination, bool logical)
{
    LOCK_SCOPE(&l->lock);
    bool x2 = l->base & BASE_X2;
    if (!(l->base & BASE_ON))
        return false;
    if (destination == 0xffffffff || (!x2 && destination == 0xff))
        return true;
    if (!logical)
        return destination == l->id;
    if (x2)
        return destination >> 16 == l->id >> 4 && destination >> (l->id & 15) & 1;
    if (l->dfr >> 28 == 0xf)
        return destination & l->ldr >> 24;
    return (destination >> 4 & 15) == l->ldr >> 28 && destination & l->ldr >> 24 & 15;
}

static unsigned rank(struct lapic *l)
{
    LOCK_SCOPE(&l->lock);
    return is_on(l) ? ppr(l) : 256;
}

void lapics_deliver(struct lapics *all, uint32_t destination, bool logical, unsigned mode,
                    uint8_t vector, bool level)
{
    struct lapic *best = NULL;
    for (unsigned n = 0; n < all->cpus; n++) {
        struct lapic *l = &all->one[n];
        if (!is_meant(l, destination, logical))
            continue;
        if (mode != M_LOWEST)
            deliver_to(l, mode, vector, level);
        else if (!best || rank(l) < rank(best))
            best = l;
    }
    if (best)
        deliver_to(best, mode, vector, level);
}

void lapics_message(struct lapics *all, uint64_t address, uint32_t data)
{
    if (address >> 20 != LAPIC_BASE >> 20)
        return;
    lapics_deliver(all, address >> 12 & 0xff, address >> 2 & 1, data >> 8 & 7, (uint8_t)data,
                   data >> 15 & 1);
}

void lapics_pic(struct lapics *all, bool up)
{
    for (unsigned n = 0; n < all->cpus; n++) {
        struct lapic *l = &all->one[n];
        LOCK_SCOPE(&l->lock);
        l->pic = up;
        update(l);
    }
}

/* An interprocessor interrupt (section 10.6.1), without a lock. */
static void send(struct lapic *l, uint64_t icr)
{
    unsigned mode = icr >> 8 & 7, n;
    bool x2 = l->base & BASE_X2, asserted = icr >> 14 & 1;
    if (mode == M_INIT && !asserted)
        return; /* INIT de-assert only sets arbitration IDs */
    switch (icr >> 18 & 3) {
    case 0:
        lapics_deliver(l->all, (uint32_t)(icr >> (x2 ? 32 : 56)), icr >> 11 & 1, mode, (uint8_t)icr,
                       false);
        break;
    case 1:
        deliver_to(l, mode, (uint8_t)icr, false);
        break;
    default:
        for (n = 0; n < l->all->cpus; n++) {
            if (n != l->id || (icr >> 18 & 3) == 2)
                deliver_to(&l->all->one[n], mode, (uint8_t)icr, false);
        }
    }
}

/* ---- timer ---------------------------------------------------------------------------------- */

enum { ONE_SHOT, PERIODIC, DEADLINE };

static unsigned timer_mode(const struct lapic *l)
{
    return l->lvt[0] >> 17 & 3;
}

/* Nanoseconds of one count: the bus runs at 1 GHz. */
static uint64_t divisor(const struct lapic *l)
{
    unsigned bits = (l->divide & 3) | (l->divide >> 1 & 4);
    return bits == 7 ? 1 : (uint64_t)2 << bits;
}

static uint64_t period(const struct lapic *l)
{
    uint64_t ns = l->count * divisor(l);
    return ns < SHORTEST_PERIOD ? SHORTEST_PERIOD : ns;
}

static void arm(struct lapic *l)
{
    if (l->due && !(l->lvt[0] & LVT_MASKED))
        timer_set(l->timer, l->due);
    else
        timer_cancel(l->timer);
}

static void start_count(struct lapic *l, uint32_t count)
{
    l->count = count;
    l->due = 0;
    if (count && timer_mode(l) != DEADLINE) {
        l->start = clock_now(l->all->clock);
        l->due = l->start + (timer_mode(l) == PERIODIC ? period(l) : count * divisor(l));
    }
    arm(l);
}

static uint32_t count_now(const struct lapic *l)
{
    uint64_t gone;
    if (!l->due)
        return 0;
    gone = (clock_now(l->all->clock) - l->start) / divisor(l);
    if (timer_mode(l) == PERIODIC)
        gone %= l->count;
    return gone >= l->count ? 0 : l->count - (uint32_t)gone;
}

static void set_deadline(struct lapic *l, uint64_t deadline)
{
    const struct lapic_host *h = &l->all->host;
    if (timer_mode(l) != DEADLINE)
        return;
    l->deadline = deadline;
    l->due = 0;
    if (deadline) {
        uint64_t tsc = h->tsc(h->opaque, l->id), ahead = deadline > tsc ? deadline - tsc : 0;
        if (ahead > (uint64_t)1 << 60)
            ahead = (uint64_t)1 << 60;
        l->due = clock_now(l->all->clock) + ahead + 1;
    }
    arm(l);
}

static void ring(void *opaque)
{
    struct lapic *l = opaque;
    LOCK_SCOPE(&l->lock);
    uint64_t now = clock_now(l->all->clock);
    if (!l->due || l->lvt[0] & LVT_MASKED)
        return;
    if (now < l->due) { /* set anew meanwhile */
        arm(l);
        return;
    }
    if (timer_mode(l) == PERIODIC) {
        l->due += period(l);
        if (l->due < now) /* what was missed stays missed */
            l->due = now + period(l);
        arm(l);
    } else {
        l->due = l->deadline = 0;
    }
    post(l, (uint8_t)l->lvt[0], false);
}

/* ---- registers ------------------------------------------------------------------------------ */

void lapics_reset(struct lapics *all, bool ready)
{
    for (unsigned n = 0; n < all->cpus; n++) {
        struct lapic *l = &all->one[n];
        LOCK_SCOPE(&l->lock);
        reset_one(l);
        l->base = LAPIC_BASE | BASE_ON | (n ? 0 : 0x100);
        l->pic = false;
        if (ready) {
            l->svr |= SVR_ON;
            l->lvt[R_LVT_LINT0 - R_LVT_TIMER] = (n ? LVT_MASKED : 0) | M_EXTINT << 8;
            l->lvt[R_LVT_LINT1 - R_LVT_TIMER] = M_NMI << 8;
        }
        update(l);
    }
}

static uint32_t read_register(struct lapic *l, unsigned r)
{
    bool x2 = l->base & BASE_X2;
    if (r >= R_ISR && r < R_ISR + 8)
        return l->isr[r - R_ISR];
    if (r >= R_TMR && r < R_TMR + 8)
        return l->tmr[r - R_TMR];
    if (r >= R_IRR && r < R_IRR + 8)
        return l->irr[r - R_IRR];
    if (r >= R_LVT_TIMER && r <= R_LVT_LAST)
        return l->lvt[r - R_LVT_TIMER];
    switch (r) {
    case R_ID:
        return x2 ? l->id : l->id << 24;
    case R_VERSION:
        return (LVTS - 1) << 16 | 0x14;
    case R_TPR:
        return l->tpr;
    case R_PPR:
        return ppr(l);
    case R_LDR:
        return x2 ? l->id >> 4 << 16 | 1u << (l->id & 15) : l->ldr;
    case R_DFR:
        return l->dfr;
    case R_SVR:
        return l->svr;
    case R_ESR:
        return l->esr;
    case R_ICR:
        return (uint32_t)l->icr;
    case R_ICR_HIGH:
        return (uint32_t)(l->icr >> 32);
    case R_TIMER_START:
        return l->count;
    case R_TIMER_NOW:
        return count_now(l);
    case R_TIMER_DIVIDE:
        return l->divide;
    default:
        return 0;
    }
}

static void write_lvt(struct lapic *l, unsigned n, uint32_t value)
{
    static const uint32_t mask[LVTS] = { 0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff };
    unsigned mode = timer_mode(l);
    l->lvt[n] = value & mask[n];
    if (!(l->svr & SVR_ON))
        l->lvt[n] |= LVT_MASKED;
    if (n == 0) {
        if (mode != timer_mode(l) && (mode == DEADLINE || timer_mode(l) == DEADLINE))
            l->due = l->deadline = 0; /* section 10.5.4.1 */
        arm(l);
    }
}

/* What is to follow without the lock: an EOI to hand on (its vector) or a message to send. */
struct after {
    int eoi;
    bool send;
    uint64_t icr;
};

static void end_of_interrupt(struct lapic *l, struct after *after)
{
    int vector = highest(l->isr);
    if (vector < 0)
        return;
    set_bit(l->isr, (unsigned)vector, false);
    if (l->tmr[vector / 32] >> vector % 32 & 1)
        after->eoi = vector;
}

static void write_svr(struct lapic *l, uint32_t value)
{
    l->svr = value & 0x1ff;
    for (unsigned n = 0; n < LVTS && !(value & SVR_ON); n++)
        l->lvt[n] |= LVT_MASKED;
    arm(l);
}

static void write_register(struct lapic *l, unsigned r, uint32_t value, struct after *after)
{
    bool x2 = l->base & BASE_X2;
    if (r >= R_LVT_TIMER && r <= R_LVT_LAST) {
        write_lvt(l, r - R_LVT_TIMER, value);
    } else if (r == R_TPR) {
        l->tpr = value & 0xff;
    } else if (r == R_EOI) {
        end_of_interrupt(l, after);
    } else if (r == R_LDR && !x2) {
        l->ldr = value & 0xff000000;
    } else if (r == R_DFR && !x2) {
        l->dfr = value | 0x0fffffff;
    } else if (r == R_SVR) {
        write_svr(l, value);
    } else if (r == R_ESR) {
        l->esr = l->esr_new;
        l->esr_new = 0;
    } else if (r == R_ICR) {
        l->icr = (l->icr & ~(uint64_t)0xffffffff) | (value & 0xccfff);
        after->send = true;
        after->icr = l->icr;
    } else if (r == R_ICR_HIGH && !x2) {
        l->icr = (l->icr & 0xffffffff) | (uint64_t)value << 32;
    } else if (r == R_TIMER_START) {
        if (timer_mode(l) != DEADLINE)
            start_count(l, value);
    } else if (r == R_TIMER_DIVIDE) {
        l->divide = value & 0xb;
    } else if (r == R_SELF && x2) {
        after->send = true;
        after->icr = (value & 0xff) | 1 << 18;
    }
    update(l);
}

static void follow(struct lapic *l, const struct after *after)
{
    const struct lapic_host *h = &l->all->host;
    if (after->eoi >= 0 && h->eoi)
        h->eoi(h->opaque, (uint8_t)after->eoi);
    if (after->send)
        send(l, after->icr);
}

static struct lapic *of_this_thread(struct lapics *all)
{
    const struct cpu *cpu = cpu_current();
    return cpu && cpu->id < all->cpus ? &all->one[cpu->id] : NULL;
}

static uint64_t io_read(void *opaque, uint64_t offset, unsigned size)
{
    struct lapic *l = of_this_thread(opaque);
    uint64_t ones = UINT64_MAX >> (64 - 8 * size);
    if (!l)
        return ones;
    LOCK_SCOPE(&l->lock);
    if (!(l->base & BASE_ON) || l->base & BASE_X2)
        return ones;
    /* Only the first four of sixteen bytes are a register. */
    unsigned within = offset & 15;
    if (within >= 4)
        return 0;
    return read_register(l, (unsigned)offset >> 4) >> (8 * within);
}

static void io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct lapic *l = of_this_thread(opaque);
    struct after after = { .eoi = -1 };
    (void)size;
    if (!l || offset & 15)
        return;
    {
        LOCK_SCOPE(&l->lock);
        if (l->base & BASE_ON && !(l->base & BASE_X2))
            write_register(l, (unsigned)offset >> 4, (uint32_t)value, &after);
    }
    follow(l, &after);
}

const struct memory_io lapic_io = { io_read, io_write };

/* ---- model specific registers --------------------------------------------------------------- */

int lapic_read_msr(struct lapics *all, unsigned cpu, uint32_t msr, uint64_t *value)
{
    struct lapic *l = &all->one[cpu];
    LOCK_SCOPE(&l->lock);
    if (msr == MSR_BASE) {
        *value = l->base;
    } else if (msr == MSR_DEADLINE) {
        *value = l->deadline;
    } else {
        unsigned r = msr - MSR_X2;
        if (r > R_SELF || !(l->base & BASE_X2) || r == R_EOI || r == R_ICR_HIGH || r == R_SELF ||
            r == R_DFR)
            return -1;
        *value = r == R_ICR ? l->icr : read_register(l, r);
    }
    return 0;
}

/* Figure 10-26: from off to xAPIC to x2APIC to off. The place stays where it is. */
static int write_base(struct lapic *l, uint64_t value)
{
    uint64_t mode = value & (BASE_ON | BASE_X2), old = l->base & (BASE_ON | BASE_X2);
    if (mode == BASE_X2 || (old == (BASE_ON | BASE_X2) && mode == BASE_ON) ||
        (!old && mode == (BASE_ON | BASE_X2)))
        return -1;
    l->base = (l->base & ~(uint64_t)(BASE_ON | BASE_X2)) | mode;
    if (mode != old && !mode)
        reset_one(l);
    update(l);
    return 0;
}

static int write_msr(struct lapic *l, uint32_t msr, uint64_t value, struct after *after)
{
    unsigned r = msr - MSR_X2;
    if (msr == MSR_BASE)
        return write_base(l, value);
    if (msr == MSR_DEADLINE) {
        set_deadline(l, value);
        return 0;
    }
    if (r > R_SELF || !(l->base & BASE_X2) || r == R_ID || r == R_VERSION || r == R_PPR ||
        r == R_LDR || r == R_DFR || r == R_ICR_HIGH || (r >= R_ISR && r < R_ESR))
        return -1;
    if (r == R_ICR)
        l->icr = value;
    write_register(l, r, (uint32_t)value, after);
    return 0;
}

int lapic_write_msr(struct lapics *all, unsigned cpu, uint32_t msr, uint64_t value)
{
    struct lapic *l = &all->one[cpu];
    struct after after = { .eoi = -1 };
    {
        LOCK_SCOPE(&l->lock);
        if (write_msr(l, msr, value, &after))
            return -1;
    }
    follow(l, &after);
    return 0;
}

unsigned lapic_priority(struct lapics *all, unsigned cpu)
{
    struct lapic *l = &all->one[cpu];
    LOCK_SCOPE(&l->lock);
    return l->tpr >> 4 & 15;
}

void lapic_set_priority(struct lapics *all, unsigned cpu, unsigned priority)
{
    struct lapic *l = &all->one[cpu];
    LOCK_SCOPE(&l->lock);
    l->tpr = priority << 4 & 0xf0;
    update(l);
}

/* ---- life ----------------------------------------------------------------------------------- */

struct lapics *lapics_new(struct clock *clock, const struct lapic_host *host, unsigned cpus)
{
    struct lapics *all = calloc(1, sizeof *all + cpus * sizeof all->one[0]);
    if (!all)
        return NULL;
    all->host = *host;
    all->clock = clock;
    for (unsigned n = 0; n < cpus; n++) {
        struct lapic *l = &all->one[n];
        l->all = all;
        l->id = n;
        pthread_mutex_init(&l->lock, NULL);
        all->cpus = n + 1;
        l->timer = timer_new(clock, ring, l);
        if (!l->timer) {
            lapics_free(all);
            return NULL;
        }
    }
    return all;
}

void lapics_free(struct lapics *all)
{
    for (unsigned n = 0; all && n < all->cpus; n++) {
        timer_free(all->one[n].timer);
        pthread_mutex_destroy(&all->one[n].lock);
    }
    free(all);
}
