/* Which host clusters hold metadata.
 *
 * A hash set of cluster numbers, each with the name of what is there. It is built from what is in
 * memory anyway (header, L1, refcount table), kept up when tables come and go, and asked before
 * anything is written (Q5): a damaged or hostile image that maps guest data onto its own tables must not
 * make us destroy them.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct slot {
    uint64_t cluster; /* plus 1; 0: empty */
    const char *what;
};

struct qcow2_overlap {
    struct slot *slots;
    size_t mask, used;
};

static size_t home(const struct qcow2_overlap *o, uint64_t cluster)
{
    return (size_t)((cluster * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & o->mask;
}

static struct slot *lookup(const struct qcow2_overlap *o, uint64_t cluster)
{
    size_t i = home(o, cluster);
    while (o->slots[i].cluster && o->slots[i].cluster != cluster + 1)
        i = (i + 1) & o->mask;
    return &o->slots[i];
}

static int grow(struct qcow2_overlap *o)
{
    struct qcow2_overlap bigger = { .mask = (o->mask + 1) * 2 - 1, .used = o->used };

    bigger.slots = calloc(bigger.mask + 1, sizeof(*bigger.slots));
    if (!bigger.slots)
        return -ENOMEM;
    for (size_t i = 0; o->slots && i <= o->mask; i++)
        if (o->slots[i].cluster)
            *lookup(&bigger, o->slots[i].cluster - 1) = o->slots[i];
    free(o->slots);
    *o = bigger;
    return 0;
}

static int add_one(struct qcow2_overlap *o, uint64_t cluster, const char *what)
{
    if (2 * (o->used + 1) > o->mask) {
        int ret = grow(o);
        if (ret < 0)
            return ret;
    }
    struct slot *s = lookup(o, cluster);
    if (!s->cluster)
        o->used++;
    *s = (struct slot){ .cluster = cluster + 1, .what = what };
    return 0;
}

/* Open addressing: what was pushed past the gap moves up. */
static void remove_one(struct qcow2_overlap *o, uint64_t cluster)
{
    struct slot *s = lookup(o, cluster);
    if (!s->cluster)
        return;
    size_t gap = (size_t)(s - o->slots);
    s->cluster = 0;
    o->used--;
    for (size_t i = (gap + 1) & o->mask; o->slots[i].cluster; i = (i + 1) & o->mask) {
        size_t h = home(o, o->slots[i].cluster - 1);
        if (((i - h) & o->mask) >= ((i - gap) & o->mask)) {
            o->slots[gap] = o->slots[i];
            o->slots[i].cluster = 0;
            gap = i;
        }
    }
}

int qcow2_overlap_add(struct qcow2 *q, uint64_t host, uint64_t len, const char *what)
{
    if (!q->overlap || len == 0)
        return 0;
    for (uint64_t c = cluster_of(q, host); c <= cluster_of(q, host + len - 1); c++) {
        int ret = add_one(q->overlap, c, what);
        if (ret < 0)
            return ret;
    }
    return 0;
}

void qcow2_overlap_remove(struct qcow2 *q, uint64_t host, uint64_t len)
{
    if (!q->overlap || len == 0)
        return;
    for (uint64_t c = cluster_of(q, host); c <= cluster_of(q, host + len - 1); c++)
        remove_one(q->overlap, c);
}

const char *qcow2_overlap_find(const struct qcow2 *q, uint64_t host, uint64_t len)
{
    if (!q->overlap || len == 0)
        return NULL;
    for (uint64_t c = cluster_of(q, host); c <= cluster_of(q, host + len - 1); c++) {
        const struct slot *s = lookup(q->overlap, c);
        if (s->cluster)
            return s->what;
    }
    return NULL;
}

/* As qcow2_overlap_add, but two things must not share a cluster. */
static int add_apart(struct qcow2 *q, uint64_t host, uint64_t len, const char *what,
                     const char **clash)
{
    if (qcow2_overlap_find(q, host, len)) {
        *clash = what;
        return -EEXIST;
    }
    return qcow2_overlap_add(q, host, len, what);
}

static int add_tables(struct qcow2 *q, const char **clash)
{
    int ret = 0;

    for (uint32_t i = 0; i < q->reftable_entries && ret == 0; i++)
        if (q->reftable[i] & RTE_OFFSET)
            ret = add_apart(q, q->reftable[i] & RTE_OFFSET, 1, "a refcount block", clash);
    for (uint32_t i = 0; i < q->header.l1_size && ret == 0; i++)
        if (q->l1[i] & L1E_OFFSET)
            ret = add_apart(q, q->l1[i] & L1E_OFFSET, 1, OVERLAP_L2, clash);
    return ret;
}

int qcow2_overlap_build(struct qcow2 *q, const char **clash)
{
    const struct qcow2_header *h = &q->header;

    qcow2_overlap_free(q);
    q->overlap = calloc(1, sizeof(*q->overlap));
    if (!q->overlap)
        return -ENOMEM;
    q->overlap->mask = 31;
    int ret = grow(q->overlap);
    if (ret == 0)
        ret = add_apart(q, 0, 1, "the header", clash);
    if (ret == 0)
        ret = add_apart(q, h->l1_offset, (uint64_t)h->l1_size * 8, "the L1 table", clash);
    if (ret == 0)
        ret = add_apart(q, h->reftable_offset, (uint64_t)h->reftable_clusters << q->cluster_bits,
                        "the refcount table", clash);
    return ret == 0 ? add_tables(q, clash) : ret;
}

void qcow2_overlap_free(struct qcow2 *q)
{
    if (q->overlap)
        free(q->overlap->slots);
    free(q->overlap);
    q->overlap = NULL;
}
