/* SSE and MMX: what moves data and what works on integers. */
#include "sse.h"

#include "fpu.h"

void simd_available(struct x86 *c, bool mmx)
{
    if (c->cr0 & CR0_EM || (!mmx && !(c->cr4 & CR4_OSFXSR)))
        x86_raise(c, X_UD);
    if (c->cr0 & CR0_TS)
        x86_raise(c, X_NM);
    if (mmx)
        fpu_pending(c);
}

union xmm simd_load(struct x86 *c, uint64_t at, unsigned size)
{
    union xmm v = { { 0 } };
    if (size == 16) {
        v.q[0] = cpu_load(&c->cpu, at, 8);
        v.q[1] = cpu_load(&c->cpu, at + 8, 8);
    } else {
        v.q[0] = cpu_load(&c->cpu, at, size);
    }
    return v;
}

void simd_store(struct x86 *c, uint64_t at, unsigned size, const union xmm *v)
{
    if (size == 16) {
        cpu_probe(&c->cpu, at, 16, CPU_WRITE);
        cpu_store(&c->cpu, at, 8, v->q[0]);
        cpu_store(&c->cpu, at + 8, 8, v->q[1]);
    } else {
        cpu_store(&c->cpu, at, size, v->q[0]);
    }
}

/* The second operand; aligned: 16 bytes must lie on 16. */
union xmm simd_rm(struct x86 *c, const struct insn *i, unsigned size, bool aligned)
{
    if (i->mod == 3)
        return c->xmm[i->rm];
    uint64_t at = ea(c, i);
    if (aligned && size == 16 && at & 15)
        x86_raise_code(c, X_GP, 0);
    return simd_load(c, at, size);
}

/* Moves: whole registers, their halves, scalars. */
static void h_move(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    unsigned op = i->op & 0xff;
    bool scalar = i->rep, aligned = op == 0x28 || op == 0x29 || op == 0x2b || op == 0xe7 ||
                                    ((op == 0x6f || op == 0x7f) && !i->rep);
    unsigned size = 16;
    if (op == 0x10 || op == 0x11)
        size = !scalar ? 16 : i->rep == 0xf3 ? 4 : 8;
    bool store = op == 0x11 || op == 0x29 || op == 0x2b || op == 0x7f || op == 0xe7;
    union xmm *reg = &c->xmm[i->reg];
    if (!store) {
        union xmm v = simd_rm(c, i, size, aligned);
        if (i->mod == 3)
            memcpy(reg, &v, size);
        else
            *reg = v;
    } else if (i->mod == 3) {
        memcpy(&c->xmm[i->rm], reg, size);
    } else {
        uint64_t at = ea(c, i);
        if (aligned && at & 15)
            x86_raise_code(c, X_GP, 0);
        simd_store(c, at, size, reg);
    }
}

/* 12, 13, 16, 17: halves; and the duplicating moves of SSE3. */
static void h_half(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    unsigned op = i->op & 0xff, high = op >= 0x16;
    union xmm *reg = &c->xmm[i->reg], v;
    if (op & 1) {
        cpu_store(&c->cpu, ea(c, i), 8, reg->q[high]);
        return;
    }
    if (i->rep == 0xf2) {
        v = simd_rm(c, i, 8, false);
        reg->q[0] = reg->q[1] = v.q[0];
    } else if (i->rep) {
        v = simd_rm(c, i, 16, true);
        for (unsigned n = 0; n < 4; n += 2)
            reg->d[n] = reg->d[n + 1] = v.d[n + high];
    } else if (i->mod == 3) {
        reg->q[high] = c->xmm[i->rm].q[!high];
    } else {
        reg->q[high] = cpu_load(&c->cpu, ea(c, i), 8);
    }
}

