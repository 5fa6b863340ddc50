/* "len [len..]" of the vectored commands: one buffer, cut up. */
#ifndef IO_PIECES_H
#define IO_PIECES_H

#include <stdbool.h>
#include <sys/uio.h>

#include "buffer.h"

struct pieces {
    struct buffer buf;
    struct iovec *iov;
    int iovcnt;
};

/* From the words argv[0..count-1]; filled with that byte. False after a complaint. */
bool pieces_make(struct pieces *pieces, char **argv, int count, int fill, bool misalign);
void pieces_free(struct pieces *pieces);
#define _cleanup_pieces_ __attribute__((cleanup(pieces_free)))

#endif
