/* A growable array of any type.
 *
 *     VECTOR(struct extent) list = VECTOR_INIT;
 *     if (vector_push(&list, extent) < 0) return -ENOMEM;
 *     for (size_t i = 0; i < list.len; i++) use(list.at[i]);
 *     vector_free(&list);
 */
#ifndef BASE_VECTOR_H
#define BASE_VECTOR_H

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define VECTOR(type)     \
    struct {             \
        type *at;        \
        size_t len, cap; \
    }
#define VECTOR_INIT \
    {               \
        NULL, 0, 0  \
    }

/* The array with room for `need` elements, or NULL when that overflows or there is no memory. */
void *vector_grow_(void *at, size_t *cap, size_t need, size_t element);

/* Room for n elements altogether. 0 or -ENOMEM. */
#define vector_reserve(v, n)                                                                     \
    ({                                                                                           \
        size_t vector_need_ = (n);                                                               \
        int vector_r_ = 0;                                                                       \
        if (vector_need_ > (v)->cap) {                                                           \
            void *vector_at_ = vector_grow_((v)->at, &(v)->cap, vector_need_, sizeof(*(v)->at)); \
            if (vector_at_)                                                                      \
                (v)->at = vector_at_;                                                            \
            else                                                                                 \
                vector_r_ = -ENOMEM;                                                             \
        }                                                                                        \
        vector_r_;                                                                               \
    })

/* 0 or -ENOMEM. */
#define vector_push(v, ...)                                     \
    ({                                                          \
        int vector_pushed_ = vector_reserve((v), (v)->len + 1); \
        if (vector_pushed_ == 0)                                \
            (v)->at[(v)->len++] = (__VA_ARGS__);                \
        vector_pushed_;                                         \
    })

/* Puts an element before number i. 0 or -ENOMEM. */
#define vector_insert(v, i, ...)                                  \
    ({                                                            \
        size_t vector_i_ = (i);                                   \
        int vector_inserted_ = vector_reserve((v), (v)->len + 1); \
        if (vector_inserted_ == 0) {                              \
            memmove((v)->at + vector_i_ + 1, (v)->at + vector_i_, \
                    ((v)->len - vector_i_) * sizeof(*(v)->at));   \
            (v)->at[vector_i_] = (__VA_ARGS__);                   \
            (v)->len++;                                           \
        }                                                         \
        vector_inserted_;                                         \
    })

#define vector_remove(v, i)                                   \
    do {                                                      \
        size_t vector_i_ = (i);                               \
        (v)->len--;                                           \
        memmove((v)->at + vector_i_, (v)->at + vector_i_ + 1, \
                ((v)->len - vector_i_) * sizeof(*(v)->at));   \
    } while (0)

#define vector_free(v)           \
    do {                         \
        free((v)->at);           \
        (v)->at = NULL;          \
        (v)->len = (v)->cap = 0; \
    } while (0)

#endif
