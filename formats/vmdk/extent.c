/* What a writer must know of a sparse extent beyond its header: where its metadata lies, and which table is which. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "vmdk.h"

/* ---- where metadata lies ------------------------------------------------------------------------------ */

/* The first range that ends behind `from`. */
static size_t meta_find(const struct vmdk_extent *e, uint64_t from)
{
    size_t low = 0, high = e->meta.len;

    while (low < high) {
        size_t mid = (low + high) / 2;
        if (e->meta.at[mid].to > from)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

bool vmdk_meta_at(const struct vmdk_extent *e, uint64_t from, uint64_t len)
{
    size_t i = meta_find(e, from);

    return i < e->meta.len && e->meta.at[i].from < from + len;
}

int vmdk_meta_add(struct vmdk_extent *e, uint64_t from, uint64_t len)
{
    uint64_t to = from + len;

    if (len == 0)
        return 0;
    /* From the range that may touch it from the left, all that touch become one. */
    size_t i = meta_find(e, from ? from - 1 : 0), n = i;
    while (n < e->meta.len && e->meta.at[n].from <= to)
        n++;
    if (n == i)
        return vector_insert(&e->meta, i, (struct vmdk_range){ from, to });
    struct vmdk_range *r = &e->meta.at[i];
    r->from = MIN(r->from, from);
    r->to = MAX(MAX(r->to, to), e->meta.at[n - 1].to);
    memmove(r + 1, e->meta.at + n, (e->meta.len - n) * sizeof(*r));
    e->meta.len -= n - i - 1;
    return 0;
}

/* ---- tables by place ------------------------------------------------------------------------------------- */

struct place {
    uint32_t sector, number;
};

static int by_sector(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return x->sector < y->sector ? -1 : x->sector > y->sector;
}

static int order_tables(struct vmdk_extent *e)
{
    uint32_t n = 0;
    struct place *p = malloc((e->gd_entries ? e->gd_entries : 1) * sizeof(*p));
    uint32_t *order = malloc((e->gd_entries ? e->gd_entries : 1) * sizeof(*order));

    if (!p || !order) {
        free(p);
        free(order);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < e->gd_entries; i++)
        if (e->gd[i])
            p[n++] = (struct place){ e->gd[i], i };
    qsort(p, n, sizeof(*p), by_sector);
    for (uint32_t i = 0; i < n; i++)
        order[i] = p[i].number;
    free(p);
    free(e->order);
    e->order = order;
    e->order_len = n;
    return 0;
}

/* ---- both ------------------------------------------------------------------------------------------------- */

int vmdk_note_metadata(struct vmdk *v, struct vmdk_extent *e)
{
    const struct vmdk_header *h = &e->header;
    uint64_t gd = (uint64_t)e->gd_entries * 4;

    e->meta.len = 0;
    int ret = vmdk_meta_add(e, 0, SECTOR);

    if (ret == 0 && v->embedded)
        ret = vmdk_meta_add(e, v->desc_offset, v->desc_room);
    if (ret == 0)
        ret = vmdk_meta_add(e, h->gd * SECTOR, gd);
    if (ret == 0 && e->redundant)
        ret = vmdk_meta_add(e, h->rgd * SECTOR, gd);
    for (uint32_t i = 0; ret == 0 && i < e->gd_entries; i++) {
        if (e->gd[i])
            ret = vmdk_meta_add(e, e->gd[i] * SECTOR, e->gt_size);
        if (ret == 0 && e->redundant && e->rgd[i])
            ret = vmdk_meta_add(e, e->rgd[i] * SECTOR, e->gt_size);
    }
    if (ret == 0 && e->redundant)
        ret = order_tables(e);
    return ret;
}

void vmdk_extent_free(struct vmdk_extent *e)
{
    table_cache_free(e->cache);
    for (uint32_t i = 0; e->tables && i < e->gd_entries; i++)
        free(e->tables[i]);
    free(e->tables);
    free(e->table_dirty);
    free(e->gd);
    free(e->rgd);
    free(e->order);
    vector_free(&e->meta);
    vector_free(&e->freed);
    vector_free(&e->quarantine);
    vector_free(&e->free);
    *e = (struct vmdk_extent){ 0 };
}
