#include "base/vector.h"

#include <stdint.h>

void *vector_grow_(void *at, size_t *cap, size_t need, size_t element)
{
    size_t room = *cap < 8 ? 8 : *cap;
    size_t bytes;
    void *grown;

    while (room < need)
        if (__builtin_mul_overflow(room, (size_t)2, &room))
            return NULL;
    if (__builtin_mul_overflow(room, element, &bytes) || bytes > PTRDIFF_MAX)
        return NULL;
    grown = realloc(at, bytes);
    if (grown)
        *cap = room;
    return grown;
}
