/* AES, carry-less multiplication and SHA, from FIPS 197 and FIPS 180. */
#include "sse.h"

static uint8_t times(unsigned a, unsigned b)
{
    unsigned r = 0;
    for (; b; b >>= 1, a = a << 1 ^ (a & 0x80 ? 0x11b : 0))
        r ^= b & 1 ? a : 0;
    return (uint8_t)r;
}

static uint8_t s_box[256], inverse_box[256];
static uint8_t by9[256], by11[256], by13[256], by14[256];

/* The tables follow from the definition: the inverse in GF(2^8), then an affine map. */
static void make_tables(void)
{
    for (unsigned n = 0; n < 256; n++) {
        unsigned inverse = 0;
        while (n && times(n, inverse) != 1)
            inverse++;
        unsigned v = inverse | inverse << 8;
        v = (v ^ v >> 4 ^ v >> 5 ^ v >> 6 ^ v >> 7 ^ 0x63) & 0xff;
        s_box[n] = (uint8_t)v;
        inverse_box[v] = (uint8_t)n;
        by9[n] = times(n, 9);
        by11[n] = times(n, 11);
        by13[n] = times(n, 13);
        by14[n] = times(n, 14);
    }
}

static void mix_column(uint8_t *b)
{
    uint8_t in[4];
    memcpy(in, b, 4);
    for (unsigned n = 0; n < 4; n++) {
        uint8_t x = in[n], y = in[(n + 1) & 3];
        unsigned twice = (unsigned)(x ^ y) << 1 ^ ((x ^ y) & 0x80 ? 0x1b : 0);
        b[n] = (uint8_t)(twice ^ y ^ in[(n + 2) & 3] ^ in[(n + 3) & 3]);
    }
}

static void unmix_column(uint8_t *b)
{
    uint8_t in[4];
    memcpy(in, b, 4);
    for (unsigned n = 0; n < 4; n++)
        b[n] = by14[in[n]] ^ by11[in[(n + 1) & 3]] ^ by13[in[(n + 2) & 3]] ^ by9[in[(n + 3) & 3]];
}

static void h_aes(struct x86 *c, const struct insn *i)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_tables);
    simd_available(c, false);
    unsigned op = i->op & 0xff;
    union xmm key = simd_rm(c, i, 16, true), a = c->xmm[i->reg], r;
    if (op == 0xdb) { /* AESIMC */
        for (unsigned n = 0; n < 16; n += 4)
            unmix_column(&key.b[n]);
        c->xmm[i->reg] = key;
        return;
    }
    bool back = op >= 0xde;
    for (unsigned n = 0; n < 16; n++) { /* rows move by as many columns as their number */
        unsigned from = (n + (back ? 12 * (n & 3) : 4 * (n & 3))) & 15;
        r.b[n] = back ? inverse_box[a.b[from]] : s_box[a.b[from]];
    }
    for (unsigned n = 0; n < 16 && !(op & 1); n += 4)
        (back ? unmix_column : mix_column)(&r.b[n]);
    for (unsigned n = 0; n < 2; n++)
        c->xmm[i->reg].q[n] = r.q[n] ^ key.q[n];
}

static uint32_t rotate(uint32_t v, unsigned right)
{
    return v >> right | v << (32 - right);
}

static void h_aes_key(struct x86 *c, const struct insn *i)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_tables);
    simd_available(c, false);
    union xmm b = simd_rm(c, i, 16, true), r;
    for (unsigned n = 0; n < 4; n++) {
        union xmm w = { .d = { b.d[n | 1] } };
        for (unsigned k = 0; k < 4; k++)
            w.b[k] = s_box[w.b[k]];
        r.d[n] = n & 1 ? rotate(w.d[0], 8) ^ (uint32_t)i->imm : w.d[0];
    }
    c->xmm[i->reg] = r;
}

static void h_pclmul(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    union xmm b = simd_rm(c, i, 16, true);
    uint64_t x = c->xmm[i->reg].q[i->imm & 1], y = b.q[i->imm >> 4 & 1];
    unsigned __int128 r = 0;
    for (unsigned n = 0; y >> n; n++) {
        r ^= y >> n & 1 ? (unsigned __int128)x << n : 0;
        if (n == 63)
            break;
    }
    c->xmm[i->reg] = (union xmm){ .q = { (uint64_t)r, (uint64_t)(r >> 64) } };
}

