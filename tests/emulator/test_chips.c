/* The chips of a PC one by one: interrupt controllers, timers, clock, fw_cfg, keyboard. */
#include "cpu/memory.h"
#include "devices/fw_cfg.h"
#include "devices/i8042.h"
#include "devices/ioapic.h"
#include "devices/irq.h"
#include "devices/lapic.h"
#include "devices/pic.h"
#include "devices/pit.h"
#include "devices/ports.h"
#include "devices/rtc.h"
#include "devices/timer.h"

#include "base/bytes.h"
#include "base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static _Atomic bool line[4];
static _Atomic unsigned rises, nmis, inits, starts;
static unsigned ended; /* the vector of the last EOI that was handed on, plus one */
static bool reset_asked;

static void pull(void *opaque, unsigned n, bool up)
{
    (void)opaque;
    rises += up && !line[n];
    line[n] = up;
}

static const struct irq wire = { .set = pull };

static void out(struct ports *p, uint16_t port, uint32_t value)
{
    ports_out(p, port, 1, value);
}

static uint32_t in(struct ports *p, uint16_t port)
{
    return ports_in(p, port, 1);
}

/* ---- 8259 ----------------------------------------------------------------------------------- */

static struct pic *ready_pic(struct ports *p)
{
    struct pic *pic = pic_new(p, &wire);
    static const uint8_t words[][2] = {
        { 0x11, 0x11 }, { 0x20, 0x28 }, { 4, 2 }, { 1, 1 }, { 0, 0 }
    };
    for (unsigned n = 0; n < 5; n++) {
        out(p, n ? 0x21 : 0x20, words[n][0]);
        out(p, n ? 0xa1 : 0xa0, words[n][1]);
    }
    return pic;
}

static void test_pic_priorities_and_cascade(void **state)
{
    (void)state;
    struct ports *p = ports_new();
    struct pic *pic = ready_pic(p);
    line[0] = false;
    pic_set(pic, 12, true);
    assert_true(line[0]);
    assert_int_equal(pic_acknowledge(pic), 0x2c);
    assert_false(line[0]);
    pic_set(pic, 4, true); /* lower than the cascade, which is being served */
    assert_false(line[0]);
    pic_set(pic, 1, true);
    assert_int_equal(pic_acknowledge(pic), 0x21);
    out(p, 0x20, 0x61); /* specific end of 1 */
    out(p, 0xa0, 0x20);
    assert_false(line[0]);
    out(p, 0x20, 0x20);
    assert_true(line[0]);
    assert_int_equal(pic_acknowledge(pic), 0x24);
    out(p, 0x20, 0x20);
    pic_set(pic, 5, true);
    pic_set(pic, 5, false);
    assert_int_equal(pic_acknowledge(pic), 0x27); /* spurious */
    out(p, 0x20, 0x0b);
    assert_int_equal(in(p, 0x20), 0);
    pic_free(pic);
    ports_free(p);
}

static void test_pic_levels_stay(void **state)
{
    (void)state;
    struct ports *p = ports_new();
    struct pic *pic = ready_pic(p);
    out(p, 0x4d1, 0x0c);
    pic_set(pic, 10, true);
    assert_int_equal(pic_acknowledge(pic), 0x2a);
    out(p, 0xa0, 0x20);
    out(p, 0x20, 0x20);
    assert_true(line[0]);
    pic_set(pic, 10, false);
    assert_false(line[0]);
    out(p, 0x4d0, 0xff);
    assert_int_equal(in(p, 0x4d0), 0xf8);
    pic_free(pic);
    ports_free(p);
}

/* ---- 8254 ----------------------------------------------------------------------------------- */

