/* SSE floating point instructions: operands and results; ssemath.c does the sums. */
#include "fpu.h"
#include "ssemath.h"

#include <math.h>

static bool is_double(const struct insn *i)
{
    return i->opsize || i->rep == 0xf2;
}

static void h_arith(struct x86 *c, const struct insn *i)
{
    struct sse_math m = math_begin(c);
    unsigned op = i->op & 0xff;
    bool wide = is_double(i);
    unsigned count = i->rep ? 1 : wide ? 2 : 4;
    union xmm b = simd_rm(c, i, i->rep ? (wide ? 8 : 4) : 16, true), a = c->xmm[i->reg];
    for (unsigned n = 0; n < count; n++) {
        if (wide)
            a.n[n] = math_double(&m, op, a.n[n], b.n[n]);
        else
            a.f[n] = math_single(&m, op, a.f[n], b.f[n]);
    }
    math_end(c, &m);
    c->xmm[i->reg] = a;
}

/* RSQRTPS and RCPPS promise twelve bits and no exceptions; they get more. */
static float estimate(unsigned op, float v)
{
    union xmm x = { .f = { v } };
    if (v != v) {
        x.d[0] |= 1u << 22;
        return x.f[0];
    }
    if (!(x.d[0] >> 23 & 0xff))
        return copysignf(INFINITY, v);
    if (op == 0x52 && v < 0) {
        x.d[0] = 0xffc00000;
        return x.f[0];
    }
    float r = op == 0x52 ? 1 / sqrtf(v) : 1 / v;
    return fabsf(r) < 0x1p-126f ? copysignf(0, r) : r;
}

static void h_estimate(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    union xmm b = simd_rm(c, i, i->rep ? 4 : 16, true), *a = &c->xmm[i->reg];
    for (unsigned n = 0; n < (i->rep ? 1u : 4u); n++)
        a->f[n] = estimate(i->op & 0xff, b.f[n]);
}

/* ADDSUBPS, HADDPS, HSUBPS and the same for doubles. */
static void h_sse3(struct x86 *c, const struct insn *i)
{
    struct sse_math m = math_begin(c);
    unsigned op = i->op & 0xff, add = 0x58, sub = 0x5c, h = op == 0x7d ? sub : add;
    union xmm b = simd_rm(c, i, 16, true), a = c->xmm[i->reg], r;
    if (i->opsize) {
        r.n[0] =
            op == 0xd0 ? math_double(&m, sub, a.n[0], b.n[0]) : math_double(&m, h, a.n[0], a.n[1]);
        r.n[1] =
            op == 0xd0 ? math_double(&m, add, a.n[1], b.n[1]) : math_double(&m, h, b.n[0], b.n[1]);
    } else {
        for (unsigned n = 0; n < 4; n++) {
            const union xmm *s = n < 2 ? &a : &b;
            r.f[n] = op == 0xd0 ? math_single(&m, n & 1 ? add : sub, a.f[n], b.f[n])
                                : math_single(&m, h, s->f[2 * n & 3], s->f[(2 * n & 3) + 1]);
        }
    }
    math_end(c, &m);
    c->xmm[i->reg] = r;
}

/* By the immediate: equal, less, less or equal, unordered; four more say the opposite. */
static bool holds(unsigned how, int r)
{
    bool yes;
    switch (how & 3) {
    case 0:
        yes = r == 0;
        break;
    case 1:
        yes = r == -1;
        break;
    case 2:
        yes = r <= 0;
        break;
    default:
        yes = r == 2;
        break;
    }
    return yes != (how >> 2 & 1);
}

static void h_compare(struct x86 *c, const struct insn *i)
{
    struct sse_math m = math_begin(c);
    bool wide = is_double(i), quiet = !((i->imm & 3) == 1 || (i->imm & 3) == 2);
    unsigned count = i->rep ? 1 : wide ? 2 : 4, how = i->imm & 7;
    union xmm b = simd_rm(c, i, i->rep ? (wide ? 8 : 4) : 16, true), a = c->xmm[i->reg];
    for (unsigned n = 0; n < count; n++) {
        if (wide)
            a.q[n] = holds(how, math_compare_double(&m, a.n[n], b.n[n], quiet)) ? ~(uint64_t)0 : 0;
        else
            a.d[n] = holds(how, math_compare_single(&m, a.f[n], b.f[n], quiet)) ? ~0u : 0;
    }
    math_end(c, &m);
    c->xmm[i->reg] = a;
}

