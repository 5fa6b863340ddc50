/* A simple loop, and how many of its instructions we do in a second: printed, not judged. */
#include "long_guest.h"

#include <stdio.h>
#include <time.h>

static void test_loop(void **state)
{
    (void)state;
    /* mov $100000000, %ecx; 1: add %rcx, %rax; mov %rax, (%rbx); xor (%rbx), %rdx; dec %ecx; jnz 1b; int3 */
    static const uint8_t code[] = { 0xb9, 0x00, 0x2d, 0x31, 0x01, 0x48, 0x01, 0xc8, 0x48, 0x89,
                                    0x03, 0x48, 0x33, 0x13, 0xff, 0xc9, 0x75, 0xf3, 0xcc };
    enum { AT = 0x10000000 };
    struct long_guest g = long_guest_new(3);
    uint8_t *ram = aligned_alloc(4096, 8192);
    memset(ram, 0, 8192);
    memcpy(ram, code, sizeof code);
    assert_int_equal(memory_add_ram(g.memory, AT, 8192, ram, 0), 0);
    long_guest_map(&g, AT, 7);
    long_guest_map(&g, AT + 4096, 7);
    g.cpu->cpu.r[IR_PC] = AT;
    g.cpu->cpu.r[RBX] = AT + 4096;
    struct timespec a, b;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    x86_run(g.cpu);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    double s = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
    print_message("%.0f million instructions a second\n",
                  (double)g.cpu->cpu.instructions / s / 1e6);
    assert_int_equal(g.cpu->cpu.r[RCX], 0);
    long_guest_free(&g);
    free(ram);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_loop) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
