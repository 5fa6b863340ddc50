/* Resize, of images with one extent.
 *
 * Sparse: a longer directory and new tables are complete and durable in new places, then one write of the header's
 * sector puts them in force. Beyond a smaller size entries are emptied after that: a power cut leaves leaks. The
 * descriptor states the size, too, and follows: readers look into the header, and check mends the text. It stays where
 * it is, since qemu-img looks for the CID nowhere else. Flat: the file is longer before the descriptor says so, and
 * shorter after.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vmdk.h"

static int failed(struct vmdk *v, int ret, const char *doing, struct error **err)
{
    return ret < 0 ? error_set(err, -ret, "%s: could not %s: %s", blk_filename(v->node), doing,
                               strerror(-ret))
                   : 0;
}

/* ---- the descriptor -------------------------------------------------------------------------------------- */

int vmdk_desc_adopt(struct vmdk *v, char *text, struct error **err)
{
    struct vmdk_desc d;
    int ret = vmdk_desc_parse(&d, blk_filename(v->file), text, strlen(text), err);

    if (ret < 0)
        return ret;
    vmdk_desc_free(&v->desc);
    v->desc = d;
    for (size_t i = 0; i < v->extents.len && !v->embedded && i < d.lines.len; i++) {
        v->extents.at[i].name = d.lines.at[i].name;
        v->extents.at[i].type = d.lines.at[i].type;
    }
    return 0;
}

int vmdk_desc_rewrite(struct vmdk *v, size_t i, uint64_t sectors, struct error **err)
{
    _cleanup_free_ char *text = vmdk_desc_resized(&v->desc, i, sectors);
    size_t len = text ? strlen(text) : 0, whole = MAX(len, v->desc.len);
    _cleanup_free_ char *padded = text ? malloc(whole + 1) : NULL;

    if (!padded)
        return error_set(err, ENOMEM, "out of memory");
    if (len > v->desc_room)
        return error_set(err, ENOSPC, "%s: there is no room for %zu bytes of descriptor",
                         blk_filename(v->file), len);
    memcpy(padded, text, len);
    memset(padded + len, v->embedded ? '\0' : '\n', whole - len);
    int ret = blk_write(v->file, v->desc_offset, padded, whole, 0);
    if (ret == 0)
        ret = blk_flush(v->file);
    if (ret < 0)
        return failed(v, ret, "write its descriptor", err);
    padded[whole] = '\0';
    char *mine = padded;
    padded = NULL;
    return vmdk_desc_adopt(v, mine, err);
}

/* ---- flat ----------------------------------------------------------------------------------------------------- */

static int resize_flat(struct vmdk *v, uint64_t size, enum blk_prealloc prealloc,
                       struct error **err)
{
    struct vmdk_extent *e = &v->extents.at[0];
    uint64_t old = e->flat_offset + e->end, end = e->flat_offset + size, there = blk_size(e->file);
    int ret = 0;

    if (size > INT64_MAX - e->flat_offset)
        return error_set(err, EFBIG, "%s: the size is above the limit of 8 EiB",
                         blk_filename(v->node));
    if (old < end && there > old) /* bytes that were not part of the disk */
        ret = failed(v, blk_zero(e->file, old, MIN(there, end) - old, 0), "clear its extent", err);
    if (ret == 0 && there < end)
        ret = blk_resize(e->file, end, prealloc, err);
    if (ret == 0)
        ret = failed(v, blk_flush(e->file), "flush its extent", err);
    if (ret == 0)
        ret = vmdk_desc_rewrite(v, 0, size / SECTOR, err);
    if (ret < 0)
        return ret;
    e->end = size;
    return end < old ? blk_resize(e->file, end, BLK_PREALLOC_OFF, err) : 0;
}

/* ---- sparse --------------------------------------------------------------------------------------------------- */

/* What the header is to say; the pieces are on the disk already. */
struct plan {
    struct vmdk_header header;
    uint32_t *gd, *rgd; /* NULL: as they are */
    uint32_t gd_entries;
};

