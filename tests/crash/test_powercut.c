/* Power cuts: what an image may look like when the machine dies.
 *
 * A run of random operations goes through a blklogwrites node. Afterwards the file below is built anew as it may
 * have been at points of the run: everything before the last flush is there; of what came later, each
 * write, or each 512-byte sector of it, may have landed or not, in any order. Every such image must
 * open, check with leaks at most (if it is marked dirty: after the next opener's repair), and hold what the guest had
 * flushed, its snapshots included.
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

#include "guest.h"

struct powercut_result {
    unsigned long cuts, images, leaky, dirty;
};

static bool have_qemu;

/* ---- the run ---------------------------------------------------------------------------------- */

struct run {
    const struct disk_case *c;
    unsigned seed;
    struct guest guest;
    uint64_t *log_end; /* by operation, from 1: the log's length when it was done */
};

static char *path(const char *name)
{
    static char text[4][256];
    static unsigned turn;

    turn = (turn + 1) % 4;
    snprintf(text[turn], sizeof(text[turn]), "%s/%s", dir, name);
    return text[turn];
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
        int ret = guest_operate(&r->guest, n, op);
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

/* One image that a power cut left. */
struct cut {
    const struct run *r;
    const struct disk *d;
    unsigned flushed, reached; /* operations: certain, begun */
    size_t entry;              /* of the log */
    enum variant v;
};

static void complain(const struct cut *t, const char *what, const char *more)
{
    fail_msg("%s, seed %u: cut after entry %zu, variant %d: %s %s", t->r->c->name, t->r->seed,
             t->entry, t->v, what, more ? more : "");
}

/* A marked image is to be repaired before it counts: by qemu-img here. */
static void foreign_check(const struct cut *t, bool dirty)
{
    char cmd[600];
    FILE *f = fopen(path("cut"), "w");

    assert_non_null(f);
    assert_int_equal(fwrite(t->d->bytes, 1, t->d->size, f), t->d->size);
    fclose(f);
    snprintf(cmd, sizeof(cmd), "qemu-img check -q %s -f %s %s > %s 2>&1", dirty ? "-r all" : "",
             t->r->c->format, path("cut"), path("check.log"));
    int code = WEXITSTATUS(system(cmd));
    if (code != 0 && code != 3 && code != 63) /* 63: nothing to check */
        complain(t, "qemu-img check disagrees", NULL);
}

static struct blk_node *open_cut(const struct cut *t, unsigned flags)
{
    _cleanup_error_ struct error *err = NULL;
    char opts[600];

    snprintf(opts, sizeof(opts), "driver=%s,file=cut", t->r->c->format);
    struct blk_open_args args = { .image_opts = true, .flags = flags };
    struct blk_node *n = try_open(opts, &args, &err);
    if (!n)
        complain(t, "it does not open:", error_text(err));
    return n;
}

static void verify_disk(const struct cut *t, const struct allowed *sure, size_t settled,
                        struct blk_node *n)
{
    size_t bytes = guest_blocks(t->r->c) * sizeof(*sure);
    struct allowed *a = malloc(bytes);
    char text[100];
    uint64_t tag = 0;

    assert_non_null(a);
    memcpy(a, sure, bytes);
    allowed_add(&t->r->guest, a, settled, t->reached);
    int64_t wrong = allowed_verify(t->r->c, a, n, &tag);
    snprintf(text, sizeof(text), "%lld holds %#llx", (long long)wrong, (unsigned long long)tag);
    if (wrong >= 0)
        complain(t, "torn or never there: block", text);
    free(a);
}

/* One of the snapshots made so far. */
static void verify_snapshot(const struct cut *t)
{
    const struct guest *g = &t->r->guest;
    unsigned made = 0;

    while (made < g->kept_count && g->kept[made].made <= t->reached)
        made++;
    if (made == 0)
        return;
    struct blk_node *n = open_cut(t, 0);
    const char *wrong = kept_verify(g, (unsigned)t->entry % made, n, t->flushed, t->reached);
    if (wrong)
        complain(t, wrong, NULL);
    must_close(n);
}

/* Returns whether there are leaks. */
static bool judge(const struct cut *t, const struct allowed *sure, size_t settled, bool *dirty)
{
    _cleanup_error_ struct error *err = NULL;
    char first[200] = "";
    struct blk_check_hooks hooks = { .message = first_finding, .opaque = first };
    struct blk_check found;
    struct blk_info info;

    struct blk_node *mem = must_open_opts("driver=memory,node-name=cut,size=0", BLK_OPEN_RDWR);
    assert_int_equal(blk_write(mem, 0, t->d->bytes, t->d->size, 0), 0);
    struct blk_node *n = open_cut(t, 0);
    verify_disk(t, sure, settled, n);
    assert_int_equal(blk_info(n, &info, NULL), 0);
    *dirty = info.dirty;
    blk_info_free(&info);
    if (*dirty) { /* whoever writes next brings it into line first */
        must_close(n);
        must_close(open_cut(t, BLK_OPEN_RDWR));
        n = open_cut(t, 0);
        verify_disk(t, sure, settled, n);
    }
    int ret = check_image(n, &found, &hooks, &err);
    must_close(n);
    if (ret == 0 && flags_only(t->r->c, first)) {
        n = open_cut(t, BLK_OPEN_RDWR | BLK_OPEN_REPAIR);
        ret = blk_check(n, BLK_FIX_ERRORS | BLK_FIX_LEAKS, &found, NULL, &err);
        must_close(n);
        *dirty = true;
    }
    if (ret < 0 || found.corruptions || found.check_errors)
        complain(t, first, error_text(err));
    verify_snapshot(t);
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
    struct allowed *sure = allowed_new(r->c);
    unsigned seed = r->seed;
    struct disk flushed = { .room = 0 }, d;
    size_t from = 0, settled = 0;
    unsigned op = 0, flushed_op = 0;

    for (size_t i = 0; i < l->count; i++)
        flushed.room = MAX(flushed.room, l->entries[i].offset + l->entries[i].length);
    flushed.room += 1 << 20;
    d = flushed;
    flushed.bytes = calloc(1, flushed.room);
    d.bytes = calloc(1, d.room);
    assert_true(flushed.bytes && d.bytes);
    load_start(&flushed);

    for (size_t cut = 1; cut <= l->count; cut++) {
        uint64_t end = l->entries[cut - 1].end;
        while (op < r->c->operations && r->log_end[op + 1] <= end)
            if (r->guest.is_flush[++op]) {
                settled = allowed_settle(&r->guest, sure, settled, op);
                flushed_op = op;
            }
        if (l->entries[cut - 1].flags & 1)
            for (; from < cut; from++)
                apply(&flushed, &l->entries[from]);
        if ((unsigned)rand_r(&seed) % l->count >= points)
            continue;
        result->cuts++;
        for (int v = 0; v < VARIANTS; v++) {
            rebuild(&d, &flushed, l, from, cut, (enum variant)v, &seed);
            struct cut t = { r, &d, flushed_op, op + 1, cut, (enum variant)v };
            bool dirty;
            result->leaky += judge(&t, sure, settled, &dirty);
            result->dirty += dirty;
            if (have_qemu && result->images++ % 40 == 0)
                foreign_check(&t, dirty);
        }
    }
    free(sure);
    free(flushed.bytes);
    free(d.bytes);
}

/* `points`: cut points tried, about. */
static struct powercut_result run_case(const struct disk_case *c, unsigned seed, unsigned points)
{
    struct run r = { .c = c, .seed = seed };
    struct powercut_result result = { 0 };
    struct log l = { 0 };
    char cmd[600];

    guest_init(&r.guest, c, seed);
    r.log_end = calloc(c->operations + 2, sizeof(*r.log_end));
    assert_non_null(r.log_end);
    make_image(c);
    snprintf(cmd, sizeof(cmd), "cp %s %s", path("image"), path("start"));
    assert_int_equal(system(cmd), 0);
    run_operations(&r);
    read_log(&l);
    cut_everywhere(&r, &l, points, &result);
    munmap(l.map, l.size);
    free(l.entries);
    guest_free(&r.guest);
    free(r.log_end);
    return result;
}

static void power_cuts(void **state)
{
    const char *env = getenv("POWERCUT_POINTS"), *seed = getenv("POWERCUT_SEED");
    unsigned points = env ? (unsigned)atoi(env) : 60;
    unsigned base = seed ? (unsigned)atoi(seed) : 1u;
    struct powercut_result all = { 0 };

    (void)state;
    have_qemu = system("qemu-img --version > /dev/null 2>&1") == 0;
    print_message("seed %u\n", base);
    for (size_t i = 0; i < ARRAY_SIZE(disk_cases); i++) {
        struct powercut_result r = run_case(&disk_cases[i], base, points);
        all.cuts += r.cuts;
        all.images += r.images;
        all.leaky += r.leaky;
        all.dirty += r.dirty;
    }
    print_message("%lu cut points, %lu images, %lu with leaks, %lu marked dirty, 0 failures\n",
                  all.cuts, all.images, all.leaky, all.dirty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(power_cuts, make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
