/* The file driver, through the public interface. */
#include <errno.h>
#include <fcntl.h>

#include "scratch.h"

enum { RW = BLK_OPEN_RDWR, RWU = BLK_OPEN_RDWR | BLK_OPEN_UNMAP };

static int setup(void **state)
{
    *state = scratch_file();
    return 0;
}

static int teardown(void **state)
{
    scratch_remove(*state);
    return 0;
}

/* ---- reading and writing -------------------------------------------------------------------- */

static void past_the_end_reads_zero(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);

    write_bytes(n, 0, 1000, 7);
    assert_int_equal(blk_size(n), 1000);
    assert_bytes(n, 0, 1000, 7);
    assert_bytes(n, 1000, 5000, 0);
    assert_bytes(n, 1 << 30, 10, 0);
    must_close(n);
    assert_int_equal(length_of(*state), 1000);
}

static void writing_past_the_end_grows(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);

    write_bytes(n, 100000, 10, 3);
    assert_int_equal(blk_size(n), 100010);
    assert_bytes(n, 0, 100000, 0);
    must_close(n);
}

static void thousands_of_pieces(void **state)
{
    enum { PIECES = 3000 };
    struct blk_node *n = must_open(*state, "file", RW);
    static unsigned char out[PIECES * 3], in[PIECES * 3];
    static struct iovec iov[PIECES];

    for (int i = 0; i < PIECES; i++) {
        memset(out + 3 * i, i, 3);
        iov[i] = (struct iovec){ out + 3 * i, 3 };
    }
    assert_int_equal(blk_writev(n, 5, iov, PIECES, 0), 0);
    for (int i = 0; i < PIECES; i++)
        iov[i].iov_base = in + 3 * i;
    assert_int_equal(blk_readv(n, 5, iov, PIECES, 0), 0);
    assert_memory_equal(in, out, sizeof(in));
    must_close(n);
}

static void durable_writes_and_flushes(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);
    char text[] = "durable";

    assert_int_equal(blk_write(n, 10, text, 7, BLK_FUA), 0);
    assert_int_equal(blk_flush(n), 0);
    assert_int_equal(blk_zero(n, 0, 4096, BLK_FUA), 0);
    must_close(n);
}

static void read_only_refuses_writes(void **state)
{
    struct blk_node *n = must_open(*state, "file", 0);

    assert_int_equal(blk_write(n, 0, "x", 1, 0), -EACCES);
    assert_int_equal(blk_zero(n, 0, 1, 0), -EACCES);
    must_close(n);
}

static void nowait_answers_from_the_cache_or_not_at_all(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);
    char buf[4096];
    int r;

    write_bytes(n, 0, 8192, 9);
    assert_bytes(n, 0, 8192, 9);
    r = blk_read(n, 4096, buf, sizeof(buf), BLK_NOWAIT);
    assert_true(r == 0 || r == -EAGAIN);
    if (r == 0) {
        assert_int_equal(buf[0], 9);
        assert_int_equal(buf[4095], 9);
        /* Across the end: the rest is zero. */
        assert_int_equal(blk_read(n, 8190, buf, 10, BLK_NOWAIT), 0);
        assert_int_equal(buf[1], 9);
        assert_int_equal(buf[2], 0);
    }
    must_close(n);
}

/* ---- direct --------------------------------------------------------------------------------- */

static struct blk_node *open_direct(const char *name)
{
    struct blk_open_args args = { .format = "file", .cache = "none", .flags = RWU };

    return try_open(name, &args, NULL);
}

static void direct_takes_any_alignment(void **state)
{
    struct blk_node *n = open_direct(*state);
    unsigned char *memory, shadow[20000] = { 0 };

    if (!n)
        skip();
    memory = malloc(sizeof(shadow) + 1);
    assert_non_null(memory);
    srand(2);
    for (int i = 0; i < 200; i++) {
        size_t off = (size_t)rand() % sizeof(shadow);
        size_t len = 1 + (size_t)rand() % (sizeof(shadow) - off);

        if (rand() % 3) {
            memset(shadow + off, i, len);
            memset(memory + 1, i, len);
            assert_int_equal(blk_write(n, off, memory + 1, len, 0), 0);
        } else {
            assert_int_equal(blk_read(n, off, memory + 1, len, 0), 0);
            assert_memory_equal(memory + 1, shadow + off, len);
        }
    }
    assert_int_equal(blk_read(n, 0, memory, sizeof(shadow), 0), 0);
    assert_memory_equal(memory, shadow, sizeof(shadow));
    free(memory);
    must_close(n);
}

