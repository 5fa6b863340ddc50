#include "extents.h"

#include <inttypes.h>
#include <string.h>

#include "base/macros.h"

#include "img.h"
#include "watch.h"

static struct run run_of(const struct blk_extent *e)
{
    struct run run = {
        .start = e->offset,
        .length = e->length,
        .depth = e->depth,
        .present = e->flags & BLK_EXT_ALLOCATED,
        .zero = e->flags & BLK_EXT_ZERO,
        .data = e->flags & BLK_EXT_DATA,
        .compressed = e->flags & BLK_EXT_COMPRESSED,
    };
    if ((e->flags & BLK_EXT_HOST) && !run.compressed && e->host) {
        run.has_offset = true;
        run.offset = e->host_offset;
        run.file = blk_filename(e->host);
    }
    return run;
}

static bool continues(const struct run *a, const struct run *b, bool offsets)
{
    if (a->depth != b->depth || a->present != b->present || a->zero != b->zero ||
        a->data != b->data || a->compressed != b->compressed)
        return false;
    if (!offsets)
        return true;
    if (a->has_offset != b->has_offset)
        return false;
    if (!a->has_offset)
        return true;
    return a->offset + a->length == b->offset && strcmp(a->file, b->file) == 0;
}

/* Much of this layer's file is holes: space was reserved there without writing to it. Only then holes
 * are worth asking for; elsewhere the answer would fall apart into crumbs. qemu-img draws the line at
 * the same place. */
static bool reserved_ahead(struct blk_node *layer)
{
    struct blk_node *file = blk_child(layer, "file");
    struct blk_limits limits;
    struct blk_info info = { 0 };
    blk_get_limits(layer, &limits);
    if (!file || !limits.cluster_size || blk_info(layer, &info, NULL) < 0)
        return false;
    uint64_t stored = info.actual_size / limits.cluster_size;
    uint64_t clusters = blk_size(file) / limits.cluster_size;
    bool known = info.actual_size_known;
    blk_info_free(&info);
    return known && clusters >= MAX(stored * 10 / 9, stored + 2);
}

enum { MAX_LAYERS = 64 };

struct layers {
    unsigned n;
    bool holes[MAX_LAYERS]; /* ask for holes of this one */
};

static void look_at_layers(struct layers *layers, struct blk_node *node)
{
    *layers = (struct layers){ 0 };
    for (; node && layers->n < MAX_LAYERS; node = blk_child(node, "backing"))
        layers->holes[layers->n++] = reserved_ahead(node);
}

static int extent_at(const struct layers *layers, struct blk_node *node, uint64_t at, uint64_t len,
                     struct blk_extent *e)
{
    int r = blk_extents(node, at, len, 0, e);
    if (r == 0 && (e->flags & BLK_EXT_DATA) && e->depth < layers->n && layers->holes[e->depth])
        r = blk_extents(node, at, e->length, BLK_HOLES, e);
    return r;
}

int extents_walk(struct blk_node *node, uint64_t start, uint64_t end, bool join_offsets,
                 int (*fn)(void *opaque, const struct run *run), void *opaque)
{
    struct run current = { 0 };
    struct layers layers;
    look_at_layers(&layers, node);
    for (uint64_t at = start; at < end;) {
        struct blk_extent e;
        int r = extent_at(&layers, node, at, end - at, &e);
        if (r < 0) {
            complain("cannot tell what '%s' holds at offset %" PRIu64 ": %s", blk_filename(node), at,
                     strerror(-r));
            return r;
        }
        struct run next = run_of(&e);
        if (current.length > 0 && continues(&current, &next, join_offsets)) {
            current.length += next.length;
        } else {
            if (current.length > 0 && (r = fn(opaque, &current)) != 0)
                return r;
            current = next;
        }
        at += e.length;
    }
    return current.length > 0 ? fn(opaque, &current) : 0;
}
