/* Mapping and planning by the subcluster; see subcluster.h. */
#include "subcluster.h"

#include <errno.h>

#include "base/macros.h"
#include "internal.h"

enum sub_kind { SUB_UNALLOCATED, SUB_DATA, SUB_ZERO };

static enum sub_kind kind_of(struct sub_entry e, uint32_t s)
{
    if (sub_data(e) >> s & 1)
        return SUB_DATA;
    return sub_zero(e) >> s & 1 ? SUB_ZERO : SUB_UNALLOCATED;
}

static uint32_t bits_of(struct sub_entry e, enum sub_kind kind)
{
    switch (kind) {
    case SUB_DATA:
        return sub_data(e);
    case SUB_ZERO:
        return sub_zero(e);
    default:
        return ~(sub_data(e) | sub_zero(e));
    }
}

/* Set bits from bit s on without a gap. */
static uint32_t run_of(uint32_t bits, uint32_t s)
{
    uint32_t gaps = ~(bits >> s);
    return gaps ? MIN((uint32_t)__builtin_ctz(gaps), SUBCLUSTERS - s) : SUBCLUSTERS;
}

static uint32_t sub_index(const struct qcow2 *q, uint64_t off)
{
    return (uint32_t)(in_cluster(q, off) >> q->sub_bits);
}

/* The entry at guest offset `off` can be relied on. */
static int check_entry(struct qcow2 *q, uint64_t off, struct sub_entry e)
{
    if (!sub_sane(q, e))
        return qcow2_corrupt(q, "the L2 entry of guest offset %#llx has the bitmap %#llx",
                             (unsigned long long)off, (unsigned long long)e.bitmap);
    if ((e.entry & QE_COMPRESSED) || !entry_stored(q, e.entry))
        return 0;
    return qcow2_check_host(q, off, entry_host(e.entry));
}

/* ---- reading ------------------------------------------------------------------------------------------- */

/* What follows an entry goes on as it does: storage behind its storage, or none behind none. */
static bool goes_on(const struct qcow2 *q, struct sub_entry e, struct sub_entry next)
{
    if ((next.entry & QE_COMPRESSED) || !sub_sane(q, next) ||
        entry_stored(q, e.entry) != entry_stored(q, next.entry))
        return false;
    return !entry_stored(q, e.entry) ||
           entry_host(next.entry) == entry_host(e.entry) + q->cluster_size;
}

/* Guest bytes from `off` on that are of one kind and lie in a row. same: bits of the entries that must agree, too. */
static uint64_t run_alike(const struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                          uint64_t len, uint64_t same)
{
    uint32_t s = sub_index(q, off), left = slice_left(q, index);
    struct sub_entry e = sub_load(slice, index);
    enum sub_kind kind = kind_of(e, s);
    uint32_t run = run_of(bits_of(e, kind), s);
    uint64_t got = ((uint64_t)(s + run) << q->sub_bits) - in_cluster(q, off);

    while (s + run == SUBCLUSTERS && got < len && --left > 0) {
        struct sub_entry next = sub_load(slice, ++index);
        if (!goes_on(q, e, next) || (e.entry & same) != (next.entry & same))
            break;
        run = run_of(bits_of(next, kind), 0);
        got += (uint64_t)run << q->sub_bits;
        s = 0;
        e = next;
    }
    return MIN(got, len);
}

int qcow2_sub_map(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off, uint64_t len,
                  struct mapping *m)
{
    static const enum map_kind kinds[] = {
        [SUB_UNALLOCATED] = MAP_UNALLOCATED,
        [SUB_DATA] = MAP_DATA,
        [SUB_ZERO] = MAP_ZERO,
    };
    struct sub_entry e = sub_load(slice, index);
    int ret = check_entry(q, off, e);

    if (ret < 0)
        return ret;
    if (e.entry & QE_COMPRESSED)
        return qcow2_map_compressed(q, e.entry, off, len, m);
    enum sub_kind kind = kind_of(e, sub_index(q, off));
    uint64_t host = entry_host(e.entry);
    if (kind == SUB_DATA)
        ret = qcow2_clip_to_file(q, off, host, &len);
    if (ret < 0)
        return ret;
    m->kind = kinds[kind];
    m->length = run_alike(q, slice, index, off, len, 0);
    m->child = entry_stored(q, e.entry) ? qcow2_data(q) : NULL;
    m->child_offset = host + in_cluster(q, off);
    return 0;
}

/* ---- writing ------------------------------------------------------------------------------------------- */

