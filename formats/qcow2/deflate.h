/* Deflate (RFC 1951) with a window of 4 KiB, for compressed clusters.
 *
 *   deflate.c          finding what repeats
 *   deflate_block.c    a block's codes and its bits
 *
 * Why not a library: none that is fast can be held to a window this small without losing several percent of
 * size, and a small window is what makes this fast: all tables of the search fit into the first-level cache.
 *
 * The state is one thread's; its content does not matter before a call.
 */
#ifndef QCOW2_DEFLATE_H
#define QCOW2_DEFLATE_H

#include <stddef.h>
#include <stdint.h>

enum {
    DEFLATE_WINDOW = 4096,
    DEFLATE_MIN_MATCH = 3,
    DEFLATE_MAX_MATCH = 258,
    DEFLATE_LITERALS = 288,  /* literal and length symbols, with two that never occur */
    DEFLATE_DISTANCES = 32,
    DEFLATE_BLOCK = 1 << 14, /* steps of one block */
};

/* Some literals, then a match (length 0: none, the block ends). */
struct deflate_step {
    uint16_t literals, length, distance;
};

struct deflate_block {
    const uint8_t *in; /* where its literals and matches begin */
    struct deflate_step steps[DEFLATE_BLOCK];
    size_t count;
    uint32_t literal_uses[DEFLATE_LITERALS], distance_uses[DEFLATE_DISTANCES];
};

struct deflate_bits {
    uint8_t *at, *end;
    uint64_t held;  /* bits not written yet, from the lowest on */
    unsigned count; /* how many; below 8 after deflate_bits_put */
};

struct deflate_state {
    uint16_t head4[1 << 13]; /* low half of the last position with this hash of four bytes */
    uint16_t head3[1 << 11]; /* and of three */
    uint16_t before[DEFLATE_WINDOW]; /* by position: the one before with the same hash of four */
    struct deflate_block block;
};

/* The length, 0 when it would be above out_cap (or just below). */
size_t deflate_compress(struct deflate_state *s, const uint8_t *in, size_t in_len, uint8_t *out,
                        size_t out_cap);

/* deflate_block.c. False: no room. */
int deflate_block_write(const struct deflate_block *b, int last, struct deflate_bits *out);
/* Symbols of lengths and distances. */
extern const uint8_t deflate_length_symbol[DEFLATE_MAX_MATCH + 1]; /* less 257 */
static inline unsigned deflate_distance_symbol(unsigned distance)
{
    unsigned d = distance - 1;
    if (d < 4)
        return d;
    unsigned top = 31u - (unsigned) __builtin_clz(d);
    return 2 * top + (d >> (top - 1) & 1);
}

#endif
