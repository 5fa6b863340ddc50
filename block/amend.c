/* Changing what an image says of itself: its options, its backing file; and emptying it. Each runs alone, behind
 * the node's gate. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "node.h"

static int check_writable(const struct blk_node *n, const char *what, struct error **err)
{
    if (n->read_only)
        return error_set(err, EACCES, "%s: %s: it is open read-only", n->filename, what);
    if (atomic_load(&n->failed))
        return error_set(err, EIO, "%s: %s after a failed metadata update", n->filename, what);
    return 0;
}

/* ---- the backing file ---------------------------------------------------------------------------------- */

/* What the node remembers of it. */
static int remember_backing(struct blk_node *n, const char *filename, const char *format)
{
    char *resolved = filename ? graph_resolve(n->filename, filename) : NULL;

    if (filename && !resolved)
        return -ENOMEM;
    free(n->backing_resolved);
    n->backing_resolved = resolved;
    return node_set_backing(n, filename, format);
}

/* For drivers that write down which image it was. */
static int open_new_backing(struct blk_node *n, const char *filename, const char *format,
                            struct error **err)
{
    struct blk_open_args open = { .format = format, .flags = BLK_OPEN_NO_IO | BLK_OPEN_NO_BACKING };

    if (!(n->drv->flags & DRIVER_KNOWS_BACKING) || !filename)
        return 0;
    _cleanup_free_ char *full = graph_resolve(n->filename, filename);
    if (!full)
        return error_set(err, ENOMEM, "out of memory");
    int ret = blk_open(full, &open, &n->create_backing, err);
    if (ret < 0)
        error_prefix(err, "%s: could not open its new backing file", n->filename);
    return ret;
}

int blk_change_backing(struct blk_node *n, const char *filename, const char *format,
                       struct error **err)
{
    int ret = check_writable(n, "its backing file cannot be changed", err);

    if (ret < 0)
        return ret;
    if (!n->drv->change_backing)
        return error_set(err, ENOTSUP, "%s: the format %s has no backing files", n->filename,
                         n->drv->name);
    if (filename && !filename[0])
        filename = NULL;
    if (!filename)
        format = NULL;
    ret = open_new_backing(n, filename, format, err);
    if (ret < 0)
        return ret;
    gate_close(&n->gate);
    ret = n->drv->change_backing(n, filename, format, err);
    if (ret == 0 && remember_backing(n, filename, format) < 0)
        ret = error_set(err, ENOMEM, "out of memory");
    gate_open(&n->gate);
    blk_close(n->create_backing, NULL);
    n->create_backing = NULL;
    return ret;
}

/* ---- emptying ------------------------------------------------------------------------------------------ */

int blk_make_empty(struct blk_node *n, struct error **err)
{
    int ret = check_writable(n, "it cannot be emptied", err);

    if (ret < 0)
        return ret;
    if (!n->drv->make_empty)
        return error_set(err, ENOTSUP, "%s: images of format %s cannot be emptied", n->filename,
                         n->drv->name);
    gate_close(&n->gate);
    ret = n->drv->make_empty(n, err);
    gate_open(&n->gate);
    return ret;
}

/* ---- options ------------------------------------------------------------------------------------------- */

/* An option that can be given when an image is made, but not later. */
static int refuse_create_options(const struct blk_node *n, json_t *options, struct error **err)
{
    const struct opt_def *def = n->drv->create_options;

    for (; def && def->name; def++) {
        size_t stem = strcspn(def->name, ".");
        _cleanup_free_ char *key = strndup(def->name, stem);
        if (key && json_object_get(options, key))
            return error_set(err, EINVAL, "%s: option '%s' can only be given when an image is made",
                             n->filename, key);
    }
    return 0;
}

static int take_options(struct blk_node *n, const char *text, void *o, struct error **err)
{
    const struct opt_def *table = n->drv->amend_options;
    char what[64];
    _cleanup_json_ json_t *options = opts_parse_keyval(text, NULL, err);

    if (!options)
        return -EINVAL;
    int ret = opts_take(table, options, o, err);
    if (ret < 0)
        return ret;
    snprintf(what, sizeof(what), "%s amend options", n->drv->name);
    ret = refuse_create_options(n, options, err);
    if (ret == 0)
        ret = opts_refuse_rest(table, options, what, err);
    if (ret < 0)
        opts_free(table, o);
    return ret;
}

int blk_amend(struct blk_node *n, const char *options, blk_progress_fn *progress, void *opaque,
              struct error **err)
{
    int ret = check_writable(n, "its options cannot be changed", err);

    if (ret < 0)
        return ret;
    if (!n->drv->amend)
        return error_set(err, ENOTSUP, "%s: the format %s has no options that can be changed",
                         n->filename, n->drv->name);
    _cleanup_free_ void *o = calloc(1, n->drv->amend_options_size);
    if (!o)
        return error_set(err, ENOMEM, "out of memory");
    ret = take_options(n, options, o, err);
    if (ret < 0)
        return ret;
    gate_close(&n->gate);
    uint64_t size = blk_size(n);
    ret = n->drv->amend(n, o, &size, progress, opaque, err);
    if (ret == 0 && size != blk_size(n))
        ret = control_resize(n, size, BLK_PREALLOC_OFF, err);
    gate_open(&n->gate);
    opts_free(n->drv->amend_options, o);
    return ret;
}
