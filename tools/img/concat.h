/* Several images one behind the other, each made up to whole sectors, read as if they were one. */
#ifndef IMG_CONCAT_H
#define IMG_CONCAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct blk_node;

struct concat {
    struct blk_node *const *nodes;
    int n;
};

/* Fills buf, from any thread; *zero: there was nothing but zeroes by what the images say, and buf
 * was not touched. 0 or -errno. */
int concat_read(const struct concat *c, uint64_t offset, void *buf, size_t len, bool *zero);

/* The image that the offset lies in; *within: where in it. */
struct blk_node *concat_at(const struct concat *c, uint64_t offset, uint64_t *within);

/* A boundary between two images lies off multiples of unit. */
bool concat_is_uneven(const struct concat *c, uint64_t unit);

#endif
