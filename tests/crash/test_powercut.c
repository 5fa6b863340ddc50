/* Power cuts: what an image may look like when the machine dies.
 *
 * A run of random operations goes through a blklogwrites node. Afterwards the file below is built anew as it may
 * have been at points of the run: everything before the last flush is there; of what came later, each
 * write, or each 512-byte sector of it, may have landed or not, in any order. Every such image must
 * open, check with leaks at most, and hold what the guest had flushed.
 *
 * POWERCUT_POINTS in the environment makes it longer, POWERCUT_SEED repeats a run.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../block/scratch.h"
#include "base/bytes.h"
#include "base/macros.h"

struct powercut_case {
    const char *name;
    const char *format;
    const char *create; /* options of making the image */
    bool backing;       /* on a raw backing file without zeroes */
    bool compressed;    /* compressed writes are in the mix */
    uint32_t cluster;
    uint64_t disk; /* bytes */
    unsigned operations;
};

struct powercut_result {
    unsigned long cuts, images, leaky;
};

enum { SECTOR = 512, MAX_EVENTS = 1 << 20 };

static char dir[] = "/dev/shm/platter-powercut-XXXXXX";
static bool have_qemu;

/* ---- what the guest did -------------------------------------------------------------------------- */

/* A block of the guest's disk got this value in that operation. */
struct event {
    uint32_t block, operation;
    uint64_t tag; /* 0: zeroes */
    bool soft;    /* a discard: the old value may stay */
};

struct run {
    const struct powercut_case *c;
    unsigned first_seed, seed;
    struct event *events;
    size_t count;
    uint64_t next_tag;
    /* by operation, from 1 */
    uint64_t *log_end; /* the log's length when it was done */
    bool *is_flush;
};

static void fill_block(uint8_t *b, uint64_t tag)
{
    memset(b, 0, SECTOR);
    if (tag)
        for (unsigned i = 0; i < SECTOR; i += 8)
            store_be64(b + i, tag);
}

static uint64_t backing_tag(uint32_t block)
{
    return UINT64_C(0xbac0000000000000) + block;
}

static void note(struct run *r, uint32_t block, unsigned operation, uint64_t tag, bool soft)
{
    assert_true(r->count < MAX_EVENTS);
    r->events[r->count++] = (struct event){ block, operation, tag, soft };
}

/* ---- the run ---------------------------------------------------------------------------------------- */

static int write_blocks(struct run *r, struct blk_node *n, unsigned op, uint32_t block,
                        uint32_t count, unsigned flags)
{
    uint8_t *buf = malloc((size_t)count * SECTOR);

    assert_non_null(buf);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t tag = rand_r(&r->seed) % 16 ? ++r->next_tag : 0;
        fill_block(buf + (size_t)i * SECTOR, tag);
        note(r, block + i, op, tag, false);
    }
    int ret = blk_write(n, (uint64_t)block * SECTOR, buf, (size_t)count * SECTOR, flags);
    free(buf);
    return ret;
}

static int unmap_blocks(struct run *r, struct blk_node *n, unsigned op, uint32_t block,
                        uint32_t count, unsigned kind)
{
    uint64_t off = (uint64_t)block * SECTOR, len = (uint64_t)count * SECTOR;

    for (uint32_t i = 0; i < count; i++)
        note(r, block + i, op, 0, kind == 2);
    if (kind == 2)
        return blk_discard(n, off, len);
    return blk_zero(n, off, len, kind ? BLK_MAY_UNMAP : 0);
}

static int operate(struct run *r, struct blk_node *n, unsigned op)
{
    uint32_t blocks = (uint32_t)(r->c->disk / SECTOR), per = r->c->cluster / SECTOR;
    uint32_t block = (uint32_t)rand_r(&r->seed) % blocks;
    uint32_t count = 1 + (uint32_t)rand_r(&r->seed) % (rand_r(&r->seed) % 4 ? 8 : 5 * per);
    unsigned kind = (unsigned)rand_r(&r->seed) % 16;

    if (kind >= 10 && kind < 13) { /* unmapping is for whole clusters */
        block = block / per * per;
        count = MAX(count / per, 1u) * per;
    }
    count = MIN(count, blocks - block);
    switch (kind) {
    case 10:
    case 11:
    case 12:
        return unmap_blocks(r, n, op, block, count, kind - 10);
    case 13:
        r->is_flush[op] = true;
        return blk_flush(n);
    case 14:
        if (r->c->compressed) {
            block = block / per * per;
            return write_blocks(r, n, op, block, MIN(per, blocks - block), BLK_COMPRESSED);
        }
        /* fall through */
    default:
        return write_blocks(r, n, op, block, count, 0);
    }
}

