/* A dense bitmap: one bit for each of a known number of things. No locking of its own. */
#ifndef BASE_BITMAP_H
#define BASE_BITMAP_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

struct bitmap {
    uint64_t *words;
    uint64_t bits;
};

/* All clear. 0 or -ENOMEM. */
int bitmap_init(struct bitmap *map, uint64_t bits);
void bitmap_free(struct bitmap *map);

static inline bool bitmap_test(const struct bitmap *map, uint64_t bit)
{
    assert(bit < map->bits);
    return map->words[bit / 64] >> (bit % 64) & 1;
}

static inline void bitmap_set(struct bitmap *map, uint64_t bit)
{
    assert(bit < map->bits);
    map->words[bit / 64] |= UINT64_C(1) << (bit % 64);
}

static inline void bitmap_clear(struct bitmap *map, uint64_t bit)
{
    assert(bit < map->bits);
    map->words[bit / 64] &= ~(UINT64_C(1) << (bit % 64));
}

/* [from, from + count) must lie inside; count may be 0. */
void bitmap_set_range(struct bitmap *map, uint64_t from, uint64_t count);
void bitmap_clear_range(struct bitmap *map, uint64_t from, uint64_t count);

/* The first such bit at or after `from`; map->bits when there is none. */
uint64_t bitmap_next_set(const struct bitmap *map, uint64_t from);
uint64_t bitmap_next_clear(const struct bitmap *map, uint64_t from);

/* How many are set. */
uint64_t bitmap_count(const struct bitmap *map);

#endif
