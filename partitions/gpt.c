/* The GPT: a header and an array of entries, each with a checksum, and a backup of both at the end. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

#include "internal.h"

enum {
    AT_HEADER_SIZE = 12,
    AT_HEADER_CRC = 16,
    AT_MY_LBA = 24,
    AT_DISK_GUID = 56,
    AT_ENTRIES_LBA = 72,
    AT_ENTRY_COUNT = 80,
    AT_ENTRY_SIZE = 84,
    AT_ENTRIES_CRC = 88,
    HEADER_LEAST = 92,

    AT_TYPE = 0,
    AT_GUID = 16,
    AT_FIRST = 32,
    AT_LAST = 40,
    AT_NAME = 56,
    ENTRY_LEAST = 128,
    ENTRY_MOST = 4096,
    NAME_UNITS = 36,

    SECTOR_MOST = 4096,
    ENTRIES_MOST = PARTITION_MOST * ENTRY_LEAST * 8, /* bytes: bounds the memory */
};

struct header {
    unsigned sector;
    uint64_t entries_at; /* bytes */
    uint32_t count, entry_size, entries_crc;
    uint8_t guid[16];
};

static void guid_text(const uint8_t *g, char out[PARTITION_GUID])
{
    snprintf(out, PARTITION_GUID, "%08" PRIx32 "-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             load_le32(g), load_le16(g + 4), load_le16(g + 6), g[8], g[9], g[10], g[11], g[12],
             g[13], g[14], g[15]);
}

/* What is no character, or drives a terminal, becomes a question mark. */
static void name_text(const uint8_t *p, char *out)
{
    for (unsigned i = 0; i < NAME_UNITS; i++) {
        uint32_t c = load_le16(p + 2 * i);
        if (c == 0)
            break;
        if (c >= 0xd800 && c < 0xdc00 && i + 1 < NAME_UNITS) {
            uint32_t low = load_le16(p + 2 * i + 2);
            if (low >= 0xdc00 && low < 0xe000) {
                c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
                i++;
            }
        }
        if (c < ' ' || (c >= 0x7f && c < 0xa0) || (c >= 0xd800 && c < 0xe000))
            c = '?';
        if (c < 0x80) {
            *out++ = (char)c;
        } else if (c < 0x800) {
            *out++ = (char)(0xc0 | c >> 6);
            *out++ = (char)(0x80 | (c & 0x3f));
        } else if (c < 0x10000) {
            *out++ = (char)(0xe0 | c >> 12);
            *out++ = (char)(0x80 | (c >> 6 & 0x3f));
            *out++ = (char)(0x80 | (c & 0x3f));
        } else {
            *out++ = (char)(0xf0 | c >> 18);
            *out++ = (char)(0x80 | (c >> 12 & 0x3f));
            *out++ = (char)(0x80 | (c >> 6 & 0x3f));
            *out++ = (char)(0x80 | (c & 0x3f));
        }
    }
    *out = '\0';
}

static uint32_t crc(const void *data, size_t len)
{
    return (uint32_t)crc32(crc32(0, NULL, 0), data, (uInt)len);
}

/* 0: no header, or a damaged one; 1: *h. Sector number lba of a disk with sectors of that size. */
static int read_header(struct reader *r, unsigned sector, uint64_t lba, struct header *h)
{
    uint8_t buf[SECTOR_MOST];

    if (lba < 1 || lba >= r->size / sector)
        return 0;
    int ret = blk_read(r->node, lba * sector, buf, sector, 0);
    if (ret < 0)
        return ret;
    uint32_t size = load_le32(buf + AT_HEADER_SIZE), sum = load_le32(buf + AT_HEADER_CRC);
    if (memcmp(buf, "EFI PART", 8) != 0 || size < HEADER_LEAST || size > sector)
        return 0;
    store_le32(buf + AT_HEADER_CRC, 0);
    if (crc(buf, size) != sum || load_le64(buf + AT_MY_LBA) != lba)
        return 0;
    uint64_t at = load_le64(buf + AT_ENTRIES_LBA);
    *h = (struct header){
        .sector = sector,
        .count = load_le32(buf + AT_ENTRY_COUNT),
        .entry_size = load_le32(buf + AT_ENTRY_SIZE),
        .entries_crc = load_le32(buf + AT_ENTRIES_CRC),
    };
    memcpy(h->guid, buf + AT_DISK_GUID, sizeof(h->guid));
    if (h->entry_size < ENTRY_LEAST || h->entry_size > ENTRY_MOST || h->entry_size % 8 ||
        (uint64_t)h->count * h->entry_size > ENTRIES_MOST || at >= r->size / sector)
        return 0;
    h->entries_at = at * sector;
    return (uint64_t)h->count * h->entry_size <= r->size - h->entries_at;
}

static int add_entry(struct reader *r, const struct header *h, const uint8_t *e, unsigned number)
{
    static const uint8_t unused[16];
    uint64_t first = load_le64(e + AT_FIRST), last = load_le64(e + AT_LAST);
    struct partition p = { .number = number };

    if (memcmp(e + AT_TYPE, unused, sizeof(unused)) == 0)
        return 0;
    if (last < first || last == UINT64_MAX) {
        reader_warn(r, "partition %u ends at sector %" PRIu64 ", before its beginning at %" PRIu64,
                    number, last, first);
        return 0;
    }
    guid_text(e + AT_TYPE, p.type_guid);
    guid_text(e + AT_GUID, p.guid);
    name_text(e + AT_NAME, p.label);
    return reader_add(r, &p, first, last - first + 1, h->sector);
}

/* 0: the entries are damaged; 1: done. */
static int read_entries(struct reader *r, const struct header *h)
{
    size_t len = (size_t)h->count * h->entry_size;
    _cleanup_free_ uint8_t *buf = malloc(len ? len : 1);

    if (!buf)
        return -ENOMEM;
    int ret = len ? blk_read(r->node, h->entries_at, buf, len, 0) : 0;
    if (ret < 0)
        return ret;
    if (crc(buf, len) != h->entries_crc)
        return 0;
    for (uint32_t i = 0; i < h->count && ret == 0; i++)
        ret = add_entry(r, h, buf + (size_t)i * h->entry_size, i + 1);
    if (ret < 0)
        return ret;
    r->table->scheme = PARTITION_GPT;
    r->table->sector = h->sector;
    guid_text(h->guid, r->table->id);
    return 1;
}

static int try_at(struct reader *r, unsigned sector, bool backup)
{
    struct header h;
    int ret = read_header(r, sector, backup ? r->size / sector - 1 : 1, &h);
    return ret == 1 ? read_entries(r, &h) : ret;
}

int gpt_read(struct reader *r, struct error **err)
{
    static const unsigned sectors[] = { 512, 4096, 1024, 2048 };

    for (unsigned backup = 0; backup < 2; backup++) {
        for (unsigned i = 0; i < sizeof(sectors) / sizeof(sectors[0]); i++) {
            int ret = r->size / sectors[i] < 3 ? 0 : try_at(r, sectors[i], backup);
            if (ret < 0)
                return error_set(err, -ret, "cannot read the partition table: %s", strerror(-ret));
            if (ret == 0)
                continue;
            r->table->backup = backup;
            if (backup)
                reader_warn(r, "the first copy of the GPT is damaged, this is the backup");
            return 0;
        }
    }
    return error_set(
        err, EUCLEAN,
        "%s: the MBR says that there is a GPT, but neither it nor its backup at the end "
        "of the disk has right checksums",
        blk_filename(r->node));
}
