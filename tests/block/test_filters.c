/* copy-on-read, compress, preallocate and delay, through the public interface. */
#include <errno.h>
#include <time.h>

#include "scratch.h"

enum {
    RW = BLK_OPEN_RDWR,
    RWU = BLK_OPEN_RDWR | BLK_OPEN_UNMAP,
    CLUSTER = 65536,
    DISK = 32 * CLUSTER + 5 * 512
};

static void create(const char *name, const char *options, uint64_t size, const char *backing)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_create_args args = {
        .filename = name,
        .format = "qcow2",
        .options = options,
        .size_given = true,
        .size = size,
        .backing_file = backing,
        .backing_format = backing ? "qcow2" : NULL,
    };

    if (blk_create(&args, NULL, &err) < 0)
        fail_msg("%s: %s", name, error_text(err));
}

__attribute__((format(printf, 1, 2))) static char *text(const char *format, ...)
{
    va_list args;
    char *out = NULL;

    va_start(args, format);
    assert_true(vasprintf(&out, format, args) > 0);
    va_end(args);
    return out;
}

static struct blk_node *open_text(char *opts, unsigned flags)
{
    struct blk_node *node = must_open_opts(opts, flags);

    free(opts);
    return node;
}

static void refuse_text(char *opts, const char *words)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_open_args args = { .image_opts = true, .flags = RW };

    assert_null(try_open(opts, &args, &err));
    if (!strstr(error_text(err), words))
        fail_msg("'%s' lacks '%s'", error_text(err), words);
    free(opts);
}

/* Formats have places for the names. */
#define open_with(format, name, flags)      open_text(text(format, name), flags)
#define open_with2(format, a, b, flags)     open_text(text(format, a, b), flags)
#define assert_refused(format, name, words) refuse_text(text(format, name), words)

/* Whether this layer itself holds the byte. */
static bool in_layer(struct blk_node *node, uint64_t off)
{
    struct blk_extent e;

    assert_int_equal(blk_extents(node, off, 1, BLK_LAYER, &e), 0);
    return e.flags & BLK_EXT_ALLOCATED;
}

/* ---- copy-on-read: base <- middle <- top ------------------------------------------------------ */

struct chain {
    char *base, *middle, *top;
};

#define COR "driver=copy-on-read,file.driver=qcow2,file.file.filename=%s"

/* base holds 1 in clusters 0..3, middle 2 in clusters 4..7, top 3 in cluster 8. */
static int chain_up(void **state)
{
    struct chain *c = calloc(1, sizeof(*c));
    const struct {
        char **name;
        unsigned first, count;
    } layers[] = { { &c->base, 0, 4 }, { &c->middle, 4, 4 }, { &c->top, 8, 1 } };

    for (int i = 0; i < 3; i++) {
        *layers[i].name = scratch_file();
        create(*layers[i].name, NULL, i ? DISK : 16 * CLUSTER, i ? *layers[i - 1].name : NULL);
        struct blk_node *n = must_open(*layers[i].name, "qcow2", RW);
        write_bytes(n, (uint64_t)layers[i].first * CLUSTER, (size_t)layers[i].count * CLUSTER,
                    i + 1);
        must_close(n);
    }
    *state = c;
    return 0;
}

static int chain_down(void **state)
{
    struct chain *c = *state;

    scratch_remove(c->base);
    scratch_remove(c->middle);
    scratch_remove(c->top);
    free(c);
    return 0;
}

static void reads_copy_whole_clusters_up(void **state)
{
    const struct chain *c = *state;
    struct blk_node *n = open_with(COR, c->top, RW);

    assert_int_equal(blk_size(n), DISK);
    assert_false(in_layer(n, 0));
    assert_bytes(n, CLUSTER - 10, 20, 1);
    assert_true(in_layer(n, 0));
    assert_true(in_layer(n, 2 * CLUSTER - 1));
    assert_false(in_layer(n, 2 * CLUSTER));
    assert_bytes(n, 5 * CLUSTER, 10, 2);
    assert_true(in_layer(n, 5 * CLUSTER));
    assert_false(in_layer(n, 4 * CLUSTER));
    must_close(n);

    n = must_open(c->top, "qcow2", BLK_OPEN_NO_BACKING);
    assert_bytes(n, 0, 2 * CLUSTER, 1);
    assert_bytes(n, 5 * CLUSTER, CLUSTER, 2);
    assert_bytes(n, 8 * CLUSTER, CLUSTER, 3);
    must_close(n);
}