static void test_pit_ticks_and_counts(void **state)
{
    (void)state;
    struct ports *p = ports_new();
    struct clock *clock = clock_new();
    struct pit *pit = pit_new(p, clock, &wire);
    clock_run(clock, true);
    rises = 0;
    out(p, 0x43, 0x34);
    out(p, 0x40, 0xa9);
    out(p, 0x40, 0x04); /* 1193: each millisecond */
    for (unsigned i = 0; i < 3000 && rises < 20; i++)
        usleep(1000);
    assert_true(rises >= 20);
    out(p, 0x43, 0x30); /* mode 0 without a count: silence */
    usleep(3000);
    rises = 0;
    usleep(10000);
    assert_int_equal(rises, 0);

    out(p, 0x61, 1);
    out(p, 0x43, 0xb0);
    out(p, 0x42, 0xff);
    out(p, 0x42, 0xff);
    uint64_t begin = clock_now(clock);
    usleep(10000);
    out(p, 0x43, 0x80); /* latch counter 2 */
    uint64_t end = clock_now(clock);
    unsigned count = in(p, 0x42);
    count |= in(p, 0x42) << 8;
    uint64_t gone = (uint64_t)(0xffff - count) * 1000000000u / 1193182;
    assert_in_range(gone, 10000000, end - begin + 100000);
    out(p, 0x43, 0xe8); /* read back the status of counter 2 */
    assert_int_equal(in(p, 0x42) & 0x3f, 0x30);
    pit_free(pit);
    clock_free(clock);
    ports_free(p);
}

/* ---- clock ---------------------------------------------------------------------------------- */

static uint32_t cmos(struct ports *p, uint8_t at)
{
    out(p, 0x70, at);
    return in(p, 0x71);
}

static void set_cmos(struct ports *p, uint8_t at, uint8_t value)
{
    out(p, 0x70, at);
    out(p, 0x71, value);
}

static void test_rtc_tells_time_and_is_set(void **state)
{
    (void)state;
    struct ports *p = ports_new();
    struct clock *clock = clock_new();
    struct rtc *rtc = rtc_new(p, clock, &wire);
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    uint32_t day = cmos(p, 7);
    if (tm.tm_hour != 23)
        assert_int_equal((day >> 4) * 10 + (day & 15), tm.tm_mday);
    set_cmos(p, 11, 0x86); /* binary, 24 hours, stand still */
    static const uint8_t set[] = { 58, 0, 59, 0, 23, 0, 4, 31, 12, 99 };
    for (uint8_t i = 0; i < sizeof set; i++)
        set_cmos(p, i, set[i]);
    set_cmos(p, 0x32, 19);
    set_cmos(p, 11, 0x06);
    assert_int_equal(cmos(p, 0), 58);
    clock_run(clock, true);
    for (unsigned i = 0; i < 4000 && cmos(p, 0x32) != 20; i++)
        usleep(1000);
    assert_int_equal(cmos(p, 9), 0);
    assert_int_equal(cmos(p, 8), 1);
    assert_int_equal(cmos(p, 4), 0);
    rtc_free(rtc);
    clock_free(clock);
    ports_free(p);
}

static void test_rtc_interrupts(void **state)
{
    (void)state;
    struct ports *p = ports_new();
    struct clock *clock = clock_new();
    line[0] = false;
    struct rtc *rtc = rtc_new(p, clock, &wire);
    clock_run(clock, true);
    set_cmos(p, 11, 0x42); /* 1024 times a second */
    for (unsigned i = 0; i < 1000 && !line[0]; i++)
        usleep(1000);
    assert_true(line[0]);
    assert_int_equal(cmos(p, 12) & 0xc0, 0xc0);
    set_cmos(p, 11, 0x02);
    cmos(p, 12);
    assert_false(line[0]);
    for (uint8_t i = 1; i < 6; i += 2)
        set_cmos(p, i, 0xff); /* an alarm at each second */
    set_cmos(p, 11, 0x22);
    for (unsigned i = 0; i < 2500 && !line[0]; i++)
        usleep(1000);
    assert_int_equal(cmos(p, 12) & 0xa0, 0xa0);
    rtc_free(rtc);
    clock_free(clock);
    ports_free(p);
}

