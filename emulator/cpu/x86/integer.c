/* Integer instructions that are not worth IR of their own. */
#include "helpers.h"

uint64_t rm_change(struct x86 *c, const struct insn *i, unsigned size, bool atomic, change_fn *fn,
                   const void *arg)
{
    if (i->mod == 3) {
        uint64_t old = reg_read(c, i, i->rm, size);
        reg_write(c, i, i->rm, size, fn(old, arg));
        return old;
    }
    uint64_t at = ea(c, i);
    void *host = atomic ? cpu_host(&c->cpu, at, size) : NULL;
    if (!host) {
        uint64_t old = cpu_load(&c->cpu, at, size);
        cpu_store(&c->cpu, at, size, fn(old, arg));
        return old;
    }
    uint64_t old = 0, new;
    memcpy(&old, host, size);
    bool done;
    do {
        new = fn(old, arg);
        switch (size) {
        case 1: {
            uint8_t e = (uint8_t)old;
            done = __atomic_compare_exchange_n((uint8_t *)host, &e, (uint8_t) new, false,
                                               __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
            old = e;
            break;
        }
        case 2: {
            uint16_t e = (uint16_t)old;
            done = __atomic_compare_exchange_n((uint16_t *)host, &e, (uint16_t) new, false,
                                               __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
            old = e;
            break;
        }
        case 4: {
            uint32_t e = (uint32_t)old;
            done = __atomic_compare_exchange_n((uint32_t *)host, &e, (uint32_t) new, false,
                                               __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
            old = e;
            break;
        }
        default:
            done = __atomic_compare_exchange_n((uint64_t *)host, &old, new, false, __ATOMIC_SEQ_CST,
                                               __ATOMIC_SEQ_CST);
            break;
        }
    } while (!done);
    return old;
}

struct alu_arg {
    unsigned n;
    uint64_t b, carry;
};

static uint64_t alu(uint64_t a, const void *p)
{
    const struct alu_arg *arg = p;
    switch (arg->n) {
    case 0:
        return a + arg->b;
    case 1:
        return a | arg->b;
    case 2:
        return a + arg->b + arg->carry;
    case 3:
        return a - arg->b - arg->carry;
    case 4:
        return a & arg->b;
    case 6:
        return a ^ arg->b;
    default:
        return a - arg->b;
    }
}

/* The eight classic operations in all forms, with or without LOCK. */
void h_alu(struct x86 *c, const struct insn *i)
{
    unsigned size = op_size(i), form = i->op & 7;
    struct alu_arg arg = { .carry = flags_arith(c) & F_C };
    uint64_t old;
    bool to_reg = i->op < 0x40 && form >= 2;
    arg.n = i->op < 0x40 ? i->op >> 3 : group(i);
    if (i->op >= 0x80 || form >= 4)
        arg.b = (uint64_t)i->imm & width_mask(size);
    else
        arg.b = form < 2 ? reg_read(c, i, i->reg, size) : rm_read(c, i, size);
    if (to_reg) {
        unsigned reg = form < 4 ? i->reg : RAX;
        old = reg_read(c, i, reg, size);
        if (arg.n != 7)
            reg_write(c, i, reg, size, alu(old, &arg));
    } else if (arg.n == 7) {
        old = rm_read(c, i, size);
    } else {
        old = rm_change(c, i, size, i->lock, alu, &arg);
    }
    static const uint8_t families[8] = { IR_KIND_ADD,   IR_KIND_LOGIC, IR_KIND_ADD,   IR_KIND_SUB,
                                         IR_KIND_LOGIC, IR_KIND_SUB,   IR_KIND_LOGIC, IR_KIND_SUB };
    unsigned family = families[arg.n];
    if (arg.carry && (arg.n == 2 || arg.n == 3))
        family = arg.n == 2 ? K_ADC1 : K_SBB1;
    record(c, family, size, alu(old, &arg), family == IR_KIND_LOGIC ? 0 : arg.b);
}

static uint64_t unary(uint64_t a, const void *p)
{
    switch (*(const int *)p) {
    case 0:
        return a + 1;
    case 1:
        return a - 1;
    case 2:
        return ~a;
    default:
        return 0 - a;
    }
}

/* INC, DEC, NOT, NEG. */
void h_unary(struct x86 *c, const struct insn *i)
{
    unsigned size = op_size(i);
    int n = (int)group(i);
    uint64_t carry = flags_arith(c) & F_C;
    uint64_t old = rm_change(c, i, size, i->lock, unary, &n);
    if (n < 2)
        record(c, n ? K_DEC : K_INC, size, unary(old, &n), carry);
    else if (n == 3)
        record(c, IR_KIND_SUB, size, 0 - old, old);
}

struct shift {
    unsigned n, size, count; /* masked */
    bool carry;
    uint64_t f;
};

/* The value after shifting; flags in s->f: C and O, which is defined for counts of one only. */
static uint64_t shift(struct shift *s, uint64_t a)
{
    unsigned bits = s->size * 8, n = s->count;
    uint64_t mask = width_mask(s->size), top = mask ^ (mask >> 1), r = a;
    bool cf = s->carry;
    switch (s->n) {
    case 0: /* ROL */
        n %= bits;
        r = n ? (a << n | a >> (bits - n)) & mask : a;
        cf = r & 1;
        s->f = cf | (((r & top) != 0) != cf ? F_O : 0);
        break;
    case 1: /* ROR */
        n %= bits;
        r = n ? (a >> n | a << (bits - n)) & mask : a;
        cf = r & top;
        s->f = cf | (((r & (top >> 1)) != 0) != cf ? F_O : 0);
        break;
    case 2: /* RCL, RCR: a bit at a time */
        for (n %= bits + 1; n; n--) {
            bool out = r & top;
            r = (r << 1 | cf) & mask;
            cf = out;
        }
        s->f = cf | (((r & top) != 0) != cf ? F_O : 0);
        break;
    case 3:
        for (n %= bits + 1; n; n--) {
            bool out = r & 1;
            r = r >> 1 | (cf ? top : 0);
            cf = out;
        }
        s->f = cf | (!(r & top) != !(r & (top >> 1)) ? F_O : 0);
        break;
    case 4:
    case 6:
        r = n < bits ? (a << n) & mask : 0;
        cf = n <= bits && a >> (bits - n) & 1;
        s->f = cf | (((r & top) != 0) != cf ? F_O : 0);
        break;
    case 5:
        r = n < bits ? a >> n : 0;
        cf = n <= bits && a >> (n - 1) & 1;
        s->f = cf | (a & top ? F_O : 0);
        break;
    default: {
        int64_t v = sign_extend(a, s->size);
        r = (uint64_t)(v >> (n < 63 ? n : 63)) & mask;
        cf = v >> (n - 1 < 63 ? n - 1 : 63) & 1;
        s->f = cf;
        break;
    }
    }
    return r;
}

static void result_flags(struct x86 *c, unsigned size, uint64_t result, uint64_t more)
{
    record(c, IR_KIND_LOGIC, size, result, 0);
    flags_set_arith(c, (flags_arith(c) & (F_P | F_Z | F_S)) | more);
}

void h_shift(struct x86 *c, const struct insn *i)
{
    struct shift s = { .n = group(i), .size = op_size(i) };
    uint64_t count = i->op < 0xd0 ? (uint64_t)i->imm : i->op < 0xd2 ? 1 : c->cpu.r[RCX];
    s.count = (unsigned)count & (s.size == 8 ? 63 : 31);
    uint64_t flags = flags_arith(c), old = rm_read(c, i, s.size);
    s.carry = flags & F_C;
    if (!s.count) { /* 32-bit registers lose their upper half all the same */
        rm_write(c, i, s.size, old);
        return;
    }
    uint64_t r = shift(&s, old);
    rm_write(c, i, s.size, r);
    if (s.n < 4)
        flags_set_arith(c, (flags & ~(uint64_t)(F_C | F_O)) | s.f);
    else
        result_flags(c, s.size, r, s.f);
}

void h_shld(struct x86 *c, const struct insn *i)
{
    bool right = i->op & 8;
    unsigned size = i->osize, bits = size * 8;
    unsigned n = (unsigned)(i->op & 1 ? c->cpu.r[RCX] : (uint64_t)i->imm) & (size == 8 ? 63 : 31);
    uint64_t a = rm_read(c, i, size), b = reg_read(c, i, i->reg, size), r, f;
    uint64_t mask = width_mask(size), top = mask ^ (mask >> 1);
    if (!n) {
        rm_write(c, i, size, a);
        return;
    }
    if (n > bits) { /* undefined; 16-bit only: as if the pair went round */
        n -= bits;
        uint64_t t = a;
        a = b;
        b = t;
    }
    if (right) {
        r = ((n < bits ? a >> n : 0) | b << (bits - n)) & mask;
        f = a >> (n - 1) & 1;
    } else {
        r = ((n < bits ? a << n : 0) | b >> (bits - n)) & mask;
        f = a >> (bits - n) & 1;
    }
    rm_write(c, i, size, r);
    result_flags(c, size, r, f | ((a ^ r) & top ? F_O : 0));
}

static void multiply(struct x86 *c, const struct insn *i, unsigned size, bool sign)
{
    uint64_t a = reg_read(c, i, RAX, size), b = rm_read(c, i, size), lo, hi;
    bool big;
    if (sign) {
        __int128 p = (__int128)sign_extend(a, size) * sign_extend(b, size);
        lo = (uint64_t)p & width_mask(size);
        hi = (uint64_t)(p >> (8 * size));
        big = p != sign_extend(lo, size);
    } else {
        unsigned __int128 p = (unsigned __int128)a * b;
        lo = (uint64_t)p & width_mask(size);
        hi = (uint64_t)(p >> (8 * size));
        big = hi;
    }
    if (size == 1) {
        reg_write(c, i, RAX, 2, (lo & 0xff) | hi << 8);
    } else {
        reg_write(c, i, RAX, size, lo);
        reg_write(c, i, RDX, size, hi);
    }
    result_flags(c, size, lo, big ? F_C | F_O : 0);
}

static void divide(struct x86 *c, const struct insn *i, unsigned size, bool sign)
{
    uint64_t b = rm_read(c, i, size);
    unsigned bits = 8 * size;
    unsigned __int128 n = size == 1 ? (uint16_t)c->cpu.r[RAX]
                                    : (unsigned __int128)reg_read(c, i, RDX, size) << bits |
                                          reg_read(c, i, RAX, size);
    uint64_t q, r;
    if (!b)
        x86_raise(c, X_DE);
    if (!sign && !(n >> 64)) { /* what the host does in one go */
        q = (uint64_t)n / b;
        r = (uint64_t)n % b;
        if (q > width_mask(size))
            x86_raise(c, X_DE);
    } else if (sign) {
        unsigned up = 128 - 2 * bits;
        __int128 sn = (__int128)(n << up) >> up;
        __int128 sb = sign_extend(b, size);
        if (sb == -1 && sn == (__int128)((unsigned __int128)1 << 127))
            x86_raise(c, X_DE);
        __int128 sq = sn / sb;
        if (sq != sign_extend((uint64_t)sq, size))
            x86_raise(c, X_DE);
        q = (uint64_t)sq;
        r = (uint64_t)(sn % sb);
    } else {
        unsigned __int128 uq = n / b;
        if (uq > width_mask(size))
            x86_raise(c, X_DE);
        q = (uint64_t)uq;
        r = (uint64_t)(n % b);
    }
    if (size == 1) {
        reg_write(c, i, RAX, 2, (q & 0xff) | (r & 0xff) << 8);
    } else {
        reg_write(c, i, RAX, size, q);
        reg_write(c, i, RDX, size, r);
    }
}

void h_muldiv(struct x86 *c, const struct insn *i)
{
    unsigned n = group(i);
    (n < 6 ? multiply : divide)(c, i, op_size(i), n & 1);
}

void h_imul(struct x86 *c, const struct insn *i)
{
    unsigned size = i->osize;
    int64_t b = i->op < 0x100 ? i->imm : sign_extend(reg_read(c, i, i->reg, size), size);
    __int128 p = (__int128)sign_extend(rm_read(c, i, size), size) * b;
    bool big = p != sign_extend((uint64_t)p, size);
    reg_write(c, i, i->reg, size, (uint64_t)p);
    result_flags(c, size, (uint64_t)p, big ? F_C | F_O : 0);
}

struct bit {
    unsigned n;
    uint64_t bit;
};

static uint64_t change_bit(uint64_t a, const void *p)
{
    const struct bit *b = p;
    return b->n == 1 ? a | b->bit : b->n == 2 ? a & ~b->bit : a ^ b->bit;
}

void h_bt(struct x86 *c, const struct insn *i)
{
    unsigned size = i->osize, bits = size * 8;
    bool imm = (i->op & 0xff) == 0xba;
    uint64_t index = imm ? (uint64_t)i->imm : reg_read(c, i, i->reg, size), old;
    struct bit b = { .n = imm ? group(i) & 3 : (i->op >> 3) & 3,
                     .bit = (uint64_t)1 << (index & (bits - 1)) };
    struct insn at = *i;
    if (!imm && i->mod != 3) /* a bit string in memory, either way from there */
        at.disp += (sign_extend(index, size) >> (size == 8   ? 6
                                                 : size == 4 ? 5
                                                             : 4)) *
                   (int64_t)size;
    old = b.n ? rm_change(c, &at, size, i->lock, change_bit, &b) : rm_read(c, &at, size);
    flags_set_arith(c, (flags_arith(c) & ~(uint64_t)F_C) | (old & b.bit ? F_C : 0));
}

/* BSF, BSR, TZCNT, LZCNT, POPCNT. */
void h_bits(struct x86 *c, const struct insn *i)
{
    unsigned size = i->osize, bits = size * 8, op = i->op & 0xff;
    uint64_t a = rm_read(c, i, size), r;
    if (op == 0xb8) {
        r = (unsigned)__builtin_popcountll(a);
        flags_set_arith(c, a ? 0 : F_Z);
    } else if (i->rep == 0xf3 && has(c, op == 0xbc ? FEATURE_BMI1 : FEATURE_ABM)) {
        if (op == 0xbc)
            r = a ? (unsigned)__builtin_ctzll(a) : bits;
        else
            r = a ? (unsigned)__builtin_clzll(a) - (64 - bits) : bits;
        flags_set_arith(c, (a ? 0 : F_C) | (r ? 0 : F_Z));
    } else {
        flags_set_arith(c, a ? 0 : F_Z);
        if (!a)
            return; /* the register keeps what it held */
        r = op == 0xbc ? (unsigned)__builtin_ctzll(a) : 63 - (unsigned)__builtin_clzll(a);
    }
    reg_write(c, i, i->reg, size, r);
}

void h_bswap(struct x86 *c, const struct insn *i)
{
    unsigned n = (i->op & 7) | (i->rexbits & 1 ? 8 : 0);
    uint64_t v = c->cpu.r[n];
    if (i->osize == 2)
        reg_write(c, i, n, 2, 0);
    else
        reg_write(c, i, n, i->osize,
                  i->osize == 8 ? __builtin_bswap64(v) : __builtin_bswap32((uint32_t)v));
}

static uint64_t replace(uint64_t a, const void *p)
{
    (void)a;
    return *(const uint64_t *)p;
}

void h_xchg(struct x86 *c, const struct insn *i)
{
    unsigned size = op_size(i);
    uint64_t new = reg_read(c, i, i->reg, size);
    uint64_t old = rm_change(c, i, size, true, replace, &new);
    reg_write(c, i, i->reg, size, old);
}

void h_xchg_ax(struct x86 *c, const struct insn *i)
{
    unsigned n = (i->op & 7) | (i->rexbits & 1 ? 8 : 0);
    uint64_t a = c->cpu.r[RAX], b = c->cpu.r[n];
    reg_write(c, i, n, i->osize, a);
    reg_write(c, i, RAX, i->osize, b);
}

struct exchange {
    uint64_t expected, new;
};

static uint64_t exchange(uint64_t a, const void *p)
{
    const struct exchange *e = p;
    return a == e->expected ? e->new : a;
}

void h_cmpxchg(struct x86 *c, const struct insn *i)
{
    unsigned size = op_size(i);
    struct exchange e = { reg_read(c, i, RAX, size), reg_read(c, i, i->reg, size) };
    uint64_t old;
    if (i->mod == 3) {
        old = reg_read(c, i, i->rm, size);
        if (old == e.expected)
            reg_write(c, i, i->rm, size, e.new);
    } else {
        old = rm_change(c, i, size, i->lock, exchange, &e);
    }
    if (old != e.expected)
        reg_write(c, i, RAX, size, old);
    record(c, IR_KIND_SUB, size, e.expected - old, old);
}

static uint64_t add(uint64_t a, const void *p)
{
    return a + *(const uint64_t *)p;
}

void h_xadd(struct x86 *c, const struct insn *i)
{
    unsigned size = op_size(i);
    uint64_t b = reg_read(c, i, i->reg, size), old;
    if (i->mod == 3) {
        old = reg_read(c, i, i->rm, size);
        reg_write(c, i, i->reg, size, old);
        reg_write(c, i, i->rm, size, old + b);
    } else {
        old = rm_change(c, i, size, i->lock, add, &b);
        reg_write(c, i, i->reg, size, old);
    }
    record(c, IR_KIND_ADD, size, old + b, b);
}

/* Wide compare and exchange where the host cannot be trusted with 16 bytes at once. */
static pthread_mutex_t wide = PTHREAD_MUTEX_INITIALIZER;

static void cmpxchg16(struct x86 *c, uint64_t at)
{
    uint64_t *r = c->cpu.r;
    if (at & 15)
        x86_raise_code(c, X_GP, 0);
    cpu_probe(&c->cpu, at, 16, CPU_WRITE);
    void *host = cpu_host(&c->cpu, at, 16);
    uint64_t old[2], new[2] = { r[RBX], r[RCX] };
    bool same;
#if defined(__x86_64__)
    if (host) {
        old[0] = r[RAX];
        old[1] = r[RDX];
        __asm__ volatile("lock cmpxchg16b %1"
                         : "=@ccz"(same), "+m"(*(unsigned __int128 *)host), "+a"(old[0]),
                           "+d"(old[1])
                         : "b"(new[0]), "c"(new[1])
                         : "memory");
    } else
#endif
    {
        (void)host;
        pthread_mutex_lock(&wide);
        old[0] = cpu_load(&c->cpu, at, 8);
        old[1] = cpu_load(&c->cpu, at + 8, 8);
        same = old[0] == r[RAX] && old[1] == r[RDX];
        cpu_store(&c->cpu, at, 8, same ? new[0] : old[0]);
        cpu_store(&c->cpu, at + 8, 8, same ? new[1] : old[1]);
        pthread_mutex_unlock(&wide); /* probed above: nothing in between can raise */
    }
    flags_set_arith(c, (flags_arith(c) & ~(uint64_t)F_Z) | (same ? F_Z : 0));
    if (!same) {
        r[RAX] = old[0];
        r[RDX] = old[1];
    }
}

void h_cmpxchg16b(struct x86 *c, const struct insn *i)
{
    uint64_t *r = c->cpu.r;
    if (i->osize == 8) {
        cmpxchg16(c, ea(c, i));
        return;
    }
    struct exchange e = { (r[RDX] & 0xffffffff) << 32 | (uint32_t)r[RAX],
                          (r[RCX] & 0xffffffff) << 32 | (uint32_t)r[RBX] };
    uint64_t old = rm_change(c, i, 8, i->lock, exchange, &e);
    bool same = old == e.expected;
    flags_set_arith(c, (flags_arith(c) & ~(uint64_t)F_Z) | (same ? F_Z : 0));
    if (!same) {
        r[RAX] = (uint32_t)old;
        r[RDX] = old >> 32;
    }
}
