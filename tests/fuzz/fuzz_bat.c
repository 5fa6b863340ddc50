/* Any bytes as an image with one table of blocks (VDI, VHD): open, describe, map, read, check, and write if it may
 * be written.
 *
 * As fuzz_qcow2.c: the bytes lie in a memory node, and two bytes in front choose how the image is opened. The
 * mutator knows where fields and entries are and keeps VHD's checksums right, since what is behind them would never be
 * reached else.
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

#define MAX_BLOCK (4u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

/* Blocks of many megabytes cost a hundred times what others do and teach nothing new. */
static bool costly(bool vhd, const uint8_t *image, size_t size)
{
    if (size < 1536)
        return false;
    uint32_t block = vhd ? load_be32(image + 512 + 32) : load_le32(image + 0x178);
    uint32_t extra = vhd ? 0 : load_le32(image + 0x17c);
    return block > MAX_BLOCK || extra > MAX_BLOCK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > 1 << 20)
        return 0;
    unsigned how = data[0];
    bool vhd = data[1] & 1;
    if (costly(vhd, data + 2, size - 2))
        return -1; /* not for the corpus */
    struct blk_open_args args = {
        .image_opts = true,
        .flags = BLK_OPEN_NO_BACKING | (how & 1 ? BLK_OPEN_RDWR | BLK_OPEN_UNMAP : 0) |
                 (how & 2 ? BLK_OPEN_REPAIR : 0) | (how & 4 ? BLK_OPEN_NO_IO : 0),
    };
    struct blk_check result;
    struct blk_node *node;

    blk_on_warning(quiet, NULL);
    fill_memory(data + 2, size - 2);
    if (blk_open(vhd ? "driver=vpc,file=bytes,discard=unmap"
                     : "driver=vdi,file=bytes,discard=unmap",
                 &args, &node, NULL) == 0) {
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

static uint64_t some_number(struct victim *v)
{
    static const uint64_t limits[] = { 0,          1,          2,          511,
                                       512,        1023,       4096,       65536,
                                       0x3fffffff, 0x40000000, UINT32_MAX, UINT32_MAX - 1,
                                       INT64_MAX,  UINT64_MAX };

    return hurtful(v, limits, ARRAY_SIZE(limits), below(v, v->size / 512 + 2) * 512, 40);
}

static void put(struct victim *v, size_t at, unsigned bytes, uint64_t value)
{
    if (at + bytes > v->size)
        return;
    if (bytes == 8)
        (v->kind ? store_be64 : store_le64)(v->image + at, value);
    else if (bytes == 4)
        (v->kind ? store_be32 : store_le32)(v->image + at, (uint32_t)value);
    else
        v->image[at] = (uint8_t)value;
}

struct field {
    uint16_t at, size;
};

static const struct field vdi_fields[] = {
    { 0x4c, 4 },  { 0x154, 4 }, { 0x158, 4 }, { 0x170, 8 }, { 0x178, 4 },
    { 0x17c, 4 }, { 0x180, 4 }, { 0x184, 4 }, { 0x1a8, 4 },
};
static const struct field vhd_fields[] = {
    { 16, 8 },       { 28, 4 },        { 48, 8 },        { 56, 4 },
    { 60, 4 },       { 512 + 16, 8 },  { 512 + 28, 4 },  { 512 + 32, 4 },
    { 512 + 64, 4 }, { 512 + 576, 4 }, { 512 + 584, 4 }, { 512 + 592, 8 },
};

static void change_field(struct victim *v)
{
    const struct field *f = v->kind ? &vhd_fields[below(v, ARRAY_SIZE(vhd_fields))]
                                    : &vdi_fields[below(v, ARRAY_SIZE(vdi_fields))];
    put(v, f->at, f->size, some_number(v));
}

static void change_entry(struct victim *v)
{
    uint64_t table = v->kind ? load_be64(v->image + 512 + 16) : load_le32(v->image + 0x154);
    uint64_t at = table + 4 * below(v, 40);

    if (at < v->size)
        put(v, (size_t)at, 4, below(v, 3) ? below(v, v->size / 512 + 1) : some_number(v));
}

static uint32_t sum(const uint8_t *bytes, size_t len, size_t at)
{
    uint32_t s = 0;

    for (size_t i = 0; i < len; i++)
        s += i >= at && i < at + 4 ? 0 : bytes[i];
    return ~s;
}

/* Most of the time checksums are right, and the footer is as its copy. */
static void sign(struct victim *v)
{
    store_be32(v->image + 64, sum(v->image, 512, 64));
    store_be32(v->image + 512 + 36, sum(v->image + 512, 1024, 36));
    if (below(v, 4))
        memcpy(v->image + v->size - 512, v->image, 512);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    struct victim v = victim_of(data, size, seed);

    if (v.size < 2560 || below(&v, 2))
        return LLVMFuzzerMutate(data, size, max);
    v.kind = data[1] & 1;
    for (uint64_t n = 1 + below(&v, 3); n > 0; n--)
        switch (below(&v, 6)) {
        case 0:
            data[0] = (uint8_t)number(&v);
            break;
        case 1:
        case 2:
            change_field(&v);
            break;
        default:
            change_entry(&v);
            break;
        }
    if (v.kind && below(&v, 16))
        sign(&v);
    return size;
}