/* MOVD, MOVQ, PINSRW, PEXTRW, PMOVMSKB, MOVMSKPS. */
static void h_between(struct x86 *c, const struct insn *i)
{
    bool mmx = !i->opsize && (!i->rep || (i->op & 0xff) == 0xd6) && (i->op & 0xff) != 0x50;
    simd_available(c, mmx);
    union xmm *reg = &c->xmm[i->reg], m;
    unsigned size = i->osize == 8 ? 8 : 4, bits = 0;
    switch (i->op & 0xff) {
    case 0x6e:
        m = (union xmm){ .q = { rm_read(c, i, size), 0 } };
        if (mmx)
            mmx_set(c, i->reg & 7, m.q[0]);
        else
            *reg = m;
        break;
    case 0x7e:
        if (i->rep)
            *reg = (union xmm){ .q = { simd_rm(c, i, 8, false).q[0], 0 } };
        else
            rm_write(c, i, size, mmx ? mmx_get(c, i->reg & 7) : reg->q[0]);
        break;
    case 0xd6:
        if (i->rep == 0xf3) /* MOVQ2DQ, MOVDQ2Q */
            *reg = (union xmm){ .q = { mmx_get(c, i->rm & 7), 0 } };
        else if (i->rep)
            mmx_set(c, i->reg & 7, c->xmm[i->rm].q[0]);
        else if (i->mod == 3)
            c->xmm[i->rm] = (union xmm){ .q = { reg->q[0], 0 } };
        else
            cpu_store(&c->cpu, ea(c, i), 8, reg->q[0]);
        break;
    case 0xc4: {
        uint64_t v = i->mod == 3 ? reg_read(c, i, i->rm, 2) : cpu_load(&c->cpu, ea(c, i), 2);
        if (mmx) {
            unsigned shift = 16 * (i->imm & 3);
            mmx_set(c, i->reg & 7,
                    (mmx_get(c, i->reg & 7) & ~((uint64_t)0xffff << shift)) | v << shift);
        } else {
            reg->w[i->imm & 7] = (uint16_t)v;
        }
        break;
    }
    case 0xc5:
        c->cpu.r[i->reg] = mmx ? mmx_get(c, i->rm & 7) >> (16 * (i->imm & 3)) & 0xffff
                               : c->xmm[i->rm].w[i->imm & 7];
        break;
    case 0xd7:
        m = mmx ? (union xmm){ .q = { mmx_get(c, i->rm & 7), 0 } } : c->xmm[i->rm];
        for (unsigned n = 0; n < 16; n++)
            bits |= (unsigned)(m.b[n] >> 7) << n;
        c->cpu.r[i->reg] = bits;
        break;
    default:
        m = c->xmm[i->rm];
        for (unsigned n = 0; n < (i->opsize ? 2u : 4u); n++)
            bits |= (unsigned)(i->opsize ? m.q[n] >> 63 : m.d[n] >> 31) << n;
        c->cpu.r[i->reg] = bits;
        break;
    }
    if (mmx)
        mmx_touch(c);
}

static void h_logic(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    union xmm b = simd_rm(c, i, 16, true), *a = &c->xmm[i->reg];
    for (unsigned n = 0; n < 2; n++) {
        switch (i->op & 0xff) {
        case 0x54:
            a->q[n] &= b.q[n];
            break;
        case 0x55:
            a->q[n] = ~a->q[n] & b.q[n];
            break;
        case 0x56:
            a->q[n] |= b.q[n];
            break;
        default:
            a->q[n] ^= b.q[n];
            break;
        }
    }
}

static void h_shuffle(struct x86 *c, const struct insn *i)
{
    bool mmx = (i->op & 0xff) == 0x70 && !i->opsize && !i->rep;
    simd_available(c, mmx);
    unsigned imm = (unsigned)i->imm;
    union xmm b, *a = &c->xmm[i->reg], r;
    if (mmx) {
        uint64_t v = i->mod == 3 ? mmx_get(c, i->rm & 7) : cpu_load(&c->cpu, ea(c, i), 8), out = 0;
        for (unsigned n = 0; n < 4; n++)
            out |= (v >> (16 * (imm >> 2 * n & 3)) & 0xffff) << (16 * n);
        mmx_set(c, i->reg & 7, out);
        return;
    }
    b = simd_rm(c, i, 16, true);
    r = b;
    if ((i->op & 0xff) == 0xc6) {
        if (i->opsize) {
            r.q[0] = a->q[imm & 1];
            r.q[1] = b.q[imm >> 1 & 1];
        } else {
            for (unsigned n = 0; n < 4; n++)
                r.d[n] = (n < 2 ? a : &b)->d[imm >> 2 * n & 3];
        }
    } else if (!i->rep) {
        for (unsigned n = 0; n < 4; n++)
            r.d[n] = b.d[imm >> 2 * n & 3];
    } else {
        unsigned from = i->rep == 0xf3 ? 4 : 0;
        for (unsigned n = 0; n < 4; n++)
            r.w[from + n] = b.w[from + (imm >> 2 * n & 3)];
    }
    *a = r;
}

