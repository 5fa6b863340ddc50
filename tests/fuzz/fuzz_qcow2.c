/* Any bytes as a qcow2 image: open, describe, map, read, check, and write if it may be written.
 *
 * The bytes lie in a memory node, so that nothing touches the disk. Two bytes in front choose how the
 * image is opened.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "block/block.h"

#define MAX_READ (256u << 10)
#define MAX_RUNS 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void quiet(void *opaque, const char *text)
{
    (void)opaque;
    (void)text;
}

/* The node with the image's bytes in it, named "bytes". */
static struct blk_node *memory(const uint8_t *data, size_t size)
{
    struct blk_open_args args = { .image_opts = true, .flags = BLK_OPEN_RDWR | BLK_OPEN_RESIZE };
    struct blk_node *node;

    if (blk_open("driver=memory,node-name=bytes,size=0", &args, &node, NULL) < 0)
        abort();
    if (size && blk_write(node, 0, data, size, 0) < 0)
        abort();
    return node;
}

static void walk(struct blk_node *node)
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

static void describe(struct blk_node *node)
{
    struct blk_info info;

    if (blk_info(node, &info, NULL) == 0)
        blk_info_free(&info);
}

static void change(struct blk_node *node, unsigned how)
{
    static const uint8_t bytes[5000] = { 1, 2, 3 };
    uint64_t size = blk_size(node), at = size > sizeof(bytes) ? (size - sizeof(bytes)) / 2 : 0;

    (void)blk_write(node, at, bytes, MIN(size - at, (uint64_t)sizeof(bytes)), 0);
    (void)blk_zero(node, 0, MIN(size, (uint64_t)70000), how & 1 ? BLK_MAY_UNMAP : 0);
    (void)blk_discard(node, size / 2, MIN(size - size / 2, (uint64_t)200000));
    (void)blk_flush(node);
    if (size < UINT64_C(1) << 30)
        (void)blk_resize(node, size + 65536, BLK_PREALLOC_OFF, NULL);
    walk(node);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > 1 << 20)
        return 0;
    unsigned how = data[0];
    struct blk_open_args args = {
        .image_opts = true,
        .flags = BLK_OPEN_NO_BACKING | (how & 1 ? BLK_OPEN_RDWR | BLK_OPEN_UNMAP : 0) |
                 (how & 2 ? BLK_OPEN_REPAIR : 0) | (how & 4 ? BLK_OPEN_NO_IO : 0),
    };
    struct blk_check result;
    struct blk_node *node;

    blk_on_warning(quiet, NULL);
    struct blk_node *bytes = memory(data + 2, size - 2);
    if (blk_open("driver=qcow2,file=bytes,discard=unmap", &args, &node, NULL) == 0) {
        describe(node);
        walk(node);
        if (how & 8)
            (void)blk_check(node, how & 1 ? (how >> 4) & 3 : 0, &result, NULL, NULL);
        if ((how & 7) == 1)
            change(node, how >> 4);
        blk_close(node, NULL);
    }
    blk_close(bytes, NULL);
    return 0;
}
