/* x87, by the host's long double. Precision control is not followed and exceptions are not raised. */
#include "fpu.h"
#include "sse.h"

#include <math.h>

typedef long double real;

static real get_real(struct f80 v)
{
#if defined(__x86_64__) || defined(__i386__)
    real r = 0;
    memcpy(&r, &v, 10);
    return r;
#else
    unsigned e = v.e & 0x7fff;
    real r = e == 0x7fff ? (v.m << 1 ? (real)NAN : (real)INFINITY)
                         : ldexpl((real)v.m, (int)e - 16383 - 63);
    return v.e & 0x8000 ? -r : r;
#endif
}

static struct f80 put_real(real r)
{
    struct f80 v = { 0, 0 };
#if defined(__x86_64__) || defined(__i386__)
    memcpy(&v, &r, 10);
#else
    int e;
    uint16_t sign = signbit(r) ? 0x8000 : 0;
    if (isnan(r) || isinf(r))
        return (struct f80){ isnan(r) ? (uint64_t)3 << 62 : (uint64_t)1 << 63, 0x7fff | sign };
    real m = frexpl(fabsl(r), &e);
    if (m != 0)
        v = (struct f80){ (uint64_t)ldexpl(m, 64), (uint16_t)((e + 16382) & 0x7fff) };
    v.e |= sign;
#endif
    return v;
}

uint64_t mmx_get(const struct x86 *c, unsigned n)
{
    return c->st[n].m;
}

void mmx_set(struct x86 *c, unsigned n, uint64_t value)
{
    c->st[n] = (struct f80){ value, 0xffff };
    c->top = 0;
    c->empty = 0;
}

static unsigned slot(const struct x86 *c, unsigned n)
{
    return (c->top + n) & 7;
}

static real st(struct x86 *c, unsigned n)
{
    if (c->empty >> slot(c, n) & 1)
        c->fsw |= 0x41;
    return get_real(c->st[slot(c, n)]);
}

static void set_st(struct x86 *c, unsigned n, real v)
{
    c->st[slot(c, n)] = put_real(v);
    c->empty &= (uint8_t) ~(1u << slot(c, n));
}

static void fpush(struct x86 *c, real v)
{
    c->top = (c->top - 1) & 7;
    set_st(c, 0, v);
}

static void fpop(struct x86 *c)
{
    c->empty |= (uint8_t)(1u << c->top);
    c->top = (c->top + 1) & 7;
}

static void compare(struct x86 *c, real a, real b)
{
    c->fsw &= (uint16_t)~0x4500;
    c->fsw |= a != a || b != b ? 0x4500 : a < b ? 0x100 : a == b ? 0x4000 : 0;
}

static void compare_flags(struct x86 *c, real a, real b)
{
    flags_set_arith(c, a != a || b != b ? F_Z | F_P | F_C : a < b ? F_C : a == b ? F_Z : 0);
}

static real arith(struct x86 *c, unsigned op, real a, real b)
{
    if ((op == 6 && b == 0) || (op == 7 && a == 0))
        c->fsw |= 4;
    switch (op) {
    case 0:
        return a + b;
    case 1:
        return a * b;
    case 4:
        return a - b;
    case 5:
        return b - a;
    case 6:
        return a / b;
    default:
        return b / a;
    }
}

static real rounded(const struct x86 *c, real v)
{
    switch (c->fcw >> 10 & 3) {
    case 0:
        return rintl(v);
    case 1:
        return floorl(v);
    case 2:
        return ceill(v);
    default:
        return truncl(v);
    }
}

static uint64_t to_int(struct x86 *c, real v, unsigned size)
{
    real top = ldexpl(1, (int)size * 8 - 1);
    if (!(v >= -top && v < top)) {
        c->fsw |= 1;
        return (uint64_t)1 << (size * 8 - 1);
    }
    return (uint64_t)(int64_t)v & width_mask(size);
}

static uint16_t status(const struct x86 *c)
{
    return (uint16_t)((c->fsw & ~0x3800) | c->top << 11);
}

static uint16_t tags(const struct x86 *c)
{
    unsigned t = 0;
    for (unsigned n = 0; n < 8; n++)
        t |= (c->empty >> n & 1 ? 3u : 0) << (2 * n);
    return (uint16_t)t;
}

