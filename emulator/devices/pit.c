/* Nothing ticks: a counter is worked out of the clock when somebody looks. Counter 0 alone has an alarm, at the next edge of its
 * output. */
#include "pit.h"

#include "base/cleanup.h"
#include "cpu/memory.h"
#include "irq.h"
#include "ports.h"
#include "timer.h"

enum { HZ = 1193182, SHORTEST = 20 /* counts: a faster tick would be all that the host does */ };

struct counter {
    uint8_t mode, access; /* access 1: low byte, 2: high byte, 3: both */
    bool bcd, high_next, write_high_next, gate, loaded;
    uint8_t low; /* written first */
    uint32_t count;
    uint64_t start;  /* on the clock: when it was loaded or triggered */
    uint8_t latched; /* bytes left to read */
    uint16_t latch;
    bool status_latched;
    uint8_t status;
};

struct pit {
    pthread_mutex_t lock;
    struct clock *clock;
    struct timer *timer;
    struct irq out;
    struct counter counter[3];
    uint64_t edge; /* counts since start at which counter 0 interrupts next */
    bool speaker, level;
};

/* Counts since it was started. */
static uint64_t gone(const struct pit *p, const struct counter *c)
{
    uint64_t ns = clock_now(p->clock) - c->start;
    return (uint64_t)((unsigned __int128)ns * HZ / 1000000000u);
}

static uint64_t to_clock(const struct counter *c, uint64_t counts)
{
    return c->start + (uint64_t)(((unsigned __int128)counts * 1000000000u + HZ - 1) / HZ);
}

static bool output(const struct pit *p, const struct counter *c)
{
    uint64_t t;
    if (!c->loaded)
        return c->mode != 0;
    t = gone(p, c);
    switch (c->mode) {
    case 0:
    case 1:
        return t >= c->count;
    case 2:
        return !c->gate || t % c->count != c->count - 1;
    case 3:
        return !c->gate || t % c->count < (c->count + 1) / 2;
    default:
        return t != c->count;
    }
}

static uint16_t to_bcd(uint32_t value)
{
    return (uint16_t)(value % 10 | value / 10 % 10 << 4 | value / 100 % 10 << 8 |
                      value / 1000 % 10 << 12);
}

static uint32_t from_bcd(uint16_t v)
{
    return (v & 15u) + (v >> 4 & 15u) * 10 + (v >> 8 & 15u) * 100 + (v >> 12 & 15u) * 1000;
}

static uint16_t value_now(const struct pit *p, const struct counter *c)
{
    uint32_t whole = c->bcd ? 10000 : 0x10000, value;
    uint64_t t = c->loaded ? gone(p, c) : 0;
    if (c->mode == 2)
        value = c->count - (uint32_t)(t % c->count);
    else if (c->mode == 3)
        value = c->count - (uint32_t)(t * 2 % c->count);
    else
        value = (c->count + whole - (uint32_t)(t % whole)) % whole;
    return c->bcd ? to_bcd(value) : (uint16_t)value;
}

/* ---- interrupt 0 ---------------------------------------------------------------------------- */

static bool periodic(const struct counter *c)
{
    return c->mode == 2 || c->mode == 3;
}

static void arm(struct pit *p)
{
    const struct counter *c = &p->counter[0];
    if (!c->loaded || p->edge == UINT64_MAX)
        timer_cancel(p->timer);
    else
        timer_set(p->timer, to_clock(c, p->edge));
}

static void set_level(struct pit *p, bool up)
{
    if (up != p->level)
        irq_set(&p->out, up);
    p->level = up;
}

static void ring(void *opaque)
{
    struct pit *p = opaque;
    LOCK_SCOPE(&p->lock);
    const struct counter *c = &p->counter[0];
    uint64_t now = c->loaded ? gone(p, c) : 0;
    if (!c->loaded || p->edge == UINT64_MAX)
        return;
    if (now < p->edge) {
        arm(p);
        return;
    }
    if (periodic(c)) {
        uint64_t step = c->count < SHORTEST ? SHORTEST : c->count;
        p->edge += step;
        if (p->edge <= now) /* missed ticks are made up for, but not all at once */
            p->edge = now - (now - p->edge) % step + step;
        set_level(p, false);
        set_level(p, true);
    } else {
        set_level(p, true);
        p->edge = UINT64_MAX;
    }
    arm(p);
}

/* ---- registers ------------------------------------------------------------------------------ */

static void load(struct pit *p, unsigned n, uint16_t raw)
{
    struct counter *c = &p->counter[n];
    c->count = c->bcd ? from_bcd(raw) : raw;
    if (!c->count)
        c->count = c->bcd ? 10000 : 0x10000;
    if (periodic(c) && c->count < 2)
        c->count = 2;
    c->loaded = true;
    c->start = clock_now(p->clock);
    if (n == 0) {
        p->edge = c->count;
        if (!periodic(c))
            set_level(p, false);
        arm(p);
    }
}

