#include "image.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/distance.h"
#include "base/round.h"

#include "args.h"
#include "img.h"
#include "tools/describe.h"
#include "tools/window.h"

bool format_find(const char *format, struct blk_driver_info *out)
{
    for (unsigned i = 0; blk_driver_at(i, out) == 0; i++) {
        if (strcmp(out->name, format) == 0)
            return true;
    }
    return false;
}

bool format_known(const char *format)
{
    struct blk_driver_info info;
    if (format_find(format, &info))
        return true;
    struct nearest best = nearest_begin(format);
    for (unsigned i = 0; blk_driver_at(i, &info) == 0; i++)
        nearest_try(&best, info.name);
    if (best.name)
        complain("unknown format '%s', did you mean '%s'?", format, best.name);
    else
        complain("unknown format '%s'; '%s help' lists the formats", format, program);
    return false;
}

bool cache_valid(const char *cache, const char *which)
{
    if (!cache || word_in(cache, "none|writeback|writethrough|directsync|unsafe"))
        return true;
    if (strcmp(cache, "off") == 0)
        return true;
    complain("invalid %s mode '%s': it is none, writeback, writethrough, directsync or unsafe",
             which, cache);
    return false;
}

bool image_opts_alone(bool image_opts, const char *format)
{
    if (!image_opts || !format)
        return true;
    complain("--image-opts and -f exclude each other: say driver=%s in the description", format);
    return false;
}

static bool view_described(struct blk_node *node, const char *text, struct error **err)
{
    _cleanup_free_ char *list = strdup(text);
    _cleanup_free_ char *id = list ? options_take(list, "snapshot.id") : NULL;
    _cleanup_free_ char *name = list ? options_take(list, "snapshot.name") : NULL;
    return blk_snapshot_view(node, id, name, err) == 0;
}

static bool view(struct blk_node *node, const char *text, struct error **err)
{
    if (strncmp(text, "snapshot.", 9) == 0)
        return view_described(node, text, err);
    int ret = blk_snapshot_view(node, text, NULL, err);
    if (ret != -ENOENT)
        return ret == 0;
    blk_error_free(*err);
    *err = NULL;
    return blk_snapshot_view(node, NULL, text, err) == 0;
}

char *image_partition(const struct image_spec *spec, char **text, struct error **err)
{
    unsigned number;
    char *image = spec->image_opts || spec->stated_by ? NULL : window_split(spec->name, &number);

    *text = NULL;
    if (!image)
        return NULL;
    json_t *desc = describe_image(image, false, err);
    if (desc && spec->format)
        json_object_set_new(desc, "driver", json_string(spec->format));
    desc = desc ? window_on_partition(desc, number, err) : NULL;
    *text = desc ? json_dumps(desc, JSON_COMPACT) : NULL;
    json_decref(desc);
    return image;
}

struct blk_node *image_open(const struct image_spec *spec)
{
    if (spec->format && !format_known(spec->format))
        return NULL;
    _cleanup_free_ char *window = NULL;
    struct error *err = NULL;
    _cleanup_free_ char *image = image_partition(spec, &window, &err);
    if (image && !window) {
        complain_error(&err, NULL);
        return NULL;
    }
    const char *cache = spec->cache && strcmp(spec->cache, "off") == 0 ? "none" : spec->cache;
    struct blk_open_args args = {
        .format = window ? NULL : spec->format,
        .cache = cache,
        .image_opts = spec->image_opts || window,
        .flags = spec->flags,
        .writable_backing = spec->writable_backing,
        .stated_by = spec->stated_by,
    };
    struct blk_node *node = NULL;
    if (blk_open(window ? window : spec->name, &args, &node, &err) < 0) {
        complain_error(&err, NULL);
        return NULL;
    }
    struct blk_node *disk = window ? blk_child(node, "file") : node;
    if (spec->snapshot && !view(disk, spec->snapshot, &err)) {
        complain_error(&err, NULL);
        blk_close(node, NULL);
        return NULL;
    }
    return node;
}

bool image_close(struct blk_node *node)
{
    struct error *err = NULL;
    if (blk_close(node, &err) == 0)
        return true;
    complain_error(&err, "closing failed, the newest writes may be lost");
    return false;
}

void image_drop(struct blk_node **node)
{
    blk_close(*node, NULL);
    *node = NULL;
}

static bool rests_on(struct blk_node *node, const struct stat *wanted)
{
    const char *name = blk_filename(node);
    struct stat st;
    bool leaf = !blk_child_at(node, 0, NULL);
    if (leaf && name && stat(name, &st) == 0 && st.st_dev == wanted->st_dev &&
        st.st_ino == wanted->st_ino)
        return true;
    struct blk_node *child;
    for (unsigned i = 0; (child = blk_child_at(node, i, NULL)); i++) {
        if (rests_on(child, wanted))
            return true;
    }
    return false;
}

bool image_rests_on(struct blk_node *node, const char *filename)
{
    struct stat wanted;
    return node && stat(filename, &wanted) == 0 && rests_on(node, &wanted);
}

uint64_t image_sectors_size(struct blk_node *node)
{
    return round_up(blk_size(node), 512);
}
