/* Changing the disk's size. Exclusive: no request is in flight.
 *
 * Fixed: the footer is written where the file is to end, then what it was is zeroed or cut off. Dynamic: a block
 * table that must grow is written behind all records, then one write of the header's first sector puts it in
 * force (P1), then the footers tell the new size (P2).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vpc.h"

enum { PIECE = 64 << 10 };

static int failed(struct vpc *v, int ret, const char *what, struct error **err)
{
    return error_set(err, -ret, "%s: could not %s: %s", blk_filename(v->bat.node), what,
                     strerror(-ret));
}

/* After a failure nobody knows what is in force. */
static int write_durably(struct vpc *v, uint64_t offset, const uint8_t *bytes)
{
    int ret = blk_write(v->bat.file, offset, bytes, VPC_FOOTER, 0);

    if (ret == 0)
        ret = blk_flush(v->bat.file);
    if (ret < 0) {
        atomic_store(&v->bat.failed, true);
        node_set_failed(v->bat.node);
    }
    return ret;
}

/* ---- fixed -------------------------------------------------------------------------------------------- */

static int resize_fixed(struct vpc *v, uint64_t size, struct error **err)
{
    struct bat *b = &v->bat;
    uint64_t old = b->file_end;

    if (!b->grows)
        return error_set(err, ENOTSUP, "%s: a fixed image on a device cannot be resized",
                         blk_filename(b->node));
    if (size == old)
        return 0;
    vpc_set_size(v->footer, size, false);
    int ret = blk_flush(b->file);
    if (ret == 0)
        ret = write_durably(v, size, v->footer);
    if (ret == 0 && size < old)
        ret = blk_resize(b->file, size + VPC_FOOTER, BLK_PREALLOC_OFF, NULL);
    else if (ret == 0)
        ret = blk_zero(b->file, old, MIN(size - old, (uint64_t)VPC_FOOTER), 0);
    if (ret < 0)
        return failed(v, ret, "move the footer", err);
    v->size = b->file_end = size;
    return 0;
}

/* ---- the block table ------------------------------------------------------------------------------------- */

/* The entries that there are and new ones behind them, at `offset`. Nothing is dirty. */
static int write_table(struct bat *b, uint64_t offset, uint64_t bytes)
{
    _cleanup_free_ uint8_t *piece = malloc(PIECE);
    int ret = piece ? 0 : -ENOMEM;

    for (uint64_t at = 0; at < bytes && ret == 0; at += PIECE) {
        size_t len = (size_t)MIN(bytes - at, (uint64_t)PIECE);
        uint64_t old = at / 4 < b->all_entries ? MIN(len / 4, b->all_entries - at / 4) : 0;
        memset(piece, 0xff, len);
        if (old > 0)
            ret = blk_read(b->file, b->table_offset + at, piece, old * 4, 0);
        if (ret == 0)
            ret = blk_write(b->file, offset + at, piece, len, 0);
    }
    return ret;
}

/* What the header says now. Nothing is dirty. */
static int adopt(struct vpc *v)
{
    struct bat *b = &v->bat;

    table_cache_clear(b->table);
    vpc_set_geometry(v);
    b->file_end = MAX(b->file_end, b->reserved);
    return vpc_note_fixed(v, NULL);
}

static int move_table(struct vpc *v, uint64_t place, uint64_t bytes)
{
    struct bat *b = &v->bat;
    int ret = place + bytes > b->reserved ? b->format->reserve(b, place + bytes) : 0;

    if (ret < 0)
        return ret;
    b->reserved = MAX(b->reserved, place + bytes);
    ret = write_table(b, place, bytes);
    if (ret == 0)
        ret = blk_flush(b->file);
    if (ret < 0)
        return ret;
    store_be64(v->header + AT_TABLE_OFFSET, place);
    vpc_sign(v->header, VPC_HEADER, AT_HEADER_CHECKSUM);
    ret = write_durably(v, v->header_offset, v->header);
    return ret == 0 ? adopt(v) : ret;
}

int vpc_lower(struct bat *b, uint64_t end)
{
    struct vpc *v = (struct vpc *)b;
    uint64_t bytes = round_up(b->all_entries * UINT64_C(4), 512);
    int ret = 0;

    for (unsigned i = 0; i < b->fixed_count; i++)
        if (b->fixed[i].offset != b->table_offset)
            end = MAX(end, b->fixed[i].offset + b->fixed[i].length);
    if (b->table_offset < end || b->table_offset - end < MIN(bytes, b->stride))
        return 0;
    if (b->table_offset - end < bytes) /* the two places would overlap */
        ret = move_table(v, b->table_offset + bytes, bytes);
    if (ret == 0)
        ret = move_table(v, end, bytes);
    return ret == -ENOSPC ? 0 : ret; /* then it stays */
}

