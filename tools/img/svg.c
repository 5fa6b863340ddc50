/* The disk as an SVG file: rows of cells, neighbours that are alike joined into one rectangle. */
#include "picture.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/human.h"

#include "cells.h"
#include "img.h"

enum {
    COLUMNS = 512,
    ROWS = 48,
    CELL_W = 2, /* user units */
    ROW_H = 10,
    ROW_GAP = 2,
    MARGIN = 90, /* left of the rows, for the offsets */
    TOP = 40,
    LEGEND_H = 20,
};

static const char *const data_colors[CELL_LAYERS] = {
    "#2e8b57", "#2f7ed8", "#d98c1f", "#9a5fb4", "#1ba3a3", "#c9405b", "#b39b2b", "#777777",
};

static const char *color_of(struct cell cell)
{
    switch (cell.kind) {
    case CELL_DATA:
    case CELL_COMPRESSED:
        return data_colors[cell.layer];
    case CELL_ZERO:
        return "#b8bec6";
    default:
        return "#eceff2";
    }
}

static const char *name_of(struct cell cell, char *buf, size_t size)
{
    static const char *const names[CELL_KINDS] = { "hole", "zero", "compressed", "data" };
    if (cell.kind >= CELL_COMPRESSED && cell.layer > 0)
        snprintf(buf, size, "%s, backing %d", names[cell.kind], cell.layer);
    else
        snprintf(buf, size, "%s", names[cell.kind]);
    return buf;
}

static void put_text(FILE *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '<')
            fputs("&lt;", out);
        else if (*text == '&')
            fputs("&amp;", out);
        else if ((unsigned char)*text < ' ')
            fputc('?', out);
        else
            fputc(*text, out);
    }
}

/* Cells [first, last) of one row. */
static void put_rect(FILE *out, const struct cells *cells, size_t first, size_t last)
{
    struct cell cell = cells->cell[first];
    char name[64];
    uint64_t from = cells->start + first * cells->cell_size;
    fprintf(out,
            "<rect x=\"%zu\" y=\"%zu\" width=\"%zu\" height=\"%d\" fill=\"%s\"%s>"
            "<title>%s from %" PRIu64 " (%s)</title></rect>\n",
            MARGIN + first % COLUMNS * CELL_W, TOP + first / COLUMNS * (ROW_H + ROW_GAP),
            (last - first) * CELL_W, ROW_H, color_of(cell),
            cell.kind == CELL_COMPRESSED ? " fill-opacity=\"0.55\"" : "",
            name_of(cell, name, sizeof(name)), from, human_size(from).s);
}

static void put_rows(FILE *out, const struct cells *cells)
{
    for (size_t row = 0; row * COLUMNS < cells->n; row++) {
        size_t first = row * COLUMNS, end = first + COLUMNS < cells->n ? first + COLUMNS : cells->n;
        fprintf(out, "<text x=\"%d\" y=\"%zu\" text-anchor=\"end\">%s</text>\n", MARGIN - 6,
                TOP + row * (ROW_H + ROW_GAP) + ROW_H - 1,
                human_size(cells->start + first * cells->cell_size).s);
        while (first < end) {
            size_t last = first + 1;
            while (last < end && cells->cell[last].kind == cells->cell[first].kind &&
                   cells->cell[last].layer == cells->cell[first].layer)
                last++;
            put_rect(out, cells, first, last);
            first = last;
        }
    }
}

static void put_legend(FILE *out, const struct cells *cells, size_t y)
{
    size_t x = MARGIN;
    for (int kind = CELL_KINDS - 1; kind >= 0; kind--) {
        for (int layer = 0; layer < CELL_LAYERS; layer++) {
            uint64_t bytes = cells->bytes[kind][layer];
            struct cell cell = { (uint8_t)kind, (uint8_t)layer };
            char name[64];
            if (bytes == 0)
                continue;
            fprintf(out,
                    "<rect x=\"%zu\" y=\"%zu\" width=\"12\" height=\"12\" fill=\"%s\"%s/>"
                    "<text x=\"%zu\" y=\"%zu\">%s: %s</text>\n",
                    x, y, color_of(cell),
                    cell.kind == CELL_COMPRESSED ? " fill-opacity=\"0.55\"" : "", x + 17, y + 10,
                    name_of(cell, name, sizeof(name)), human_size(bytes).s);
            x += 170;
            if (x + 150 > MARGIN + COLUMNS * CELL_W) {
                x = MARGIN;
                y += LEGEND_H;
            }
        }
    }
}

static void put_svg(FILE *out, struct blk_node *node, const struct cells *cells)
{
    size_t rows = (cells->n + COLUMNS - 1) / COLUMNS;
    size_t legend = TOP + rows * (ROW_H + ROW_GAP) + 10, height = legend + 5 * LEGEND_H;
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %zu\" width=\"%d\" "
            "height=\"%zu\" font-family=\"sans-serif\" font-size=\"10\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n"
            "<text x=\"%d\" y=\"24\" font-size=\"14\">",
            MARGIN + COLUMNS * CELL_W + 20, height, MARGIN + COLUMNS * CELL_W + 20, height, MARGIN);
    put_text(out, blk_filename(node));
    fprintf(out, " (%s, %s; one cell is %s)</text>\n", blk_format(node),
            human_size(cells->end - cells->start).s, human_size(cells->cell_size).s);
    put_rows(out, cells);
    put_legend(out, cells, legend);
    fputs("</svg>\n", out);
}

int picture_svg(struct blk_node *node, uint64_t start, uint64_t end, const char *filename)
{
    struct cells cells;
    int r = cells_fill(&cells, node, start, end, COLUMNS * ROWS, 0);
    if (r < 0)
        return r;
    FILE *out = filename ? fopen(filename, "we") : stdout;
    if (!out) {
        complain("cannot create '%s': %s", filename, strerror(errno));
        cells_free(&cells);
        return 1;
    }
    put_svg(out, node, &cells);
    cells_free(&cells);
    if (filename && (ferror(out) | fclose(out))) {
        complain("cannot write '%s': %s", filename, strerror(errno));
        return 1;
    }
    return 0;
}
