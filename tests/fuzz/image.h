/* What the fuzz targets of image formats share: an image in memory, and all that is done with an opened one. */
#ifndef FUZZ_IMAGE_H
#define FUZZ_IMAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/macros.h"
#include "block/block.h"

enum { MAX_READ = 256 << 10, MAX_RUNS = 64 };

static inline void quiet(void *opaque, const char *text)
{
    (void)opaque;
    (void)text;
}

/* A node of zeroes, named "bytes"; now and then it is made anew, since it keeps tables. */
static inline struct blk_node *empty_memory(uint64_t size)
{
    struct blk_open_args args = { .image_opts = true, .flags = BLK_OPEN_RDWR | BLK_OPEN_RESIZE };
    static struct blk_node *node;
    static unsigned runs;

    if (runs++ % 128 == 0) {
        blk_close(node, NULL);
        if (blk_open("driver=memory,node-name=bytes,size=0", &args, &node, NULL) < 0)
            abort();
    }
    if (blk_resize(node, 0, BLK_PREALLOC_OFF, NULL) < 0 ||
        blk_resize(node, size, BLK_PREALLOC_OFF, NULL) < 0)
        abort();
    return node;
}

static inline void store(struct blk_node *node, uint64_t at, const void *from, size_t len)
{
    if (len && blk_write(node, at, from, len, 0) < 0)
        abort();
}

static inline void fill_memory(const uint8_t *data, size_t size)
{
    store(empty_memory(size), 0, data, size);
}

static inline void describe(struct blk_node *node)
{
    struct blk_info info;

    if (blk_info(node, &info, NULL) == 0)
        blk_info_free(&info);
}

static inline void walk(struct blk_node *node)
{
    uint64_t off = 0, size = blk_size(node);
    static uint8_t buf[MAX_READ];

    for (int i = 0; i < MAX_RUNS && off < size; i++) {
        struct blk_extent e;
        if (blk_extents(node, off, size - off, i & 1 ? BLK_HOLES : 0, &e) < 0)
            e.length = MIN(size - off, (uint64_t)65536);
        (void)blk_read(node, off, buf, MIN(e.length, (uint64_t)MAX_READ), 0);
        off += e.length;
    }
    if (size)
        (void)blk_read(node, size - 1, buf, 1, 0);
}

static inline void change(struct blk_node *node, unsigned how)
{
    static const uint8_t bytes[5000] = { 1, 2, 3 };
    uint64_t size = blk_size(node), at = size > sizeof(bytes) ? (size - sizeof(bytes)) / 2 : 0;

    (void)blk_write(node, at, bytes, MIN(size - at, (uint64_t)sizeof(bytes)), 0);
    (void)blk_zero(node, 0, MIN(size, (uint64_t)70000), how & 1 ? BLK_MAY_UNMAP : 0);
    (void)blk_discard(node, size / 2, MIN(size - size / 2, (uint64_t)200000));
    (void)blk_flush(node);
    (void)blk_write(node, 0, bytes, MIN(size, (uint64_t)sizeof(bytes)), 0);
    if (size < UINT64_C(1) << 24) {
        (void)blk_resize(node, size + 65536, BLK_PREALLOC_OFF, NULL);
        (void)blk_resize(node, size / 1024 * 512, BLK_PREALLOC_OFF, NULL);
    }
    walk(node);
}

#endif
