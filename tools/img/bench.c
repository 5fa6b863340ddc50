/* img bench: how fast an image answers. Depth N is N threads that each wait for their request. */
#include "img.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/human.h"
#include "base/macros.h"

#include "args.h"
#include "image.h"
#include "output.h"
#include "watch.h"

struct bench {
    const char *format, *cache, *aio, *output, *progress;
    uint64_t count, depth, offset, size, step, flush_interval, pattern, mixed, seed;
    bool image_opts, share, quiet, percent, native, no_drain, write, random;
};

static const struct arg_def args[] = {
    { .letter = 'c',
      .name = "count",
      .kind = ARG_NUMBER,
      .at = offsetof(struct bench, count),
      .value = "COUNT",
      .help = "requests in all (75000)",
      .what = "request count" },
    { .letter = 'd',
      .name = "depth",
      .kind = ARG_NUMBER,
      .at = offsetof(struct bench, depth),
      .value = "DEPTH",
      .help = "requests at the same time (64)",
      .what = "queue depth" },
    { .letter = 's',
      .name = "buffer-size",
      .kind = ARG_SIZE,
      .at = offsetof(struct bench, size),
      .value = "SIZE",
      .help = "bytes of a request (4k)",
      .what = "buffer size" },
    { .letter = 'S',
      .name = "step-size",
      .kind = ARG_SIZE,
      .at = offsetof(struct bench, step),
      .value = "STEP",
      .help = "from the start of one request to the next (the size)",
      .what = "step size" },
    { .letter = 'o',
      .name = "offset",
      .kind = ARG_SIZE,
      .at = offsetof(struct bench, offset),
      .value = "OFFSET",
      .help = "where the first request goes (0)",
      .what = "offset" },
    { .letter = 'w',
      .name = "write",
      .kind = ARG_FLAG,
      .at = offsetof(struct bench, write),
      .help = "write; what the image holds is lost" },
    { .name = "mixed",
      .kind = ARG_NUMBER,
      .at = offsetof(struct bench, mixed),
      .value = "PERCENT",
      .help = "so many reads of a hundred requests, the rest are writes",
      .what = "share of reads" },
    { .name = "random",
      .kind = ARG_FLAG,
      .at = offsetof(struct bench, random),
      .help = "requests go to places picked at random" },
    { .name = "seed",
      .kind = ARG_NUMBER,
      .at = offsetof(struct bench, seed),
      .value = "N",
      .help = "of the random places (1)",
      .what = "seed" },
    { .name = "pattern",
      .kind = ARG_NUMBER,
      .at = offsetof(struct bench, pattern),
      .value = "BYTE",
      .help = "what is written (0)",
      .what = "pattern byte" },
    { .name = "flush-interval",
      .kind = ARG_NUMBER,
      .at = offsetof(struct bench, flush_interval),
      .value = "N",
      .help = "flush after every N writes",
      .what = "flush interval" },
    { .name = "no-drain",
      .kind = ARG_FLAG,
      .at = offsetof(struct bench, no_drain),
      .help = "do not let running requests end before a flush" },
    { .letter = 't',
      .name = "cache",
      .kind = ARG_TEXT,
      .at = offsetof(struct bench, cache),
      .value = "CACHE",
      .hint = "@cache",
      .help = "cache mode (writeback)" },
    { .letter = 'i',
      .name = "aio",
      .kind = ARG_CHOICE,
      .at = offsetof(struct bench, aio),
      .value = "AIO",
      .hint = "threads|native|io_uring",
      .help = "taken for qemu-img's sake: always threads" },
    { .letter = 'n',
      .name = "native",
      .kind = ARG_FLAG,
      .at = offsetof(struct bench, native),
      .help = "the old spelling of -i native" },
    ARGS_FORMAT(struct bench, format),
    ARGS_IMAGE_OPTS(struct bench, image_opts),
    ARGS_OUTPUT(struct bench, output),
    ARGS_PROGRESS(struct bench, percent, progress),
    ARGS_QUIET(struct bench, quiet),
    ARGS_SHARE(struct bench, share),
    ARGS_OBJECT,
    ARGS_END,
};

