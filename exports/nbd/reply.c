/* Headers of replies, in the three styles. */
#include <errno.h>

#include "base/bytes.h"
#include "internal.h"

static uint32_t wire_errno(int error)
{
    switch (error) {
    case EPERM:
    case EROFS:
    case EACCES:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

static size_t simple(uint64_t cookie, uint32_t error, uint8_t *out)
{
    store_be32(out, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(out + 4, error);
    store_be64(out + 8, cookie);
    return NBD_SIMPLE_REPLY_BYTES;
}

static size_t chunk_header(const struct piece *p, bool done, uint16_t type, uint64_t len,
                           uint8_t *out)
{
    bool extended = p->style == REPLY_EXTENDED;

    store_be32(out, extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
    store_be16(out + 4, done ? NBD_REPLY_FLAG_DONE : 0);
    store_be16(out + 6, type);
    store_be64(out + 8, p->cookie);
    if (!extended) {
        store_be32(out + 16, (uint32_t)len);
        return NBD_STRUCTURED_REPLY_BYTES;
    }
    store_be64(out + 16, p->request_offset);
    store_be64(out + 24, len);
    return NBD_EXTENDED_REPLY_BYTES;
}

void reply_set_done(uint8_t *header)
{
    store_be16(header + 4, NBD_REPLY_FLAG_DONE);
}

size_t reply_ok(const struct piece *p, uint8_t *out)
{
    if (p->style != REPLY_EXTENDED)
        return simple(p->cookie, 0, out);
    return chunk_header(p, true, NBD_CHUNK_NONE, 0, out);
}

size_t reply_end(const struct piece *p, uint8_t *out)
{
    return chunk_header(p, true, NBD_CHUNK_NONE, 0, out);
}

size_t reply_error(const struct piece *p, int error, uint8_t *out)
{
    bool chunks = p->style == REPLY_EXTENDED ||
                  (p->style == REPLY_STRUCTURED &&
                   (p->type == NBD_CMD_READ || p->type == NBD_CMD_BLOCK_STATUS));

    if (!chunks)
        return simple(p->cookie, wire_errno(error), out);
    bool placed = p->type == NBD_CMD_READ && !p->done;
    size_t n = chunk_header(p, p->done, placed ? NBD_CHUNK_ERROR_OFFSET : NBD_CHUNK_ERROR,
                            placed ? 14 : 6, out);
    store_be32(out + n, wire_errno(error));
    store_be16(out + n + 4, 0); /* no text */
    if (placed)
        store_be64(out + n + 6, p->offset);
    return n + (placed ? 14 : 6);
}

size_t reply_data(const struct piece *p, bool done, uint64_t offset, uint64_t len, uint8_t *out)
{
    if (p->style == REPLY_SIMPLE)
        return simple(p->cookie, 0, out);
    size_t n = chunk_header(p, done, NBD_CHUNK_OFFSET_DATA, 8 + len, out);
    store_be64(out + n, offset);
    return n + 8;
}

size_t reply_hole(const struct piece *p, bool done, uint64_t offset, uint64_t len, uint8_t *out)
{
    size_t n = chunk_header(p, done, NBD_CHUNK_OFFSET_HOLE, 12, out);

    store_be64(out + n, offset);
    store_be32(out + n + 8, (uint32_t)len);
    return n + 12;
}

size_t reply_status(const struct piece *p, bool done, uint32_t context, uint32_t count,
                    uint8_t *out)
{
    bool extended = p->style == REPLY_EXTENDED;
    size_t n = chunk_header(p, done, extended ? NBD_CHUNK_BLOCK_STATUS_EXT : NBD_CHUNK_BLOCK_STATUS,
                            extended ? 8 + (uint64_t)count * 16 : 4 + (uint64_t)count * 8, out);

    store_be32(out + n, context);
    if (extended)
        store_be32(out + n + 4, count);
    return n + (extended ? 8 : 4);
}
