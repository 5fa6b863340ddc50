/* The time is the machine's clock plus an offset. Flags of register C are worked out when somebody looks or the alarm rings. */
#include "rtc.h"

#include "base/cleanup.h"
#include "cpu/memory.h"
#include "irq.h"
#include "ports.h"
#include "timer.h"

#include <time.h>

enum {
    SECONDS = 0,
    ALARM_SECONDS = 1,
    MINUTES = 2,
    ALARM_MINUTES = 3,
    HOURS = 4,
    ALARM_HOURS = 5,
    WEEKDAY = 6,
    DAY = 7,
    MONTH = 8,
    YEAR = 9,
    A = 10,
    A_UPDATING = 0x80,
    B = 11,
    B_SET = 0x80,
    B_INTERRUPTS = 0x70,
    B_BINARY = 4,
    B_24 = 2,
    C = 12,
    C_ANY = 0x80,
    C_PERIODIC = 0x40,
    C_ALARM = 0x20,
    C_UPDATED = 0x10,
    D = 13,
    CENTURY = 0x32,
};
#define SECOND ((uint64_t)1000000000)
/* Seconds from 1970 to the first and the last that registers can say; others are not taken. */
#define YEAR_1    ((int64_t)-62135596800)
#define YEAR_9999 ((int64_t)253402300799)

struct rtc {
    pthread_mutex_t lock;
    struct clock *clock;
    struct timer *timer;
    struct irq out;
    uint8_t index, memory[128];
    int64_t offset;      /* seconds since 1970 when the clock said 0 */
    int64_t seen_second; /* up to here flags are worked out */
    uint64_t seen_tick;
    bool level;
};

static int64_t second_now(const struct rtc *r)
{
    return r->offset + (int64_t)(clock_now(r->clock) / SECOND);
}

static uint8_t encode(const struct rtc *r, int value)
{
    return (uint8_t)(r->memory[B] & B_BINARY ? value : value / 10 << 4 | value % 10);
}

static int decode(const struct rtc *r, uint8_t byte)
{
    return r->memory[B] & B_BINARY ? byte : (byte >> 4) * 10 + (byte & 15);
}

static uint8_t encode_hour(const struct rtc *r, int hour)
{
    if (r->memory[B] & B_24)
        return encode(r, hour);
    return (uint8_t)(encode(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0));
}

static int decode_hour(const struct rtc *r, uint8_t byte)
{
    if (r->memory[B] & B_24)
        return decode(r, byte);
    return decode(r, byte & 0x7f) % 12 + (byte & 0x80 ? 12 : 0);
}

/* The registers of the time as they are now. */
static void fill_time(struct rtc *r)
{
    time_t t = (time_t)second_now(r);
    struct tm tm;
    if (r->memory[B] & B_SET || !gmtime_r(&t, &tm))
        return;
    r->memory[SECONDS] = encode(r, tm.tm_sec);
    r->memory[MINUTES] = encode(r, tm.tm_min);
    r->memory[HOURS] = encode_hour(r, tm.tm_hour);
    r->memory[WEEKDAY] = encode(r, tm.tm_wday + 1);
    r->memory[DAY] = encode(r, tm.tm_mday);
    r->memory[MONTH] = encode(r, tm.tm_mon + 1);
    r->memory[YEAR] = encode(r, (tm.tm_year + 1900) % 100);
    r->memory[CENTURY] = encode(r, (tm.tm_year + 1900) / 100);
}

/* The guest has written registers: the offset that makes them true. */
static void take_time(struct rtc *r)
{
    struct tm tm = { .tm_sec = decode(r, r->memory[SECONDS]),
                     .tm_min = decode(r, r->memory[MINUTES]),
                     .tm_hour = decode_hour(r, r->memory[HOURS]),
                     .tm_mday = decode(r, r->memory[DAY]),
                     .tm_mon = decode(r, r->memory[MONTH]) - 1,
                     .tm_year =
                         decode(r, r->memory[YEAR]) + decode(r, r->memory[CENTURY]) * 100 - 1900 };
    int64_t wanted = (int64_t)timegm(&tm);
    if (wanted < YEAR_1 || wanted > YEAR_9999)
        return;
    r->offset += wanted - second_now(r);
    r->seen_second = second_now(r);
}

static bool alarm_matches(const struct rtc *r, int64_t second)
{
    time_t t = (time_t)second;
    struct tm tm;
    if (!gmtime_r(&t, &tm))
        return false;
    uint8_t s = r->memory[ALARM_SECONDS], m = r->memory[ALARM_MINUTES], h = r->memory[ALARM_HOURS];
    return (s >= 0xc0 || decode(r, s) == tm.tm_sec) && (m >= 0xc0 || decode(r, m) == tm.tm_min) &&
           (h >= 0xc0 || decode_hour(r, h) == tm.tm_hour);
}

/* Nanoseconds of a periodic tick, 0: none (table 5, with the usual 32.768 kHz). */
static uint64_t tick(const struct rtc *r)
{
    unsigned rate = r->memory[A] & 15;
    if (!rate)
        return 0;
    if (rate < 3)
        rate += 7;
    return (SECOND << (rate - 1)) / 32768;
}

