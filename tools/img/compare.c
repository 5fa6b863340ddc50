/* img compare: do two images show a guest the same bytes?
 *
 * Workers take ranges in order from a shared counter. Each walks its range by what both images say
 * of it, so that what is a hole on both sides is never read. A difference lowers `first`; ranges
 * that begin beyond it are not looked at any more, all before it are, so what remains is the first
 * one.
 */
#include "img.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/cores.h"
#include "base/iszero.h"
#include "base/macros.h"
#include "base/round.h"

#include "args.h"
#include "image.h"
#include "output.h"
#include "watch.h"

enum {
    SAME = 0,
    DIFFERENT = 1,
    NOT_OPENED = 2,
    NO_STATUS = 3,
    NOT_READ = 4,
};

enum {
    CHUNK = 1 << 20,  /* read at once */
    RANGE = 32 << 20, /* taken at once: holes are walked fast */
    SECTOR = 512,     /* a difference is told by the sector, as qemu-img does */
    MAX_WORKERS = 16,
    STATUS_LAST = 1 << 30, /* beside enum blk_extent_flag */
};

struct compare {
    const char *format1, *format2, *cache, *progress;
    bool image_opts, share, quiet, percent, strict;
};

static const struct arg_def args[] = {
    { .letter = 'f',
      .name = "a-format",
      .kind = ARG_TEXT,
      .at = offsetof(struct compare, format1),
      .value = "FMT",
      .hint = "@format",
      .help = "format of the first image; guessed when not given" },
    { .letter = 'F',
      .name = "b-format",
      .kind = ARG_TEXT,
      .at = offsetof(struct compare, format2),
      .value = "FMT",
      .hint = "@format",
      .help = "format of the second image" },
    { .letter = 'T',
      .name = "cache",
      .kind = ARG_TEXT,
      .at = offsetof(struct compare, cache),
      .value = "CACHE",
      .hint = "@cache",
      .help = "cache mode of both" },
    { .letter = 's',
      .name = "strict",
      .kind = ARG_FLAG,
      .at = offsetof(struct compare, strict),
      .help = "size and allocation must be the same, too" },
    ARGS_IMAGE_OPTS(struct compare, image_opts),
    ARGS_PROGRESS(struct compare, percent, progress),
    ARGS_QUIET(struct compare, quiet),
    ARGS_SHARE(struct compare, share),
    ARGS_OBJECT,
    ARGS_END,
};

struct side {
    struct blk_node *node;
    const char *name;
    uint64_t size;
};

struct work {
    struct side side[2];
    uint64_t end; /* of the longer one */
    bool strict;
    atomic_uint_fast64_t next;  /* range to take */
    atomic_uint_fast64_t first; /* of the differences so far; UINT64_MAX: none */
    atomic_uint_fast64_t done;

    pthread_mutex_t lock;
    bool status_differs; /* the one at `first` is of allocation, not content */
    int failure;         /* exit code of the first failure by offset, 0: none */
    uint64_t failed_at;
    char text[512];
};

static void differs_at(struct work *w, uint64_t offset, bool status)
{
    LOCK_SCOPE(&w->lock);
    if (offset < atomic_load(&w->first)) {
        atomic_store(&w->first, offset);
        w->status_differs = status;
    }
}

static void failed(struct work *w, int code, const struct side *side, uint64_t offset, int error)
{
    LOCK_SCOPE(&w->lock);
    if (w->failure && w->failed_at <= offset)
        return;
    w->failure = code;
    w->failed_at = offset;
    snprintf(w->text, sizeof(w->text), "cannot %s '%s' at offset %" PRIu64 ": %s",
             code == NOT_READ ? "read" : "tell the allocation of", side->name, offset,
             strerror(-error));
}

/* What a side holds up to `end`. */
struct status {
    uint64_t end;
    unsigned flags; /* enum blk_extent_flag and STATUS_LAST */
};

/* Looks at what lies at offset, if *s does not reach there any more; beyond the side's end there
 * are zeroes. whole: see the run to its end, not just up to `limit`. */
