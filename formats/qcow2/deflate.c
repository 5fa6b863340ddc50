/* Finding what repeats: chains of positions whose next four bytes hash alike, and the last position for three.
 *
 * Positions are kept as their low 16 bits. An old one may then stand for a place it never was, which costs a
 * comparison and nothing more: every candidate within the window is compared byte by byte.
 *
 * A match is taken when the next position has none that is longer.
 */
#include "deflate.h"

#include <string.h>

#include "base/bytes.h"
#include "base/macros.h"

enum {
    DEPTH = 6,          /* candidates looked at for a match */
    DEPTH_NEXT = 3,     /* and for a longer one at the next position */
    DEPTH_GOOD = 1,     /* when the match is GOOD_LENGTH long already */
    GOOD_LENGTH = 8,
    LAZY_LENGTH = 16,   /* long enough not to try the next position */
    NICE_LENGTH = 32,   /* long enough not to look for longer ones */
    DULL_RUN = 256,     /* literals in a row from which on positions are skipped, one more per so many */
    DULL_SKIP = 8,      /* but no more than this */
    LONGEST_RUN = 60000, /* literals that one step tells */
};

struct match {
    unsigned length, distance;
};

static inline unsigned hash4(uint32_t x)
{
    return (x * 0x9e3779b1u) >> 19;
}

static inline unsigned hash3(uint32_t x)
{
    return ((x << 8) * 0x9e3779b1u) >> 21;
}

static inline unsigned same_bytes(const uint8_t *a, const uint8_t *b, unsigned from, unsigned most)
{
    while (from + 8 <= most) {
        uint64_t differ = load_le64(a + from) ^ load_le64(b + from);
        if (differ)
            return from + ((unsigned) __builtin_ctzll(differ) >> 3);
        from += 8;
    }
    while (from < most && a[from] == b[from])
        from++;
    return from;
}

static inline void insert(struct deflate_state *s, const uint8_t *in, size_t pos)
{
    uint32_t x = load_le32(in + pos);
    unsigned h = hash4(x);

    s->before[pos % DEFLATE_WINDOW] = s->head4[h];
    s->head4[h] = (uint16_t) pos;
    s->head3[hash3(x)] = (uint16_t) pos;
}

/* The longest match at pos that is longer than m's, into m; inserts pos. At least four bytes are left. */
static inline void search(struct deflate_state *s, const uint8_t *in, size_t pos, unsigned most,
                          unsigned depth, struct match *m)
{
    const uint8_t *here = in + pos;
    uint32_t x = load_le32(here);
    unsigned h = hash4(x), h3 = hash3(x), last = 0;
    unsigned candidate = s->head4[h];

    if (m->length < DEFLATE_MIN_MATCH) {
        unsigned d = (uint16_t) (pos - s->head3[h3]);
        if (d - 1 < DEFLATE_WINDOW && d <= pos && ((load_le32(here - d) ^ x) & 0xffffff) == 0) {
            m->length = DEFLATE_MIN_MATCH;
            m->distance = d;
        }
    }
    s->head3[h3] = (uint16_t) pos;
    s->before[pos % DEFLATE_WINDOW] = (uint16_t) candidate;
    s->head4[h] = (uint16_t) pos;
    while (depth-- > 0 && m->length < most) {
        unsigned d = (uint16_t) (pos - candidate);
        if (d - 1 >= DEFLATE_WINDOW || d > pos || d <= last)
            return;
        const uint8_t *there = here - d;
        if (load_le32(there) == x && (m->length < 4 || load_le32(there + m->length - 3) ==
                                                        load_le32(here + m->length - 3))) {
            unsigned n = same_bytes(here, there, 4, most);
            if (n > m->length) {
                *m = (struct match){ n, d };
                if (n >= NICE_LENGTH)
                    return;
            }
        }
        last = d;
        candidate = s->before[candidate % DEFLATE_WINDOW];
    }
}

/* ---- blocks ---------------------------------------------------------------------------------------------- */

