/* The host's arithmetic with a rounding of our choice, and what it says of the result. */
#ifndef X86_HOST_FLOAT_H
#define X86_HOST_FLOAT_H

#include "f80.h"

/* Keeps a value in place: neither it nor what is made of it moves across a change of rounding. */
#define HOST_KEEP(x) __asm__ volatile("" : "+m"(x) : : "memory")

#if defined(__x86_64__)
#include <immintrin.h>

static inline void host_begin(unsigned rounding)
{
    _mm_setcsr(0x1f80 | rounding << 13);
}

/* IE, ZE, OE, UE, PE. */
static inline unsigned host_end(void)
{
    unsigned flags = _mm_getcsr() & (FP_ALL & ~FP_DE);
    _mm_setcsr(0x1f80);
    return flags;
}

#else
#include <fenv.h>

static inline void host_begin(unsigned rounding)
{
    static const int modes[4] = { FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO };
    fesetround(modes[rounding]);
    feclearexcept(FE_ALL_EXCEPT);
}

static inline unsigned host_end(void)
{
    int f = fetestexcept(FE_ALL_EXCEPT);
    fesetround(FE_TONEAREST);
    return (f & FE_INVALID ? FP_IE : 0u) | (f & FE_DIVBYZERO ? FP_ZE : 0u) |
           (f & FE_OVERFLOW ? FP_OE : 0u) | (f & FE_UNDERFLOW ? FP_UE : 0u) |
           (f & FE_INEXACT ? FP_PE : 0u);
}
#endif

#endif
