/* Many threads on one leaf, each checking what it wrote: file (also direct), memory. */
#include <pthread.h>
#include <stdatomic.h>

#include "../block/scratch.h"

enum { THREADS = 8, ROUNDS = 300, SLOT = 12288, SLOTS = 64 };

struct worker {
    struct blk_node *node;
    unsigned id;
    unsigned char shadow[SLOTS][SLOT];
    const char *trouble;
};

/* Slots of all threads lie interleaved, so that they share blocks and the growing end. */
static uint64_t place(const struct worker *w, unsigned slot)
{
    return ((uint64_t)slot * THREADS + w->id) * SLOT;
}

static void step(struct worker *w, unsigned *seed)
{
    static _Thread_local unsigned char buf[SLOT];
    unsigned slot = (unsigned)rand_r(seed) % SLOTS, at = (unsigned)rand_r(seed) % SLOT;
    unsigned len = 1 + (unsigned)rand_r(seed) % (SLOT - at);
    unsigned char *shadow = w->shadow[slot] + at;
    uint64_t off = place(w, slot) + at;
    struct blk_extent extent;

    switch (rand_r(seed) % 6) {
    case 0:
    case 1:
        memset(shadow, rand_r(seed), len);
        if (blk_write(w->node, off, shadow, len, 0) < 0)
            w->trouble = "write failed";
        break;
    case 2:
        memset(shadow, 0, len);
        if (blk_zero(w->node, off, len, BLK_MAY_UNMAP) < 0)
            w->trouble = "zero failed";
        break;
    case 3:
        if (blk_extents(w->node, off, len, 0, &extent) < 0) {
            w->trouble = "extents failed";
        } else if (extent.flags & BLK_EXT_ZERO) {
            for (uint64_t i = 0; i < extent.length; i++)
                if (shadow[i])
                    w->trouble = "data is called a hole";
        }
        break;
    default:
        if (blk_read(w->node, off, buf, len, 0) < 0)
            w->trouble = "read failed";
        else if (memcmp(buf, shadow, len) != 0)
            w->trouble = "content differs";
    }
}

static void *work(void *arg)
{
    struct worker *w = arg;
    unsigned seed = w->id;

    for (int i = 0; i < ROUNDS && !w->trouble; i++)
        step(w, &seed);
    return NULL;
}

static void run(struct blk_node *node)
{
    struct worker *w = calloc(THREADS, sizeof(*w));
    pthread_t thread[THREADS];

    assert_non_null(w);
    for (unsigned i = 0; i < THREADS; i++) {
        w[i].node = node;
        w[i].id = i;
        assert_int_equal(pthread_create(&thread[i], NULL, work, &w[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    for (unsigned i = 0; i < THREADS; i++) {
        static unsigned char buf[SLOT];

        if (w[i].trouble)
            fail_msg("thread %u: %s", i, w[i].trouble);
        for (unsigned slot = 0; slot < SLOTS; slot++) {
            assert_int_equal(blk_read(node, place(&w[i], slot), buf, SLOT, 0), 0);
            assert_memory_equal(buf, w[i].shadow[slot], SLOT);
        }
    }
    free(w);
    must_close(node);
}

static void run_file(const char *cache)
{
    struct blk_open_args args = { .format = "file",
                                  .cache = cache,
                                  .flags = BLK_OPEN_RDWR | BLK_OPEN_UNMAP };
    char *name = scratch_file();
    struct blk_node *node = try_open(name, &args, NULL);

    if (!node && strcmp(cache, "none") == 0) {
        scratch_remove(name);
        skip();
    }
    assert_non_null(node);
    run(node);
    scratch_remove(name);
}

static void file(void **state)
{
    (void)state;
    run_file("writeback");
}

static void direct_file(void **state)
{
    (void)state;
    run_file("none");
}

static void memory(void **state)
{
    (void)state;
    run(must_open_opts("driver=memory", BLK_OPEN_RDWR | BLK_OPEN_UNMAP));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file),
        cmocka_unit_test(direct_file),
        cmocka_unit_test(memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
