/* Rounding of 64-bit offsets and lengths.
 *
 * align_* want a power of two and cost a mask; round_* take any unit above 0 and cost a division.
 * Those that go up must not overflow (asserted); where that can happen, the checked_ ones say so.
 */
#ifndef BASE_ROUND_H
#define BASE_ROUND_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"

static inline bool is_pow2(uint64_t x)
{
    return x != 0 && (x & (x - 1)) == 0;
}

/* The exponent of the largest power of two that is not above x; x > 0. */
static inline unsigned log2_floor(uint64_t x)
{
    assert(x > 0);
    return 63u - (unsigned)__builtin_clzll(x);
}

/* The exponent of the smallest power of two that is not below x; x > 0. */
static inline unsigned log2_ceil(uint64_t x)
{
    return x == 1 ? 0 : log2_floor(x - 1) + 1;
}

static inline uint64_t align_down(uint64_t x, uint64_t pow2)
{
    assert(is_pow2(pow2));
    return x & ~(pow2 - 1);
}

static inline uint64_t align_up(uint64_t x, uint64_t pow2)
{
    assert(is_pow2(pow2) && x <= UINT64_MAX - (pow2 - 1));
    return (x + (pow2 - 1)) & ~(pow2 - 1);
}

static inline bool is_aligned(uint64_t x, uint64_t pow2)
{
    assert(is_pow2(pow2));
    return (x & (pow2 - 1)) == 0;
}

static inline uint64_t round_down(uint64_t x, uint64_t unit)
{
    return x - x % unit;
}

static inline uint64_t div_round_up(uint64_t x, uint64_t unit)
{
    return x / unit + (x % unit != 0);
}

static inline __attribute__((warn_unused_result)) bool checked_round_up(uint64_t x, uint64_t unit,
                                                                        uint64_t *out)
{
    return !__builtin_mul_overflow(div_round_up(x, unit), unit, out);
}

static inline uint64_t round_up(uint64_t x, uint64_t unit)
{
    uint64_t up = 0;
    bool fits = checked_round_up(x, unit, &up);

    assert(fits);
    (void)fits;
    return up;
}

#endif
