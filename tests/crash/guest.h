/* A guest of random operations that remembers what each block of its disk may hold.
 *
 * Every written block gets a tag of its own, so that what comes back tells which write it is from, and whether it
 * is torn. After a failure or a power cut a block may hold the value it had at the last flush, or any later one.
 */
#ifndef TESTS_CRASH_GUEST_H
#define TESTS_CRASH_GUEST_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../block/scratch.h"
#include "base/bytes.h"
#include "base/macros.h"

enum { SECTOR = 512, MAX_EVENTS = 1 << 18 };

/* Where the images of a test lie, between make_dir and remove_dir. */
static char dir[] = "/dev/shm/platter-crash-XXXXXX";

static inline int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static inline int remove_dir(void **state)
{
    char cmd[300];

    (void)state;
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}

/* So many points of each case are tried when nothing else is said: the sanitizers are slow, and what they find does not
 * depend on the place. */
#ifdef __SANITIZE_ADDRESS__
enum { SOME = 8 };
#else
enum { SOME = 18 };
#endif

struct disk_case {
    const char *name;
    const char *format;
    const char *create; /* options of making the image */
    bool backing; /* on a backing file without zeroes, raw unless it must be of the same format */
    bool compressed; /* compressed writes are in the mix */
    uint32_t cluster;
    uint64_t disk; /* bytes */
    unsigned operations;
};

/* Every writable format. */
static const struct disk_case disk_cases[] = {
    { "raw", "raw", "", false, false, 4096, 1 << 20, 300 },
    { "qcow2, 4k", "qcow2", "cluster_size=4k", false, false, 4096, 2 << 20, 500 },
    { "qcow2, 4k, backing", "qcow2", "cluster_size=4k", true, false, 4096, 2 << 20, 500 },
    { "qcow2, 4k, compressed", "qcow2", "cluster_size=4k", false, true, 4096, 2 << 20, 500 },
    { "qcow2, 512, backing, compressed", "qcow2", "cluster_size=512", true, true, 512, 1 << 20,
      700 },
    { "qcow2, 512, 64 bit", "qcow2", "cluster_size=512,refcount_bits=64", false, false, 512,
      1 << 20, 700 },
    { "qcow2, 512, 1 bit", "qcow2", "cluster_size=512,refcount_bits=1", true, false, 512, 1 << 20,
      700 },
    { "qcow2, version 2, backing", "qcow2", "compat=0.10,cluster_size=4k", true, true, 4096,
      2 << 20, 500 },
    { "qcow2, 64k, zstd", "qcow2", "compression_type=zstd", true, true, 65536, 4 << 20, 300 },
    { "qcow2, lazy refcounts", "qcow2", "cluster_size=4k,lazy_refcounts=on", true, false, 4096,
      2 << 20, 500 },
    { "qcow2, data file, backing", "qcow2", "cluster_size=4k,data_file=data", true, false, 4096,
      2 << 20, 500 },
    { "qcow2, raw data file", "qcow2", "cluster_size=4k,data_file=data,data_file_raw=on", false,
      false, 4096, 2 << 20, 500 },
    { "qcow2, subclusters, data file", "qcow2", "cluster_size=16k,extended_l2=on,data_file=data",
      true, false, 16384, 2 << 20, 500 },
    { "qcow2, subclusters", "qcow2", "extended_l2=on,cluster_size=16k", false, false, 16384,
      2 << 20, 500 },
    { "qcow2, subclusters, backing, compressed", "qcow2", "extended_l2=on,cluster_size=16k", true,
      true, 16384, 2 << 20, 500 },
    { "vdi, 4k", "vdi", "block_size=4k", false, false, 4096, 2 << 20, 500 },
    { "vdi, 64k", "vdi", "block_size=64k", false, false, 65536, 4 << 20, 500 },
    { "vdi, static", "vdi", "block_size=4k,static=on", false, false, 4096, 1 << 20, 300 },
    { "vdi, differencing", "vdi", "block_size=16k", true, false, 16384, 2 << 20, 500 },
    { "vpc, 4k", "vpc", "block_size=4k,force_size=on", false, false, 4096, 2 << 20, 500 },
    { "vpc, 64k", "vpc", "block_size=64k,force_size=on", false, false, 65536, 4 << 20, 500 },
    { "vpc, fixed", "vpc", "subformat=fixed,force_size=on", false, false, 4096, 1 << 20, 300 },
    { "vpc, differencing", "vpc", "block_size=16k", true, false, 16384, 2 << 20, 500 },
    { "vmdk", "vmdk", "", false, false, 65536, 4 << 20, 400 },
    { "vmdk, backing", "vmdk", "", true, false, 65536, 4 << 20, 400 },
    { "vmdk, zeroed grains, backing", "vmdk", "zeroed_grain=on", true, false, 65536, 4 << 20, 400 },
    { "vmdk, stream", "vmdk", "subformat=streamOptimized", false, true, 65536, 2 << 20, 300 },
    { "vhdx", "vhdx", "block_size=1M", false, false, 1 << 20, 4 << 20, 80 },
    { "vhdx, fixed", "vhdx", "block_size=1M,subformat=fixed", false, false, 1 << 20, 4 << 20, 80 },
    { "vhdx, parent", "vhdx", "block_size=1M", true, false, 1 << 20, 4 << 20, 80 },
    { "vhdx, parent, 4k sectors", "vhdx", "block_size=2M,logical_sector_size=4096", true, false,
      2 << 20, 4 << 20, 80 },
};

