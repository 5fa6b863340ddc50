/* Counting what L1 and L2 tables refer to.
 *
 * Tables in order are counted on the pool, a batch at a time. A job looks at the whole table first; only
 * when nothing in it is wrong does it count. Else the calling thread goes through it entry by entry and
 * says what is wrong, so that each table is counted by exactly one of both.
 *
 * A table that several L1 entries point to is read at the first; the others are only noted in `again` (low
 * half: all of them, high half: those of the active L1 table), and when all are known the table is
 * gone through once more, counting as often as it was noted (C3).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "check.h"

enum {
    BATCH = 1024,       /* L2 tables */
    L1_PIECE = 1 << 20, /* bytes of an inactive L1 table at a time */
};

#define ACTIVE_TIMES (UINT64_C(1) << 32)

struct run {
    uint64_t cluster, count;
};

struct table_stats {
    uint64_t allocated, compressed, fragmented;
    uint64_t next; /* host offset where the last data cluster of this table ended; 0: none */
};

struct l2_job {
    uint64_t offset;
    uint64_t l1_index;
    bool done, all_copied;
    struct table_stats stats;
};

struct batch {
    struct qcheck *c;
    bool active;
    struct l2_job *jobs;
    size_t count;
    size_t next; /* atomic */
};

/* ---- tables in order: on the pool ----------------------------------------------------------------- */

struct scan {
    struct qcheck *c;
    struct run *runs;
    size_t run_count;
    uint64_t expect; /* the entry that would continue the current run */
    struct l2_job *job;
};

static bool end_run(struct scan *s)
{
    if (s->run_count == 0 || s->runs[s->run_count - 1].count == 0)
        return true;
    const struct run *run = &s->runs[s->run_count - 1];
    uint64_t offset = run->cluster << s->c->bits, len = run->count << s->c->bits;
    s->job->stats.allocated += run->count;
    s->job->stats.next = offset + len;
    return !qcheck_outside(s->c, offset, len);
}

static bool scan_compressed(struct scan *s, uint64_t entry)
{
    uint64_t offset, len;

    if (entry & QE_COPIED)
        return false;
    compressed_place(s->c->bits, entry, &offset, &len);
    if (qcheck_outside(s->c, offset, len))
        return false;
    uint64_t first = offset >> s->c->bits, last = (offset + len - 1) >> s->c->bits;
    s->runs[s->run_count++] = (struct run){ first, last - first + 1 };
    s->job->stats.allocated++;
    s->job->stats.compressed++;
    s->job->stats.fragmented++;
    return true;
}

static bool scan_standard(struct scan *s, uint64_t entry)
{
    uint64_t host = entry_host(entry);
    struct table_stats *st = &s->job->stats;

    if (host & (s->c->size - 1))
        return false;
    if (!(entry & QE_COPIED))
        s->job->all_copied = false;
    if (st->next && st->next != host)
        st->fragmented++;
    s->runs[s->run_count++] = (struct run){ host >> s->c->bits, 1 };
    s->expect = (entry & ~(L2E_ZERO)) + s->c->size;
    return true;
}

static bool bitmap_good(const struct qcow2 *q, struct sub_entry e)
{
    return e.entry & QE_COMPRESSED ? e.bitmap == 0 : sub_sane(q, e);
}

/* Anything wrong: false, and nothing was counted. */
static bool scan_table(struct scan *s, const uint8_t *table)
{
    struct l2_job *job = s->job;
    uint32_t n = s->c->q->l2_entries;
    bool open = false; /* the last of runs is the current run */

    if (s->c->q->external)
        return false; /* nothing is counted, and what is looked at, walk_table knows */
    job->stats = (struct table_stats){ 0 };
    job->all_copied = true;
    s->run_count = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t e = l2_entry_at(s->c->q, table, i);
        if (s->c->q->extended && !bitmap_good(s->c->q, sub_load(table, i)))
            return false;
        if (open && e == s->expect) {
            s->runs[s->run_count - 1].count++;
            s->expect += s->c->size;
            continue;
        }
        if (open && !end_run(s))
            return false;
        open = false;
        if (e == 0)
            continue;
        if (e & QE_COMPRESSED) {
            if (!scan_compressed(s, e))
                return false;
            continue;
        }
        if (e & L2E_RESERVED)
            return false;
        if (!entry_host(e))
            continue;
        if (!scan_standard(s, e))
            return false;
        open = true;
    }
    return !open || end_run(s);
}