static bool in_use(struct sub_entry e, uint32_t s)
{
    return sub_data(e) >> s & 1;
}

static int plan_in_place(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                         uint64_t len, struct write_plan *p)
{
    uint64_t host = entry_host(sub_load(slice, index).entry);

    p->kind = WRITE_IN_PLACE;
    p->child = qcow2_data(q);
    p->child_offset = host + in_cluster(q, off);
    p->length = run_alike(q, slice, index, off, len, QE_COPIED);
    return qcow2_check_place(q, off, host, cluster_up(q, in_cluster(q, off) + p->length));
}

/* The last subcluster that a request up to `end` touches in the cluster at `guest`. */
static uint32_t last_touched(const struct qcow2 *q, uint64_t guest, uint64_t end)
{
    uint64_t there = end - guest;
    return there >= q->cluster_size ? SUBCLUSTERS - 1 : (uint32_t)((there - 1) >> q->sub_bits);
}

/* Storage that is there already, and of it a run of subclusters that do not use theirs. */
static int plan_reused(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                       uint64_t len, struct write_plan *p)
{
    uint64_t start = off - in_cluster(q, off), guest = start, end = off + len;
    uint32_t first = sub_index(q, off), s = first, left = slice_left(q, index);
    struct sub_entry e = sub_load(slice, index);
    uint64_t host = entry_host(e.entry), stop;

    for (;;) {
        uint32_t run = MIN(run_of(~sub_data(e), s), last_touched(q, guest, end) - s + 1);
        stop = guest + ((uint64_t)(s + run) << q->sub_bits);
        if (s + run < SUBCLUSTERS || stop >= end || --left == 0)
            break;
        struct sub_entry next = sub_load(slice, ++index);
        if (!sub_exclusive(q, next) || !goes_on(q, e, next) || in_use(next, 0))
            break;
        e = next;
        guest += q->cluster_size;
        s = 0;
    }
    qcow2_plan_new(q, NEW_REUSED, host, cluster_of(q, cluster_up(q, stop - start)), off, len, p);
    p->unit_offset = start + ((uint64_t)first << q->sub_bits);
    p->unit_length = stop - p->unit_offset;
    p->length = MIN(len, stop - off);
    return qcow2_check_place(q, off, host, cluster_up(q, stop - start));
}

/* What of a cluster new storage must cover besides [first, last], which is written: all that the old storage
 * holds, since it goes. */
static void widen(const struct qcow2 *q, struct sub_entry e, uint32_t *first, uint32_t *last)
{
    if (e.entry & QE_COMPRESSED) {
        *first = 0;
        *last = SUBCLUSTERS - 1;
    } else if (entry_stored(q, e.entry) && sub_data(e)) {
        *first = MIN(*first, (uint32_t)__builtin_ctz(sub_data(e)));
        *last = MAX(*last, SUBCLUSTERS - 1 - (uint32_t)__builtin_clz(sub_data(e)));
    }
}

/* Clusters of a request that need storage, from the first on. A corrupt one ends them, and is told when the
 * request comes to it. */
static uint32_t count_new(const struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                          uint64_t len)
{
    uint64_t want = cluster_of(q, cluster_up(q, in_cluster(q, off) + len));
    uint32_t n = 1, max = (uint32_t)MIN(want, (uint64_t)slice_left(q, index));

    while (slice && n < max) {
        struct sub_entry e = sub_load(slice, index + n);
        if (sub_exclusive(q, e) || !sub_sane(q, e))
            break;
        n++;
    }
    return slice ? n : max;
}

static int plan_clusters(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                         uint64_t len, struct write_plan *p)
{
    uint64_t start = off - in_cluster(q, off), host = start, got;
    enum new_kind kind = q->external ? NEW_REUSED : NEW_CLUSTERS;
    uint32_t n = count_new(q, slice, index, off, len);
    bool fresh = false;

    got = n;
    int ret = q->external ? 0 : qcow2_alloc(q, n, &host, &got, &fresh);
    if (ret != 0)
        return ret;
    n = (uint32_t)got;
    uint64_t tail = start + ((uint64_t)(n - 1) << q->cluster_bits); /* the last cluster */
    uint32_t first = sub_index(q, off), last = SUBCLUSTERS - 1, whole = 0;
    uint32_t tail_last = last_touched(q, tail, off + len);
    if (slice && n == 1) {
        widen(q, sub_load(slice, index), &first, &tail_last);
    } else if (slice) {
        widen(q, sub_load(slice, index), &first, &last);
        widen(q, sub_load(slice, index + n - 1), &whole, &tail_last);
    }
    qcow2_plan_new(q, kind, host, n, off, len, p);
    p->unit_offset = start + ((uint64_t)first << q->sub_bits);
    p->unit_length = tail + ((uint64_t)(tail_last + 1) << q->sub_bits) - p->unit_offset;
    p->length = MIN(len, p->unit_offset + p->unit_length - off);
    p->storage_is_zero = fresh;
    return 0;
}

