/* Writing the log. An entry takes half of the ring at most and goes behind the one before, so that this one stays whole until
 * the new one is durable. Each entry's tail is itself: when it is written, all that older ones say is
 * durable in its place (vhdx_log_pages flushes first).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "crc32c.h"
#include "vhdx.h"

enum { MAX_PAGES = 2048 }; /* of an entry, however long the log is */

size_t vhdx_log_room(const struct vhdx *v)
{
    size_t sectors = v->headers.current.log_length / VHDX_PAGE / 2;
    size_t header = div_round_up(LOG_HEADER + sectors * LOG_DESCRIPTOR, VHDX_PAGE);

    return MIN(sectors - header, (size_t)MAX_PAGES);
}

static void put_page(uint8_t *descriptor, uint8_t *sector, const struct vhdx_page *page,
                     uint64_t sequence)
{
    store_le32(descriptor, SIG_DESC);
    memcpy(descriptor + 4, page->bytes + VHDX_PAGE - 4, 4);
    memcpy(descriptor + 8, page->bytes, 8);
    store_le64(descriptor + 16, page->offset);
    store_le64(descriptor + 24, sequence);
    memcpy(sector, page->bytes, VHDX_PAGE);
    store_le32(sector, SIG_DATA);
    store_le32(sector + 4, (uint32_t)(sequence >> 32));
    store_le32(sector + VHDX_PAGE - 4, (uint32_t)sequence);
}

static int ring_write(struct vhdx *v, uint64_t at, const uint8_t *buf, size_t len)
{
    const struct vhdx_header *h = &v->headers.current;
    size_t first = (size_t)MIN((uint64_t)len, h->log_length - at);
    int ret = blk_write(v->file, h->log_offset + at, buf, first, 0);

    if (ret == 0 && first < len)
        ret = blk_write(v->file, h->log_offset, buf + first, len - first, 0);
    return ret;
}

static int write_entry(struct vhdx *v, const struct vhdx_guid *guid, const struct vhdx_page *pages,
                       size_t count)
{
    size_t header = align_up(LOG_HEADER + count * LOG_DESCRIPTOR, VHDX_PAGE);
    size_t length = header + count * VHDX_PAGE;
    uint64_t size = align_down(blk_size(v->file), VHDX_MIB);
    _cleanup_free_ uint8_t *e = calloc(1, length);

    if (!e)
        return -ENOMEM;
    store_le32(e, SIG_LOG);
    store_le32(e + LOG_LENGTH, (uint32_t)length);
    store_le32(e + LOG_TAIL, (uint32_t)v->log_at);
    store_le64(e + LOG_SEQUENCE, v->log_sequence);
    store_le32(e + LOG_DESCRIPTORS, (uint32_t)count);
    memcpy(e + LOG_GUID, guid->b, 16);
    store_le64(e + LOG_FLUSHED, size);
    store_le64(e + LOG_LAST, size);
    for (size_t i = 0; i < count; i++)
        put_page(e + LOG_HEADER + i * LOG_DESCRIPTOR, e + header + i * VHDX_PAGE, &pages[i],
                 v->log_sequence);
    store_le32(e + LOG_CHECKSUM, crc32c(0, e, length));
    return ring_write(v, v->log_at, e, length);
}

/* The entry is durable, and the header names the log. */
static int make_valid(struct vhdx *v)
{
    if (v->log_named)
        return blk_flush(v->file);
    int ret = vhdx_header_write(v->file, &v->headers);
    v->log_named = ret == 0;
    return ret;
}

static int write_in_place(struct vhdx *v, const struct vhdx_page *pages, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        node_event(v->file, EVENT_L2_UPDATE);
        int ret = blk_write(v->file, pages[i].offset, pages[i].bytes, VHDX_PAGE, 0);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* A log with a name of its own, which the header does not know yet. */
static int begin_log(struct vhdx *v)
{
    v->log_at = 0;
    v->log_sequence = 1;
    v->log_named = false;
    return vhdx_guid_new(&v->headers.current.log);
}

int vhdx_log_pages(struct vhdx *v, const struct vhdx_page *pages, size_t count)
{
    struct vhdx_header *h = &v->headers.current;
    size_t length = align_up(LOG_HEADER + count * LOG_DESCRIPTOR, VHDX_PAGE) + count * VHDX_PAGE;
    int ret = v->log_stuck ? -EIO : blk_flush(v->file);

    if (ret == 0 && guid_zero(&h->log))
        ret = begin_log(v);
    if (ret == 0)
        ret = write_entry(v, &h->log, pages, count);
    bool tried = ret == 0 && !v->log_named;
    if (ret == 0)
        ret = make_valid(v);
    /* A header that could not be written may be there all the same, and relies on the first entry. */
    if (ret == 0 || tried) {
        v->log_at = (v->log_at + length) % h->log_length;
        v->log_sequence++;
    }
    if (ret < 0)
        return ret;
    ret = write_in_place(v, pages, count);
    v->log_stuck = ret < 0;
    return ret;
}

int vhdx_log_close(struct vhdx *v)
{
    struct vhdx_header *h = &v->headers.current;
    struct vhdx_guid old = h->log;

    if (v->log_stuck)
        return -EIO; /* whoever opens it next replays it */
    if (guid_zero(&old))
        return 0;
    h->log = (struct vhdx_guid){ { 0 } };
    int ret = vhdx_header_write(v->file, &v->headers);
    if (ret < 0)
        h->log = old;
    /* The other copy, too: should this one get lost, nobody must replay what is long done into a file that
     * has become shorter. */
    return ret == 0 ? vhdx_header_write(v->file, &v->headers) : ret;
}
