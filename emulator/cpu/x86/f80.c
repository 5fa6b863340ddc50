/* See f80.h: sums, products, quotients, roots. */
#include "f80_internal.h"

#define TOP      ((uint64_t)1 << 63)
#define INFINITE 0x7fff

enum f80_kind f80_kind(struct f80 v)
{
    unsigned e = v.e & 0x7fff;
    if (e == 0)
        return v.m ? F80_FINITE : F80_ZERO;
    if (!(v.m & TOP))
        return F80_UNSUPPORTED;
    if (e < INFINITE)
        return F80_FINITE;
    if (!(v.m << 1))
        return F80_INFINITE;
    return v.m >> 62 & 1 ? F80_QUIET : F80_SIGNALLING;
}

bool f80_is_nan(struct f80 v)
{
    return f80_kind(v) >= F80_QUIET;
}

bool f80_is_denormal(struct f80 v)
{
    return !(v.e & 0x7fff) && v.m;
}

struct number f80_unpack(struct f80 v)
{
    unsigned e = v.e & 0x7fff, shift = v.m ? (unsigned)__builtin_clzll(v.m) : 0;
    return (struct number){ .sign = v.e >> 15,
                            .exp = (int)(e ? e : 1) - BIAS - (int)shift,
                            .m = (u128)(v.m << shift) << 64 };
}

/* To the right; what falls out stays visible in the lowest bit. */
u128 f80_shift(u128 v, unsigned n)
{
    if (n > 127)
        return v != 0;
    return v >> n | (n && v << (128 - n) ? 1 : 0);
}

/* Keeps the upper `bits`; *carry: it became two. */
static u128 round_bits(const struct f80_env *env, u128 m, int bits, bool sign, bool *carry,
                       bool *inexact, bool *up)
{
    int low = 128 - bits;
    u128 unit = (u128)1 << low, rest = m & (unit - 1), half = unit >> 1;
    *inexact = rest;
    *up = false;
    switch (env->rounding) {
    case 0:
        *up = rest > half || (rest == half && m & unit);
        break;
    case 1:
        *up = rest && sign;
        break;
    case 2:
        *up = rest && !sign;
        break;
    default:
        break;
    }
    m -= rest;
    *carry = false;
    if (*up) {
        m += unit;
        *carry = m < unit;
    }
    return m;
}

static struct packed overflow(struct f80_env *env, bool sign, struct format f)
{
    bool infinite = env->rounding == 0 || env->rounding == (sign ? 1u : 2u);
    env->flags |= FP_OE | FP_PE;
    env->up = infinite;
    uint64_t ones = ~(uint64_t)0 << (64 - f.precision) >> (64 - f.bits);
    return (struct packed){ infinite ? (uint64_t)1 << (f.bits - 1) : ones,
                            infinite ? 2 * f.max + 1 : 2 * f.max };
}

struct packed f80_round(struct f80_env *env, struct number n, struct format f)
{
    bool carry, inexact, up;
    u128 m = round_bits(env, n.m, f.precision, n.sign, &carry, &inexact, &up);
    int exp = n.exp + carry, wrap = f.bits == 64 ? 24576 : f.bits == 53 ? 1536 : 192;
    if (carry)
        m = (u128)1 << 127;
    if (exp > f.max) {
        if (env->mask & FP_OE)
            return overflow(env, n.sign, f);
        env->flags |= FP_OE;
        exp -= wrap;
        if (exp > f.max) { /* FSCALE goes further than that */
            env->flags |= FP_PE;
            env->up = true;
            return (struct packed){ (uint64_t)1 << (f.bits - 1), 2 * f.max + 1 };
        }
    } else if (exp < f.min && !(env->mask & FP_UE)) {
        env->flags |= FP_UE;
        exp += wrap;
        if (exp < f.min) {
            env->flags |= FP_PE;
            return (struct packed){ 0, 0 };
        }
    } else if (exp < f.min) {
        m = f80_shift(n.m, (unsigned)(f.min - n.exp));
        m = round_bits(env, m, f.precision, n.sign, &carry, &inexact, &up);
        env->flags |= inexact ? FP_UE : 0;
        exp = m >> 127 ? f.min : f.min - 1; /* rounded up to the smallest normal number */
    }
    env->flags |= inexact ? FP_PE : 0;
    env->up = up;
    return (struct packed){ (uint64_t)(m >> (128 - f.bits)), exp + f.max };
}