static void h_comis(struct x86 *c, const struct insn *i)
{
    struct sse_math m = math_begin(c);
    bool quiet = !(i->op & 1);
    union xmm v = simd_rm(c, i, i->opsize ? 8 : 4, false), a = c->xmm[i->reg];
    int r = i->opsize ? math_compare_double(&m, a.n[0], v.n[0], quiet)
                      : math_compare_single(&m, a.f[0], v.f[0], quiet);
    math_end(c, &m);
    flags_set_arith(c, r == 2 ? F_Z | F_P | F_C : r < 0 ? F_C : r ? 0 : F_Z);
}

static void h_from_to_int(struct x86 *c, const struct insn *i)
{
    struct sse_math m = math_begin(c);
    bool wide = is_double(i);
    unsigned size = i->osize == 8 ? 8 : 4;
    union xmm v;
    if ((i->op & 0xff) != 0x2a) {
        v = simd_rm(c, i, wide ? 8 : 4, false);
        bool cut = !(i->op & 1);
        uint64_t n =
            wide ? math_int_double(&m, v.n[0], size, cut) : math_int_single(&m, v.f[0], size, cut);
        math_end(c, &m);
        reg_write(c, i, i->reg, size, n);
        return;
    }
    int64_t n = sign_extend(rm_read(c, i, size), size);
    v = c->xmm[i->reg];
    if (wide)
        v.n[0] = math_double_of(&m, n);
    else
        v.f[0] = math_single_of(&m, n);
    math_end(c, &m);
    c->xmm[i->reg] = v;
}

/* The forms of CVTPI2PS and CVTPS2PI, with MMX registers. */
static void h_mmx_int(struct x86 *c, const struct insn *i)
{
    struct sse_math m = math_begin(c);
    union xmm v = c->xmm[i->reg];
    bool from_memory = i->mod != 3;
    if ((i->op & 0xff) == 0x2a) {
        if (!from_memory)
            fpu_pending(c);
        uint64_t p = from_memory ? cpu_load(&c->cpu, ea(c, i), 8) : mmx_get(c, i->rm & 7);
        for (unsigned n = 0; n < 2; n++) {
            if (i->opsize)
                v.n[n] = (int32_t)(p >> (32 * n));
            else
                v.f[n] = math_single_of(&m, (int32_t)(p >> (32 * n)));
        }
        if (!from_memory)
            mmx_touch(c); /* even when #XM follows */
        math_end(c, &m);
        c->xmm[i->reg] = v;
        return;
    }
    fpu_pending(c);
    v = simd_rm(c, i, i->opsize ? 16 : 8, i->opsize);
    uint64_t r = 0;
    bool cut = !(i->op & 1);
    for (unsigned n = 0; n < 2; n++)
        r |= (i->opsize ? math_int_double(&m, v.n[n], 4, cut) : math_int_single(&m, v.f[n], 4, cut))
             << (32 * n);
    mmx_touch(c);
    math_end(c, &m);
    mmx_set(c, i->reg & 7, r);
}

/* 5A: between singles and doubles. */
static void h_convert(struct x86 *c, const struct insn *i)
{
    struct sse_math m = math_begin(c);
    bool narrow = is_double(i);
    unsigned count = i->rep ? 1 : 2;
    union xmm v = simd_rm(c, i, count * (narrow ? 8 : 4), narrow), r = { { 0 } };
    if (i->rep)
        r = c->xmm[i->reg];
    for (unsigned n = 0; n < count; n++) {
        if (narrow)
            r.f[n] = math_narrow(&m, v.n[n]);
        else
            r.n[n] = math_widen(&m, v.f[n]);
    }
    math_end(c, &m);
    c->xmm[i->reg] = r;
}

