/* One deflate block: code lengths from uses, codes from lengths, bits from steps.
 *
 * Lengths come from Huffman's tree, built in place over the sorted uses; lengths above the format's limit are cut
 * and the excess is paid back by making the longest codes below the limit longer.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/macros.h"
#include "deflate.h"

enum {
    MAX_BITS = 15,
    LENGTH_CODES = 19,     /* symbols that code lengths are told in */
    LENGTH_CODE_BITS = 7,
    END_OF_BLOCK = 256,
    FIRST_LENGTH = 257,
    USED_LITERALS = 286,
    USED_DISTANCES = 30,
};

const uint8_t deflate_length_symbol[DEFLATE_MAX_MATCH + 1] = {
    0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12,
    12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15, 16, 16, 16, 16, 16,
    16, 16, 16, 17, 17, 17, 17, 17, 17, 17, 17, 18, 18, 18, 18, 18, 18, 18, 18, 19,
    19, 19, 19, 19, 19, 19, 19, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20,
    20, 20, 20, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 22,
    22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 23, 23, 23, 23, 23,
    23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 24, 24, 24, 24, 24, 24, 24, 24, 24,
    24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24,
    24, 24, 24, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25,
    25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 26, 26, 26, 26, 26,
    26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26,
    26, 26, 26, 26, 26, 26, 26, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27,
    27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 28,
};

static const uint8_t length_extra[29] = { 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                          2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0 };
static const uint16_t length_base[29] = { 3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                          31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258 };

/* ---- code lengths ------------------------------------------------------------------------------------ */

/* Sorted by uses, rarest first: uses << 9 | symbol. */
static unsigned sorted_uses(const uint32_t *uses, unsigned n, uint32_t *out)
{
    unsigned count = 0;

    for (unsigned i = 0; i < n; i++)
        if (uses[i])
            out[count++] = uses[i] << 9 | i;
    for (unsigned gap = count > 60 ? 57 : count > 14 ? 13 : 4;; gap = gap > 13 ? 13 : gap > 4 ? 4 : 1) {
        for (unsigned i = gap; i < count; i++) {
            uint32_t x = out[i];
            unsigned j = i;
            for (; j >= gap && out[j - gap] > x; j -= gap)
                out[j] = out[j - gap];
            out[j] = x;
        }
        if (gap == 1)
            return count;
    }
}

/* How many codes there are of each length. The weights become parents, then depths. */
static void tree_depths(uint32_t *w, unsigned n, unsigned limit, unsigned *of_length)
{
    unsigned leaf = 0, root = 0;

    for (unsigned next = 0; next + 1 < n; next++) { /* inner nodes lie where leaves were taken */
        uint32_t sum = 0;
        for (int two = 0; two < 2; two++) {
            if (leaf >= n || (root < next && w[root] < w[leaf])) {
                sum += w[root];
                w[root++] = next;
            } else {
                sum += w[leaf++];
            }
        }
        w[next] = sum;
    }
    memset(of_length, 0, (MAX_BITS + 1) * sizeof(*of_length));
    w[n - 2] = 0;
    for (unsigned i = n - 2; i-- > 0;)
        w[i] = w[w[i]] + 1;
    unsigned free_places = 1, inner = n - 1, depth = 0;
    while (free_places > 0) {
        unsigned here = 0;
        while (inner > 0 && w[inner - 1] == depth) {
            here++;
            inner--;
        }
        of_length[MIN(depth, limit)] += free_places - here;
        free_places = 2 * here;
        depth++;
    }
}

/* Codes that were cut to the limit claim too much: others become longer until all fits. */
static void pay_back(unsigned *of_length, unsigned limit)
{
    uint32_t claimed = 0;

    for (unsigned i = 1; i <= limit; i++)
        claimed += of_length[i] << (limit - i);
    while (claimed > 1u << limit) {
        unsigned i = limit - 1;
        while (!of_length[i])
            i--;
        of_length[i]--;
        of_length[i + 1] += 2;
        of_length[limit]--;
        claimed--;
    }
}