struct f80 f80_pack(struct f80_env *env, struct number n, unsigned precision)
{
    if (!n.m)
        return (struct f80){ 0, (uint16_t)(n.sign << 15) };
    struct packed p = f80_round(env, n, (struct format){ (int)precision, 64, 1 - BIAS, BIAS });
    return (struct f80){ p.m, (uint16_t)((p.e & 0x7fff) | n.sign << 15) };
}

static struct f80 invalid(struct f80_env *env)
{
    env->flags |= FP_IE;
    return F80_NAN;
}

struct f80 f80_choose_nan(struct f80_env *env, struct f80 a, struct f80 b)
{
    enum f80_kind ka = f80_kind(a), kb = f80_kind(b);
    if (ka == F80_UNSUPPORTED || kb == F80_UNSUPPORTED)
        return invalid(env);
    if (ka == F80_SIGNALLING || kb == F80_SIGNALLING)
        env->flags |= FP_IE;
    struct f80 r = a;
    if (ka < F80_QUIET)
        r = b;
    else if (kb >= F80_QUIET) {
        if (ka != kb) /* the quiet one of the two */
            r = ka == F80_QUIET ? a : b;
        else if (a.m != b.m)
            r = a.m > b.m ? a : b;
        else
            r = a.e & 0x8000 ? b : a;
    }
    r.m |= (uint64_t)1 << 62;
    return r;
}

/* True when the result is decided by an operand that is no number; notes denormal ones otherwise. */
static bool special(struct f80_env *env, struct f80 a, struct f80 b, struct f80 *r)
{
    if (f80_kind(a) >= F80_QUIET || f80_kind(b) >= F80_QUIET) {
        *r = f80_choose_nan(env, a, b);
        return true;
    }
    return false;
}

static void denormals(struct f80_env *env, struct f80 a, struct f80 b)
{
    if (env->denormal || f80_is_denormal(a) || f80_is_denormal(b))
        env->flags |= FP_DE;
}

static struct f80 zero(bool sign)
{
    return (struct f80){ 0, (uint16_t)(sign << 15) };
}

static struct f80 infinite(bool sign)
{
    return (struct f80){ TOP, (uint16_t)(sign << 15 | INFINITE) };
}

/* Neither is zero, both are finite. */
static struct f80 sum(struct f80_env *env, struct number a, struct number b)
{
    if (a.exp < b.exp || (a.exp == b.exp && a.m < b.m)) {
        struct number t = a;
        a = b;
        b = t;
    }
    u128 x = a.m >> 1, y = f80_shift(b.m, (unsigned)(a.exp - b.exp) + 1);
    u128 r = a.sign == b.sign ? x + y : x - y;
    if (!r)
        return zero(env->rounding == 1);
    unsigned shift = (unsigned)(r >> 64 ? __builtin_clzll((uint64_t)(r >> 64))
                                        : 64 + __builtin_clzll((uint64_t)r));
    struct number n = { a.sign, a.exp + 1 - (int)shift, r << shift };
    return f80_pack(env, n, env->precision);
}

struct f80 f80_add(struct f80_env *env, struct f80 a, struct f80 b, bool subtract)
{
    struct f80 r;
    if (special(env, a, b, &r))
        return r;
    if (subtract)
        b.e ^= 0x8000;
    enum f80_kind ka = f80_kind(a), kb = f80_kind(b);
    bool sa = a.e >> 15, sb = b.e >> 15;
    if (ka == F80_INFINITE && kb == F80_INFINITE && sa != sb)
        return invalid(env);
    denormals(env, a, b);
    if (ka == F80_INFINITE || kb == F80_INFINITE)
        return infinite(ka == F80_INFINITE ? sa : sb);
    if (ka == F80_ZERO && kb == F80_ZERO)
        return zero(sa == sb ? sa : env->rounding == 1);
    if (ka == F80_ZERO || kb == F80_ZERO)
        return f80_pack(env, f80_unpack(ka == F80_ZERO ? b : a), env->precision);
    return sum(env, f80_unpack(a), f80_unpack(b));
}

