#include <errno.h>
#include <string.h>

#include "../check.h"
#include "base/iov.h"

/* "abcdefghij" in pieces of 3, 0, 1, 6. */
struct pieces {
    char a[3], c[1], d[6];
    struct iovec iov[4];
};

static void cut(struct pieces *p)
{
    memcpy(p->a, "abc", 3);
    memcpy(p->c, "d", 1);
    memcpy(p->d, "efghij", 6);
    p->iov[0] = (struct iovec){ p->a, 3 };
    p->iov[1] = (struct iovec){ NULL, 0 };
    p->iov[2] = (struct iovec){ p->c, 1 };
    p->iov[3] = (struct iovec){ p->d, 6 };
}

static void reading_crosses_pieces(void **state)
{
    struct pieces p;
    char flat[11] = "";

    (void)state;
    cut(&p);
    assert_int_equal(iov_length(p.iov, 4), 10);
    struct iov_cursor c = iov_begin(p.iov, 4);
    iov_read(&c, flat, 2);
    iov_read(&c, flat + 2, 3);
    iov_skip(&c, 1);
    iov_read(&c, flat + 5, 4);
    assert_memory_equal(flat, "abcdeghij", 9);
}

static void writing_and_filling(void **state)
{
    struct pieces p;
    char flat[10];

    (void)state;
    cut(&p);
    struct iov_cursor c = iov_begin(p.iov, 4);
    iov_skip(&c, 1);
    iov_write(&c, "12345", 5);
    iov_fill(&c, 0, 3);
    c = iov_begin(p.iov, 4);
    iov_read(&c, flat, 10);
    assert_memory_equal(flat, "a12345\0\0\0j", 10);
    c = iov_begin(p.iov, 4);
    iov_skip(&c, 6);
    assert_true(iov_is_zero(&c, 3));
    assert_false(iov_is_zero(&c, 1));
}

static void slices_share_the_memory(void **state)
{
    struct pieces p;
    struct iovec out[4];

    (void)state;
    cut(&p);
    struct iov_cursor c = iov_begin(p.iov, 4);
    iov_skip(&c, 2);
    assert_int_equal(iov_slice(&c, 4, out, 2), -E2BIG);
    assert_int_equal(iov_slice(&c, 4, out, 4), 3);
    assert_ptr_equal(out[0].iov_base, p.a + 2);
    assert_int_equal(out[0].iov_len, 1);
    assert_ptr_equal(out[1].iov_base, p.c);
    assert_ptr_equal(out[2].iov_base, p.d);
    assert_int_equal(out[2].iov_len, 2);
    assert_int_equal(iov_slice(&c, 4, out, 1), 1);
    assert_ptr_equal(out[0].iov_base, p.d + 2);
    assert_int_equal(iov_slice(&c, 0, out, 0), 0);

    uint64_t n = 10;
    c = iov_begin(p.iov, 4);
    assert_int_equal(iov_slice_some(&c, &n, out, 2), 2);
    assert_int_equal(n, 4);
    n = 3;
    assert_int_equal(iov_slice_some(&c, &n, out, 2), 1);
    assert_int_equal(n, 3);
    assert_ptr_equal(out[0].iov_base, p.d);
}

static void alignment_is_of_address_and_length(void **state)
{
    static char memory[1024] __attribute__((aligned(512)));
    struct iovec iov[2] = { { memory, 512 }, { memory + 512, 512 } };

    (void)state;
    assert_true(iov_is_aligned(iov, 2, 512));
    iov[1].iov_len = 511;
    assert_false(iov_is_aligned(iov, 2, 512));
    iov[1] = (struct iovec){ memory + 1, 512 };
    assert_false(iov_is_aligned(iov, 2, 512));
    assert_true(iov_is_aligned(iov, 2, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reading_crosses_pieces),
        cmocka_unit_test(writing_and_filling),
        cmocka_unit_test(slices_share_the_memory),
        cmocka_unit_test(alignment_is_of_address_and_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
