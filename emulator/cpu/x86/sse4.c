/* SSE4.1, SSE4.2 and PALIGNR: what works on integers. */
#include "fpu.h"
#include "sse.h"

#define EACH(field, count, expr)             \
    for (unsigned n = 0; n < (count); n++) { \
        __auto_type x = a->field[n];         \
        __auto_type y = b->field[n];         \
        a->field[n] = (__typeof__(x))(expr); \
    }                                        \
    break

static void packus(union xmm *a, const union xmm *b)
{
    union xmm r;
    for (unsigned n = 0; n < 8; n++) {
        int32_t v = (int32_t)(n < 4 ? a : b)->d[n & 3];
        r.w[n] = (uint16_t)(v < 0 ? 0 : v > 0xffff ? 0xffff : v);
    }
    *a = r;
}

/* The smallest word and where it was. */
static void minimum_position(union xmm *a, const union xmm *b)
{
    unsigned at = 0;
    for (unsigned n = 1; n < 8; n++) {
        if (b->w[n] < b->w[at])
            at = n;
    }
    *a = (union xmm){ .q = { b->w[at] | (uint64_t)at << 16, 0 } };
}

static void h_packed4(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    union xmm in = simd_rm(c, i, 16, true), *a = &c->xmm[i->reg];
    const union xmm *b = &in;
    switch (i->op & 0xff) {
    case 0x28:
        EACH(q, 2, (uint64_t)((int64_t)(int32_t)x * (int32_t)y));
    case 0x29:
        EACH(q, 2, x == y ? ~(uint64_t)0 : 0);
    case 0x2a:
        *a = in;
        break;
    case 0x2b:
        packus(a, b);
        break;
    case 0x37:
        EACH(q, 2, (int64_t)x > (int64_t)y ? ~(uint64_t)0 : 0);
    case 0x38:
        EACH(b, 16, (int8_t)x < (int8_t)y ? x : y);
    case 0x39:
        EACH(d, 4, (int32_t)x < (int32_t)y ? x : y);
    case 0x3a:
        EACH(w, 8, x < y ? x : y);
    case 0x3b:
        EACH(d, 4, x < y ? x : y);
    case 0x3c:
        EACH(b, 16, (int8_t)x > (int8_t)y ? x : y);
    case 0x3d:
        EACH(d, 4, (int32_t)x > (int32_t)y ? x : y);
    case 0x3e:
        EACH(w, 8, x > y ? x : y);
    case 0x3f:
        EACH(d, 4, x > y ? x : y);
    case 0x40:
        EACH(d, 4, x * y);
    default:
        minimum_position(a, b);
        break;
    }
}

/* PBLENDVB, BLENDVPS, BLENDVPD choose by the sign bits of XMM0. */
static void h_blend_by_zero(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    union xmm b = simd_rm(c, i, 16, true), mask = c->xmm[0], *a = &c->xmm[i->reg];
    unsigned size = (i->op & 0xff) == 0x10 ? 1 : (i->op & 0xff) == 0x14 ? 4 : 8;
    for (unsigned n = 0; n < 16; n++) {
        if (mask.b[n - n % size + size - 1] & 0x80)
            a->b[n] = b.b[n];
    }
}

/* BLENDPS, BLENDPD, PBLENDW: by the immediate's bits. */
static void h_blend(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    union xmm b = simd_rm(c, i, 16, true), *a = &c->xmm[i->reg];
    unsigned op = i->op & 0xff, size = op == 0x0c ? 4 : op == 0x0d ? 8 : 2;
    for (unsigned n = 0; n < 16; n++) {
        if (i->imm >> n / size & 1)
            a->b[n] = b.b[n];
    }
}

static void h_ptest(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    union xmm b = simd_rm(c, i, 16, true);
    const union xmm *a = &c->xmm[i->reg];
    bool zero = !(a->q[0] & b.q[0]) && !(a->q[1] & b.q[1]);
    bool carry = !(~a->q[0] & b.q[0]) && !(~a->q[1] & b.q[1]);
    flags_set_arith(c, (zero ? F_Z : 0) | (carry ? F_C : 0));
}

/* PMOVSX and PMOVZX. */
static void h_widen(struct x86 *c, const struct insn *i)
{
    static const uint8_t from[6] = { 1, 1, 1, 2, 2, 4 }, to[6] = { 2, 4, 8, 4, 8, 8 };
    simd_available(c, false);
    unsigned n = i->op & 7, s = from[n], d = to[n];
    union xmm b = simd_rm(c, i, 16 / d * s, false), r = { { 0 } };
    for (unsigned k = 0; k < 16 / d; k++) {
        uint64_t v = 0;
        memcpy(&v, &b.b[k * s], s);
        if (!(i->op & 0x10))
            v = (uint64_t)sign_extend(v, s);
        memcpy(&r.b[k * d], &v, d);
    }
    c->xmm[i->reg] = r;
}