static void make_lengths(const uint32_t *uses, unsigned n, unsigned limit, uint8_t *lengths)
{
    uint32_t sorted[DEFLATE_LITERALS], weights[DEFLATE_LITERALS];
    unsigned of_length[MAX_BITS + 1] = { 0 };
    unsigned count = sorted_uses(uses, n, sorted);

    memset(lengths, 0, n);
    if (count < 2) { /* two codes, so that every reader finds the code complete */
        unsigned symbol = count ? sorted[0] & 511 : 0;
        lengths[symbol] = 1;
        lengths[symbol ? 0 : 1] = 1;
        return;
    }
    for (unsigned i = 0; i < count; i++)
        weights[i] = sorted[i] >> 9;
    tree_depths(weights, count, limit, of_length);
    pay_back(of_length, limit);
    for (unsigned length = limit, i = 0; length > 0; length--)
        for (unsigned k = of_length[length]; k > 0; k--)
            lengths[sorted[i++] & 511] = (uint8_t) length;
}

/* ---- codes --------------------------------------------------------------------------------------------- */

struct code {
    uint16_t bits[DEFLATE_LITERALS];
    uint8_t lengths[DEFLATE_LITERALS];
};

static uint16_t reversed(unsigned bits, unsigned length)
{
    unsigned out = 0;

    while (length-- > 0) {
        out = out << 1 | (bits & 1);
        bits >>= 1;
    }
    return (uint16_t) out;
}

static void make_code(struct code *c, const uint32_t *uses, unsigned n, unsigned limit)
{
    unsigned next[MAX_BITS + 2] = { 0 }, of_length[MAX_BITS + 1] = { 0 };

    make_lengths(uses, n, limit, c->lengths);
    for (unsigned i = 0; i < n; i++)
        of_length[c->lengths[i]]++;
    of_length[0] = 0;
    for (unsigned i = 1; i <= MAX_BITS; i++)
        next[i + 1] = (next[i] + of_length[i]) << 1;
    for (unsigned i = 0; i < n; i++)
        if (c->lengths[i])
            c->bits[i] = reversed(next[c->lengths[i]]++, c->lengths[i]);
}

/* ---- bits -------------------------------------------------------------------------------------------------- */

/* At most 56 bits altogether may be held. */
static inline void hold(struct deflate_bits *o, uint64_t bits, unsigned n)
{
    o->held |= bits << o->count;
    o->count += n;
}

static inline int put(struct deflate_bits *o)
{
    if (o->end - o->at < 8)
        return 0;
    store_le64(o->at, o->held);
    o->at += o->count >> 3;
    o->held >>= o->count & ~7u;
    o->count &= 7;
    return 1;
}

static inline void hold_symbol(struct deflate_bits *o, const struct code *c, unsigned symbol)
{
    hold(o, c->bits[symbol], c->lengths[symbol]);
}

/* ---- the block's head ---------------------------------------------------------------------------------------- */

struct length_run {
    uint8_t symbol, extra;
};

/* Code lengths with their repetitions. Returns how many items. */
static unsigned pack_lengths(const uint8_t *lengths, unsigned n, struct length_run *out,
                             uint32_t *uses)
{
    unsigned count = 0;

    for (unsigned i = 0; i < n;) {
        unsigned run = 1;
        while (i + run < n && lengths[i + run] == lengths[i])
            run++;
        i += run;
        uint8_t symbol = lengths[i - 1];
        if (symbol != 0) {
            out[count++] = (struct length_run){ symbol, 0 };
            run--;
        }
        while (run > 0) {
            unsigned most = symbol ? 6 : 138, take = MIN(run, most);
            if (take < 3) {
                out[count++] = (struct length_run){ symbol, 0 };
                take = 1;
            } else if (symbol) {
                out[count++] = (struct length_run){ 16, (uint8_t) (take - 3) };
            } else if (take <= 10) {
                out[count++] = (struct length_run){ 17, (uint8_t) (take - 3) };
            } else {
                out[count++] = (struct length_run){ 18, (uint8_t) (take - 11) };
            }
            run -= take;
        }
    }
    for (unsigned i = 0; i < count; i++)
        uses[out[i].symbol]++;
    return count;
}