/* Behind all that is used, since it is in one piece. */
static int take_space(struct vmdk *v, struct vmdk_extent *e, uint64_t bytes, uint64_t *at)
{
    size_t held = e->free.len;
    uint32_t got;
    bool fresh;

    e->free.len = 0;
    int ret = vmdk_alloc(v, e, (uint32_t)div_round_up(bytes, e->grain), at, &got, &fresh);
    e->free.len = held;
    return ret;
}

/* A longer directory: the entries there are, and new tables behind them, which read as zeroes. */
static int put_directory(struct vmdk_extent *e, const struct plan *p, const uint32_t *old,
                         uint64_t at, uint64_t tables, uint32_t **out)
{
    size_t bytes = align_up((uint64_t)p->gd_entries * 4, SECTOR);
    uint64_t step = align_up(e->gt_size, SECTOR);
    _cleanup_free_ uint8_t *mem = calloc(1, bytes);

    *out = calloc(p->gd_entries, sizeof(**out));
    if (!mem || !*out)
        return -ENOMEM;
    for (uint32_t i = 0; i < p->gd_entries; i++) {
        (*out)[i] =
            i < e->gd_entries ? old[i] : (uint32_t)((tables + (i - e->gd_entries) * step) / SECTOR);
        store_le32(mem + 4 * (size_t)i, (*out)[i]);
    }
    return blk_write(e->file, at, mem, bytes, 0);
}

static int put_directories(struct vmdk *v, struct vmdk_extent *e, struct plan *p)
{
    uint64_t gd = align_up((uint64_t)p->gd_entries * 4, SECTOR), copies = e->redundant ? 2 : 1;
    uint64_t more = (p->gd_entries - e->gd_entries) * align_up(e->gt_size, SECTOR), at, tables;
    int ret = take_space(v, e, gd * copies, &at);

    if (ret == 0)
        ret = take_space(v, e, more * copies, &tables);
    if (ret == 0 && e->redundant)
        ret = put_directory(e, p, e->rgd, at, tables + more, &p->rgd);
    if (ret == 0)
        ret = put_directory(e, p, e->gd, at + (copies - 1) * gd, tables, &p->gd);
    if (ret < 0)
        return ret;
    if (e->redundant)
        p->header.rgd = at / SECTOR;
    p->header.gd = (at + (copies - 1) * gd) / SECTOR;
    return 0;
}

static int switch_header(struct vmdk_extent *e, const struct plan *p)
{
    uint8_t sector[512];
    int ret = blk_flush(e->file);

    vmdk_header_build(&p->header, sector);
    if (ret == 0)
        ret = blk_write(e->file, 0, sector, sizeof(sector), 0);
    return ret == 0 ? blk_flush(e->file) : ret;
}

/* The directories that an earlier resize put among the grains. */
static void free_old(struct vmdk *v, struct vmdk_extent *e, const struct vmdk_header *old)
{
    uint64_t first = old->overhead * SECTOR, gd = align_up((uint64_t)e->gd_entries * 4, SECTOR);

    if (old->gd != e->header.gd && e->redundant && old->rgd * SECTOR >= first &&
        old->gd == old->rgd + gd / SECTOR)
        for (uint64_t at = 0; at < 2 * gd; at += e->grain)
            vmdk_free_later(v, e, old->rgd * SECTOR + at, e->grain);
}

/* Tables that the new header does not count. */
static void give_back_tables(struct vmdk_extent *e, const uint32_t *gd, uint32_t first)
{
    for (uint32_t i = first; i < e->gd_entries;) {
        uint32_t n = 1;
        while (gd[i] && i + n < e->gd_entries &&
               gd[i + n] * SECTOR == gd[i] * SECTOR + n * align_up(e->gt_size, SECTOR))
            n++;
        if (gd[i])
            (void)blk_discard(e->file, gd[i] * SECTOR,
                              n * align_up(e->gt_size, SECTOR)); /* a hint */
        i += n;
    }
}

/* The header is on the disk: memory follows. */
static int take_over(struct vmdk *v, struct vmdk_extent *e, struct plan *p, uint64_t size,
                     struct error **err)
{
    struct vmdk_header old = e->header;
    int ret = 0;

