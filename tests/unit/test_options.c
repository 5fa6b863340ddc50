#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../check.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/options.h"

struct sample {
    bool unused_first;
    bool flag, direct, given_size;
    uint64_t size, count;
    char *name;
    int mode;
};

static const struct opt_choice modes[] = {
    { "off", 0 },
    { "on", 1 },
    { "auto", 2 },
    { NULL, 0 },
};

static const struct opt_def table[] = {
    { .name = "flag", .type = OPT_BOOL, .at = offsetof(struct sample, flag) },
    { .name = "cache.direct", .type = OPT_BOOL, .at = offsetof(struct sample, direct) },
    { .name = "cluster_size",
      .type = OPT_SIZE,
      .at = offsetof(struct sample, size),
      .given = offsetof(struct sample, given_size),
      .def = "64k",
      .min = 512,
      .max = 2 << 20 },
    { .name = "count", .type = OPT_NUMBER, .at = offsetof(struct sample, count) },
    { .name = "name", .type = OPT_STRING, .at = offsetof(struct sample, name) },
    { .name = "mode",
      .type = OPT_ENUM,
      .at = offsetof(struct sample, mode),
      .def = "auto",
      .choices = modes },
    OPT_END,
};

static int take(const char *keyval, struct sample *out, struct error **err)
{
    _cleanup_json_ json_t *object = opts_parse_keyval(keyval, NULL, err);
    int r;

    if (!object)
        return -error_code(*err);
    *out = (struct sample){ 0 };
    r = opts_take(table, object, out, err);
    if (r == 0)
        r = opts_refuse_rest(table, object, "driver sample", err);
    return r;
}

static void assert_refused(const char *keyval, const char *words)
{
    _cleanup_error_ struct error *err = NULL;
    struct sample s;

    if (take(keyval, &s, &err) == 0)
        fail_msg("'%s' was accepted", keyval);
    if (!strstr(error_text(err), words))
        fail_msg("'%s': the sentence '%s' lacks '%s'", keyval, error_text(err), words);
}

static void defaults_apply(void **state)
{
    (void)state;
    struct sample s;

    assert_int_equal(take("", &s, NULL), 0);
    assert_int_equal(s.size, 65536);
    assert_false(s.given_size);
    assert_int_equal(s.mode, 2);
    assert_null(s.name);
    assert_false(s.flag);
}

static void every_type_is_taken(void **state)
{
    (void)state;
    struct sample s;

    assert_int_equal(
        take("flag=yes,cache.direct=on,cluster_size=1M,count=0x10,name=a,,b,mode=off", &s, NULL),
        0);
    assert_true(s.flag);
    assert_true(s.direct);
    assert_int_equal(s.size, 1 << 20);
    assert_true(s.given_size);
    assert_int_equal(s.count, 16);
    assert_string_equal(s.name, "a,b");
    assert_int_equal(s.mode, 0);
    opts_free(table, &s);
    assert_null(s.name);
}

static void json_kinds_are_taken(void **state)
{
    (void)state;
    _cleanup_json_ json_t *object = opts_parse_json(
        "{\"flag\": true, \"cache.direct\": true, \"cluster_size\": 4096, \"mode\": true}", NULL);
    struct sample s = { 0 };

    assert_non_null(object);
    assert_int_equal(opts_take(table, object, &s, NULL), 0);
    assert_int_equal(json_object_size(object), 0);
    assert_true(s.flag);
    assert_true(s.direct);
    assert_int_equal(s.size, 4096);
    assert_int_equal(s.mode, 1);
}

static void wrong_values_are_refused(void **state)
{
    (void)state;
    assert_refused("flag=maybe", "on or off");
    assert_refused("cluster_size=511", "between 512 B (512 bytes) and 2 MiB (2097152 bytes)");
    assert_refused("cluster_size=4M", "'4M'");
    assert_refused("cluster_size=big", "must be a size");
    assert_refused("cluster_size=99999999999999999999", "between");
    assert_refused("count=-1", "whole number");
    assert_refused("count=99999999999999999999", "too large");
    assert_refused("mode=sometimes", "off, on or auto");
    assert_refused("name=a,cluster_size=1", "between");
}

