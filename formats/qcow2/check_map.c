/* A map from numbers to numbers: open addressing, power-of-two capacity, at most half full. */
#include <stdlib.h>
#include <string.h>

#include "check.h"

#define FREE UINT64_MAX

static size_t slot_of(const struct qmap *map, uint64_t key)
{
    uint64_t h = key * UINT64_C(0x9e3779b97f4a7c15);
    size_t i = (size_t)(h >> 20) & (map->cap - 1);

    while (map->at[i].key != FREE && map->at[i].key != key)
        i = (i + 1) & (map->cap - 1);
    return i;
}

static bool grow(struct qmap *map)
{
    struct qmap old = *map;

    map->cap = old.cap ? 2 * old.cap : 64;
    map->at = malloc(map->cap * sizeof(*map->at));
    if (!map->at) {
        *map = old;
        return false;
    }
    memset(map->at, 0xff, map->cap * sizeof(*map->at)); /* all FREE */
    for (size_t i = 0; i < old.cap; i++)
        if (old.at[i].key != FREE)
            map->at[slot_of(map, old.at[i].key)] = old.at[i];
    free(old.at);
    return true;
}

uint64_t *qmap_at(struct qmap *map, uint64_t key)
{
    if (2 * (map->used + 1) > map->cap && !grow(map))
        return NULL;
    size_t i = slot_of(map, key);
    if (map->at[i].key == FREE) {
        map->at[i] = (struct qmap_pair){ .key = key };
        map->used++;
    }
    return &map->at[i].value;
}

const uint64_t *qmap_find(const struct qmap *map, uint64_t key)
{
    if (map->cap == 0)
        return NULL;
    size_t i = slot_of(map, key);
    return map->at[i].key == FREE ? NULL : &map->at[i].value;
}

void qmap_free(struct qmap *map)
{
    free(map->at);
    *map = (struct qmap){ 0 };
}
