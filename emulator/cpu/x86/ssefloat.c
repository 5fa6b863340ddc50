/* SSE floating point, by the host's own arithmetic at the rounding that MXCSR asks for. Exceptions
 * are neither noted nor raised. */
#include "fpu.h"
#include "sse.h"

#include <fenv.h>
#include <math.h>

static const int roundings[4] = { FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO };

static void begin(struct x86 *c)
{
    if (c->cr0 & CR0_EM || !(c->cr4 & CR4_OSFXSR))
        x86_raise(c, X_UD);
    if (c->cr0 & CR0_TS)
        x86_raise(c, X_NM);
}

/* The first operand that is no number, made quiet; as the processor chooses. */
#define NUMBERS(type, bits, quiet, name)                                               \
    static type name(unsigned op, type a, type b)                                      \
    {                                                                                  \
        switch (op) {                                                                  \
        case 0x5d:                                                                     \
            return a < b ? a : b;                                                      \
        case 0x5f:                                                                     \
            return a > b ? a : b;                                                      \
        default:                                                                       \
            break;                                                                     \
        }                                                                              \
        if (a != a || b != b) {                                                        \
            bits v;                                                                    \
            type n = a != a ? a : b;                                                   \
            memcpy(&v, &n, sizeof v);                                                  \
            v |= (bits)1 << quiet;                                                     \
            memcpy(&n, &v, sizeof v);                                                  \
            return n;                                                                  \
        }                                                                              \
        type r = op == 0x58 ? a + b : op == 0x59 ? a * b : op == 0x5c ? a - b : a / b; \
        if (r != r) {                                                                  \
            bits v = (bits)((bits)-1 << quiet);                                        \
            memcpy(&r, &v, sizeof v);                                                  \
        }                                                                              \
        return r;                                                                      \
    }
NUMBERS(float, uint32_t, 22, single)
NUMBERS(double, uint64_t, 51, twice)

static double root(double x)
{
    union xmm v = { .n = { x, 0 } };
    if (x != x) {
        v.q[0] |= (uint64_t)1 << 51;
        return v.n[0];
    }
    if (x < 0) {
        v.q[0] = 0xfff8000000000000;
        return v.n[0];
    }
    return sqrt(x);
}

static float rootf(float x)
{
    union xmm v = { .f = { x } };
    if (x != x) {
        v.d[0] |= 1u << 22;
        return v.f[0];
    }
    if (x < 0) {
        v.d[0] = 0xffc00000;
        return v.f[0];
    }
    return sqrtf(x);
}

static float one_float(unsigned op, float a, float b)
{
    switch (op) {
    case 0x51:
        return rootf(b);
    case 0x52:
        return 1 / rootf(b);
    case 0x53:
        return 1 / b;
    default:
        return single(op, a, b);
    }
}

static void h_arith(struct x86 *c, const struct insn *i)
{
    begin(c);
    unsigned op = i->op & 0xff;
    bool wide = i->opsize || i->rep == 0xf2;
    unsigned count = i->rep ? 1 : wide ? 2 : 4;
    union xmm b = simd_rm(c, i, i->rep ? (wide ? 8 : 4) : 16, true), *a = &c->xmm[i->reg];
    fesetround(roundings[c->mxcsr >> 13 & 3]);
    for (unsigned n = 0; n < count; n++) {
        if (wide)
            a->n[n] = op == 0x51 ? root(b.n[n]) : twice(op, a->n[n], b.n[n]);
        else
            a->f[n] = one_float(op, a->f[n], b.f[n]);
    }
    fesetround(FE_TONEAREST);
}

/* ADDSUBPS, HADDPS, HSUBPS and the same for doubles. */
static void h_sse3(struct x86 *c, const struct insn *i)
{
    begin(c);
    unsigned op = i->op & 0xff, add = 0x58, sub = 0x5c, h = op == 0x7d ? sub : add;
    union xmm b = simd_rm(c, i, 16, true), a = c->xmm[i->reg], r;
    if (i->opsize) {
        r.n[0] = op == 0xd0 ? twice(sub, a.n[0], b.n[0]) : twice(h, a.n[0], a.n[1]);
        r.n[1] = op == 0xd0 ? twice(add, a.n[1], b.n[1]) : twice(h, b.n[0], b.n[1]);
    } else {
        for (unsigned n = 0; n < 4; n++) {
            const union xmm *s = n < 2 ? &a : &b;
            r.f[n] = op == 0xd0 ? single(n & 1 ? add : sub, a.f[n], b.f[n])
                                : single(h, s->f[2 * n & 3], s->f[(2 * n & 3) + 1]);
        }
    }
    c->xmm[i->reg] = r;
}

static bool compare(unsigned how, double a, double b)
{
    bool yes;
    switch (how & 3) {
    case 0:
        yes = a == b;
        break;
    case 1:
        yes = a < b;
        break;
    case 2:
        yes = a <= b;
        break;
    default:
        yes = a != a || b != b;
        break;
    }
    return yes != (how >> 2 & 1);
}

static void h_compare(struct x86 *c, const struct insn *i)
{
    begin(c);
    bool wide = i->opsize || i->rep == 0xf2;
    unsigned count = i->rep ? 1 : wide ? 2 : 4, how = i->imm & 7;
    union xmm b = simd_rm(c, i, i->rep ? (wide ? 8 : 4) : 16, true), *a = &c->xmm[i->reg];
    for (unsigned n = 0; n < count; n++) {
        if (wide)
            a->q[n] = compare(how, a->n[n], b.n[n]) ? ~(uint64_t)0 : 0;
        else
            a->d[n] = compare(how, (double)a->f[n], (double)b.f[n]) ? ~0u : 0;
    }
}

