/* Where convert and dd write to: a target file with an open image in it.
 *
 * sink_create or sink_reuse, then write to ->node, then sink_finish, then sink_end in any case. All
 * complain themselves.
 */
#ifndef IMG_SINK_H
#define IMG_SINK_H

#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"

#include "target.h"

struct sink {
    struct target target;
    struct blk_node *node;
    struct blk_limits limits;
    bool fresh;   /* just made: nothing was in it before */
    bool durable; /* bring it to the disk before it gets its name */
};
#define SINK_INIT             \
    {                         \
        .target = TARGET_INIT \
    }

struct sink_spec {
    const char *name, *format;
    const char *cache;   /* NULL: what is quickest and yet durable at the end */
    const char *options; /* for making; NULL: none */
    const char *backing_file, *backing_format;
    uint64_t size;
    bool image_opts; /* for reuse */
    bool may_grow;   /* for reuse */
    bool quiet;
};

/* A new image. */
bool sink_create(struct sink *sink, const struct sink_spec *spec);

/* An image that is there already (-n); what it holds stays where nothing is written. */
bool sink_reuse(struct sink *sink, const struct sink_spec *spec);

/* Flushes, closes and publishes. False after a complaint; the target is as before then, unless it
 * is written in place. */
bool sink_finish(struct sink *sink);

void sink_end(struct sink *sink);

/* A complaint when writing to `name` would destroy what `source` is read from. */
bool sink_is_safe(const char *name, struct blk_node *source);

#endif
