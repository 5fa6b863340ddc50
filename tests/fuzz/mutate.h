/* What the mutators of image formats share: an image within the input, and a generator of numbers. */
#ifndef FUZZ_MUTATE_H
#define FUZZ_MUTATE_H

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct victim {
    uint8_t *image;
    size_t size;
    uint64_t random;
    unsigned kind; /* the target's own */
};

/* data: two bytes of the target's own, then the image. */
static inline struct victim victim_of(uint8_t *data, size_t size, unsigned seed)
{
    return (struct victim){
        .image = data + 2,
        .size = size > 2 ? size - 2 : 0,
        .random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1,
    };
}

static inline uint64_t number(struct victim *v)
{
    /* xorshift */
    v->random ^= v->random << 13;
    v->random ^= v->random >> 7;
    v->random ^= v->random << 17;
    return v->random;
}

static inline uint64_t below(struct victim *v, uint64_t limit)
{
    return number(v) % limit;
}

/* A number that has hurt somebody once: a limit of the format, a power of two, a place in the file, a small one. */
static inline uint64_t hurtful(struct victim *v, const uint64_t *limits, size_t count,
                               uint64_t place, uint64_t small)
{
    switch (below(v, 4)) {
    case 0:
        return limits[below(v, count)];
    case 1:
        return (UINT64_C(1) << below(v, 64)) - below(v, 3);
    case 2:
        return place;
    default:
        return below(v, small);
    }
}

#endif
