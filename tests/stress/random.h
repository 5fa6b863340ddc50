/* Random writes, zeroes, discards, compressed writes and flushes from many threads on one image, each thread checking
 * what it wrote, while one more makes and removes snapshots and changes the size; and then the check, ours and
 * qemu-img's: no error, no leak, right content. A snapshot from between two such rounds must show what was
 * there then, and bring it back.
 *
 * Threads own interleaved byte ranges that share clusters, so that allocation, copy-up and
 * unmapping of one cluster are always contended. RANDOM_ROUNDS in the environment makes it longer.
 */
#ifndef TESTS_STRESS_RANDOM_H
#define TESTS_STRESS_RANDOM_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../check.h"
#include "base/macros.h"
#include "block/block.h"

enum { MAX_THREADS = 8, SLOTS = 96, MAX_SLOT = 24576 };

struct layout {
    const char *name, *options;
    unsigned cluster, threads, slot;
    bool backing;
    const char *open_options;
    const char *format; /* NULL: qcow2 */
    bool ours_only;     /* qemu-img does not know such images */
};

struct worker {
    const struct layout *l;
    struct blk_node *node;
    unsigned id, seed, rounds;
    unsigned char shadow[SLOTS][MAX_SLOT];
    unsigned char buf[MAX_SLOT];
    char trouble[200];
};

static char dir[] = "/dev/shm/platter-random-XXXXXX";

static const char *format_of(const struct layout *l)
{
    return l->format ? l->format : "qcow2";
}

static uint64_t disk_size(const struct layout *l)
{
    uint64_t size = (uint64_t)SLOTS * l->threads * l->slot + 1536;
    return (size + 511) / 512 * 512;
}

static uint64_t place(const struct worker *w, unsigned slot)
{
    return ((uint64_t)slot * w->l->threads + w->id) * w->l->slot;
}

/* What the backing file holds: never zero. */
static unsigned char backing_byte(uint64_t off)
{
    return (unsigned char)(1 + off / 512 % 255);
}

static void complain(struct worker *w, const char *what, int ret, uint64_t off, unsigned len)
{
    if (!w->trouble[0])
        snprintf(w->trouble, sizeof(w->trouble), "%s: %s at %llu+%u: %d", w->l->name, what,
                 (unsigned long long)off, len, ret);
}

static void check_read(struct worker *w, uint64_t off, const unsigned char *want, unsigned len)
{
    int ret = blk_read(w->node, off, w->buf, len, 0);

    if (ret < 0)
        complain(w, "read failed", ret, off, len);
    else if (memcmp(w->buf, want, len))
        for (unsigned i = 0; i < len; i++)
            if (w->buf[i] != want[i]) {
                complain(w, "content differs", w->buf[i] * 1000 + want[i], off + i, len);
                break;
            }
}

/* Discarded bytes are what they were, or zeroes; which of them holds from then on. */
static void discard(struct worker *w, uint64_t off, unsigned char *shadow, unsigned len)
{
    int ret = blk_discard(w->node, off, len);

    if (ret == 0)
        ret = blk_read(w->node, off, w->buf, len, 0);
    if (ret < 0)
        complain(w, "discard failed", ret, off, len);
    for (unsigned i = 0; i < len && ret == 0; i++)
        if (w->buf[i] != shadow[i] && w->buf[i] != 0) {
            complain(w, "discard made data up", w->buf[i] * 1000 + shadow[i], off + i, len);
            break;
        }
    memcpy(shadow, w->buf, len);
}

static void scribble(struct worker *w, unsigned char *shadow, unsigned len)
{
    unsigned kind = (unsigned)rand_r(&w->seed) % 4;

    memset(shadow, kind == 0 ? 0 : rand_r(&w->seed), len);
    for (unsigned i = 0; kind == 3 && i < len; i++)
        shadow[i] = (unsigned char)rand_r(&w->seed);
}

