/* -cpu strings: what CPUID says in the end, and what is refused. */
#include "x86/state.h"

#include "base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const struct x86_bus bus;

/* Register `n` of a leaf, for a CPU of this description. */
static uint32_t ask(const char *text, uint32_t leaf, unsigned n)
{
    struct memory *memory = memory_new();
    struct error *err = NULL;
    struct x86 *c = x86_new(memory, &bus, NULL, text, 0, &err);
    if (!c)
        fail_msg("%s", error_text(err));
    uint32_t out[4];
    x86_cpuid(c, leaf, 0, out);
    x86_free(c);
    memory_free(memory);
    return out[n];
}

static void refused(const char *text, const char *word)
{
    struct memory *memory = memory_new();
    struct error *err = NULL;
    assert_null(x86_new(memory, &bus, NULL, text, 0, &err));
    assert_non_null(strstr(error_text(err), word));
    error_free(err);
    memory_free(memory);
}

static void test_every_model_listed_is_made(void **state)
{
    (void)state;
    const char *brand;
    size_t n = 0;
    for (const char *name; (name = x86_model_name(n, &brand)) != NULL; n++)
        assert_true(ask(name, 1, 3) & 1);
    assert_true(n > 4);
}

static void test_features_go_and_come(void **state)
{
    (void)state;
    enum { SSE42 = 1 << 20, AES = 1 << 25 };
    assert_true(ask("Westmere", 1, 2) & AES);
    assert_false(ask("Nehalem", 1, 2) & AES);
    assert_true(ask("Nehalem,+aes", 1, 2) & AES);
    assert_true(ask("Nehalem,aes=on", 1, 2) & AES);
    assert_false(ask("Westmere,-aes", 1, 2) & AES);
    assert_false(ask("max,sse4.2=off", 1, 2) & SSE42);
    assert_false(ask("max,-sse4_2", 1, 2) & SSE42);
    assert_false(ask("max,-avx,-something", 1, 2) & 1 << 28);
}

static void test_numbers(void **state)
{
    (void)state;
    assert_int_equal(ask("qemu64,family=6,model=0x2a,stepping=7", 1, 0), 0x206a7);
    assert_int_equal(ask("qemu64", 1, 0), 0x60fb1);
    assert_int_equal(ask("qemu64,vendor=GenuineIntel", 0, 1), 0x756e6547);
}

static void test_what_is_not_there_is_refused(void **state)
{
    (void)state;
    refused("SomethingLake", "SomethingLake");
    refused("max,+avx512f", "avx512f");
    refused("max,aes=perhaps", "perhaps");
    refused("max,family=1000", "1000");
    refused("max,vendor=short", "short");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_model_listed_is_made),
        cmocka_unit_test(test_features_go_and_come),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_what_is_not_there_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