static inline bool is_vhdx(const struct disk_case *c)
{
    return !strcmp(c->format, "vhdx");
}

/* DISK_CASE in the environment: only the cases with this in their names. */
static inline bool case_wanted(const struct disk_case *c)
{
    const char *want = getenv("DISK_CASE");
    return !want || strstr(c->name, want);
}

/* A block of the guest's disk got this value in that operation. */
struct event {
    uint32_t block, operation;
    uint64_t tag; /* 0: zeroes */
    bool soft;    /* a discard, or it failed: the old value may stay */
};

/* A snapshot inside the image. */
struct kept {
    unsigned made, removed; /* by which operation; removed 0: not yet */
    bool doubtful;          /* making or removing it failed */
    uint64_t *tags;         /* of each block */
};

enum { MAX_KEPT = 64, KEPT_AT_ONCE = 4 };

struct guest {
    const struct disk_case *c;
    unsigned seed;
    struct event *events;
    size_t count;
    uint64_t next_tag;
    bool *is_flush; /* by operation, from 1 */
    struct kept kept[MAX_KEPT];
    unsigned kept_count;
};

static inline uint32_t guest_blocks(const struct disk_case *c)
{
    return (uint32_t)(c->disk / SECTOR);
}

/* What is zeroed and discarded is a multiple of this. */
static inline uint32_t guest_part(const struct disk_case *c)
{
    return strstr(c->create, "extended_l2") ? c->cluster / 32 : c->cluster;
}

/* Guest data lies in dir/data. */
static inline bool guest_has_data_file(const struct disk_case *c)
{
    return strstr(c->create, "data_file=");
}

static inline void fill_block(uint8_t *b, uint64_t tag)
{
    memset(b, 0, SECTOR);
    if (tag)
        for (unsigned i = 0; i < SECTOR; i += 8)
            store_be64(b + i, tag);
}

static inline uint64_t backing_tag(uint32_t block)
{
    return UINT64_C(0xbac0000000000000) + block;
}

static inline void guest_init(struct guest *g, const struct disk_case *c, unsigned seed)
{
    *g = (struct guest){ .c = c, .seed = seed };
    g->events = malloc(MAX_EVENTS * sizeof(*g->events));
    g->is_flush = calloc(c->operations + 2, sizeof(*g->is_flush));
    assert_true(g->events && g->is_flush);
}

static inline void guest_free(struct guest *g)
{
    for (unsigned i = 0; i < g->kept_count; i++)
        free(g->kept[i].tags);
    free(g->events);
    free(g->is_flush);
}

static inline void guest_note(struct guest *g, uint32_t block, unsigned operation, uint64_t tag,
                              bool soft)
{
    assert_true(g->count < MAX_EVENTS);
    g->events[g->count++] = (struct event){ block, operation, tag, soft };
}

static inline int guest_write(struct guest *g, struct blk_node *n, unsigned op, uint32_t block,
                              uint32_t count, unsigned flags)
{
    uint8_t *buf = malloc((size_t)count * SECTOR);

    assert_non_null(buf);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t tag = rand_r(&g->seed) % 16 ? ++g->next_tag : 0;
        fill_block(buf + (size_t)i * SECTOR, tag);
        guest_note(g, block + i, op, tag, false);
    }
    int ret = blk_write(n, (uint64_t)block * SECTOR, buf, (size_t)count * SECTOR, flags);
    free(buf);
    return ret;
}