static void latch_count(const struct pit *p, struct counter *c)
{
    if (c->latched)
        return;
    c->latch = value_now(p, c);
    c->latched = c->access == 3 ? 2 : 1;
    if (c->access == 2)
        c->latch >>= 8;
}

static void latch_status(const struct pit *p, struct counter *c)
{
    if (c->status_latched)
        return;
    c->status_latched = true;
    c->status =
        (uint8_t)(output(p, c) << 7 | !c->loaded << 6 | c->access << 4 | c->mode << 1 | c->bcd);
}

static void write_control(struct pit *p, uint8_t value)
{
    unsigned n = value >> 6, access = value >> 4 & 3;
    if (n == 3) { /* read back */
        for (unsigned i = 0; i < 3; i++) {
            if (!(value >> (i + 1) & 1))
                continue;
            if (!(value & 0x20))
                latch_count(p, &p->counter[i]);
            if (!(value & 0x10))
                latch_status(p, &p->counter[i]);
        }
        return;
    }
    struct counter *c = &p->counter[n];
    if (!access) {
        latch_count(p, c);
        return;
    }
    uint8_t mode = value >> 1 & 7;
    bool gate = c->gate;
    *c = (struct counter){ .access = (uint8_t)access,
                           .mode = mode > 5 ? mode & 3 : mode,
                           .bcd = value & 1,
                           .gate = gate };
    c->count = c->bcd ? 10000 : 0x10000;
    if (n == 0) {
        p->edge = UINT64_MAX;
        set_level(p, c->mode != 0);
        arm(p);
    }
}

static uint8_t read_counter(struct pit *p, struct counter *c)
{
    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    if (c->latched) {
        uint8_t byte = (uint8_t)c->latch;
        c->latch >>= 8;
        c->latched--;
        return byte;
    }
    uint16_t value = value_now(p, c);
    bool high = c->access == 2 || (c->access == 3 && c->high_next);
    if (c->access == 3)
        c->high_next = !c->high_next;
    return (uint8_t)(high ? value >> 8 : value);
}

static void write_counter(struct pit *p, unsigned n, uint8_t value)
{
    struct counter *c = &p->counter[n];
    switch (c->access) {
    case 1:
        load(p, n, value);
        break;
    case 2:
        load(p, n, (uint16_t)(value << 8));
        break;
    case 3:
        if (c->write_high_next)
            load(p, n, (uint16_t)(value << 8 | c->low));
        else
            c->low = value;
        c->write_high_next = !c->write_high_next;
        break;
    default:
        break;
    }
}

static uint64_t io_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pit *p = opaque;
    (void)size;
    LOCK_SCOPE(&p->lock);
    return offset < 3 ? read_counter(p, &p->counter[offset]) : 0xff;
}

static void io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pit *p = opaque;
    (void)size;
    LOCK_SCOPE(&p->lock);
    if (offset < 3)
        write_counter(p, (unsigned)offset, (uint8_t)value);
    else
        write_control(p, (uint8_t)value);
}

/* Port 61: bit 0 the gate of counter 2, bit 1 the speaker, bit 4 turns with the refresh, bit 5 the output of counter 2. */
static uint64_t read_61(void *opaque, uint64_t offset, unsigned size)
{
    struct pit *p = opaque;
    (void)offset, (void)size;
    LOCK_SCOPE(&p->lock);
    uint64_t refresh = clock_now(p->clock) / 15000 & 1;
    return p->counter[2].gate | p->speaker << 1 | refresh << 4 |
           (uint64_t)output(p, &p->counter[2]) << 5;
}

static void write_61(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pit *p = opaque;
    (void)offset, (void)size;
    LOCK_SCOPE(&p->lock);
    struct counter *c = &p->counter[2];
    if (value & 1 &&
        !c->gate) /* a rising gate starts modes 1, 2, 3 and 5, and lets 0 and 4 go on */
        c->start = clock_now(p->clock);
    c->gate = value & 1;
    p->speaker = value >> 1 & 1;
}

static const struct memory_io pit_io = { io_read, io_write };
static const struct memory_io io_61 = { read_61, write_61 };

void pit_reset(struct pit *p)
{
    LOCK_SCOPE(&p->lock);
    for (unsigned n = 0; n < 3; n++)
        p->counter[n] = (struct counter){ .mode = 3, .access = 3, .count = 0x10000, .gate = n < 2 };
    p->speaker = false;
    p->edge = UINT64_MAX;
    set_level(p, false);
    arm(p);
}

struct pit *pit_new(struct ports *ports, struct clock *clock, const struct irq *out)
{
    struct pit *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->out = *out;
    p->clock = clock;
    pthread_mutex_init(&p->lock, NULL);
    p->timer = timer_new(clock, ring, p);
    if (!p->timer || ports_add(ports, 0x40, 4, &pit_io, p) ||
        ports_add(ports, 0x61, 1, &io_61, p)) {
        pit_free(p);
        return NULL;
    }
    pit_reset(p);
    return p;
}

void pit_free(struct pit *p)
{
    if (!p)
        return;
    timer_free(p->timer);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
