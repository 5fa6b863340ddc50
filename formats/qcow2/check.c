/* check: the order of things. See check.h for the rules. */
#include "check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/cores.h"
#include "base/macros.h"
#include "base/round.h"

#define MAX_CLUSTERS (UINT64_C(1) << 31)

/* ---- what the steps share ------------------------------------------------------------------------------ */

void qcheck_say(struct qcheck *c, const char *fmt, ...)
{
    char text[320];
    va_list args;

    if (!c->hooks || !c->hooks->message || c->messages > QCHECK_MAX_MESSAGES)
        return;
    if (c->messages++ == QCHECK_MAX_MESSAGES) {
        c->hooks->message(c->hooks->opaque, "More was found; the rest is only counted.");
        return;
    }
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    c->hooks->message(c->hooks->opaque, text);
}

bool qcheck_fixes(const struct qcheck *c, unsigned what)
{
    return c->fix & what;
}

int qcheck_read(const struct qcheck *c, uint64_t offset, void *buf, size_t len)
{
    uint64_t there = offset < c->file_len ? MIN((uint64_t)len, c->file_len - offset) : 0;

    memset((uint8_t *)buf + there, 0, len - there);
    return there ? blk_read(c->file, offset, buf, there, 0) : 0;
}

int qcheck_write(struct qcheck *c, enum qcheck_kind kind, uint64_t offset, const void *buf,
                 size_t len)
{
    for (uint64_t i = offset >> c->bits; i <= (offset + len - 1) >> c->bits; i++) {
        const uint64_t *kinds = qmap_find(&c->protected, i);
        if (kinds && (*kinds & ~(uint64_t)kind))
            return error_set(c->err, EIO,
                             "%s: repairing the metadata at %#" PRIx64 " would "
                             "overwrite other metadata in the same place; copy what can be read "
                             "with img convert",
                             blk_filename(c->file), offset);
    }
    int ret = blk_write(c->file, offset, buf, len, 0);
    if (ret < 0)
        error_set(c->err, -ret, "%s: could not write the metadata at %#" PRIx64 ": %s",
                  blk_filename(c->file), offset, strerror(-ret));
    return ret;
}

int qcheck_flush(struct qcheck *c)
{
    int ret = blk_flush(c->file);
    if (ret < 0)
        error_set(c->err, -ret, "%s: could not flush: %s", blk_filename(c->file), strerror(-ret));
    return ret;
}

int qcheck_protect(struct qcheck *c, enum qcheck_kind kind, uint64_t offset, uint64_t len)
{
    if (!c->fix || len == 0 || qcheck_outside(c, offset, len))
        return 0;
    for (uint64_t i = offset >> c->bits; i <= (offset + len - 1) >> c->bits; i++) {
        uint64_t *kinds = qmap_at(&c->protected, i);
        if (!kinds)
            return -ENOMEM;
        *kinds |= kind;
    }
    return 0;
}

bool qcheck_count(struct qcheck *c, uint64_t offset, uint64_t len)
{
    if (len == 0)
        return true;
    if (qcheck_outside(c, offset, len)) {
        c->out->corruptions++;
        qcheck_say(c,
                   "ERROR: counting reference for region exceeding the end of the file by one "
                   "cluster or more: offset 0x%" PRIx64 " size 0x%" PRIx64,
                   offset, len);
        return false;
    }
    uint64_t first = offset >> c->bits, last = (offset + len - 1) >> c->bits;
    qrefs_add(&c->refs, first, last - first + 1);
    return true;
}

int qcheck_progress(struct qcheck *c, uint64_t steps)
{
    c->done += steps;
    if (!c->hooks || !c->hooks->progress)
        return 0;
    return c->hooks->progress(c->hooks->opaque, MIN(c->done, c->total), c->total) ? -ECANCELED : 0;
}

bool qcheck_hole(const struct qcheck *c, uint64_t offset, uint64_t len)
{
    struct blk_extent e;

    if (offset >= c->file_len)
        return true;
    len = MIN(len, c->file_len - offset);
    return blk_extents(c->file, offset, len, 0, &e) == 0 && (e.flags & BLK_EXT_ZERO) &&
           e.length == len;
}

void qcheck_run(struct qcheck *c, void (*fn)(void *), void *arg)
{
    struct pool_job jobs[QCHECK_MAX_WORKERS];
    struct pool_group group;

    if (!c->pool) {
        fn(arg);
        return;
    }
    pool_group_init(&group);
    for (unsigned i = 0; i < c->workers; i++) {
        jobs[i] = (struct pool_job){ .fn = fn, .arg = arg, .group = &group };
        pool_submit(c->pool, &jobs[i]);
    }
    pool_wait(&group);
    pool_group_destroy(&group);
}

/* ---- beginning and end --------------------------------------------------------------------------------- */

static void *lazy_bits(uint64_t bits, size_t *bytes)
{
    *bytes = (size_t)(bits / 64 + 1) * 8;
    void *p = mmap(NULL, *bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void free_all(struct qcheck *c)
{
    pool_destroy(c->pool);
    qrefs_free(&c->refs);
    qmap_free(&c->again);
    qmap_free(&c->protected);
    if (c->visited)
        munmap(c->visited, c->visited_bytes);
    free(c->uncopied);
    free(c->table);
}

/* L2 tables that the active disk has. */
static uint64_t count_tables(const struct qcow2 *q)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < q->header.l1_size; i++)
        n += (q->l1[i] & L1E_OFFSET) != 0;
    return n;
}