static inline int guest_unmap(struct guest *g, struct blk_node *n, unsigned op, uint32_t block,
                              uint32_t count, unsigned kind)
{
    uint64_t off = (uint64_t)block * SECTOR, len = (uint64_t)count * SECTOR;

    for (uint32_t i = 0; i < count; i++)
        guest_note(g, block + i, op, 0, kind == 2);
    if (kind == 2)
        return blk_discard(n, off, len);
    return blk_zero(n, off, len, kind ? BLK_MAY_UNMAP : 0);
}

/* ---- snapshots inside the image --------------------------------------------------------------- */

/* The tag of each block as the disk is now; NULL: it cannot be read. */
static inline uint64_t *read_tags(const struct disk_case *c, struct blk_node *n)
{
    uint8_t *bytes = malloc(c->disk);
    uint64_t *tags = calloc(guest_blocks(c), sizeof(*tags));

    assert_true(bytes && tags);
    if (blk_read(n, 0, bytes, c->disk, 0) < 0) {
        free(tags);
        tags = NULL;
    }
    for (uint32_t b = 0; tags && b < guest_blocks(c); b++)
        tags[b] = load_be64(bytes + (size_t)b * SECTOR);
    free(bytes);
    return tags;
}

static inline void kept_name(unsigned i, char name[16])
{
    snprintf(name, 16, "s%u", i);
}

static inline int guest_keep(struct guest *g, struct blk_node *n, unsigned op)
{
    struct kept *k = &g->kept[g->kept_count];
    char name[16];

    kept_name(g->kept_count, name);
    struct blk_snapshot what = { .name = name, .icount = UINT64_MAX };
    k->tags = read_tags(g->c, n);
    if (!k->tags)
        return -EIO;
    g->kept_count++;
    k->made = op;
    int ret = blk_snapshot_create(n, &what, NULL);
    k->doubtful = ret < 0;
    g->is_flush[op] = ret == 0;
    if (ret == -ENOTSUP || ret == -ERANGE) { /* not with this format, or refcounts of one bit */
        k->removed = op;
        return 0;
    }
    return ret;
}

static inline int guest_go_back(struct guest *g, struct blk_node *n, unsigned op, unsigned i)
{
    char name[16];

    kept_name(i, name);
    for (uint32_t b = 0; b < guest_blocks(g->c); b++)
        guest_note(g, b, op, g->kept[i].tags[b], false);
    int ret = blk_snapshot_apply(n, NULL, name, NULL);
    g->is_flush[op] = ret == 0;
    return ret;
}

static inline int guest_drop(struct guest *g, struct blk_node *n, unsigned op, unsigned i)
{
    char name[16];

    kept_name(i, name);
    g->kept[i].removed = op;
    int ret = blk_snapshot_delete(n, NULL, name, NULL);
    g->kept[i].doubtful = ret < 0;
    return ret;
}

/* One of those that are there, or one more. */
static inline int guest_snapshot(struct guest *g, struct blk_node *n, unsigned op)
{
    unsigned there[MAX_KEPT], count = 0;

    for (unsigned i = 0; i < g->kept_count; i++)
        if (!g->kept[i].removed && !g->kept[i].doubtful)
            there[count++] = i;
    unsigned choice = (unsigned)rand_r(&g->seed) % 4;
    if (count > 0 && (choice == 0 || g->count > MAX_EVENTS * 3 / 4 || count >= KEPT_AT_ONCE))
        return guest_drop(g, n, op, there[(unsigned)rand_r(&g->seed) % count]);
    if (count > 0 && choice == 1)
        return guest_go_back(g, n, op, there[(unsigned)rand_r(&g->seed) % count]);
    return g->kept_count < MAX_KEPT ? guest_keep(g, n, op) : 0;
}

/* A snapshot shows what the disk was, whole: NULL, or what is wrong with it. `flushed`: the last operation
 * that is certain, `reached`: the last that was begun. n is open read-only, and used up. */
static inline const char *kept_verify(const struct guest *g, unsigned i, struct blk_node *n,
                                      unsigned flushed, unsigned reached)
{
    const struct kept *k = &g->kept[i];
    char name[16];

    kept_name(i, name);
    int ret = blk_snapshot_view(n, NULL, name, NULL);
    if (ret == -ENOENT || ret == -ENOTSUP) {
        bool must = k->made <= flushed && !k->doubtful && (!k->removed || k->removed > reached);
        return must ? "a snapshot is missing" : NULL;
    }
    if (ret < 0)
        return "a snapshot cannot be looked into";
    uint64_t *tags = read_tags(g->c, n);
    bool same = tags && !memcmp(tags, k->tags, guest_blocks(g->c) * sizeof(*tags));
    free(tags);
    return same ? NULL : "a snapshot's content changed";
}

