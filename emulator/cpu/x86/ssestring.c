/* PCMPESTRM, PCMPESTRI, PCMPISTRM, PCMPISTRI. */
#include "sse.h"

struct text {
    union xmm v;
    bool words, sign;
    int length, count; /* valid elements, all elements */
};

static int element(const struct text *t, int n)
{
    if (t->words)
        return t->sign ? (int16_t)t->v.w[n] : t->v.w[n];
    return t->sign ? (int8_t)t->v.b[n] : t->v.b[n];
}

/* Length up to the first zero, or as a register says. */
static void measure(struct text *t, bool explicit_length, uint64_t value, unsigned size)
{
    if (explicit_length) {
        int64_t v = sign_extend(value, size);
        t->length = v < -t->count || v > t->count ? t->count : (int)(v < 0 ? -v : v);
        return;
    }
    for (t->length = 0; t->length < t->count && element(t, t->length); t->length++)
        ;
}

/* Does element a of the first hold against element b of the second, and what when one is not valid? */
static bool pair(const struct text *x, const struct text *y, unsigned how, int a, int b)
{
    bool va = a < x->length, vb = b < y->length;
    if (!va || !vb) {
        if (how < 2)
            return false;
        return how == 2 ? !va && !vb : !va;
    }
    int p = element(x, a), q = element(y, b);
    if (how == 1)
        return a & 1 ? q <= p : q >= p;
    return p == q;
}

static unsigned aggregate(const struct text *x, const struct text *y, unsigned how)
{
    unsigned result = 0;
    int n = x->count;
    for (int j = 0; j < n; j++) {
        bool yes = how >= 2;
        switch (how) {
        case 0:
            for (int k = 0; k < n; k++)
                yes |= pair(x, y, how, k, j);
            break;
        case 1:
            for (int k = 0; k < n; k += 2)
                yes |= pair(x, y, how, k, j) && pair(x, y, how, k + 1, j);
            break;
        case 2:
            yes = pair(x, y, how, j, j);
            break;
        default:
            for (int k = 0; k + j < n; k++)
                yes &= pair(x, y, how, k, j + k);
            break;
        }
        result |= (unsigned)yes << j;
    }
    return result;
}

void h_pcmpstr(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    unsigned imm = (unsigned)i->imm, op = i->op & 0xff, size = i->osize == 8 ? 8 : 4;
    bool words = imm & 1, by_register = op < 0x62;
    struct text x = { .words = words, .sign = imm & 2, .count = words ? 8 : 16 }, y = x;
    x.v = c->xmm[i->reg];
    y.v = simd_rm(c, i, 16, false);
    measure(&x, by_register, c->cpu.r[RAX], size);
    measure(&y, by_register, c->cpu.r[RDX], size);
    unsigned all = (1u << x.count) - 1, r = aggregate(&x, &y, imm >> 2 & 3);
    if (imm >> 4 & 1)
        r ^= imm >> 5 & 1 ? (1u << y.length) - 1 : all;
    if (op & 1) {
        unsigned at = (unsigned)x.count;
        if (r)
            at = imm & 0x40 ? 31 - (unsigned)__builtin_clz(r) : (unsigned)__builtin_ctz(r);
        c->cpu.r[RCX] = at;
    } else {
        union xmm m = { .q = { r, 0 } };
        for (int n = 0; imm & 0x40 && n < x.count; n++) {
            if (words)
                m.w[n] = r >> n & 1 ? 0xffff : 0;
            else
                m.b[n] = r >> n & 1 ? 0xff : 0;
        }
        c->xmm[0] = m;
    }
    flags_set_arith(c, (r ? F_C : 0) | (y.length < y.count ? F_Z : 0) |
                           (x.length < x.count ? F_S : 0) | (r & 1 ? F_O : 0));
}