/* ---- APICs ---------------------------------------------------------------------------------- */

static void apic_line(void *opaque, unsigned cpu, bool up)
{
    (void)opaque;
    line[cpu] = up;
}

static void note_nmi(void *opaque, unsigned cpu)
{
    (void)opaque;
    nmis |= 1u << cpu;
}

static void note_init(void *opaque, unsigned cpu)
{
    (void)opaque;
    inits |= 1u << cpu;
}

static void note_start(void *opaque, unsigned cpu, uint8_t vector)
{
    (void)opaque;
    starts |= (uint32_t)vector << (8 * cpu);
}

static uint64_t tsc(void *opaque, unsigned cpu)
{
    (void)cpu;
    return clock_now(*(struct clock **)opaque);
}

static void note_eoi(void *opaque, uint8_t vector)
{
    (void)opaque;
    ended = vector + 1u;
}

static struct clock *apic_clock;

static struct lapics *ready_apics(void)
{
    const struct lapic_host host = { .opaque = &apic_clock,
                                     .line = apic_line,
                                     .nmi = note_nmi,
                                     .init = note_init,
                                     .start = note_start,
                                     .tsc = tsc,
                                     .eoi = note_eoi };
    apic_clock = clock_new();
    clock_run(apic_clock, true);
    struct lapics *all = lapics_new(apic_clock, &host, 3);
    lapics_reset(all, true);
    for (unsigned n = 0; n < 3; n++) {
        lapic_write_msr(all, n, 0x1b, 0xfee00c00);
        lapic_write_msr(all, n, 0x80f, 0x1ff);
    }
    nmis = inits = starts = ended = 0;
    return all;
}

static void end_apics(struct lapics *all)
{
    lapics_free(all);
    clock_free(apic_clock);
}

static void test_lapic_priorities(void **state)
{
    (void)state;
    struct lapics *all = ready_apics();
    lapics_message(all, 0xfee01000, 0x41); /* to CPU 1 */
    assert_true(line[1]);
    assert_false(line[0]);
    lapic_set_priority(all, 1, 4);
    assert_false(line[1]);
    lapic_set_priority(all, 1, 3);
    assert_int_equal(lapic_acknowledge(all, 1), 0x41);
    lapics_message(all, 0xfee01000, 0x4f); /* of the same class: waits */
    assert_int_equal(lapic_acknowledge(all, 1), LAPIC_NONE);
    lapics_message(all, 0xfee01000, 0x50);
    assert_int_equal(lapic_acknowledge(all, 1), 0x50);
    lapic_write_msr(all, 1, 0x80b, 0);
    lapic_write_msr(all, 1, 0x80b, 0);
    assert_int_equal(lapic_acknowledge(all, 1), 0x4f);
    lapics_message(all, 0xfee00000, 5); /* no such vector may be sent */
    assert_false(line[0]);
    lapics_pic(all, true);
    assert_int_equal(lapic_acknowledge(all, 0), LAPIC_FROM_PIC);
    assert_int_equal(lapic_acknowledge(all, 2), LAPIC_NONE);
    end_apics(all);
}

static void test_lapic_messages_among_cpus(void **state)
{
    (void)state;
    struct lapics *all = ready_apics();
    lapic_write_msr(all, 0, 0x830, 0xc4500); /* INIT to all others */
    assert_int_equal(inits, 6);
    lapic_write_msr(all, 0, 0x830, (uint64_t)1 << 32 | 0x4608); /* start CPU 1 at 8000 */
    assert_int_equal(starts, 0x0800);
    lapic_write_msr(all, 0, 0x830, 0x80400); /* NMI to all */
    assert_int_equal(nmis, 7);
    lapic_write_msr(all, 0, 0x83f, 0x33); /* to itself */
    assert_int_equal(lapic_acknowledge(all, 0), 0x33);
    uint64_t value;
    assert_int_equal(lapic_read_msr(all, 1, 0x802, &value), -1); /* INIT ends the extended mode */
    assert_int_equal(lapic_read_msr(all, 0, 0x802, &value), 0);
    assert_int_equal(lapic_write_msr(all, 0, 0x1b, 0xfee00900), -1); /* not back to xAPIC at once */
    end_apics(all);
}