/* A whole cluster inside the slot, if there is one, written compressed. */
static void compressed(struct worker *w, unsigned slot)
{
    uint64_t start = place(w, slot),
             off = (start + w->l->cluster - 1) / w->l->cluster * w->l->cluster;

    if (off + w->l->cluster > start + w->l->slot)
        return;
    unsigned char *shadow = w->shadow[slot] + (off - start);
    scribble(w, shadow, w->l->cluster);
    int ret = blk_write(w->node, off, shadow, w->l->cluster, w->l->format ? 0 : BLK_COMPRESSED);
    if (ret < 0)
        complain(w, "compressed write failed", ret, off, w->l->cluster);
}

static void step(struct worker *w)
{
    unsigned slot = (unsigned)rand_r(&w->seed) % SLOTS;
    unsigned at = (unsigned)rand_r(&w->seed) % w->l->slot;
    unsigned len = 1 + (unsigned)rand_r(&w->seed) % (w->l->slot - at);
    if (rand_r(&w->seed) % 4 == 0) {
        at = 0;
        len = w->l->slot;
    }
    unsigned char *shadow = w->shadow[slot] + at;
    uint64_t off = place(w, slot) + at;
    int ret = 0;

    switch (rand_r(&w->seed) % 12) {
    case 0:
    case 1:
    case 2:
        scribble(w, shadow, len);
        ret = blk_write(w->node, off, shadow, len, rand_r(&w->seed) % 64 ? 0 : BLK_FUA);
        break;
    case 3:
        memset(shadow, 0, len);
        ret = blk_zero(w->node, off, len, 0);
        break;
    case 4:
        memset(shadow, 0, len);
        ret = blk_zero(w->node, off, len, BLK_MAY_UNMAP);
        break;
    case 5:
        discard(w, off, shadow, len);
        break;
    case 6:
        compressed(w, slot);
        break;
    case 7:
        if (rand_r(&w->seed) % 16 == 0)
            ret = blk_flush(w->node);
        break;
    default:
        check_read(w, off, shadow, len);
    }
    if (ret < 0)
        complain(w, "write, zero or flush failed", ret, off, len);
}

/* ---- snapshots and sizes while the others write -------------------------------------------------- */

struct keeper {
    struct blk_node *node;
    uint64_t size;
    unsigned seed;
    atomic_bool stop;
    int failed;
};

static int make_snapshot(struct blk_node *node, const char *name)
{
    struct blk_snapshot what = { .name = name, .icount = UINT64_MAX };
    return blk_snapshot_create(node, &what, NULL);
}

/* Refcounts of one bit have no room for a snapshot. */
static void *keep(void *opaque)
{
    struct keeper *k = opaque;

    for (unsigned i = 0; !atomic_load(&k->stop) && !k->failed; i++) {
        char name[16];
        snprintf(name, sizeof(name), "k%u", i);
        int ret = make_snapshot(k->node, name);
        usleep((unsigned)rand_r(&k->seed) % 4000);
        int resized = blk_resize(k->node, k->size + (uint64_t)rand_r(&k->seed) % 8 * (1 << 20),
                                 BLK_PREALLOC_OFF, NULL);
        if (resized < 0 && resized != -ENOTSUP) /* version 2 with a snapshot */
            k->failed = resized;
        usleep((unsigned)rand_r(&k->seed) % 4000);
        if (ret == 0)
            ret = blk_snapshot_delete(k->node, NULL, name, NULL);
        if (ret < 0 && ret != -ERANGE && ret != -ENOTSUP)
            k->failed = ret;
    }
    return NULL;
}

static void *run(void *opaque)
{
    struct worker *w = opaque;

    for (unsigned i = 0; i < w->rounds && !w->trouble[0]; i++)
        step(w);
    return NULL;
}

/* Runs a command in the test's folder. */
static int __attribute__((format(printf, 1, 2))) shell(const char *fmt, ...)
{
    char text[1024], cmd[2048];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    snprintf(cmd, sizeof(cmd), "cd %s && { %s; }", dir, text);
    return system(cmd);
}

static void in_dir(char path[300], const char *name)
{
    snprintf(path, 300, "%s/%s", dir, name);
}

static void create(const struct layout *l, const char *name, const char *base)
{
    struct error *err = NULL;
    char path[300];

    in_dir(path, name);
    struct blk_create_args args = {
        .filename = path,
        .format = format_of(l),
        .options = l->options,
        .size_given = true,
        .size = disk_size(l),
        .backing_file = base,
        .backing_format = !base       ? NULL
                          : l->format ? l->format
                                      : "raw",
    };
    if (blk_create(&args, NULL, &err) < 0)
        fail_msg("%s: %s", l->name, blk_error_text(err));
}

