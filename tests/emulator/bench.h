/* A PCI bus with RAM around a disk front end, and its registers as a driver sees them.
 *
 * RAM lies at 0 and at HIGH, with nothing between and behind: what a device does to addresses outside is an error.
 */
#ifndef TESTS_EMULATOR_BENCH_H
#define TESTS_EMULATOR_BENCH_H

#include "../check.h"
#include "base/bytes.h"
#include "base/error.h"
#include "cpu/memory_map.h"
#include "devices/device.h"
#include "devices/pci.h"
#include "emulator/blockdev.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BENCH_RAM = 8 << 20, BENCH_PAGE = 4096, BENCH_DEVFN = 5 << 3, BENCH_PORTS = 0xc000 };
#define BENCH_HIGH (UINT64_C(1) << 32)
#define BENCH_BAR  UINT64_C(0xe0000000)

struct bench {
    struct memory *memory;
    struct pci_bus *pci;
    struct device *devices;
    struct device_host host;
    uint8_t *ram, *guard; /* HIGH's RAM ends where `guard` begins, which nothing may touch */
    const struct memory_io *ports;
    void *ports_opaque;
    atomic_uint messages[64], stops;
    atomic_int pin;
    uint64_t random;
};

/* xorshift64*, by Marsaglia and Vigna. */
static inline uint64_t bench_random(struct bench *b)
{
    b->random ^= b->random >> 12;
    b->random ^= b->random << 25;
    b->random ^= b->random >> 27;
    return b->random * UINT64_C(0x2545f4914f6cdd1d);
}

static inline uint64_t bench_below(struct bench *b, uint64_t n)
{
    return bench_random(b) % n;
}

static int bench_map_ports(void *opaque, uint16_t port, uint32_t size, const struct memory_io *io,
                           void *device)
{
    struct bench *b = opaque;
    (void)port, (void)size;
    b->ports = io;
    b->ports_opaque = device;
    return 0;
}

static void bench_unmap_ports(void *opaque, uint16_t port)
{
    (void)port;
    ((struct bench *)opaque)->ports = NULL;
}

static void bench_interrupt(void *opaque, unsigned device, unsigned pin, bool up)
{
    (void)device, (void)pin;
    atomic_store(&((struct bench *)opaque)->pin, up);
}

static void bench_message(void *opaque, uint64_t address, uint32_t data)
{
    struct bench *b = opaque;
    (void)address;
    atomic_fetch_add(&b->messages[data % 64], 1);
}

static void bench_stop(void *machine, const char *why)
{
    (void)why;
    atomic_fetch_add(&((struct bench *)machine)->stops, 1);
}

static inline void bench_open(struct bench *b)
{
    const char *seed = getenv("PLATTER_SEED");

    memset(b, 0, sizeof *b);
    b->random = seed ? strtoull(seed, NULL, 0) | 1 : 0x9e3779b97f4a7c15;
    b->memory = memory_new();
    b->ram = aligned_alloc(BENCH_PAGE, 2 * (size_t)BENCH_RAM + BENCH_PAGE);
    assert_non_null(b->ram);
    memset(b->ram, 0, 2 * (size_t)BENCH_RAM + BENCH_PAGE);
    b->guard = b->ram + 2 * (size_t)BENCH_RAM;
    assert_int_equal(memory_add_ram(b->memory, 0, BENCH_RAM, b->ram, 0), 0);
    assert_int_equal(memory_add_ram(b->memory, BENCH_HIGH, BENCH_RAM, b->ram + BENCH_RAM, 0), 0);
    struct pci_host host = { .memory = b->memory,
                             .opaque = b,
                             .map_ports = bench_map_ports,
                             .unmap_ports = bench_unmap_ports,
                             .interrupt = bench_interrupt,
                             .message = bench_message };
    b->pci = pci_bus_new(&host);
    assert_non_null(b->pci);
    b->host = (struct device_host){
        .memory = b->memory, .pci = b->pci, .machine = b, .stop = bench_stop
    };
}

static inline void bench_close(struct bench *b)
{
    devices_free(&b->devices);
    assert_int_equal(blockdevs_close(NULL), 0);
    pci_bus_free(b->pci);
    memory_free(b->memory);
    for (unsigned i = 0; i < BENCH_PAGE; i++)
        assert_int_equal(b->guard[i], 0);
    free(b->ram);
}