static int prepare(struct qcheck *c)
{
    struct qcow2 *q = c->q;

    c->file = q->file;
    c->bits = q->cluster_bits;
    c->size = q->cluster_size;
    c->file_len = c->budget = blk_size(c->file);
    c->clusters = div_round_up(c->file_len, c->size);
    c->total = count_tables(q);
    c->workers = MIN(usable_cores(), (unsigned)QCHECK_MAX_WORKERS);
    if (c->clusters > MAX_CLUSTERS)
        return error_set(c->err, EFBIG,
                         "%s: the file has %" PRIu64 " clusters, more than the %" PRIu64
                         " that can be checked",
                         blk_filename(c->file), c->clusters, MAX_CLUSTERS);
    c->out->total_clusters = div_round_up(q->header.size, c->size);

    /* One more: what ends less than a cluster behind the file may touch one. */
    int ret = qrefs_init(&c->refs, c->clusters + 1, q->refcount_order);
    c->visited = lazy_bits(c->clusters + 1, &c->visited_bytes);
    c->uncopied = calloc(q->header.l1_size / 64 + 1, sizeof(*c->uncopied));
    c->table = malloc(c->size);
    if (ret < 0 || !c->visited || !c->uncopied || !c->table)
        return -ENOMEM;
    if (c->workers > 1 && c->total >= 16)
        pool_create(&c->pool, c->workers, "check"); /* without it, one thread does all */
    return 0;
}

/* ---- the steps ---------------------------------------------------------------------------------------------- */

static int count_references(struct qcheck *c)
{
    int ret = qcheck_protect(c, QCHECK_HEADER, 0, c->size);

    qcheck_count(c, 0, c->size);
    if (ret == 0)
        ret = qcheck_active(c);
    if (ret == 0)
        ret = qcheck_snapshots(c);
    if (ret == 0)
        ret = qcheck_again(c);
    if (ret == 0)
        ret = qcheck_extensions(c);
    if (ret == 0)
        ret = qcheck_refcount_structure(c);
    if (ret == 0 && c->refs.failed)
        ret = -ENOMEM;
    if (ret == 0 && qrefs_get(&c->refs, c->clusters))
        c->clusters++;
    return ret;
}

/* What is found becomes what was mended. */
static int rebuild(struct qcheck *c)
{
    struct blk_check *out = c->out;

    if (!qcheck_fixes(c, BLK_FIX_ERRORS)) {
        qcheck_say(c, "ERROR need to rebuild refcount structures");
        return error_set(c->err, EIO,
                         "%s: its refcounts are not usable; this goes beyond leaks "
                         "and needs -r all",
                         blk_filename(c->file));
    }
    int ret = qcheck_rebuild(c);
    if (ret < 0)
        return ret;
    out->leaks_fixed += out->leaks;
    out->leaks = 0;
    out->check_errors = 0;
    return 0;
}

static int compare_and_mend(struct qcheck *c)
{
    struct blk_check *out = c->out;
    uint64_t before = out->corruptions;
    int ret = qcheck_compare(c, false);

    if (ret < 0)
        return ret;
    if (c->rebuild && c->fix) {
        uint64_t mended = out->corruptions - before + c->rebuild_findings;
        ret = rebuild(c);
        if (ret == 0) {
            mended -= MIN(mended, c->overflows);
            out->corruptions -= mended;
            out->corruptions_fixed += mended;
        }
        return ret;
    }
    if (!c->fix || (out->corruptions == before + c->overflows && !out->leaks))
        return 0;
    if (out->leaks && c->lost_snapshot)
        qcheck_say(c, "Leaked clusters stay: they may be what the damaged snapshot holds");
    out->corruptions = before + c->overflows;
    out->leaks = 0;
    ret = qcheck_compare(c, true);
    return ret == 0 ? qcheck_flush(c) : ret;
}

static int check(struct qcheck *c)
{
    struct blk_check *out = c->out;
    int ret = prepare(c);

    if (ret == 0)
        ret = count_references(c);
    if (ret == 0)
        ret = compare_and_mend(c);
    if (ret == 0 && !out->check_errors)
        ret = qcheck_copied(c);
    if (ret == 0 && c->fix && !out->corruptions && !out->check_errors)
        ret = qcheck_clear_marks(c);
    return ret;
}

int qcow2_check(struct blk_node *n, unsigned fix, struct blk_check *out,
                const struct blk_check_hooks *hooks, struct error **err)
{
    struct qcow2 *q = node_state(n);
    struct qcheck c = { .q = q, .fix = fix, .out = out, .hooks = hooks, .err = err };

    *out = (struct blk_check){ 0 };
    if (q->unreadable)
        return error_set(err, ENOTSUP, "%s: it uses features that cannot be checked",
                         blk_filename(n));
    if (q->viewing)
        return error_set(err, EINVAL, "%s: cannot be checked while it shows a snapshot",
                         blk_filename(n));
    int ret = node_writable(n) ? qcow2_commit(q, true) : 0;
    if (ret < 0)
        return error_set(err, -ret, "%s: could not write its metadata: %s", blk_filename(n),
                         strerror(-ret));
    ret = check(&c);
    free_all(&c);
    if (ret < 0 && ret != -ECANCELED)
        error_set(err, -ret, "%s: could not be checked: %s", blk_filename(n), strerror(-ret));
    if (fix && (out->corruptions_fixed || out->leaks_fixed || ret < 0)) {
        int r = qcow2_reload(q, ret < 0 ? NULL : err);
        ret = ret < 0 ? ret : r;
    }
    return ret;
}