static void direct_leaves_no_padding_at_the_end(void **state)
{
    struct blk_node *n = open_direct(*state);

    if (!n)
        skip();
    write_bytes(n, 0, 5000, 1);
    assert_int_equal(blk_size(n), 5000);
    must_close(n);
    assert_int_equal(length_of(*state), 5000);

    n = open_direct(*state);
    assert_int_equal(blk_size(n), 5000);
    assert_bytes(n, 4990, 10, 1);
    assert_bytes(n, 4990 + 10, 100, 0);
    must_close(n);
    assert_int_equal(length_of(*state), 5000);
}

static void direct_files_grow_to_any_length(void **state)
{
    struct blk_node *n = open_direct(*state);

    if (!n)
        skip();
    assert_int_equal(blk_resize(n, 5001, BLK_PREALLOC_FULL, NULL), 0);
    assert_int_equal(blk_resize(n, 1000001, BLK_PREALLOC_FULL, NULL), 0);
    write_bytes(n, 4000, 10, 1);
    assert_bytes(n, 4010, 1000001 - 4010, 0);
    must_close(n);
    assert_int_equal(length_of(*state), 1000001);
}

static void direct_never_answers_nowait(void **state)
{
    struct blk_node *n = open_direct(*state);
    char buf[512];

    if (!n)
        skip();
    assert_int_equal(blk_read(n, 0, buf, sizeof(buf), BLK_NOWAIT), -EAGAIN);
    must_close(n);
}

/* ---- zeroes and holes ----------------------------------------------------------------------- */

static struct blk_extent extent_at(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct blk_extent e;

    assert_int_equal(blk_extents(n, off, len, 0, &e), 0);
    assert_int_equal(e.offset, off);
    assert_true(e.length > 0 && e.length <= len);
    return e;
}

static bool is_hole(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct blk_extent e = extent_at(n, off, len);

    return !(e.flags & BLK_EXT_DATA) && (e.flags & BLK_EXT_ZERO) && e.length == len;
}

static void zeroes_give_space_back_when_they_may(void **state)
{
    struct blk_node *n = must_open(*state, "file", RWU);

    write_bytes(n, 0, 1 << 20, 5);
    assert_int_equal(blk_flush(n), 0);
    assert_int_equal(blk_zero(n, 65536, 131072, BLK_MAY_UNMAP), 0);
    assert_bytes(n, 65536, 131072, 0);
    assert_bytes(n, 0, 65536, 5);
    assert_bytes(n, 65536 + 131072, 65536, 5);
    assert_true(is_hole(n, 65536, 131072));
    assert_true(blocks_of(*state) <= (1 << 20) - 131072 + 65536);
    must_close(n);
}

static void zeroes_keep_the_space_when_they_must(void **state)
{
    struct blk_node *n = must_open(*state, "file", RWU);
    uint64_t before;

    write_bytes(n, 0, 1 << 20, 5);
    assert_int_equal(blk_flush(n), 0);
    before = blocks_of(*state);
    assert_int_equal(blk_zero(n, 100, 500000, 0), 0);
    assert_bytes(n, 0, 100, 5);
    assert_bytes(n, 100, 500000, 0);
    assert_bytes(n, 500100, 1000, 5);
    assert_true(blocks_of(*state) >= before);
    must_close(n);
}

static void zeroes_past_the_end_cost_nothing(void **state)
{
    struct blk_node *n = must_open(*state, "file", RWU);

    write_bytes(n, 0, 4096, 5);
    assert_int_equal(blk_zero(n, 2048, UINT64_C(1) << 32, BLK_MAY_UNMAP), 0);
    assert_int_equal(blk_size(n), 2048 + (UINT64_C(1) << 32));
    assert_bytes(n, 2040, 8, 5);
    assert_bytes(n, 2048, 10000, 0);
    must_close(n);
    assert_int_equal(length_of(*state), 2048 + (UINT64_C(1) << 32));
    assert_true(blocks_of(*state) < 1 << 20);
}

