/* tame.h: what text out of an image may do to a terminal. */
#include "../check.h"
#include "tame.h"

static void control_characters_become_question_marks(void **state)
{
    char text[] = "a\x1b[31m\r\x7f\tb\n";

    (void)state;
    tame(text, "\n\t");
    assert_string_equal(text, "a?[31m??\tb\n");
    tame(text, "");
    assert_string_equal(text, "a?[31m???b?");
    tame(NULL, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(control_characters_become_question_marks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
