/* Copying in bulk: convert, and whatever moves a disk's content from node to node.
 *
 * Workers take the next piece under one lock, where extents of the source are asked run by run, never for
 * the whole disk; then each reads, looks for zeroes and writes on its own. A piece is small
 * enough to stay in the processor's cache between read and write. Zero runs are not cut into pieces: an
 * empty disk of any size is one of them.
 *
 * Threads: `turn` guards everything that hands out work; `out` guards order and progress. A worker
 * holds at most one of them, and neither while it moves bytes.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/cores.h"
#include "base/iszero.h"
#include "base/macros.h"
#include "base/pool.h"
#include "base/round.h"
#include "copy.h"

#define DEFAULT_MEMORY (UINT64_C(64) << 20)
#define PIECE          (UINT64_C(512) << 10)
#define MAX_WORKERS    64u
#define LARGEST_PIECE  (UINT64_C(2) << 20)
#define ZERO_PIECE     (UINT64_C(1) << 30)
#define SALVAGE_STEP   512
#define NAP_NS         50000000L

struct work {
    enum work_kind kind;
    uint64_t offset, length; /* relative to the copy's start */
    uint64_t number;         /* in order of offset */
};

struct copy {
    const struct blk_copy_args *args;
    bool compress, ordered; /* asked for, or all that the target can do */
    bool dst_encodes;       /* without being asked: parts of units are no matter */
    bool encode;            /* units are encoded before it is their turn to be written */
    uint64_t granule;       /* pieces begin and end on it, relative to the target */
    uint64_t piece;
    unsigned workers;

    pthread_mutex_t turn;
    uint64_t next; /* offset not yet handed out */
    uint64_t numbers;
    uint64_t run_end; /* the source's current run reaches to here */
    enum work_kind run_kind;
    struct timespec started;
    int result; /* the first failure stops all */
    struct error *error;
    _Atomic bool no_offload;

    pthread_mutex_t out;
    pthread_cond_t out_turn;
    uint64_t done;   /* bytes */
    uint64_t writer; /* ordered: the number that may write */
};

static int fail(struct copy *c, int code, const char *doing, const struct blk_node *node,
                uint64_t offset)
{
    LOCK_SCOPE(&c->turn);
    if (c->result == 0) {
        c->result = code;
        if (code != -ECANCELED)
            error_set(&c->error, -code, "%s: error while %s at byte %llu: %s", node->filename,
                      doing, (unsigned long long)offset, strerror(-code));
    }
    return code;
}

/* ---- what to do next ------------------------------------------------------------------------------ */

/* The kind of the source's run at off, of all layers above base. */
static int source_run(const struct blk_copy_args *a, uint64_t off, uint64_t len,
                      enum work_kind *kind, uint64_t *run)
{
    struct blk_extent e;

    if (a->rebase)
        return rebase_run(a, off, len, kind, run);
    if (!a->base) {
        int ret = blk_extents(a->src, off, len, 0, &e);
        if (ret < 0)
            return ret;
        bool zero = e.flags & BLK_EXT_ZERO;
        if (zero && !a->min_sparse && !a->offload)
            zero = false; /* all of it is wanted, written and allocated */
        *kind = zero ? (a->dst_is_zero ? WORK_SKIP : WORK_ZERO) : WORK_DATA;
        *run = e.length;
        return 0;
    }
    for (struct blk_node *n = a->src; n && n != a->base; n = n->edge[EDGE_BACKING]) {
        uint64_t size = blk_size(n);
        if (off >= size) {
            *kind = WORK_ZERO; /* an overlay longer than what lies below hides it with zeroes */
            *run = len;
            return 0;
        }
        len = MIN(len, size - off);
        int ret = blk_extents(n, off, len, BLK_LAYER, &e);
        if (ret < 0)
            return ret;
        len = e.length;
        if (e.flags & BLK_EXT_ALLOCATED) {
            *kind = e.flags & BLK_EXT_ZERO ? WORK_ZERO : WORK_DATA;
            *run = len;
            return 0;
        }
    }
    *kind = WORK_SKIP;
    *run = len;
    return 0;
}

