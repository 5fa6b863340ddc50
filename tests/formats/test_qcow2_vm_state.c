/* The state of a machine beside the disk: it goes with snapshots, never becomes part of the disk, and nothing of it
 * is left when nobody has it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../block/scratch.h"

enum { STATE = 3 << 20, DISK = 1 << 20 };

static char image[] = "/dev/shm/platter-vmstate-XXXXXX";

static struct blk_node *open_image(unsigned flags)
{
    return must_open(image, "qcow2", flags);
}

/* On a backing file longer than the disk, full of 0x77, no byte of which may come up. */
static int setup(void **state)
{
    char base[64];
    int fd = mkstemp(image);

    (void)state;
    close(fd);
    snprintf(base, sizeof(base), "%s.base", image);
    FILE *f = fopen(base, "w");
    for (int i = 0; f && i < 8 * DISK; i++)
        fputc(0x77, f);
    if (!f || fclose(f) != 0)
        return -1;
    struct blk_create_args args = {
        .filename = image,
        .format = "qcow2",
        .options = "cluster_size=4k",
        .size_given = true,
        .size = DISK,
        .backing_file = base,
        .backing_format = "raw",
    };
    return blk_create(&args, NULL, NULL);
}

static int teardown(void **state)
{
    char base[64];

    (void)state;
    snprintf(base, sizeof(base), "%s.base", image);
    unlink(base);
    unlink(image);
    return 0;
}

static void write_state(struct blk_node *n, int byte)
{
    static uint8_t buf[100003]; /* nothing is aligned */

    memset(buf, byte, sizeof(buf));
    for (size_t at = 0; at < STATE; at += sizeof(buf)) {
        size_t len = STATE - at < sizeof(buf) ? STATE - at : sizeof(buf);
        assert_int_equal(blk_vm_state_write(n, at, buf, len), 0);
    }
}

static void read_state(struct blk_node *n, int byte)
{
    uint8_t *buf = malloc(STATE + 5000);

    assert_non_null(buf);
    assert_int_equal(blk_vm_state_read(n, 0, buf, STATE + 5000), 0);
    for (int i = 0; i < STATE; i++)
        assert_int_equal(buf[i], byte);
    for (int i = STATE; i < STATE + 5000; i++)
        assert_int_equal(buf[i], 0);
    free(buf);
}

static void make_snapshot(struct blk_node *n, const char *name)
{
    struct blk_snapshot what = { .name = name, .vm_state_size = STATE, .icount = UINT64_MAX };
    assert_int_equal(blk_snapshot_create(n, &what, NULL), 0);
}

static void must_be_clean(struct blk_node *n)
{
    struct blk_check found;

    assert_int_equal(blk_check(n, 0, &found, NULL, NULL), 0);
    assert_int_equal(found.corruptions + found.check_errors + found.leaks, 0);
}

static void the_state_goes_with_its_snapshot(void **state)
{
    struct blk_node *n = open_image(BLK_OPEN_RDWR);

    (void)state;
    write_state(n, 1);
    read_state(n, 1);
    make_snapshot(n, "one");
    assert_bytes(n, 0, DISK, 0x77);
    write_state(n, 2);
    make_snapshot(n, "two");
    assert_int_equal(blk_snapshot_apply(n, NULL, "one", NULL), 0);
    read_state(n, 1);
    assert_int_equal(blk_snapshot_apply(n, NULL, "two", NULL), 0);
    read_state(n, 2);
    must_close(n);

    n = open_image(0);
    assert_int_equal(blk_snapshot_view(n, NULL, "one", NULL), 0);
    read_state(n, 1);
    struct blk_check found;
    assert_int_equal(blk_check(n, 0, &found, NULL, NULL), -EINVAL);
    must_close(n);
    n = open_image(0);
    must_be_clean(n);
    must_close(n);
}

static void a_larger_disk_does_not_take_it_in(void **state)
{
    struct blk_node *n = open_image(BLK_OPEN_RDWR | BLK_OPEN_RESIZE);

    (void)state;
    assert_int_equal(blk_resize(n, 6 * DISK, BLK_PREALLOC_OFF, NULL), 0);
    assert_bytes(n, DISK, 5 * DISK, 0);
    assert_int_equal(blk_snapshot_apply(n, NULL, "one", NULL), 0);
    assert_int_equal(blk_size(n), DISK);
    read_state(n, 1);
    must_close(n);
    n = open_image(0);
    must_be_clean(n);
    must_close(n);
}

static void nothing_is_left_of_it(void **state)
{
    struct blk_node *n = open_image(BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_UNMAP);

    (void)state;
    assert_int_equal(blk_snapshot_delete(n, NULL, "one", NULL), 0);
    assert_int_equal(blk_snapshot_delete(n, NULL, "two", NULL), 0);
    assert_int_equal(blk_resize(n, DISK / 2, BLK_PREALLOC_OFF, NULL), 0);
    must_close(n);
    n = open_image(0);
    struct blk_check found;
    assert_int_equal(blk_check(n, 0, &found, NULL, NULL), 0);
    assert_int_equal(found.allocated_clusters, 0);
    must_be_clean(n);
    must_close(n);
}

static void what_no_format_could_keep_is_refused(void **state)
{
    struct blk_node *n = open_image(BLK_OPEN_RDWR);

    (void)state;
    assert_int_equal(blk_vm_state_write(n, UINT64_C(1) << 62, "x", 1), -EFBIG);
    assert_int_equal(blk_vm_state_write(n, UINT64_MAX, "x", 1), -EFBIG);
    assert_true(blk_vm_state_read(n, UINT64_MAX - 1, image, 1) < 0);
    must_close(n);
    n = open_image(0);
    assert_int_equal(blk_vm_state_write(n, 0, "x", 1), -EACCES);
    must_be_clean(n);
    must_close(n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_state_goes_with_its_snapshot),
        cmocka_unit_test(a_larger_disk_does_not_take_it_in),
        cmocka_unit_test(nothing_is_left_of_it),
        cmocka_unit_test(what_no_format_could_keep_is_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
