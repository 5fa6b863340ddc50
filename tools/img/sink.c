#include "sink.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/cleanup.h"

#include "image.h"
#include "img.h"

bool sink_is_safe(const char *name, struct blk_node *source)
{
    const char *plain = strncmp(name, "file:", 5) == 0 ? name + 5 : name;
    if (!image_rests_on(source, plain))
        return true;
    complain(
        "'%s' is what '%s' is read from, so it cannot be the target: give the target another name",
        name, blk_filename(source));
    return false;
}

static bool open_node(struct sink *sink, const struct sink_spec *spec, const char *name,
                      const char *cache, unsigned flags)
{
    struct image_spec image = {
        .name = name,
        .format = spec->image_opts ? NULL : spec->format,
        .cache = spec->cache ? spec->cache : cache,
        .image_opts = spec->image_opts,
        .flags = BLK_OPEN_RDWR | BLK_OPEN_UNMAP | flags | (spec->quiet ? BLK_OPEN_QUIET : 0),
    };
    sink->node = image_open(&image);
    if (!sink->node)
        return false;
    sink->durable = !spec->cache || strcmp(spec->cache, "unsafe") != 0;
    blk_get_limits(sink->node, &sink->limits);
    return true;
}

bool sink_create(struct sink *sink, const struct sink_spec *spec)
{
    /* Names stated in the image are looked for beside it. */
    struct blk_driver_info info = { 0 };
    (void)format_find(spec->format, &info);
    bool beside = (spec->backing_file && spec->backing_file[0] != '/') ||
                  (spec->options && strstr(spec->options, "data_file="));
    enum target_kind kind = beside             ? TARGET_BESIDE
                            : info.has_extents ? TARGET_FOLDER
                                               : TARGET_NAMELESS;
    if (!target_begin(&sink->target, spec->name, kind))
        return false;
    struct blk_create_args make = {
        .filename = sink->target.work,
        .final_name = sink->target.folder ? NULL : sink->target.path,
        .format = spec->format,
        .options = spec->options && *spec->options ? spec->options : NULL,
        .size_given = true,
        .size = spec->size,
        .backing_file = spec->backing_file,
        .backing_format = spec->backing_format,
    };
    struct error *err = NULL;
    if (blk_create(&make, NULL, &err) < 0) {
        complain_error(&err, NULL);
        return false;
    }
    sink->fresh = true;
    /* Nobody sees the new file before it is complete, and then it is brought to the disk. */
    const char *cache = sink->target.path ? "unsafe" : "writeback";
    return open_node(sink, spec, sink->target.work, cache, BLK_OPEN_RESIZE);
}

bool sink_reuse(struct sink *sink, const struct sink_spec *spec)
{
    sink->target.name = spec->name;
    return open_node(sink, spec, spec->name, "writeback", spec->may_grow ? BLK_OPEN_RESIZE : 0);
}

bool sink_finish(struct sink *sink)
{
    int r = blk_flush(sink->node);
    if (r < 0)
        complain("cannot write all of '%s' out: %s", blk_filename(sink->node), strerror(-r));
    bool ok = image_close(sink->node) && r == 0;
    sink->node = NULL;
    return ok && target_publish(&sink->target, sink->durable);
}

void sink_end(struct sink *sink)
{
    image_drop(&sink->node);
    target_end(&sink->target);
}
