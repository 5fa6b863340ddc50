/* Deflate, bare or wrapped as zlib does it (RFC 1950, 1951), by ISA-L.
 *
 * Threads: pure functions, any thread. The libraries want some hundreds of KiB of state, too much to set up for every
 * call, so each thread keeps its own until it ends. Where there is no memory for it the answer is -ENOMEM and the next
 * call tries again.
 */
#ifndef BASE_DEFLATE_H
#define BASE_DEFLATE_H

#include <stddef.h>
#include <stdint.h>

enum deflate_wrap { DEFLATE_RAW, DEFLATE_ZLIB };

/* The encoded length, -E2BIG when it would be above cap. window_bits: how far a reader can look back, 9 to 15. */
int64_t deflate_encode(enum deflate_wrap wrap, unsigned window_bits, const void *in, size_t in_len,
                       void *out, size_t cap);

/* How many bytes came out, out_len at most. -EIO: it is no encoding. DEFLATE_RAW: what it holds beyond out_len is not looked
 * at. DEFLATE_ZLIB: it must not hold more, and its checksum must be right. What follows the encoding does not matter. */
int64_t deflate_decode(enum deflate_wrap wrap, unsigned window_bits, const void *in, size_t in_len,
                       void *out, size_t out_len);

#endif