static void test_lapic_timers(void **state)
{
    (void)state;
    struct lapics *all = ready_apics();
    lapic_write_msr(all, 0, 0x83e, 0xb);
    lapic_write_msr(all, 0, 0x832, 0x20060); /* periodic */
    lapic_write_msr(all, 0, 0x838, 1000000);
    for (unsigned n = 0; n < 5; n++) {
        for (unsigned i = 0; i < 1000 && !line[0]; i++)
            usleep(500);
        assert_int_equal(lapic_acknowledge(all, 0), 0x60);
        lapic_write_msr(all, 0, 0x80b, 0);
    }
    lapic_write_msr(all, 0, 0x832, 0x40061); /* deadline */
    usleep(3000);
    lapic_acknowledge(all, 0);
    lapic_write_msr(all, 0, 0x80b, 0);
    assert_false(line[0]);
    lapic_write_msr(all, 0, 0x6e0, clock_now(apic_clock) + 2000000);
    for (unsigned i = 0; i < 1000 && !line[0]; i++)
        usleep(500);
    assert_int_equal(lapic_acknowledge(all, 0), 0x61);
    uint64_t deadline;
    assert_int_equal(lapic_read_msr(all, 0, 0x6e0, &deadline), 0);
    assert_int_equal(deadline, 0);
    end_apics(all);
}

static void test_ioapic_levels_and_edges(void **state)
{
    (void)state;
    struct lapics *all = ready_apics();
    struct ioapic *a = ioapic_new(all);
    for (unsigned pin = 3; pin < 5; pin++) {
        uint64_t entry = pin == 3 ? 0x45 : 0x8055;
        for (unsigned half = 0; half < 2; half++) {
            ioapic_io.write(a, 0, 4, 0x10 + 2 * pin + half);
            ioapic_io.write(a, 0x10, 4, (uint32_t)(entry >> (32 * half)));
        }
    }
    ioapic_set(a, 3, true);
    ioapic_set(a, 3, true);
    assert_int_equal(lapic_acknowledge(all, 0), 0x45);
    assert_int_equal(lapic_acknowledge(all, 0), LAPIC_NONE);
    lapic_write_msr(all, 0, 0x80b, 0);
    assert_int_equal(ended, 0); /* an edge's end concerns nobody */
    ioapic_set(a, 4, true);
    assert_int_equal(lapic_acknowledge(all, 0), 0x55);
    ioapic_io.write(a, 0, 4, 0x18);
    assert_int_equal(ioapic_io.read(a, 0x10, 4), 0xc055); /* remote IRR */
    lapic_write_msr(all, 0, 0x80b, 0);
    assert_int_equal(ended, 0x56);
    ioapic_eoi(a, 0x55);
    assert_int_equal(lapic_acknowledge(all, 0), 0x55); /* it is still up */
    ioapic_set(a, 4, false);
    lapic_write_msr(all, 0, 0x80b, 0);
    ioapic_eoi(a, 0x55);
    assert_false(line[0]);
    ioapic_free(a);
    end_apics(all);
}

/* ---- fw_cfg --------------------------------------------------------------------------------- */