struct f80 f80_multiply(struct f80_env *env, struct f80 a, struct f80 b)
{
    struct f80 r;
    if (special(env, a, b, &r))
        return r;
    enum f80_kind ka = f80_kind(a), kb = f80_kind(b);
    bool sign = (a.e ^ b.e) >> 15;
    if ((ka == F80_INFINITE && kb == F80_ZERO) || (ka == F80_ZERO && kb == F80_INFINITE))
        return invalid(env);
    denormals(env, a, b);
    if (ka == F80_INFINITE || kb == F80_INFINITE)
        return infinite(sign);
    if (ka == F80_ZERO || kb == F80_ZERO)
        return zero(sign);
    struct number x = f80_unpack(a), y = f80_unpack(b);
    u128 p = (x.m >> 64) * (y.m >> 64);
    bool two = p >> 127;
    return f80_pack(env, (struct number){ sign, x.exp + y.exp + two, two ? p : p << 1 },
                    env->precision);
}

struct f80 f80_divide(struct f80_env *env, struct f80 a, struct f80 b)
{
    struct f80 r;
    if (special(env, a, b, &r))
        return r;
    enum f80_kind ka = f80_kind(a), kb = f80_kind(b);
    bool sign = (a.e ^ b.e) >> 15;
    if ((ka == F80_INFINITE && kb == F80_INFINITE) || (ka == F80_ZERO && kb == F80_ZERO))
        return invalid(env);
    if (kb == F80_ZERO) {
        if (ka == F80_FINITE)
            env->flags |= FP_ZE;
        return infinite(sign);
    }
    denormals(env, a, b);
    if (ka == F80_INFINITE)
        return infinite(sign);
    if (kb == F80_INFINITE || ka == F80_ZERO)
        return zero(sign);
    struct number x = f80_unpack(a), y = f80_unpack(b);
    u128 top = x.m >> 1, by = y.m >> 64;
    uint64_t q1 = (uint64_t)(top / by);
    u128 rest = top % by << 64;
    uint64_t q2 = (uint64_t)(rest / by);
    u128 q = (u128)q1 << 64 | q2 | (rest % by ? 1 : 0);
    int exp = x.exp - y.exp;
    if (!(q >> 127)) {
        q <<= 1;
        exp--;
    }
    return f80_pack(env, (struct number){ sign, exp, q }, env->precision);
}

struct f80 f80_root(struct f80_env *env, struct f80 v)
{
    struct f80 r;
    if (special(env, v, v, &r))
        return r;
    enum f80_kind k = f80_kind(v);
    if (k == F80_ZERO)
        return v;
    if (v.e >> 15)
        return invalid(env);
    if (k == F80_INFINITE)
        return v;
    denormals(env, v, v);
    struct number n = f80_unpack(v);
    bool odd = n.exp & 1;
    u128 x = odd ? n.m : n.m >> 1, rest = 0, root = 0;
    for (int bit = 126; bit >= 0; bit -= 2) { /* two digits down, one digit of the root */
        rest = rest << 2 | (x >> bit & 3);
        root <<= 1;
        if (rest > root << 1) {
            rest -= (root << 1) + 1;
            root |= 1;
        }
    }
    u128 m = root << 64 | (rest > root ? (u128)1 << 63 : 0) | (rest ? 1 : 0);
    return f80_pack(env, (struct number){ false, (n.exp - odd) / 2, m }, env->precision);
}

struct f80 f80_integral(struct f80_env *env, struct f80 v)
{
    struct f80 r;
    if (special(env, v, v, &r))
        return r;
    denormals(env, v, v);
    if (f80_kind(v) != F80_FINITE)
        return v;
    struct number n = f80_unpack(v);
    if (n.exp >= 63)
        return v;
    bool carry, inexact, up;
    u128 m = f80_shift(n.m, (unsigned)(63 - n.exp));
    m = round_bits(env, m, 64, n.sign, &carry, &inexact, &up);
    env->flags |= inexact ? FP_PE : 0;
    env->up = up;
    uint64_t i = (uint64_t)(m >> 64);
    if (!i)
        return zero(n.sign);
    unsigned shift = (unsigned)__builtin_clzll(i);
    return (struct f80){ i << shift, (uint16_t)((63 - shift + BIAS) | (unsigned)n.sign << 15) };
}