static void h_palignr(struct x86 *c, const struct insn *i)
{
    bool mmx = !i->opsize;
    unsigned size = mmx ? 8 : 16, n = (unsigned)i->imm;
    simd_available(c, mmx);
    uint8_t pair[32] = { 0 };
    union xmm r = { { 0 } }, b;
    if (mmx) {
        uint64_t low = i->mod == 3 ? mmx_get(c, i->rm & 7) : cpu_load(&c->cpu, ea(c, i), 8);
        uint64_t high = mmx_get(c, i->reg & 7);
        memcpy(pair, &low, 8);
        memcpy(pair + 8, &high, 8);
    } else {
        b = simd_rm(c, i, 16, true);
        memcpy(pair, &b, 16);
        memcpy(pair + 16, &c->xmm[i->reg], 16);
    }
    for (unsigned k = 0; k < size && n + k < 2 * size; k++)
        r.b[k] = pair[n + k];
    if (mmx)
        mmx_set(c, i->reg & 7, r.q[0]);
    else
        c->xmm[i->reg] = r;
}

/* PEXTRB, PEXTRW, PEXTRD, PEXTRQ, EXTRACTPS. */
static void h_extract(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    unsigned op = i->op & 0xff, imm = (unsigned)i->imm;
    unsigned size = op == 0x14 ? 1 : op == 0x15 ? 2 : op == 0x16 && i->osize == 8 ? 8 : 4;
    uint64_t v = 0;
    memcpy(&v, &c->xmm[i->reg].b[size * (imm & (16 / size - 1))], size);
    if (i->mod == 3)
        c->cpu.r[i->rm] = v;
    else
        cpu_store(&c->cpu, ea(c, i), size, v);
}

/* PINSRB, PINSRD, PINSRQ. */
static void h_insert(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    unsigned size = (i->op & 0xff) == 0x20 ? 1 : i->osize == 8 ? 8 : 4;
    uint64_t v = i->mod == 3 ? c->cpu.r[i->rm] : cpu_load(&c->cpu, ea(c, i), size);
    memcpy(&c->xmm[i->reg].b[size * ((unsigned)i->imm & (16 / size - 1))], &v, size);
}

static void h_insertps(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    unsigned imm = (unsigned)i->imm;
    union xmm *a = &c->xmm[i->reg];
    uint32_t v =
        i->mod == 3 ? c->xmm[i->rm].d[imm >> 6 & 3] : (uint32_t)cpu_load(&c->cpu, ea(c, i), 4);
    a->d[imm >> 4 & 3] = v;
    for (unsigned n = 0; n < 4; n++) {
        if (imm >> n & 1)
            a->d[n] = 0;
    }
}

static void h_mpsadbw(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    union xmm b = simd_rm(c, i, 16, true), a = c->xmm[i->reg], r;
    unsigned from = i->imm >> 2 & 1 ? 4 : 0, with = 4 * ((unsigned)i->imm & 3);
    for (unsigned n = 0; n < 8; n++) {
        int sum = 0;
        for (unsigned k = 0; k < 4; k++) {
            int d = a.b[from + n + k] - b.b[with + k];
            sum += d < 0 ? -d : d;
        }
        r.w[n] = (uint16_t)sum;
    }
    c->xmm[i->reg] = r;
}

static x86_helper *map_38(struct x86 *c, const struct insn *i)
{
    unsigned op = i->op & 0xff;
    if (op == 0x37)
        return has(c, FEATURE_SSE42) ? h_packed4 : NULL;
    if (!has(c, FEATURE_SSE41))
        return NULL;
    switch (op) {
    case 0x10:
    case 0x14:
    case 0x15:
        return h_blend_by_zero;
    case 0x17:
        return h_ptest;
    case 0x2a:
        return i->mod == 3 ? NULL : h_packed4;
    default:
        break;
    }
    if ((op & 0xef) >= 0x20 && (op & 0xef) <= 0x25)
        return h_widen;
    return (op >= 0x28 && op <= 0x2b) || (op >= 0x38 && op <= 0x41) ? h_packed4 : NULL;
}

x86_helper *sse4_find(struct x86 *c, const struct insn *i)
{
    unsigned op = i->op & 0xff;
    if (i->op == MAP_3A + 0x0f)
        return !i->rep && has(c, FEATURE_SSSE3) ? h_palignr : NULL;
    if (!i->opsize)
        return NULL;
    if (i->op < MAP_3A)
        return map_38(c, i);
    if (op >= 0x60 && op <= 0x63)
        return has(c, FEATURE_SSE42) ? h_pcmpstr : NULL;
    if (!has(c, FEATURE_SSE41))
        return NULL;
    switch (op) {
    case 0x08:
    case 0x09:
    case 0x0a:
    case 0x0b:
    case 0x40:
    case 0x41:
        return sse_find_float(i);
    case 0x0c:
    case 0x0d:
    case 0x0e:
        return h_blend;
    case 0x14:
    case 0x15:
    case 0x16:
    case 0x17:
        return h_extract;
    case 0x20:
    case 0x22:
        return h_insert;
    case 0x21:
        return h_insertps;
    case 0x42:
        return h_mpsadbw;
    default:
        return NULL;
    }
}
