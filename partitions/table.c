/* Which kind of table a disk has, and what all kinds have in common. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"

#include "internal.h"

void reader_warn(struct reader *r, const char *fmt, ...)
{
    char line[256];
    va_list ap;

    if (r->warnings.len > 16384) /* enough has been said */
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    strbuf_addf(&r->warnings, "%s\n", line);
}

int reader_add(struct reader *r, struct partition *p, uint64_t start, uint64_t size, unsigned unit)
{
    if (size == 0 || r->list.len >= PARTITION_MOST)
        return 0;
    if (!checked_mul(start, unit, &p->start) || !checked_mul(size, unit, &p->size) ||
        !range_inside(p->start, p->size, r->size)) {
        p->outside = true;
        reader_warn(r,
                    "partition %u of %" PRIu64 " sectors at sector %" PRIu64
                    " leaves the disk of %" PRIu64 " bytes",
                    p->number, size, start, r->size);
        if (p->size == 0)
            p->start = 0;
    }
    return vector_push(&r->list, *p);
}

/* Partitions that share bytes are told of; writing to one changes the other. */
static int by_start(const void *a, const void *b)
{
    const struct partition *x = *(const struct partition *const *)a;
    const struct partition *y = *(const struct partition *const *)b;
    return x->start < y->start ? -1 : x->start > y->start;
}

static int warn_of_overlaps(struct reader *r)
{
    const struct partition **order = malloc((r->list.len + 1) * sizeof(*order));
    const struct partition *last = NULL;
    size_t n = 0;

    if (!order)
        return -ENOMEM;
    for (size_t i = 0; i < r->list.len; i++) {
        if (!r->list.at[i].extended && !r->list.at[i].outside)
            order[n++] = &r->list.at[i];
    }
    qsort(order, n, sizeof(*order), by_start);
    for (size_t i = 0; i < n; i++) {
        if (last && order[i]->start < last->start + last->size)
            reader_warn(r, "partitions %u and %u overlap", last->number, order[i]->number);
        if (!last || order[i]->start + order[i]->size > last->start + last->size)
            last = order[i];
    }
    free(order);
    return 0;
}

static int read_all(struct reader *r, struct error **err)
{
    uint8_t mbr[MBR_SIZE];

    if (r->size < sizeof(mbr))
        return 0;
    int ret = blk_read(r->node, 0, mbr, sizeof(mbr), 0);
    if (ret == 0 && mbr_protects_gpt(mbr))
        return gpt_read(r, err);
    if (ret == 0 && mbr_valid(mbr))
        ret = mbr_read(r, mbr);
    return ret < 0 ? error_set(err, -ret, "%s: cannot read the partition table: %s",
                               blk_filename(r->node), strerror(-ret))
                   : 0;
}

int partitions_read(struct blk_node *node, struct partition_table *out, struct error **err)
{
    struct reader r = { .node = node, .size = blk_size(node), .table = out };

    *out = (struct partition_table){ 0 };
    int ret = read_all(&r, err);
    if (ret == 0 && warn_of_overlaps(&r) < 0)
        ret = error_set(err, ENOMEM, "out of memory");
    out->at = r.list.at;
    out->count = r.list.len;
    out->warnings = r.warnings.len ? strbuf_take(&r.warnings) : NULL;
    strbuf_free(&r.warnings);
    if (ret < 0)
        partitions_free(out);
    return ret;
}

void partitions_free(struct partition_table *table)
{
    free(table->at);
    free(table->warnings);
    *table = (struct partition_table){ 0 };
}

const struct partition *partitions_find(const struct partition_table *table, unsigned number,
                                        const char *disk, struct error **err)
{
    for (size_t i = 0; i < table->count; i++) {
        const struct partition *p = &table->at[i];
        if (p->number != number)
            continue;
        if (!p->outside)
            return p;
        error_set(err, EUCLEAN, "%s: partition %u leaves the disk", disk, number);
        return NULL;
    }
    if (table->scheme == PARTITION_NONE)
        error_set(err, ENOENT, "%s: there is no partition table", disk);
    else
        error_set(err, ENOENT, "%s: there is no partition %u", disk, number);
    return NULL;
}

const char *partition_scheme_name(enum partition_scheme scheme)
{
    return scheme == PARTITION_GPT ? "gpt" : scheme == PARTITION_MBR ? "mbr" : "none";
}