struct run {
    struct deflate_state *s;
    const uint8_t *in;
    size_t len, start; /* start: of the literals that wait */
    struct deflate_bits out;
};

static void begin_block(struct run *r)
{
    struct deflate_block *b = &r->s->block;

    b->in = r->in + r->start;
    b->count = 0;
    memset(b->literal_uses, 0, sizeof(b->literal_uses));
    memset(b->distance_uses, 0, sizeof(b->distance_uses));
}

static int add_step(struct run *r, size_t pos, struct match m)
{
    struct deflate_block *b = &r->s->block;

    for (size_t i = r->start; i < pos; i++)
        b->literal_uses[r->in[i]]++;
    b->steps[b->count++] = (struct deflate_step){
        (uint16_t) (pos - r->start), (uint16_t) m.length, (uint16_t) m.distance
    };
    r->start = pos + m.length;
    if (m.length) {
        b->literal_uses[257 + deflate_length_symbol[m.length]]++;
        b->distance_uses[deflate_distance_symbol(m.distance)]++;
    }
    if (b->count < DEFLATE_BLOCK)
        return 1;
    int fits = deflate_block_write(b, 0, &r->out);
    begin_block(r);
    return fits;
}

/* Looks one position ahead for something longer, as often as that helps. Moves *pos to the match. */
static void improve(struct run *r, size_t *pos, struct match *m)
{
    while (m->length < LAZY_LENGTH && r->len - *pos > 5) {
        struct match next = { m->length, 0 };
        size_t left = r->len - *pos - 1;
        unsigned most = (unsigned) MIN(left, (size_t) DEFLATE_MAX_MATCH);
        search(r->s, r->in, *pos + 1, most, m->length < GOOD_LENGTH ? DEPTH_NEXT : DEPTH_GOOD,
               &next);
        if (next.length <= m->length)
            return;
        ++*pos;
        *m = next;
    }
}

/* Where to look next, after a position without a match: further and further away in what has none. */
static size_t after_dull(const struct run *r, size_t pos)
{
    size_t skip = MIN((pos - r->start) / DULL_RUN, (size_t) DULL_SKIP);
    return MIN(pos + 1 + skip, r->len);
}

/* The match at *pos, or one shortly after it, into the block, with the literals before. */
static int take_match(struct run *r, size_t *pos, struct match m)
{
    improve(r, pos, &m);
    if (!add_step(r, *pos, m))
        return 0;
    size_t stop = MIN(*pos + m.length, r->len - 3);
    /* The next position was inserted when it was searched for something longer. */
    for (size_t i = *pos + (m.length < LAZY_LENGTH ? 2 : 1); i < stop; i++)
        insert(r->s, r->in, i);
    *pos += m.length;
    return 1;
}

static int compress(struct run *r)
{
    size_t pos = 0;
    int fits = 1;

    begin_block(r);
    while (fits && r->len - pos >= 4) {
        struct match m = { 0, 0 };
        search(r->s, r->in, pos, (unsigned) MIN(r->len - pos, (size_t) DEFLATE_MAX_MATCH), DEPTH, &m);
        if (m.length) {
            fits = take_match(r, &pos, m);
            continue;
        }
        pos = after_dull(r, pos);
        if (pos - r->start > LONGEST_RUN)
            fits = add_step(r, pos, m);
    }
    return fits && add_step(r, r->len, (struct match){ 0, 0 }) &&
           deflate_block_write(&r->s->block, 1, &r->out);
}

size_t deflate_compress(struct deflate_state *s, const uint8_t *in, size_t in_len, uint8_t *out,
                        size_t out_cap)
{
    struct run r = { .s = s, .in = in, .len = in_len, .out = { .at = out, .end = out + out_cap } };

    memset(s->head4, 0, sizeof(s->head4));
    memset(s->head3, 0, sizeof(s->head3));
    if (!compress(&r))
        return 0;
    size_t len = (size_t) (r.out.at - out) + (r.out.count > 0);
    if (r.out.count > 0)
        *r.out.at = (uint8_t) r.out.held;
    return len;
}
