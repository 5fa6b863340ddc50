/* Operations on a whole image: resize, check, info. They run alone, behind the node's gate. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "base/round.h"
#include "node.h"

const char *blk_error_text(const struct error *err)
{
    return error_text(err);
}

void blk_error_free(struct error *err)
{
    error_free(err);
}

/* ---- resize -------------------------------------------------------------------------------------- */

/* The new part of a mapped disk reads as zeroes, whatever an earlier shrinking left in the last
 * unit, or the backing file has there. */
static int zero_new_part(struct blk_node *n, uint64_t old, uint64_t size)
{
    if (!n->drv->write_begin || size <= old)
        return 0;
    uint64_t end = MIN(round_up(old, n->limits.unit), size);
    if (n->edge[EDGE_BACKING])
        end = MAX(end, MIN(size, blk_size(n->edge[EDGE_BACKING])));
    return end > old ? mapped_zero(n, old, end - old, 0) : 0;
}

int control_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc,
                   struct error **err)
{
    uint64_t old = blk_size(n);
    int ret = n->drv->resize(n, size, prealloc, err);

    if (ret < 0)
        return ret;
    atomic_store(&n->size, size);
    ret = zero_new_part(n, old, size);
    return ret < 0 ? error_set(err, -ret, "%s: could not zero the new part: %s", n->filename,
                               strerror(-ret))
                   : 0;
}

int blk_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err)
{
    if (n->read_only)
        return error_set(err, EACCES, "%s: cannot be resized: it is open read-only", n->filename);
    if (atomic_load(&n->failed))
        return error_set(err, EIO, "%s: cannot be resized after a failed metadata update",
                         n->filename);
    if (!n->drv->resize)
        return error_set(err, ENOTSUP, "%s: the %s driver cannot resize", n->filename,
                         n->drv->name);
    if (size > INT64_MAX)
        return error_set(err, EFBIG, "%s: the size is above the limit of 8 EiB", n->filename);

    gate_close(&n->gate);
    int ret = control_resize(n, size, prealloc, err);
    gate_open(&n->gate);
    return ret;
}

/* ---- check --------------------------------------------------------------------------------------- */

int blk_check(struct blk_node *n, unsigned fix, struct blk_check *out,
              const struct blk_check_hooks *hooks, struct error **err)
{
    static const struct blk_check_hooks silent;

    *out = (struct blk_check){ 0 };
    if (!n->drv->check)
        return error_set(err, ENOTSUP, "%s: the format %s has nothing to check", n->filename,
                         n->drv->name);
    if (fix && n->read_only)
        return error_set(err, EACCES, "%s: cannot be repaired: it is open read-only", n->filename);

    gate_close(&n->gate);
    int ret = n->drv->check(n, fix, out, hooks ? hooks : &silent, err);
    gate_open(&n->gate);
    return ret;
}

/* ---- info ---------------------------------------------------------------------------------------- */

static int copy_text(char **to, const char *from)
{
    *to = from ? strdup(from) : NULL;
    return from && !*to ? -ENOMEM : 0;
}

int64_t node_actual_size(struct blk_node *n)
{
    struct blk_node *file = node_leaf(n);
    return file->drv->actual_size ? file->drv->actual_size(file) : -ENOTSUP;
}

/* The filter through which the node's file is read. */
static const char *wrapped_by(struct blk_node *n)
{
    const struct blk_node *file = n->edge[EDGE_FILE];

    return file && file->drv->wraps ? file->drv->name : NULL;
}

static int info_generic(struct blk_node *n, struct blk_info *out)
{
    int64_t actual = node_actual_size(n);

    for (size_t i = 0; actual >= 0 && i < n->extents.len; i++) {
        int64_t more = node_actual_size(n->extents.at[i].node);
        actual = more < 0 || __builtin_add_overflow(actual, more, &more) ? -ENOTSUP : more;
    }
    out->virtual_size = atomic_load(&n->size);
    out->actual_size_known = actual >= 0;
    out->actual_size = actual >= 0 ? (uint64_t)actual : 0;
    if (copy_text(&out->filename, n->filename) < 0 || copy_text(&out->format, n->drv->name) < 0 ||
        copy_text(&out->backing_filename, n->backing_filename) < 0 ||
        copy_text(&out->full_backing_filename, n->backing_resolved) < 0 ||
        copy_text(&out->backing_format, n->backing_format) < 0 ||
        copy_text(&out->wrapped, wrapped_by(n)) < 0)
        return -ENOMEM;
    return 0;
}

int blk_info(struct blk_node *n, struct blk_info *out, struct error **err)
{
    *out = (struct blk_info){ 0 };
    gate_close(&n->gate);
    int ret = info_generic(n, out);
    if (ret < 0)
        error_set(err, -ret, "out of memory");
    else if (n->drv->info)
        ret = n->drv->info(n, out, err);
    gate_open(&n->gate);
    if (ret < 0)
        blk_info_free(out);
    return ret;
}

void blk_info_free(struct blk_info *info)
{
    free(info->filename);
    free(info->format);
    free(info->backing_filename);
    free(info->full_backing_filename);
    free(info->backing_format);
    free(info->wrapped);
    free(info->specific);
    free(info->snapshots);
    *info = (struct blk_info){ 0 };
}
