/* What was counted against the refcounts that are stored.
 *
 * On the pool whole refcount blocks are compared; blocks in which something differs are gone through again
 * cluster by cluster by the calling thread, in order. A refcount of 0 for what is in use means that
 * the refcounts were never kept: then they are made anew (repair.c), since mending could take forever
 * and the block for it may not exist.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "check.h"

struct compare {
    struct qcheck *c;
    uint64_t per_block, blocks; /* blocks that count clusters of the file */
    uint64_t *different;        /* bit per block, atomic */
    uint64_t next;              /* atomic */
    uint64_t end;               /* one past the highest cluster in use, atomic maximum */
    bool shared;                /* atomic: something has more than one reference */
};

/* The table's entry for the block; false: it is not one that can be read. */
static bool block_entry(const struct qcheck *c, uint64_t block, uint64_t *place)
{
    uint64_t e = block < c->q->reftable_entries ? c->q->reftable[block] : 0;

    *place = e & RTE_OFFSET;
    return *place % c->size == 0;
}

static int read_block(const struct qcheck *c, uint64_t block, uint8_t *buf)
{
    uint64_t place;

    if (!block_entry(c, block, &place))
        return -EIO;
    if (place == 0) {
        memset(buf, 0, c->size);
        return 0;
    }
    return qcheck_read(c, place, buf, c->size);
}

/* ---- blocks that agree ------------------------------------------------------------------------------- */

static uint64_t swap_lanes16(uint64_t x)
{
    uint64_t low = UINT64_C(0x00ff00ff00ff00ff);
    return (x & low) << 8 | (x >> 8 & low);
}

/* 16 bits wide, n a multiple of 4. *any gets all refcounts or'ed lane by lane. */
static bool same16(const uint8_t *block, const uint16_t *counted, uint64_t n, uint64_t *any)
{
    uint64_t bad = 0, all = 0;

    for (uint64_t i = 0; i < n; i += 4) {
        uint64_t stored, here;
        memcpy(&stored, block + 2 * i, 8);
        memcpy(&here, counted + i, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        stored = swap_lanes16(stored);
#endif
        bad |= stored ^ here;
        all |= here;
    }
    *any = all & UINT64_C(0xfffefffefffefffe) ? 2 : all ? 1 : 0;
    return bad == 0 && (all & UINT64_C(0x8000800080008000)) == 0;
}

static bool same_any(const struct compare *k, const uint8_t *block, uint64_t first, uint64_t n,
                     uint64_t *any)
{
    uint32_t order = k->c->q->refcount_order;

    *any = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t here = qrefs_get(&k->c->refs, first + i);
        if (refcount_load(block, i, order) != here)
            return false;
        *any = MAX(*any, here);
    }
    return true;
}

static void raise_end(struct compare *k, uint64_t end)
{
    uint64_t was = __atomic_load_n(&k->end, __ATOMIC_RELAXED);

    while (was < end && !__atomic_compare_exchange_n(&k->end, &was, end, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED))
        ;
}

static void compare_block(struct compare *k, uint64_t block, uint8_t *buf)
{
    struct qcheck *c = k->c;
    uint64_t first = block * k->per_block, n = MIN(k->per_block, c->clusters - first), any, place;
    bool same;

    if (block_entry(c, block, &place) && place == 0) {
        same = qrefs_next(&c->refs, first, first + n) == first + n;
        any = 0;
    } else if (read_block(c, block, buf) < 0) {
        same = false;
        any = 0;
    } else if (c->q->refcount_order == 4 && n % 4 == 0) {
        same = same16(buf, c->refs.words + first, n, &any);
    } else {
        same = same_any(k, buf, first, n, &any);
    }
    if (!same)
        __atomic_fetch_or(&k->different[block / 64], UINT64_C(1) << block % 64, __ATOMIC_RELAXED);
    if (any > 1)
        __atomic_store_n(&k->shared, true, __ATOMIC_RELAXED);
    if (same && any && first + n > __atomic_load_n(&k->end, __ATOMIC_RELAXED))
        raise_end(k, MAX(qrefs_end(&c->refs, first + n), first));
}

static void compare_blocks(void *arg)
{
    struct compare *k = arg;
    _cleanup_free_ uint8_t *buf = malloc(k->c->size);
    uint64_t block;

    while ((block = __atomic_fetch_add(&k->next, 1, __ATOMIC_RELAXED)) < k->blocks) {
        if (buf)
            compare_block(k, block, buf);
        else
            __atomic_fetch_or(&k->different[block / 64], UINT64_C(1) << block % 64,
                              __ATOMIC_RELAXED);
    }
}

/* ---- clusters that do not ------------------------------------------------------------------------------ */

