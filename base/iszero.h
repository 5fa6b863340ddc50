/* Is this memory all zeroes? Asked of every block that a conversion reads, so it must run at the
 * speed of memory and answer "no" from the first or last bytes, where data usually shows. */
#ifndef BASE_ISZERO_H
#define BASE_ISZERO_H

#include <stdbool.h>
#include <stddef.h>

/* True for len 0. */
bool is_zero(const void *buf, size_t len);

/* The length of the leading run of granules (the last one may be short) that are all zero
 * (*zero true) or that all hold something (*zero false). len > 0. */
size_t zero_run(const void *buf, size_t len, size_t granule, bool *zero);

#endif
