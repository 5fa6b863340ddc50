#include "cells.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"

#include "extents.h"
#include "img.h"

struct filling {
    struct cells *cells;
    size_t at; /* the cell that weights belong to; cells before it are settled */
    uint64_t weight[CELL_KINDS][CELL_LAYERS];
};

static enum cell_kind kind_of(const struct run *run)
{
    if (run->zero || !run->data)
        return run->present ? CELL_ZERO : CELL_HOLE;
    return run->compressed ? CELL_COMPRESSED : CELL_DATA;
}

/* A hole of a raw file is a hole, although the layer answers for it. */
static enum cell_kind kind_in(struct blk_node *node, const struct run *run)
{
    enum cell_kind kind = kind_of(run);
    struct blk_limits limits;
    blk_get_limits(node, &limits);
    return kind == CELL_ZERO && limits.cluster_size == 0 && run->depth == 0 ? CELL_HOLE : kind;
}

static void settle(struct filling *f)
{
    struct cell best = { CELL_HOLE, 0 };
    uint64_t most = 0;
    for (int stored = 1; stored >= 0 && most == 0; stored--) {
        int from = stored ? CELL_COMPRESSED : CELL_HOLE, to = stored ? CELL_KINDS : CELL_COMPRESSED;
        for (int kind = from; kind < to; kind++) {
            for (int layer = 0; layer < CELL_LAYERS; layer++) {
                if (f->weight[kind][layer] > most) {
                    most = f->weight[kind][layer];
                    best = (struct cell){ (uint8_t)kind, (uint8_t)layer };
                }
            }
        }
    }
    f->cells->cell[f->at++] = best;
    memset(f->weight, 0, sizeof(f->weight));
}

struct walk {
    struct filling filling;
    struct blk_node *node;
};

static int add_run(void *opaque, const struct run *run)
{
    struct walk *walk = opaque;
    struct filling *f = &walk->filling;
    struct cells *cells = f->cells;
    enum cell_kind kind = kind_in(walk->node, run);
    unsigned layer = MIN(run->depth, (unsigned)CELL_LAYERS - 1);
    cells->bytes[kind][layer] += run->length;
    uint64_t at = run->start, end = run->start + run->length;
    while (at < end) {
        uint64_t cell_end = cells->start + (f->at + 1) * cells->cell_size;
        uint64_t step = MIN(end, cell_end) - at;
        f->weight[kind][layer] += step;
        at += step;
        if (at == cell_end && f->at < cells->n)
            settle(f);
    }
    return 0;
}

int cells_fill(struct cells *cells, struct blk_node *node, uint64_t start, uint64_t end,
               size_t wanted, double patience)
{
    *cells = (struct cells){ .start = start, .end = end };
    uint64_t length = end - start;
    if (length == 0)
        return 0;
    /* No cell is smaller than a page: a small disk makes a small picture. */
    cells->cell_size = MAX((length + wanted - 1) / wanted, UINT64_C(4096));
    cells->n = (size_t)((length + cells->cell_size - 1) / cells->cell_size);
    cells->cell = calloc(cells->n, sizeof(struct cell));
    if (!cells->cell) {
        complain("out of memory");
        return -ENOMEM;
    }
    struct walk walk = { .filling = { .cells = cells }, .node = node };
    int r = extents_walk(node, start, end, false, patience, add_run, &walk);
    if (r == 0 && walk.filling.at < cells->n)
        settle(&walk.filling);
    if (r != 0)
        cells_free(cells);
    return r;
}

void cells_free(struct cells *cells)
{
    free(cells->cell);
    cells->cell = NULL;
    cells->n = 0;
}
