/* The disk cut into cells of equal size, each with the kind that weighs most in it.
 *
 * Anything stored outweighs everything that is not: a cell with one cluster of data in it is not
 * empty.
 */
#ifndef IMG_CELLS_H
#define IMG_CELLS_H

#include <stddef.h>
#include <stdint.h>

struct blk_node;

enum cell_kind {
    CELL_HOLE, /* no layer says anything: reads as zeroes */
    CELL_ZERO, /* said to be zeroes */
    CELL_COMPRESSED,
    CELL_DATA,
    CELL_KINDS,
};

enum { CELL_LAYERS = 8 }; /* deeper ones count as the last */

struct cell {
    uint8_t kind;  /* enum cell_kind */
    uint8_t layer; /* of data and compressed: 0 is the image itself */
};

struct cells {
    uint64_t start, end;
    uint64_t cell_size; /* bytes */
    size_t n;
    struct cell *cell;
    uint64_t bytes[CELL_KINDS][CELL_LAYERS]; /* exact sums */
};

/* patience: seconds it may take, 0: any time. 0; 1 when that was not enough; or -errno after a
 * complaint. */
int cells_fill(struct cells *cells, struct blk_node *node, uint64_t start, uint64_t end,
               size_t wanted, double patience);
void cells_free(struct cells *cells);

#endif
