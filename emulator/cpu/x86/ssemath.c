/* See ssemath.h. The host does the sums; what operands decide by themselves is decided here, so that hosts with
 * other rules for NaNs and denormal numbers agree. */
#include "ssemath.h"

#include "host_float.h"

#include <math.h>

struct sse_math math_begin(struct x86 *c)
{
    simd_available(c, false);
    return (struct sse_math){ .csr = c->mxcsr, .rounding = c->mxcsr >> 13 & 3 };
}

void math_end(struct x86 *c, const struct sse_math *m)
{
    unsigned mask = m->csr >> 7 & FP_ALL, before = m->flags & (FP_IE | FP_DE | FP_ZE);
    bool early = before & ~mask; /* then results were never computed */
    unsigned flags = early ? before : m->flags;
    c->mxcsr |= flags;
    if (flags & ~mask)
        x86_raise(c, c->cr4 & CR4_OSXMM ? X_XM : X_UD);
}

/* A result that the host computed. */
static unsigned result_flags(struct sse_math *m, unsigned flags, bool tiny, bool *flush)
{
    bool masked = m->csr >> 7 & FP_UE;
    *flush = false;
    if (tiny && !masked) {
        flags |= FP_UE;
    } else if (tiny && m->csr & MXCSR_FTZ) {
        *flush = true;
        flags |= FP_UE | FP_PE;
    }
    return flags;
}

/* With overflow or underflow not masked, PE tells of the rounding in a range without ends, which 80 bits offer. */
static unsigned inexact(struct sse_math *m, unsigned flags, unsigned op, struct f80 a, struct f80 b,
                        unsigned precision)
{
    struct f80_env env = { .rounding = m->rounding, .precision = precision, .mask = FP_ALL };
    if (!(flags & ~(m->csr >> 7) & (FP_OE | FP_UE)))
        return flags;
    if (op == 0x59)
        f80_multiply(&env, a, b);
    else if (op == 0x5e)
        f80_divide(&env, a, b);
    else
        f80_add(&env, a, b, op == 0x5c);
    return (flags & ~(unsigned)FP_PE) | (env.flags & FP_PE);
}

