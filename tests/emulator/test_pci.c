/* Configuration space, BARs, pins and messages of a function on the root bus. */
#include "base/error.h"
#include "cpu/memory.h"
#include "devices/pci.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct {
    uint64_t address;
    uint32_t data;
    unsigned messages;
    bool pin;
    int ports;
} seen;

static int map_ports(void *opaque, uint16_t port, uint32_t size, const struct memory_io *io,
                     void *device)
{
    (void)opaque, (void)size, (void)io, (void)device;
    seen.ports = port;
    return 0;
}

static void unmap_ports(void *opaque, uint16_t port)
{
    (void)opaque, (void)port;
    seen.ports = -1;
}

static void interrupt(void *opaque, unsigned device, unsigned pin, bool up)
{
    (void)opaque;
    assert_int_equal(device, 3);
    assert_int_equal(pin, 0);
    seen.pin = up;
}

static void message(void *opaque, uint64_t address, uint32_t data)
{
    (void)opaque;
    seen.address = address;
    seen.data = data;
    seen.messages++;
}

static uint64_t read_io(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque, (void)size;
    return offset;
}

static void write_io(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque, (void)offset, (void)size, (void)value;
}

static const struct memory_io io = { read_io, write_io };

struct bench {
    struct memory *memory;
    struct pci_bus *bus;
    struct pci_function f;
    uint8_t *ram;
};

enum { DEVFN = 3 << 3 };

static void setup(struct bench *b)
{
    static const struct pci_identity id = { .vendor = 0x1af4,
                                            .device = 0x1042,
                                            .class_code = 0x010802,
                                            .interrupt = true,
                                            .express = true };
    memset(&seen, 0, sizeof seen);
    *b = (struct bench){ .memory = memory_new(), .ram = aligned_alloc(4096, 8192) };
    assert_int_equal(memory_add_ram(b->memory, 0, 8192, b->ram, 0), 0);
    struct pci_host host = { .memory = b->memory,
                             .map_ports = map_ports,
                             .unmap_ports = unmap_ports,
                             .interrupt = interrupt,
                             .message = message };
    b->bus = pci_bus_new(&host);
    assert_int_equal(pci_add(b->bus, &b->f, &id, "3", NULL), 0);
    assert_int_equal(pci_bar_memory(&b->f, 0, 16384, PCI_BAR_64, &io, NULL), 0);
    assert_int_equal(pci_bar_ports(&b->f, 2, 64, &io, NULL), 0);
    assert_int_equal(pci_msix(&b->f, 3, 4), 0);
    assert_int_equal(pci_msi(&b->f, 2), 0);
}

static void teardown(struct bench *b)
{
    pci_remove(&b->f);
    pci_bus_free(b->bus);
    memory_free(b->memory);
    free(b->ram);
}

static void put(struct bench *b, unsigned offset, unsigned size, uint32_t value)
{
    pci_config_write(b->bus, DEVFN, offset, size, value);
}

static uint32_t get(struct bench *b, unsigned offset, unsigned size)
{
    return pci_config_read(b->bus, DEVFN, offset, size);
}

static unsigned capability(struct bench *b, uint8_t id)
{
    unsigned at = get(b, 0x34, 1);
    while (at && get(b, at, 1) != id)
        at = get(b, at + 1, 1);
    assert_true(at);
    return at;
}

static void test_bars_are_sized_and_mapped(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    put(&b, 0x10, 4, 0xffffffff);
    put(&b, 0x14, 4, 0xffffffff);
    assert_int_equal(get(&b, 0x10, 4), 0xffffc004);
    assert_int_equal(get(&b, 0x14, 4), 0xffffffff);
    put(&b, 0x18, 4, 0xffffffff);
    assert_int_equal(get(&b, 0x18, 4), 0xffffffc1);
    put(&b, 0x10, 4, 0x80000000);
    put(&b, 0x14, 4, 2);
    put(&b, 0x18, 4, 0xc000);
    uint8_t byte = 0;
    memory_read(b.memory, 0x280000042, &byte, 1);
    assert_int_equal(byte, 0xff);
    put(&b, 4, 2, 3);
    memory_read(b.memory, 0x280000042, &byte, 1);
    assert_int_equal(byte, 0x42);
    assert_int_equal(seen.ports, 0xc000);
    pci_reset(&b.f);
    memory_read(b.memory, 0x280000042, &byte, 1);
    assert_int_equal(byte, 0xff);
    assert_int_equal(seen.ports, -1);
    assert_int_equal(get(&b, 0x10, 4), 4);
    teardown(&b);
}

