/* A guest assembled from modes.S goes through all modes and says a letter for each step. */
#include "x86/x86.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

struct machine {
    struct x86 *cpu;
    char said[64];
    unsigned n;
};

static void out(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct machine *m = opaque;
    (void)size;
    if (port == 0xe9 && m->n < sizeof m->said - 1)
        m->said[m->n++] = (char)value;
    else if (port == 0xf4)
        cpu_stop(x86_cpu(m->cpu));
    else if (port == 0xf0)
        cpu_line(x86_cpu(m->cpu), true);
}

static int acknowledge(void *opaque, unsigned cpu)
{
    struct machine *m = opaque;
    (void)cpu;
    cpu_line(x86_cpu(m->cpu), false);
    return 0x40;
}

static const struct x86_bus bus = { .out = out, .acknowledge = acknowledge };

static uint8_t *assemble(void)
{
    char folder[] = "/tmp/platter-modes-XXXXXX", command[1024];
    uint8_t *rom = aligned_alloc(4096, 0x10000);
    assert_non_null(mkdtemp(folder));
    snprintf(command, sizeof command,
             "as -o %s/a.o %s/modes.S && ld -Ttext 0xffff0000 --oformat binary -o %s/a.bin %s/a.o",
             folder, SOURCES, folder, folder);
    int ret = system(command);
    snprintf(command, sizeof command, "%s/a.bin", folder);
    FILE *f = ret ? NULL : fopen(command, "rb");
    size_t n = f ? fread(rom, 1, 0x10000, f) : 0;
    if (f)
        fclose(f);
    snprintf(command, sizeof command, "rm -r %s", folder);
    ret = system(command);
    if (n != 0x10000 || ret) {
        free(rom);
        return NULL;
    }
    return rom;
}

static void test_modes(void **state)
{
    (void)state;
    uint8_t *rom = assemble();
    if (!rom) {
        print_message("no assembler\n");
        skip();
    }
    enum { RAM = 8 << 20 };
    uint8_t *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct memory *memory = memory_new();
    struct machine m = { 0 };
    assert_int_equal(memory_add_ram(memory, 0, RAM, ram, 0), 0);
    assert_int_equal(memory_add_ram(memory, 0xf0000, 0x10000, rom, MEMORY_ROM), 0);
    assert_int_equal(memory_add_ram(memory, 0xffff0000, 0x10000, rom, MEMORY_ROM), 0);
    m.cpu = x86_new(memory, &bus, &m, NULL, 0, NULL);
    assert_non_null(m.cpu);
    enum cpu_exit exit = x86_run(m.cpu);
    if (exit != CPU_EXIT_STOPPED)
        print_message("said %s, then a triple fault\n", m.said);
    assert_string_equal(m.said, "RCISSPLFQUCG");
    assert_int_equal(exit, CPU_EXIT_STOPPED);
    x86_free(m.cpu);
    memory_free(memory);
    munmap(ram, RAM);
    free(rom);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_modes) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