int qcow2_sub_begin(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                    uint64_t len, bool reserved, struct write_plan *p)
{
    struct sub_entry e = slice ? sub_load(slice, index) : (struct sub_entry){ 0 };
    int ret = check_entry(q, off, e);

    if (ret < 0)
        return ret;
    bool exclusive = sub_exclusive(q, e);
    if (exclusive && in_use(e, sub_index(q, off)))
        return plan_in_place(q, slice, index, off, len, p);
    if (!reserved)
        return WRITE_NEEDS_RESERVATION;
    if (exclusive)
        ret = plan_reused(q, slice, index, off, len, p);
    else
        ret = plan_clusters(q, slice, index, off, len, p);
    if (ret == 0)
        qcow2_clip_plan(q, p);
    return ret;
}

/* ---- changing entries ------------------------------------------------------------------------------------ */

static void replace(struct qcow2 *q, uint8_t *slice, uint32_t index, struct sub_entry e)
{
    uint64_t old = sub_load(slice, index).entry;

    sub_store(slice, index, e);
    table_cache_dirty(q->l2, slice);
    if (entry_host(old) != entry_host(e.entry) || ((old | e.entry) & QE_COMPRESSED))
        qcow2_free_entry(q, old);
}

/* The subclusters of the cluster at `guest` in [from, to), which overlaps it. */
static uint32_t mask_of(const struct qcow2 *q, uint64_t guest, uint64_t from, uint64_t to)
{
    return sub_mask(from > guest ? sub_index(q, from) : 0, last_touched(q, guest, to));
}

void qcow2_sub_publish(struct qcow2 *q, uint8_t *slice, uint32_t index, uint64_t entry,
                       uint64_t guest, uint64_t from, uint64_t to)
{
    struct sub_entry e = sub_load(slice, index), new = { .entry = entry };
    uint32_t mask = mask_of(q, guest, from, to);

    if (!(entry & QE_COMPRESSED)) {
        uint32_t zero = e.entry & QE_COMPRESSED ? 0 : sub_zero(e);
        uint32_t data = entry_host(e.entry) == entry_host(entry) ? sub_data(e) : 0;
        new.bitmap = sub_bitmap(data | mask, zero & ~mask);
    }
    replace(q, slice, index, new);
}

int qcow2_sub_unmap(struct qcow2 *q, uint8_t *slice, uint32_t index, uint64_t guest, uint64_t from,
                    uint64_t to, enum unmap_mode mode, bool backing)
{
    struct sub_entry e = sub_load(slice, index), new = e;
    uint32_t mask = mask_of(q, guest, from, to);
    bool compressed = e.entry & QE_COMPRESSED;

    if (mode == UNMAP_EMPTY) {
        if (e.entry || e.bitmap)
            replace(q, slice, index, (struct sub_entry){ 0 });
        return 0;
    }
    if (to >= q->header.size) /* nobody asks for what lies behind the disk's end */
        mask |= sub_mask(sub_index(q, MAX(from, guest)), SUBCLUSTERS - 1);
    if (compressed && mask != UINT32_MAX)
        return mode == UNMAP_DISCARD ? 0 : -ENOTSUP;
    if (!sub_sane(q, e))
        return qcow2_corrupt(q, "the L2 entry of guest offset %#llx has the bitmap %#llx",
                             (unsigned long long)guest, (unsigned long long)e.bitmap);
    /* Without a backing file, what is unallocated reads as zeroes already. */
    uint32_t data = compressed ? UINT32_MAX : sub_data(e);
    uint32_t zeroed = mask & (backing && mode != UNMAP_DISCARD ? UINT32_MAX : data);
    new.bitmap = sub_bitmap(data & ~mask, (compressed ? 0 : sub_zero(e)) | zeroed);
    bool keep = mode == UNMAP_ZERO && sub_exclusive(q, e);
    if (compressed || (!sub_data(new) && !keep))
        new.entry = 0;
    if (new.entry != e.entry || new.bitmap != e.bitmap)
        replace(q, slice, index, new);
    return 0;
}