static char *path(const char *name)
{
    static char text[4][256];
    static unsigned turn;

    turn = (turn + 1) % 4;
    snprintf(text[turn], sizeof(text[turn]), "%s/%s", dir, name);
    return text[turn];
}

static void make_image(const struct powercut_case *c)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_create_args args = {
        .filename = path("image"),
        .format = c->format,
        .options = c->create,
        .size_given = true,
        .size = c->disk,
        .backing_file = c->backing ? path("base.raw") : NULL,
        .backing_format = c->backing ? "raw" : NULL,
    };

    if (c->backing) {
        FILE *f = fopen(path("base.raw"), "w");
        assert_non_null(f);
        for (uint32_t i = 0; i < c->disk / SECTOR; i++) {
            uint8_t b[SECTOR];
            fill_block(b, backing_tag(i));
            assert_int_equal(fwrite(b, 1, SECTOR, f), SECTOR);
        }
        fclose(f);
    }
    if (blk_create(&args, NULL, &err) < 0)
        fail_msg("%s: %s", c->name, error_text(err));
}

static void run_operations(struct run *r)
{
    char opts[1024];
    FILE *f = fopen(path("log"), "w");

    assert_non_null(f);
    fclose(f);
    snprintf(opts, sizeof(opts), "driver=file,node-name=log,filename=%s", path("log"));
    struct blk_node *log = must_open_opts(opts, BLK_OPEN_RDWR);
    snprintf(opts, sizeof(opts),
             "driver=%s,discard=unmap,file.driver=blklogwrites,file.log=log,file.file.filename=%s",
             r->c->format, path("image"));
    struct blk_node *n = must_open_opts(opts, BLK_OPEN_RDWR | BLK_OPEN_UNMAP);
    for (unsigned op = 1; op <= r->c->operations; op++) {
        int ret = operate(r, n, op);
        if (ret < 0)
            fail_msg("%s: operation %u: %s", r->c->name, op, strerror(-ret));
        r->log_end[op] = blk_size(log);
    }
    must_close(n);
    must_close(log);
}

/* ---- the log --------------------------------------------------------------------------------------- */

struct entry {
    uint64_t offset, length, flags;
    uint64_t end; /* of the entry in the log */
    const uint8_t *data;
};

struct log {
    uint8_t *map;
    size_t size;
    struct entry *entries;
    size_t count;
};