#define TYPE(type, bits, fraction, exponent, name, root, near)                                  \
    static bits bits_##name(type v)                                                             \
    {                                                                                           \
        bits b;                                                                                 \
        memcpy(&b, &v, sizeof b);                                                               \
        return b;                                                                               \
    }                                                                                           \
    static type type_##name(bits b)                                                             \
    {                                                                                           \
        type v;                                                                                 \
        memcpy(&v, &b, sizeof v);                                                               \
        return v;                                                                               \
    }                                                                                           \
    static struct f80 wide_##name(type v)                                                       \
    {                                                                                           \
        return f80_from_##name(&(struct f80_env){ 0 }, bits_##name(v));                         \
    }                                                                                           \
    static bool denormal_##name(type v)                                                         \
    {                                                                                           \
        bits b = bits_##name(v);                                                                \
        return !(b >> fraction & exponent) && b << 1;                                           \
    }                                                                                           \
    static bool nan_##name(type v)                                                              \
    {                                                                                           \
        return (bits)(bits_##name(v) << 1) > (bits)exponent << (fraction + 1);                  \
    }                                                                                           \
    static bool signalling_##name(type v)                                                       \
    {                                                                                           \
        return nan_##name(v) && !(bits_##name(v) >> (fraction - 1) & 1);                        \
    }                                                                                           \
    static type zero_##name(type v)                                                             \
    {                                                                                           \
        return type_##name(bits_##name(v) >> (8 * sizeof(bits) - 1) << (8 * sizeof(bits) - 1)); \
    }                                                                                           \
    static type operand_##name(const struct sse_math *m, type v)                                \
    {                                                                                           \
        return m->csr & MXCSR_DAZ && denormal_##name(v) ? zero_##name(v) : v;                   \
    }                                                                                           \
    static type quiet_##name(struct sse_math *m, type v)                                        \
    {                                                                                           \
        m->flags |= signalling_##name(v) ? FP_IE : 0;                                           \
        return type_##name(bits_##name(v) | (bits)1 << (fraction - 1));                         \
    }                                                                                           \
    static type default_##name(void)                                                            \
    {                                                                                           \
        return type_##name((bits)(~(bits)0 << (fraction - 1)));                                 \
    }                                                                                           \
    static type choose_##name(struct sse_math *m, unsigned op, type a, type b)                  \
    {                                                                                           \
        if (nan_##name(a) || nan_##name(b)) {                                                   \
            m->flags |= FP_IE;                                                                  \
            return b;                                                                           \
        }                                                                                       \
        m->flags |= denormal_##name(a) || denormal_##name(b) ? FP_DE : 0;                       \
        return (op == 0x5d ? a < b : a > b) ? a : b;                                            \
    }                                                                                           \
    type math_##name(struct sse_math *m, unsigned op, type a, type b)                           \
    {                                                                                           \
        a = operand_##name(m, op == 0x51 ? b : a);                                              \
        b = operand_##name(m, b);                                                               \
        if (op == 0x5d || op == 0x5f)                                                           \
            return choose_##name(m, op, a, b);                                                  \
        if (nan_##name(a)) {                                                                    \
            m->flags |= signalling_##name(b) ? FP_IE : 0;                                       \
            return quiet_##name(m, a);                                                          \
        }                                                                                       \
        if (nan_##name(b))                                                                      \
            return quiet_##name(m, b);                                                          \
        HOST_KEEP(a);                                                                           \
        HOST_KEEP(b);                                                                           \
        host_begin(m->rounding);                                                                \
        type r = op == 0x58   ? a + b                                                           \
                 : op == 0x59 ? a * b                                                           \
                 : op == 0x5c ? a - b                                                           \
                 : op == 0x5e ? a / b                                                           \
                              : root(a);                                                        \
        HOST_KEEP(r);                                                                           \
        unsigned flags = host_end();                                                            \
        if (!(flags & (FP_IE | FP_ZE)) && (denormal_##name(a) || denormal_##name(b)))           \
            m->flags |= FP_DE;                                                                  \
        bool flush;                                                                             \
        flags = result_flags(m, flags, flags & FP_UE || denormal_##name(r), &flush);            \
        m->flags |= inexact(m, flags, op, wide_##name(a), wide_##name(b), fraction + 1);        \
        if (flags & FP_IE)                                                                      \
            return default_##name();                                                            \
        return flush ? zero_##name(r) : r;                                                      \
    }                                                                                           \
    int math_compare_##name(struct sse_math *m, type a, type b, bool quiet)                     \
    {                                                                                           \
        a = operand_##name(m, a);                                                               \
        b = operand_##name(m, b);                                                               \
        if (nan_##name(a) || nan_##name(b)) {                                                   \
            if (!quiet || signalling_##name(a) || signalling_##name(b))                         \
                m->flags |= FP_IE;                                                              \
            return 2;                                                                           \
        }                                                                                       \
        m->flags |= denormal_##name(a) || denormal_##name(b) ? FP_DE : 0;                       \
        return a < b ? -1 : a > b;                                                              \
    }                                                                                           \
    type math_round_##name(struct sse_math *m, type v, bool exact)                              \
    {                                                                                           \
        v = operand_##name(m, v);                                                               \
        if (nan_##name(v))                                                                      \
            return quiet_##name(m, v);                                                          \
        HOST_KEEP(v);                                                                           \
        host_begin(m->rounding);                                                                \
        type r = near(v);                                                                       \
        HOST_KEEP(r);                                                                           \
        host_end();                                                                             \
        m->flags |= !exact && r != v ? FP_PE : 0;                                               \
        return r;                                                                               \
    }                                                                                           \
    uint64_t math_int_##name(struct sse_math *m, type v, unsigned size, bool cut)               \
    {                                                                                           \
        struct sse_math how = { .csr = m->csr, .rounding = cut ? 3 : m->rounding };             \
        type r = math_round_##name(&how, v, false), top = size == 8 ? 0x1p63 : 0x1p31;          \
        if (!(r >= -top && r < top)) {                                                          \
            m->flags |= FP_IE;                                                                  \
            return (uint64_t)1 << (size * 8 - 1);                                               \
        }                                                                                       \
        m->flags |= how.flags;                                                                  \
        return (uint64_t)(int64_t)r & width_mask(size);                                         \
    }                                                                                           \
    type math_##name##_of(struct sse_math *m, int64_t v)                                        \
    {                                                                                           \
        HOST_KEEP(v);                                                                           \
        host_begin(m->rounding);                                                                \
        type r = (type)v;                                                                       \
        HOST_KEEP(r);                                                                           \
        m->flags |= host_end();                                                                 \
        return r;                                                                               \
    }

TYPE(float, uint32_t, 23, 0xff, single, sqrtf, nearbyintf)
TYPE(double, uint64_t, 52, 0x7ff, double, sqrt, nearbyint)

double math_widen(struct sse_math *m, float v)
{
    v = operand_single(m, v);
    if (nan_single(v)) {
        uint64_t b = bits_single(quiet_single(m, v));
        return type_double((b >> 31 << 63) | (uint64_t)0x7ff << 52 | (b & 0x7fffff) << 29);
    }
    m->flags |= denormal_single(v) ? FP_DE : 0;
    return (double)v;
}

float math_narrow(struct sse_math *m, double v)
{
    v = operand_double(m, v);
    if (nan_double(v)) {
        uint64_t b = bits_double(quiet_double(m, v));
        return type_single((uint32_t)(b >> 63 << 31 | 0xff << 23 | (b >> 29 & 0x7fffff)));
    }
    m->flags |= denormal_double(v) ? FP_DE : 0;
    HOST_KEEP(v);
    host_begin(m->rounding);
    float r = (float)v; /* as if zero were added at the narrower precision */
    HOST_KEEP(r);
    unsigned flags = host_end();
    bool flush;
    flags = result_flags(m, flags, flags & FP_UE || denormal_single(r), &flush);
    m->flags |= inexact(m, flags, 0x58, wide_double(v), (struct f80){ 0, 0 }, 24);
    return flush ? zero_single(r) : r;
}