static void discards_give_space_back(void **state)
{
    struct blk_node *n = must_open(*state, "file", RWU);

    write_bytes(n, 0, 1 << 20, 5);
    assert_int_equal(blk_discard(n, 0, 1 << 20), 0);
    assert_bytes(n, 0, 1 << 20, 0);
    assert_int_equal(blk_size(n), 1 << 20);
    must_close(n);
    assert_true(blocks_of(*state) < 65536);
}

static void discards_do_nothing_unless_allowed(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);

    write_bytes(n, 0, 65536, 5);
    assert_int_equal(blk_discard(n, 0, 65536), 0);
    assert_bytes(n, 0, 65536, 5);
    must_close(n);
}

static void extents_tell_data_from_holes(void **state)
{
    struct blk_node *n = must_open(*state, "file", RWU);
    struct blk_extent e;

    write_bytes(n, 1 << 20, 1 << 20, 5);
    assert_int_equal(blk_resize(n, 4 << 20, BLK_PREALLOC_OFF, NULL), 0);

    assert_true(is_hole(n, 0, 1 << 20));
    e = extent_at(n, 1 << 20, 3 << 20);
    assert_true(e.flags & BLK_EXT_DATA);
    assert_int_equal(e.length, 1 << 20);
    assert_true(e.flags & BLK_EXT_HOST);
    assert_ptr_equal(e.host, n);
    assert_int_equal(e.host_offset, 1 << 20);
    assert_true(is_hole(n, 2 << 20, 2 << 20));
    /* In the middle of a run. */
    e = extent_at(n, (1 << 20) + 4096, 8192);
    assert_true(e.flags & BLK_EXT_DATA);
    assert_int_equal(e.length, 8192);
    must_close(n);
}

/* What is remembered of the file must not outlive a change. */
static void extents_notice_changes(void **state)
{
    struct blk_node *n = must_open(*state, "file", RWU);

    assert_int_equal(blk_resize(n, 4 << 20, BLK_PREALLOC_OFF, NULL), 0);
    assert_true(is_hole(n, 0, 4 << 20));
    write_bytes(n, 1 << 20, 65536, 1);
    assert_true(extent_at(n, 1 << 20, 4096).flags & BLK_EXT_DATA);
    assert_int_equal(extent_at(n, 0, 4 << 20).length, 1 << 20);
    assert_int_equal(blk_zero(n, 1 << 20, 65536, BLK_MAY_UNMAP), 0);
    assert_true(is_hole(n, 0, 4 << 20));
    assert_int_equal(blk_resize(n, 8 << 20, BLK_PREALLOC_FULL, NULL), 0);
    assert_true(extent_at(n, 4 << 20, 4096).flags & BLK_EXT_DATA);
    assert_int_equal(blk_resize(n, 4 << 20, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(blk_resize(n, 8 << 20, BLK_PREALLOC_OFF, NULL), 0);
    assert_true(is_hole(n, 4 << 20, 4 << 20));
    must_close(n);
}

static void nowait_extents_answer_what_is_known(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);
    struct blk_extent e;

    write_bytes(n, 0, 65536, 1);
    assert_int_equal(blk_extents(n, 0, 65536, BLK_NOWAIT, &e), -EAGAIN);
    assert_int_equal(blk_extents(n, 0, 65536, 0, &e), 0);
    assert_int_equal(blk_extents(n, 4096, 8192, BLK_NOWAIT, &e), 0);
    assert_int_equal(e.length, 8192);
    must_close(n);
}

/* ---- size and creation ---------------------------------------------------------------------- */

static void preallocation(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);

    assert_int_equal(blk_resize(n, 1 << 20, BLK_PREALLOC_FALLOC, NULL), 0);
    assert_true(blocks_of(*state) >= 1 << 20);
    assert_int_equal(blk_resize(n, (2 << 20) + 5, BLK_PREALLOC_FULL, NULL), 0);
    assert_true(blocks_of(*state) >= 2 << 20);
    assert_int_equal(length_of(*state), (2 << 20) + 5);
    assert_bytes(n, 0, (2 << 20) + 5, 0);
    assert_int_equal(blk_resize(n, 100, BLK_PREALLOC_FALLOC, NULL), -EINVAL);
    assert_int_equal(blk_resize(n, 3 << 20, BLK_PREALLOC_METADATA, NULL), -ENOTSUP);
    assert_int_equal(blk_resize(n, 100, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(length_of(*state), 100);
    assert_int_equal(blk_size(n), 100);
    must_close(n);
}

static void failed_preallocation_leaves_the_old_length(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);
    _cleanup_error_ struct error *err = NULL;

    write_bytes(n, 0, 1000, 4);
    /* More than any disk that this runs on has free. */
    assert_true(blk_resize(n, UINT64_C(1) << 50, BLK_PREALLOC_FALLOC, &err) < 0);
    assert_non_null(strstr(error_text(err), *state));
    assert_int_equal(length_of(*state), 1000);
    assert_bytes(n, 0, 1000, 4);
    must_close(n);
}

static void creating_empties_and_sets_the_size(void **state)
{
    struct blk_create_args args = { .filename = *state,
                                    .format = "raw",
                                    .options = "preallocation=full,nocow=on,extent_size_hint=1M",
                                    .size_given = true,
                                    .size = 300000 };
    struct blk_node *n = must_open(*state, "file", RW);

    write_bytes(n, 0, 1000000, 4);
    must_close(n);
    assert_int_equal(blk_create(&args, NULL, NULL), 0);
    assert_int_equal(length_of(*state), 300000);
    assert_true(blocks_of(*state) >= 300000 - 4096);
    n = must_open(*state, "raw", 0);
    assert_bytes(n, 0, 300000, 0);
    must_close(n);
}

static void assert_no_open(const char *name, int code, const char *words)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_open_args args = { .format = "file" };

    if (try_open(name, &args, &err))
        fail_msg("%s was opened", name);
    assert_int_equal(error_code(err), code);
    if (!strstr(error_text(err), words) || !strstr(error_text(err), name))
        fail_msg("'%s' lacks '%s' or the name", error_text(err), words);
}