static inline void bench_node(const char *text)
{
    json_t *j = json_loads(text, 0, NULL);
    struct error *err = NULL;
    assert_non_null(j);
    if (blockdev_add(j, &err) < 0)
        fail_msg("%s", error_text(err));
    json_decref(j);
}

static inline int bench_try_device(struct bench *b, const char *text, struct error **err)
{
    json_t *j = json_loads(text, 0, NULL);
    assert_non_null(j);
    int r = device_add(&b->devices, &b->host, j, err);
    json_decref(j);
    return r;
}

static inline void bench_device(struct bench *b, const char *text)
{
    struct error *err = NULL;
    if (bench_try_device(b, text, &err) < 0)
        fail_msg("%s: %s", text, error_text(err));
}

/* The function under test stands at BENCH_DEVFN. */
static inline uint32_t bench_config(struct bench *b, unsigned offset, unsigned size)
{
    return pci_config_read(b->pci, BENCH_DEVFN, offset, size);
}

static inline void bench_set_config(struct bench *b, unsigned offset, unsigned size, uint32_t value)
{
    pci_config_write(b->pci, BENCH_DEVFN, offset, size, value);
}

static inline unsigned bench_capability(struct bench *b, uint8_t id, unsigned skip)
{
    for (unsigned at = bench_config(b, 0x34, 1); at; at = bench_config(b, at + 1, 1))
        if (bench_config(b, at, 1) == id && !skip--)
            return at;
    return 0;
}

/* Each memory BAR at BENCH_BAR + 1 MiB * number, ports at BENCH_PORTS; bus master. */
static inline void bench_map(struct bench *b)
{
    for (unsigned bar = 0; bar < PCI_BARS; bar++) {
        uint32_t kind = bench_config(b, 0x10 + 4 * bar, 4);
        bench_set_config(b, 0x10 + 4 * bar, 4,
                         kind & 1 ? BENCH_PORTS : (uint32_t)BENCH_BAR + (bar << 20));
        if ((kind & 7) == 4)
            bench_set_config(b, 0x10 + 4 * ++bar, 4, 0);
    }
    bench_set_config(b, 4, 2, 7);
}

static inline uint64_t bench_get(struct bench *b, unsigned bar, uint64_t offset, unsigned size)
{
    return memory_load(b->memory, BENCH_BAR + ((uint64_t)bar << 20) + offset, size);
}

static inline void bench_put(struct bench *b, unsigned bar, uint64_t offset, unsigned size,
                             uint64_t value)
{
    memory_store(b->memory, BENCH_BAR + ((uint64_t)bar << 20) + offset, size, value);
}

/* All vectors on, each message's data its number. */
static inline void bench_msix(struct bench *b, unsigned bar, unsigned vectors)
{
    unsigned at = bench_capability(b, 0x11, 0);
    assert_true(at);
    for (unsigned i = 0; i < vectors; i++) {
        bench_put(b, bar, 16 * i, 4, 0xfee00000);
        bench_put(b, bar, 16 * i + 4, 4, 0);
        bench_put(b, bar, 16 * i + 8, 4, i);
        bench_put(b, bar, 16 * i + 12, 4, 0);
    }
    bench_set_config(b, at + 2, 2, 0x8000);
}

static inline uint8_t *bench_at(struct bench *b, uint64_t address)
{
    return address >= BENCH_HIGH ? b->ram + BENCH_RAM + (address - BENCH_HIGH) : b->ram + address;
}

/* Waits a little; fails the test after a minute. */
static inline void bench_pause(unsigned *rounds)
{
    struct timespec t = { .tv_nsec = 20000 };
    if (++*rounds > 3000000)
        fail_msg("the device does not answer");
    if (*rounds < 50)
        sched_yield();
    else
        nanosleep(&t, NULL);
}

/* A disk's content as it ought to be. */
struct bench_shadow {
    uint8_t *data;
    uint64_t size;
};

static inline void bench_fill(struct bench *b, uint8_t *to, size_t n)
{
    uint64_t r = bench_random(b);
    for (size_t i = 0; i < n; i++)
        to[i] = (uint8_t)(r >> (i % 8 * 8)) ^ (uint8_t)(i >> 3);
}

#endif