/* The base must be of the same format, where a format has only such. */
static void convert_base(const struct layout *l)
{
    struct blk_copy_args copy = { .length = disk_size(l) };
    struct blk_open_args to = { .format = l->format, .flags = BLK_OPEN_RDWR };
    struct blk_open_args from = { .format = "raw" };
    char path[300];

    create(l, "base", NULL);
    in_dir(path, "base.raw");
    assert_int_equal(blk_open(path, &from, &copy.src, NULL), 0);
    in_dir(path, "base");
    assert_int_equal(blk_open(path, &to, &copy.dst, NULL), 0);
    assert_int_equal(blk_copy(&copy, NULL), 0);
    blk_close(copy.src, NULL);
    assert_int_equal(blk_close(copy.dst, NULL), 0);
}

static void make_image(const struct layout *l)
{
    char path[256];

    assert_int_equal(shell("rm -f *"), 0);
    if (l->backing) {
        snprintf(path, sizeof(path), "%s/base.raw", dir);
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        for (uint64_t i = 0; i < disk_size(l); i++)
            fputc(backing_byte(i), f);
        fclose(f);
        if (l->format)
            convert_base(l);
    }
    create(l, "image", !l->backing ? NULL : l->format ? "base" : "base.raw");
}

static struct blk_node *open_image(const struct layout *l, bool writable)
{
    struct error *err = NULL;
    struct blk_node *node;
    char name[512];

    snprintf(name, sizeof(name), "driver=%s,file.filename=%s/image%s", format_of(l), dir,
             l->open_options);
    struct blk_open_args args = {
        .image_opts = true,
        .cache = "unsafe",
        .flags = writable ? BLK_OPEN_RDWR | BLK_OPEN_UNMAP : 0,
    };
    if (blk_open(name, &args, &node, &err) < 0)
        fail_msg("%s: %s", l->name, blk_error_text(err));
    return node;
}

static void run_workers(const struct layout *l, struct worker *w)
{
    struct blk_node *node = open_image(l, true);
    struct keeper k = { .node = node, .size = disk_size(l), .seed = w->seed };
    pthread_t threads[MAX_THREADS], keeper;
    struct error *err = NULL;

    assert_int_equal(pthread_create(&keeper, NULL, keep, &k), 0);
    for (unsigned t = 0; t < l->threads; t++) {
        w[t].node = node;
        assert_int_equal(pthread_create(&threads[t], NULL, run, &w[t]), 0);
    }
    for (unsigned t = 0; t < l->threads; t++)
        pthread_join(threads[t], NULL);
    atomic_store(&k.stop, true);
    pthread_join(keeper, NULL);
    if (k.failed)
        fail_msg("%s: a snapshot or a new size: %d", l->name, k.failed);
    for (unsigned t = 0; t < l->threads; t++)
        if (w[t].trouble[0])
            fail_msg("%s", w[t].trouble);
    if (blk_close(node, &err) < 0)
        fail_msg("%s: close: %s", l->name, blk_error_text(err));
}

static void check_image(const struct layout *l)
{
    struct blk_node *node = open_image(l, false);
    struct blk_check found;
    int ret = blk_check(node, 0, &found, NULL, NULL);

    if (ret < 0 || found.corruptions || found.leaks || found.check_errors)
        fail_msg("%s: %llu errors, %llu leaks", l->name, (unsigned long long)found.corruptions,
                 (unsigned long long)found.leaks);
    blk_close(node, NULL);
}

/* The disk, or what one of its snapshots shows. */
static void verify(const struct layout *l, struct worker *w, const char *snapshot)
{
    struct blk_node *node = open_image(l, false);

    if (snapshot)
        assert_int_equal(blk_snapshot_view(node, NULL, snapshot, NULL), 0);
    for (unsigned t = 0; t < l->threads; t++) {
        w[t].node = node;
        for (unsigned s = 0; s < SLOTS; s++)
            check_read(&w[t], place(&w[t], s), w[t].shadow[s], l->slot);
        if (w[t].trouble[0])
            fail_msg("%s: %s", snapshot ? snapshot : "after reopening", w[t].trouble);
    }
    blk_close(node, NULL);
    check_image(l);
    /* 63: nothing to check */
    if (!l->ours_only && shell("qemu-img check -f %s image > check.log 2>&1 || test $? = 63 || { "
                               "cat check.log; false; }",
                               format_of(l)))
        fail_msg("%s: qemu-img check disagrees", l->name);
}