static void test_msix_masks_and_sends(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    unsigned c = capability(&b, 0x11);
    put(&b, 0x1c, 4, 0xf0000000);
    put(&b, 4, 2, 6);
    uint64_t address = 0xfee01000;
    uint32_t data = 0x41, control = 0;
    memory_write(b.memory, 0xf0000010, &address, 8);
    memory_write(b.memory, 0xf0000018, &data, 4);
    assert_false(pci_notify(&b.f, 1));
    put(&b, c + 2, 2, 0x8000);
    assert_true(pci_msix_on(&b.f));
    assert_true(pci_notify(&b.f, 1));
    assert_int_equal(seen.messages, 0); /* the entry is masked */
    uint8_t pending;
    memory_read(b.memory, 0xf0000800, &pending, 1);
    assert_int_equal(pending, 2);
    memory_write(b.memory, 0xf000001c, &control, 4);
    assert_int_equal(seen.messages, 1);
    assert_int_equal(seen.address, 0xfee01000);
    assert_int_equal(seen.data, 0x41);
    assert_true(pci_notify(&b.f, 77)); /* no such vector: nothing happens */
    assert_int_equal(seen.messages, 1);
    teardown(&b);
}

static void test_msi_sends_its_vectors(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    unsigned c = capability(&b, 5);
    put(&b, 4, 2, 4);
    put(&b, c + 4, 4, 0xfee00000);
    put(&b, c + 12, 2, 0x30);
    put(&b, c + 2, 2, 0x11);
    put(&b, c + 16, 4, 2);
    assert_true(pci_notify(&b.f, 0));
    assert_int_equal(seen.data, 0x30);
    assert_true(pci_notify(&b.f, 1));
    assert_int_equal(seen.messages, 1);
    put(&b, c + 16, 4, 0);
    assert_int_equal(seen.messages, 2);
    assert_int_equal(seen.data, 0x31);
    teardown(&b);
}

static void test_the_pin_is_silent_when_told(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    pci_pin(&b.f, true);
    assert_true(seen.pin);
    assert_int_equal(get(&b, 6, 1) & 8, 8);
    put(&b, 4, 2, 0x400);
    assert_false(seen.pin);
    put(&b, 4, 2, 0);
    assert_true(seen.pin);
    put(&b, capability(&b, 5) + 2, 2, 1);
    assert_false(seen.pin);
    teardown(&b);
}

static void test_dma_needs_leave_and_ram(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    char word[8] = "platter";
    assert_int_equal(pci_dma_write(&b.f, 0x10, word, 8), -EFAULT);
    put(&b, 4, 2, 4);
    assert_int_equal(pci_dma_write(&b.f, 0x10, word, 8), 0);
    assert_string_equal((char *)b.ram + 0x10, "platter");
    assert_int_equal(pci_dma_read(&b.f, 8188, word, 8), -EFAULT);
    assert_int_equal(pci_dma_read(&b.f, UINT64_MAX - 2, word, 8), -EFAULT);
    teardown(&b);
}

static void test_addresses_are_checked(void **state)
{
    (void)state;
    struct bench b;
    setup(&b);
    static const struct pci_identity id = { .vendor = 0x1234, .device = 1 };
    static const char *const wrong[] = { "3", "20", "4.8", "", "x", "4.", "4.1x" };
    struct pci_function f = { 0 };
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct error *err = NULL;
        assert_true(pci_add(b.bus, &f, &id, wrong[i], &err) < 0);
        error_free(err);
    }
    assert_int_equal(pci_add(b.bus, &f, &id, NULL, NULL), 0);
    assert_int_equal(f.devfn, 0);
    assert_int_equal(pci_config_read(b.bus, 0, 0x100, 4), UINT32_MAX); /* no Express function */
    assert_int_equal(pci_config_read(b.bus, DEVFN, 0x100, 4), 0);
    assert_int_equal(pci_config_read(b.bus, 0x80, 0, 4), UINT32_MAX);
    pci_remove(&f);
    teardown(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bars_are_sized_and_mapped),
        cmocka_unit_test(test_msix_masks_and_sends),
        cmocka_unit_test(test_msi_sends_its_vectors),
        cmocka_unit_test(test_the_pin_is_silent_when_told),
        cmocka_unit_test(test_dma_needs_leave_and_ram),
        cmocka_unit_test(test_addresses_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
