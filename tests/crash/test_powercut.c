/* Power cuts: what an image may look like when the machine dies.
 *
 * A run of random operations goes through a blklogwrites node. Afterwards the file below is built anew as it may
 * have been at points of the run: everything before the last flush is there; of what came later, each
 * write, or each 512-byte sector of it, may have landed or not, in any order. Every such image must
 * open, check with leaks at most (if it is marked dirty: after the next opener's repair), and hold what the guest had
 * flushed, its snapshots included. A data file has a log of its own, and either file may have lost what only the
 * other was flushed for.
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
    uint64_t *log_end[2]; /* by operation, from 1: the logs' lengths when it was done */
};

static unsigned files_of(const struct disk_case *c)
{
    return guest_has_data_file(c) ? 2 : 1;
}

static char *path(const char *name)
{
    static char text[4][256];
    static unsigned turn;

    turn = (turn + 1) % 4;
    snprintf(text[turn], sizeof(text[turn]), "%s/%s", dir, name);
    return text[turn];
}

static const char *const log_names[2] = { "log", "datalog" };

static struct blk_node *make_log(const char *name)
{
    char opts[400];
    FILE *f = fopen(path(name), "w");

    assert_non_null(f);
    fclose(f);
    snprintf(opts, sizeof(opts), "driver=file,node-name=%s,filename=%s", name, path(name));
    return must_open_opts(opts, BLK_OPEN_RDWR);
}

static void run_operations(struct run *r)
{
    struct blk_node *logs[2] = { make_log(log_names[0]), make_log(log_names[1]) };
    char opts[1024], data[400] = "";

    if (files_of(r->c) == 2)
        snprintf(data, sizeof(data),
                 ",data-file.driver=blklogwrites,data-file.log=datalog,"
                 "data-file.file.filename=%s",
                 path("data"));
    snprintf(
        opts, sizeof(opts),
        "driver=%s,discard=unmap,file.driver=blklogwrites,file.log=log,file.file.filename=%s%s",
        r->c->format, path("image"), data);
    struct blk_node *n = must_open_opts(opts, BLK_OPEN_RDWR | BLK_OPEN_UNMAP);
    for (unsigned op = 1; op <= r->c->operations; op++) {
        int ret = guest_operate(&r->guest, n, op);
        if (ret < 0)
            fail_msg("%s: operation %u: %s", r->c->name, op, strerror(-ret));
        for (int i = 0; i < 2; i++)
            r->log_end[i][op] = blk_size(logs[i]);
    }
    must_close(n);
    must_close(logs[0]);
    must_close(logs[1]);
}

/* ---- the log --------------------------------------------------------------------------------------- */

struct entry {
    uint64_t offset, length, flags;
    uint64_t end; /* of the entry in the log */
    uint64_t order;
    unsigned file; /* 0: the image, 1: its data file */
    const uint8_t *data;
};

struct log {
    uint8_t *map[2];
    size_t size[2];
    struct entry *entries;
    size_t count;
};

static void read_log(struct log *l, unsigned file)
{
    int fd = open(path(log_names[file]), O_RDONLY);
    struct stat st;

    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    l->size[file] = (size_t)st.st_size;
    if (l->size[file] == 0) { /* nobody writes to it */
        close(fd);
        return;
    }
    l->map[file] = mmap(NULL, l->size[file], PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    assert_ptr_not_equal(l->map[file], MAP_FAILED);
    size_t count = load_le64(l->map[file] + 16);
    l->entries = realloc(l->entries, (l->count + count + 1) * sizeof(*l->entries));
    assert_non_null(l->entries);
    uint64_t at = SECTOR;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *b = l->map[file] + at;
        struct entry *e = &l->entries[l->count++];
        e->file = file;
        e->order = load_le64(b + 32);
        e->offset = load_le64(b) * SECTOR;
        e->length = load_le64(b + 8) * SECTOR;
        e->flags = load_le64(b + 16);
        e->data = b + SECTOR;
        at += SECTOR + load_le64(b + 24);
        e->end = at;
    }
}

static int by_order(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return x->order < y->order ? -1 : x->order > y->order;
}