static void h_comis(struct x86 *c, const struct insn *i)
{
    begin(c);
    union xmm v = simd_rm(c, i, i->opsize ? 8 : 4, false);
    double a = i->opsize ? c->xmm[i->reg].n[0] : (double)c->xmm[i->reg].f[0];
    double b = i->opsize ? v.n[0] : (double)v.f[0];
    flags_set_arith(c, a != a || b != b ? F_Z | F_P | F_C : a < b ? F_C : a == b ? F_Z : 0);
}

/* To an integer of `size` bytes; what does not fit is the smallest number. */
static uint64_t to_int(struct x86 *c, double v, unsigned size, bool cut)
{
    if (cut) {
        v = trunc(v);
    } else {
        fesetround(roundings[c->mxcsr >> 13 & 3]);
        v = rint(v);
        fesetround(FE_TONEAREST);
    }
    double top = size == 8 ? 0x1p63 : 0x1p31;
    if (!(v >= -top && v < top))
        return (uint64_t)1 << (size * 8 - 1);
    return (uint64_t)(int64_t)v & width_mask(size);
}

static void h_from_to_int(struct x86 *c, const struct insn *i)
{
    begin(c);
    bool wide = i->opsize || i->rep == 0xf2;
    unsigned size = i->osize == 8 ? 8 : 4;
    union xmm *reg = &c->xmm[i->reg], v;
    if ((i->op & 0xff) != 0x2a) {
        v = simd_rm(c, i, wide ? 8 : 4, false);
        reg_write(c, i, i->reg, size,
                  to_int(c, wide ? v.n[0] : (double)v.f[0], size, !(i->op & 1)));
        return;
    }
    int64_t n = sign_extend(rm_read(c, i, size), size);
    fesetround(roundings[c->mxcsr >> 13 & 3]);
    if (wide)
        reg->n[0] = (double)n;
    else
        reg->f[0] = (float)n;
    fesetround(FE_TONEAREST);
}

/* The forms of CVTPI2PS and CVTPS2PI, with MMX registers. */
static void h_mmx_int(struct x86 *c, const struct insn *i)
{
    begin(c);
    union xmm v, *reg = &c->xmm[i->reg];
    if ((i->op & 0xff) == 0x2a) {
        uint64_t p = i->mod == 3 ? mmx_get(c, i->rm & 7) : cpu_load(&c->cpu, ea(c, i), 8);
        for (unsigned n = 0; n < 2; n++) {
            if (i->opsize)
                reg->n[n] = (int32_t)(p >> (32 * n));
            else
                reg->f[n] = (float)(int32_t)(p >> (32 * n));
        }
        return;
    }
    v = simd_rm(c, i, i->opsize ? 16 : 8, i->opsize);
    uint64_t r = 0;
    for (unsigned n = 0; n < 2; n++)
        r |= to_int(c, i->opsize ? v.n[n] : (double)v.f[n], 4, !(i->op & 1)) << (32 * n);
    mmx_set(c, i->reg & 7, r);
}

/* 5A, 5B, E6: between singles, doubles and packed integers. */
static void h_convert(struct x86 *c, const struct insn *i)
{
    begin(c);
    unsigned op = i->op & 0xff;
    bool narrow = (op == 0x5a && !i->opsize && i->rep != 0xf2) || (op == 0xe6 && i->rep == 0xf3);
    union xmm *reg = &c->xmm[i->reg], v, r = { { 0 } };
    v = simd_rm(c, i, op == 0x5a && i->rep ? (narrow ? 4 : 8) : narrow ? 8 : 16, !narrow);
    fesetround(roundings[c->mxcsr >> 13 & 3]);
    if (op == 0x5a) {
        unsigned count = i->rep ? 1 : 2;
        if (i->rep)
            r = *reg;
        for (unsigned n = 0; n < count; n++) {
            if (narrow)
                r.n[n] = (double)v.f[n];
            else
                r.f[n] = (float)v.n[n];
        }
    } else if (op == 0x5b) {
        for (unsigned n = 0; n < 4; n++) {
            if (!i->opsize && !i->rep)
                r.f[n] = (float)(int32_t)v.d[n];
            else
                r.d[n] = (uint32_t)to_int(c, (double)v.f[n], 4, i->rep);
        }
    } else {
        for (unsigned n = 0; n < 2; n++) {
            if (narrow)
                r.n[n] = (int32_t)v.d[n];
            else
                r.d[n] = (uint32_t)to_int(c, v.n[n], 4, i->opsize);
        }
    }
    fesetround(FE_TONEAREST);
    *reg = r;
}

x86_helper *sse_find_float(const struct insn *i)
{
    unsigned op = i->op & 0xff;
    switch (op) {
    case 0x2a:
    case 0x2c:
    case 0x2d:
        return i->rep ? h_from_to_int : h_mmx_int;
    case 0x2e:
    case 0x2f:
        return i->rep ? NULL : h_comis;
    case 0x5a:
        return h_convert;
    case 0x5b:
        return i->rep == 0xf2 ? NULL : h_convert;
    case 0xe6:
        return i->rep || i->opsize ? h_convert : NULL;
    case 0xc2:
        return h_compare;
    case 0x7c:
    case 0x7d:
    case 0xd0:
        return i->opsize || i->rep == 0xf2 ? h_sse3 : NULL;
    default:
        return h_arith;
    }
}