static void test_fw_cfg_by_port_and_dma(void **state)
{
    (void)state;
    struct ports *p = ports_new();
    struct memory *m = memory_new();
    uint8_t *ram = aligned_alloc(4096, 8192);
    memset(ram, 0xee, 8192);
    assert_int_equal(memory_add_ram(m, 0, 8192, ram, 0), 0);
    struct fw_cfg *f = fw_cfg_new(p, m);
    assert_int_equal(fw_cfg_file(f, "etc/x", "hello", 5), 0);
    ports_out(p, 0x510, 2, 0);
    assert_int_equal(in(p, 0x511), 'Q');
    assert_int_equal(in(p, 0x511), 'E');
    ports_out(p, 0x510, 2, 0x8000); /* an item of the architecture's own: there is none */
    assert_int_equal(in(p, 0x511), 0);
    store_be32(ram, 0x20u << 16 | 8 | 2); /* select the first file, read */
    store_be32(ram + 4, 8);
    store_be64(ram + 8, 0x100);
    ports_out(p, 0x514, 4, 0);
    ports_out(p, 0x518, 4, 0);
    assert_int_equal(load_be32(ram), 0);
    assert_memory_equal(ram + 0x100, "hello\0\0\0\xee", 9);
    store_be32(ram, 2);
    store_be32(ram + 4, 0xffffffff);
    store_be64(ram + 8, 0x1000);
    ports_out(p, 0x518, 4, 0);
    assert_int_equal(load_be32(ram), 1); /* ran out of RAM */
    store_be32(ram, 16);
    ports_out(p, 0x518, 4, 0);
    assert_int_equal(load_be32(ram), 1); /* nothing can be written */
    fw_cfg_free(f);
    memory_free(m);
    ports_free(p);
    free(ram);
}

/* ---- keyboard ------------------------------------------------------------------------------- */

static void note_reset(void *opaque)
{
    (void)opaque;
    reset_asked = true;
}

static void test_keyboard_keys_and_reset(void **state)
{
    (void)state;
    struct ports *p = ports_new();
    const struct i8042_host host = { .reset = note_reset };
    const struct irq mouse = { .set = pull, .line = 1 };
    struct i8042 *k = i8042_new(p, &wire, &mouse, &host);
    out(p, 0x64, 0x60);
    out(p, 0x60, 0x41); /* interrupts, translation */
    assert_int_equal(i8042_type(k, "shift-a", NULL), 0);
    static const uint8_t codes[] = { 0x2a, 0x1e, 0x9e, 0xaa };
    for (unsigned i = 0; i < sizeof codes; i++) {
        assert_true(line[0]);
        assert_int_equal(in(p, 0x60), codes[i]);
    }
    assert_false(line[0]);
    struct error *err = NULL;
    assert_true(i8042_type(k, "shift-nokey", &err) < 0);
    error_free(err);
    out(p, 0x64, 0xaa);
    assert_int_equal(in(p, 0x60), 0x55);
    out(p, 0x60, 0xff);
    assert_int_equal(in(p, 0x60), 0xfa);
    assert_int_equal(in(p, 0x60), 0xaa);
    out(p, 0x64, 0xd4);
    out(p, 0x60, 0xf2);
    assert_int_equal(in(p, 0x64) & 0x21, 0x21);
    assert_int_equal(in(p, 0x60), 0xfa);
    assert_int_equal(in(p, 0x60), 0);
    assert_false(reset_asked);
    out(p, 0x64, 0xfe);
    assert_true(reset_asked);
    i8042_free(k);
    ports_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pic_priorities_and_cascade),
        cmocka_unit_test(test_pic_levels_stay),
        cmocka_unit_test(test_pit_ticks_and_counts),
        cmocka_unit_test(test_rtc_tells_time_and_is_set),
        cmocka_unit_test(test_rtc_interrupts),
        cmocka_unit_test(test_lapic_priorities),
        cmocka_unit_test(test_lapic_messages_among_cpus),
        cmocka_unit_test(test_lapic_timers),
        cmocka_unit_test(test_ioapic_levels_and_edges),
        cmocka_unit_test(test_fw_cfg_by_port_and_dma),
        cmocka_unit_test(test_keyboard_keys_and_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
