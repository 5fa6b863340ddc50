/* bytes.h, checked.h, round.h, macros.h */

#include "../check.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/macros.h"
#include "base/round.h"

static void bytes_load_and_store_unaligned(void **state)
{
    unsigned char b[9] = { 0, 1, 2, 3, 4, 5, 6, 7, 8 };

    (void)state;
    assert_int_equal(load_be16(b + 1), 0x0102);
    assert_int_equal(load_be32(b + 1), 0x01020304);
    assert_true(load_be64(b + 1) == UINT64_C(0x0102030405060708));
    assert_int_equal(load_le16(b + 1), 0x0201);
    assert_int_equal(load_le32(b + 1), 0x04030201);
    assert_true(load_le64(b + 1) == UINT64_C(0x0807060504030201));
    store_be32(b + 3, 0xaabbccdd);
    assert_int_equal(b[3], 0xaa);
    assert_int_equal(b[6], 0xdd);
    store_le64(b + 1, UINT64_C(0x1122334455667788));
    assert_int_equal(b[1], 0x88);
    assert_int_equal(b[8], 0x11);
    store_be16(b + 7, 0xbeef);
    assert_int_equal(load_be16(b + 7), 0xbeef);
}

static void checked_says_overflow(void **state)
{
    uint64_t out = 5;

    (void)state;
    assert_true(checked_add(UINT64_MAX - 1, 1, &out));
    assert_true(out == UINT64_MAX);
    assert_false(checked_add(UINT64_MAX, 1, &out));
    assert_true(out == UINT64_MAX);
    assert_true(checked_mul(UINT64_C(1) << 32, (UINT64_C(1) << 32) - 1, &out));
    assert_false(checked_mul(UINT64_C(1) << 32, UINT64_C(1) << 32, &out));
    assert_true(range_inside(10, 0, 10));
    assert_false(range_inside(11, 0, 10));
    assert_true(range_inside(0, UINT64_MAX, UINT64_MAX));
    assert_false(range_inside(2, UINT64_MAX, UINT64_MAX));
}

static void rounding_by_powers_of_two(void **state)
{
    (void)state;
    assert_int_equal(align_up(0, 512), 0);
    assert_int_equal(align_up(1, 512), 512);
    assert_int_equal(align_up(512, 512), 512);
    assert_int_equal(align_down(1023, 512), 512);
    assert_true(align_up(UINT64_MAX - 511, 512) == UINT64_MAX - 511);
    assert_true(is_aligned(1024, 512));
    assert_false(is_aligned(1025, 512));
    assert_true(is_pow2(1));
    assert_false(is_pow2(0));
    assert_false(is_pow2(6));
    assert_true(is_pow2(UINT64_C(1) << 63));
}

static void rounding_by_any_unit(void **state)
{
    uint64_t out;

    (void)state;
    assert_int_equal(round_up(0, 10), 0);
    assert_int_equal(round_up(11, 10), 20);
    assert_int_equal(round_down(19, 10), 10);
    assert_int_equal(div_round_up(21, 10), 3);
    assert_true(div_round_up(UINT64_MAX, 1) == UINT64_MAX);
    assert_true(checked_round_up(UINT64_MAX, 5, &out)); /* 5 divides it */
    assert_true(out == UINT64_MAX);
    assert_false(checked_round_up(UINT64_MAX, 512, &out));
}

static void logarithms(void **state)
{
    (void)state;
    assert_int_equal(log2_floor(1), 0);
    assert_int_equal(log2_floor(65535), 15);
    assert_int_equal(log2_floor(UINT64_MAX), 63);
    assert_int_equal(log2_ceil(1), 0);
    assert_int_equal(log2_ceil(65536), 16);
    assert_int_equal(log2_ceil(65537), 17);
    assert_int_equal(log2_ceil(UINT64_MAX), 64);
}

static void min_and_max_evaluate_once(void **state)
{
    int i = 0;

    (void)state;
    assert_int_equal(MIN(++i, 5), 1);
    assert_int_equal(i, 1);
    assert_int_equal(MAX(MIN(3, 4), MAX(1, 2)), 3);
    assert_int_equal(ARRAY_SIZE(((int[7]){ 0 })), 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_load_and_store_unaligned),
        cmocka_unit_test(checked_says_overflow),
        cmocka_unit_test(rounding_by_powers_of_two),
        cmocka_unit_test(rounding_by_any_unit),
        cmocka_unit_test(logarithms),
        cmocka_unit_test(min_and_max_evaluate_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