static void init(struct x86 *c)
{
    c->fcw = 0x37f;
    c->fsw = 0;
    c->top = 0;
    c->empty = 0xff;
}

static real load_real(struct x86 *c, uint64_t at, unsigned size)
{
    union xmm v = { .q = { cpu_load(&c->cpu, at, size), 0 } };
    return size == 4 ? (real)v.f[0] : (real)v.n[0];
}

static void store_real(struct x86 *c, uint64_t at, unsigned size, real r)
{
    union xmm v = { { 0 } };
    if (size == 4)
        v.f[0] = (float)r;
    else
        v.n[0] = (double)r;
    cpu_store(&c->cpu, at, size, v.q[0]);
}

static real load_int(struct x86 *c, uint64_t at, unsigned size)
{
    return (real)sign_extend(cpu_load(&c->cpu, at, size), size);
}

/* D8, DA, DC, DE with memory: arithmetic with a number there. */
static void memory_arith(struct x86 *c, const struct insn *i, uint64_t at)
{
    unsigned g = group(i);
    real b = i->op == 0xd8   ? load_real(c, at, 4)
             : i->op == 0xdc ? load_real(c, at, 8)
                             : load_int(c, at, i->op == 0xda ? 4 : 2);
    if (g == 2 || g == 3) {
        compare(c, st(c, 0), b);
        if (g == 3)
            fpop(c);
    } else {
        set_st(c, 0, arith(c, g, st(c, 0), b));
    }
}

static void environment(struct x86 *c, uint64_t at, bool store)
{
    if (store) {
        uint32_t v[7] = { c->fcw | 0xffff0000,
                          status(c) | 0xffff0000,
                          tags(c) | 0xffff0000,
                          (uint32_t)c->fip,
                          0,
                          (uint32_t)c->fdp,
                          0 };
        for (unsigned n = 0; n < 7; n++)
            cpu_store(&c->cpu, at + 4 * n, 4, v[n]);
        return;
    }
    c->fcw = (uint16_t)cpu_load(&c->cpu, at, 2);
    c->fsw = (uint16_t)cpu_load(&c->cpu, at + 4, 2);
    c->top = c->fsw >> 11 & 7;
    uint64_t t = cpu_load(&c->cpu, at + 8, 2);
    c->empty = 0;
    for (unsigned n = 0; n < 8; n++)
        c->empty |= (uint8_t)((t >> (2 * n) & 3) == 3 ? 1u << n : 0);
}

static struct f80 load80(struct x86 *c, uint64_t at)
{
    return (struct f80){ cpu_load(&c->cpu, at, 8), (uint16_t)cpu_load(&c->cpu, at + 8, 2) };
}

static void store80(struct x86 *c, uint64_t at, struct f80 v)
{
    cpu_store(&c->cpu, at, 8, v.m);
    cpu_store(&c->cpu, at + 8, 2, v.e);
}

/* FNSAVE, FRSTOR. */
static void whole(struct x86 *c, uint64_t at, bool store)
{
    environment(c, at, store);
    for (unsigned n = 0; n < 8; n++) {
        if (store)
            store80(c, at + 28 + 10 * n, c->st[slot(c, n)]);
        else
            c->st[slot(c, n)] = load80(c, at + 28 + 10 * n);
    }
    if (store)
        init(c);
}