static void one_read_of_all_makes_the_image_stand_alone(void **state)
{
    const struct chain *c = *state;
    static unsigned char before[DISK], after[DISK];
    struct blk_node *n = must_open(c->top, "qcow2", 0);

    assert_int_equal(blk_read(n, 0, before, DISK, 0), 0);
    must_close(n);
    n = open_with(COR, c->top, RW);
    assert_int_equal(blk_read(n, 0, after, DISK, 0), 0);
    assert_memory_equal(before, after, DISK);
    must_close(n);
    n = must_open(c->top, "qcow2", BLK_OPEN_NO_BACKING);
    memset(after, 0xee, DISK);
    assert_int_equal(blk_read(n, 0, after, DISK, 0), 0);
    assert_memory_equal(before, after, DISK);
    must_close(n);
}

static void zeroes_are_copied_as_zeroes(void **state)
{
    const struct chain *c = *state;
    struct blk_node *n = open_with(COR, c->top, RW);
    struct blk_extent e;

    assert_bytes(n, 12 * CLUSTER, CLUSTER, 0);
    assert_int_equal(blk_extents(n, 12 * CLUSTER, CLUSTER, BLK_LAYER, &e), 0);
    assert_true(e.flags & BLK_EXT_ZERO);
    must_close(n);
}

static void bottom_limits_what_is_copied(void **state)
{
    const struct chain *c = *state;
    struct blk_node *n =
        open_with2(COR ",bottom=mid,file.backing.node-name=mid,file.backing.driver=qcow2,"
                       "file.backing.file.filename=%s",
                   c->top, c->middle, RW);

    assert_bytes(n, 0, CLUSTER, 1);
    assert_bytes(n, 4 * CLUSTER, CLUSTER, 2);
    assert_false(in_layer(n, 0));
    assert_true(in_layer(n, 4 * CLUSTER));
    must_close(n);
    assert_refused(COR ",bottom=nobody", c->top, "nobody");
}

static void read_only_just_reads(void **state)
{
    const struct chain *c = *state;
    struct blk_node *n = open_with(COR, c->top, 0);

    assert_bytes(n, 0, CLUSTER, 1);
    assert_false(in_layer(n, 0));
    must_close(n);
}

static void nowait_reads_never_copy(void **state)
{
    const struct chain *c = *state;
    struct blk_node *n = open_with(COR, c->top, RW);
    char byte;

    assert_int_equal(blk_read(n, 0, &byte, 1, BLK_NOWAIT), -EAGAIN);
    assert_false(in_layer(n, 0));
    must_close(n);
}

static void a_copy_that_fails_fails_the_read(void **state)
{
    const struct chain *c = *state;
    struct blk_node *n =
        open_with("driver=copy-on-read,file.driver=qcow2,file.file.driver=blkdebug,"
                  "file.file.image.driver=file,file.file.image.filename=%s,"
                  "file.file.inject-error.0.event=write_aio,file.file.inject-error.0.errno=28,"
                  "file.file.inject-error.0.iotype=write,file.file.inject-error.0.once=on",
                  c->top, RW);
    char byte;

    assert_int_equal(blk_read(n, 0, &byte, 1, 0), -ENOSPC);
    assert_false(in_layer(n, 0));
    assert_bytes(n, 0, CLUSTER, 1);
    must_close(n);
}

/* ---- compress ----------------------------------------------------------------------------------- */

#define COMPRESS "driver=compress,file.driver=qcow2,file.file.filename=%s"

