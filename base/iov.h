/* Walking the scattered buffers of a request.
 *
 * A cursor stands somewhere in an iovec array that it does not own; each call deals with the next
 * n bytes and moves on. There must be that many left (asserted).
 */
#ifndef BASE_IOV_H
#define BASE_IOV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct iov_cursor {
    const struct iovec *iov; /* the element it stands in */
    int left;                /* elements from there on */
    size_t at;               /* bytes into the element */
};

uint64_t iov_length(const struct iovec *iov, int iovcnt);

static inline struct iov_cursor iov_begin(const struct iovec *iov, int iovcnt)
{
    return (struct iov_cursor){ .iov = iov, .left = iovcnt };
}

void iov_skip(struct iov_cursor *cursor, uint64_t n);

/* Fills out with the pieces of the next n bytes and says how many there are. -E2BIG when they are
 * more than max; the cursor then has not moved. max = all elements always suffices. */
int iov_slice(struct iov_cursor *cursor, uint64_t n, struct iovec *out, int max);

/* The same for as much of the next *n bytes as max pieces hold; *n becomes that. n > 0, max > 0. */
int iov_slice_some(struct iov_cursor *cursor, uint64_t *n, struct iovec *out, int max);

void iov_read(struct iov_cursor *cursor, void *to, size_t n);          /* iov -> flat */
void iov_write(struct iov_cursor *cursor, const void *from, size_t n); /* flat -> iov */
void iov_fill(struct iov_cursor *cursor, int byte, uint64_t n);
bool iov_is_zero(struct iov_cursor *cursor, uint64_t n);

/* Every element's address and length is a multiple of the power of two. */
bool iov_is_aligned(const struct iovec *iov, int iovcnt, size_t pow2);

#endif
