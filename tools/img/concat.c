#include "concat.h"

#include <string.h>

#include "base/macros.h"

#include "image.h"

struct blk_node *concat_at(const struct concat *c, uint64_t offset, uint64_t *within)
{
    int i = 0;
    for (; i + 1 < c->n && offset >= image_sectors_size(c->nodes[i]); i++)
        offset -= image_sectors_size(c->nodes[i]);
    *within = offset;
    return c->nodes[i];
}

bool concat_is_uneven(const struct concat *c, uint64_t unit)
{
    uint64_t at = 0;
    for (int i = 0; i + 1 < c->n; i++) {
        at += image_sectors_size(c->nodes[i]);
        if (at % unit)
            return true;
    }
    return false;
}

/* All of [offset, offset + len) of this image is known to be zeroes. */
static int all_zero(struct blk_node *node, uint64_t offset, uint64_t len, bool *zero)
{
    while (len > 0) {
        struct blk_extent e;
        int r = blk_extents(node, offset, len, BLK_HOLES, &e);
        if (r < 0)
            return r;
        if (!(e.flags & BLK_EXT_ZERO)) {
            *zero = false;
            return 0;
        }
        offset += e.length;
        len -= e.length;
    }
    return 0;
}

/* Calls fn for the part of each image in the range; `at` counts from the range's start. */
static int for_parts(const struct concat *c, uint64_t offset, size_t len,
                     int (*fn)(struct blk_node *node, uint64_t offset, uint64_t len, size_t at,
                               void *opaque),
                     void *opaque)
{
    uint64_t start = 0, end = offset + len;
    for (int i = 0; i < c->n && start < end; i++) {
        uint64_t size = blk_size(c->nodes[i]);
        uint64_t from = MAX(offset, start), to = MIN(end, start + size);
        if (from < to) {
            int r = fn(c->nodes[i], from - start, to - from, (size_t)(from - offset), opaque);
            if (r < 0)
                return r;
        }
        start += image_sectors_size(c->nodes[i]);
    }
    return 0;
}

static int look(struct blk_node *node, uint64_t offset, uint64_t len, size_t at, void *opaque)
{
    (void)at;
    return all_zero(node, offset, len, opaque);
}

static int fetch(struct blk_node *node, uint64_t offset, uint64_t len, size_t at, void *opaque)
{
    return blk_read(node, offset, (uint8_t *)opaque + at, (size_t)len, 0);
}

/* Behind an image that ends within a sector there are zeroes up to the next one. */
static void clear_gaps(const struct concat *c, uint64_t offset, uint8_t *buf, size_t len)
{
    uint64_t start = 0;
    for (int i = 0; i < c->n; i++) {
        uint64_t from = MAX(offset, start + blk_size(c->nodes[i]));
        start += image_sectors_size(c->nodes[i]);
        uint64_t to = MIN(offset + len, start);
        if (from < to)
            memset(buf + (from - offset), 0, (size_t)(to - from));
    }
}

int concat_read(const struct concat *c, uint64_t offset, void *buf, size_t len, bool *zero)
{
    *zero = true;
    int r = for_parts(c, offset, len, look, zero);
    if (r < 0 || *zero)
        return r;
    clear_gaps(c, offset, buf, len);
    return for_parts(c, offset, len, fetch, buf);
}
