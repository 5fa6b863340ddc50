/* Packed integer arithmetic, pure: no CPU, no memory. */
#include "sse.h"

#define EACH(field, count, expr)             \
    for (unsigned n = 0; n < (count); n++) { \
        __auto_type x = a->field[n];         \
        __auto_type y = b->field[n];         \
        (void)x;                             \
        (void)y;                             \
        a->field[n] = (__typeof__(x))(expr); \
    }                                        \
    return true
#define BYTES(expr)  EACH(b, size, expr)
#define WORDS(expr)  EACH(w, size / 2, expr)
#define DWORDS(expr) EACH(d, size / 4, expr)
#define QWORDS(expr) EACH(q, size / 8, expr)

static int clamp(int v, int low, int high)
{
    return v < low ? low : v > high ? high : v;
}

/* The lower (or upper) halves' elements of e bytes, by turns. */
static void interleave(union xmm *a, const union xmm *b, unsigned size, unsigned e, bool high)
{
    union xmm r = { { 0 } };
    unsigned from = high ? size / 2 : 0;
    for (unsigned n = 0; n < size / 2; n += e) {
        memcpy(&r.b[2 * n], &a->b[from + n], e);
        memcpy(&r.b[2 * n + e], &b->b[from + n], e);
    }
    *a = r;
}

static void pack(union xmm *a, const union xmm *b, unsigned size, unsigned op)
{
    union xmm r = { { 0 } };
    for (unsigned n = 0; n < (op == 0x6b ? size / 2 : size); n++) {
        const union xmm *s = n < (op == 0x6b ? size / 4 : size / 2) ? a : b;
        if (op == 0x6b) {
            r.w[n] = (uint16_t)clamp((int)s->d[n % (size / 4)], -32768, 32767);
            continue;
        }
        int v = (int16_t)s->w[n % (size / 2)];
        r.b[n] = (uint8_t)(op == 0x63 ? clamp(v, -128, 127) : clamp(v, 0, 255));
    }
    *a = r;
}

static bool shift(unsigned op, union xmm *a, const union xmm *b, unsigned size)
{
    uint64_t k = b->q[0];
    unsigned n16 = k > 15 ? 16 : (unsigned)k, n32 = k > 31 ? 32 : (unsigned)k,
             n64 = k > 63 ? 64 : (unsigned)k;
    switch (op) {
    case 0xd1:
        WORDS(n16 > 15 ? 0 : x >> n16);
    case 0xd2:
        DWORDS(n32 > 31 ? 0 : x >> n32);
    case 0xd3:
        QWORDS(n64 > 63 ? 0 : x >> n64);
    case 0xe1:
        WORDS((int16_t)x >> (n16 > 15 ? 15 : n16));
    case 0xe2:
        DWORDS((int32_t)x >> (n32 > 31 ? 31 : n32));
    case 0xf1:
        WORDS(n16 > 15 ? 0 : x << n16);
    case 0xf2:
        DWORDS(n32 > 31 ? 0 : x << n32);
    default:
        QWORDS(n64 > 63 ? 0 : x << n64);
    }
}

static bool sums(unsigned op, union xmm *a, const union xmm *b, unsigned size)
{
    union xmm r = { { 0 } };
    if (op == 0xf5) {
        for (unsigned n = 0; n < size / 4; n++)
            r.d[n] = (uint32_t)((int16_t)a->w[2 * n] * (int16_t)b->w[2 * n]) +
                     (uint32_t)((int16_t)a->w[2 * n + 1] * (int16_t)b->w[2 * n + 1]);
    } else if (op == 0xf6) {
        for (unsigned n = 0; n < size; n++)
            r.w[n / 8 * 4] = (uint16_t)(r.w[n / 8 * 4] + (a->b[n] > b->b[n] ? a->b[n] - b->b[n]
                                                                            : b->b[n] - a->b[n]));
    } else {
        for (unsigned n = 0; n < size / 8; n++)
            r.q[n] = (uint64_t)a->d[2 * n] * b->d[2 * n];
    }
    *a = r;
    return true;
}

static bool add_sub(unsigned op, union xmm *a, const union xmm *b, unsigned size)
{
    switch (op) {
    case 0xd4:
        QWORDS(x + y);
    case 0xfb:
        QWORDS(x - y);
    case 0xd8:
        BYTES(x > y ? x - y : 0);
    case 0xd9:
        WORDS(x > y ? x - y : 0);
    case 0xdc:
        BYTES(clamp(x + y, 0, 255));
    case 0xdd:
        WORDS(clamp(x + y, 0, 65535));
    case 0xe8:
        BYTES(clamp((int8_t)x - (int8_t)y, -128, 127));
    case 0xe9:
        WORDS(clamp((int16_t)x - (int16_t)y, -32768, 32767));
    case 0xec:
        BYTES(clamp((int8_t)x + (int8_t)y, -128, 127));
    case 0xed:
        WORDS(clamp((int16_t)x + (int16_t)y, -32768, 32767));
    case 0xf8:
        BYTES(x - y);
    case 0xf9:
        WORDS(x - y);
    case 0xfa:
        DWORDS(x - y);
    case 0xfc:
        BYTES(x + y);
    case 0xfd:
        WORDS(x + y);
    case 0xfe:
        DWORDS(x + y);
    default:
        return false;
    }
}

