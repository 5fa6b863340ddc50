/* Two CPUs on two threads: LOCK and XCHG are atomic among them. */
#include "long_guest.h"

#include <pthread.h>

enum { AT = 0x10000000, ROUNDS = 300000 };

static void *run(void *cpu)
{
    x86_run(cpu);
    return NULL;
}

/* The second CPU shares memory and tables with the first. */
static struct x86 *another(const struct long_guest *g)
{
    struct x86 *c = x86_new(g->memory, &no_bus, NULL, "max", 1, NULL);
    assert_non_null(c);
    c->cpu.guest = &caught_guest;
    c->cr0 = g->cpu->cr0;
    c->cr3 = g->cpu->cr3;
    c->cr4 = g->cpu->cr4;
    c->efer = g->cpu->efer;
    c->idt_limit = 0;
    for (unsigned s = ES; s <= DS; s++)
        seg_set(c, s, g->cpu->seg[s].selector, 0, 0xffffffff, g->cpu->seg[s].attr);
    return c;
}

static void test_locked_increment(void **state)
{
    (void)state;
    /* mov $ROUNDS, %ecx; 1: lock incq (%rbx); mov $1, %eax; lock xadd %eax, 8(%rbx); dec %ecx; jnz 1b; int3 */
    static const uint8_t code[] = { 0xb9, 0xe0, 0x93, 0x04, 0x00, 0xf0, 0x48, 0xff,
                                    0x03, 0xb8, 1,    0,    0,    0,    0xf0, 0x0f,
                                    0xc1, 0x43, 0x08, 0xff, 0xc9, 0x75, 0xee, 0xcc };
    struct long_guest g = long_guest_new(3);
    uint8_t *ram = aligned_alloc(4096, 8192);
    memset(ram, 0, 8192);
    memcpy(ram, code, sizeof code);
    assert_int_equal(memory_add_ram(g.memory, AT, 8192, ram, 0), 0);
    long_guest_map(&g, AT, 7);
    long_guest_map(&g, AT + 4096, 7);
    struct x86 *cpus[2] = { g.cpu, another(&g) };
    pthread_t threads[2];
    for (unsigned n = 0; n < 2; n++) {
        cpus[n]->cpu.r[IR_PC] = AT;
        cpus[n]->cpu.r[RBX] = AT + 4096;
        assert_int_equal(pthread_create(&threads[n], NULL, run, cpus[n]), 0);
    }
    for (unsigned n = 0; n < 2; n++)
        pthread_join(threads[n], NULL);
    uint64_t counts[2];
    memcpy(counts, ram + 4096, sizeof counts);
    assert_int_equal(counts[0], 2 * ROUNDS);
    assert_int_equal(counts[1], 2 * ROUNDS);
    x86_free(cpus[1]);
    long_guest_free(&g);
    free(ram);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_locked_increment) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