static void json_of_the_wrong_kind_is_refused(void **state)
{
    static const char *const bad[][2] = {
        { "{\"flag\": 1}", "on or off, not 1" },
        { "{\"cluster_size\": -1}", "not -1" },
        { "{\"cluster_size\": 1.5}", "not 1.5" },
        { "{\"cluster_size\": [1]}", "not [1]" },
        { "{\"count\": true}", "not true" },
        { "{\"name\": 5}", "must be a string, not 5" },
        { "{\"name\": null}", "must be a string, not null" },
        { "{\"mode\": 1}", "off, on or auto, not 1" },
        { "{\"cache\": {\"direct\": {}}}", "'cache.direct' must be on or off, not {}" },
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        _cleanup_error_ struct error *err = NULL;
        _cleanup_json_ json_t *object = opts_parse_json(bad[i][0], NULL);
        struct sample s = { 0 };

        assert_non_null(object);
        assert_int_equal(opts_take(table, object, &s, &err), -EINVAL);
        if (!strstr(error_text(err), bad[i][1]))
            fail_msg("'%s' lacks '%s'", error_text(err), bad[i][1]);
    }
}

static void limits_are_named_as_numbers(void **state)
{
    struct limits {
        bool unused;
        uint64_t depth, least;
    } out = { 0 };
    static const struct opt_def limits[] = {
        { .name = "depth",
          .type = OPT_NUMBER,
          .at = offsetof(struct limits, depth),
          .min = 1,
          .max = 9 },
        { .name = "least", .type = OPT_NUMBER, .at = offsetof(struct limits, least), .min = 3 },
        OPT_END,
    };
    _cleanup_error_ struct error *first = NULL, *second = NULL;
    _cleanup_json_ json_t *a = opts_parse_keyval("depth=10", NULL, NULL);
    _cleanup_json_ json_t *b = opts_parse_keyval("least=2", NULL, NULL);

    (void)state;
    assert_int_equal(opts_take(limits, a, &out, &first), -EINVAL);
    assert_string_equal(error_text(first), "option 'depth' must be between 1 and 9, not '10'");
    assert_int_equal(opts_take(limits, b, &out, &second), -EINVAL);
    assert_string_equal(error_text(second), "option 'least' must be at least 3, not '2'");
}

static void unknown_key_gets_a_suggestion(void **state)
{
    (void)state;
    assert_refused("clustersize=64k", "did you mean 'cluster_size'?");
    assert_refused("cache.dirct=on", "did you mean 'cache.direct'?");
    assert_refused("zebra=1", "driver sample: unknown option 'zebra'");
}

static void assert_json(json_t *got, const char *wanted)
{
    _cleanup_json_ json_t *object = got;
    _cleanup_free_ char *text = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS);

    assert_non_null(text);
    assert_string_equal(text, wanted);
}

static void keyval_unfolds(void **state)
{
    (void)state;
    assert_json(opts_parse_keyval("a=1,b.c=x,,y,b.d=,e", NULL, NULL),
                "{\"a\":\"1\",\"b\":{\"c\":\"x,y\",\"d\":\"\"},\"e\":\"on\"}");
    assert_json(opts_parse_keyval("disk.img,read-only", "file", NULL),
                "{\"file\":\"disk.img\",\"read-only\":\"on\"}");
    assert_json(opts_parse_keyval("a=1,a=2", NULL, NULL), "{\"a\":\"2\"}");
    assert_json(opts_parse_keyval("s.1.h=b,s.0.h=a", NULL, NULL),
                "{\"s\":[{\"h\":\"a\"},{\"h\":\"b\"}]}");
    assert_json(opts_parse_keyval("s.0=a,s.2=b", NULL, NULL), "{\"s\":{\"0\":\"a\",\"2\":\"b\"}}");
    assert_json(opts_parse_keyval("a=b=c", NULL, NULL), "{\"a\":\"b=c\"}");
    assert_json(opts_parse_keyval("", NULL, NULL), "{}");
    /* A trailing comma ends the last part; it does not begin another. */
    assert_json(opts_parse_keyval("a=1,", NULL, NULL), "{\"a\":\"1\"}");
}

static void keyval_refuses(void **state)
{
    static const char *const bad[] = {
        "a",         "=1",        "a=1,=2", "a..b=1",     ".a=1",   "a.=1",
        "a=1,a.b=2", "a.b=1,a=2", ",a=1",   "a=1,b=\xff", "\xff=1", "\xff.b=1",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        _cleanup_error_ struct error *err = NULL;

        if (opts_parse_keyval(bad[i], NULL, &err))
            fail_msg("'%s' was accepted", bad[i]);
        assert_non_null(err);
    }
}

