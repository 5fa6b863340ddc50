/* Image locks: QEMU and we refuse each other what does not go together, and only that. */
#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>

#include "scratch.h"

enum { RW = BLK_OPEN_RDWR, SHARED = BLK_OPEN_SHARED };

/* Without QEMU there is nobody to ask; where that must not be, CI is set. */
static bool have_qemu(void)
{
    bool have = system("command -v qemu-io qemu-img >/dev/null") == 0;

    if (!have && getenv("CI"))
        fail_msg("qemu-io is missing");
    return have;
}

static int setup(void **state)
{
    *state = scratch_file();
    return truncate(*state, 1 << 20);
}

static int teardown(void **state)
{
    scratch_remove(*state);
    return 0;
}

/* Answers whether anybody holds locks on the file. */
static bool is_locked(const char *name)
{
    char line[300], inode[40];
    FILE *locks = fopen("/proc/locks", "r");
    bool found = false;
    struct stat st;

    assert_non_null(locks);
    assert_int_equal(stat(name, &st), 0);
    snprintf(inode, sizeof(inode), ":%lu ", (unsigned long)st.st_ino);
    while (!found && fgets(line, sizeof(line), locks))
        found = strstr(line, inode);
    fclose(locks);
    return found;
}

/* A qemu-io that has the image open until its input ends. */
static FILE *qemu_holds(const char *options, const char *name)
{
    char command[500];
    FILE *pipe;

    snprintf(command, sizeof(command), "exec qemu-io %s %s >/dev/null 2>&1", options, name);
    pipe = popen(command, "w");
    assert_non_null(pipe);
    for (int i = 0; !is_locked(name); i++) {
        assert_true(i < 500);
        usleep(20000);
    }
    return pipe;
}

static bool qemu_opens(const char *options, const char *name)
{
    char command[500];

    snprintf(command, sizeof(command), "qemu-io %s -c 'read 0 512' %s >/dev/null 2>&1", options,
             name);
    return system(command) == 0;
}

static bool we_open(const char *name, const char *format, unsigned flags)
{
    struct blk_open_args args = { .format = format, .flags = flags };
    struct blk_node *n = try_open(name, &args, NULL);

    blk_close(n, NULL);
    return n;
}

static void a_writing_qemu_keeps_us_out(void **state)
{
    FILE *qemu;

    if (!have_qemu())
        skip();
    qemu = qemu_holds("-f raw", *state);
    assert_false(we_open(*state, "raw", RW));
    assert_false(we_open(*state, "raw", 0));
    assert_true(we_open(*state, "raw", SHARED));
    pclose(qemu);
    assert_true(we_open(*state, "raw", RW));
}

static void the_sentence_names_who_and_the_way_out(void **state)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_open_args args = { .format = "raw" };
    FILE *qemu;

    if (!have_qemu())
        skip();
    qemu = qemu_holds("-f raw", *state);
    assert_null(try_open(*state, &args, &err));
    assert_int_equal(error_code(err), EBUSY);
    assert_non_null(strstr(error_text(err), *state));
    assert_non_null(strstr(error_text(err), "qemu-io (process "));
    assert_non_null(strstr(error_text(err), "-U"));
    pclose(qemu);
}

static void a_reading_qemu_lets_us_read(void **state)
{
    FILE *qemu;

    if (!have_qemu())
        skip();
    qemu = qemu_holds("-r -f raw", *state);
    assert_true(we_open(*state, "raw", 0));
    pclose(qemu);
}

/* QEMU's readers of a format forbid changes, those of raw do not mind. */
static void a_format_reading_qemu_keeps_writers_out(void **state)
{
    char command[500];
    FILE *qemu;

    if (!have_qemu())
        skip();
    snprintf(command, sizeof(command), "qemu-img create -q -f qcow2 %s 1M", (char *)*state);
    assert_int_equal(system(command), 0);
    qemu = qemu_holds("-r -f qcow2", *state);
    assert_true(we_open(*state, "raw", 0));
    assert_false(we_open(*state, "raw", RW));
    pclose(qemu);
}

static void we_keep_qemu_out_while_writing(void **state)
{
    struct blk_node *n;

    if (!have_qemu())
        skip();
    n = must_open(*state, "raw", RW);
    assert_false(qemu_opens("-f raw", *state));
    assert_true(qemu_opens("-r -U -f raw", *state));
    must_close(n);
    assert_true(qemu_opens("-f raw", *state));
}

static void we_keep_qemu_from_writing_while_reading(void **state)
{
    struct blk_node *n;

    if (!have_qemu())
        skip();
    n = must_open(*state, "raw", 0);
    assert_false(qemu_opens("-f raw", *state));
    assert_true(qemu_opens("-r -f raw", *state));
    must_close(n);
}

static void shared_use_takes_no_locks(void **state)
{
    struct blk_node *n = must_open(*state, "raw", SHARED);

    assert_false(is_locked(*state));
    must_close(n);
}

static void locking_can_be_turned_off(void **state)
{
    char opts[500];
    struct blk_node *n = must_open(*state, "raw", RW);

    assert_false(we_open(*state, "raw", RW));
    snprintf(opts, sizeof(opts), "driver=raw,file.filename=%s,file.locking=off", (char *)*state);
    must_close(must_open_opts(opts, RW));
    must_close(n);
}

static void we_refuse_ourselves(void **state)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_open_args args = { .format = "raw", .flags = RW };
    struct blk_node *reader = must_open(*state, "raw", 0);

    must_close(must_open(*state, "raw", 0));
    assert_null(try_open(*state, &args, &err));
    assert_non_null(strstr(error_text(err), "this program itself"));
    must_close(reader);
    assert_true(we_open(*state, "raw", RW));
}

/* Another descriptor of the file that is closed must not take our locks along. */
static void locks_survive_other_descriptors(void **state)
{
    struct blk_node *n = must_open(*state, "raw", RW);

    close(open(*state, O_RDWR));
    assert_true(is_locked(*state));
    assert_false(we_open(*state, "raw", RW));
    must_close(n);
    assert_false(is_locked(*state));
}

static void creating_over_a_used_image_is_refused(void **state)
{
    struct blk_create_args args = {
        .filename = *state, .format = "raw", .size_given = true, .size = 512
    };
    struct blk_node *n = must_open(*state, "raw", 0);

    assert_true(blk_create(&args, NULL, NULL) < 0);
    must_close(n);
    assert_int_equal(length_of(*state), 1 << 20);
    assert_int_equal(blk_create(&args, NULL, NULL), 0);
    assert_int_equal(length_of(*state), 512);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_writing_qemu_keeps_us_out),
        TEST(the_sentence_names_who_and_the_way_out),
        TEST(a_reading_qemu_lets_us_read),
        TEST(a_format_reading_qemu_keeps_writers_out),
        TEST(we_keep_qemu_out_while_writing),
        TEST(we_keep_qemu_from_writing_while_reading),
        TEST(shared_use_takes_no_locks),
        TEST(locking_can_be_turned_off),
        TEST(we_refuse_ourselves),
        TEST(locks_survive_other_descriptors),
        TEST(creating_over_a_used_image_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
