/* The table of devices, I/O ports and the clock. */
#include "base/error.h"
#include "cpu/memory.h"
#include "devices/device.h"
#include "devices/ports.h"
#include "devices/timer.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int exit_status;

static void note_exit(void *machine, int status)
{
    (void)machine;
    exit_status = status;
}

static int add(struct device **list, const struct device_host *host, const char *text,
               struct error **err)
{
    json_t *o = opts_parse_keyval(text, "driver", err);
    assert_non_null(o);
    int r = device_add(list, host, o, err);
    json_decref(o);
    return r;
}

static void test_a_device_lives_and_goes(void **state)
{
    (void)state;
    struct ports *ports = ports_new();
    struct device_host host = { .ports = ports, .exit = note_exit };
    struct device *list = NULL;
    assert_int_equal(add(&list, &host, "isa-debug-exit,id=x,iobase=0xf4,iosize=4", NULL), 0);
    assert_ptr_equal(device_find(list, "x"), list);
    ports_out(ports, 0xf4, 4, 3);
    assert_int_equal(exit_status, 7);
    devices_free(&list);
    assert_null(list);
    assert_int_equal(ports_in(ports, 0xf4, 1), 0xff);
    ports_free(ports);
}

static void refused(const char *text, const char *words)
{
    struct ports *ports = ports_new();
    struct device_host host = { .ports = ports };
    struct device *list = NULL;
    struct error *err = NULL;
    assert_true(add(&list, &host, text, &err) < 0);
    assert_non_null(strstr(error_text(err), words));
    assert_null(list);
    error_free(err);
    ports_free(ports);
}

static void test_what_is_wrong_is_named(void **state)
{
    (void)state;
    refused("isa-debug-exot", "did you mean 'isa-debug-exit'");
    refused("isa-debug-exit,iobas=1", "did you mean 'iobase'");
    refused("isa-debug-exit,iobase=0xffff", "leave the ports");
    refused("isa-debug-exit,bootindex=1", "bootindex");
}

static uint64_t read_offset(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque, (void)size;
    return 0x10 + offset;
}

static void write_nothing(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque, (void)offset, (void)size, (void)value;
}

static const struct memory_io offset_io = { read_offset, write_nothing };

static void test_ports_at_the_edges(void **state)
{
    (void)state;
    struct ports *ports = ports_new();
    assert_int_equal(ports_add(ports, 0x70, 2, &offset_io, ports), 0);
    assert_int_equal(ports_add(ports, 0xffff, 2, &offset_io, ports), -EINVAL);
    assert_int_equal(ports_in(ports, 0x71, 1), 0x11);
    assert_int_equal(ports_in(ports, 0x71, 2), 0xff11);
    assert_int_equal(ports_in(ports, 0x6f, 4), 0xff1110ff);
    assert_int_equal(ports_in(ports, 0xffff, 4), 0xffffffff);
    ports_remove(ports, 0x70, ports);
    assert_int_equal(ports_in(ports, 0x70, 4), 0xffffffff);
    ports_free(ports);
}

static _Atomic unsigned rang;

static void ring(void *opaque)
{
    (void)opaque;
    rang++;
}

static void test_alarms_wait_while_the_clock_stands(void **state)
{
    (void)state;
    struct clock *clock = clock_new();
    struct timer *soon = timer_new(clock, ring, NULL), *never = timer_new(clock, ring, NULL);
    timer_set(never, UINT64_MAX);
    timer_set(soon, 0);
    usleep(20000);
    assert_int_equal(rang, 0);
    assert_int_equal(clock_now(clock), 0);
    clock_run(clock, true);
    for (unsigned i = 0; i < 2000 && !rang; i++)
        usleep(1000);
    assert_int_equal(rang, 1);
    timer_set(soon, clock_now(clock) + 2000000);
    timer_free(soon);
    usleep(10000);
    assert_int_equal(rang, 1);
    clock_run(clock, false);
    uint64_t stood = clock_now(clock);
    usleep(2000);
    assert_int_equal(clock_now(clock), stood);
    timer_free(never);
    clock_free(clock);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_device_lives_and_goes),
        cmocka_unit_test(test_what_is_wrong_is_named),
        cmocka_unit_test(test_ports_at_the_edges),
        cmocka_unit_test(test_alarms_wait_while_the_clock_stands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
