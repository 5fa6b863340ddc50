/* The headers of sparse extents, and what they name: checked before anything relies on it. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/macros.h"
#include "base/round.h"
#include "vmdk.h"

enum {
    HDR_VERSION = 4,
    HDR_FLAGS = 8,
    HDR_CAPACITY = 12,
    HDR_GRAIN = 20,
    HDR_DESC = 28,
    HDR_DESC_SIZE = 36,
    HDR_GT_ENTRIES = 44,
    HDR_RGD = 48,
    HDR_GD = 56,
    HDR_OVERHEAD = 64,
    HDR_UNCLEAN = 72,
    HDR_NEWLINES = 73,
    HDR_ALGORITHM = 77,
};

static const uint8_t newlines[4] = { '\n', ' ', '\r', '\n' };

/* ---- hosted ------------------------------------------------------------------------------------------- */

void vmdk_header_build(const struct vmdk_header *h, uint8_t out[512])
{
    memset(out, 0, 512);
    store_le32(out, VMDK_MAGIC);
    store_le32(out + HDR_VERSION, h->version);
    store_le32(out + HDR_FLAGS, h->flags);
    store_le64(out + HDR_CAPACITY, h->capacity);
    store_le64(out + HDR_GRAIN, h->grain);
    store_le64(out + HDR_DESC, h->desc_offset);
    store_le64(out + HDR_DESC_SIZE, h->desc_size);
    store_le32(out + HDR_GT_ENTRIES, h->gt_entries);
    store_le64(out + HDR_RGD, h->rgd);
    store_le64(out + HDR_GD, h->gd);
    store_le64(out + HDR_OVERHEAD, h->overhead);
    out[HDR_UNCLEAN] = h->unclean;
    memcpy(out + HDR_NEWLINES, newlines, sizeof(newlines));
    store_le16(out + HDR_ALGORITHM, h->algorithm);
}

static int refuse(struct error **err, struct blk_node *file, const char *what, uint64_t value,
                  const char *limit)
{
    return error_set(err, EINVAL, "%s: %s is %" PRIu64 ", but %s", blk_filename(file), what, value,
                     limit);
}

static int check_header(struct blk_node *file, const struct vmdk_header *h, struct error **err)
{
    if (h->version < 1 || h->version > 3)
        return error_set(err, ENOTSUP,
                         "%s: the version in its header is %" PRIu32 ", only 1, 2 and 3 are known",
                         blk_filename(file), h->version);
    if (h->capacity > INT64_MAX / SECTOR)
        return refuse(err, file, "capacity", h->capacity, "a disk has at most 2^54 sectors");
    if (h->grain == 0 || !is_pow2(h->grain) || h->grain > MAX_GRAIN / SECTOR)
        return refuse(err, file, "grainSize", h->grain,
                      "it must be a power of two up to 2097152 sectors");
    if (h->gt_entries == 0 || !is_pow2(h->gt_entries) || h->gt_entries > 512)
        return refuse(err, file, "numGTEsPerGT", h->gt_entries,
                      "it must be a power of two up to 512");
    if ((h->flags & VMDK_COMPRESSED) && h->algorithm != VMDK_DEFLATE)
        return error_set(err, ENOTSUP, "%s: compressAlgorithm is %u, only deflate (1) is known",
                         blk_filename(file), h->algorithm);
    if ((h->flags & VMDK_COMPRESSED) && h->grain > MAX_ENCODED / SECTOR)
        return refuse(err, file, "grainSize", h->grain,
                      "compressed grains have at most 131072 sectors");
    return 0;
}