/* What a failed operation left undone cannot be told. */
static inline void guest_failed(struct guest *g, unsigned op)
{
    for (size_t i = g->count; i > 0 && g->events[i - 1].operation == op; i--)
        g->events[i - 1].soft = true;
}

/* Operation number op, from 1. */
static inline int guest_operate(struct guest *g, struct blk_node *n, unsigned op)
{
    uint32_t blocks = guest_blocks(g->c), per = g->c->cluster / SECTOR;
    uint32_t block = (uint32_t)rand_r(&g->seed) % blocks;
    uint32_t count = 1 + (uint32_t)rand_r(&g->seed) % (rand_r(&g->seed) % 4 ? 8 : 5 * per);
    unsigned kind = (unsigned)rand_r(&g->seed) % 16;

    if (kind >= 10 && kind < 13) { /* unmapping is for whole clusters, or subclusters */
        uint32_t part = guest_part(g->c) / SECTOR;
        block = block / part * part;
        count = MAX(count / part, 1u) * part;
    }
    count = MIN(count, blocks - block);
    if (kind >= 10 && kind < 13)
        return guest_unmap(g, n, op, block, count, kind - 10);
    if (kind == 13) {
        g->is_flush[op] = true;
        return blk_flush(n);
    }
    if (kind == 15 && rand_r(&g->seed) % 2)
        return guest_snapshot(g, n, op);
    if (kind == 15 && rand_r(&g->seed) % 2) {
        /* A tail that the guest does not use comes and goes, and tables with it. */
        uint64_t tail = (uint64_t)rand_r(&g->seed) % 64 * (g->c->disk / 16);
        if (is_vhdx(g->c) && !strstr(g->c->create, "fixed"))
            tail <<= 14; /* so that the BAT has to move */
        int ret = blk_resize(n, g->c->disk + tail, BLK_PREALLOC_OFF, NULL);
        return ret == -ENOTSUP ? 0 : ret; /* version 2 with snapshots */
    }
    if (kind == 14 && g->c->compressed) {
        block = block / per * per;
        return guest_write(g, n, op, block, MIN(per, blocks - block), BLK_COMPRESSED);
    }
    return guest_write(g, n, op, block, count, 0);
}

/* ---- what each block may hold ---------------------------------------------------------------- */

struct allowed {
    uint64_t tags[24];
    unsigned n; /* UINT32_MAX: too many to tell apart */
};

static inline void allow(struct allowed *a, uint64_t tag)
{
    for (unsigned i = 0; i < a->n && a->n != UINT32_MAX; i++)
        if (a->tags[i] == tag)
            return;
    if (a->n < ARRAY_SIZE(a->tags))
        a->tags[a->n++] = tag;
    else
        a->n = UINT32_MAX;
}

/* At the start. */
static inline struct allowed *allowed_new(const struct disk_case *c)
{
    struct allowed *a = calloc(guest_blocks(c), sizeof(*a));

    assert_non_null(a);
    for (uint32_t b = 0; b < guest_blocks(c); b++)
        allow(&a[b], c->backing ? backing_tag(b) : 0);
    return a;
}

/* Everything up to operation `flushed` is certain. `from` is what the last call returned. */
static inline size_t allowed_settle(const struct guest *g, struct allowed *a, size_t from,
                                    unsigned flushed)
{
    size_t i = from;

    for (; i < g->count && g->events[i].operation <= flushed; i++) {
        struct allowed *b = &a[g->events[i].block];
        if (!g->events[i].soft)
            b->n = 0;
        allow(b, g->events[i].tag);
    }
    return i;
}

/* And everything from event `from` to operation `reached` may be. */
static inline void allowed_add(const struct guest *g, struct allowed *a, size_t from,
                               unsigned reached)
{
    for (size_t i = from; i < g->count && g->events[i].operation <= reached; i++)
        allow(&a[g->events[i].block], g->events[i].tag);
}

