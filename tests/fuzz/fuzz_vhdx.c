/* Any changes to a VHDX image: open, describe, map, read, check, and write if it may be written.
 *
 * An image has megabytes, nearly all of them zeroes, and checksums everywhere. So the input is no image but a list of
 * changes to a sound one: fields of headers, regions, metadata, BAT entries, log entries, raw bytes. Checksums are put
 * right afterwards, unless the input says otherwise. The image lies in a memory node.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/macros.h"
#include "block/block.h"
#include "crc32c.h"
#include "image.h"
#include "vhdx_layout.h"

enum {
    LOG_AT = 1 << 20,
    BAT_AT = 2 << 20,
    META_AT = 3 << 20,
    DATA_AT = 4 << 20,
    FILE_SIZE = 8 << 20,
    DISK = 4 << 20,
    LOG_PAGES = 24, /* of the log that the input can fill */
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The parts of the file that are not zero. */
static struct image {
    uint8_t headers[2][VHDX_PAGE];
    uint8_t regions[2][VHDX_REGION_TABLE];
    uint8_t metadata[META_TABLE + VHDX_PAGE];
    uint8_t bat[VHDX_PAGE];
    uint8_t log[LOG_PAGES][VHDX_PAGE];
    uint8_t log_length[LOG_PAGES]; /* of the entry that begins there, in pages */
} image;

/* ---- a sound image ------------------------------------------------------------------------------------ */

static void add_item(unsigned i, const struct vhdx_guid *guid, uint32_t at, uint32_t len)
{
    uint8_t *e = image.metadata + 32 + i * 32;

    memcpy(e, guid->b, 16);
    store_le32(e + 16, META_TABLE + at);
    store_le32(e + 20, len);
    store_le32(e + 24, META_FLAG_REQUIRED);
}

static void add_region(uint8_t *table, unsigned i, const struct vhdx_guid *guid, uint64_t offset)
{
    uint8_t *e = table + 16 + i * 32;

    memcpy(e, guid->b, 16);
    store_le64(e + 16, offset);
    store_le32(e + 24, 1 << 20);
    store_le32(e + 28, 1);
}

static const struct vhdx_guid log_guid = { { 7, 7, 7 } };

static void make_sound(bool dirty)
{
    memset(&image, 0, sizeof(image));
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *h = image.headers[i], *r = image.regions[i];
        store_le32(h, SIG_HEADER);
        store_le64(h + HDR_SEQUENCE, i + 1);
        store_le16(h + HDR_VERSION, 1);
        store_le32(h + HDR_LOG_LENGTH, 1 << 20);
        store_le64(h + HDR_LOG_OFFSET, LOG_AT);
        if (dirty)
            memcpy(h + HDR_LOG_GUID, log_guid.b, 16);
        store_le32(r, SIG_REGION);
        store_le32(r + 8, 2);
        add_region(r, 0, &vhdx_region_bat, BAT_AT);
        add_region(r, 1, &vhdx_region_metadata, META_AT);
    }
    uint8_t *m = image.metadata, *items = m + META_TABLE;
    memcpy(m, SIG_METADATA, 8);
    store_le16(m + 10, 5);
    add_item(0, &vhdx_item_parameters, 0, 8);
    add_item(1, &vhdx_item_size, 8, 8);
    add_item(2, &vhdx_item_id, 16, 16);
    add_item(3, &vhdx_item_logical, 32, 4);
    add_item(4, &vhdx_item_physical, 36, 4);
    add_item(5, &vhdx_item_parent, 64, 1024);
    memcpy(items + 64, vhdx_locator_type.b, 16);
    store_le32(items, 1 << 20);
    store_le64(items + 8, DISK);
    store_le32(items + 32, 512);
    store_le32(items + 36, 512);
    for (uint64_t b = 0; b < 3; b++)
        store_le64(image.bat + 8 * b, (DATA_AT + (b << 20)) | BLOCK_PRESENT);
}

/* ---- changes -------------------------------------------------------------------------------------------- */

struct input {
    const uint8_t *at;
    size_t left;
};

static uint64_t take(struct input *in, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes && in->left > 0; i++, in->left--)
        value |= (uint64_t)*in->at++ << (8 * i);
    return value;
}

