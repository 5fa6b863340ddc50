/* Any bytes as a disk with a partition table: read it, and look into what it names.
 *
 * The first byte chooses the disk's size. Checksums are made right half of the time, since without them a GPT is read no
 * further than its header.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/macros.h"
#include "partitions/partitions.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t disk[64 << 10];

static void mend(void)
{
    uint8_t *h = disk + 512;
    uint64_t at = load_le64(h + 72), len = (uint64_t)load_le32(h + 80) * load_le32(h + 84);
    uint32_t header = load_le32(h + 12);

    memcpy(h, "EFI PART", 8);
    if (at < sizeof(disk) / 512 && range_inside(at * 512, len, sizeof(disk)))
        store_le32(h + 88, (uint32_t)crc32(0, disk + at * 512, (uInt)len));
    store_le32(h + 16, 0);
    if (header <= 512)
        store_le32(h + 16, (uint32_t)crc32(0, h, header));
}

static void use(struct blk_node *node)
{
    struct partition_table table;

    if (partitions_read(node, &table, NULL) < 0)
        return;
    if (table.count > PARTITION_MOST)
        abort();
    for (size_t i = 0; i < table.count; i++) {
        const struct partition *p = &table.at[i];
        struct partition_content content;
        if (!partition_type_name(p))
            abort();
        if (!p->outside && !range_inside(p->start, p->size, blk_size(node)))
            abort();
        if (i < 2 && !p->outside)
            partition_probe(node, p->start, p->size, &content);
    }
    partitions_free(&table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct blk_node *node;
    struct blk_open_args args = { .image_opts = true, .flags = BLK_OPEN_RDWR | BLK_OPEN_RESIZE };

    if (size < 1)
        return 0;
    if (!node && blk_open("driver=memory,size=0", &args, &node, NULL) < 0)
        abort();
    memset(disk, 0, sizeof(disk));
    memcpy(disk, data + 1, MIN(size - 1, sizeof(disk)));
    if (data[0] & 1)
        mend();
    uint64_t length = data[0] & 2 ? sizeof(disk) : MIN(size - 1, sizeof(disk));
    if (blk_resize(node, length, BLK_PREALLOC_OFF, NULL) < 0 ||
        (length && blk_write(node, 0, disk, length, 0) < 0))
        abort();
    use(node);
    return 0;
}