/* 5B, E6: packed integers and numbers. */
static void h_convert_packed(struct x86 *c, const struct insn *i)
{
    struct sse_math m = math_begin(c);
    bool four = (i->op & 0xff) == 0x5b, widen = !four && i->rep == 0xf3;
    union xmm v = simd_rm(c, i, widen ? 8 : 16, !widen), r = { { 0 } };
    for (unsigned n = 0; n < (four ? 4u : 2u); n++) {
        if (four && !i->opsize && !i->rep)
            r.f[n] = math_single_of(&m, (int32_t)v.d[n]);
        else if (four)
            r.d[n] = (uint32_t)math_int_single(&m, v.f[n], 4, i->rep);
        else if (widen)
            r.n[n] = (int32_t)v.d[n];
        else
            r.d[n] = (uint32_t)math_int_double(&m, v.n[n], 4, i->opsize);
    }
    math_end(c, &m);
    c->xmm[i->reg] = r;
}

/* ROUNDPS, ROUNDPD, ROUNDSS, ROUNDSD. */
static void h_round(struct x86 *c, const struct insn *i)
{
    struct sse_math m = math_begin(c);
    bool wide = i->op & 1, scalar = i->op & 2, exact = i->imm & 8;
    unsigned size = wide ? 8 : 4;
    union xmm v = simd_rm(c, i, scalar ? size : 16, true), r = c->xmm[i->reg];
    if (!(i->imm & 4))
        m.rounding = i->imm & 3;
    for (unsigned n = 0; n < (scalar ? 1 : 16 / size); n++) {
        if (wide)
            r.n[n] = math_round_double(&m, v.n[n], exact);
        else
            r.f[n] = math_round_single(&m, v.f[n], exact);
    }
    math_end(c, &m);
    c->xmm[i->reg] = r;
}

/* DPPS, DPPD: each step's exceptions come before the next step. */
static void h_dot(struct x86 *c, const struct insn *i)
{
    struct sse_math m = math_begin(c);
    bool wide = i->op & 1;
    unsigned imm = (unsigned)i->imm;
    union xmm b = simd_rm(c, i, 16, true), a = c->xmm[i->reg], r = { { 0 } };
    for (unsigned n = 0; n < (wide ? 2u : 4u); n++) {
        if (wide)
            a.n[n] = imm >> (4 + n) & 1 ? math_double(&m, 0x59, a.n[n], b.n[n]) : 0;
        else
            a.f[n] = imm >> (4 + n) & 1 ? math_single(&m, 0x59, a.f[n], b.f[n]) : 0;
    }
    math_end(c, &m);
    union xmm p = a; /* each element adds up on its own: in which order shows in NaNs */
    for (unsigned n = 0; n < (wide ? 2u : 4u); n++) {
        if (wide)
            p.n[n] = math_double(&m, 0x58, a.n[n], a.n[n ^ 1]);
        else
            p.f[n] = math_single(&m, 0x58, a.f[n ^ 1], a.f[n]);
    }
    math_end(c, &m);
    for (unsigned n = 0; n < 4; n++) {
        if (wide && n < 2 && imm >> n & 1)
            r.n[n] = p.n[n];
        float sum = wide ? 0 : math_single(&m, 0x58, p.f[n], p.f[n ^ 2]);
        if (!wide && imm >> n & 1)
            r.f[n] = sum;
    }
    math_end(c, &m);
    c->xmm[i->reg] = r;
}

x86_helper *sse_find_float(const struct insn *i)
{
    if (i->op >= MAP_3A)
        return (i->op & 0xff) < 0x40 ? h_round : h_dot;
    unsigned op = i->op & 0xff;
    switch (op) {
    case 0x2a:
    case 0x2c:
    case 0x2d:
        return i->rep ? h_from_to_int : h_mmx_int;
    case 0x2e:
    case 0x2f:
        return i->rep ? NULL : h_comis;
    case 0x52:
    case 0x53:
        return i->opsize || i->rep == 0xf2 ? NULL : h_estimate;
    case 0x5a:
        return h_convert;
    case 0x5b:
        return i->rep == 0xf2 ? NULL : h_convert_packed;
    case 0xe6:
        return i->rep || i->opsize ? h_convert_packed : NULL;
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