/* The same bytes as the other tool sees them. */
static void verify_foreign(const struct layout *l, struct worker *w)
{
    char path[256];

    if (l->ours_only)
        return;
    assert_int_equal(shell("qemu-img convert -f %s -O raw image out.raw", format_of(l)), 0);
    snprintf(path, sizeof(path), "%s/out.raw", dir);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    for (unsigned t = 0; t < l->threads; t++)
        for (unsigned s = 0; s < SLOTS; s++) {
            fseek(f, (long)place(&w[t], s), SEEK_SET);
            assert_int_equal(fread(w[t].buf, 1, l->slot, f), l->slot);
            if (memcmp(w[t].buf, w[t].shadow[s], l->slot))
                fail_msg("%s: qemu-img reads other bytes in slot %u of thread %u", l->name, s, t);
        }
    fclose(f);
}

/* False: this image has no room for a snapshot. */
static bool snapshot_between(const struct layout *l, const char *name, bool make)
{
    struct blk_node *node = open_image(l, true);
    int ret = make ? make_snapshot(node, name) : blk_snapshot_apply(node, NULL, name, NULL);

    assert_int_equal(blk_close(node, NULL), 0);
    assert_true(ret == 0 || ret == -ERANGE || ret == -ENOTSUP);
    return ret == 0;
}

/* Three rounds; after the first the disk is kept, after the second brought back. */
static void rounds_with_snapshot(const struct layout *l, struct worker *w, struct worker *kept)
{
    run_workers(l, w);
    verify(l, w, NULL);
    bool there = snapshot_between(l, "between", true);
    memcpy(kept, w, l->threads * sizeof(*w));
    run_workers(l, w);
    verify(l, w, NULL);
    if (there) {
        verify(l, kept, "between");
        snapshot_between(l, "between", false);
        memcpy(w, kept, l->threads * sizeof(*w));
        verify(l, w, NULL);
    }
    run_workers(l, w);
    verify(l, w, NULL);
    if (there)
        verify(l, kept, "between");
}

#ifdef __SANITIZE_THREAD__
enum { ROUNDS = 200 }; /* ten times as slow, and a race shows in any round */
#else
enum { ROUNDS = 600 };
#endif

static void random_operations(const struct layout *layouts, size_t count)
{
    const char *env = getenv("RANDOM_ROUNDS"), *seed = getenv("RANDOM_SEED");
    unsigned rounds = env ? (unsigned)atoi(env) : ROUNDS;
    unsigned base = seed ? (unsigned)atoi(seed) : 1u;
    struct worker *w = calloc(MAX_THREADS, sizeof(*w)), *kept = calloc(MAX_THREADS, sizeof(*w));

    assert_true(w && kept);
    print_message("seed %u\n", base);
    for (size_t i = 0; i < count; i++) {
        const struct layout *l = &layouts[i];
        make_image(l);
        for (unsigned t = 0; t < l->threads; t++) {
            w[t] = (struct worker){ .l = l, .id = t, .seed = base + 100 * t, .rounds = rounds };
            for (unsigned s = 0; l->backing && s < SLOTS; s++)
                for (unsigned k = 0; k < l->slot; k++)
                    w[t].shadow[s][k] = backing_byte(place(&w[t], s) + k);
        }
        rounds_with_snapshot(l, w, kept);
        verify_foreign(l, w);
    }
    free(w);
    free(kept);
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return shell("rm -rf %s", dir);
}

/* A test of these layouts: all there is to its main. */
static int run_random(CMUnitTestFunction fn)
{
    if (system("qemu-img --version > /dev/null 2>&1") != 0) {
        fprintf(stderr, "SKIP: qemu-img is missing\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        { "random_operations", fn, make_dir, remove_dir, NULL },
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
