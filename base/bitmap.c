#include "base/bitmap.h"

#include <errno.h>
#include <stdlib.h>

#include "base/macros.h"
#include "base/round.h"

int bitmap_init(struct bitmap *map, uint64_t bits)
{
    uint64_t words = div_round_up(bits, 64);

    map->bits = bits;
    map->words = words <= SIZE_MAX / 8 ? calloc(MAX(words, 1u), 8) : NULL;
    return map->words ? 0 : -ENOMEM;
}

void bitmap_free(struct bitmap *map)
{
    free(map->words);
    map->words = NULL;
    map->bits = 0;
}

/* Bits [from, to) of one word; 0 <= from < to <= 64. */
static uint64_t mask(unsigned from, unsigned to)
{
    uint64_t below_to = to == 64 ? UINT64_MAX : (UINT64_C(1) << to) - 1;

    return below_to & ~((UINT64_C(1) << from) - 1);
}

static void change_range(struct bitmap *map, uint64_t from, uint64_t count, bool set)
{
    uint64_t end = from + count;

    assert(from <= map->bits && count <= map->bits - from);
    while (from < end) {
        uint64_t word = from / 64;
        uint64_t stop = MIN(end, (word + 1) * 64);
        uint64_t m = mask((unsigned)(from % 64), (unsigned)(stop - word * 64));

        if (set)
            map->words[word] |= m;
        else
            map->words[word] &= ~m;
        from = stop;
    }
}

void bitmap_set_range(struct bitmap *map, uint64_t from, uint64_t count)
{
    change_range(map, from, count, true);
}

void bitmap_clear_range(struct bitmap *map, uint64_t from, uint64_t count)
{
    change_range(map, from, count, false);
}

/* flip: all ones to look for clear bits, else 0. */
static uint64_t next(const struct bitmap *map, uint64_t from, uint64_t flip)
{
    uint64_t words = div_round_up(map->bits, 64);

    if (from >= map->bits)
        return map->bits;
    for (uint64_t i = from / 64; i < words; i++) {
        uint64_t word = map->words[i] ^ flip;

        if (i == from / 64)
            word &= mask((unsigned)(from % 64), 64);
        if (word) {
            uint64_t bit = i * 64 + (unsigned)__builtin_ctzll(word);
            return MIN(bit, map->bits);
        }
    }
    return map->bits;
}

uint64_t bitmap_next_set(const struct bitmap *map, uint64_t from)
{
    return next(map, from, 0);
}

uint64_t bitmap_next_clear(const struct bitmap *map, uint64_t from)
{
    return next(map, from, UINT64_MAX);
}

uint64_t bitmap_count(const struct bitmap *map)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < div_round_up(map->bits, 64); i++)
        count += (unsigned)__builtin_popcountll(map->words[i]);
    return count;
}
