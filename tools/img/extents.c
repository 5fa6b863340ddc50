#include "extents.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

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

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

int extents_walk(struct blk_node *node, uint64_t start, uint64_t end, bool offsets, double patience,
                 int (*fn)(void *opaque, const struct run *run), void *opaque)
{
    struct run current = { 0 };
    double deadline = patience > 0 ? now() + patience : 0;
    for (uint64_t at = start; at < end;) {
        struct blk_extent e;
        int r = blk_extents(node, at, end - at, 0, &e);
        if (r < 0) {
            complain("cannot tell what '%s' holds at offset %" PRIu64 ": %s", blk_filename(node),
                     at, strerror(-r));
            return r;
        }
        struct run next = run_of(&e);
        if (current.length > 0 && continues(&current, &next, offsets)) {
            current.length += next.length;
        } else {
            if (current.length > 0 && (r = fn(opaque, &current)) != 0)
                return r;
            current = next;
        }
        at += e.length;
        if (deadline > 0 && now() > deadline)
            return 1;
    }
    return current.length > 0 ? fn(opaque, &current) : 0;
}
