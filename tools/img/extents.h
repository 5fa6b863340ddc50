/* Walking over what an image holds, in runs as long as they can be. */
#ifndef IMG_EXTENTS_H
#define IMG_EXTENTS_H

#include <stdbool.h>
#include <stdint.h>

struct blk_node;

struct run {
    uint64_t start, length;
    unsigned depth; /* of the layer that decided */
    bool present, zero, data, compressed;
    bool has_offset; /* the bytes lie in `file`, at `offset` */
    uint64_t offset;
    const char *file; /* NULL without has_offset; borrowed from the graph */
};

/* Calls fn for each run of [start, end) in order. A non-zero answer of fn ends the walk and is
 * returned; a failure is complained about and returned as -errno. offsets: a run also ends where the
 * place in the file jumps. patience: after so many seconds it gives up and answers 1; 0: never. */
int extents_walk(struct blk_node *node, uint64_t start, uint64_t end, bool offsets, double patience,
                 int (*fn)(void *opaque, const struct run *run), void *opaque);

#endif