static int status_at(const struct side *side, uint64_t offset, uint64_t limit, bool whole,
                     struct status *s)
{
    if (offset < s->end)
        return 0;
    if (offset >= side->size) {
        *s = (struct status){ .end = UINT64_MAX, .flags = BLK_EXT_ZERO };
        return 0;
    }
    struct blk_extent e;
    uint64_t end = whole ? side->size : MIN(limit, side->size);
    int r = blk_extents(side->node, offset, end - offset, 0, &e);
    if (r < 0)
        return r;
    s->end = offset + e.length;
    s->flags = e.flags & (BLK_EXT_DATA | BLK_EXT_ZERO | BLK_EXT_ALLOCATED);
    /* What strict mode of qemu-img looks at, too: that the bytes lie somewhere as they are, and
     * that the run is the last one. */
    if ((e.flags & BLK_EXT_HOST) && !(e.flags & BLK_EXT_COMPRESSED))
        s->flags |= BLK_EXT_HOST;
    if (s->end == side->size)
        s->flags |= STATUS_LAST;
    return 0;
}

static bool is_zero_run(unsigned flags)
{
    return (flags & BLK_EXT_ZERO) || !(flags & (BLK_EXT_ALLOCATED | BLK_EXT_DATA));
}

/* The sector of [buf, buf + len) that holds the first byte unlike the other's; other NULL: zeroes.
 */
static size_t first_difference(const uint8_t *buf, const uint8_t *other, size_t len)
{
    for (size_t at = 0; at < len; at += SECTOR) {
        size_t n = MIN((size_t)SECTOR, len - at);
        bool same = other ? memcmp(buf + at, other + at, n) == 0 : is_zero(buf + at, n);
        if (!same)
            return at;
    }
    return len;
}

/* True: go on. */
static bool compare_bytes(struct work *w, uint64_t offset, size_t len, const bool *zero,
                          uint8_t *const *buf)
{
    for (int i = 0; i < 2; i++) {
        if (zero[i])
            continue;
        int r = blk_read(w->side[i].node, offset, buf[i], len, 0);
        if (r < 0) {
            failed(w, NOT_READ, &w->side[i], offset, r);
            return false;
        }
    }
    const uint8_t *a = zero[0] ? buf[1] : buf[0], *b = zero[0] || zero[1] ? NULL : buf[1];
    if (b ? memcmp(a, b, len) == 0 : is_zero(a, len))
        return true;
    differs_at(w, offset + first_difference(a, b, len), false);
    return false;
}

static bool compare_range(struct work *w, uint64_t at, uint64_t end, uint8_t *const *buf)
{
    struct status status[2] = { { 0 } };
    while (at < end && at < atomic_load(&w->first)) {
        if (watch_stopped())
            return false;
        for (int i = 0; i < 2; i++) {
            int r = status_at(&w->side[i], at, end, w->strict, &status[i]);
            if (r < 0) {
                failed(w, NO_STATUS, &w->side[i], at, r);
                return false;
            }
        }
        if (w->strict && status[0].flags != status[1].flags) {
            differs_at(w, at, true);
            return false;
        }
        uint64_t len = MIN(end, MIN(status[0].end, status[1].end)) - at;
        bool zero[2] = { is_zero_run(status[0].flags), is_zero_run(status[1].flags) };
        if (!zero[0] || !zero[1]) {
            len = MIN(len, (uint64_t)CHUNK);
            if (!compare_bytes(w, at, (size_t)len, zero, buf))
                return false;
        }
        at += len;
        watch_done(atomic_fetch_add(&w->done, len) + len);
    }
    return at >= end;
}

static void *worker(void *arg)
{
    struct work *w = arg;
    _cleanup_free_ uint8_t *a = aligned_alloc(4096, CHUNK);
    _cleanup_free_ uint8_t *b = aligned_alloc(4096, CHUNK);
    uint8_t *buf[2] = { a, b };
    if (!a || !b) {
        failed(w, NOT_READ, &w->side[0], 0, -ENOMEM);
        return NULL;
    }
    for (;;) {
        uint64_t at = atomic_fetch_add(&w->next, RANGE);
        if (at >= w->end || at >= atomic_load(&w->first))
            return NULL;
        uint64_t end = MIN(at + RANGE, w->end);
        /* No run may reach across the end of the shorter image. */
        uint64_t shorter = MIN(w->side[0].size, w->side[1].size);
        if (at < shorter && shorter < end && !compare_range(w, at, shorter, buf))
            return NULL;
        if (!compare_range(w, at < shorter && shorter < end ? shorter : at, end, buf))
            return NULL;
    }
}