static void deep_nesting_is_refused(void **state)
{
    char text[2 * 2000 + 3];

    (void)state;
    for (size_t i = 0; i < 2000; i++)
        memcpy(text + 2 * i, "a.", 2);
    memcpy(text + 4000, "=1", 3);
    assert_null(opts_parse_keyval(text, NULL, NULL));
    memcpy(text + 80, "b=1", 4);
    assert_null(opts_parse_keyval(text, NULL, NULL));
    memcpy(text + 40, "b=1", 4);
    _cleanup_json_ json_t *fine = opts_parse_keyval(text, NULL, NULL);
    assert_non_null(fine);
}

static void json_unfolds(void **state)
{
    (void)state;
    assert_json(
        opts_parse_json("{\"file.filename\": \"x\", \"file\": {\"locking\": \"off\"}}", NULL),
        "{\"file\":{\"filename\":\"x\",\"locking\":\"off\"}}");
    assert_json(opts_parse_json("{\"a\": {\"b.c\": [1, {\"d.e\": null}]}}", NULL),
                "{\"a\":{\"b\":{\"c\":[1,{\"d\":{\"e\":null}}]}}}");
}

static void json_refuses(void **state)
{
    static const char *const bad[] = {
        "",
        "[]",
        "1",
        "{",
        "{\"a\":1,\"a\":2}",
        "{\"a.\":1}",
        "{\"a\":1,\"a.b\":1}",
        "{\"\":1}",
        "{\"a\":\"\\u0000\"}",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        _cleanup_error_ struct error *err = NULL;

        if (opts_parse_json(bad[i], &err))
            fail_msg("'%s' was accepted", bad[i]);
        assert_non_null(err);
    }
}

static void sizes_parse(void **state)
{
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {
        { "0", 0 },
        { "4096", 4096 },
        { "64k", 65536 },
        { "64K", 65536 },
        { "64KiB", 65536 },
        { "1.5G", UINT64_C(3) << 29 },
        { "0x200", 512 },
        { "512b", 512 },
        { "1.0", 1 },
        { "2.000000000000000000000001k", 2048 },
        { "0.3k", 307 },
        { "15.999999999999999999E", UINT64_MAX - 1 },
        { "15E", UINT64_C(15) << 60 },
        { "18446744073709551615", UINT64_MAX },
        { "0xffffffffffffffff", UINT64_MAX },
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        uint64_t value = 0;

        assert_int_equal(opts_parse_size(good[i].text, &value, NULL), 0);
        if (value != good[i].value) {
            /* Eighteen digits decide; the last bits of an exabyte are not among them. */
            if (good[i].value - value > 2)
                fail_msg("'%s' gave %llu", good[i].text, (unsigned long long)value);
        }
    }
}

static void sizes_refuse(void **state)
{
    static const char *const bad[] = { "",    " 1",   "-1",   "+1",     "1 k", "1x",   "k",
                                       "1.",  ".5k",  "1.5",  "1.5b",   "0x",  "0x1k", "1kk",
                                       "1kB", "1biB", "1e3k", "1.2.3k", "1k ", "NaN",  "inf" };
    static const char *const large[] = { "16E", "18446744073709551616", "0x10000000000000000",
                                         "99999999999999999999999", "17179869184G" };
    uint64_t value;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        if (opts_parse_size(bad[i], &value, NULL) != -EINVAL)
            fail_msg("'%s' was accepted", bad[i]);
    for (size_t i = 0; i < ARRAY_SIZE(large); i++)
        if (opts_parse_size(large[i], &value, NULL) != -ERANGE)
            fail_msg("'%s' was accepted", large[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_apply),
        cmocka_unit_test(every_type_is_taken),
        cmocka_unit_test(json_kinds_are_taken),
        cmocka_unit_test(wrong_values_are_refused),
        cmocka_unit_test(json_of_the_wrong_kind_is_refused),
        cmocka_unit_test(limits_are_named_as_numbers),
        cmocka_unit_test(unknown_key_gets_a_suggestion),
        cmocka_unit_test(keyval_unfolds),
        cmocka_unit_test(keyval_refuses),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(json_unfolds),
        cmocka_unit_test(json_refuses),
        cmocka_unit_test(sizes_parse),
        cmocka_unit_test(sizes_refuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