static void writes_of_any_length_are_stored_compressed(void **state)
{
    char *name = scratch_file();
    static unsigned char shadow[DISK], seen[DISK];
    struct blk_extent e;

    (void)state;
    create(name, NULL, DISK, NULL);
    struct blk_node *n = open_with(COMPRESS, name, RWU);
    srand(5);
    for (int i = 0; i < 60; i++) {
        size_t off = (size_t)rand() % DISK, len = 1 + (size_t)rand() % (3 * CLUSTER);
        len = len > DISK - off ? DISK - off : len;
        memset(shadow + off, i + 1, len);
        assert_int_equal(blk_write(n, off, shadow + off, len, 0), 0);
    }
    memset(shadow + DISK - 7, 99, 7);
    assert_int_equal(blk_write(n, DISK - 7, shadow + DISK - 7, 7, 0), 0);
    memset(shadow + 3 * CLUSTER, 0, CLUSTER + 100);
    assert_int_equal(blk_zero(n, 3 * CLUSTER, CLUSTER + 100, BLK_MAY_UNMAP), 0);
    assert_int_equal(blk_read(n, 0, seen, DISK, 0), 0);
    assert_memory_equal(seen, shadow, DISK);
    must_close(n);

    n = must_open(name, "qcow2", 0);
    assert_int_equal(blk_read(n, 0, seen, DISK, 0), 0);
    assert_memory_equal(seen, shadow, DISK);
    for (uint64_t off = 0; off < DISK; off += e.length) {
        assert_int_equal(blk_extents(n, off, DISK - off, 0, &e), 0);
        assert_true(e.flags & (BLK_EXT_COMPRESSED | BLK_EXT_ZERO));
    }
    struct blk_check found;
    assert_int_equal(blk_check(n, 0, &found, NULL, NULL), 0);
    assert_int_equal(found.corruptions + found.leaks, 0);
    must_close(n);
    scratch_remove(name);
}

static void formats_that_cannot_compress_are_refused(void **state)
{
    char *name = scratch_file();

    (void)state;
    assert_refused("driver=compress,file.driver=raw,file.file.filename=%s", name, "raw");
    scratch_remove(name);
}

/* ---- preallocate ---------------------------------------------------------------------------------- */

static void files_grow_ahead_and_are_cut_back(void **state)
{
    char *name = scratch_file();
    struct blk_node *n = open_with("driver=preallocate,prealloc-align=64k,prealloc-size=1M,"
                                   "file.driver=file,file.filename=%s",
                                   name, RWU);

    (void)state;
    write_bytes(n, 0, 1000, 1);
    assert_int_equal(blk_size(n), 1000);
    assert_int_equal(length_of(name), (1 << 20) + 65536);
    assert_true(blocks_of(name) >= 1 << 20);
    write_bytes(n, 500000, 1000, 2);
    assert_int_equal(length_of(name), (1 << 20) + 65536);
    assert_bytes(n, 1000, 499000, 0);
    write_bytes(n, 2 << 20, 10, 3);
    assert_int_equal(blk_size(n), (2 << 20) + 10);
    assert_int_equal(length_of(name), (3 << 20) + 65536);
    must_close(n);
    assert_int_equal(length_of(name), (2 << 20) + 10);
    scratch_remove(name);
}