/* A run that begins at c->next and whose end lies on the granule (or is the copy's end). */
static int next_run(struct copy *c)
{
    const struct blk_copy_args *a = c->args;
    uint64_t len, run;
    int ret = source_run(a, a->src_offset + c->next, a->length - c->next, &c->run_kind, &len);

    if (ret < 0)
        return ret;
    uint64_t end = c->next + len;
    if (end == a->length) {
        c->run_end = end;
        return 0;
    }
    uint64_t target = a->dst_offset + end;
    if (c->run_kind == WORK_DATA) {
        run = round_up(target, c->granule);
    } else {
        run = round_down(target, c->granule);
        if (run <= a->dst_offset + c->next) {
            /* Too short to be told apart from data. */
            c->run_kind = WORK_DATA;
            run = round_up(target, c->granule);
        }
    }
    c->run_end = MIN(run - a->dst_offset, a->length);
    return 0;
}

/* 1: there is work, 0: no more, negative: failed. */
static int take_work(struct copy *c, struct work *w)
{
    LOCK_SCOPE(&c->turn);
    if (c->result < 0 || c->next >= c->args->length)
        return 0;
    if (c->next >= c->run_end) {
        int ret = next_run(c);
        if (ret < 0) {
            c->result = ret;
            error_set(&c->error, -ret, "%s: error while looking for data at byte %llu: %s",
                      c->args->src->filename, (unsigned long long)(c->args->src_offset + c->next),
                      strerror(-ret));
            return ret;
        }
    }
    uint64_t left = c->run_end - c->next;
    w->kind = c->run_kind;
    w->offset = c->next;
    w->number = c->numbers++;
    if (w->kind == WORK_DATA) {
        uint64_t target = c->args->dst_offset + c->next;
        left = MIN(left, c->piece - target % c->piece);
    } else if (w->kind == WORK_ZERO) {
        left = MIN(left, ZERO_PIECE);
    }
    w->length = left;
    c->next += left;
    return 1;
}

/* ---- the rate limit ---------------------------------------------------------------------------------- */

/* Under c->out. */
static bool is_cancelled(struct copy *c)
{
    return c->args->progress && c->args->progress(c->args->opaque, c->done, c->args->length);
}

/* A moment from now, or `due` when that is earlier. */
static struct timespec nap_until(const struct timespec *due)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_nsec += NAP_NS;
    if (at.tv_nsec >= 1000000000L) {
        at.tv_nsec -= 1000000000L;
        at.tv_sec++;
    }
    bool late = at.tv_sec > due->tv_sec || (at.tv_sec == due->tv_sec && at.tv_nsec >= due->tv_nsec);
    return late ? *due : at;
}

/* Sleeps until `bytes` in all are due. In naps, since a low rate makes for long nights and the user
 * may have enough of it; true then. */
static bool keep_rate(struct copy *c, uint64_t bytes)
{
    uint64_t rate = c->args->rate_limit;
    if (!rate)
        return false;
    struct timespec due = c->started;
    due.tv_sec += (time_t)(bytes / rate);
    due.tv_nsec += (long)((double)(bytes % rate) / (double)rate * 1e9);
    if (due.tv_nsec >= 1000000000L) {
        due.tv_nsec -= 1000000000L;
        due.tv_sec++;
    }
    for (;;) {
        struct timespec nap = nap_until(&due);
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &nap, NULL) == EINTR)
            ;
        if (nap.tv_sec == due.tv_sec && nap.tv_nsec == due.tv_nsec)
            return false;
        LOCK_SCOPE(&c->out);
        if (is_cancelled(c))
            return true;
    }
}

/* ---- reading ------------------------------------------------------------------------------------------- */

