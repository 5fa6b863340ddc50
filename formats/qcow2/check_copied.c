/* The COPIED flags of the active disk: set exactly where the refcount is one.
 *
 * In most images nothing is shared and every entry has the flag: then there is nothing to look at but the L1
 * table, as counting has remembered which L2 tables lack a flag somewhere. Else the tables are read again, on
 * the pool, and those in which something is wrong are gone through entry by entry.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "check.h"

enum { BATCH = 1024 };

struct copied {
    struct qcheck *c;
    bool mend;
    struct qstored stored;
    struct job {
        uint64_t offset;
        bool good;
    } jobs[BATCH];
    size_t count;
    size_t next;             /* atomic */
    struct qmap odd;         /* unaligned tables that were seen */
    uint32_t l1_from, l1_to; /* L1 entries that were mended */
};

static int refcount_of(struct copied *k, uint64_t cluster, uint64_t *out)
{
    struct qcheck *c = k->c;

    if (c->differ || cluster >= c->clusters)
        return qcheck_stored(c, &k->stored, cluster, out);
    *out = MIN(qrefs_get(&c->refs, cluster), c->q->refcount_max);
    return 0;
}

/* ---- tables in order: on the pool ----------------------------------------------------------------- */

static bool table_good(const struct qcheck *c, const uint8_t *table)
{
    for (uint32_t i = 0; i < c->q->l2_entries; i++) {
        uint64_t e = l2_entry_at(c->q, table, i);
        if ((e & QE_COMPRESSED) || !entry_host(e))
            continue;
        uint64_t cluster = entry_host(e) >> c->bits;
        if (cluster >= c->clusters)
            return false;
        uint64_t refcount = MIN(qrefs_get(&c->refs, cluster), c->q->refcount_max);
        if ((refcount == 1) != ((e & QE_COPIED) != 0))
            return false;
    }
    return true;
}

static void look_at_jobs(void *arg)
{
    struct copied *k = arg;
    struct qcheck *c = k->c;
    _cleanup_free_ uint8_t *table = malloc(c->size);
    size_t i;

    if (!table || c->differ || c->q->external)
        return;
    while ((i = __atomic_fetch_add(&k->next, 1, __ATOMIC_RELAXED)) < k->count)
        k->jobs[i].good =
            qcheck_read(c, k->jobs[i].offset, table, c->size) == 0 && table_good(c, table);
}

/* ---- any table --------------------------------------------------------------------------------------- */

/* An entry of either table and the refcount of what it points to: what the flag makes of it. */
static uint64_t with_flag(uint64_t entry, uint64_t refcount)
{
    return refcount == 1 ? entry | QE_COPIED : entry & ~QE_COPIED;
}

static int look_at_entry(struct copied *k, uint32_t i, bool *changed)
{
    struct qcheck *c = k->c;
    uint64_t e = l2_entry_at(c->q, c->table, i), refcount = 1;

    if ((e & QE_COMPRESSED) || !entry_host(e))
        return 0;
    /* In an external data file every cluster has the one owner that its place says. */
    int ret = c->q->external ? 0 : refcount_of(k, entry_host(e) >> c->bits, &refcount);
    if (ret < 0 || with_flag(e, refcount) == e)
        return ret;
    qcheck_finding(c, k->mend, "OFLAG_COPIED data cluster: l2_entry=%" PRIx64 " refcount=%" PRIu64,
                   e, refcount);
    if (k->mend) {
        store_be64(c->table + ((size_t)i << c->q->entry_bits), with_flag(e, refcount));
        *changed = true;
    }
    return 0;
}

static int look_at_table(struct copied *k, uint64_t offset)
{
    struct qcheck *c = k->c;
    uint32_t first = UINT32_MAX, last = 0;
    int ret = qcheck_read(c, offset, c->table, c->size);

    for (uint32_t i = 0; i < c->q->l2_entries && ret == 0; i++) {
        bool changed = false;
        ret = look_at_entry(k, i, &changed);
        if (changed) {
            first = MIN(first, i);
            last = i;
        }
    }
    if (ret < 0) {
        c->out->check_errors++;
        qcheck_say(c, "ERROR: I/O error in check_oflag_copied: %s", strerror(-ret));
        return 0;
    }
    if (first == UINT32_MAX)
        return 0;
    uint32_t bits = c->q->entry_bits;
    return qcheck_write(c, QCHECK_L2, offset + ((uint64_t)first << bits),
                        c->table + ((size_t)first << bits), (size_t)(last - first + 1) << bits);
}

