#include "pieces.h"

#include <stdio.h>
#include <stdlib.h>

#include "io.h"
#include "number.h"

static bool lengths(struct iovec *iov, char **argv, int count, size_t *total)
{
    *total = 0;
    for (int i = 0; i < count; i++) {
        int64_t len;
        if (!number_size(argv[i], &len))
            return false;
        if (len > MAX_REQUEST) {
            printf("Argument '%s' exceeds maximum size %d\n", argv[i], MAX_REQUEST);
            return false;
        }
        if (len > (int64_t)(MAX_REQUEST - *total)) {
            printf("The total number of bytes exceed the maximum size %d\n", MAX_REQUEST);
            return false;
        }
        iov[i].iov_len = (size_t)len;
        *total += (size_t)len;
    }
    return true;
}

bool pieces_make(struct pieces *pieces, char **argv, int count, int fill, bool misalign)
{
    size_t total;
    *pieces = (struct pieces){ .iovcnt = count };
    pieces->iov = calloc((size_t)count, sizeof(*pieces->iov));
    if (!pieces->iov) {
        complain("out of memory");
        return false;
    }
    if (!lengths(pieces->iov, argv, count, &total) ||
        !buffer_make(&pieces->buf, total, fill, misalign)) {
        pieces_free(pieces);
        return false;
    }
    uint8_t *p = pieces->buf.at;
    for (int i = 0; i < count; i++) {
        pieces->iov[i].iov_base = p;
        p += pieces->iov[i].iov_len;
    }
    return true;
}

void pieces_free(struct pieces *pieces)
{
    buffer_free(&pieces->buf);
    free(pieces->iov);
    pieces->iov = NULL;
}
