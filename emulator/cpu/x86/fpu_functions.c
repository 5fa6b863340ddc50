/* D9 E0 to FF: constants, roots, remainders; and the functions, by the host's long double. */
#include "fpu.h"

#include <math.h>

typedef long double real;

static real get_real(struct f80 v)
{
    unsigned e = v.e & 0x7fff;
    real r = e == 0x7fff ? (v.m << 1 ? (real)NAN : (real)INFINITY)
                         : ldexpl((real)v.m, (int)e - 16383 - 63);
    return v.e & 0x8000 ? -r : r;
}

static struct f80 put_real(real r)
{
    int e;
    uint16_t sign = signbit(r) ? 0x8000 : 0;
    if (isnan(r))
        return F80_NAN;
    if (isinf(r))
        return (struct f80){ (uint64_t)1 << 63, 0x7fff | sign };
    real m = frexpl(fabsl(r), &e);
    if (m == 0 || e + 16382 < 1 - 63)
        return (struct f80){ 0, sign };
    if (e + 16382 < 1)
        return (struct f80){ (uint64_t)ldexpl(m, 64 + e + 16381), sign };
    return (struct f80){ (uint64_t)ldexpl(m, 64), (uint16_t)((e + 16382) | sign) };
}

static void examine(struct x86 *c)
{
    struct f80 v = c->st[c->top];
    unsigned e = v.e & 0x7fff, k;
    if (c->empty >> c->top & 1)
        k = C3 | C0;
    else if (e && !(v.m >> 63))
        k = 0; /* unsupported */
    else if (e == 0x7fff)
        k = v.m << 1 ? C0 : C2 | C0;
    else
        k = e ? C2 : v.m ? C3 | C2 : C3;
    c->fsw = (uint16_t)((c->fsw & ~0x4700) | k | (v.e >> 15) << 9);
}

static void remainder_of(struct x86 *c, bool nearest)
{
    struct f80_env env = fpu_env(c);
    struct f80 a = fpu_get(c, &env, 0), b = fpu_get(c, &env, 1), r = F80_NAN;
    unsigned q = 0;
    bool partial = false;
    if (!(env.flags & FP_SF))
        r = f80_remainder(&env, a, b, nearest, &q, &partial);
    env.up = false;
    c->fsw &= (uint16_t)~C2;
    if (!fpu_done(c, &env, false))
        return;
    bool decided = env.flags & FP_SF || f80_is_nan(r);
    if (!decided)
        c->fsw = (uint16_t)((c->fsw & ~0x4700) | (q & 1 ? C1 : 0) | (q & 2 ? C3 : 0) |
                            (q & 4 ? C0 : 0) | (partial ? C2 : 0));
    fpu_set(c, 0, r);
}

static void constant(struct x86 *c, unsigned b)
{
    /* Cut off, with what to add when rounding up, to nearest. */
    static const struct {
        struct f80 v;
        bool above, nearest;
    } table[7] = {
        { { 0x8000000000000000, 0x3fff }, false, false },
        { { 0xd49a784bcd1b8afe, 0x4000 }, true, false },
        { { 0xb8aa3b295c17f0bb, 0x3fff }, true, true },
        { { 0xc90fdaa22168c234, 0x4000 }, true, true },
        { { 0x9a209a84fbcff798, 0x3ffd }, true, true },
        { { 0xb17217f7d1cf79ab, 0x3ffe }, true, true },
        { { 0, 0 }, false, false },
    };
    struct f80_env env = fpu_env(c);
    struct f80 v = table[b - 0xe8].v;
    if (env.rounding == 2 ? table[b - 0xe8].above : env.rounding == 0 && table[b - 0xe8].nearest)
        v.m++;
    fpu_push(c, &env, v);
}

/* The functions of one number. False: out of range, nothing is changed. */
static bool of_one(unsigned b, real a, real *r)
{
    if (b != 0xf0 && !(fabsl(a) < 0x1p63L))
        return false;
    switch (b) {
    case 0xf0:
        *r = expm1l(a * 0.693147180559945309417232121458177L);
        return true;
    case 0xf2:
        *r = tanl(a);
        return true;
    case 0xff:
        *r = cosl(a);
        return true;
    default:
        *r = sinl(a);
        return true;
    }
}