/* Reads what can be read and puts zeroes where it cannot. */
static void salvage(struct copy *c, uint64_t off, uint8_t *buf, uint64_t len)
{
    const struct blk_copy_args *a = c->args;

    while (len > 0) {
        uint64_t step = MIN(len, (uint64_t)SALVAGE_STEP - off % SALVAGE_STEP);
        int ret = blk_read(a->src, off, buf, step, 0);
        if (ret < 0) {
            memset(buf, 0, step);
            LOCK_SCOPE(&c->out);
            if (a->bad)
                a->bad(a->opaque, off, step, -ret);
        }
        off += step;
        buf += step;
        len -= step;
    }
}

static int read_piece(struct copy *c, const struct work *w, uint8_t *buf)
{
    uint64_t off = c->args->src_offset + w->offset;
    int ret = blk_read(c->args->src, off, buf, w->length, 0);

    if (ret < 0 && c->args->salvage) {
        salvage(c, off, buf, w->length);
        return 0;
    }
    return ret < 0 ? fail(c, ret, "reading", c->args->src, off) : 0;
}

/* ---- writing ------------------------------------------------------------------------------------------- */

static int write_zero_run(struct copy *c, uint64_t off, uint64_t len)
{
    if (c->args->dst_is_zero && !c->args->base)
        return 0;
    unsigned flags = BLK_MAY_UNMAP | (c->args->rebase ? BLK_EXPLICIT : 0);
    int ret = blk_zero(c->args->dst, off, len, flags);
    return ret < 0 ? fail(c, ret, "writing zeroes", c->args->dst, off) : 0;
}

static int write_data_run(struct copy *c, uint64_t off, const uint8_t *buf, uint64_t len)
{
    unsigned flags = c->compress && !c->dst_encodes ? BLK_COMPRESSED : 0;
    int ret = blk_write(c->args->dst, off, buf, len, flags);
    return ret < 0 ? fail(c, ret, "writing", c->args->dst, off) : 0;
}

/* The length of the run at buf that is written alike, and whether it is zeroes. Compressed clusters
 * are zero as a whole or not at all. */
static uint64_t sparse_run(const struct copy *c, const uint8_t *buf, uint64_t len, bool *zero)
{
    uint64_t grain = c->compress ? c->granule : MIN((uint64_t)4096, c->args->min_sparse);
    uint64_t run = zero_run(buf, len, grain, zero);

    if (*zero && run < c->args->min_sparse && run < len && !c->compress) {
        /* Zeroes too few to be worth a hole, and the data behind them. */
        bool more;
        *zero = false;
        run += zero_run(buf + run, len - run, grain, &more);
    }
    return run;
}

static int write_piece(struct copy *c, const struct work *w, const uint8_t *buf)
{
    uint64_t off = c->args->dst_offset + w->offset;
    uint64_t len = w->length;
    int ret = 0;

    while (len > 0 && ret == 0) {
        bool zero = false;
        uint64_t run = c->args->min_sparse ? sparse_run(c, buf, len, &zero) : len;
        ret = zero ? write_zero_run(c, off, run) : write_data_run(c, off, buf, run);
        off += run;
        buf += run;
        len -= run;
    }
    return ret;
}

/* Writes of what the overlay reads only that in which the other chain differs. */
static int write_differing(struct copy *c, const struct work *w, const uint8_t *buf,
                           uint8_t *others)
{
    const struct blk_copy_args *a = c->args;
    uint64_t off = a->dst_offset + w->offset, len = w->length;
    int ret = rebase_read_other(a, off, others, len);

    if (ret < 0)
        return fail(c, ret, "reading", a->other, off);
    while (len > 0 && ret == 0) {
        enum work_kind kind;
        uint64_t run = rebase_compare(buf, others, len, c->granule, &kind);
        if (kind == WORK_ZERO)
            ret = write_zero_run(c, off, run);
        else if (kind == WORK_DATA)
            ret = write_data_run(c, off, buf, run);
        off += run;
        buf += run;
        others += run;
        len -= run;
    }
    return ret;
}

/* ---- writing to images that hold nothing but encoded units ------------------------------------------ */

/* Encoding takes the time, so it comes before the piece's turn; writing in order makes an image that can be read in
 * one go. */