/* Reads the whole disk; the first block that is wrong, or -1, with what it holds in *tag. */
static inline int64_t allowed_verify(const struct disk_case *c, const struct allowed *a,
                                     struct blk_node *n, uint64_t *tag)
{
    uint8_t *bytes = malloc(c->disk), want[SECTOR];
    int64_t wrong = -1;

    assert_non_null(bytes);
    assert_int_equal(blk_read(n, 0, bytes, c->disk, 0), 0);
    for (uint32_t b = 0; b < guest_blocks(c) && wrong < 0; b++) {
        const uint8_t *block = bytes + (size_t)b * SECTOR;
        *tag = load_be64(block);
        fill_block(want, *tag);
        bool known = a[b].n == UINT32_MAX;
        for (unsigned i = 0; !known && i < a[b].n; i++)
            known = a[b].tags[i] == *tag;
        if (!known || memcmp(block, want, SECTOR))
            wrong = b;
    }
    free(bytes);
    return wrong;
}

/* A check hook: keeps the first finding that is not a leak, in 200 bytes. */
static inline void first_finding(void *opaque, const char *text)
{
    char *first = opaque;
    if (!first[0] && strncmp(text, "Leaked", 6))
        snprintf(first, 200, "%s", text);
}

/* blk_check, where a format without anything to check is sound. */
static inline int check_image(struct blk_node *n, struct blk_check *found,
                              const struct blk_check_hooks *hooks, struct error **err)
{
    int ret = blk_check(n, 0, found, hooks, err);

    if (ret != -ENOTSUP)
        return ret;
    *found = (struct blk_check){ 0 };
    return 0;
}

/* Version 2 has no mark. Between the counts and the flags of a snapshot COPIED may be there where the count is
 * two already, or not be there where it is one again: nothing is lost, and check -r mends it. */
static inline bool flags_only(const struct disk_case *c, const char *finding)
{
    return strstr(c->create, "compat=0.10") && !strncmp(finding, "ERROR OFLAG_COPIED", 18);
}

/* ---- the image --------------------------------------------------------------------------------- */

/* What a backing file of this case must be. */
static inline const char *base_format(const struct disk_case *c)
{
    return strcmp(c->format, "qcow2") ? c->format : "raw";
}

/* The same bytes as an image of another format. */
static inline void convert_base(const struct disk_case *c, const char *raw, const char *base)
{
    struct blk_create_args args = { .filename = base,
                                    .format = c->format,
                                    .options = is_vhdx(c)                 ? c->create
                                               : strcmp(c->format, "vpc") ? NULL
                                                                          : "force_size=on",
                                    .size_given = true,
                                    .size = c->disk };
    assert_int_equal(blk_create(&args, NULL, NULL), 0);
    struct blk_node *from = must_open(raw, "raw", 0),
                    *to = must_open(base, c->format, BLK_OPEN_RDWR);
    struct blk_copy_args copy = { .src = from, .dst = to, .length = c->disk };
    assert_int_equal(blk_copy(&copy, NULL), 0);
    must_close(from);
    must_close(to);
}

/* Makes dir/image, with dir/base.raw below it where the case wants it. */
static inline void make_image(const struct disk_case *c)
{
    _cleanup_error_ struct error *err = NULL;
    char image[256], base[256] = "";

    snprintf(image, sizeof(image), "%s/image", dir);
    snprintf(base, sizeof(base), "%s/base.raw", dir);
    if (c->backing) {
        FILE *f = fopen(base, "w");
        assert_non_null(f);
        for (uint32_t i = 0; i < guest_blocks(c); i++) {
            uint8_t b[SECTOR];
            fill_block(b, backing_tag(i));
            assert_int_equal(fwrite(b, 1, SECTOR, f), SECTOR);
        }
        fclose(f);
        if (strcmp(base_format(c), "raw")) {
            char raw[256];
            snprintf(raw, sizeof(raw), "%s", base);
            snprintf(base, sizeof(base), "%s/base.%s", dir, c->format);
            convert_base(c, raw, base);
        }
    }
    /* A VDI image has its parent beside it. */
    const char *stated = strcmp(c->format, "vdi") || !c->backing ? base : strrchr(base, '/') + 1;
    struct blk_create_args args = {
        .filename = image,
        .format = c->format,
        .options = c->create,
        .size_given = true,
        .size = c->disk,
        .backing_file = c->backing ? stated : NULL,
        .backing_format = c->backing ? base_format(c) : NULL,
    };
    if (blk_create(&args, NULL, &err) < 0)
        fail_msg("%s: %s", c->name, error_text(err));
}

#endif
