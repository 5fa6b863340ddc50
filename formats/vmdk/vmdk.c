/* The driver record; what an image says of itself. */
#include "vmdk.h"

#include <errno.h>
#include <inttypes.h>

#include "base/cleanup.h"
#include "base/json_text.h"

static int vmdk_probe(const uint8_t *buf, size_t len, const char *filename)
{
    (void)filename;
    if (len >= 4 && (load_le32(buf) == VMDK_MAGIC || load_le32(buf) == COWD_MAGIC))
        return 100;
    return vmdk_looks_like_desc((const char *)buf, len) ? 100 : 0;
}

/* ---- info ------------------------------------------------------------------------------------------------ */

static json_t *describe_extent(struct vmdk *v, const struct vmdk_extent *e)
{
    const char *name = e->file ? blk_filename(e->file) : "";
    json_t *o = json_object();

    if (!o)
        return NULL;
    if (e->compressed)
        json_object_set_new(o, "compressed", json_true());
    json_object_set_new(o, "virtual-size", json_integer((json_int_t)(e->end - e->start)));
    json_object_set_new(o, "filename", json_text(name));
    if (extent_sparse(e))
        json_object_set_new(o, "cluster-size", json_integer(e->grain));
    json_object_set_new(o, "format", json_string(v->embedded ? "" : e->type));
    return o;
}

int vmdk_info(struct blk_node *n, struct blk_info *out, struct error **err)
{
    struct vmdk *v = node_state(n);
    _cleanup_json_ json_t *extents = json_array();

    for (size_t i = 0; extents && i < v->extents.len; i++)
        json_array_append_new(extents, describe_extent(v, &v->extents.at[i]));
    if (extent_sparse(&v->extents.at[0]))
        out->cluster_size = v->extents.at[0].grain;
    out->corrupt = atomic_load(&v->corrupt_seen) || v->damaged;
    json_t *type = json_text(v->desc.create_type);
    _cleanup_json_ json_t *all = json_pack(
        "{s:s, s:{s:I, s:I, s:o, s:O}}", "type", "vmdk", "data", "cid", (json_int_t)v->desc.cid,
        "parent-cid", (json_int_t)v->desc.parent_cid, "create-type", type, "extents", extents);
    out->specific = all ? json_dumps(all, JSON_COMPACT) : NULL;
    return out->specific ? 0 : error_set(err, ENOMEM, "out of memory");
}

const struct driver vmdk_driver = {
    .name = "vmdk",
    .kind = BLK_FORMAT,
    .flags = DRIVER_PARALLEL | DRIVER_BACKING | DRIVER_UNMAP_ZERO | DRIVER_NEW_ZERO |
             DRIVER_EXTENTS | DRIVER_KNOWS_BACKING,
    .state_size = sizeof(struct vmdk),
    .create_options = vmdk_create_table,
    .create_options_size = sizeof(struct vmdk_create_options),
    .probe = vmdk_probe,
    .open = vmdk_open,
    .backing_opened = vmdk_backing_opened,
    .close = vmdk_close,
    .create = vmdk_create,
    .check_create = vmdk_check_create,
    .flush = vmdk_flush,
    .map_read = vmdk_map_read,
    .write_begin = vmdk_write_begin,
    .write_end = vmdk_write_end,
    .zero_range = vmdk_zero_range,
    .discard_range = vmdk_discard_range,
    .decode = vmdk_decode,
    .encode = vmdk_encode,
    .resize = vmdk_resize,
    .change_backing = vmdk_change_backing,
    .make_empty = vmdk_make_empty,
    .check = vmdk_check,
    .info = vmdk_info,
    .measure = vmdk_measure,
};