/* A number: small, a power of two and its neighbours, or eight bytes. */
static uint64_t number(struct input *in)
{
    unsigned kind = (unsigned)take(in, 1);

    switch (kind % 4) {
    case 0:
        return kind / 4;
    case 1:
        return (UINT64_C(1) << (kind / 4)) - take(in, 1) % 3;
    case 2:
        return (uint64_t)(kind / 4) << 20 | (take(in, 1) & 7);
    default:
        return take(in, 8);
    }
}

static void put(uint8_t *area, size_t size, size_t at, unsigned bytes, uint64_t value)
{
    uint8_t le[8];

    store_le64(le, value);
    if (at + bytes <= size)
        memcpy(area + at, le, bytes);
}

static void change_header(struct input *in)
{
    static const uint8_t at[][2] = { { HDR_SEQUENCE, 8 },    { HDR_LOG_GUID, 8 },
                                     { HDR_LOG_VERSION, 2 }, { HDR_VERSION, 2 },
                                     { HDR_LOG_LENGTH, 4 },  { HDR_LOG_OFFSET, 8 } };
    unsigned which = (unsigned)take(in, 1), i = which / 4 % ARRAY_SIZE(at);
    uint64_t value = number(in);

    for (unsigned k = 0; k < 2; k++)
        if (which >> k & 1)
            put(image.headers[k], VHDX_PAGE, at[i][0], at[i][1], value);
}

static void change_region(struct input *in)
{
    static const uint8_t at[][2] = { { 8, 4 },  { 16, 8 }, { 32, 8 }, { 40, 4 }, { 44, 4 },
                                     { 48, 8 }, { 64, 8 }, { 72, 4 }, { 80, 8 } };
    unsigned which = (unsigned)take(in, 1), i = which / 4 % ARRAY_SIZE(at);
    uint64_t value = number(in);

    for (unsigned k = 0; k < 2; k++)
        if (which >> k & 1)
            put(image.regions[k], VHDX_REGION_TABLE, at[i][0], at[i][1], value);
}

static void change_metadata(struct input *in)
{
    unsigned which = (unsigned)take(in, 1), bytes = 1u << (which & 3);
    size_t at = take(in, 2) % 2048;

    put(image.metadata, sizeof(image.metadata), which & 4 ? META_TABLE + at : at, bytes,
        number(in));
}

/* A log entry of some descriptors and pages. */
static void add_entry(struct input *in)
{
    unsigned page = (unsigned)take(in, 1) % LOG_PAGES, shape = (unsigned)take(in, 1);
    unsigned count = shape & 3, pages = MIN(1 + count, LOG_PAGES - page);
    uint64_t sequence = take(in, 1);
    uint8_t *e = image.log[page];

    memset(e, 0, VHDX_PAGE);
    store_le32(e, SIG_LOG);
    store_le32(e + LOG_LENGTH, shape & 4 ? (uint32_t)number(in) : pages * VHDX_PAGE);
    store_le32(e + LOG_TAIL, shape & 8 ? (uint32_t)number(in) : page * VHDX_PAGE);
    store_le64(e + LOG_SEQUENCE, sequence);
    store_le32(e + LOG_DESCRIPTORS, shape & 16 ? (uint32_t)number(in) : count);
    memcpy(e + LOG_GUID, log_guid.b, 16);
    store_le64(e + LOG_FLUSHED, shape & 32 ? number(in) : FILE_SIZE);
    store_le64(e + LOG_LAST, shape & 64 ? number(in) : FILE_SIZE);
    unsigned data = 1;
    for (unsigned i = 0; i < count; i++) {
        uint8_t *d = e + LOG_HEADER + i * LOG_DESCRIPTOR;
        bool zero = take(in, 1) & 1;
        store_le32(d, zero ? SIG_ZERO : SIG_DESC);
        store_le64(d + 8, zero ? number(in) << 12 : take(in, 8));
        store_le64(d + 16, number(in) << (take(in, 1) & 12));
        store_le64(d + 24, sequence);
        if (zero || page + data >= LOG_PAGES)
            continue;
        uint8_t *s = image.log[page + data++];
        memset(s, 0, VHDX_PAGE);
        store_le32(s, SIG_DATA);
        store_le64(s + 8, number(in)); /* the page's second number */
        store_le32(s + VHDX_PAGE - 4, (uint32_t)sequence);
    }
    image.log_length[page] = (uint8_t)pages;
}

