/* The region tables: two copies that say the same, and where the BAT and the metadata lie. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "crc32c.h"
#include "vhdx.h"

enum { REGION_CHECKSUM = 4, REGION_COUNT = 8, REGION_HEADER = 16, REGION_ENTRY = 32 };

/* Valid by itself: signature, checksum, count. */
static bool table_good(uint8_t *t)
{
    uint32_t stated = load_le32(t + REGION_CHECKSUM);

    if (load_le32(t) != SIG_REGION || load_le32(t + REGION_COUNT) > VHDX_MAX_ENTRIES)
        return false;
    store_le32(t + REGION_CHECKSUM, 0);
    uint32_t crc = crc32c(0, t, VHDX_REGION_TABLE);
    store_le32(t + REGION_CHECKSUM, stated);
    return crc == stated;
}

static int take_entry(struct vhdx *v, const uint8_t *e, struct error **err)
{
    struct vhdx_region r = {
        .guid = guid_load(e),
        .place = { load_le64(e + 16), load_le32(e + 24) },
        .required = load_le32(e + 28) & 1,
    };
    char guid[VHDX_GUID_TEXT];
    struct vhdx_place *known = guid_equal(&r.guid, &vhdx_region_bat)        ? &v->regions.bat
                               : guid_equal(&r.guid, &vhdx_region_metadata) ? &v->regions.metadata
                                                                            : NULL;

    vhdx_guid_print(&r.guid, guid);
    if (r.place.offset % VHDX_MIB || r.place.length % VHDX_MIB || r.place.offset < VHDX_MIB ||
        !r.place.length || !range_inside(r.place.offset, r.place.length, INT64_MAX))
        return error_set(err, EINVAL,
                         "%s: region %s lies at %" PRIu64 " with %" PRIu64
                         " bytes: both must be multiples of 1 MiB, behind the first",
                         blk_filename(v->file), guid, r.place.offset, r.place.length);
    if (known && known->length)
        return error_set(err, EINVAL, "%s: region %s stands twice in the region table",
                         blk_filename(v->file), guid);
    if (known)
        *known = r.place;
    else if (r.required)
        return error_set(
            err, ENOTSUP,
            "%s: the image requires readers to know region %s, which is not known here",
            blk_filename(v->file), guid);
    if (vector_push(&v->regions.all, r) < 0)
        return error_set(err, ENOMEM, "out of memory");
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct vhdx_place *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Regions and the log lie apart from each other. */
static int check_overlap(struct vhdx *v, struct error **err)
{
    size_t n = v->regions.all.len + 1;
    _cleanup_free_ struct vhdx_place *at = calloc(n, sizeof(*at));

    if (!at)
        return error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i + 1 < n; i++)
        at[i] = v->regions.all.at[i].place;
    at[n - 1] = (struct vhdx_place){ v->headers.current.log_offset, v->headers.current.log_length };
    qsort(at, n, sizeof(*at), by_offset);
    for (size_t i = 0; i + 1 < n; i++)
        if (at[i].offset + at[i].length > at[i + 1].offset)
            return error_set(err, EINVAL,
                             "%s: the regions (or the log) at %" PRIu64 " and %" PRIu64 " overlap",
                             blk_filename(v->file), at[i].offset, at[i + 1].offset);
    return 0;
}

static int take_table(struct vhdx *v, const uint8_t *t, struct error **err)
{
    uint32_t count = load_le32(t + REGION_COUNT);

    for (uint32_t i = 0; i < count; i++) {
        int ret = take_entry(v, t + REGION_HEADER + (size_t)i * REGION_ENTRY, err);
        if (ret < 0)
            return ret;
    }
    if (!v->regions.bat.length || !v->regions.metadata.length)
        return error_set(err, EINVAL, "%s: the region table names no %s", blk_filename(v->file),
                         v->regions.bat.length ? "metadata" : "BAT");
    return check_overlap(v, err);
}

int vhdx_regions_read(struct vhdx *v, struct error **err)
{
    bool good[2];
    _cleanup_free_ uint8_t *t = calloc(2, VHDX_REGION_TABLE);

    if (!t)
        return error_set(err, ENOMEM, "out of memory");
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *at = t + (size_t)i * VHDX_REGION_TABLE;
        int ret = vhdx_read(v, VHDX_REGION_SLOT + (uint64_t)i * VHDX_SLOT, at, VHDX_REGION_TABLE);
        if (ret < 0)
            return error_set(err, -ret, "%s: could not read the region table: %s",
                             blk_filename(v->file), strerror(-ret));
        good[i] = table_good(at);
    }
    if (!good[0] && !good[1])
        return error_set(err, EINVAL,
                         "%s: neither copy of its region table is valid (signature or checksum)",
                         blk_filename(v->file));
    v->regions.damaged[0] = !good[0];
    v->regions.damaged[1] =
        !good[1] || (good[0] && memcmp(t, t + VHDX_REGION_TABLE, VHDX_REGION_TABLE) != 0);
    return take_table(v, good[0] ? t : t + VHDX_REGION_TABLE, err);
}

void vhdx_regions_build(const struct vhdx_regions *r, uint8_t table[VHDX_REGION_TABLE])
{
    memset(table, 0, VHDX_REGION_TABLE);
    store_le32(table, SIG_REGION);
    store_le32(table + REGION_COUNT, (uint32_t)r->all.len);
    for (size_t i = 0; i < r->all.len; i++) {
        uint8_t *e = table + REGION_HEADER + i * REGION_ENTRY;
        memcpy(e, r->all.at[i].guid.b, 16);
        store_le64(e + 16, r->all.at[i].place.offset);
        store_le32(e + 24, (uint32_t)r->all.at[i].place.length);
        store_le32(e + 28, r->all.at[i].required);
    }
    store_le32(table + REGION_CHECKSUM, crc32c(0, table, VHDX_REGION_TABLE));
}