static int grow_table(struct vpc *v, uint64_t blocks)
{
    struct bat *b = &v->bat;
    uint64_t bytes = round_up(blocks * 4, 512), room = round_up(b->all_entries * UINT64_C(4), 512);
    uint64_t place = b->table_offset;
    int ret = bat_settle(b);

    if (ret < 0 || blocks <= b->all_entries)
        return ret;
    if (bytes > room) {
        WRLOCK_SCOPE(&b->lock);
        ret = bat_alloc_bytes(b, bytes, &place);
        b->holes = true; /* where the table lies now */
    }
    if (ret == 0)
        ret =
            write_table(b, place, bytes); /* in place, only the marks in its last sector are new */
    if (ret == 0)
        ret = blk_flush(b->file);
    if (ret < 0)
        return ret;
    store_be64(v->header + AT_TABLE_OFFSET, place);
    store_be32(v->header + AT_ENTRIES, (uint32_t)blocks);
    vpc_sign(v->header, VPC_HEADER, AT_HEADER_CHECKSUM);
    return write_durably(v, v->header_offset, v->header);
}

/* ---- dynamic ---------------------------------------------------------------------------------------------- */

static int set_size(struct vpc *v, uint64_t size)
{
    struct bat *b = &v->bat;
    uint64_t end = b->grows ? b->reserved : b->file_end;

    vpc_set_size(v->footer, size, false);
    int ret = write_durably(v, 0, v->footer);
    if (ret == 0)
        ret = write_durably(v, end, v->footer);
    if (ret < 0)
        return ret;
    v->size = size;
    return adopt(v);
}

int vpc_use_header(struct vpc *v, const uint8_t *header, uint64_t place)
{
    struct bat *b = &v->bat;
    uint64_t end = b->grows ? b->reserved : b->file_end;

    store_be64(v->footer + AT_HEADER_OFFSET, place);
    store_be32(v->footer + AT_TYPE, VPC_DIFFERENCING);
    vpc_sign(v->footer, VPC_FOOTER, AT_CHECKSUM);
    int ret = write_durably(v, 0, v->footer);
    if (ret == 0)
        ret = write_durably(v, end, v->footer);
    if (ret < 0)
        return ret;
    memcpy(v->header, header, VPC_HEADER);
    v->header_offset = place;
    v->type = VPC_DIFFERENCING;
    return adopt(v);
}

/* The table ends with the disk: 7-Zip, for one, wants that. What lay behind is free by now. */
static int shorten_table(struct vpc *v)
{
    int ret = bat_settle(&v->bat);

    store_be32(v->header + AT_ENTRIES, v->bat.entries);
    vpc_sign(v->header, VPC_HEADER, AT_HEADER_CHECKSUM);
    if (ret == 0)
        ret = write_durably(v, v->header_offset, v->header);
    return ret == 0 ? adopt(v) : ret;
}

static int grow(struct vpc *v, uint64_t size, struct error **err)
{
    uint64_t blocks = div_round_up(size, v->bat.block_size);

    if (blocks > BAT_MAX_ENTRIES)
        return error_set(err, EFBIG, "%s: %" PRIu64 " bytes are more than %u blocks of %u bytes",
                         blk_filename(v->bat.node), size, BAT_MAX_ENTRIES, v->bat.block_size);
    int ret = grow_table(v, blocks);
    if (ret == 0)
        ret = set_size(v, size);
    return ret < 0 ? failed(v, ret, "make the block table larger", err) : 0;
}

/* The footers first: from then on nothing behind the end is needed, and a crash leaves leaks. */
static int shrink(struct vpc *v, uint64_t size, struct error **err)
{
    struct bat *b = &v->bat;
    uint64_t from = round_up(size, b->block_size), end = (uint64_t)b->all_entries * b->block_size;
    int ret = bat_settle(b);

    if (ret == 0)
        ret = set_size(v, size);
    if (ret < 0)
        return failed(v, ret, "write the new size", err);
    if (from < end)
        ret = bat_unmap(b, from, end - from, true);
    if (ret == 0)
        ret = shorten_table(v);
    if (ret == 0)
        ret = bat_compact(b);
    return ret < 0 ? failed(v, ret, "free what lies behind the new end", err) : 0;
}

int vpc_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err)
{
    struct vpc *v = node_state(n);

    if (prealloc != BLK_PREALLOC_OFF)
        return error_set(err, ENOTSUP, "%s: VHD images are not preallocated when they grow",
                         blk_filename(n));
    if (size % 512)
        return error_set(err, EINVAL, "%s: the new size must be a multiple of 512 bytes",
                         blk_filename(n));
    if (size > VPC_MAX_SECTORS * 512)
        return error_set(err, EFBIG, "%s: the size %" PRIu64 " is above VHD's limit of 2040 GiB",
                         blk_filename(n), size);
    if (size == v->size)
        return 0;
    if (v->type == VPC_FIXED)
        return resize_fixed(v, size, err);
    return size < v->size ? shrink(v, size, err) : grow(v, size, err);
}
