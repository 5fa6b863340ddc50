#include "base/iov.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/iszero.h"
#include "base/macros.h"

uint64_t iov_length(const struct iovec *iov, int iovcnt)
{
    uint64_t sum = 0;

    for (int i = 0; i < iovcnt; i++)
        sum += iov[i].iov_len;
    return sum;
}

/* The next piece, at most n bytes of one element, never empty; the cursor moves past it. n > 0. */
static struct iovec step(struct iov_cursor *c, uint64_t n)
{
    struct iovec piece;

    while (c->left > 0 && c->at == c->iov->iov_len) {
        c->iov++;
        c->left--;
        c->at = 0;
    }
    assert(c->left > 0);
    piece.iov_base = (char *)c->iov->iov_base + c->at;
    piece.iov_len = (size_t)MIN((uint64_t)(c->iov->iov_len - c->at), n);
    c->at += piece.iov_len;
    return piece;
}

void iov_skip(struct iov_cursor *cursor, uint64_t n)
{
    while (n > 0)
        n -= step(cursor, n).iov_len;
}

int iov_slice(struct iov_cursor *cursor, uint64_t n, struct iovec *out, int max)
{
    struct iov_cursor c = *cursor;
    int count = 0;

    while (n > 0) {
        if (count == max)
            return -E2BIG;
        out[count] = step(&c, n);
        n -= out[count++].iov_len;
    }
    *cursor = c;
    return count;
}

int iov_slice_some(struct iov_cursor *cursor, uint64_t *n, struct iovec *out, int max)
{
    uint64_t wanted = *n;
    int count = 0;

    *n = 0;
    while (*n < wanted && count < max) {
        out[count] = step(cursor, wanted - *n);
        *n += out[count++].iov_len;
    }
    return count;
}

void iov_read(struct iov_cursor *cursor, void *to, size_t n)
{
    while (n > 0) {
        struct iovec piece = step(cursor, n);

        memcpy(to, piece.iov_base, piece.iov_len);
        to = (char *)to + piece.iov_len;
        n -= piece.iov_len;
    }
}

void iov_write(struct iov_cursor *cursor, const void *from, size_t n)
{
    while (n > 0) {
        struct iovec piece = step(cursor, n);

        memcpy(piece.iov_base, from, piece.iov_len);
        from = (const char *)from + piece.iov_len;
        n -= piece.iov_len;
    }
}

void iov_fill(struct iov_cursor *cursor, int byte, uint64_t n)
{
    while (n > 0) {
        struct iovec piece = step(cursor, n);

        memset(piece.iov_base, byte, piece.iov_len);
        n -= piece.iov_len;
    }
}

bool iov_is_zero(struct iov_cursor *cursor, uint64_t n)
{
    bool zero = true;

    while (n > 0) {
        struct iovec piece = step(cursor, n);

        zero = zero && is_zero(piece.iov_base, piece.iov_len);
        n -= piece.iov_len;
    }
    return zero;
}

bool iov_is_aligned(const struct iovec *iov, int iovcnt, size_t pow2)
{
    uintptr_t any = 0;

    for (int i = 0; i < iovcnt; i++)
        any |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    return (any & (pow2 - 1)) == 0;
}