/* UNPCKLPS and the like. */
static void h_unpack(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    union xmm b = simd_rm(c, i, 16, true), a = c->xmm[i->reg], *r = &c->xmm[i->reg];
    unsigned high = i->op & 1;
    if (i->opsize) {
        r->q[0] = a.q[high];
        r->q[1] = b.q[high];
    } else {
        for (unsigned n = 0; n < 2; n++) {
            r->d[2 * n] = a.d[2 * high + n];
            r->d[2 * n + 1] = b.d[2 * high + n];
        }
    }
}

/* All the operations of two integer operands, in MMX and SSE registers. */
static void h_packed(struct x86 *c, const struct insn *i)
{
    bool mmx = !i->opsize;
    simd_available(c, mmx);
    union xmm a = { { 0 } }, b = { { 0 } };
    if (mmx) {
        a.q[0] = mmx_get(c, i->reg & 7);
        bool half = i->op >= MAP_0F + 0x60 && i->op <= MAP_0F + 0x62;
        b.q[0] = i->mod == 3 ? mmx_get(c, i->rm & 7) : cpu_load(&c->cpu, ea(c, i), half ? 4 : 8);
    } else {
        a = c->xmm[i->reg];
        b = simd_rm(c, i, 16, true);
    }
    if (!simd_packed(i->op, &a, &b, mmx ? 8 : 16))
        x86_raise(c, X_UD);
    if (mmx)
        mmx_set(c, i->reg & 7, a.q[0]);
    else
        c->xmm[i->reg] = a;
}

/* Shifts by an immediate: groups 71, 72, 73. */
static void h_shift_imm(struct x86 *c, const struct insn *i)
{
    bool mmx = !i->opsize;
    simd_available(c, mmx);
    unsigned g = group(i), size = mmx ? 8 : 16;
    union xmm a = { { 0 } }, b = { .q = { (uint64_t)i->imm, 0 } };
    if (mmx)
        a.q[0] = mmx_get(c, i->rm & 7);
    else
        a = c->xmm[i->rm];
    if ((i->op & 0xff) == 0x73 && (g & 3) == 3) {
        unsigned n = i->imm > 15 ? 16 : (unsigned)i->imm;
        union xmm r = { { 0 } };
        if (mmx)
            x86_raise(c, X_UD);
        for (unsigned k = 0; k + n < 16; k++)
            r.b[g == 7 ? k + n : k] = a.b[g == 7 ? k : k + n];
        a = r;
    } else {
        unsigned base = g == 2 ? 0xd0 : g == 4 ? 0xe0 : 0xf0;
        if (g != 2 && g != 6 && (g != 4 || (i->op & 0xff) == 0x73))
            x86_raise(c, X_UD);
        simd_packed((uint16_t)(MAP_0F + base + (i->op & 3)), &a, &b, size);
    }
    if (mmx)
        mmx_set(c, i->rm & 7, a.q[0]);
    else
        c->xmm[i->rm] = a;
}

static void h_mmx_move(struct x86 *c, const struct insn *i)
{
    simd_available(c, true);
    unsigned op = i->op & 0xff;
    if (op == 0x6f)
        mmx_set(c, i->reg & 7,
                i->mod == 3 ? mmx_get(c, i->rm & 7) : cpu_load(&c->cpu, ea(c, i), 8));
    else if (i->mod == 3)
        mmx_set(c, i->rm & 7, mmx_get(c, i->reg & 7));
    else {
        mmx_touch(c); /* even when the store faults */
        cpu_store(&c->cpu, ea(c, i), 8, mmx_get(c, i->reg & 7));
    }
}

