#include <errno.h>

#include "../check.h"
#include "base/error.h"

static void set_returns_negative_code(void **state)
{
    (void)state;
    _cleanup_error_ struct error *err = NULL;

    assert_int_equal(error_set(&err, EINVAL, "field '%s' is %d", "x", 7), -EINVAL);
    assert_string_equal(error_text(err), "field 'x' is 7");
    assert_int_equal(error_code(err), EINVAL);
}

static void first_sentence_stays(void **state)
{
    (void)state;
    _cleanup_error_ struct error *err = NULL;

    error_set(&err, ENOSPC, "first");
    assert_int_equal(error_set(&err, EIO, "second"), -EIO);
    assert_string_equal(error_text(err), "first");
    assert_int_equal(error_code(err), ENOSPC);
}

static void prefix_goes_in_front(void **state)
{
    (void)state;
    _cleanup_error_ struct error *err = NULL;

    error_prefix(&err, "nothing yet");
    assert_null(err);
    error_set(&err, EIO, "cause");
    error_prefix(&err, "inner %d", 1);
    error_prefix(&err, "outer");
    assert_string_equal(error_text(err), "outer: inner 1: cause");
}

static void control_characters_do_not_reach_a_terminal(void **state)
{
    (void)state;
    _cleanup_error_ struct error *err = NULL;

    error_set(&err, EIO, "%s", "a\x1b[2J\n\tb\x7f \xc3\xa4");
    error_prefix(&err, "%s", "\x07x");
    assert_string_equal(error_text(err), "?x: a?[2J\n\tb? \xc3\xa4");
}

static void nobody_asking_is_fine(void **state)
{
    (void)state;
    assert_int_equal(error_set(NULL, EPERM, "unseen"), -EPERM);
    error_prefix(NULL, "unseen");
    assert_int_equal(error_code(NULL), 0);
    assert_non_null(error_text(NULL));
    error_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(set_returns_negative_code),
        cmocka_unit_test(first_sentence_stays),
        cmocka_unit_test(prefix_goes_in_front),
        cmocka_unit_test(control_characters_do_not_reach_a_terminal),
        cmocka_unit_test(nobody_asking_is_fine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