static void change_byte(struct input *in)
{
    size_t at = take(in, 3) % sizeof(image);
    ((uint8_t *)&image)[at] = (uint8_t)take(in, 1);
}

static void change_all(struct input *in)
{
    while (in->left > 0)
        switch (take(in, 1) % 8) {
        case 0:
            change_header(in);
            break;
        case 1:
            change_region(in);
            break;
        case 2:
            change_metadata(in);
            break;
        case 3:
        case 4:
            put(image.bat, VHDX_PAGE, 8 * (take(in, 1) % 8), 8, number(in));
            break;
        case 5:
            change_byte(in);
            break;
        default:
            add_entry(in);
        }
}

static void sum(uint8_t *from, size_t len)
{
    store_le32(from + 4, 0);
    store_le32(from + 4, crc32c(0, from, len));
}

static void sum_all(void)
{
    for (unsigned i = 0; i < 2; i++) {
        sum(image.headers[i], VHDX_PAGE);
        sum(image.regions[i], VHDX_REGION_TABLE);
    }
    for (unsigned p = LOG_PAGES; p-- > 0;)
        if (image.log_length[p] && p + image.log_length[p] <= LOG_PAGES)
            sum(image.log[p], (size_t)image.log_length[p] * VHDX_PAGE);
}

/* ---- using it --------------------------------------------------------------------------------------------- */

static void lay_out(void)
{
    struct blk_node *n = empty_memory(FILE_SIZE);

    store(n, 0, SIG_FILE, 8);
    for (uint64_t i = 0; i < 2; i++) {
        store(n, VHDX_HEADER_SLOT + i * VHDX_SLOT, image.headers[i], VHDX_PAGE);
        store(n, VHDX_REGION_SLOT + i * VHDX_SLOT, image.regions[i], VHDX_REGION_TABLE);
    }
    store(n, LOG_AT, image.log, sizeof(image.log));
    store(n, BAT_AT, image.bat, VHDX_PAGE);
    store(n, META_AT, image.metadata, sizeof(image.metadata));
}

static void change_blocks(struct blk_node *node)
{
    static const uint8_t bytes[5000] = { 1, 2, 3 };
    uint64_t size = blk_size(node), at = size > sizeof(bytes) ? (size - sizeof(bytes)) / 2 : 0;

    (void)blk_write(node, at, bytes, MIN(size - at, (uint64_t)sizeof(bytes)), 0);
    (void)blk_zero(node, 0, MIN(size, UINT64_C(3) << 20), BLK_MAY_UNMAP);
    (void)blk_discard(node, size / 2, MIN(size - size / 2, UINT64_C(4) << 20));
    (void)blk_flush(node);
    if (size < UINT64_C(1) << 30)
        (void)blk_resize(node, size + (2 << 20), BLK_PREALLOC_OFF, NULL);
    walk(node);
}

/* Disks of terabytes in blocks of a MiB have tables of megabytes, which teach nothing new. */
static bool costly(void)
{
    return load_le64(image.metadata + META_TABLE + 8) > UINT64_C(1) << 36;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = { data, size };
    unsigned how = (unsigned)take(&in, 1);
    struct blk_open_args args = {
        .image_opts = true,
        .flags = BLK_OPEN_NO_BACKING | (how & 1 ? BLK_OPEN_RDWR | BLK_OPEN_UNMAP : 0) |
                 (how & 2 ? BLK_OPEN_REPAIR : 0),
    };
    struct blk_check result;
    struct blk_node *node;

    if (size < 1 || size > 4096)
        return 0;
    blk_on_warning(quiet, NULL);
    make_sound(how & 4);
    change_all(&in);
    if (costly())
        return -1; /* not for the corpus */
    if (!(how & 128))
        sum_all();
    lay_out();
    if (blk_open("driver=vhdx,file=bytes,discard=unmap", &args, &node, NULL) == 0) {
        describe(node);
        walk(node);
        if (how & 8)
            (void)blk_check(node, how & 1 ? (how >> 4) & 3 : 0, &result, NULL, NULL);
        if ((how & 3) == 1)
            change_blocks(node);
        blk_close(node, NULL);
    }
    return 0;
}