static void run_workers(struct work *w)
{
    pthread_t threads[MAX_WORKERS];
    unsigned n = 0, wanted = MIN(usable_cores(), (unsigned)MAX_WORKERS);
    uint64_t ranges = w->end / RANGE + 1;
    if (wanted > ranges)
        wanted = (unsigned)ranges;
    while (n + 1 < wanted && pthread_create(&threads[n], NULL, worker, w) == 0)
        n++;
    worker(w); /* this thread works, too */
    while (n > 0)
        pthread_join(threads[--n], NULL);
}

static int report(const struct compare *o, const struct work *w)
{
    uint64_t first = atomic_load(&w->first);
    if (w->failure && w->failed_at < first) {
        complain("%s", w->text);
        return w->failure;
    }
    if (first != UINT64_MAX) {
        watch_hide();
        if (!o->quiet && w->status_differs)
            printf("Strict mode: Offset %" PRIu64 " block status mismatch!\n", first);
        else if (!o->quiet)
            printf("Content mismatch at offset %" PRIu64 "!\n", first);
        return DIFFERENT;
    }
    if (watch_stopped())
        return NOT_READ;
    return SAME;
}

static int compare_nodes(const struct compare *o, struct work *w)
{
    for (int i = 0; i < 2; i++)
        w->side[i].size = image_sectors_size(w->side[i].node);
    bool mismatch = w->side[0].size != w->side[1].size;
    if (mismatch && o->strict) {
        watch_hide();
        if (!o->quiet)
            puts("Strict mode: Image size mismatch!");
        return DIFFERENT;
    }
    for (int i = 0; i < 2; i++)
        w->side[i].size = blk_size(w->side[i].node);
    w->end = MAX(w->side[0].size, w->side[1].size);
    w->strict = o->strict;
    watch_total(w->end);
    run_workers(w);
    /* A difference before the end of the shorter one is told without the warning. */
    uint64_t first = atomic_load(&w->first);
    if (mismatch && !o->quiet && first >= MIN(w->side[0].size, w->side[1].size)) {
        watch_hide();
        puts("Warning: Image size mismatch!");
    }
    return report(o, w);
}

static int compare(const struct compare *o, char **names)
{
    struct work w = { .first = UINT64_MAX, .lock = PTHREAD_MUTEX_INITIALIZER };
    int code = NOT_OPENED;
    for (int i = 0; i < 2; i++) {
        struct image_spec spec = {
            .name = names[i],
            .format = i ? o->format2 : o->format1,
            .cache = o->cache,
            .image_opts = o->image_opts,
            .flags = BLK_OPEN_QUIET | BLK_OPEN_UNWRAP | (o->share ? BLK_OPEN_SHARED : 0),
        };
        w.side[i].name = names[i];
        w.side[i].node = image_open(&spec);
        if (!w.side[i].node)
            break;
    }
    if (w.side[1].node)
        code = compare_nodes(o, &w);
    image_drop(&w.side[1].node);
    image_drop(&w.side[0].node);
    return code;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct compare o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 2) {
        complain("compare needs two file names");
        complain_usage("compare");
        return 1;
    }
    if (!image_opts_alone(o.image_opts, o.format1 ? o.format1 : o.format2) ||
        !cache_valid(o.cache, "source cache"))
        return NOT_OPENED;
    struct watch_how how = { .percent = o.percent, .mode = o.progress, .quiet = o.quiet };
    watch_begin("compare", &how);
    code = compare(&o, argv + first);
    code = watch_end(code);
    if (code == SAME && !o.quiet)
        puts("Images are identical.");
    return output_end(code);
}

const struct command cmd_compare = {
    .name = "compare",
    .summary = "tell whether two images have the same content",
    .operands = "FILENAME1 FILENAME2",
    .args = args,
    .exit_codes = "  0  the images are identical\n"
                  "  1  the images differ\n"
                  "  2  an image could not be opened\n"
                  "  3  the allocation could not be told\n"
                  "  4  data could not be read\n",
    .example = "compare disk.raw vm.qcow2",
    .run = run,
};
