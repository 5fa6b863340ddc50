/* Block devices, on a loop device; that takes root, and without it the tests are skipped. */
#include <errno.h>

#include "scratch.h"

enum { RW = BLK_OPEN_RDWR, RWU = BLK_OPEN_RDWR | BLK_OPEN_UNMAP, SIZE = 8 << 20 };

static char *backing, device[64];

static int setup(void **state)
{
    char command[500];
    FILE *out;

    (void)state;
    backing = scratch_file();
    device[0] = '\0';
    snprintf(command, sizeof(command),
             "truncate -s %d %s && PATH=$PATH:/sbin:/usr/sbin losetup -f --show %s 2>/dev/null",
             SIZE, backing, backing);
    out = popen(command, "r");
    if (out && fgets(device, sizeof(device), out))
        device[strcspn(device, "\n")] = '\0';
    if (out)
        pclose(out);
    return 0;
}

static int teardown(void **state)
{
    char command[200];

    (void)state;
    if (device[0]) {
        snprintf(command, sizeof(command), "PATH=$PATH:/sbin:/usr/sbin losetup -d %s", device);
        assert_int_equal(system(command), 0);
    }
    scratch_remove(backing);
    return 0;
}

static void need_device(void)
{
    if (!device[0]) {
        print_message("SKIP: no loop device can be set up here\n");
        skip();
    }
}

static void either_driver_opens_it(void **state)
{
    struct blk_node *n;

    (void)state;
    need_device();
    n = must_open(device, "file", 0);
    assert_int_equal(blk_size(n), SIZE);
    must_close(n);
    n = must_open(device, "host_device", 0);
    assert_int_equal(blk_size(n), SIZE);
    must_close(n);
    n = must_open(device, "raw", 0);
    assert_int_equal(blk_size(n), SIZE);
    must_close(n);
}

static void bytes_of_any_alignment(void **state)
{
    static const char *const modes[] = { "writeback", "none", "directsync" };

    (void)state;
    need_device();
    for (int i = 0; i < 3; i++) {
        struct blk_open_args args = { .format = "host_device", .cache = modes[i], .flags = RW };
        struct blk_node *n = must_open_args(device, &args);

        write_bytes(n, 1000, 5000, i + 1);
        assert_bytes(n, 1000, 5000, i + 1);
        assert_bytes(n, 0, 1000, 0);
        assert_int_equal(blk_flush(n), 0);
        must_close(n);
    }
}

static void zeroes_and_discards(void **state)
{
    struct blk_node *n;

    (void)state;
    need_device();
    n = must_open(device, "host_device", RWU);
    write_bytes(n, 0, SIZE, 5);
    assert_int_equal(blk_zero(n, 65536, 65536, 0), 0);
    assert_int_equal(blk_zero(n, 262144, 65536, BLK_MAY_UNMAP), 0);
    assert_int_equal(blk_zero(n, 1000, 100, BLK_MAY_UNMAP), 0);
    assert_bytes(n, 0, 1000, 5);
    assert_bytes(n, 1000, 100, 0);
    assert_bytes(n, 1100, 65536 - 1100, 5);
    assert_bytes(n, 65536, 65536, 0);
    assert_bytes(n, 131072, 131072, 5);
    assert_bytes(n, 262144, 65536, 0);
    assert_int_equal(blk_discard(n, 1 << 20, 1 << 20), 0);
    assert_bytes(n, 2 << 20, SIZE - (2 << 20), 5);
    assert_int_equal(blk_flush(n), 0);
    must_close(n);
}

static void a_device_cannot_grow(void **state)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_node *n;

    (void)state;
    need_device();
    n = must_open(device, "host_device", RW);
    assert_int_equal(blk_write(n, SIZE - 1, "xy", 2, 0), -EINVAL);
    assert_int_equal(blk_resize(n, SIZE + 512, BLK_PREALLOC_OFF, &err), -ENOTSUP);
    assert_non_null(strstr(error_text(err), "cannot grow"));
    must_close(n);
}

static void nothing_lies_past_a_device(void **state)
{
    struct blk_node *n;

    (void)state;
    need_device();
    n = must_open(device, "file", RW);
    assert_int_equal(blk_write(n, SIZE, "x", 1, 0), -EINVAL);
    assert_bytes(n, SIZE - 10, 10, 0);
    must_close(n);
}

static void an_image_is_made_on_it_when_it_fits(void **state)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_create_args args = { .filename = device, .format = "raw", .size_given = true };

    (void)state;
    need_device();
    args.size = SIZE / 2;
    assert_int_equal(blk_create(&args, NULL, NULL), 0);
    args.size = SIZE + 1;
    assert_true(blk_create(&args, NULL, &err) < 0);
    assert_non_null(strstr(error_text(err), device));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(either_driver_opens_it),     TEST(bytes_of_any_alignment),
        TEST(zeroes_and_discards),        TEST(a_device_cannot_grow),
        TEST(nothing_lies_past_a_device), TEST(an_image_is_made_on_it_when_it_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