    WRLOCK_SCOPE(&v->lock);
    e->header = p->header;
    if (p->gd) {
        free(e->gd);
        e->gd = p->gd;
        p->gd = NULL;
    }
    if (p->rgd) {
        free(e->rgd);
        e->rgd = p->rgd;
        p->rgd = NULL;
    }
    uint32_t entries = e->gd_entries;
    give_back_tables(e, e->gd, p->gd_entries);
    if (e->redundant)
        give_back_tables(e, e->rgd, p->gd_entries);
    table_cache_clear(e->cache);
    e->gd_entries = p->gd_entries;
    e->end = e->start + size;
    if (ret == 0 && vmdk_note_metadata(v, e) < 0)
        ret = error_set(err, ENOMEM, "out of memory");
    e->gd_entries = entries; /* of the directory that was there */
    if (ret == 0)
        free_old(v, e, &old);
    e->gd_entries = p->gd_entries;
    return ret;
}

/* Tables that the new header does not count are beyond reach afterwards, so their grains go before memory forgets
 * them. */
static int forget_tail(struct vmdk *v, struct vmdk_extent *e, uint64_t size)
{
    uint64_t from = e->start + round_up(size, e->grain);

    return from < e->end ? vmdk_forget_grains(v, e, from, e->end) : 0;
}

static int resize_sparse(struct vmdk *v, uint64_t size, struct error **err)
{
    struct vmdk_extent *e = &v->extents.at[0];
    struct plan p = { .header = e->header };
    uint64_t entries = div_round_up(size, e->gt_span);
    int ret = 0;

    if (entries > MAX_GD)
        return error_set(err, EFBIG,
                         "%s: a disk of %" PRIu64 " bytes needs %" PRIu64
                         " grain tables, the limit is 8388608",
                         blk_filename(v->node), size, entries);
    p.gd_entries = (uint32_t)MAX(entries, UINT64_C(1));
    p.header.capacity = size / SECTOR;
    {
        WRLOCK_SCOPE(&v->lock);
        if (p.gd_entries > e->gd_entries)
            ret = put_directories(v, e, &p);
    }
    if (ret == 0)
        ret = switch_header(e, &p);
    if (ret == 0 && size < e->end - e->start)
        ret = forget_tail(v, e, size);
    if (ret == 0)
        ret = vmdk_commit(v, true);
    failed(v, ret, "resize its tables", err);
    if (ret == 0)
        ret = take_over(v, e, &p, size, err);
    if (ret == 0 && v->desc.lines.len)
        ret = vmdk_desc_rewrite(v, 0, size / SECTOR, err);
    else if (ret < 0)
        node_set_failed(v->node); /* which header is in force? */
    free(p.gd);
    free(p.rgd);
    return ret;
}

int vmdk_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err)
{
    struct vmdk *v = node_state(n);
    const struct vmdk_extent *e = &v->extents.at[0];
    const char *name = blk_filename(n);

    if (size == 0 || size % SECTOR)
        return error_set(err, EINVAL,
                         "%s: the size is %" PRIu64
                         ", but a VMDK has whole sectors of 512 bytes, one at least",
                         name, size);
    if (v->extents.len > 1)
        return error_set(err, ENOTSUP, "%s: an image of %zu extents cannot be resized: convert it",
                         name, v->extents.len);
    if (e->compressed || (extent_sparse(e) && !v->embedded) || e->kind == EXTENT_ZERO)
        return error_set(err, ENOTSUP, "%s: a %s image cannot be resized: convert it", name,
                         v->desc.create_type[0] ? v->desc.create_type : "compressed");
    if (extent_sparse(e) && prealloc != BLK_PREALLOC_OFF)
        return error_set(err, ENOTSUP, "%s: a sparse VMDK cannot be preallocated", name);
    int ret = vmdk_commit(v, true);
    if (ret == 0)
        ret = vmdk_change_cid(v);
    if (ret < 0)
        return failed(v, ret, "write its metadata", err);
    return e->kind == EXTENT_FLAT ? resize_flat(v, size, prealloc, err)
                                  : resize_sparse(v, size, err);
}
