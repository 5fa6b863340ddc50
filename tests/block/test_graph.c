/* Building the graph from every kind of description, and refusing the wrong ones. */
#include <errno.h>
#include <sys/stat.h>

#include "scratch.h"

#define IMAGE_OPTS(text)                           \
    (text), &(struct blk_open_args)                \
    {                                              \
        .image_opts = true, .flags = BLK_OPEN_RDWR \
    }

static char *image; /* a qcow2 image of 1 MiB whose first 4 KiB are 0x55 */

static void create(const char *name, const char *backing, uint64_t size)
{
    struct blk_create_args args = {
        .filename = name,
        .format = "qcow2",
        .size_given = size > 0,
        .size = size,
        .backing_file = backing,
        .backing_format = backing ? "qcow2" : NULL,
    };
    _cleanup_error_ struct error *err = NULL;

    if (blk_create(&args, NULL, &err) < 0)
        fail_msg("%s", error_text(err));
}

static int make_image(void **state)
{
    unsigned char bytes[4096];

    (void)state;
    image = scratch_file();
    create(image, NULL, 1 << 20);
    struct blk_node *n = must_open(image, "qcow2", BLK_OPEN_RDWR);
    memset(bytes, 0x55, sizeof(bytes));
    assert_int_equal(blk_write(n, 0, bytes, sizeof(bytes), 0), 0);
    assert_int_equal(blk_close(n, NULL), 0);
    return 0;
}

static int remove_image(void **state)
{
    (void)state;
    scratch_remove(image);
    return 0;
}

static void expect_image(struct blk_node *n)
{
    unsigned char byte = 0;

    assert_string_equal(blk_format(n), "qcow2");
    assert_int_equal(blk_size(n), 1 << 20);
    assert_int_equal(blk_read(n, 4095, &byte, 1, 0), 0);
    assert_int_equal(byte, 0x55);
    assert_int_equal(blk_close(n, NULL), 0);
}

/* The image's name in the place of '@'. */
static void spell(char *out, size_t size, const char *pattern)
{
    int before = (int)strcspn(pattern, "@");

    snprintf(out, size, "%.*s%s%s", before, pattern, image, pattern + before + 1);
}

static void every_spelling_opens_the_same(void **state)
{
    static const char *const spellings[] = {
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"@\"}}",
        "json:{\"driver\":\"qcow2\",\"file.driver\":\"file\",\"file.filename\":\"@\"}",
        "json:{\"file\":{\"driver\":\"file\",\"filename\":\"@\"}}",
        "json:{\"file\":{\"filename\":\"@\"}}",
        "file:@",
        "@",
    };
    static const char *const options[] = {
        "driver=qcow2,file.driver=file,file.filename=@",
        "driver=qcow2,file.filename=@",
        "file.filename=@",
        "filename=@",
        "driver=qcow2,file.driver=throttle,file.file.filename=@",
        "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"@\"}}",
    };
    char name[512];

    (void)state;
    for (size_t i = 0; i < sizeof(spellings) / sizeof(spellings[0]); i++) {
        spell(name, sizeof(name), spellings[i]);
        expect_image(must_open(name, NULL, 0));
    }
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        spell(name, sizeof(name), options[i]);
        expect_image(must_open_args(name, &(struct blk_open_args){ .image_opts = true }));
    }
}

static void a_named_node_is_shared(void **state)
{
    char name[512];

    (void)state;
    snprintf(name, sizeof(name), "driver=file,node-name=disk,filename=%s", image);
    struct blk_node *file = must_open_args(IMAGE_OPTS(name));
    struct blk_node *top =
        must_open_args("driver=qcow2,file=disk", &(struct blk_open_args){ .image_opts = true });
    assert_ptr_equal(blk_child(top, "file"), file);
    assert_int_equal(blk_close(file, NULL), 0);
    expect_image(top);
    /* With the last reference the name is free again. */
    file = must_open_args(IMAGE_OPTS(name));
    assert_null(try_open(IMAGE_OPTS(name), NULL));
    assert_int_equal(blk_close(file, NULL), 0);
}

