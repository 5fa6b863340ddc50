/* Many threads on one copy-on-read node: readers that copy up, a writer that overtakes them. */
#include <pthread.h>
#include <stdatomic.h>

#include "../block/scratch.h"

enum { CLUSTER = 65536, DISK = 10 * CLUSTER };

static void create(const char *name, const char *backing)
{
    struct blk_create_args args = {
        .filename = name,
        .format = "qcow2",
        .size_given = true,
        .size = DISK,
        .backing_file = backing,
        .backing_format = backing ? "qcow2" : NULL,
    };

    assert_int_equal(blk_create(&args, NULL, NULL), 0);
}

/* Readers copy while writers write numbers that only rise: what was acknowledged is never seen to fall back. */
enum { READERS = 5, TURNS = 60, SPOTS = 16 };

struct race {
    struct blk_node *node;
    _Atomic uint32_t done[SPOTS]; /* written and acknowledged */
    _Atomic bool wrong, over;
};

static uint64_t spot(unsigned i)
{
    return (uint64_t)i * (CLUSTER / 2) + 4096 * (i % 3);
}

static void *race_writer(void *arg)
{
    struct race *r = arg;

    for (uint32_t turn = 1; turn <= TURNS; turn++)
        for (unsigned i = 0; i < SPOTS; i++) {
            if (blk_write(r->node, spot(i), &turn, sizeof(turn), 0) < 0)
                r->wrong = true;
            atomic_store(&r->done[i], turn);
        }
    atomic_store(&r->over, true);
    return NULL;
}

static void *race_reader(void *arg)
{
    struct race *r = arg;
    unsigned seed = (unsigned)(uintptr_t)&seed;

    while (!atomic_load(&r->over)) {
        unsigned i = (unsigned)rand_r(&seed) % SPOTS;
        uint32_t least = atomic_load(&r->done[i]), seen = 0;
        if (blk_read(r->node, spot(i), &seen, sizeof(seen), 0) < 0)
            r->wrong = true;
        else if (least > 0 && (seen < least || seen > TURNS)) /* > TURNS: the backing file's */
            r->wrong = true;
    }
    return NULL;
}

static void copies_never_overwrite_newer_writes(void **state)
{
    char *base = scratch_file(), *top = scratch_file();

    (void)state;
    create(base, NULL);
    struct blk_node *n = must_open(base, "qcow2", BLK_OPEN_RDWR);
    write_bytes(n, 0, DISK, 0xb5);
    must_close(n);

    for (int round = 0; round < 5; round++) {
        create(top, base);
        char *opts = NULL;
        /* The backing file is slow: copies are long under way when writes come. */
        assert_true(asprintf(&opts,
                             "driver=copy-on-read,file.driver=qcow2,file.file.filename=%s,"
                             "file.backing.driver=delay,file.backing.read-ns=100000,"
                             "file.backing.jitter-ns=1000000,"
                             "file.backing.file.driver=qcow2,"
                             "file.backing.file.file.filename=%s",
                             top, base) > 0);
        struct race r = {
            .node = must_open_opts(opts, BLK_OPEN_RDWR),
        };
        pthread_t reader[READERS], writer;
        for (int i = 0; i < READERS; i++)
            assert_int_equal(pthread_create(&reader[i], NULL, race_reader, &r), 0);
        assert_int_equal(pthread_create(&writer, NULL, race_writer, &r), 0);
        pthread_join(writer, NULL);
        for (int i = 0; i < READERS; i++)
            pthread_join(reader[i], NULL);
        assert_false(r.wrong);
        for (unsigned i = 0; i < SPOTS; i++) {
            uint32_t last = 0;
            assert_int_equal(blk_read(r.node, spot(i), &last, sizeof(last), 0), 0);
            assert_int_equal(last, TURNS);
        }
        must_close(r.node);
        free(opts);
    }
    scratch_remove(top);
    scratch_remove(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_never_overwrite_newer_writes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