int vmdk_header_read(struct blk_node *file, uint64_t offset, struct vmdk_header *h,
                     struct error **err)
{
    uint8_t b[512];
    int ret = blk_read(file, offset, b, sizeof(b), 0);

    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the header: %s", blk_filename(file),
                         strerror(-ret));
    if (load_le32(b) != VMDK_MAGIC)
        return error_set(err, EINVAL, "%s: no header of a VMDK at byte %" PRIu64,
                         blk_filename(file), offset);
    *h = (struct vmdk_header){
        .version = load_le32(b + HDR_VERSION),
        .flags = load_le32(b + HDR_FLAGS),
        .capacity = load_le64(b + HDR_CAPACITY),
        .grain = load_le64(b + HDR_GRAIN),
        .desc_offset = load_le64(b + HDR_DESC),
        .desc_size = load_le64(b + HDR_DESC_SIZE),
        .gt_entries = load_le32(b + HDR_GT_ENTRIES),
        .rgd = load_le64(b + HDR_RGD),
        .gd = load_le64(b + HDR_GD),
        .overhead = load_le64(b + HDR_OVERHEAD),
        .unclean = b[HDR_UNCLEAN],
        .algorithm = load_le16(b + HDR_ALGORITHM),
    };
    if ((h->flags & VMDK_NL_TEST) && memcmp(b + HDR_NEWLINES, newlines, sizeof(newlines)) != 0)
        return error_set(err, EINVAL,
                         "%s: the line ends in its header were changed: it was transferred as text",
                         blk_filename(file));
    return check_header(file, h, err);
}

static int set_geometry(struct vmdk_extent *e, struct blk_node *file, uint64_t capacity,
                        uint64_t grain, uint32_t entries, uint32_t entry_size, struct error **err)
{
    e->grain = (uint32_t)(grain * SECTOR);
    e->gt_entries = entries;
    e->entry_size = entry_size;
    e->gt_size = entries * entry_size;
    e->gt_span = (uint64_t)e->grain * entries;
    e->end = e->start + capacity * SECTOR;
    uint64_t gd = div_round_up(capacity * SECTOR, e->gt_span);
    if (gd > MAX_GD)
        return refuse(err, file, "the number of its grain tables", gd, "the limit is 8388608");
    e->gd_entries = (uint32_t)gd;
    return 0;
}

/* A GD of 4-byte entries at a sector. */
static int read_gd(struct vmdk_extent *e, const char *what, uint64_t sector, uint32_t **out,
                   struct error **err)
{
    uint64_t bytes = (uint64_t)e->gd_entries * 4, size = blk_size(e->file);

    if (sector == 0 || sector > INT64_MAX / SECTOR || !range_inside(sector * SECTOR, bytes, size))
        return error_set(err, EINVAL,
                         "%s: its %s at sector %" PRIu64
                         " is not inside the file, which has %" PRIu64 " bytes: was it truncated?",
                         blk_filename(e->file), what, sector, size);
    uint32_t *t = malloc(bytes ? bytes : 1);
    if (!t)
        return error_set(err, ENOMEM, "out of memory");
    int ret = bytes ? blk_read(e->file, sector * SECTOR, t, bytes, 0) : 0;
    if (ret < 0) {
        free(t);
        return error_set(err, -ret, "%s: could not read its %s: %s", blk_filename(e->file), what,
                         strerror(-ret));
    }
    for (uint32_t i = 0; i < e->gd_entries; i++)
        t[i] = load_le32(&t[i]);
    *out = t;
    return 0;
}

/* All of it leads into the file. */
static int check_gd(struct vmdk_extent *e, const char *what, const uint32_t *gd, struct error **err)
{
    uint64_t size = blk_size(e->file);

    for (uint32_t i = 0; i < e->gd_entries; i++)
        if (gd[i] && !range_inside(gd[i] * SECTOR, e->gt_size, size))
            return error_set(err, EINVAL,
                             "%s: grain table %" PRIu32 " of its %s is at sector %" PRIu32
                             ", beyond the end of the file",
                             blk_filename(e->file), i, what, gd[i]);
    return 0;
}

static int load_gd(struct vmdk_extent *e, const char *what, uint64_t sector, uint32_t **out,
                   struct error **err)
{
    int ret = read_gd(e, what, sector, out, err);

    if (ret == 0)
        ret = check_gd(e, what, *out, err);
    if (ret < 0) {
        free(*out);
        *out = NULL;
    }
    return ret;
}

