/* A disk drawn as cells: what most matters of each part of it. */
#ifndef IMG_PICTURE_H
#define IMG_PICTURE_H

#include <stdint.h>

struct blk_node;

/* One line: "allocated: [####----] 12.3 GiB of 20 GiB". Says nothing on failure. */
void picture_bar(struct blk_node *node);

/* Rows of cells in the terminal's width, and a legend. 0, or non-zero after a complaint. */
int picture_terminal(struct blk_node *node, uint64_t start, uint64_t end);

/* The same as an SVG file; NULL: on stdout. */
int picture_svg(struct blk_node *node, uint64_t start, uint64_t end, const char *filename);

#endif
