/* vector.h, bitmap.h, strbuf.h */
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/bitmap.h"
#include "base/strbuf.h"
#include "base/vector.h"

static void vector_grows_inserts_removes(void **state)
{
    VECTOR(int) v = VECTOR_INIT;

    (void)state;
    for (int i = 0; i < 1000; i++)
        assert_int_equal(vector_push(&v, i), 0);
    assert_int_equal(vector_insert(&v, 0, -1), 0);
    assert_int_equal(vector_insert(&v, v.len, 1000), 0);
    assert_int_equal(v.len, 1002);
    for (size_t i = 0; i < v.len; i++)
        assert_int_equal(v.at[i], (int)i - 1);
    vector_remove(&v, 1);
    assert_int_equal(v.at[0], -1);
    assert_int_equal(v.at[1], 1);
    assert_int_equal(v.len, 1001);
    vector_free(&v);
    assert_null(v.at);
}

static void vector_refuses_overflow(void **state)
{
    VECTOR(uint64_t) v = VECTOR_INIT;

    (void)state;
    assert_int_equal(vector_reserve(&v, SIZE_MAX), -ENOMEM);
    assert_int_equal(vector_reserve(&v, SIZE_MAX / 8), -ENOMEM);
    assert_int_equal(v.cap, 0);
    assert_int_equal(vector_reserve(&v, 0), 0);
    vector_free(&v);
}

static void bitmap_agrees_with_bytes(void **state)
{
    enum { BITS = 517 };
    unsigned char shadow[BITS] = { 0 };
    struct bitmap map;
    uint64_t count = 0;

    (void)state;
    assert_int_equal(bitmap_init(&map, BITS), 0);
    srand(1);
    for (int round = 0; round < 2000; round++) {
        unsigned from = (unsigned)rand() % (BITS + 1);
        unsigned n = (unsigned)rand() % (BITS + 1 - from);
        int set = rand() % 2;

        n %= round % 2 ? 70u : BITS;
        (set ? bitmap_set_range : bitmap_clear_range)(&map, from, n);
        memset(shadow + from, set, n);

        unsigned at = (unsigned)rand() % BITS;
        unsigned next_set = at, next_clear = at;

        while (next_set < BITS && !shadow[next_set])
            next_set++;
        while (next_clear < BITS && shadow[next_clear])
            next_clear++;
        assert_int_equal(bitmap_next_set(&map, at), next_set);
        assert_int_equal(bitmap_next_clear(&map, at), next_clear);
        assert_int_equal(bitmap_test(&map, at), shadow[at]);
    }
    for (int i = 0; i < BITS; i++)
        count += shadow[i];
    assert_int_equal(bitmap_count(&map), count);
    assert_int_equal(bitmap_next_set(&map, BITS + 10), BITS);
    bitmap_free(&map);
}

static void bitmap_single_bits(void **state)
{
    struct bitmap map;

    (void)state;
    assert_int_equal(bitmap_init(&map, 64), 0);
    bitmap_set(&map, 63);
    assert_int_equal(bitmap_next_set(&map, 0), 63);
    bitmap_clear(&map, 63);
    assert_int_equal(bitmap_next_set(&map, 0), 64);
    assert_int_equal(bitmap_count(&map), 0);
    bitmap_free(&map);
    assert_int_equal(bitmap_init(&map, 0), 0);
    assert_int_equal(bitmap_next_clear(&map, 0), 0);
    bitmap_free(&map);
}

static void strbuf_appends(void **state)
{
    struct strbuf buf = STRBUF_INIT;
    char *s;

    (void)state;
    assert_string_equal(strbuf_text(&buf), "");
    for (int i = 0; i < 100; i++)
        strbuf_addf(&buf, "%d,", i);
    strbuf_add(&buf, "end");
    strbuf_addc(&buf, '.');
    strbuf_addn(&buf, "xyz", 2);
    assert_int_equal(buf.len, strlen(strbuf_text(&buf)));
    s = strbuf_take(&buf);
    assert_string_equal(s + strlen(s) - 9, "99,end.xy");
    assert_int_equal(buf.len, 0);
    free(s);
    s = strbuf_take(&buf);
    assert_string_equal(s, "");
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vector_grows_inserts_removes),
        cmocka_unit_test(vector_refuses_overflow),
        cmocka_unit_test(bitmap_agrees_with_bytes),
        cmocka_unit_test(bitmap_single_bits),
        cmocka_unit_test(strbuf_appends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