enum { MAX_DEPTH = 1024 };

struct run {
    const struct bench *o;
    struct blk_node *node;
    uint64_t image_size;
    atomic_uint_fast64_t next; /* request to take */
    atomic_uint_fast64_t done, reads, writes;
    atomic_int result;
    struct rwlock drain; /* a draining flush holds it alone */
    float *latency;      /* of each request, in microseconds; NULL: not kept */
    double seconds;
};

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* The n-th number of a fixed sequence; any thread can ask for any n (splitmix64). */
static uint64_t scramble(uint64_t n)
{
    n += UINT64_C(0x9e3779b97f4a7c15) * (n + 1);
    n = (n ^ (n >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    n = (n ^ (n >> 27)) * UINT64_C(0x94d049bb133111eb);
    return n ^ (n >> 31);
}

/* Step by step, counted on from the image's start where its end is passed; a request that the end would cut is
 * moved back in front of it. */
static uint64_t place_of(const struct run *run, uint64_t number)
{
    const struct bench *o = run->o;
    uint64_t size = run->image_size, last = size - o->size;
    if (o->random)
        return o->offset +
               scramble(o->seed ^ number) % ((last - o->offset) / o->size + 1) * o->size;
    unsigned __int128 place = (unsigned __int128)number * o->step + o->offset;
    return MIN((uint64_t)(place % size), last);
}

static bool is_read(const struct bench *o, uint64_t number)
{
    if (o->mixed != UINT64_MAX)
        return scramble(o->seed + 77 + number) % 100 < o->mixed;
    return !o->write;
}

static int flush(struct run *run)
{
    if (run->o->no_drain)
        return blk_flush(run->node);
    WRLOCK_SCOPE(&run->drain);
    return blk_flush(run->node);
}

static int transfer(struct run *run, uint64_t number, uint64_t offset, void *buf)
{
    const struct bench *o = run->o;
    if (is_read(o, number)) {
        atomic_fetch_add(&run->reads, 1);
        return blk_read(run->node, offset, buf, o->size, 0);
    }
    atomic_fetch_add(&run->writes, 1);
    return blk_write(run->node, offset, buf, o->size, 0);
}

static int request(struct run *run, uint64_t number, void *buf)
{
    const struct bench *o = run->o;
    uint64_t offset = place_of(run, number);
    if (!o->flush_interval || o->no_drain) {
        int r = transfer(run, number, offset, buf);
        bool due = o->flush_interval && (number + 1) % o->flush_interval == 0;
        return r == 0 && due ? flush(run) : r;
    }
    int r;
    {
        RDLOCK_SCOPE(&run->drain);
        r = transfer(run, number, offset, buf);
    }
    return r == 0 && (number + 1) % o->flush_interval == 0 ? flush(run) : r;
}

static void *worker(void *arg)
{
    struct run *run = arg;
    const struct bench *o = run->o;
    size_t size = (o->size + 4095) & ~(size_t)4095;
    _cleanup_free_ void *buf = aligned_alloc(4096, size);
    if (!buf) {
        atomic_store(&run->result, -ENOMEM);
        return NULL;
    }
    memset(buf, (int)o->pattern, size);
    while (atomic_load(&run->result) == 0 && !watch_stopped()) {
        uint64_t number = atomic_fetch_add(&run->next, 1);
        if (number >= o->count)
            break;
        double began = run->latency ? now() : 0;
        int r = request(run, number, buf);
        if (run->latency)
            run->latency[number] = (float)((now() - began) * 1e6);
        if (r < 0)
            atomic_store(&run->result, r);
        watch_done((atomic_fetch_add(&run->done, 1) + 1) * o->size);
    }
    return NULL;
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static double percentile(const float *sorted, uint64_t n, double share)
{
    uint64_t i = (uint64_t)(share * (double)n);
    return (double)sorted[MIN(i, n - 1)];
}

static json_t *latency_json(const struct run *run, uint64_t n)
{
    static const struct {
        const char *name;
        double share;
    } rows[] = {
        { "p50", 0.5 }, { "p90", 0.9 }, { "p95", 0.95 }, { "p99", 0.99 }, { "p99.9", 0.999 }
    };
    json_t *o = json_object();
    double sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += (double)run->latency[i];
    output_add(o, "min", json_real((double)run->latency[0]));
    output_add(o, "mean", json_real(sum / (double)n));
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        output_add(o, rows[i].name, json_real(percentile(run->latency, n, rows[i].share)));
    output_add(o, "max", json_real((double)run->latency[n - 1]));
    return o;
}

static void print_json(const struct run *run, uint64_t n)
{
    const struct bench *o = run->o;
    json_t *j = json_object();
    output_add(j, "requests", json_integer((json_int_t)n));
    output_add(j, "reads", json_integer((json_int_t)atomic_load(&run->reads)));
    output_add(j, "writes", json_integer((json_int_t)atomic_load(&run->writes)));
    output_add(j, "size", json_integer((json_int_t)o->size));
    output_add(j, "depth", json_integer((json_int_t)o->depth));
    output_add(j, "seconds", json_real(run->seconds));
    if (run->seconds > 0) {
        output_add(j, "requests-per-second", json_real((double)n / run->seconds));
        output_add(j, "bytes-per-second", json_real((double)n * (double)o->size / run->seconds));
    }
    if (n > 0 && run->latency)
        output_add(j, "latency-us", latency_json(run, n));
    output_json(j);
    json_decref(j);
}

static void print_human(const struct run *run, uint64_t n)
{
    printf("Run completed in %3.3f seconds.\n", run->seconds);
    /* qemu-img says no more; what follows only comes where something beyond it was asked. */
    if (n == 0 || !(run->o->random || run->o->mixed != UINT64_MAX))
        return;
    printf("%" PRIu64 " reads, %" PRIu64 " writes, %.0f requests/s, %s/s\n",
           (uint64_t)atomic_load(&run->reads), (uint64_t)atomic_load(&run->writes),
           (double)n / run->seconds,
           human_size((uint64_t)((double)n * (double)run->o->size / run->seconds)).s);
    if (run->latency) {
        printf("latency in us: p50 %.1f, p90 %.1f, p99 %.1f, p99.9 %.1f, max %.1f\n",
               percentile(run->latency, n, 0.5), percentile(run->latency, n, 0.9),
               percentile(run->latency, n, 0.99), percentile(run->latency, n, 0.999),
               (double)run->latency[n - 1]);
    }
}

static void announce(const struct bench *o)
{
    const char *kind = o->mixed != UINT64_MAX ? "mixed" : o->write ? "write" : "read";
    printf("Sending %" PRIu64 " %s requests, %" PRIu64 " bytes each, %" PRIu64 " in parallel "
           "(starting at offset %" PRIu64 ", step size %" PRIu64 ")\n",
           o->count, kind, o->size, o->depth, o->offset, o->step);
    if (o->flush_interval)
        printf("Sending flush every %" PRIu64 " requests\n", o->flush_interval);
    fflush(stdout);
}

static int run_all(struct run *run)
{
    const struct bench *o = run->o;
    bool json = o->output && strcmp(o->output, "json") == 0;
    if (!json)
        announce(o);
    if (o->size == 0 || o->offset > run->image_size || o->size > run->image_size - o->offset) {
        if (o->count == 0)
            return 0;
        complain("no request of %" PRIu64 " bytes from offset %" PRIu64 " on fits into the %" PRIu64
                 " bytes of the image",
                 o->size, o->offset, run->image_size);
        return 1;
    }
    bool keep = json || o->random || o->mixed != UINT64_MAX;
    if (keep && o->count <= (UINT64_C(16) << 20))
        run->latency = calloc(o->count + 1, sizeof(float));
    watch_total(o->count * o->size);
    pthread_t threads[MAX_DEPTH];
    unsigned n = 0;
    double began = now();
    while (n < MIN(o->depth, o->count) && pthread_create(&threads[n], NULL, worker, run) == 0)
        n++;
    if (n == 0 && o->count > 0)
        worker(run);
    while (n > 0)
        pthread_join(threads[--n], NULL);
    run->seconds = now() - began;
    watch_hide();
    int r = atomic_load(&run->result);
    if (r < 0) {
        complain("'%s': a request failed: %s", blk_filename(run->node), strerror(-r));
        return 1;
    }
    uint64_t done = atomic_load(&run->done);
    /* Requests are taken in order, so those that were done are the first ones. */
    if (run->latency)
        qsort(run->latency, done, sizeof(float), compare_floats);
    if (json)
        print_json(run, done);
    else
        print_human(run, done);
    return watch_stopped() ? 1 : 0;
}

static int bench(const struct bench *o, const char *filename)
{
    bool writes = o->write || (o->mixed != UINT64_MAX && o->mixed < 100);
    struct image_spec spec = {
        .name = filename,
        .format = o->format,
        .cache = o->cache,
        .image_opts = o->image_opts,
        .flags = (writes ? BLK_OPEN_RDWR : 0) | (o->share ? BLK_OPEN_SHARED : 0) |
                 (o->quiet || !writes ? BLK_OPEN_QUIET : 0),
    };
    struct run run = { .o = o, .drain = RWLOCK_INIT };
    run.node = image_open(&spec);
    if (!run.node)
        return 1;
    run.image_size = blk_size(run.node);
    int code = run_all(&run);
    free(run.latency);
    if (!image_close(run.node))
        code = 1;
    return code;
}

static bool sensible(struct bench *o)
{
    bool writes = o->write || o->mixed != UINT64_MAX;
    if (o->step == UINT64_MAX)
        o->step = o->size;
    if (o->depth < 1 || o->depth > MAX_DEPTH) {
        complain("-d is %" PRIu64 ", but it must be between 1 and %d", o->depth, MAX_DEPTH);
    } else if (o->size > INT32_MAX) {
        complain("-s is %" PRIu64 ", but it must be at most %d", o->size, INT32_MAX);
    } else if (o->pattern > 255) {
        complain("--pattern is %" PRIu64 ", but it is a byte", o->pattern);
    } else if (o->mixed != UINT64_MAX && o->mixed > 100) {
        complain("--mixed is %" PRIu64 ", but it is a share of a hundred", o->mixed);
    } else if (!writes && o->flush_interval) {
        complain("--flush-interval is for writing: give -w or --mixed, too");
    } else if (o->flush_interval && o->flush_interval < o->depth) {
        complain("--flush-interval is %" PRIu64 ", but it must be at least the depth, %" PRIu64,
                 o->flush_interval, o->depth);
    } else {
        return cache_valid(o->cache, "cache") && image_opts_alone(o->image_opts, o->format);
    }
    return false;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct bench o = { .count = 75000,
                       .depth = 64,
                       .size = 4096,
                       .step = UINT64_MAX,
                       .mixed = UINT64_MAX,
                       .seed = 1 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 1) {
        complain("bench needs one file name");
        complain_usage("bench");
        return 1;
    }
    if (!sensible(&o))
        return 1;
    struct watch_how how = { .percent = o.percent, .mode = o.progress, .quiet = o.quiet };
    watch_begin("bench", &how);
    return output_end(watch_end(bench(&o, argv[first])));
}

const struct command cmd_bench = {
    .name = "bench",
    .summary = "measure how fast an image answers",
    .operands = "FILENAME",
    .args = args,
    .example = "bench -c 100000 -d 8 --random vm.qcow2",
    .run = run,
};