static void resizing_forgets_what_lay_ready(void **state)
{
    char *name = scratch_file();
    struct blk_node *n = open_with("driver=preallocate,prealloc-size=1M,"
                                   "file.driver=file,file.filename=%s",
                                   name, RWU);

    (void)state;
    write_bytes(n, 0, 100000, 1);
    assert_int_equal(blk_resize(n, 5000, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(length_of(name), 5000);
    assert_int_equal(blk_resize(n, 9000, BLK_PREALLOC_OFF, NULL), 0);
    assert_bytes(n, 5000, 4000, 0);
    write_bytes(n, 20000, 1, 1);
    must_close(n);
    assert_int_equal(length_of(name), 20001);
    scratch_remove(name);
}

static void qcow2_lives_in_a_file_that_grows_ahead(void **state)
{
    char *name = scratch_file();

    (void)state;
    create(name, NULL, DISK, NULL);
    struct blk_node *n = open_with("driver=qcow2,file.driver=preallocate,file.prealloc-size=8M,"
                                   "file.file.driver=file,file.file.filename=%s",
                                   name, RWU);
    write_bytes(n, 0, DISK, 4);
    assert_true(length_of(name) >= 8 << 20);
    must_close(n);
    assert_true(length_of(name) < DISK + 8 * CLUSTER);
    n = must_open(name, "qcow2", 0);
    assert_bytes(n, 0, DISK, 4);
    must_close(n);
    scratch_remove(name);
}

static void odd_alignment_is_refused(void **state)
{
    char *name = scratch_file();

    (void)state;
    assert_refused("driver=preallocate,prealloc-align=1000,file.driver=file,file.filename=%s", name,
                   "512");
    scratch_remove(name);
}

/* ---- delay ------------------------------------------------------------------------------------------ */

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void each_kind_waits_its_time(void **state)
{
    struct blk_node *n = must_open_opts("driver=delay,read-ns=20000000,write-ns=40000000,"
                                        "flush-ns=80000000,file.driver=memory,file.size=1M",
                                        RWU);
    char byte = 1;

    (void)state;
    assert_int_equal(blk_read(n, 0, &byte, 1, BLK_NOWAIT), -EAGAIN);
    assert_int_equal(blk_write(n, 0, &byte, 1, BLK_NOWAIT), -EAGAIN);
    double t0 = seconds();
    assert_bytes(n, 0, 1, 0);
    double t1 = seconds();
    write_bytes(n, 0, 1, 1);
    double t2 = seconds();
    assert_int_equal(blk_zero(n, 0, 1, 0), 0);
    assert_int_equal(blk_discard(n, 0, 4096), 0);
    double t3 = seconds();
    assert_int_equal(blk_flush(n), 0);
    double t4 = seconds();
    assert_true(t1 - t0 >= 0.02 && t2 - t1 >= 0.04 && t3 - t2 >= 0.08 && t4 - t3 >= 0.08);
    must_close(n);
}

static void without_times_delay_is_transparent(void **state)
{
    struct blk_node *n = must_open_opts("driver=delay,file.driver=memory", RWU);
    char byte = 0;

    (void)state;
    write_bytes(n, 70000, 10, 5);
    assert_int_equal(blk_size(n), 70010);
    assert_int_equal(blk_read(n, 70000, &byte, 1, BLK_NOWAIT), 0);
    assert_int_equal(byte, 5);
    assert_int_equal(blk_resize(n, 100, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(blk_size(n), 100);
    must_close(n);
}

int main(void)
{
#define CHAINED(test) cmocka_unit_test_setup_teardown(test, chain_up, chain_down)
    const struct CMUnitTest tests[] = {
        CHAINED(reads_copy_whole_clusters_up),
        CHAINED(one_read_of_all_makes_the_image_stand_alone),
        CHAINED(zeroes_are_copied_as_zeroes),
        CHAINED(bottom_limits_what_is_copied),
        CHAINED(read_only_just_reads),
        CHAINED(nowait_reads_never_copy),
        CHAINED(a_copy_that_fails_fails_the_read),
        cmocka_unit_test(writes_of_any_length_are_stored_compressed),
        cmocka_unit_test(formats_that_cannot_compress_are_refused),
        cmocka_unit_test(files_grow_ahead_and_are_cut_back),
        cmocka_unit_test(resizing_forgets_what_lay_ready),
        cmocka_unit_test(qcow2_lives_in_a_file_that_grows_ahead),
        cmocka_unit_test(odd_alignment_is_refused),
        cmocka_unit_test(each_kind_waits_its_time),
        cmocka_unit_test(without_times_delay_is_transparent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
