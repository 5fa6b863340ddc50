#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/iszero.h"

static void one_byte_anywhere_is_seen(void **state)
{
    /* Allocated to the length, so that the address sanitizer sees a read too far. */
    (void)state;
    for (size_t len = 0; len <= 1100; len += len < 300 ? 1 : 37) {
        for (size_t shift = 0; shift < 3; shift++) {
            unsigned char *p = calloc(1, len + shift);

            assert_true(p || len + shift == 0);
            assert_true(is_zero(p + shift, len));
            for (size_t i = 0; i < len; i++) {
                p[shift + i] = 1;
                if (is_zero(p + shift, len))
                    fail_msg("byte %zu of %zu was overlooked", i, len);
                p[shift + i] = 0;
            }
            free(p);
        }
    }
}

static void what_lies_outside_does_not_count(void **state)
{
    unsigned char buf[600];

    (void)state;
    memset(buf, 0xff, sizeof(buf));
    memset(buf + 33, 0, 513);
    assert_true(is_zero(buf + 33, 513));
    assert_false(is_zero(buf + 32, 513));
    assert_false(is_zero(buf + 34, 513));
}

static void runs_are_of_one_kind(void **state)
{
    unsigned char buf[1000] = { 0 };
    bool zero;

    (void)state;
    assert_int_equal(zero_run(buf, 1000, 100, &zero), 1000);
    assert_true(zero);
    buf[250] = 1;
    assert_int_equal(zero_run(buf, 1000, 100, &zero), 200);
    assert_true(zero);
    assert_int_equal(zero_run(buf + 200, 800, 100, &zero), 100);
    assert_false(zero);
    assert_int_equal(zero_run(buf + 300, 150, 100, &zero), 150);
    assert_true(zero);
    buf[999] = 1;
    assert_int_equal(zero_run(buf + 950, 50, 100, &zero), 50);
    assert_false(zero);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_byte_anywhere_is_seen),
        cmocka_unit_test(what_lies_outside_does_not_count),
        cmocka_unit_test(runs_are_of_one_kind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