struct f80 f80_scale(struct f80_env *env, struct f80 v, struct f80 by)
{
    struct f80 r;
    if (special(env, v, by, &r))
        return r;
    enum f80_kind kv = f80_kind(v), kb = f80_kind(by);
    bool down = by.e >> 15, sign = v.e >> 15;
    if (kb == F80_INFINITE) {
        if (kv == (down ? F80_INFINITE : F80_ZERO))
            return invalid(env);
        denormals(env, v, by);
        return down ? zero(sign) : infinite(sign);
    }
    denormals(env, v, by);
    if (kv != F80_FINITE)
        return v;
    struct f80_env cut = { .rounding = 3, .mask = FP_ALL, .precision = 64 };
    int64_t n = (int64_t)f80_to_int(&cut, by, 4, true);
    n = cut.flags & FP_IE ? (down ? -65536 : 65536) : (int32_t)n;
    struct number x = f80_unpack(v);
    if (kb == F80_ZERO)
        return f80_pack(&cut, x, 64);
    x.exp += (int)(n < -65536 ? -65536 : n > 65536 ? 65536 : n);
    return f80_pack(env, x, 64);
}

struct f80 f80_extract(struct f80_env *env, struct f80 v, struct f80 *significand)
{
    struct f80 r;
    *significand = v;
    if (special(env, v, v, &r)) {
        *significand = r;
        return r;
    }
    enum f80_kind k = f80_kind(v);
    if (k == F80_INFINITE)
        return infinite(false);
    if (k == F80_ZERO) {
        env->flags |= FP_ZE;
        return infinite(true);
    }
    denormals(env, v, v);
    struct number n = f80_unpack(v);
    *significand = (struct f80){ (uint64_t)(n.m >> 64), (uint16_t)(BIAS | n.sign << 15) };
    return f80_from_int(n.exp);
}

struct f80 f80_remainder(struct f80_env *env, struct f80 a, struct f80 b, bool nearest,
                         unsigned *quotient, bool *partial)
{
    struct f80 r;
    *quotient = 0;
    *partial = false;
    if (special(env, a, b, &r))
        return r;
    enum f80_kind ka = f80_kind(a), kb = f80_kind(b);
    if (ka == F80_INFINITE || kb == F80_ZERO)
        return invalid(env);
    denormals(env, a, b);
    if (ka == F80_ZERO)
        return a;
    struct number x = f80_unpack(a), y = f80_unpack(b);
    int d = x.exp - y.exp;
    struct f80_env exact = { .mask = FP_ALL }; /* a denormal remainder is no underflow */
    if (kb == F80_INFINITE)
        return f80_pack(&exact, x, 64);
    if (d < (nearest ? -1 : 0))
        return f80_pack(env, x, 64); /* yet here it is */
    u128 rest = x.m >> 64, by = y.m >> 64;
    uint64_t q = 0;
    int steps = d, low = y.exp;
    if (d >= 64) { /* some of the way: the program asks again */
        *partial = true;
        steps = 32 + d % 32;
        low = x.exp - steps;
    }
    if (d < 0)
        by <<= 1; /* half of b at most: no step, only the rounding */
    for (int n = 0; d >= 0 && n <= steps; n++) {
        rest <<= n > 0;
        q = q << 1 | (rest >= by);
        rest -= rest >= by ? by : 0;
    }
    bool sign = x.sign;
    if (nearest && !*partial && (rest << 1 > by || (rest << 1 == by && q & 1))) {
        q++;
        rest = by - rest;
        sign = !sign;
    }
    if (d < 0)
        low = x.exp;
    *quotient = *partial ? 0 : (unsigned)(q & 7);
    if (!rest)
        return zero(x.sign);
    unsigned shift = rest >> 64 ? 0 : 1 + (unsigned)__builtin_clzll((uint64_t)rest);
    struct number n = { sign, low + 1 - (int)shift, rest << 63 << shift };
    return f80_pack(&exact, n, 64);
}

int f80_compare(struct f80_env *env, struct f80 a, struct f80 b, bool quiet)
{
    enum f80_kind ka = f80_kind(a), kb = f80_kind(b);
    if (ka >= F80_QUIET || kb >= F80_QUIET) {
        if (!quiet || ka > F80_QUIET || kb > F80_QUIET)
            env->flags |= FP_IE;
        return 2;
    }
    denormals(env, a, b);
    if (ka == F80_ZERO && kb == F80_ZERO)
        return 0;
    bool sa = a.e >> 15, sb = b.e >> 15;
    if (sa != sb)
        return sa ? -1 : 1;
    if (a.e == b.e && a.m == b.m)
        return 0;
    unsigned ea = a.e & 0x7fff, eb = b.e & 0x7fff;
    ea += !ea;
    eb += !eb;
    bool greater = ea != eb ? ea > eb : a.m > b.m;
    if (ea == eb && a.m == b.m)
        return 0;
    return greater != sa ? 1 : -1;
}