struct encoded {
    uint64_t
        length[PIECE / 512]; /* of each unit's encoding; 0: it is zeroes and need not be written */
    uint8_t *mem;
    size_t room; /* for one */
};

static bool whole_units(const struct copy *c, const struct work *w)
{
    uint64_t off = c->args->dst_offset + w->offset;

    return c->encode && off % c->granule == 0 && w->length / c->granule < PIECE / 512 &&
           (w->length % c->granule == 0 || off + w->length == blk_size(c->args->dst));
}

/* buf has room up to the end of the last unit. */
static int encode_units(struct copy *c, const struct work *w, uint8_t *buf, struct encoded *e)
{
    struct blk_node *dst = c->args->dst;
    uint64_t off = c->args->dst_offset + w->offset, unit = c->granule, k = 0;

    memset(buf + w->length, 0, round_up(w->length, unit) - w->length);
    for (uint64_t at = 0; at < w->length; at += unit, k++) {
        e->length[k] = 0;
        if (c->args->min_sparse && c->args->dst_is_zero && is_zero(buf + at, unit))
            continue;
        int64_t len =
            dst->drv->encode(dst, off + at, buf + at, unit, e->mem + k * e->room, e->room);
        if (len < 0)
            return fail(c, (int)len, "compressing for", dst, off + at);
        e->length[k] = (uint64_t)len;
    }
    return 0;
}

static int write_encoded(struct copy *c, const struct work *w, const struct encoded *e)
{
    uint64_t off = c->args->dst_offset + w->offset, unit = c->granule, k = 0;

    for (uint64_t at = 0; at < w->length; at += unit, k++) {
        uint64_t len = MIN(unit, w->length - at);
        int ret = e->length[k] ? io_write_encoded(c->args->dst, off + at, len, e->mem + k * e->room,
                                                  e->length[k])
                               : 0;
        if (ret < 0)
            return fail(c, ret, "writing", c->args->dst, off + at);
    }
    return 0;
}

/* The bytes never come here: the host copies them. False: read and write them. */
static bool offloaded(struct copy *c, const struct work *w)
{
    const struct blk_copy_args *a = c->args;
    uint64_t done = 0;

    while (a->offload && !c->no_offload && done < w->length) {
        uint64_t now = 0;
        int ret = blk_copy_range(a->src, a->src_offset + w->offset + done, a->dst,
                                 a->dst_offset + w->offset + done, w->length - done, 0, &now);
        if (ret < 0 || now == 0) {
            c->no_offload = true;
            return false;
        }
        done += now;
    }
    return done > 0 && done == w->length;
}

/* ---- a worker ------------------------------------------------------------------------------------------ */

/* Ordered: waits until everything before this piece is written. */
static void await_order(struct copy *c, const struct work *w)
{
    if (!c->ordered)
        return;
    LOCK_SCOPE(&c->out);
    while (c->writer != w->number)
        pthread_cond_wait(&c->out_turn, &c->out);
}

static int account(struct copy *c, const struct work *w)
{
    uint64_t done;
    bool cancelled;
    {
        LOCK_SCOPE(&c->out);
        done = c->done += w->length;
        if (c->ordered) {
            c->writer++;
            pthread_cond_broadcast(&c->out_turn);
        }
        cancelled = is_cancelled(c);
    }
    if (!cancelled && w->kind == WORK_DATA)
        cancelled = keep_rate(c, done);
    return cancelled ? fail(c, -ECANCELED, "copying", c->args->src, w->offset) : 0;
}

static int do_work(struct copy *c, const struct work *w, uint8_t *buf, struct encoded *e)
{
    int ret = 0;

    if (w->kind == WORK_DATA && whole_units(c, w)) {
        ret = read_piece(c, w, buf);
        if (ret == 0)
            ret = encode_units(c, w, buf, e);
        await_order(c, w);
        if (ret == 0)
            ret = write_encoded(c, w, e);
    } else if (w->kind == WORK_DATA && !offloaded(c, w)) {
        ret = read_piece(c, w, buf);
        await_order(c, w);
        if (ret == 0)
            ret = c->args->rebase ? write_differing(c, w, buf, buf + c->piece)
                                  : write_piece(c, w, buf);
    } else {
        await_order(c, w);
        if (w->kind == WORK_ZERO)
            ret = write_zero_run(c, c->args->dst_offset + w->offset, w->length);
    }
    int r = account(c, w);
    return ret < 0 ? ret : r;
}