static void scan_jobs(void *arg)
{
    struct batch *b = arg;
    struct qcheck *c = b->c;
    struct scan s = { .c = c };
    _cleanup_free_ uint8_t *table = malloc(c->size);
    _cleanup_free_ struct run *runs = malloc(c->q->l2_entries * sizeof(*runs));
    size_t i;

    if (!table || !runs)
        return; /* the calling thread does them all */
    s.runs = runs;
    while ((i = __atomic_fetch_add(&b->next, 1, __ATOMIC_RELAXED)) < b->count) {
        s.job = &b->jobs[i];
        if (qcheck_read(c, s.job->offset, table, c->size) < 0 || !scan_table(&s, table))
            continue;
        for (size_t r = 0; r < s.run_count; r++)
            qrefs_add(&c->refs, runs[r].cluster, runs[r].count);
        s.job->done = true;
    }
}

/* ---- any table: entry by entry ----------------------------------------------------------------------- */

struct walk {
    struct qcheck *c;
    uint64_t table; /* its place */
    uint64_t guest; /* the first guest offset that it maps */
    uint64_t times; /* references that each entry stands for */
    bool quiet, all_copied;
    struct table_stats stats;
};

static void walk_count(struct walk *w, uint64_t offset, uint64_t len)
{
    struct qcheck *c = w->c;

    if (c->q->external)
        return; /* not of this file */
    if (!w->quiet) {
        qcheck_count(c, offset, len);
        return;
    }
    if (qcheck_outside(c, offset, len))
        return;
    for (uint64_t i = offset >> c->bits; i <= (offset + len - 1) >> c->bits; i++)
        qrefs_add_times(&c->refs, i, w->times);
}

static void walk_compressed(struct walk *w, uint32_t index, uint64_t e, uint64_t bitmap)
{
    uint64_t offset, len;

    if (w->c->q->external || bitmap) {
        if (!w->quiet)
            qcheck_finding(w->c, false, "compressed cluster %" PRIu32 " with %s, entry=0x%" PRIx64,
                           index, bitmap ? "non-zero subcluster allocation bitmap" : "data file",
                           e);
        return;
    }
    compressed_place(w->c->bits, e, &offset, &len);
    if ((e & QE_COPIED) && !w->quiet) {
        w->c->out->corruptions++;
        qcheck_say(w->c,
                   "ERROR: coffset=0x%" PRIx64 ": copied flag must never be set for "
                   "compressed clusters",
                   offset);
    }
    w->stats.allocated++;
    w->stats.compressed++;
    w->stats.fragmented++;
    walk_count(w, offset, len);
}

/* An unaligned place that is not even used becomes plain zeroes. (A bitmap stays: it says what the subclusters
 * read as without storage, too.) */
static int mend_zero(struct walk *w, uint32_t index)
{
    uint8_t entry[8];

    store_be64(entry, w->c->q->extended ? 0 : L2E_ZERO);
    return qcheck_write(w->c, QCHECK_L2, w->table + ((uint64_t)index << w->c->q->entry_bits), entry,
                        sizeof(entry));
}

/* What an external data file holds is at the guest's own offset. qemu-img does not look, and fails to read it. */
static void walk_external(struct walk *w, uint32_t index, uint64_t host)
{
    uint64_t guest = w->guest + ((uint64_t)index << w->c->bits);

    if (!w->quiet && host != guest && !(host & (w->c->size - 1)))
        qcheck_finding(w->c, false,
                       "offset=%" PRIx64 ": not the place of guest offset %" PRIx64
                       " in the data file",
                       host, guest);
}

static void walk_bitmap(struct walk *w, struct sub_entry e)
{
    if (w->quiet || sub_sane(w->c->q, e))
        return;
    if (entry_stored(w->c->q, e.entry))
        qcheck_finding(w->c, false,
                       "offset=%" PRIx64
                       ": Allocated cluster has corrupted subcluster allocation bitmap",
                       entry_host(e.entry));
    else
        qcheck_finding(w->c, false, "%s",
                       "Unallocated cluster has non-zero subcluster allocation map");
}

/* Storage that nothing reads. */
static bool unused(const struct qcow2 *q, struct sub_entry e)
{
    return q->extended ? !sub_data(e) : entry_kind(q, e.entry) == ENTRY_ZERO_ALLOC;
}