static void read_log(struct log *l)
{
    int fd = open(path("log"), O_RDONLY);
    struct stat st;

    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    l->size = (size_t)st.st_size;
    l->map = mmap(NULL, l->size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    assert_ptr_not_equal(l->map, MAP_FAILED);
    l->count = load_le64(l->map + 16);
    l->entries = calloc(l->count + 1, sizeof(*l->entries));
    uint64_t at = SECTOR;
    for (size_t i = 0; i < l->count; i++) {
        const uint8_t *b = l->map + at;
        struct entry *e = &l->entries[i];
        e->offset = load_le64(b) * SECTOR;
        e->length = load_le64(b + 8) * SECTOR;
        e->flags = load_le64(b + 16);
        e->data = b + SECTOR;
        at += SECTOR + load_le64(b + 24);
        e->end = at;
    }
}

/* ---- rebuilding -------------------------------------------------------------------------------------- */

struct disk {
    uint8_t *bytes;
    size_t size, room;
};

static void apply_sector(struct disk *d, const struct entry *e, uint64_t at)
{
    uint8_t *to = d->bytes + e->offset + at;

    assert_true(e->offset + e->length <= d->room);
    if (e->flags & 4)
        memset(to, 0, SECTOR);
    else
        memcpy(to, e->data + at, SECTOR);
    if (!(e->flags & 4) && d->size < e->offset + at + SECTOR)
        d->size = e->offset + at + SECTOR;
}

static void apply(struct disk *d, const struct entry *e)
{
    for (uint64_t at = 0; at < e->length; at += SECTOR)
        apply_sector(d, e, at);
}

enum variant { KEEP, DROP, SOME_WRITES, SOME_SECTORS, VARIANTS };

/* Everything up to the last flush before `cut`, and of the rest what the variant leaves. */
static void rebuild(struct disk *d, const struct disk *flushed, const struct log *l, size_t from,
                    size_t cut, enum variant v, unsigned *seed)
{
    memcpy(d->bytes, flushed->bytes, d->room);
    d->size = flushed->size;
    for (size_t i = from; i < cut; i++) {
        const struct entry *e = &l->entries[i];
        bool keep = v == KEEP || (v == SOME_WRITES && rand_r(seed) % 2);
        if (keep)
            apply(d, e);
        for (uint64_t at = 0; v == SOME_SECTORS && at < e->length; at += SECTOR)
            if (rand_r(seed) % 2)
                apply_sector(d, e, at);
    }
}

/* ---- judging ------------------------------------------------------------------------------------------ */

/* Values that each block may have. Few: kept as a list per block. */
struct allowed {
    uint64_t tags[24];
    unsigned n;
};

static void allow(struct allowed *a, uint64_t tag)
{
    for (unsigned i = 0; i < a->n; i++)
        if (a->tags[i] == tag)
            return;
    if (a->n < ARRAY_SIZE(a->tags))
        a->tags[a->n++] = tag;
    else
        a->n = UINT32_MAX; /* too many to tell apart: any */
}

/* Advances what is certain: all events up to operation `flushed`. */
static size_t settle(const struct run *r, struct allowed *a, size_t from, unsigned flushed)
{
    size_t i = from;

    for (; i < r->count && r->events[i].operation <= flushed; i++) {
        struct allowed *b = &a[r->events[i].block];
        if (!r->events[i].soft)
            b->n = 0;
        allow(b, r->events[i].tag);
    }
    return i;
}

static void expect_block(const struct run *r, const struct allowed *a, uint32_t block,
                         const uint8_t *b, size_t cut, enum variant v)
{
    uint64_t tag = load_be64(b);
    uint8_t want[SECTOR];

    fill_block(want, tag);
    bool known = a->n == UINT32_MAX;
    for (unsigned i = 0; i < a->n && !known; i++)
        known = a->tags[i] == tag;
    if (!known || memcmp(b, want, SECTOR))
        fail_msg("%s, seed %u: cut after entry %zu, variant %d: block %u holds %#llx (%s), which "
                 "was not there",
                 r->c->name, r->first_seed, cut, v, block, (unsigned long long)tag,
                 known ? "torn" : "unknown");
}

static void foreign_check(const struct run *r, const struct disk *d, size_t cut, enum variant v)
{
    char cmd[600];
    FILE *f = fopen(path("cut"), "w");

    assert_non_null(f);
    assert_int_equal(fwrite(d->bytes, 1, d->size, f), d->size);
    fclose(f);
    snprintf(cmd, sizeof(cmd), "qemu-img check -q -f %s %s > %s 2>&1", r->c->format, path("cut"),
             path("check.log"));
    int code = WEXITSTATUS(system(cmd));
    if (code != 0 && code != 3)
        fail_msg("%s: cut after entry %zu, variant %d: qemu-img check says %d", r->c->name, cut, v,
                 code);
}

static void refuse_finding(void *opaque, const char *text)
{
    char *first = opaque;
    if (!first[0] && strncmp(text, "Leaked", 6))
        snprintf(first, 200, "%s", text);
}

static bool judge(const struct run *r, const struct disk *d, const struct allowed *sure,
                  size_t settled, unsigned reached, size_t cut, enum variant v)
{
    uint32_t blocks = (uint32_t)(r->c->disk / SECTOR);
    _cleanup_error_ struct error *err = NULL;
    char opts[600], first[200] = "";
    struct blk_check_hooks hooks = { .message = refuse_finding, .opaque = first };
    struct blk_check found;

    struct blk_node *mem = must_open_opts("driver=memory,node-name=cut,size=0", BLK_OPEN_RDWR);
    assert_int_equal(blk_write(mem, 0, d->bytes, d->size, 0), 0);
    snprintf(opts, sizeof(opts), "driver=%s,file=cut", r->c->format);
    struct blk_open_args args = { .image_opts = true };
    struct blk_node *n = try_open(opts, &args, &err);
    if (!n)
        fail_msg("%s: cut after entry %zu, variant %d: %s", r->c->name, cut, v, error_text(err));
    if (blk_check(n, 0, &found, &hooks, &err) < 0 || found.corruptions || found.check_errors)
        fail_msg("%s: cut after entry %zu, variant %d: check: %s %s", r->c->name, cut, v, first,
                 error_text(err));
    uint8_t *bytes = malloc(r->c->disk);
    struct allowed *a = malloc(blocks * sizeof(*a));
    assert_true(bytes && a);
    memcpy(a, sure, blocks * sizeof(*a));
    for (size_t i = settled; i < r->count && r->events[i].operation <= reached; i++)
        if (a[r->events[i].block].n != UINT32_MAX)
            allow(&a[r->events[i].block], r->events[i].tag);
    assert_int_equal(blk_read(n, 0, bytes, r->c->disk, 0), 0);
    for (uint32_t b = 0; b < blocks; b++)
        expect_block(r, &a[b], b, bytes + (size_t)b * SECTOR, cut, v);
    free(a);
    free(bytes);
    must_close(n);
    must_close(mem);
    return found.leaks > 0;
}

static void load_start(struct disk *d)
{
    FILE *f = fopen(path("start"), "r");

    assert_non_null(f);
    d->size = fread(d->bytes, 1, d->room, f);
    fclose(f);
}

static void cut_everywhere(struct run *r, const struct log *l, unsigned points,
                           struct powercut_result *result)
{
    uint32_t blocks = (uint32_t)(r->c->disk / SECTOR);
    struct allowed *sure = calloc(blocks, sizeof(*sure));
    struct disk flushed = { .room = 0 }, d;
    size_t from = 0, settled = 0;
    unsigned op = 0;

    for (size_t i = 0; i < l->count; i++)
        flushed.room = MAX(flushed.room, l->entries[i].offset + l->entries[i].length);
    flushed.room += 1 << 20;
    d = flushed;
    flushed.bytes = calloc(1, flushed.room);
    d.bytes = calloc(1, d.room);
    assert_true(sure && flushed.bytes && d.bytes);
    load_start(&flushed);
    for (uint32_t b = 0; b < blocks; b++)
        allow(&sure[b], r->c->backing ? backing_tag(b) : 0);

    for (size_t cut = 1; cut <= l->count; cut++) {
        uint64_t end = l->entries[cut - 1].end;
        while (op < r->c->operations && r->log_end[op + 1] <= end)
            if (r->is_flush[++op])
                settled = settle(r, sure, settled, op);
        if (l->entries[cut - 1].flags & 1)
            for (; from < cut; from++)
                apply(&flushed, &l->entries[from]);
        if ((unsigned)rand_r(&r->seed) % l->count >= points)
            continue;
        result->cuts++;
        for (int v = 0; v < VARIANTS; v++) {
            rebuild(&d, &flushed, l, from, cut, (enum variant)v, &r->seed);
            result->leaky += judge(r, &d, sure, settled, op + 1, cut, (enum variant)v);
            if (have_qemu && result->images++ % 40 == 0)
                foreign_check(r, &d, cut, (enum variant)v);
        }
    }
    free(sure);
    free(flushed.bytes);
    free(d.bytes);
}

/* `points`: cut points tried, about. */
static struct powercut_result run_case(const struct powercut_case *c, unsigned seed,
                                       unsigned points)
{
    struct run r = { .c = c, .first_seed = seed, .seed = seed };
    struct powercut_result result = { 0 };
    struct log l = { 0 };
    char cmd[600];

    r.events = calloc(MAX_EVENTS, sizeof(*r.events));
    r.log_end = calloc(c->operations + 2, sizeof(*r.log_end));
    r.is_flush = calloc(c->operations + 2, sizeof(*r.is_flush));
    assert_true(r.events && r.log_end && r.is_flush);
    make_image(c);
    snprintf(cmd, sizeof(cmd), "cp %s %s", path("image"), path("start"));
    assert_int_equal(system(cmd), 0);
    run_operations(&r);
    read_log(&l);
    cut_everywhere(&r, &l, points, &result);
    munmap(l.map, l.size);
    free(l.entries);
    free(r.events);
    free(r.log_end);
    free(r.is_flush);
    return result;
}

/* ---- the cases ---------------------------------------------------------------------------------------- */

static const struct powercut_case cases[] = {
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
};

static void power_cuts(void **state)
{
    const char *env = getenv("POWERCUT_POINTS"), *seed = getenv("POWERCUT_SEED");
    unsigned points = env ? (unsigned)atoi(env) : 60;
    unsigned base = seed ? (unsigned)atoi(seed) : (unsigned)getpid();
    struct powercut_result all = { 0 };

    (void)state;
    print_message("seed %u\n", base);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct powercut_result r = run_case(&cases[i], base, points);
        all.cuts += r.cuts;
        all.images += r.images;
        all.leaky += r.leaky;
    }
    print_message("%lu cut points, %lu images, %lu with leaks, 0 failures\n", all.cuts, all.images,
                  all.leaky);
}

static int make_dir(void **state)
{
    (void)state;
    have_qemu = system("qemu-img --version > /dev/null 2>&1") == 0;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    char cmd[300];

    (void)state;
    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    return system(cmd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(power_cuts, make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