static void wrong_descriptions_say_why(void **state)
{
    static const struct {
        const char *text, *word;
    } wrong[] = {
        { "driver=qcow2", "file.filename" },
        { "driver=qcow3,file.filename=x", "qcow3" },
        { "driver=qcow2,file.filename=/nonexistent", "/nonexistent" },
        { "driver=qcow2,file=nobody", "nobody" },
        { "driver=file,filename=/dev/null,sise=3", "sise" },
        { "driver=raw,file.filename=/etc/passwd,discard=maybe", "maybe" },
        { "driver=raw,file.filename=/etc/passwd,cache.direct=perhaps", "perhaps" },
        { "driver=raw,file.filename=/etc/passwd,cache.colour=red", "colour" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        _cleanup_error_ struct error *err = NULL;
        assert_null(try_open(wrong[i].text, &(struct blk_open_args){ .image_opts = true }, &err));
        if (!strstr(error_text(err), wrong[i].word))
            fail_msg("%s: %s", wrong[i].text, error_text(err));
    }
}

static void nesting_is_bounded(void **state)
{
    char text[8192] = "json:", *at = text + 5;

    (void)state;
    for (int i = 0; i < 200; i++)
        at += sprintf(at, "{\"driver\":\"raw\",\"file\":");
    at += sprintf(at, "{\"driver\":\"null-co\"}");
    for (int i = 0; i < 200; i++)
        *at++ = '}';
    *at = '\0';
    assert_null(try_open(text, NULL, NULL));
}

static void a_loop_of_backing_files_is_refused(void **state)
{
    _cleanup_error_ struct error *err = NULL;
    char *a = scratch_file(), *b = scratch_file();
    struct blk_create_args args = { .format = "qcow2",
                                    .size_given = true,
                                    .size = 65536,
                                    .backing_format = "qcow2",
                                    .backing_unchecked = true };

    (void)state;
    args.filename = a;
    args.backing_file = b;
    assert_int_equal(blk_create(&args, NULL, NULL), 0);
    args.filename = b;
    args.backing_file = a;
    assert_int_equal(blk_create(&args, NULL, NULL), 0);
    assert_null(try_open(a, NULL, &err));
    assert_non_null(strstr(error_text(err), "loop"));
    scratch_remove(a);
    scratch_remove(b);
}

static void guessed_raw_does_not_become_qcow2(void **state)
{
    char *name = scratch_file();
    unsigned char sector[512] = { 'Q', 'F', 'I', 0xfb, 0, 0, 0, 3 };

    (void)state;
    assert_int_equal(truncate(name, 1 << 20), 0);
    struct blk_node *n = must_open(name, NULL, BLK_OPEN_RDWR | BLK_OPEN_QUIET);
    assert_string_equal(blk_format(n), "raw");
    assert_true(blk_probed(n));
    assert_int_equal(blk_write(n, 0, sector, 512, 0), -EPERM);
    /* not by pieces either */
    assert_int_equal(blk_write(n, 0, sector, 2, 0), 0);
    assert_int_equal(blk_write(n, 4, sector + 4, 508, 0), 0);
    assert_int_equal(blk_write(n, 2, sector + 2, 2, 0), -EPERM);
    assert_int_equal(blk_write(n, 4096, sector, 512, 0), 0);
    assert_int_equal(blk_close(n, NULL), 0);
    n = must_open(name, "raw", BLK_OPEN_RDWR);
    assert_int_equal(blk_write(n, 0, sector, 512, 0), 0);
    assert_int_equal(blk_close(n, NULL), 0);
    scratch_remove(name);
}

static void read_only_stays_so(void **state)
{
    unsigned char byte = 1;
    struct stat before, after;

    (void)state;
    assert_int_equal(stat(image, &before), 0);
    struct blk_node *n = must_open(image, NULL, 0);
    assert_true(blk_read_only(n));
    assert_int_equal(blk_write(n, 0, &byte, 1, 0), -EACCES);
    assert_int_equal(blk_zero(n, 0, 512, 0), -EACCES);
    assert_int_equal(blk_discard(n, 0, 512), -EACCES);
    assert_true(blk_resize(n, 2 << 20, BLK_PREALLOC_OFF, NULL) < 0);
    assert_int_equal(blk_close(n, NULL), 0);
    assert_int_equal(stat(image, &after), 0);
    assert_int_equal(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
}

static void ranges_are_checked(void **state)
{
    unsigned char buf[512];
    struct blk_extent e;

    (void)state;
    struct blk_node *n = must_open(image, NULL, BLK_OPEN_RDWR);
    uint64_t size = blk_size(n);
    assert_int_equal(blk_read(n, size - 511, buf, 512, 0), -EINVAL);
    assert_int_equal(blk_read(n, UINT64_MAX - 100, buf, 512, 0), -EINVAL);
    assert_int_equal(blk_write(n, size, buf, 1, 0), -EINVAL);
    assert_int_equal(blk_zero(n, 1, UINT64_MAX, 0), -EINVAL);
    assert_int_equal(blk_extents(n, size, 1, 0, &e), -EINVAL);
    assert_int_equal(blk_extents(n, 0, 0, 0, &e), -EINVAL);
    assert_int_equal(blk_read(n, size, buf, 0, 0), 0);
    assert_int_equal(blk_close(n, NULL), 0);
}

static void detect_zeroes_keeps_zeroes_out(void **state)
{
    static unsigned char zeroes[65536];
    char name[512];
    struct blk_extent e;

    (void)state;
    char *fresh = scratch_file();
    create(fresh, NULL, 1 << 20);
    snprintf(name, sizeof(name), "driver=qcow2,detect-zeroes=on,file.filename=%s", fresh);
    struct blk_node *n = must_open_args(IMAGE_OPTS(name));
    assert_int_equal(blk_write(n, 65536, zeroes, sizeof(zeroes), 0), 0);
    assert_int_equal(blk_extents(n, 65536, 65536, 0, &e), 0);
    assert_true(e.flags & BLK_EXT_ZERO);
    assert_false(e.flags & BLK_EXT_DATA);
    assert_int_equal(blk_close(n, NULL), 0);
    scratch_remove(fresh);
}

static void nowait_answers_from_memory(void **state)
{
    unsigned char buf[4096];

    (void)state;
    struct blk_node *n = must_open(image, NULL, BLK_OPEN_RDWR);
    int cold = blk_read(n, 0, buf, sizeof(buf), BLK_NOWAIT);
    assert_true(cold == -EAGAIN || cold == 0);
    assert_int_equal(blk_read(n, 0, buf, sizeof(buf), 0), 0); /* the L2 table is cached now */
    int warm = blk_read(n, 0, buf, sizeof(buf), BLK_NOWAIT);
    assert_true(warm == 0 || warm == -EAGAIN); /* the page cache may say no */
    /* allocation is never done without waiting */
    assert_int_equal(blk_write(n, 512 << 10, buf, 512, BLK_NOWAIT), -EAGAIN);
    assert_int_equal(blk_close(n, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_spelling_opens_the_same),
        cmocka_unit_test(a_named_node_is_shared),
        cmocka_unit_test(wrong_descriptions_say_why),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(a_loop_of_backing_files_is_refused),
        cmocka_unit_test(guessed_raw_does_not_become_qcow2),
        cmocka_unit_test(read_only_stays_so),
        cmocka_unit_test(ranges_are_checked),
        cmocka_unit_test(detect_zeroes_keeps_zeroes_out),
        cmocka_unit_test(nowait_answers_from_memory),
    };
    return cmocka_run_group_tests(tests, make_image, remove_image);
}
