/* The next n bytes of a request's buffers as an iovec array of their own.
 *
 * Most requests have one or two buffers; those with many need memory.
 */
#ifndef BLOCK_SLICE_H
#define BLOCK_SLICE_H

#include <errno.h>
#include <stdlib.h>

#include "base/iov.h"

struct slice {
    struct iovec few[16];
    struct iovec *iov;
    int count;
};

/* Leaves `extra` unused elements in front and behind. 0 or -ENOMEM. */
static inline int slice_take(struct slice *s, struct iov_cursor *from, uint64_t n, int extra)
{
    int max = from->left;

    s->iov = s->few;
    if (max + 2 * extra > (int)(sizeof(s->few) / sizeof(s->few[0]))) {
        s->iov = malloc(((size_t)max + 2 * (size_t)extra) * sizeof(*s->iov));
        if (!s->iov)
            return -ENOMEM;
    }
    s->count = iov_slice(from, n, s->iov + extra, max);
    return 0;
}

static inline void slice_free(struct slice *s)
{
    if (s->iov != s->few)
        free(s->iov);
}

#endif
