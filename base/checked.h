/* Arithmetic that says when it overflows: true and *out, or false and *out untouched. */
#ifndef BASE_CHECKED_H
#define BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline __attribute__((warn_unused_result)) bool checked_add(uint64_t a, uint64_t b,
                                                                   uint64_t *out)
{
    uint64_t sum;

    if (__builtin_add_overflow(a, b, &sum))
        return false;
    *out = sum;
    return true;
}

static inline __attribute__((warn_unused_result)) bool checked_mul(uint64_t a, uint64_t b,
                                                                   uint64_t *out)
{
    uint64_t product;

    if (__builtin_mul_overflow(a, b, &product))
        return false;
    *out = product;
    return true;
}

/* [offset, offset + len) lies inside [0, size), also when the sum would overflow. */
static inline bool range_inside(uint64_t offset, uint64_t len, uint64_t size)
{
    return offset <= size && len <= size - offset;
}

#endif