/* F2XM1, FPTAN, FSINCOS, FSIN, FCOS. */
static void one_number(struct x86 *c, unsigned b)
{
    struct f80_env env = fpu_env(c);
    struct f80 a = fpu_get(c, &env, 0), r = F80_NAN;
    bool second = b == 0xf2 || b == 0xfb, out_of_range = false;
    real v = 0;
    if (!(env.flags & FP_SF)) {
        if (f80_is_nan(a)) {
            r = f80_choose_nan(&env, a, a);
        } else if ((a.e & 0x7fff) == 0x7fff && b != 0xf0) {
            env.flags |= FP_IE;
        } else {
            out_of_range = !of_one(b, get_real(a), &v);
            env.flags |= (f80_is_denormal(a) ? FP_DE : 0) | (a.m && !out_of_range ? FP_PE : 0);
            r = put_real(v);
        }
    }
    if (second && !(c->empty >> fpu_slot(c, 7) & 1)) {
        env.flags |= FP_IE | FP_SF;
        env.up = true;
        r = F80_NAN;
    }
    if (!fpu_done(c, &env, false))
        return;
    c->fsw = (uint16_t)((c->fsw & ~C2) | (out_of_range ? C2 : 0));
    if (out_of_range)
        return;
    struct f80 more = b == 0xf2 ? F80_ONE : put_real(cosl(get_real(a)));
    fpu_set(c, 0, r);
    if (second) {
        c->top = (c->top - 1) & 7;
        fpu_set(c, 0, f80_is_nan(r) ? r : more);
    }
}

/* FYL2X, FPATAN, FYL2XP1: of ST(1) and ST(0), into the former, with a pop. */
static void two_numbers(struct x86 *c, unsigned b)
{
    struct f80_env env = fpu_env(c);
    struct f80 x = fpu_get(c, &env, 0), y = fpu_get(c, &env, 1), r = F80_NAN;
    real p = get_real(x), q = get_real(y), v = 0;
    if (!(env.flags & FP_SF)) {
        if (f80_is_nan(x) || f80_is_nan(y)) {
            r = f80_choose_nan(&env, y, x);
        } else {
            if (b == 0xf1 && p == 0 && q != 0 && !isinf(q))
                env.flags |= FP_ZE;
            v = b == 0xf1   ? q * log2l(p)
                : b == 0xf3 ? atan2l(q, p)
                            : q * log1pl(p) * 1.442695040888963407359924681001892L;
            r = put_real(v);
            if (isnan(v))
                env.flags |= FP_IE;
            else
                env.flags |= (f80_is_denormal(x) || f80_is_denormal(y) ? FP_DE : 0) |
                             (v != 0 && !isinf(v) && !(b == 0xf1 && p == 1) ? FP_PE : 0);
        }
    }
    if (!fpu_done(c, &env, false))
        return;
    fpu_set(c, 1, r);
    fpu_pop(c);
}

/* FRNDINT, FSQRT, FSCALE, and FXTRACT, which pushes. */
static void exact(struct x86 *c, unsigned b)
{
    struct f80_env env = fpu_env(c);
    struct f80 a = fpu_get(c, &env, 0), r = F80_NAN, significand = F80_NAN;
    struct f80 by = b == 0xfd ? fpu_get(c, &env, 1) : a;
    if (b == 0xf4 && !(c->empty >> fpu_slot(c, 7) & 1)) {
        env.flags |= FP_IE | FP_SF;
        env.up = !(c->empty >> fpu_slot(c, 0) & 1);
    }
    if (!(env.flags & FP_SF)) {
        if (b == 0xfa)
            r = f80_root(&env, a);
        else if (b == 0xfc)
            r = f80_integral(&env, a);
        else if (b == 0xfd)
            r = f80_scale(&env, a, by);
        else
            r = f80_extract(&env, a, &significand);
    }
    if (!fpu_done(c, &env, false))
        return;
    fpu_set(c, 0, r);
    if (b == 0xf4) {
        c->top = (c->top - 1) & 7;
        fpu_set(c, 0, significand);
    }
}

/* FCHS and FABS. */
static void sign(struct x86 *c, unsigned b)
{
    struct f80_env env = fpu_env(c);
    struct f80 v = fpu_get(c, &env, 0);
    if (!fpu_done(c, &env, false))
        return;
    if (!env.flags)
        v.e = b == 0xe0 ? v.e ^ 0x8000 : v.e & 0x7fff;
    fpu_set(c, 0, v);
}

static void test_zero(struct x86 *c)
{
    struct f80_env env = fpu_env(c);
    struct f80 v = fpu_get(c, &env, 0);
    fpu_compare(c, &env, v, (struct f80){ 0, 0 }, false, 0);
}

void fpu_function(struct x86 *c, unsigned b)
{
    switch (b) {
    case 0xe0:
    case 0xe1:
        sign(c, b);
        break;
    case 0xe4:
        test_zero(c);
        break;
    case 0xe5:
        examine(c);
        break;
    case 0xf1:
    case 0xf3:
    case 0xf9:
        two_numbers(c, b);
        break;
    case 0xf5:
    case 0xf8:
        remainder_of(c, b == 0xf5);
        break;
    case 0xf6:
    case 0xf7:
        c->top = (c->top + (b & 1 ? 1 : 7)) & 7;
        c->fsw &= (uint16_t)~C1;
        break;
    case 0xf4:
    case 0xfa:
    case 0xfc:
    case 0xfd:
        exact(c, b);
        break;
    default:
        if (b < 0xf0)
            constant(c, b);
        else
            one_number(c, b);
        break;
    }
}