/* The odd opcodes with memory: loads, stores and control. */
static void memory_move(struct x86 *c, const struct insn *i, uint64_t at)
{
    unsigned g = group(i), op = i->op;
    bool integer = op == 0xdb || op == 0xdf;
    unsigned size = op == 0xd9 || op == 0xdb ? 4 : op == 0xdd ? 8 : 2;
    if (g < 4 && !(g == 1 && !integer && op != 0xdd)) {
        if (g == 0) {
            fpush(c, integer ? load_int(c, at, size) : load_real(c, at, size));
            return;
        }
        if (g == 1 && op == 0xdd)
            cpu_store(&c->cpu, at, 8, to_int(c, truncl(st(c, 0)), 8));
        else if (integer)
            cpu_store(&c->cpu, at, size,
                      to_int(c, g == 1 ? truncl(st(c, 0)) : rounded(c, st(c, 0)), size));
        else
            store_real(c, at, size, st(c, 0));
        if (g & 1)
            fpop(c);
        return;
    }
    switch (op << 4 | g) {
    case 0xd94:
    case 0xd96:
        environment(c, at, g == 6);
        break;
    case 0xd95:
        c->fcw = (uint16_t)cpu_load(&c->cpu, at, 2);
        break;
    case 0xd97:
        cpu_store(&c->cpu, at, 2, c->fcw);
        break;
    case 0xdb5: {
        struct f80 v = load80(c, at);
        fpush(c, 0);
        c->st[c->top] = v;
        break;
    }
    case 0xdb7:
        store80(c, at, c->st[c->top]);
        fpop(c);
        break;
    case 0xdd4:
    case 0xdd6:
        whole(c, at, g == 6);
        break;
    case 0xdd7:
        cpu_store(&c->cpu, at, 2, status(c));
        break;
    case 0xdf5:
        fpush(c, load_int(c, at, 8));
        break;
    case 0xdf7:
        cpu_store(&c->cpu, at, 8, to_int(c, rounded(c, st(c, 0)), 8));
        fpop(c);
        break;
    default:
        x86_raise(c, X_UD);
    }
}

static void examine(struct x86 *c)
{
    struct f80 v = c->st[c->top];
    unsigned e = v.e & 0x7fff, k;
    if (c->empty >> c->top & 1)
        k = 0x4100;
    else if (e == 0x7fff)
        k = v.m << 1 ? 0x100 : 0x500;
    else
        k = e ? 0x400 : v.m ? 0x4400 : 0x4000;
    c->fsw = (uint16_t)((c->fsw & ~0x4700) | k | (v.e >> 15) << 9);
}

static void remainder_of(struct x86 *c, bool nearest)
{
    real a = st(c, 0), b = st(c, 1), q = nearest ? rintl(a / b) : truncl(a / b);
    uint64_t n = fabsl(q) < 0x1p63L ? (uint64_t)fabsl(q) : 0;
    c->fsw = (uint16_t)((c->fsw & ~0x4700) | (n & 1) << 9 | (n >> 1 & 1) << 14 | (n >> 2 & 1) << 8);
    set_st(c, 0, nearest ? remainderl(a, b) : fmodl(a, b));
}

/* D9 E0 to FF. */
static void functions(struct x86 *c, unsigned b)
{
    static const real constants[7] = { 1,
                                       3.321928094887362347870319429489390L,
                                       1.442695040888963407359924681001892L,
                                       3.141592653589793238462643383279503L,
                                       0.301029995663981195213738894724493L,
                                       0.693147180559945309417232121458177L,
                                       0 };
    real a = b < 0xe8 || b > 0xee ? st(c, 0) : 0;
    if (b >= 0xe8 && b <= 0xee) {
        fpush(c, constants[b - 0xe8]);
        return;
    }
    switch (b) {
    case 0xe0:
        c->st[c->top].e ^= 0x8000;
        break;
    case 0xe1:
        c->st[c->top].e &= 0x7fff;
        break;
    case 0xe4:
        compare(c, a, 0);
        break;
    case 0xe5:
        examine(c);
        break;
    case 0xf0:
        set_st(c, 0, expm1l(a * 0.693147180559945309417232121458177L));
        break;
    case 0xf1:
        set_st(c, 1, st(c, 1) * log2l(a));
        fpop(c);
        break;
    case 0xf2:
        set_st(c, 0, tanl(a));
        fpush(c, 1);
        c->fsw &= (uint16_t)~0x400;
        break;
    case 0xf3:
        set_st(c, 1, atan2l(st(c, 1), a));
        fpop(c);
        break;
    case 0xf4:
        set_st(c, 0, logbl(a));
        fpush(c, a / ldexpl(1, (int)logbl(a)));
        break;
    case 0xf5:
        remainder_of(c, true);
        break;
    case 0xf6:
        c->top = (c->top - 1) & 7;
        break;
    case 0xf7:
        c->top = (c->top + 1) & 7;
        break;
    case 0xf8:
        remainder_of(c, false);
        break;
    case 0xf9:
        set_st(c, 1, st(c, 1) * log1pl(a) * 1.442695040888963407359924681001892L);
        fpop(c);
        break;
    case 0xfa:
        set_st(c, 0, sqrtl(a));
        break;
    case 0xfb:
        set_st(c, 0, sinl(a));
        fpush(c, cosl(a));
        c->fsw &= (uint16_t)~0x400;
        break;
    case 0xfc:
        set_st(c, 0, rounded(c, a));
        break;
    case 0xfd:
        set_st(c, 0, scalbnl(a, (int)truncl(st(c, 1))));
        break;
    case 0xfe:
        set_st(c, 0, sinl(a));
        c->fsw &= (uint16_t)~0x400;
        break;
    case 0xff:
        set_st(c, 0, cosl(a));
        c->fsw &= (uint16_t)~0x400;
        break;
    default:
        x86_raise(c, X_UD);
    }
}