static int walk_standard(struct walk *w, uint32_t index, struct sub_entry pair)
{
    struct qcheck *c = w->c;
    uint64_t e = pair.entry, host = entry_host(e);
    bool unaligned = host & (c->size - 1);

    if (c->q->external)
        walk_external(w, index, host);
    if (unaligned && !w->quiet && unused(c->q, pair)) {
        bool mend = qcheck_fixes(c, BLK_FIX_ERRORS);
        qcheck_finding(c, mend,
                       "offset=%" PRIx64 ": Preallocated cluster is not properly aligned; "
                       "L2 entry corrupted.",
                       host);
        if (mend)
            return mend_zero(w, index);
    } else if (unaligned && !w->quiet) {
        qcheck_finding(c, false,
                       "offset=%" PRIx64 ": Data cluster is not properly aligned; L2 "
                       "entry corrupted.",
                       host);
    }
    if (w->stats.next && w->stats.next != host)
        w->stats.fragmented++;
    w->stats.next = host + c->size;
    w->stats.allocated++;
    if (!(e & QE_COPIED))
        w->all_copied = false;
    walk_count(w, host, c->size);
    return 0;
}

static int walk_table(struct walk *w, const uint8_t *table)
{
    struct qcheck *c = w->c;
    int ret = 0;

    w->all_copied = true;
    for (uint32_t i = 0; i < c->q->l2_entries && ret == 0; i++) {
        uint64_t e = l2_entry_at(c->q, table, i), bitmap = l2_bitmap_at(c->q, table, i);
        struct sub_entry pair = { e, bitmap };
        if (e & QE_COMPRESSED) {
            walk_compressed(w, i, e, bitmap);
            continue;
        }
        if ((e & L2E_RESERVED) && !w->quiet)
            qcheck_finding(c, false, "found l2 entry with reserved bits set: %" PRIx64, e);
        walk_bitmap(w, pair);
        if (entry_stored(c->q, e))
            ret = walk_standard(w, i, pair);
    }
    return ret;
}

static void take_stats(struct qcheck *c, const struct table_stats *st)
{
    c->out->allocated_clusters += st->allocated;
    c->out->compressed_clusters += st->compressed;
    c->out->fragmented_clusters += st->fragmented;
}

static int walk_slowly(struct qcheck *c, bool active, struct l2_job *job)
{
    struct walk w = {
        .c = c,
        .table = job->offset,
        .guest = job->l1_index << c->q->l1_shift,
        .times = 1,
    };
    int ret = qcheck_read(c, job->offset, c->table, c->size);

    if (ret < 0) {
        c->out->check_errors++;
        qcheck_say(c, "ERROR: I/O error in check_refcounts_l2: %s", strerror(-ret));
        return 0;
    }
    ret = walk_table(&w, c->table);
    job->all_copied = w.all_copied;
    if (active)
        take_stats(c, &w.stats);
    return ret;
}

/* ---- batches --------------------------------------------------------------------------------------------- */

static int finish_batch(struct batch *b)
{
    struct qcheck *c = b->c;
    int ret = 0;

    b->next = 0;
    if (b->count == 0)
        return 0;
    if (b->count >= 4)
        qcheck_run(c, scan_jobs, b);
    else
        scan_jobs(b);
    for (size_t i = 0; i < b->count && ret == 0; i++) {
        struct l2_job *job = &b->jobs[i];
        if (!job->done)
            ret = walk_slowly(c, b->active, job);
        else if (b->active)
            take_stats(c, &job->stats);
        if (b->active && (!job->done || !job->all_copied))
            c->uncopied[job->l1_index / 64] |= UINT64_C(1) << job->l1_index % 64;
    }
    if (ret == 0)
        ret = qcheck_progress(c, b->count);
    b->count = 0;
    return ret;
}

/* Was this table seen before? Then that is noted. -ENOMEM. */
static int note_table(struct qcheck *c, uint64_t offset, bool active)
{
    uint64_t cluster = offset >> c->bits, bit = UINT64_C(1) << cluster % 64;
    bool aligned = offset % c->size == 0;

    if (aligned && !(c->visited[cluster / 64] & bit)) {
        c->visited[cluster / 64] |= bit;
        return 0;
    }
    bool first = !aligned && !qmap_find(&c->again, offset);
    uint64_t *note = qmap_at(&c->again, offset);
    if (!note)
        return -ENOMEM;
    if (!first)
        *note += 1 + (active ? ACTIVE_TIMES : 0);
    return first ? 0 : 1;
}