/* Counted, as the width of the image's refcounts can tell it. */
static uint64_t counted(struct qcheck *c, uint64_t cluster, bool say)
{
    uint64_t n = qrefs_get(&c->refs, cluster), max = c->q->refcount_max;

    if (n <= max)
        return n;
    for (uint64_t i = max; say && i < n && c->messages <= QCHECK_MAX_MESSAGES; i++) {
        qcheck_say(c, "ERROR: overflow cluster offset=0x%" PRIx64, cluster << c->bits);
        if (i == max)
            qcheck_say(c, "Copy the image with convert into one with wider refcounts "
                          "(-o refcount_bits=16 or more)");
    }
    if (say) {
        c->out->corruptions += n - max;
        c->overflows += n - max;
    }
    return max;
}

/* Says what it found or mended; true: the stored refcount is to become what was counted. */
static bool judge(struct qcheck *c, uint64_t cluster, uint64_t stored, uint64_t here, bool mend)
{
    bool leak = stored > here;
    bool fix = mend && qcheck_fixes(c, leak ? BLK_FIX_LEAKS : BLK_FIX_ERRORS) &&
               !(leak && c->lost_snapshot);
    uint64_t *count = leak ? (fix ? &c->out->leaks_fixed : &c->out->leaks)
                           : (fix ? &c->out->corruptions_fixed : &c->out->corruptions);

    ++*count;
    if (stored == 0)
        c->rebuild = true;
    if (mend && leak && !fix && c->lost_snapshot)
        return false; /* said before, and why it stays */
    qcheck_say(c, "%s cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
               fix    ? "Repairing"
               : leak ? "Leaked"
                      : "ERROR",
               cluster, stored, here);
    return fix;
}

static int unreadable(struct compare *k, uint64_t first, uint64_t n, int error)
{
    struct qcheck *c = k->c;

    c->out->check_errors += n;
    for (uint64_t i = 0; i < n; i++)
        qcheck_say(c, "Can't get refcount for cluster %" PRIu64 ": %s", first + i,
                   strerror(-error));
    return 0;
}

static int look_closely(struct compare *k, uint64_t block, bool mend)
{
    struct qcheck *c = k->c;
    uint32_t order = c->q->refcount_order;
    uint64_t first = block * k->per_block, n = MIN(k->per_block, c->clusters - first);
    bool changed = false;
    int ret = read_block(c, block, c->table);

    if (ret < 0)
        return unreadable(k, first, n, ret);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t stored = refcount_load(c->table, i, order);
        uint64_t here = counted(c, first + i, !mend);
        if (here > 1)
            k->shared = true;
        if (stored || here)
            raise_end(k, first + i + 1);
        if (stored == here)
            continue;
        if (judge(c, first + i, stored, here, mend)) {
            refcount_store(c->table, i, order, here);
            changed = true;
        } else {
            c->differ = true;
        }
    }
    uint64_t place;
    if (!changed || !block_entry(c, block, &place) || place == 0)
        return 0;
    return qcheck_write(c, QCHECK_REFBLOCK, place, c->table, c->size);
}

int qcheck_compare(struct qcheck *c, bool mend)
{
    uint64_t per_block = refblock_entries(c->q);
    struct compare k = {
        .c = c,
        .per_block = per_block,
        .blocks = div_round_up(c->clusters, per_block),
    };
    int ret = 0;

    _cleanup_free_ uint64_t *different = calloc(k.blocks / 64 + 1, sizeof(*different));
    if (!different)
        return -ENOMEM;
    k.different = different;
    c->differ = false;
    if (k.blocks >= 4)
        qcheck_run(c, compare_blocks, &k);
    else
        compare_blocks(&k);
    for (uint64_t w = 0; w <= k.blocks / 64 && ret == 0; w++)
        for (uint64_t bits = different[w]; bits && ret == 0; bits &= bits - 1)
            ret = look_closely(&k, w * 64 + (uint64_t)__builtin_ctzll(bits), mend);
    c->shared = k.shared;
    c->out->image_end_offset = MAX(k.end, UINT64_C(1)) << c->bits;
    return ret;
}

/* ---- single refcounts ----------------------------------------------------------------------------------- */

int qcheck_stored(struct qcheck *c, struct qstored *s, uint64_t cluster, uint64_t *out)
{
    uint64_t per_block = refblock_entries(c->q), block = cluster / per_block;

    if (!s->block && !(s->block = malloc(c->size)))
        return -ENOMEM;
    if (s->index != block + 1) {
        s->index = 0;
        int ret = read_block(c, block, s->block);
        if (ret < 0)
            return ret;
        s->index = block + 1;
    }
    *out = refcount_load(s->block, cluster % per_block, c->q->refcount_order);
    return 0;
}