/* The first directory, or the second where the first is bad. A bad second one is dealt with by check. */
static int load_directories(struct vmdk *v, struct vmdk_extent *e, struct error **err)
{
    struct error *first = NULL;
    bool second = (e->header.flags & VMDK_REDUNDANT) && e->header.rgd;
    int ret = load_gd(e, "grain directory", e->header.gd, &e->gd, &first);

    if (second && load_gd(e, "redundant grain directory", e->header.rgd, &e->rgd, NULL) == 0)
        e->redundant = true;
    if (ret < 0 && e->redundant && ret != -ENOMEM) {
        node_warn(v->node, "%s: the redundant one is used", error_text(first));
        error_free(first);
        e->used_redundant = true;
        v->damaged = true;
        e->gd = e->rgd;
        e->rgd = NULL;
        e->redundant = false;
        return 0;
    }
    if (ret < 0 && (node_open_flags(v->node) & BLK_OPEN_REPAIR) && ret == -EINVAL &&
        e->gd_entries) {
        /* Entries that lead nowhere are check's to report. */
        if (read_gd(e, "grain directory", e->header.gd, &e->gd, NULL) == 0) {
            error_free(first);
            v->damaged = true;
            return 0;
        }
    }
    if (ret < 0 && err)
        *err = first;
    else if (ret < 0)
        error_free(first);
    return ret;
}

static int make_cache(struct vmdk *v, struct vmdk_extent *e, struct error **err)
{
    /* What covers 8 GiB of disk at 64 KiB a grain takes 512 KiB; memory is touched as it is used. */
    uint64_t most = (UINT64_C(16) << 20) / e->gt_size;
    unsigned count = (unsigned)MAX(MIN((uint64_t)e->gd_entries, most), (uint64_t)64);

    return table_cache_new(&e->cache, e->file, &v->lock, e->gt_size, count, EVENT_L2_LOAD,
                           EVENT_L2_UPDATE) < 0
               ? error_set(err, ENOMEM, "out of memory for the grain tables")
               : 0;
}

int vmdk_sparse_open(struct vmdk *v, struct vmdk_extent *e, struct error **err)
{
    struct vmdk_header *h = &e->header;
    int ret = vmdk_header_read(e->file, 0, h, err);

    if (ret < 0)
        return ret;
    e->kind = EXTENT_HOSTED;
    if (h->capacity == 0)
        return error_set(err, EINVAL, "%s: capacity is 0", blk_filename(e->file));
    e->compressed = h->flags & VMDK_COMPRESSED;
    e->markers = h->flags & VMDK_MARKERS;
    e->zeroed = h->flags & VMDK_ZEROED;
    e->stream = h->gd == VMDK_GD_AT_END;
    ret = set_geometry(e, e->file, h->capacity, h->grain, h->gt_entries, 4, err);
    if (ret == 0 && e->stream)
        ret = vmdk_stream_find(v, e, err);
    if (ret == 0 && !e->tables)
        ret = load_directories(v, e, err);
    if (ret == 0 && e->stream && !e->tables && node_writable(v->node) && !e->read_only)
        ret = vmdk_stream_load(v, e, err);
    return ret < 0 || e->tables ? ret : make_cache(v, e, err);
}

/* ---- COWD ------------------------------------------------------------------------------------------------ */

int vmdk_cowd_open(struct vmdk *v, struct vmdk_extent *e, struct error **err)
{
    uint8_t b[512];
    int ret = blk_read(e->file, 0, b, sizeof(b), 0);

    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the header: %s", blk_filename(e->file),
                         strerror(-ret));
    uint32_t capacity = load_le32(b + 12), grain = load_le32(b + 16);
    e->kind = EXTENT_COWD;
    if (load_le32(b) != COWD_MAGIC || load_le32(b + 4) != 1)
        return error_set(err, EINVAL, "%s: it has no header of a COW disk, version 1",
                         blk_filename(e->file));
    if (capacity == 0 || grain == 0 || !is_pow2(grain) || grain > MAX_GRAIN / SECTOR)
        return refuse(
            err, e->file, "granularity", grain,
            "it must be a power of two up to 2097152 sectors, of a disk that is not empty");
    ret = set_geometry(e, e->file, capacity, grain, 4096, 4, err);
    if (ret == 0 && load_le32(b + 24) < e->gd_entries)
        ret = refuse(err, e->file, "the number of grain directory entries", load_le32(b + 24),
                     "the disk needs more");
    if (ret == 0)
        ret = load_gd(e, "grain directory", load_le32(b + 20), &e->gd, err);
    return ret < 0 ? ret : make_cache(v, e, err);
}