static int add_entry(struct batch *b, uint64_t index, uint64_t entry)
{
    struct qcheck *c = b->c;
    uint64_t offset = entry & L1E_OFFSET;

    if (entry & L1E_RESERVED)
        qcheck_finding(c, false, "found L1 entry with reserved bits set: %" PRIx64, entry);
    if (!offset) {
        if (!(entry & L1E_RESERVED))
            qcheck_finding(c, false, "found L1 entry without a table: %" PRIx64, entry);
        return 0;
    }
    qcheck_count(c, offset, c->size);
    if (offset % c->size) {
        c->out->corruptions++;
        qcheck_say(c,
                   "ERROR l2_offset=%" PRIx64 ": Table is not cluster aligned; L1 entry "
                   "corrupted",
                   offset);
    }
    if (offset >= c->file_len)
        return 0; /* all zero */
    int ret = note_table(c, offset, b->active);
    if (ret != 0)
        return MIN(ret, 0);
    b->jobs[b->count++] = (struct l2_job){ .offset = offset, .l1_index = index };
    return b->count == BATCH ? finish_batch(b) : 0;
}

int qcheck_active(struct qcheck *c)
{
    const struct qcow2 *q = c->q;
    struct batch b = { .c = c, .active = true };
    int ret = qcheck_protect(c, QCHECK_L1, q->header.l1_offset, 8 * (uint64_t)q->header.l1_size);

    qcheck_count(c, q->header.l1_offset, 8 * (uint64_t)q->header.l1_size);
    _cleanup_free_ struct l2_job *jobs = calloc(BATCH, sizeof(*jobs));
    if (!jobs)
        return -ENOMEM;
    b.jobs = jobs;
    for (uint32_t i = 0; i < q->header.l1_size && ret == 0; i++)
        if (q->l1[i])
            ret = add_entry(&b, i, q->l1[i]);
    return ret < 0 ? ret : finish_batch(&b);
}

int qcheck_inactive(struct qcheck *c, uint64_t l1_offset, uint64_t entries)
{
    struct batch b = { .c = c };
    _cleanup_free_ uint8_t *piece = malloc(L1_PIECE);
    _cleanup_free_ struct l2_job *jobs = calloc(BATCH, sizeof(*jobs));
    int ret = 0;

    if (!piece || !jobs)
        return -ENOMEM;
    b.jobs = jobs;
    for (uint64_t at = 0; at < entries * 8 && ret == 0; at += L1_PIECE) {
        size_t len = (size_t)MIN(entries * 8 - at, (uint64_t)L1_PIECE);
        if (qcheck_hole(c, l1_offset + at, len))
            continue;
        ret = qcheck_read(c, l1_offset + at, piece, len);
        for (size_t i = 0; i < len / 8 && ret == 0; i++)
            if (slice_entry(piece, (uint32_t)i))
                ret = add_entry(&b, 0, slice_entry(piece, (uint32_t)i));
    }
    return ret < 0 ? ret : finish_batch(&b);
}

/* ---- once more ----------------------------------------------------------------------------------------------- */

int qcheck_again(struct qcheck *c)
{
    for (size_t i = 0; i < c->again.cap; i++) {
        const struct qmap_pair *pair = &c->again.at[i];
        if (pair->key == UINT64_MAX || pair->value == 0)
            continue;
        struct walk w = {
            .c = c,
            .table = pair->key,
            .quiet = true,
            .times = pair->value & (ACTIVE_TIMES - 1),
        };
        uint64_t active = pair->value / ACTIVE_TIMES;
        int ret = qcheck_read(c, pair->key, c->table, c->size);
        if (ret < 0) {
            c->out->check_errors++;
            qcheck_say(c, "ERROR: I/O error in check_refcounts_l2: %s", strerror(-ret));
            continue;
        }
        walk_table(&w, c->table);
        c->out->allocated_clusters += active * w.stats.allocated;
        c->out->compressed_clusters += active * w.stats.compressed;
        c->out->fragmented_clusters += active * w.stats.fragmented;
        ret = qcheck_progress(c, 1);
        if (ret < 0)
            return ret;
    }
    return 0;
}
