/* The two headers. The one with the higher sequence number is in force; the other is what a writer may overwrite, so that
 * a torn write leaves the one in force alone.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "crc32c.h"
#include "vhdx.h"

static uint64_t slot_offset(unsigned slot)
{
    return VHDX_HEADER_SLOT + (uint64_t)slot * VHDX_SLOT;
}

void vhdx_header_build(const struct vhdx_header *h, uint8_t page[VHDX_PAGE])
{
    memset(page, 0, VHDX_PAGE);
    store_le32(page + HDR_SIGNATURE, SIG_HEADER);
    store_le64(page + HDR_SEQUENCE, h->sequence);
    memcpy(page + HDR_FILE_WRITE, h->file_write.b, 16);
    memcpy(page + HDR_DATA_WRITE, h->data_write.b, 16);
    memcpy(page + HDR_LOG_GUID, h->log.b, 16);
    store_le16(page + HDR_VERSION, 1);
    store_le32(page + HDR_LOG_LENGTH, h->log_length);
    store_le64(page + HDR_LOG_OFFSET, h->log_offset);
    store_le32(page + HDR_CHECKSUM, crc32c(0, page, VHDX_PAGE));
}

/* The bytes that a checksum covers count as zero where it stands itself. */
static bool checksum_good(uint8_t *page, size_t at, size_t len)
{
    uint32_t stated = load_le32(page + at);

    store_le32(page + at, 0);
    uint32_t crc = crc32c(0, page, len);
    store_le32(page + at, stated);
    return crc == stated;
}

static void parse(const uint8_t *page, struct vhdx_header *h)
{
    *h = (struct vhdx_header){
        .sequence = load_le64(page + HDR_SEQUENCE),
        .file_write = guid_load(page + HDR_FILE_WRITE),
        .data_write = guid_load(page + HDR_DATA_WRITE),
        .log = guid_load(page + HDR_LOG_GUID),
        .log_length = load_le32(page + HDR_LOG_LENGTH),
        .log_offset = load_le64(page + HDR_LOG_OFFSET),
    };
}

static int check_current(struct blk_node *file, const uint8_t *page, const struct vhdx_header *h,
                         struct error **err)
{
    const char *name = blk_filename(file);
    unsigned version = load_le16(page + HDR_VERSION), log = load_le16(page + HDR_LOG_VERSION);

    if (version != 1)
        return error_set(err, ENOTSUP, "%s: its version is %u; only version 1 is known", name,
                         version);
    if (log != 0)
        return error_set(err, ENOTSUP, "%s: the version of its log is %u; only 0 is known", name,
                         log);
    if (h->log_offset % VHDX_MIB || h->log_length % VHDX_MIB || h->log_offset < VHDX_MIB ||
        !h->log_length || !range_inside(h->log_offset, h->log_length, INT64_MAX))
        return error_set(err, EINVAL,
                         "%s: the header places the log at %" PRIu64 " with %" PRIu32
                         " bytes: both must be multiples of 1 MiB, behind the first",
                         name, h->log_offset, h->log_length);
    return 0;
}

static int read_page(struct blk_node *file, uint64_t offset, uint8_t *page, struct error **err)
{
    memset(page, 0, VHDX_PAGE);
    if (offset >= blk_size(file))
        return 0;
    uint64_t there = blk_size(file) - offset;
    int ret = blk_read(file, offset, page, there < VHDX_PAGE ? there : VHDX_PAGE, 0);
    return ret < 0 ? error_set(err, -ret, "%s: could not read the header: %s", blk_filename(file),
                               strerror(-ret))
                   : 0;
}

int vhdx_headers_read(struct blk_node *file, struct vhdx_headers *h, struct error **err)
{
    uint8_t page[2][VHDX_PAGE];
    struct vhdx_header parsed[2];

    for (unsigned i = 0; i < 2; i++) {
        int ret = read_page(file, slot_offset(i), page[i], err);
        if (ret < 0)
            return ret;
        h->damaged[i] = load_le32(page[i] + HDR_SIGNATURE) != SIG_HEADER ||
                        !checksum_good(page[i], HDR_CHECKSUM, VHDX_PAGE);
        parse(page[i], &parsed[i]);
    }
    if (h->damaged[0] && h->damaged[1])
        return error_set(err, EINVAL,
                         "%s: neither of its two headers is valid (signature or checksum)",
                         blk_filename(file));
    if (!h->damaged[0] && !h->damaged[1] && parsed[0].sequence == parsed[1].sequence &&
        memcmp(page[0], page[1], VHDX_PAGE) != 0)
        return error_set(err, EINVAL,
                         "%s: its two headers differ but have the same sequence number, %" PRIu64,
                         blk_filename(file), parsed[0].sequence);
    h->slot = h->damaged[0] || (!h->damaged[1] && parsed[1].sequence > parsed[0].sequence);
    h->current = parsed[h->slot];
    return check_current(file, page[h->slot], &h->current, err);
}

int vhdx_header_write(struct blk_node *file, struct vhdx_headers *h)
{
    uint8_t page[VHDX_PAGE];
    unsigned other = 1 - h->slot;

    int ret = blk_flush(file);
    if (ret < 0)
        return ret;
    h->current.sequence++;
    vhdx_header_build(&h->current, page);
    ret = blk_write(file, slot_offset(other), page, VHDX_PAGE, 0);
    if (ret == 0)
        ret = blk_flush(file);
    if (ret == 0) {
        h->slot = other;
        h->damaged[other] = false;
    }
    return ret;
}
