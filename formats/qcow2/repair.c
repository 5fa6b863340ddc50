/* A new refcount structure, and the marks in the header.
 *
 * The new structure goes behind everything that is in use, the old structure included, and is durable
 * before the header names it (C2): until then the image is as it was, from then on it is whole.
 * The clusters of the old structure are free in the new one.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "check.h"

struct rebuild {
    struct qcheck *c;
    uint64_t per_block;
    uint64_t start;               /* cluster: where the structure goes */
    uint64_t table, blocks;       /* clusters of both, table first */
    uint64_t used_blocks;         /* blocks that count something of the rest */
    uint64_t own_first, own_last; /* block numbers that count the structure itself */
};

/* One past everything that must not be written to. */
static uint64_t end_of_use(struct qcheck *c)
{
    const struct qcow2_header *h = &c->q->header;
    uint64_t end = qrefs_end(&c->refs, c->clusters);
    uint64_t table = (h->reftable_offset >> c->bits) + h->reftable_clusters;

    if (table <= c->clusters)
        end = MAX(end, table);
    for (uint32_t i = 0; i < c->q->reftable_entries; i++) {
        uint64_t block = (c->q->reftable[i] & RTE_OFFSET) >> c->bits;
        if (c->q->reftable[i] && block < c->clusters)
            end = MAX(end, block + 1);
    }
    return end;
}

static bool block_used(const struct rebuild *r, uint64_t block)
{
    struct qcheck *c = r->c;
    uint64_t first = block * r->per_block;
    uint64_t stop = MIN(first + r->per_block, c->clusters);

    return first < c->clusters && qrefs_next(&c->refs, first, stop) < stop;
}

/* How many blocks and how large a table: the structure counts itself, too, so this goes round. */
static int plan(struct rebuild *r)
{
    struct qcheck *c = r->c;
    uint64_t rest = qrefs_end(&c->refs, c->clusters);

    for (uint64_t b = 0; b * r->per_block < rest; b++)
        r->used_blocks += block_used(r, b);
    r->table = r->blocks = 1;
    for (;;) {
        uint64_t end = r->start + r->table + r->blocks;
        r->own_first = r->start / r->per_block;
        r->own_last = (end - 1) / r->per_block;
        uint64_t blocks = r->used_blocks;
        for (uint64_t b = r->own_first; b <= r->own_last; b++)
            blocks += !block_used(r, b);
        uint64_t table = div_round_up((r->own_last + 1) * 8, c->size);
        if (blocks <= r->blocks && table <= r->table)
            break;
        r->blocks = MAX(r->blocks, blocks);
        r->table = MAX(r->table, table);
    }
    if (r->table << c->bits > QCOW2_MAX_REFTABLE_BYTES)
        return error_set(c->err, EFBIG, "the new refcount table would be above its limit of 8 MiB");
    return 0;
}

static void fill_block(struct rebuild *r, uint64_t block, uint8_t *buf)
{
    struct qcheck *c = r->c;
    uint64_t first = block * r->per_block, own = r->start + r->table + r->blocks;
    uint64_t max = c->q->refcount_max;

    memset(buf, 0, c->size);
    for (uint64_t i = 0; i < r->per_block; i++) {
        uint64_t cluster = first + i;
        uint64_t n = cluster >= r->start ? cluster < own : qrefs_get(&c->refs, cluster);
        if (n > max)
            c->overflows += n - max;
        if (n)
            refcount_store(buf, i, c->q->refcount_order, MIN(n, max));
    }
}

/* Blocks into the clusters behind the table, their places into the table. */
static int write_blocks(struct rebuild *r, uint8_t *table)
{
    struct qcheck *c = r->c;
    uint64_t at = r->start + r->table;

    for (uint64_t b = 0; b <= r->own_last; b++) {
        if (!block_used(r, b) && b < r->own_first)
            continue;
        fill_block(r, b, c->table);
        int ret = blk_write(c->file, at << c->bits, c->table, c->size, 0);
        if (ret < 0)
            return ret;
        store_be64(table + 8 * b, at << c->bits);
        at++;
    }
    return 0;
}

static int name_in_header(const struct rebuild *r)
{
    struct qcow2 *q = r->c->q;

    q->header.reftable_offset = r->start << r->c->bits;
    q->header.reftable_clusters = (uint32_t)r->table;
    return qcow2_header_update(q, HDR_REFTABLE_OFFSET, HDR_REFTABLE_CLUSTERS + 4);
}

static int write_structure(struct rebuild *r)
{
    struct qcheck *c = r->c;
    _cleanup_free_ uint8_t *table = calloc(r->table, c->size);
    int ret = table ? write_blocks(r, table) : -ENOMEM;

    if (ret == 0)
        ret = blk_write(c->file, r->start << c->bits, table, r->table << c->bits, 0);
    if (ret == 0)
        ret = blk_flush(c->file);
    if (ret == 0)
        ret = name_in_header(r);
    if (ret == 0)
        ret = blk_flush(c->file);
    if (ret < 0)
        error_set(c->err, -ret, "%s: could not write the new refcount structure: %s",
                  blk_filename(c->file), strerror(-ret));
    return ret;
}

int qcheck_rebuild(struct qcheck *c)
{
    struct rebuild r = { .c = c, .per_block = refblock_entries(c->q) };

    qcheck_say(c, "Rebuilding refcount structure");
    r.start = end_of_use(c);
    c->overflows = 0;
    qcheck_uncount_refcounts(c);
    int ret = plan(&r);
    if (ret == 0)
        ret = write_structure(&r);
    if (ret < 0)
        return ret;
    c->differ = false; /* what is stored is what was counted, from here on */
    c->out->image_end_offset = (r.start + r.table + r.blocks) << c->bits;
    return qcow2_reload(c->q, c->err);
}

int qcheck_clear_marks(struct qcheck *c)
{
    struct qcow2 *q = c->q;
    uint64_t marks = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;

    if (q->header.version < 3 || !(q->header.incompatible & marks))
        return 0;
    int ret = blk_flush(c->file);
    if (ret == 0) {
        q->header.incompatible &= ~marks;
        ret = qcow2_header_update(q, HDR_INCOMPATIBLE, HDR_INCOMPATIBLE + 8);
    }
    if (ret == 0)
        ret = blk_flush(c->file);
    if (ret < 0)
        error_set(c->err, -ret, "%s: could not clear the dirty mark: %s", blk_filename(c->file),
                  strerror(-ret));
    return ret;
}