static void control(struct x86 *c, unsigned b)
{
    if (b == 0xe2)
        c->fsw &= 0x7f00;
    else if (b == 0xe3)
        init(c);
    else if (b != 0xe0 && b != 0xe1 && b != 0xe4)
        x86_raise(c, X_UD);
}

static void conditional(struct x86 *c, const struct insn *i, unsigned g, unsigned n)
{
    uint64_t f = flags_arith(c);
    bool yes = g == 0 ? f & F_C : g == 1 ? f & F_Z : g == 2 ? f & (F_C | F_Z) : f & F_P;
    if (yes == (i->op == 0xda))
        set_st(c, 0, st(c, n));
}

static void registers(struct x86 *c, const struct insn *i)
{
    unsigned g = group(i), n = i->modrm & 7, op = i->op, code = op << 4 | g;
    if (op == 0xd8 || ((op == 0xdc || op == 0xde) && g != 2 && g != 3)) {
        if (g == 2 || g == 3) {
            compare(c, st(c, 0), st(c, n));
            if (g == 3)
                fpop(c);
        } else if (op == 0xd8) {
            set_st(c, 0, arith(c, g, st(c, 0), st(c, n)));
        } else { /* the reversed forms change places here */
            set_st(c, n, arith(c, g, st(c, n), st(c, 0)));
            if (op == 0xde)
                fpop(c);
        }
        return;
    }
    if ((op == 0xda || op == 0xdb) && g < 4) {
        conditional(c, i, g, n);
        return;
    }
    switch (code) {
    case 0xd90:
        fpush(c, st(c, n));
        break;
    case 0xd91: {
        struct f80 t = c->st[slot(c, n)];
        c->st[slot(c, n)] = c->st[c->top];
        c->st[c->top] = t;
        break;
    }
    case 0xd92:
        break;
    case 0xd94:
    case 0xd95:
    case 0xd96:
    case 0xd97:
        functions(c, i->modrm);
        break;
    case 0xda5:
    case 0xde3:
        compare(c, st(c, 0), st(c, 1));
        fpop(c);
        fpop(c);
        break;
    case 0xdb4:
        control(c, i->modrm);
        break;
    case 0xdb5:
    case 0xdb6:
        compare_flags(c, st(c, 0), st(c, n));
        break;
    case 0xdf5:
    case 0xdf6:
        compare_flags(c, st(c, 0), st(c, n));
        fpop(c);
        break;
    case 0xdd0:
        c->empty |= (uint8_t)(1u << slot(c, n));
        break;
    case 0xdd2:
        set_st(c, n, st(c, 0));
        break;
    case 0xdd3:
        set_st(c, n, st(c, 0));
        fpop(c);
        break;
    case 0xdd4:
        compare(c, st(c, 0), st(c, n));
        break;
    case 0xdd5:
        compare(c, st(c, 0), st(c, n));
        fpop(c);
        break;
    case 0xdf4:
        reg_write(c, i, RAX, 2, status(c));
        break;
    default:
        x86_raise(c, X_UD);
    }
}

static void h_fpu(struct x86 *c, const struct insn *i)
{
    if (c->cr0 & (CR0_EM | CR0_TS))
        x86_raise(c, X_NM);
    if (i->mod == 3)
        registers(c, i);
    else if (i->op & 1)
        memory_move(c, i, ea(c, i));
    else
        memory_arith(c, i, ea(c, i));
}

void h_fwait(struct x86 *c, const struct insn *i)
{
    (void)i;
    if ((c->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
        x86_raise(c, X_NM);
}

x86_helper *x86_find_fpu(const struct insn *i)
{
    (void)i;
    return h_fpu;
}