/* ---- SE ---------------------------------------------------------------------------------------------------- */

enum { SE_GD_ALLOCATED = 1 }; /* in the top nibble of a GD entry */

static int read_se_gd(struct vmdk_extent *e, uint64_t sector, struct error **err)
{
    uint64_t bytes = (uint64_t)e->gd_entries * 8, size = blk_size(e->file);

    if (sector > INT64_MAX / SECTOR || !range_inside(sector * SECTOR, bytes, size))
        return error_set(err, EINVAL,
                         "%s: its grain directory at sector %" PRIu64 " is not inside the file",
                         blk_filename(e->file), sector);
    uint8_t *raw = malloc(bytes ? bytes : 1);
    e->gd = calloc(e->gd_entries ? e->gd_entries : 1, sizeof(*e->gd));
    int ret = raw && e->gd ? blk_read(e->file, sector * SECTOR, raw, bytes, 0) : -ENOMEM;
    if (ret < 0)
        error_set(err, -ret, "%s: could not read its grain directory: %s", blk_filename(e->file),
                  strerror(-ret));
    for (uint32_t i = 0; ret == 0 && i < e->gd_entries; i++) {
        uint64_t x = load_le64(raw + 8 * (size_t)i);
        uint64_t table = (x & UINT32_MAX) * e->gt_size, at = 0;
        if (x == 0)
            continue;
        if (x >> 32 != (uint64_t)SE_GD_ALLOCATED << 28 || (x & UINT32_MAX) == UINT32_MAX ||
            !checked_add(e->tables_offset, table, &at) || !range_inside(at, e->gt_size, size))
            ret = error_set(err, EINVAL,
                            "%s: entry %" PRIu32 " of its grain directory is %#" PRIx64
                            ", which is no table inside the file",
                            blk_filename(e->file), i, x);
        e->gd[i] = (uint32_t)x + 1;
    }
    free(raw);
    return ret;
}

int vmdk_se_open(struct vmdk *v, struct vmdk_extent *e, struct error **err)
{
    uint8_t b[512], w[512];
    int ret = blk_read(e->file, 0, b, sizeof(b), 0);

    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the header: %s", blk_filename(e->file),
                         strerror(-ret));
    uint64_t capacity = load_le64(b + 16), grain = load_le64(b + 24), gt = load_le64(b + 32);
    uint64_t changing = load_le64(b + 80), tables = load_le64(b + 144), grains = load_le64(b + 192);
    e->kind = EXTENT_SE;
    if (load_le64(b) != SE_MAGIC || load_le64(b + 8) != UINT64_C(0x200000001))
        return error_set(err, EINVAL, "%s: it has no header of an SE sparse disk, version 2.1",
                         blk_filename(e->file));
    if (grain != 8)
        return refuse(err, e->file, "the grain size", grain, "it must be 8 sectors");
    if (gt != 64)
        return refuse(err, e->file, "the grain table size", gt, "it must be 64 sectors");
    if (capacity == 0 || capacity > INT64_MAX / SECTOR || tables > INT64_MAX / SECTOR ||
        grains > INT64_MAX / SECTOR || changing > INT64_MAX / SECTOR - 1)
        return error_set(err, EINVAL, "%s: its header has sizes or places above 2^54 sectors",
                         blk_filename(e->file));
    ret = blk_read(e->file, changing * SECTOR, w, sizeof(w), 0);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the volatile header: %s",
                         blk_filename(e->file), strerror(-ret));
    if (load_le64(w) != UINT64_C(0xcafecafe))
        return error_set(err, EINVAL, "%s: its volatile header has another magic",
                         blk_filename(e->file));
    if (w[24])
        return error_set(err, ENOTSUP,
                         "%s: its journal must be replayed first, which only its maker can do",
                         blk_filename(e->file));
    e->tables_offset = tables * SECTOR;
    e->grains_offset = grains * SECTOR;
    ret = set_geometry(e, e->file, capacity, grain, 4096, 8, err);
    if (ret == 0)
        ret = read_se_gd(e, load_le64(b + 128), err);
    return ret < 0 ? ret : make_cache(v, e, err);
}