static bool ssse3(unsigned op, union xmm *a, const union xmm *b, unsigned size)
{
    union xmm r = { { 0 } };
    switch (op) {
    case 0x00:
        for (unsigned n = 0; n < size; n++)
            r.b[n] = b->b[n] & 0x80 ? 0 : a->b[b->b[n] & (size - 1)];
        break;
    case 0x01:
    case 0x03:
    case 0x05:
    case 0x07:
        for (unsigned n = 0; n < size / 2; n++) {
            const union xmm *s = n < size / 4 ? a : b;
            unsigned k = 2 * n % (size / 2);
            int x = (int16_t)s->w[k], y = (int16_t)s->w[k + 1], v = op < 4 ? x + y : x - y;
            r.w[n] = (uint16_t)(op == 3 || op == 7 ? clamp(v, -32768, 32767) : v);
        }
        break;
    case 0x02:
    case 0x06:
        for (unsigned n = 0; n < size / 4; n++) {
            const union xmm *s = n < size / 8 ? a : b;
            unsigned k = 2 * n % (size / 4);
            r.d[n] = op == 2 ? s->d[k] + s->d[k + 1] : s->d[k] - s->d[k + 1];
        }
        break;
    case 0x04:
        for (unsigned n = 0; n < size / 2; n++)
            r.w[n] = (uint16_t)clamp(a->b[2 * n] * (int8_t)b->b[2 * n] +
                                         a->b[2 * n + 1] * (int8_t)b->b[2 * n + 1],
                                     -32768, 32767);
        break;
    case 0x08:
        BYTES((int8_t)y < 0 ? -x : y ? x : 0);
    case 0x09:
        WORDS((int16_t)y < 0 ? -x : y ? x : 0);
    case 0x0a:
        DWORDS((int32_t)y < 0 ? 0 - x : y ? x : 0);
    case 0x0b:
        WORDS((((int16_t)x * (int16_t)y >> 14) + 1) >> 1);
    case 0x1c:
        BYTES((int8_t)y < 0 ? -y : y);
    case 0x1d:
        WORDS((int16_t)y < 0 ? -y : y);
    case 0x1e:
        DWORDS((int32_t)y < 0 ? 0 - y : y);
    default:
        return false;
    }
    *a = r;
    return true;
}

static bool compare(unsigned op, union xmm *a, const union xmm *b, unsigned size)
{
    switch (op) {
    case 0x64:
        BYTES((int8_t)x > (int8_t)y ? 0xff : 0);
    case 0x65:
        WORDS((int16_t)x > (int16_t)y ? 0xffff : 0);
    case 0x66:
        DWORDS((int32_t)x > (int32_t)y ? ~0u : 0);
    case 0x74:
        BYTES(x == y ? 0xff : 0);
    case 0x75:
        WORDS(x == y ? 0xffff : 0);
    default:
        DWORDS(x == y ? ~0u : 0);
    }
}

static bool extreme(unsigned op, union xmm *a, const union xmm *b, unsigned size)
{
    switch (op) {
    case 0xda:
        BYTES(x < y ? x : y);
    case 0xde:
        BYTES(x > y ? x : y);
    case 0xea:
        WORDS((int16_t)x < (int16_t)y ? x : y);
    default:
        WORDS((int16_t)x > (int16_t)y ? x : y);
    }
}

/* What is one expression for each lane. */
static bool each_lane(unsigned op, union xmm *a, const union xmm *b, unsigned size)
{
    switch (op) {
    case 0xd5:
        WORDS((int16_t)x * (int16_t)y);
    case 0xe4:
        WORDS((uint32_t)x * y >> 16);
    case 0xe5:
        WORDS((int16_t)x * (int16_t)y >> 16);
    case 0xdb:
        QWORDS(x & y);
    case 0xdf:
        QWORDS(~x & y);
    case 0xeb:
        QWORDS(x | y);
    case 0xef:
        QWORDS(x ^ y);
    case 0xe0:
        BYTES((x + y + 1) >> 1);
    case 0xe3:
        WORDS((x + y + 1) >> 1);
    default:
        return add_sub(op, a, b, size);
    }
}

bool simd_packed(uint16_t full, union xmm *a, const union xmm *b, unsigned size)
{
    unsigned op = full & 0xff;
    if (full >= MAP_38)
        return ssse3(op, a, b, size);
    switch (op) {
    case 0x60:
    case 0x61:
    case 0x62:
        interleave(a, b, size, 1u << (op - 0x60), false);
        return true;
    case 0x68:
    case 0x69:
    case 0x6a:
        interleave(a, b, size, 1u << (op - 0x68), true);
        return true;
    case 0x6c:
    case 0x6d:
        interleave(a, b, size, 8, op & 1);
        return true;
    case 0x63:
    case 0x67:
    case 0x6b:
        pack(a, b, size, op);
        return true;
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x74:
    case 0x75:
    case 0x76:
        return compare(op, a, b, size);
    case 0xd1:
    case 0xd2:
    case 0xd3:
    case 0xe1:
    case 0xe2:
    case 0xf1:
    case 0xf2:
    case 0xf3:
        return shift(op, a, b, size);
    case 0xda:
    case 0xde:
    case 0xea:
    case 0xee:
        return extreme(op, a, b, size);
    case 0xf4:
    case 0xf5:
    case 0xf6:
        return sums(op, a, b, size);
    default:
        return each_lane(op, a, b, size);
    }
}