/* Whether all that operation op wrote is among the first `cut` entries. */
static bool all_written(const struct run *r, const struct log *l, size_t cut, unsigned op)
{
    uint64_t end[2] = { 0, 0 };
    bool seen[2] = { false, files_of(r->c) == 1 };

    for (size_t i = cut; i > 0 && !(seen[0] && seen[1]); i--) {
        const struct entry *e = &l->entries[i - 1];
        if (!seen[e->file])
            end[e->file] = e->end;
        seen[e->file] = true;
    }
    for (unsigned f = 0; f < files_of(r->c); f++)
        if (r->log_end[f][op] > MAX(end[f], (uint64_t)SECTOR))
            return false;
    return true;
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
static void rebuild(struct disk d[2], const struct disk flushed[2], const struct log *l,
                    const size_t from[2], size_t cut, enum variant v, unsigned *seed)
{
    for (int f = 0; f < 2; f++) {
        memcpy(d[f].bytes, flushed[f].bytes, d[f].room);
        d[f].size = flushed[f].size;
    }
    for (size_t i = MIN(from[0], from[1]); i < cut; i++) {
        const struct entry *e = &l->entries[i];
        if (i < from[e->file])
            continue;
        bool keep = v == KEEP || (v == SOME_WRITES && rand_r(seed) % 2);
        if (keep)
            apply(&d[e->file], e);
        for (uint64_t at = 0; v == SOME_SECTORS && at < e->length; at += SECTOR)
            if (rand_r(seed) % 2)
                apply_sector(&d[e->file], e, at);
    }
}

/* ---- judging ------------------------------------------------------------------------------------------ */

/* One image that a power cut left. */
struct cut {
    const struct run *r;
    const struct disk *d;      /* the image, the data file */
    unsigned flushed, reached; /* operations: certain, begun */
    size_t entry;              /* of the log */
    enum variant v;
};

static void complain(const struct cut *t, const char *what, const char *more)
{
    fail_msg("%s, seed %u: cut after entry %zu, variant %d: %s %s", t->r->c->name, t->r->seed,
             t->entry, t->v, what, more ? more : "");
}

/* A vhdx relies on the file's length, which is not in the log. */
static uint64_t file_length(const struct cut *t)
{
    return is_vhdx(t->r->c) ? t->d->room + (64 << 20) : t->d->size;
}

/* A marked image is to be repaired before it counts: by qemu-img here. */
static void foreign_check(const struct cut *t, bool dirty)
{
    char cmd[600];

    if (strstr(t->r->c->create, "streamOptimized"))
        return; /* without its footer it can be read by the markers, which qemu-img does not do */
    FILE *f = fopen(path("cut"), "w");

    assert_non_null(f);
    assert_int_equal(fwrite(t->d->bytes, 1, t->d->size, f), t->d->size);
    fclose(f);
    assert_int_equal(truncate(path("cut"), (off_t)file_length(t)), 0);
    /* There, since qemu-img looks for a data file in its working directory. */
    snprintf(cmd, sizeof(cmd), "cd %s && qemu-img check -q %s -f %s cut > check.log 2>&1", dir,
             dirty ? "-r all" : "", t->r->c->format);
    int code = WEXITSTATUS(system(cmd));
    if (code != 0 && code != 3 && code != 63) /* 63: nothing to check */
        complain(t, "qemu-img check disagrees", NULL);
}

static struct blk_node *open_cut(const struct cut *t, unsigned flags)
{
    _cleanup_error_ struct error *err = NULL;
    char opts[600];

    snprintf(opts, sizeof(opts), "driver=%s,file=cut%s", t->r->c->format,
             files_of(t->r->c) == 2 ? ",data-file=cutdata" : "");
    if (t->r->c->backing && !strcmp(t->r->c->format, "vdi")) { /* there is nothing beside `cut` */
        size_t n = strlen(opts);
        snprintf(opts + n, sizeof(opts) - n, ",backing.driver=vdi,backing.file.filename=%s",
                 path("base.vdi"));
    }
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

/* A raw data file tells the same as the disk, as far as nothing was lost. */
static void verify_raw(const struct cut *t, struct blk_node *n)
{
    uint8_t *bytes = malloc(t->r->c->disk);

    assert_non_null(bytes);
    assert_int_equal(blk_read(n, 0, bytes, t->r->c->disk, 0), 0);
    if (memcmp(bytes, t->d[1].bytes, t->r->c->disk))
        complain(t, "the raw data file reads differently", NULL);
    free(bytes);
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
    assert_int_equal(blk_resize(mem, file_length(t), BLK_PREALLOC_OFF, NULL), 0);
    struct blk_node *data = must_open_opts("driver=memory,node-name=cutdata,size=0", BLK_OPEN_RDWR);
    /* How long it was is not in its log. */
    assert_int_equal(blk_write(data, 0, t->d[1].bytes, t->d[1].room, 0), 0);
    struct blk_node *n = open_cut(t, 0);
    verify_disk(t, sure, settled, n);
    if (t->v == KEEP && strstr(t->r->c->create, "data_file_raw=on"))
        verify_raw(t, n);
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
    must_close(data);
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
    struct disk flushed[2] = { { .room = 1 << 20 }, { .room = 6 * r->c->disk } }, d[2];
    size_t from[2] = { 0, 0 }, settled = 0;
    unsigned op = 0, flushed_op = 0;

    for (size_t i = 0; i < l->count; i++) {
        const struct entry *e = &l->entries[i];
        struct disk *f = &flushed[e->file];
        f->room = MAX(f->room, e->offset + e->length + (1 << 20));
    }
    for (int f = 0; f < 2; f++) {
        d[f] = flushed[f];
        flushed[f].bytes = calloc(1, flushed[f].room);
        d[f].bytes = calloc(1, d[f].room);
        assert_true(flushed[f].bytes && d[f].bytes);
    }
    load_start(&flushed[0]);

    for (size_t cut = 1; cut <= l->count; cut++) {
        const struct entry *last = &l->entries[cut - 1];
        while (op < r->c->operations && all_written(r, l, cut, op + 1))
            if (r->guest.is_flush[++op]) {
                settled = allowed_settle(&r->guest, sure, settled, op);
                flushed_op = op;
            }
        if (last->flags & 1)
            for (size_t *i = &from[last->file]; *i < cut; ++*i)
                if (l->entries[*i].file == last->file)
                    apply(&flushed[last->file], &l->entries[*i]);
        if ((unsigned)rand_r(&seed) % l->count >= points)
            continue;
        result->cuts++;
        for (int v = 0; v < VARIANTS; v++) {
            rebuild(d, flushed, l, from, cut, (enum variant)v, &seed);
            struct cut t = { r, d, flushed_op, op + 1, cut, (enum variant)v };
            bool dirty;
            result->leaky += judge(&t, sure, settled, &dirty);
            result->dirty += dirty;
            /* qemu-img knows VDI blocks of 1 MiB only, and calls room made ahead an error; and no vhdx with a
             * parent. */
            bool known = strcmp(r->c->format, "vdi") && !(is_vhdx(r->c) && r->c->backing);
            if (have_qemu && known && result->images++ % 40 == 0)
                foreign_check(&t, dirty);
        }
    }
    free(sure);
    for (int f = 0; f < 2; f++) {
        free(flushed[f].bytes);
        free(d[f].bytes);
    }
}

/* `points`: cut points tried, about. */
static struct powercut_result run_case(const struct disk_case *c, unsigned seed, unsigned points)
{
    struct run r = { .c = c, .seed = seed };
    struct powercut_result result = { 0 };
    struct log l = { 0 };
    char cmd[600];

    guest_init(&r.guest, c, seed);
    for (int f = 0; f < 2; f++)
        assert_non_null(r.log_end[f] = calloc(c->operations + 2, sizeof(*r.log_end[f])));
    make_image(c);
    snprintf(cmd, sizeof(cmd), "cp %s %s", path("image"), path("start"));
    assert_int_equal(system(cmd), 0);
    run_operations(&r);
    read_log(&l, 0);
    read_log(&l, 1);
    qsort(l.entries, l.count, sizeof(*l.entries), by_order);
    cut_everywhere(&r, &l, points, &result);
    for (int f = 0; f < 2; f++)
        if (l.map[f])
            munmap(l.map[f], l.size[f]);
    free(l.entries);
    guest_free(&r.guest);
    free(r.log_end[0]);
    free(r.log_end[1]);
    return result;
}

static void power_cuts(void **state)
{
    const char *env = getenv("POWERCUT_POINTS"), *seed = getenv("POWERCUT_SEED");
    unsigned points = env ? (unsigned)atoi(env) : SOME;
    unsigned base = seed ? (unsigned)atoi(seed) : 1u;
    struct powercut_result all = { 0 };

    (void)state;
    have_qemu = system("qemu-img --version > /dev/null 2>&1") == 0;
    print_message("seed %u\n", base);
    for (size_t i = 0; i < ARRAY_SIZE(disk_cases); i++) {
        if (!case_wanted(&disk_cases[i]))
            continue;
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