/* With the lock held: flags, the interrupt and when to look again. */
static void update(struct rtc *r)
{
    uint64_t now = clock_now(r->clock), t = tick(r), next = UINT64_MAX;
    int64_t second = second_now(r);
    uint8_t *flags = &r->memory[C];
    if (second != r->seen_second && !(r->memory[B] & B_SET)) {
        *flags |= C_UPDATED;
        /* A day is enough to have met every time of day. */
        int64_t from = second - r->seen_second > 86400 || second < r->seen_second
                           ? second
                           : r->seen_second + 1;
        for (int64_t s = from; s <= second && !(*flags & C_ALARM); s++) {
            if (alarm_matches(r, s))
                *flags |= C_ALARM;
        }
    }
    r->seen_second = second;
    if (t && now / t != r->seen_tick)
        *flags |= C_PERIODIC;
    r->seen_tick = t ? now / t : 0;
    bool up = *flags & r->memory[B] & B_INTERRUPTS;
    *flags = (uint8_t)((*flags & 0x7f) | (up ? C_ANY : 0));
    if (up != r->level)
        irq_set(&r->out, up);
    r->level = up;
    if (t && r->memory[B] & C_PERIODIC)
        next = (now / t + 1) * t;
    uint64_t whole = (now / SECOND + 1) * SECOND;
    if (r->memory[B] & (C_ALARM | C_UPDATED) && whole < next)
        next = whole;
    if (next != UINT64_MAX && !up)
        timer_set(r->timer, next);
    else
        timer_cancel(r->timer);
}

static void ring(void *opaque)
{
    struct rtc *r = opaque;
    LOCK_SCOPE(&r->lock);
    update(r);
}

static uint8_t read_register(struct rtc *r)
{
    uint8_t value;
    switch (r->index) {
    case A:
        value = r->memory[A] & 0x7f;
        if (!(r->memory[B] & B_SET) && clock_now(r->clock) % SECOND >= SECOND - 244000)
            value |= A_UPDATING;
        return value;
    case C:
        update(r);
        value = r->memory[C];
        r->memory[C] = 0;
        update(r);
        return value;
    case D:
        return 0x80; /* the battery is good */
    default:
        if (r->index < A || r->index == CENTURY)
            fill_time(r);
        return r->memory[r->index];
    }
}

static void write_register(struct rtc *r, uint8_t value)
{
    bool was_set = r->memory[B] & B_SET;
    switch (r->index) {
    case A:
        r->memory[A] = value & 0x7f;
        r->seen_tick = tick(r) ? clock_now(r->clock) / tick(r) : 0;
        break;
    case B:
        fill_time(r);
        r->memory[B] = value;
        if (was_set && !(value & B_SET))
            take_time(r);
        break;
    case C:
    case D:
        break;
    default:
        if (r->index < A || r->index == CENTURY)
            fill_time(r);
        r->memory[r->index] = value;
        if ((r->index < A && (r->index > ALARM_HOURS || !(r->index & 1))) || r->index == CENTURY) {
            if (!was_set)
                take_time(r);
        }
    }
    update(r);
}

static uint64_t io_read(void *opaque, uint64_t offset, unsigned size)
{
    struct rtc *r = opaque;
    (void)size;
    LOCK_SCOPE(&r->lock);
    return offset & 1 ? read_register(r) : r->index;
}

static void io_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct rtc *r = opaque;
    (void)size;
    LOCK_SCOPE(&r->lock);
    if (offset & 1)
        write_register(r, (uint8_t)value);
    else
        r->index = value & 0x7f;
}

static const struct memory_io io = { io_read, io_write };

void rtc_set_memory(struct rtc *r, unsigned at, uint8_t value)
{
    LOCK_SCOPE(&r->lock);
    if (at > D && at < sizeof r->memory)
        r->memory[at] = value;
}

void rtc_reset(struct rtc *r)
{
    LOCK_SCOPE(&r->lock);
    r->memory[B] &= (uint8_t) ~(B_INTERRUPTS | 8);
    r->memory[C] = 0;
    r->index = 0;
    update(r);
}

struct rtc *rtc_new(struct ports *ports, struct clock *clock, const struct irq *out)
{
    struct rtc *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->out = *out;
    r->clock = clock;
    r->offset = (int64_t)time(NULL) - (int64_t)(clock_now(clock) / SECOND);
    r->seen_second = second_now(r);
    r->memory[A] = 0x26;
    r->memory[B] = B_24;
    pthread_mutex_init(&r->lock, NULL);
    r->timer = timer_new(clock, ring, r);
    if (!r->timer || ports_add(ports, 0x70, 2, &io, r)) {
        rtc_free(r);
        return NULL;
    }
    return r;
}

void rtc_free(struct rtc *r)
{
    if (!r)
        return;
    timer_free(r->timer);
    pthread_mutex_destroy(&r->lock);
    free(r);
}
