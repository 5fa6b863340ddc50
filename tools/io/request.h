/* Requests to the image, with the bounds that a guest's disk has: whole sectors of 512 bytes.
 *
 * A raw file may end within a sector. Its rest reads as zeroes, and the file grows by it when it is
 * written. All functions answer 0 or a negative errno.
 */
#ifndef IO_REQUEST_H
#define IO_REQUEST_H

#include <stdint.h>
#include <sys/uio.h>

#include "block/block.h"

uint64_t request_size(struct blk_node *node); /* rounded up to sectors */

int request_readv(struct blk_node *node, int64_t offset, const struct iovec *iov, int iovcnt);
int request_writev(struct blk_node *node, int64_t offset, const struct iovec *iov, int iovcnt,
                   unsigned flags);
/* In pieces as the format compresses them. */
int request_write_compressed(struct blk_node *node, int64_t offset, const void *buf, uint64_t len);
int request_zero(struct blk_node *node, int64_t offset, uint64_t len, unsigned flags);
int request_discard(struct blk_node *node, int64_t offset, uint64_t len);

#endif
