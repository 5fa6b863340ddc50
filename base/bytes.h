/* Big and little endian integers in memory that need not be aligned. */
#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define BYTES_DEFINE_(bits, order)                                         \
    static inline uint##bits##_t load_##order##bits(const void *from)      \
    {                                                                      \
        uint##bits##_t raw;                                                \
        memcpy(&raw, from, sizeof(raw));                                   \
        return order##bits##toh(raw);                                      \
    }                                                                      \
    static inline void store_##order##bits(void *to, uint##bits##_t value) \
    {                                                                      \
        uint##bits##_t raw = hto##order##bits(value);                      \
        memcpy(to, &raw, sizeof(raw));                                     \
    }

/* load_be16 store_be16 load_be32 ... store_le64 */
BYTES_DEFINE_(16, be)
BYTES_DEFINE_(32, be)
BYTES_DEFINE_(64, be)
BYTES_DEFINE_(16, le)
BYTES_DEFINE_(32, le)
BYTES_DEFINE_(64, le)

#undef BYTES_DEFINE_

#endif
