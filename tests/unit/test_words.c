/* human.h, distance.h: what people read. */

#include "../check.h"
#include "base/distance.h"
#include "base/human.h"

static void sizes_as_qemu_img_prints_them(void **state)
{
    (void)state;
    assert_string_equal(human_size(0).s, "0 B");
    assert_string_equal(human_size(7).s, "7 B");
    assert_string_equal(human_size(999).s, "999 B");
    assert_string_equal(human_size(1000).s, "0.977 KiB");
    assert_string_equal(human_size(1024).s, "1 KiB");
    assert_string_equal(human_size(200704).s, "196 KiB");
    assert_string_equal(human_size(UINT64_C(3) << 39).s, "1.5 TiB");
    assert_string_equal(human_size(UINT64_C(1000) << 20).s, "0.977 GiB");
    assert_string_equal(human_size(UINT64_MAX).s, "16 EiB");
    assert_string_equal(human_size_exact(UINT64_C(20) << 30).s, "20 GiB (21474836480 bytes)");
}

static void distances(void **state)
{
    (void)state;
    assert_int_equal(edit_distance("", ""), 0);
    assert_int_equal(edit_distance("", "abc"), 3);
    assert_int_equal(edit_distance("abc", ""), 3);
    assert_int_equal(edit_distance("convert", "convrt"), 1);
    assert_int_equal(edit_distance("convert", "covnert"), 1);
    assert_int_equal(edit_distance("kitten", "sitting"), 3);
    assert_int_equal(edit_distance("Cluster-Size", "cluster_size"), 0);
    assert_int_equal(
        edit_distance("a123456789012345678901234567890123456789012345678901234567890123", "a"), 64);
}

static const char *nearest_of(const char *wanted)
{
    struct nearest best = nearest_begin(wanted);

    nearest_try(&best, "convert");
    nearest_try(&best, "compare");
    nearest_try(&best, "dd");
    nearest_try(&best, "info");
    return best.name;
}

static void nearest_word(void **state)
{
    (void)state;
    assert_string_equal(nearest_of("covert"), "convert");
    assert_string_equal(nearest_of("inof"), "info");
    assert_string_equal(nearest_of("d"), "dd");
    assert_null(nearest_of("xyzzy"));
    assert_null(nearest_of("q"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_as_qemu_img_prints_them),
        cmocka_unit_test(distances),
        cmocka_unit_test(nearest_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
