#include "pic.h"

#include "base/cleanup.h"
#include "cpu/memory.h"
#include "irq.h"
#include "ports.h"

struct half {
    uint8_t irr, isr, imr, elcr, levels;
    uint8_t base, lowest; /* vector of input 0; the input of the least priority */
    uint8_t expect;       /* the next initialisation word: 2 to 4, 0: none */
    bool single, word4, auto_end, rotate_auto, read_isr, special_mask;
};

struct pic {
    pthread_mutex_t lock;
    struct irq out;
    struct half half[2];
    bool up; /* the output */
};

/* The place of the highest bit in order of priority, 8 when there is none; 0 is the highest. */
static unsigned place(const struct half *h, uint8_t bits)
{
    unsigned n = 0;
    while (n < 8 && !(bits >> ((h->lowest + 1u + n) & 7) & 1))
        n++;
    return n;
}

/* The input that asks and may, or -1. */
static int asking(const struct half *h)
{
    unsigned n = place(h, h->irr & (uint8_t)~h->imr);
    uint8_t in_service = h->special_mask ? h->isr & (uint8_t)~h->imr : h->isr;
    if (n == 8 || n >= place(h, in_service))
        return -1;
    return (int)((h->lowest + 1u + n) & 7);
}

static void set_input(struct half *h, unsigned n, bool up)
{
    uint8_t bit = (uint8_t)(1 << n);
    if (up && (h->elcr & bit || !(h->levels & bit)))
        h->irr |= bit;
    else if (!up)
        h->irr &= (uint8_t)~bit;
    h->levels = (uint8_t)((h->levels & ~bit) | (up ? bit : 0));
}

/* With the lock held. */
static void update(struct pic *p)
{
    /* The second one's output is a level on input 2 of the first. */
    struct half *first = &p->half[0];
    bool second = asking(&p->half[1]) >= 0;
    first->irr = (uint8_t)((first->irr & ~4) | (second ? 4 : 0));
    bool up = asking(first) >= 0;
    if (up != p->up)
        irq_set(&p->out, up);
    p->up = up;
}

void pic_set(struct pic *p, unsigned line, bool up)
{
    if (line > 15 || line == 2)
        return;
    LOCK_SCOPE(&p->lock);
    set_input(&p->half[line >> 3], line & 7, up);
    update(p);
}

static void serve(struct half *h, unsigned n)
{
    uint8_t bit = (uint8_t)(1 << n);
    if (!h->auto_end)
        h->isr |= bit;
    else if (h->rotate_auto)
        h->lowest = (uint8_t)n;
    if (!(h->elcr & bit && h->levels & bit))
        h->irr &= (uint8_t)~bit;
}

uint8_t pic_acknowledge(struct pic *p)
{
    LOCK_SCOPE(&p->lock);
    struct half *h = &p->half[0];
    int n = asking(h);
    if (n == 2) {
        int m = asking(&p->half[1]);
        serve(h, 2);
        h = &p->half[1];
        n = m;
    }
    uint8_t vector = (uint8_t)(h->base + (n < 0 ? 7 : n));
    if (n >= 0)
        serve(h, (unsigned)n);
    update(p);
    return vector;
}

static void end(struct half *h, uint8_t value)
{
    uint8_t rotate = value >> 7, specific = value >> 6 & 1;
    if (!(value & 0x20)) {
        if (specific && rotate)
            h->lowest = value & 7; /* set priority */
        else if (!specific)
            h->rotate_auto = rotate;
        return;
    }
    unsigned at = place(h, h->isr), n = specific ? value & 7u : (h->lowest + 1u + at) & 7;
    if (!specific && at == 8)
        return;
    h->isr &= (uint8_t) ~(1 << n);
    if (rotate)
        h->lowest = (uint8_t)n;
}

static void begin(struct half *h, uint8_t value)
{
    uint8_t elcr = h->elcr, levels = h->levels;
    *h = (struct half){ .elcr = elcr,
                        .levels = levels,
                        .irr = levels & elcr,
                        .lowest = 7,
                        .expect = 2,
                        .single = value & 2,
                        .word4 = value & 1 };
}

static void write_command(struct half *h, uint8_t value)
{
    if (value & 0x10) {
        begin(h, value);
    } else if (value & 8) {
        if (value & 2)
            h->read_isr = value & 1;
        if (value & 0x40)
            h->special_mask = value & 0x20;
    } else {
        end(h, value);
    }
}

static void write_data(struct half *h, uint8_t value)
{
    switch (h->expect) {
    case 2:
        h->base = value & 0xf8;
        h->expect = h->single ? (h->word4 ? 4 : 0) : 3;
        break;
    case 3:
        h->expect = h->word4 ? 4 : 0;
        break;
    case 4:
        h->auto_end = value & 2;
        h->expect = 0;
        break;
    default:
        h->imr = value;
    }
}

static uint64_t read_half(struct pic *p, unsigned which, uint64_t offset)
{
    LOCK_SCOPE(&p->lock);
    const struct half *h = &p->half[which];
    return offset ? h->imr : h->read_isr ? h->isr : h->irr;
}

static void write_half(struct pic *p, unsigned which, uint64_t offset, uint64_t value)
{
    LOCK_SCOPE(&p->lock);
    if (offset)
        write_data(&p->half[which], (uint8_t)value);
    else
        write_command(&p->half[which], (uint8_t)value);
    update(p);
}

static uint64_t read_first(void *opaque, uint64_t offset, unsigned size)
{
    (void)size;
    return read_half(opaque, 0, offset);
}

static void write_first(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)size;
    write_half(opaque, 0, offset, value);
}

static uint64_t read_second(void *opaque, uint64_t offset, unsigned size)
{
    (void)size;
    return read_half(opaque, 1, offset);
}

static void write_second(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)size;
    write_half(opaque, 1, offset, value);
}

static uint64_t read_elcr(void *opaque, uint64_t offset, unsigned size)
{
    struct pic *p = opaque;
    (void)size;
    LOCK_SCOPE(&p->lock);
    return p->half[offset & 1].elcr;
}

static void write_elcr(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pic *p = opaque;
    (void)size;
    LOCK_SCOPE(&p->lock);
    /* Timer, keyboard, cascade, clock and coprocessor are edges for ever. */
    p->half[offset & 1].elcr = (uint8_t)(value & (offset & 1 ? 0xde : 0xf8));
    update(p);
}

static const struct memory_io first_io = { read_first, write_first };
static const struct memory_io second_io = { read_second, write_second };
static const struct memory_io elcr_io = { read_elcr, write_elcr };

void pic_reset(struct pic *p)
{
    LOCK_SCOPE(&p->lock);
    for (unsigned n = 0; n < 2; n++)
        p->half[n] = (struct half){ .lowest = 7, .imr = 0xff };
    update(p);
}

struct pic *pic_new(struct ports *ports, const struct irq *out)
{
    struct pic *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->out = *out;
    pthread_mutex_init(&p->lock, NULL);
    if (ports_add(ports, 0x20, 2, &first_io, p) || ports_add(ports, 0xa0, 2, &second_io, p) ||
        ports_add(ports, 0x4d0, 2, &elcr_io, p)) {
        pic_free(p);
        return NULL;
    }
    pic_reset(p);
    return p;
}

void pic_free(struct pic *p)
{
    if (!p)
        return;
    pthread_mutex_destroy(&p->lock);
    free(p);
}