static void worker(void *opaque)
{
    struct copy *c = opaque;
    struct work w;
    /* aligned for O_DIRECT, so that nothing bounces */
    _cleanup_free_ uint8_t *buf =
        aligned_alloc(4096, align_up(c->piece * (c->args->rebase ? 2 : 1), 4096));
    struct encoded e = { .room = c->granule + c->args->dst->limits.encode_room };
    _cleanup_free_ uint8_t *mem = c->encode ? malloc(c->piece / c->granule * e.room) : NULL;

    e.mem = mem;
    if (!buf || (c->encode && !mem)) {
        fail(c, -ENOMEM, "copying", c->args->src, 0);
        return;
    }
    while (take_work(c, &w) > 0)
        if (do_work(c, &w, buf, &e) < 0)
            break;
}

/* ---- the copy ------------------------------------------------------------------------------------------- */

static void plan(struct copy *c)
{
    const struct blk_copy_args *a = c->args;
    struct blk_limits l;
    uint64_t memory = a->memory ? a->memory : DEFAULT_MEMORY;

    blk_get_limits(a->dst, &l);
    c->compress = a->compress || l.must_compress;
    c->ordered = a->ordered || l.must_compress;
    c->dst_encodes = l.must_compress;
    c->encode = l.must_compress && !a->rebase;
    c->granule = c->compress && l.max_compressed ? l.max_compressed : l.cluster_size;
    if (!c->granule)
        c->granule = 4096;
    /* Formats with larger units do not fill up a whole one for a part of it. */
    if (!a->compress && c->granule > LARGEST_PIECE)
        c->granule = PIECE;
    c->workers = a->workers ? a->workers : usable_cores();
    c->workers = MIN(c->workers, MAX_WORKERS);
    c->piece = MAX(PIECE, c->granule);
    while (c->workers > 1 && c->workers * c->piece > memory)
        c->workers--;
}

static int run_workers(struct copy *c, struct error **err)
{
    struct pool_job jobs[MAX_WORKERS];
    struct pool_group group;
    struct pool *pool;

    if (c->workers == 1) {
        worker(c);
        return 0;
    }
    int ret = pool_create(&pool, c->workers - 1, "copy");
    if (ret < 0)
        return error_set(err, -ret, "could not start threads: %s", strerror(-ret));
    pool_group_init(&group);
    for (unsigned i = 0; i < c->workers - 1; i++) {
        jobs[i] = (struct pool_job){ .fn = worker, .arg = c, .group = &group };
        pool_submit(pool, &jobs[i]);
    }
    worker(c);
    pool_wait(&group);
    pool_group_destroy(&group);
    pool_destroy(pool);
    return 0;
}

int blk_copy(const struct blk_copy_args *args, struct error **err)
{
    struct copy c = { .args = args };

    if (args->compress && !args->dst->drv->encode)
        return error_set(err, ENOTSUP, "%s: the format %s cannot store compressed data",
                         args->dst->filename, args->dst->drv->name);
    plan(&c);
    pthread_mutex_init(&c.turn, NULL);
    pthread_mutex_init(&c.out, NULL);
    pthread_cond_init(&c.out_turn, NULL);
    clock_gettime(CLOCK_MONOTONIC, &c.started);

    int ret = run_workers(&c, err);
    if (ret == 0)
        ret = c.result;
    if (c.error && err && !*err) {
        *err = c.error;
        c.error = NULL;
    }
    error_free(c.error);
    pthread_cond_destroy(&c.out_turn);
    pthread_mutex_destroy(&c.out);
    pthread_mutex_destroy(&c.turn);
    return ret;
}
