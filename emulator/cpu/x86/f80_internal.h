/* Numbers taken apart, for the two files of f80. */
#ifndef X86_F80_INTERNAL_H
#define X86_F80_INTERNAL_H

#include "f80.h"

typedef unsigned __int128 u128;

enum { BIAS = 16383 };

enum f80_kind { F80_ZERO, F80_FINITE, F80_INFINITE, F80_QUIET, F80_SIGNALLING, F80_UNSUPPORTED };

/* (m / 2^127) * 2^exp; m has its top bit set, its lowest bit may stand for what was shifted out. */
struct number {
    bool sign;
    int exp;
    u128 m;
};

struct format {
    int precision, bits, min, max; /* rounded to, kept; exponents */
};

/* A result in a format: significand of `bits` bits and biased exponent. */
struct packed {
    uint64_t m;
    int e;
};

enum f80_kind f80_kind(struct f80 v);
struct number f80_unpack(struct f80 v);
struct packed f80_round(struct f80_env *env, struct number n, struct format f);
struct f80 f80_pack(struct f80_env *env, struct number n, unsigned precision);
u128 f80_shift(u128 v, unsigned n);

#endif