static void what_is_no_image_is_refused(void **state)
{
    char *fifo = scratch_file();

    (void)state;
    assert_no_open("/nonexistent/image", ENOENT, "No such file");
    assert_no_open("/tmp", EISDIR, "directory");
    assert_no_open("/dev/null", EINVAL, "character device");
    unlink(fifo);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_no_open(fifo, EINVAL, "pipe");
    scratch_remove(fifo);
}

static void host_device_wants_a_device(void **state)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_open_args args = { .format = "host_device" };

    assert_null(try_open(*state, &args, &err));
    assert_int_equal(error_code(err), ENOTBLK);
}

/* ---- copying -------------------------------------------------------------------------------- */

static void the_host_copies(void **state)
{
    char *other = scratch_file();
    struct blk_node *a = must_open(*state, "file", RW), *b = must_open(other, "file", RW);
    uint64_t done = 0;
    int r;

    write_bytes(a, 0, 100000, 6);
    write_bytes(b, 0, 10, 1);
    r = blk_copy_range(a, 1000, b, 5, 99000, 0, &done);
    if (r == 0) {
        assert_true(done > 0);
        assert_bytes(b, 0, 5, 1);
        assert_bytes(b, 5, done, 6);
        assert_int_equal(blk_size(b), done + 5);
    } else {
        assert_int_equal(r, -ENOTSUP);
    }
    must_close(a);
    must_close(b);
    scratch_remove(other);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(past_the_end_reads_zero),
        TEST(writing_past_the_end_grows),
        TEST(thousands_of_pieces),
        TEST(durable_writes_and_flushes),
        TEST(read_only_refuses_writes),
        TEST(nowait_answers_from_the_cache_or_not_at_all),
        TEST(direct_takes_any_alignment),
        TEST(direct_leaves_no_padding_at_the_end),
        TEST(direct_files_grow_to_any_length),
        TEST(direct_never_answers_nowait),
        TEST(zeroes_give_space_back_when_they_may),
        TEST(zeroes_keep_the_space_when_they_must),
        TEST(zeroes_past_the_end_cost_nothing),
        TEST(discards_give_space_back),
        TEST(discards_do_nothing_unless_allowed),
        TEST(extents_tell_data_from_holes),
        TEST(extents_notice_changes),
        TEST(nowait_extents_answer_what_is_known),
        TEST(preallocation),
        TEST(failed_preallocation_leaves_the_old_length),
        TEST(creating_empties_and_sets_the_size),
        TEST(what_is_no_image_is_refused),
        TEST(host_device_wants_a_device),
        TEST(the_host_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