static int write_head(struct deflate_bits *o, int last, const struct code *lit,
                      const struct code *dist)
{
    static const uint8_t order[LENGTH_CODES] = { 16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                 11, 4,  12, 3, 13, 2, 14, 1, 15 };
    static const uint8_t extra_bits[3] = { 2, 3, 7 };
    uint8_t all[USED_LITERALS + USED_DISTANCES];
    struct length_run runs[USED_LITERALS + USED_DISTANCES];
    uint32_t uses[LENGTH_CODES] = { 0 };
    unsigned lits = USED_LITERALS, dists = USED_DISTANCES, codes = LENGTH_CODES;
    struct code c;

    while (lits > FIRST_LENGTH && !lit->lengths[lits - 1])
        lits--;
    while (dists > 1 && !dist->lengths[dists - 1])
        dists--;
    memcpy(all, lit->lengths, lits);
    memcpy(all + lits, dist->lengths, dists);
    unsigned count = pack_lengths(all, lits + dists, runs, uses);
    make_code(&c, uses, LENGTH_CODES, LENGTH_CODE_BITS);
    while (codes > 4 && !c.lengths[order[codes - 1]])
        codes--;
    hold(o, (uint64_t) (last | 2 << 1), 3);
    hold(o, (lits - FIRST_LENGTH) | (dists - 1) << 5 | (codes - 4) << 10, 14);
    if (!put(o))
        return 0;
    for (unsigned i = 0; i < codes; i++) {
        hold(o, c.lengths[order[i]], 3);
        if (!put(o))
            return 0;
    }
    for (unsigned i = 0; i < count; i++) {
        hold_symbol(o, &c, runs[i].symbol);
        if (runs[i].symbol >= 16)
            hold(o, runs[i].extra, extra_bits[runs[i].symbol - 16]);
        if (!put(o))
            return 0;
    }
    return 1;
}

/* ---- its body --------------------------------------------------------------------------------------------------- */

static int write_match(struct deflate_bits *o, const struct code *lit, const struct code *dist,
                       const struct deflate_step *s)
{
    unsigned l = deflate_length_symbol[s->length], d = deflate_distance_symbol(s->distance);

    hold_symbol(o, lit, FIRST_LENGTH + l);
    hold(o, s->length - length_base[l], length_extra[l]);
    hold_symbol(o, dist, d);
    if (d >= 4) {
        unsigned extra = d / 2 - 1;
        hold(o, (s->distance - 1u) & ((1u << extra) - 1), extra);
    }
    return put(o);
}

static int write_body(struct deflate_bits *o, const struct code *lit, const struct code *dist,
                      const struct deflate_block *b)
{
    const uint8_t *in = b->in;

    for (size_t i = 0; i < b->count; i++) {
        const struct deflate_step *s = &b->steps[i];
        unsigned n = s->literals;
        for (; n >= 3; n -= 3, in += 3) {
            hold_symbol(o, lit, in[0]);
            hold_symbol(o, lit, in[1]);
            hold_symbol(o, lit, in[2]);
            if (!put(o))
                return 0;
        }
        for (; n > 0; n--)
            hold_symbol(o, lit, *in++);
        if (!put(o) || (s->length && !write_match(o, lit, dist, s)))
            return 0;
        in += s->length;
    }
    hold_symbol(o, lit, END_OF_BLOCK);
    return put(o);
}

int deflate_block_write(const struct deflate_block *b, int last, struct deflate_bits *out)
{
    struct code lit, dist;
    uint32_t uses[DEFLATE_LITERALS];

    memcpy(uses, b->literal_uses, sizeof(uses));
    uses[END_OF_BLOCK] = 1;
    make_code(&lit, uses, USED_LITERALS, MAX_BITS);
    make_code(&dist, b->distance_uses, USED_DISTANCES, MAX_BITS);
    return write_head(out, last, &lit, &dist) && write_body(out, &lit, &dist, b);
}
