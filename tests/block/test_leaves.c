/* null, memory, throttle and raw, through the public interface. */
#include <errno.h>
#include <time.h>

#include "scratch.h"

enum { RW = BLK_OPEN_RDWR, RWU = BLK_OPEN_RDWR | BLK_OPEN_UNMAP };

static void assert_opts_refused(const char *opts, const char *words)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_open_args args = { .image_opts = true, .flags = RW };

    if (try_open(opts, &args, &err))
        fail_msg("%s was opened", opts);
    if (!strstr(error_text(err), words))
        fail_msg("'%s' lacks '%s'", error_text(err), words);
}

/* ---- null ----------------------------------------------------------------------------------- */

static void null_swallows(void **state)
{
    struct blk_node *n = must_open_opts("driver=null-co,size=1T,read-zeroes=on", RW);

    (void)state;
    assert_int_equal(blk_size(n), UINT64_C(1) << 40);
    write_bytes(n, 12345, 678, 9);
    assert_bytes(n, 12345, 678, 0);
    assert_int_equal(blk_zero(n, 0, UINT64_C(1) << 40, 0), 0);
    assert_int_equal(blk_flush(n), 0);
    must_close(n);
    must_close(must_open_opts("driver=null-aio", 0));
}

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void null_takes_its_time(void **state)
{
    struct blk_node *n = must_open_opts("driver=null-co,latency-ns=20000000", RW);
    double start = seconds();
    char c;

    (void)state;
    assert_int_equal(blk_read(n, 0, &c, 1, BLK_NOWAIT), -EAGAIN);
    write_bytes(n, 0, 1, 1);
    assert_int_equal(blk_read(n, 0, &c, 1, 0), 0);
    assert_true(seconds() - start >= 0.04);
    must_close(n);
}

