/* Any bytes as a VMDK: open, describe, map, read, check, and write if it may be written.
 *
 * The bytes lie in a memory node, so that nothing touches the disk. Two bytes in front choose how the
 * image is opened. The mutator knows where header fields, markers, tables and entries are, and what
 * values hurt; half of the time it leaves the work to libFuzzer's own.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/macros.h"
#include "block/block.h"

#include "image.h"
#include "mutate.h"

enum {
    AT_CAPACITY = 12,
    AT_GRAIN = 20,
    AT_DESC = 28,
    AT_GT_ENTRIES = 44,
    AT_RGD = 48,
    AT_GD = 56,
    AT_OVERHEAD = 64,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

/* Grains of megabytes cost a hundred times what others do and teach nothing new. */
static bool costly(const uint8_t *image, size_t size)
{
    return size >= 512 && load_le32(image) == UINT32_C(0x564d444b) &&
           load_le64(image + AT_GRAIN) > 256;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > 1 << 20)
        return 0;
    if (costly(data + 2, size - 2))
        return -1; /* not for the corpus */
    unsigned how = data[0];
    struct blk_open_args args = {
        .image_opts = true,
        .follow = BLK_FOLLOW_NONE,
        .flags = BLK_OPEN_NO_BACKING | (how & 1 ? BLK_OPEN_RDWR | BLK_OPEN_UNMAP : 0) |
                 (how & 2 ? BLK_OPEN_REPAIR : 0) | (how & 4 ? BLK_OPEN_NO_IO : 0),
    };
    struct blk_check result;
    struct blk_node *node;

    blk_on_warning(quiet, NULL);
    fill_memory(data + 2, size - 2);
    if (blk_open("driver=vmdk,file=bytes,discard=unmap", &args, &node, NULL) == 0) {
        describe(node);
        walk(node);
        if (how & 8)
            (void)blk_check(node, how & 1 ? (how >> 4) & 3 : 0, &result, NULL, NULL);
        if ((how & 7) == 1)
            change(node, how >> 4);
        blk_close(node, NULL);
    }
    return 0;
}

/* ---- the mutator ---------------------------------------------------------------------------------- */

/* A sector of the file, sometimes one past its end. */
static uint64_t some_sector(struct victim *v)
{
    return below(v, v->size / 512 + 2);
}

static uint64_t some_number(struct victim *v)
{
    static const uint64_t limits[] = { 0,
                                       1,
                                       2,
                                       127,
                                       128,
                                       129,
                                       512,
                                       21,
                                       UINT32_MAX,
                                       UINT64_C(1) << 32,
                                       2 * 65536 - 12,
                                       INT64_MAX,
                                       UINT64_MAX };

    return hurtful(v, limits, ARRAY_SIZE(limits), some_sector(v), 1000);
}

static void change_field(struct victim *v)
{
    static const struct {
        uint8_t at, size;
    } field[] = {
        { 4, 4 },
        { 8, 4 },
        { AT_CAPACITY, 8 },
        { AT_GRAIN, 8 },
        { AT_DESC, 8 },
        { AT_DESC + 8, 8 },
        { AT_GT_ENTRIES, 4 },
        { AT_RGD, 8 },
        { AT_GD, 8 },
        { AT_OVERHEAD, 8 },
        { 77, 2 },
    };
    size_t i = below(v, ARRAY_SIZE(field));
    uint8_t *at = v->image + field[i].at;
    uint64_t value = some_number(v);

    if (field[i].size == 8)
        store_le64(at, value);
    else if (field[i].size == 4)
        store_le32(at, (uint32_t)value);
    else
        store_le16(at, (uint16_t)value);
}

/* An entry of a directory, or of a table that one names. */
static void change_entry(struct victim *v)
{
    uint64_t at = load_le64(v->image + (below(v, 2) ? AT_GD : AT_RGD)) * 512 + 4 * below(v, 4);

    if (below(v, 3) && at + 4 <= v->size)
        at = load_le32(v->image + at) * UINT64_C(512) + 4 * below(v, below(v, 2) ? 8 : 512);
    if (at > v->size - 4)
        return;
    store_le32(v->image + at, (uint32_t)(below(v, 3) ? some_sector(v) : some_number(v)));
}

/* Any sector may begin with a marker. */
static void change_marker(struct victim *v)
{
    uint64_t at = some_sector(v) * 512;

    if (at + 16 > v->size)
        return;
    if (below(v, 2))
        store_le64(v->image + at, some_number(v));
    else
        store_le32(v->image + at + (below(v, 2) ? 8 : 12), (uint32_t)some_number(v));
}

static void copy_sectors(struct victim *v)
{
    uint64_t from = some_sector(v) * 512, to = some_sector(v) * 512, len = 512 * (1 + below(v, 4));

    if (from + len <= v->size && to + len <= v->size)
        memmove(v->image + to, v->image + from, len);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    struct victim v = victim_of(data, size, seed);

    if (v.size < 512 || below(&v, 2))
        return LLVMFuzzerMutate(data, size, max);
    for (uint64_t n = 1 + below(&v, 3); n > 0; n--)
        switch (below(&v, 8)) {
        case 0:
            data[0] = (uint8_t)number(&v);
            break;
        case 1:
        case 2:
            change_field(&v);
            break;
        case 3:
            copy_sectors(&v);
            break;
        case 4:
            change_marker(&v);
            break;
        default:
            change_entry(&v);
            break;
        }
    return size;
}
