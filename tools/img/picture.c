#include "picture.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/human.h"
#include "base/macros.h"

#include "cells.h"
#include "img.h"
#include "term.h"

enum { MAX_ROWS = 24, LABEL = 12 };

/* One colour per layer, the image itself first; of the 256 of a terminal. */
static const int colors[CELL_LAYERS] = { 34, 33, 172, 134, 37, 161, 179, 246 };

struct pen {
    bool color, utf8;
    int current; /* the colour that is on, -1: none */
};

static void set_color(struct pen *pen, int color)
{
    if (!pen->color || pen->current == color)
        return;
    if (color < 0)
        fputs("\033[0m", stdout);
    else
        printf("\033[38;5;%dm", color);
    pen->current = color;
}

static void put_cell(struct pen *pen, struct cell cell)
{
    const char *text;
    int color = -1;
    switch (cell.kind) {
    case CELL_DATA:
    case CELL_COMPRESSED:
        color = colors[cell.layer];
        if (!pen->color && cell.layer > 0) {
            /* Without colours, letters tell the layers apart. */
            putchar((cell.kind == CELL_DATA ? 'A' : 'a') + cell.layer - 1);
            return;
        }
        if (cell.kind == CELL_DATA)
            text = pen->utf8 ? "\u2588" : "#";
        else
            text = pen->utf8 ? "\u2592" : "%";
        break;
    case CELL_ZERO:
        color = 240;
        text = pen->utf8 ? "\u2591" : "0";
        break;
    default:
        color = 240;
        text = pen->utf8 ? "\u00b7" : ".";
        break;
    }
    set_color(pen, color);
    fputs(text, stdout);
}

static void legend_line(struct pen *pen, const struct cells *cells, int kind, int layer,
                        const char *name)
{
    uint64_t bytes = cells->bytes[kind][layer];
    if (bytes == 0)
        return;
    printf("%*s", LABEL, "");
    put_cell(pen, (struct cell){ (uint8_t)kind, (uint8_t)layer });
    set_color(pen, -1);
    printf(" %-20s %10s  %5.1f%%\n", name, human_size(bytes).s,
           100.0 * (double)bytes / (double)(cells->end - cells->start));
}

static void legend(struct pen *pen, struct cells *cells)
{
    for (int kind = CELL_DATA; kind >= CELL_COMPRESSED; kind--) {
        for (int layer = 0; layer < CELL_LAYERS; layer++) {
            char name[64];
            const char *what = kind == CELL_DATA ? "data" : "compressed";
            if (layer == 0)
                snprintf(name, sizeof(name), "%s", what);
            else
                snprintf(name, sizeof(name), "%s, backing %d", what, layer);
            legend_line(pen, cells, kind, layer, name);
        }
    }
    for (int kind = CELL_ZERO; kind >= CELL_HOLE; kind--) {
        for (int layer = 1; layer < CELL_LAYERS; layer++)
            cells->bytes[kind][0] += cells->bytes[kind][layer];
        legend_line(pen, cells, kind, 0, kind == CELL_ZERO ? "zero" : "hole");
    }
}

int picture_terminal(struct blk_node *node, uint64_t start, uint64_t end)
{
    unsigned columns = term_columns(STDOUT_FILENO);
    size_t width = columns > LABEL + 8 ? columns - LABEL : 8;
    struct cells cells;
    int r = cells_fill(&cells, node, start, end, width * MAX_ROWS, 0);
    if (r < 0)
        return r;
    struct pen pen = { .color = term_colors(STDOUT_FILENO), .utf8 = term_utf8(), .current = -1 };
    for (size_t i = 0; i < cells.n; i++) {
        if (i % width == 0)
            printf("%*s ", LABEL - 1, human_size(cells.start + i * cells.cell_size).s);
        put_cell(&pen, cells.cell[i]);
        if (i % width == width - 1 || i + 1 == cells.n) {
            set_color(&pen, -1);
            putchar('\n');
        }
    }
    printf("\n%*sone cell: %s of %s\n", LABEL, "", human_size(cells.cell_size).s,
           human_size(end - start).s);
    legend(&pen, &cells);
    cells_free(&cells);
    return 0;
}

void picture_bar(struct blk_node *node)
{
    uint64_t size = blk_size(node), stored = 0;
    unsigned columns = term_columns(STDOUT_FILENO);
    struct cells cells;
    if (size == 0 ||
        cells_fill(&cells, node, 0, size, MIN(columns > 50 ? columns - 46u : 20u, 64u), 0.5) != 0)
        return;
    for (int kind = CELL_COMPRESSED; kind <= CELL_DATA; kind++) {
        for (int layer = 0; layer < CELL_LAYERS; layer++)
            stored += cells.bytes[kind][layer];
    }
    struct pen pen = { .color = term_colors(STDOUT_FILENO), .utf8 = term_utf8(), .current = -1 };
    fputs("allocated: ", stdout);
    for (size_t i = 0; i < cells.n; i++)
        put_cell(&pen, cells.cell[i]);
    set_color(&pen, -1);
    printf(" %.1f%%, %s\n", 100.0 * (double)stored / (double)size, human_size(stored).s);
    cells_free(&cells);
}