static void null_of_any_size(void **state)
{
    struct blk_node *n = must_open_opts("driver=null-co,size=10", RWU);
    struct blk_extent e;
    struct blk_info info;

    (void)state;
    assert_int_equal(blk_resize(n, 1000, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(blk_size(n), 1000);
    assert_int_equal(blk_discard(n, 0, 1000), 0);
    assert_int_equal(blk_extents(n, 0, 1000, 0, &e), 0);
    assert_true(e.flags & BLK_EXT_DATA);
    assert_int_equal(blk_info(n, &info, NULL), 0);
    assert_true(info.actual_size_known && info.actual_size == 0);
    blk_info_free(&info);
    must_close(n);
}

/* ---- memory --------------------------------------------------------------------------------- */

static void memory_agrees_with_a_shadow(void **state)
{
    enum { SIZE = 1 << 20 };
    struct blk_node *n = must_open_opts("driver=memory,size=1M", RWU);
    static unsigned char shadow[SIZE], buf[SIZE];

    (void)state;
    srand(3);
    for (int i = 0; i < 3000; i++) {
        size_t off = (size_t)rand() % SIZE, len = 1 + (size_t)rand() % (SIZE - off);

        len = i % 4 ? len % 70000 + 1 : len;
        len = len > SIZE - off ? SIZE - off : len;
        switch (rand() % 3) {
        case 0:
            memset(shadow + off, i, len);
            assert_int_equal(blk_write(n, off, shadow + off, len, 0), 0);
            break;
        case 1:
            memset(shadow + off, 0, len);
            assert_int_equal(blk_zero(n, off, len, BLK_MAY_UNMAP), 0);
            break;
        default:
            assert_int_equal(blk_read(n, off, buf, len, 0), 0);
            assert_memory_equal(buf, shadow + off, len);
        }
    }
    must_close(n);
}

static void memory_is_sparse_and_grows(void **state)
{
    struct blk_node *n = must_open_opts("driver=memory", RWU);
    struct blk_extent e;

    (void)state;
    write_bytes(n, UINT64_C(1) << 40, 3, 1);
    assert_int_equal(blk_size(n), (UINT64_C(1) << 40) + 3);
    assert_bytes(n, (UINT64_C(1) << 40) - 5, 5, 0);
    assert_int_equal(blk_extents(n, 0, 1 << 20, 0, &e), 0);
    assert_true(e.flags & BLK_EXT_ZERO);
    assert_int_equal(e.length, 1 << 20);
    assert_int_equal(blk_extents(n, UINT64_C(1) << 40, 3, 0, &e), 0);
    assert_true(e.flags & BLK_EXT_DATA);
    assert_int_equal(blk_zero(n, 0, UINT64_C(1) << 40, 0), 0);
    assert_int_equal(blk_resize(n, 10, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(blk_resize(n, UINT64_C(1) << 41, BLK_PREALLOC_OFF, NULL), 0);
    assert_bytes(n, UINT64_C(1) << 40, 3, 0);
    assert_int_equal(blk_write(n, UINT64_C(1) << 46, "x", 1, 0), -EFBIG);
    assert_bytes(n, (UINT64_C(1) << 46) - 1, 2, 0);
    must_close(n);
}

static void memory_shrinks_within_a_chunk(void **state)
{
    struct blk_node *n = must_open_opts("driver=memory,size=100000", RW);

    (void)state;
    write_bytes(n, 0, 100000, 8);
    assert_int_equal(blk_resize(n, 1000, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(blk_resize(n, 100000, BLK_PREALLOC_OFF, NULL), 0);
    assert_bytes(n, 0, 1000, 8);
    assert_bytes(n, 1000, 99000, 0);
    must_close(n);
}

static void memory_is_bounded(void **state)
{
    struct blk_node *n = must_open_opts("driver=memory,size=1M,limit=128k", RWU);
    struct blk_info info;
    char c = 1;

    (void)state;
    write_bytes(n, 0, 1, 1);
    write_bytes(n, 65536, 1, 1);
    assert_int_equal(blk_write(n, 131072, &c, 1, 0), -ENOSPC);
    assert_bytes(n, 131072, 10, 0);
    assert_int_equal(blk_discard(n, 0, 65536), 0);
    write_bytes(n, 131072, 1, 1);
    assert_int_equal(blk_info(n, &info, NULL), 0);
    assert_int_equal(info.actual_size, 131072);
    blk_info_free(&info);
    assert_int_equal(blk_resize(n, (UINT64_C(1) << 46) + 1, BLK_PREALLOC_OFF, NULL), -EFBIG);
    must_close(n);
}

/* ---- throttle ------------------------------------------------------------------------------- */

#define THROTTLED(limits) "driver=throttle,file.driver=null-co," limits

static void throttle_holds_a_stream_back(void **state)
{
    struct blk_node *n = must_open_opts(THROTTLED("limits.bps-total=1M"), RW);
    double start = seconds();

    (void)state;
    /* 100 KiB come at once, the other 200 take their time. */
    for (int i = 0; i < 30; i++)
        write_bytes(n, 0, 10240, 1);
    assert_true(seconds() - start > 0.12);
    assert_true(seconds() - start < 2);
    must_close(n);
}

static void throttle_lets_a_burst_through(void **state)
{
    struct blk_node *n =
        must_open_opts(THROTTLED("limits.iops-total=10,limits.iops-total-max=100000,"
                                 "limits.iops-total-max-length=1"),
                       RW);
    double start = seconds();

    (void)state;
    for (int i = 0; i < 1000; i++)
        write_bytes(n, 0, 1, 1);
    assert_true(seconds() - start < 2);
    must_close(n);
}

static void throttle_says_again_rather_than_wait(void **state)
{
    struct blk_node *n = must_open_opts(THROTTLED("limits.iops-read=1"), 0);
    char c;

    (void)state;
    assert_int_equal(blk_read(n, 0, &c, 1, 0), 0);
    assert_int_equal(blk_read(n, 0, &c, 1, BLK_NOWAIT), -EAGAIN);
    must_close(n);
}

static void throttle_counts_reads_and_writes_apart(void **state)
{
    struct blk_node *n = must_open_opts(THROTTLED("limits.iops-read=1"), RW);
    double start = seconds();

    (void)state;
    for (int i = 0; i < 100; i++)
        write_bytes(n, 0, 1, 1);
    assert_true(seconds() - start < 1);
    must_close(n);
}

static void throttle_grows_with_what_is_below(void **state)
{
    struct blk_node *n = must_open_opts("driver=throttle,file.driver=memory", RW);

    (void)state;
    write_bytes(n, 1000, 10, 3);
    assert_int_equal(blk_size(n), 1010);
    must_close(n);
    n = must_open_opts(THROTTLED("file.size=1M"), RW);
    assert_int_equal(blk_write(n, 1 << 20, "x", 1, 0), -EINVAL);
    must_close(n);
}

static void throttle_passes_everything_on(void **state)
{
    struct blk_node *n = must_open_opts(
        "driver=throttle,limits.bps-write=1M,limits.iops-size=4k,limits.iops-total=1000000,"
        "file.driver=memory,file.size=1M",
        RWU);
    struct blk_extent e;
    double start = seconds();

    (void)state;
    write_bytes(n, 0, 65536, 3);
    assert_int_equal(blk_zero(n, 0, 1000, 0), 0);
    assert_bytes(n, 0, 1000, 0);
    assert_bytes(n, 1000, 64536, 3);
    assert_int_equal(blk_discard(n, 0, 65536), 0);
    assert_int_equal(blk_extents(n, 0, 1 << 20, 0, &e), 0);
    assert_true(e.flags & BLK_EXT_ZERO);
    /* What lies beneath must not be reached by another way. */
    assert_false(e.flags & BLK_EXT_HOST);
    assert_int_equal(blk_resize(n, 2 << 20, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(blk_flush(n), 0);
    assert_true(seconds() - start < 2);
    must_close(n);
}

static void throttle_options_are_checked(void **state)
{
    (void)state;
    assert_opts_refused(THROTTLED("limits.iops-total=10,limits.iops-total-max=5"), "burst");
    assert_opts_refused(THROTTLED("limits.iops-total-max=5"), "burst");
    assert_opts_refused(THROTTLED("limits.iops=5"), "limits.iops");
}

/* ---- raw ------------------------------------------------------------------------------------ */

static char *filled_file(void)
{
    char *name = scratch_file();
    struct blk_node *n = must_open(name, "file", RW);

    write_bytes(n, 0, 10000, 1);
    write_bytes(n, 10000, 10000, 2);
    write_bytes(n, 20000, 10000, 3);
    must_close(n);
    return name;
}

static struct blk_node *open_window(const char *name, const char *window)
{
    char opts[500];

    snprintf(opts, sizeof(opts), "driver=raw,%s,file.driver=file,file.filename=%s", window, name);
    return must_open_opts(opts, RWU);
}

static void raw_window_is_all_one_sees(void **state)
{
    char *name = filled_file();
    struct blk_node *n = open_window(name, "offset=10000,size=10000");
    struct blk_extent e;

    (void)state;
    assert_int_equal(blk_size(n), 10000);
    assert_bytes(n, 0, 10000, 2);
    assert_int_equal(blk_write(n, 9999, "xy", 2, 0), -EINVAL);
    write_bytes(n, 0, 10, 7);
    assert_int_equal(blk_zero(n, 10, 10, 0), 0);
    assert_int_equal(blk_extents(n, 5, 100, 0, &e), 0);
    assert_int_equal(e.host_offset, 10005);
    assert_int_equal(blk_resize(n, 20000, BLK_PREALLOC_OFF, NULL), -ENOTSUP);
    must_close(n);

    n = must_open(name, "file", 0);
    assert_bytes(n, 9990, 10, 1);
    assert_bytes(n, 10000, 10, 7);
    assert_bytes(n, 10010, 10, 0);
    assert_bytes(n, 10020, 100, 2);
    must_close(n);
    scratch_remove(name);
}

static void raw_from_an_offset_to_the_end(void **state)
{
    char *name = filled_file();
    struct blk_node *n = open_window(name, "offset=20000");

    (void)state;
    assert_int_equal(blk_size(n), 10000);
    assert_bytes(n, 0, 10000, 3);
    assert_int_equal(blk_resize(n, 15000, BLK_PREALLOC_OFF, NULL), 0);
    assert_bytes(n, 10000, 5000, 0);
    must_close(n);
    assert_int_equal(length_of(name), 35000);
    scratch_remove(name);
}

static void raw_window_must_lie_in_the_file(void **state)
{
    char *name = filled_file(), opts[500];
    static const char *const bad[] = { "offset=30001", "offset=20000,size=10001",
                                       "size=8E,offset=1", "size=30001" };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        snprintf(opts, sizeof(opts), "driver=raw,%s,file.filename=%s", bad[i], name);
        assert_opts_refused(opts, i == 2 ? "size" : "past the end");
    }
    scratch_remove(name);
}

static void raw_is_what_nobody_else_claims(void **state)
{
    char *name = filled_file();
    struct blk_node *n = must_open(name, NULL, RWU | BLK_OPEN_QUIET);

    (void)state;
    assert_string_equal(blk_format(n), "raw");
    assert_true(blk_probed(n));
    assert_int_equal(blk_discard(n, 0, 30000), 0);
    assert_bytes(n, 0, 30000, 0);
    must_close(n);
    scratch_remove(name);
}

static void raw_measures_what_it_is(void **state)
{
    struct blk_measure m;

    (void)state;
    assert_int_equal(blk_measure("raw", NULL, 12345, NULL, &m, NULL), 0);
    assert_int_equal(m.required, 12345);
    assert_int_equal(m.fully_allocated, 12345);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(null_swallows),
        cmocka_unit_test(null_takes_its_time),
        cmocka_unit_test(null_of_any_size),
        cmocka_unit_test(memory_agrees_with_a_shadow),
        cmocka_unit_test(memory_is_sparse_and_grows),
        cmocka_unit_test(memory_shrinks_within_a_chunk),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(throttle_holds_a_stream_back),
        cmocka_unit_test(throttle_lets_a_burst_through),
        cmocka_unit_test(throttle_says_again_rather_than_wait),
        cmocka_unit_test(throttle_counts_reads_and_writes_apart),
        cmocka_unit_test(throttle_grows_with_what_is_below),
        cmocka_unit_test(throttle_passes_everything_on),
        cmocka_unit_test(throttle_options_are_checked),
        cmocka_unit_test(raw_window_is_all_one_sees),
        cmocka_unit_test(raw_from_an_offset_to_the_end),
        cmocka_unit_test(raw_window_must_lie_in_the_file),
        cmocka_unit_test(raw_is_what_nobody_else_claims),
        cmocka_unit_test(raw_measures_what_it_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
