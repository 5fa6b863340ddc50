/* See f80.h: between 80-bit numbers and other formats. */
#include "f80_internal.h"

struct f80 f80_from_int(int64_t v)
{
    if (!v)
        return (struct f80){ 0, 0 };
    uint64_t m = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    unsigned shift = (unsigned)__builtin_clzll(m);
    return (struct f80){ m << shift, (uint16_t)((63 - shift + BIAS) | (v < 0 ? 0x8000u : 0)) };
}

/* From a format with `bits` of fraction and its largest exponent. */
static struct f80 widen(struct f80_env *env, bool sign, unsigned e, uint64_t fraction,
                        unsigned bits, unsigned max)
{
    uint16_t s = (uint16_t)(sign << 15);
    uint64_t m = fraction << (63 - bits);
    if (e == max) {
        if (!fraction)
            return (struct f80){ (uint64_t)1 << 63, (uint16_t)(s | 0x7fff) };
        if (!(m >> 62 & 1))
            env->flags |= FP_IE;
        return (struct f80){ m | (uint64_t)3 << 62, (uint16_t)(s | 0x7fff) };
    }
    int exp = (int)e - (int)max / 2;
    if (!e) {
        if (!fraction)
            return (struct f80){ 0, s };
        env->flags |= FP_DE;
        unsigned shift = (unsigned)__builtin_clzll(m);
        return (struct f80){ m << shift, (uint16_t)((exp + 1 - (int)shift + BIAS) | s) };
    }
    return (struct f80){ m | (uint64_t)1 << 63, (uint16_t)((exp + BIAS) | s) };
}

struct f80 f80_from_single(struct f80_env *env, uint32_t v)
{
    return widen(env, v >> 31, v >> 23 & 0xff, v & 0x7fffff, 23, 0xff);
}

struct f80 f80_from_double(struct f80_env *env, uint64_t v)
{
    return widen(env, v >> 63, v >> 52 & 0x7ff, v & (((uint64_t)1 << 52) - 1), 52, 0x7ff);
}

/* Sign, exponent and fraction of a narrower format. */
static uint64_t narrow(struct f80_env *env, struct f80 v, int bits, int max)
{
    uint64_t sign = (uint64_t)(v.e >> 15) << (bits == 24 ? 31 : 63), all = 2 * (uint64_t)max + 1;
    uint64_t fraction = ((uint64_t)1 << (bits - 1)) - 1;
    switch (f80_kind(v)) {
    case F80_ZERO:
        return sign;
    case F80_INFINITE:
        return sign | all << (bits - 1);
    case F80_SIGNALLING:
        env->flags |= FP_IE;
        /* fall through */
    case F80_QUIET:
        return sign | all << (bits - 1) | (v.m >> (64 - bits) & fraction) |
               (uint64_t)1 << (bits - 2);
    case F80_UNSUPPORTED:
        env->flags |= FP_IE;
        return (uint64_t)1 << (bits == 24 ? 31 : 63) | all << (bits - 1) |
               (uint64_t)1 << (bits - 2);
    default:
        break;
    }
    struct packed p = f80_round(env, f80_unpack(v), (struct format){ bits, bits, 1 - max, max });
    if (env->flags & ~env->mask & (FP_OE | FP_UE)) { /* nothing is stored that could be inexact */
        env->flags &= ~(unsigned)FP_PE;
        env->up = false;
    }
    return sign | ((uint64_t)p.e & all) << (bits - 1) | (p.m & fraction);
}

uint32_t f80_to_single(struct f80_env *env, struct f80 v)
{
    return (uint32_t)narrow(env, v, 24, 127);
}

uint64_t f80_to_double(struct f80_env *env, struct f80 v)
{
    return narrow(env, v, 53, 1023);
}

uint64_t f80_to_int(struct f80_env *env, struct f80 v, unsigned size, bool cut)
{
    uint64_t worst = (uint64_t)1 << (8 * size - 1), ones = ~(uint64_t)0 >> (64 - 8 * size);
    struct f80_env e = { .rounding = cut ? 3 : env->rounding, .mask = FP_ALL, .precision = 64 };
    enum f80_kind k = f80_kind(v);
    if (k == F80_ZERO)
        return 0;
    struct f80 r = k == F80_FINITE ? f80_integral(&e, v) : v;
    struct number n = f80_unpack(r);
    int bits = (int)(8 * size) - 1; /* without the sign */
    bool fits =
        k == F80_FINITE && (!r.m || n.exp < bits || (n.exp == bits && n.sign && !(r.m << 1)));
    if (!fits) {
        env->flags |= FP_IE;
        return worst;
    }
    env->flags |= e.flags & FP_PE;
    env->up = e.up;
    uint64_t i = r.m ? r.m >> (63 - n.exp) : 0;
    return (n.sign ? 0 - i : i) & ones;
}

struct f80 f80_from_bcd(const uint8_t b[10])
{
    int64_t v = 0;
    for (int n = 8; n >= 0; n--)
        v = v * 100 + (b[n] >> 4) * 10 + (b[n] & 15);
    struct f80 r = f80_from_int(v);
    r.e |= (uint16_t)((b[9] & 0x80) << 8);
    return r;
}

void f80_to_bcd(struct f80_env *env, struct f80 v, uint8_t b[10])
{
    struct f80_env e = *env;
    int64_t i = (int64_t)f80_to_int(&e, v, 8, false);
    bool sign = v.e >> 15;
    uint64_t m = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
    if (e.flags & FP_IE || m > 999999999999999999u) {
        static const uint8_t none[10] = { 0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff };
        env->flags |= FP_IE;
        for (unsigned n = 0; n < 10; n++)
            b[n] = none[n];
        return;
    }
    env->flags |= e.flags;
    env->up = e.up;
    for (unsigned n = 0; n < 9; n++, m /= 100)
        b[n] = (uint8_t)(m / 10 % 10 << 4 | m % 10);
    b[9] = sign ? 0x80 : 0;
}