/* The words a, b, c, ... of the algorithm lie in a register from the top down. */
static void sha1_rounds(union xmm *x, const union xmm *w, unsigned how)
{
    static const uint32_t k[4] = { 0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6 };
    uint32_t a = x->d[3], b = x->d[2], c = x->d[1], d = x->d[0], e = 0;
    for (unsigned n = 0; n < 4; n++) {
        uint32_t f = how == 0   ? (b & c) ^ (~b & d)
                     : how == 2 ? (b & c) ^ (b & d) ^ (c & d)
                                : b ^ c ^ d;
        uint32_t t = f + rotate(a, 27) + w->d[3 - n] + e + k[how];
        e = d;
        d = c;
        c = rotate(b, 2);
        b = a;
        a = t;
    }
    *x = (union xmm){ .d = { d, c, b, a } };
}

static void sha256_rounds(union xmm *x, const union xmm *y, const union xmm *w)
{
    uint32_t a = y->d[3], b = y->d[2], c = x->d[3], d = x->d[2];
    uint32_t e = y->d[1], f = y->d[0], g = x->d[1], h = x->d[0];
    for (unsigned n = 0; n < 2; n++) {
        uint32_t t1 =
            h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + w->d[n];
        uint32_t t2 =
            (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    *x = (union xmm){ .d = { f, e, b, a } };
}

static uint32_t sigma0(uint32_t v)
{
    return rotate(v, 7) ^ rotate(v, 18) ^ v >> 3;
}

static uint32_t sigma1(uint32_t v)
{
    return rotate(v, 17) ^ rotate(v, 19) ^ v >> 10;
}

static void h_sha(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    union xmm b = simd_rm(c, i, 16, true), *a = &c->xmm[i->reg], r = *a;
    switch (i->op) {
    case MAP_3A + 0xcc:
        sha1_rounds(&r, &b, i->imm & 3);
        break;
    case MAP_38 + 0xc8:
        r = b;
        r.d[3] += rotate(a->d[3], 2);
        break;
    case MAP_38 + 0xc9:
        r.q[1] = a->q[1] ^ a->q[0];
        r.q[0] = a->q[0] ^ b.q[1];
        break;
    case MAP_38 + 0xca:
        r.d[3] = rotate(a->d[3] ^ b.d[2], 31);
        r.d[2] = rotate(a->d[2] ^ b.d[1], 31);
        r.d[1] = rotate(a->d[1] ^ b.d[0], 31);
        r.d[0] = rotate(a->d[0] ^ r.d[3], 31);
        break;
    case MAP_38 + 0xcb:
        sha256_rounds(&r, &b, &c->xmm[0]);
        break;
    case MAP_38 + 0xcc:
        for (unsigned n = 0; n < 4; n++)
            r.d[n] = a->d[n] + sigma0(n < 3 ? a->d[n + 1] : b.d[0]);
        break;
    default:
        r.d[0] = a->d[0] + sigma1(b.d[2]);
        r.d[1] = a->d[1] + sigma1(b.d[3]);
        r.d[2] = a->d[2] + sigma1(r.d[0]);
        r.d[3] = a->d[3] + sigma1(r.d[1]);
        break;
    }
    *a = r;
}

x86_helper *crypto_find(struct x86 *c, const struct insn *i)
{
    unsigned op = i->op;
    if (!i->opsize && !i->rep)
        return has(c, FEATURE_SHA) &&
                       ((op >= MAP_38 + 0xc8 && op <= MAP_38 + 0xcd) || op == MAP_3A + 0xcc)
                   ? h_sha
                   : NULL;
    if (!i->opsize)
        return NULL;
    if (op == MAP_3A + 0x44)
        return has(c, FEATURE_PCLMUL) ? h_pclmul : NULL;
    if (!has(c, FEATURE_AES))
        return NULL;
    return op == MAP_3A + 0xdf                          ? h_aes_key
           : op >= MAP_38 + 0xdb && op <= MAP_38 + 0xdf ? h_aes
                                                        : NULL;
}