static int finish_batch(struct copied *k)
{
    int ret = 0;

    k->next = 0;
    if (k->count >= 4)
        qcheck_run(k->c, look_at_jobs, k);
    else
        look_at_jobs(k);
    for (size_t i = 0; i < k->count && ret == 0; i++)
        if (!k->jobs[i].good)
            ret = look_at_table(k, k->jobs[i].offset);
    if (ret == 0)
        ret = qcheck_progress(k->c, 0);
    k->count = 0;
    return ret;
}

/* ---- the L1 table --------------------------------------------------------------------------------------- */

static void look_at_l1_entry(struct copied *k, uint32_t i)
{
    struct qcheck *c = k->c;
    uint64_t e = c->q->l1[i], refcount;
    int ret = refcount_of(k, (e & L1E_OFFSET) >> c->bits, &refcount);

    if (ret < 0) {
        c->out->check_errors++;
        qcheck_say(c, "Can't get refcount for L2 table at 0x%" PRIx64 ": %s", e & L1E_OFFSET,
                   strerror(-ret));
        return;
    }
    if (with_flag(e, refcount) == e)
        return;
    qcheck_finding(c, k->mend,
                   "OFLAG_COPIED L2 cluster: l1_index=%" PRIu32 " l1_entry=%" PRIx64
                   " refcount=%" PRIu64,
                   i, e, refcount);
    if (k->mend) {
        c->q->l1[i] = with_flag(e, refcount);
        k->l1_from = MIN(k->l1_from, i);
        k->l1_to = i + 1;
    }
}

/* The whole table first, and what changed of it in one write. */
static int look_at_l1(struct copied *k)
{
    struct qcheck *c = k->c;

    k->l1_from = c->q->header.l1_size;
    for (uint32_t i = 0; i < c->q->header.l1_size; i++)
        if (c->q->l1[i] & L1E_OFFSET)
            look_at_l1_entry(k, i);
    if (k->l1_from >= k->l1_to)
        return 0;
    uint32_t count = k->l1_to - k->l1_from;
    _cleanup_free_ uint8_t *entries = malloc(8 * (size_t)count);
    if (!entries)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++)
        slice_set_entry(entries, i, c->q->l1[k->l1_from + i]);
    return qcheck_write(c, QCHECK_L1, c->q->header.l1_offset + 8 * (uint64_t)k->l1_from, entries,
                        8 * (size_t)count);
}

/* Whether the table wants a look, and has not had one. -ENOMEM. */
static int wants_look(struct copied *k, uint32_t i)
{
    struct qcheck *c = k->c;
    uint64_t offset = c->q->l1[i] & L1E_OFFSET, cluster = offset >> c->bits;
    uint64_t bit = UINT64_C(1) << cluster % 64;

    if (!c->differ && !c->shared && !(c->uncopied[i / 64] >> i % 64 & 1))
        return 0;
    if (offset >= c->file_len)
        return 0;
    if (offset % c->size) {
        size_t before = k->odd.used;
        return !qmap_at(&k->odd, offset) ? -ENOMEM : k->odd.used > before;
    }
    if (!(c->visited[cluster / 64] & bit))
        return 0;
    c->visited[cluster / 64] &= ~bit;
    return 1;
}

int qcheck_copied(struct qcheck *c)
{
    struct blk_check *out = c->out;

    _cleanup_free_ struct copied *k = calloc(1, sizeof(*k));
    if (!k)
        return -ENOMEM;
    k->c = c;
    /* While refcounts are wrong, a flag made to agree with them would be wrong, too. */
    k->mend = qcheck_fixes(c, BLK_FIX_ERRORS) ||
              (qcheck_fixes(c, BLK_FIX_LEAKS) && !out->corruptions && !out->check_errors);
    int ret = look_at_l1(k);
    for (uint32_t i = 0; i < c->q->header.l1_size && ret == 0; i++) {
        uint64_t offset = c->q->l1[i] & L1E_OFFSET;
        if (!offset)
            continue;
        ret = wants_look(k, i);
        if (ret == 1) {
            k->jobs[k->count++] = (struct job){ .offset = offset };
            ret = k->count == BATCH ? finish_batch(k) : 0;
        }
    }
    if (ret == 0)
        ret = finish_batch(k);
    free(k->stored.block);
    qmap_free(&k->odd);
    return ret;
}