static void h_emms(struct x86 *c, const struct insn *i)
{
    (void)i;
    simd_available(c, true);
    c->empty = 0xff;
    c->top = 0;
}

static void h_fence(struct x86 *c, const struct insn *i)
{
    (void)c;
    (void)i;
    atomic_thread_fence(memory_order_seq_cst);
}

static x86_helper *group_ae(struct x86 *c, const struct insn *i)
{
    unsigned g = group(i);
    if (i->mod == 3)
        return g >= 5 && !i->rep && !i->opsize ? h_fence : NULL;
    if (i->rep)
        return NULL;
    if (i->opsize) /* CLWB, CLFLUSHOPT */
        return g == 6 || g == 7 ? h_fence : NULL;
    switch (g) {
    case 0:
    case 1:
        return h_fxsave;
    case 2:
    case 3:
        return h_mxcsr;
    case 4:
    case 5:
        return has(c, FEATURE_XSAVE) ? h_xsave : NULL;
    case 6:
        return has(c, FEATURE_XSAVEOPT) ? h_xsave : NULL;
    case 7:
        return h_fence;
    default:
        return NULL;
    }
}

/* Moves of whole registers, halves and elements. */
static x86_helper *moves(const struct insn *i)
{
    unsigned op = i->op & 0xff;
    bool sse = i->opsize || i->rep;
    switch (op) {
    case 0x10:
    case 0x11:
        return h_move;
    case 0x28:
    case 0x29:
    case 0x2b:
        return i->rep ? NULL : h_move;
    case 0x6f:
    case 0x7f:
        return sse ? i->rep == 0xf2 ? NULL : h_move : h_mmx_move;
    case 0xe7:
        return i->opsize ? h_move : h_mmx_move;
    case 0xf0:
        return i->rep == 0xf2 ? h_move : NULL;
    case 0x12:
    case 0x13:
    case 0x16:
    case 0x17:
        return h_half;
    case 0x14:
    case 0x15:
        return i->rep ? NULL : h_unpack;
    case 0x6e:
    case 0xc4:
    case 0xc5:
    case 0xd7:
    case 0x50:
        return i->rep ? NULL : h_between;
    case 0x7e:
        return i->rep == 0xf2 ? NULL : h_between;
    case 0xd6:
        return i->opsize || (i->rep && i->mod == 3) ? h_between : NULL;
    default:
        return NULL;
    }
}

static x86_helper *map_0f(struct x86 *c, const struct insn *i)
{
    unsigned op = i->op & 0xff;
    bool sse = i->opsize || i->rep;
    x86_helper *move = moves(i);
    if (move)
        return move;
    switch (op) {
    case 0x54:
    case 0x55:
    case 0x56:
    case 0x57:
        return i->rep ? NULL : h_logic;
    case 0x70:
    case 0xc6:
        return h_shuffle;
    case 0x71:
    case 0x72:
    case 0x73:
        return i->mod == 3 && !i->rep ? h_shift_imm : NULL;
    case 0x77:
        return sse ? NULL : h_emms;
    case 0xae:
        return group_ae(c, i);
    default:
        break;
    }
    if ((op == 0x2a || (op >= 0x2c && op <= 0x2f) || (op >= 0x51 && op <= 0x53) ||
         (op >= 0x58 && op <= 0x5f) || op == 0xc2 || op == 0xe6 || op == 0xd0 || op == 0x7c ||
         op == 0x7d))
        return sse_find_float(i);
    if (!i->rep && ((op >= 0x60 && op <= 0x6d) || (op >= 0x74 && op <= 0x76) || op >= 0xd1))
        return (op == 0x6c || op == 0x6d) && !i->opsize ? NULL : h_packed;
    return NULL;
}

x86_helper *x86_find_sse(struct x86 *c, const struct insn *i)
{
    if (i->op < MAP_38)
        return map_0f(c, i);
    unsigned op = i->op & 0xff;
    if (i->op < MAP_3A && !i->rep && (op <= 0x0b || (op >= 0x1c && op <= 0x1e)))
        return has(c, FEATURE_SSSE3) ? h_packed : NULL;
    x86_helper *fn = i->rep ? NULL : sse4_find(c, i);
    return fn ? fn : crypto_find(c, i);
}
