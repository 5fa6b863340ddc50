/* img commit: what an overlay holds, into what it rests on. */
#include "img.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"

#include "args.h"
#include "image.h"
#include "layers.h"
#include "output.h"
#include "watch.h"

struct commit {
    const char *format, *base, *cache, *progress;
    uint64_t rate;
    bool image_opts, keep, quiet, percent;
};

static const struct arg_def args[] = {
    ARGS_FORMAT(struct commit, format),
    ARGS_IMAGE_OPTS(struct commit, image_opts),
    { .letter = 'b',
      .name = "base",
      .kind = ARG_TEXT,
      .at = offsetof(struct commit, base),
      .value = "FILE",
      .hint = "@file",
      .help = "the image of the chain to write into (the backing file); FILENAME keeps its content "
              "then" },
    { .letter = 'd',
      .name = "drop",
      .kind = ARG_FLAG,
      .at = offsetof(struct commit, keep),
      .help = "FILENAME is about to be removed: do not empty it" },
    { .letter = 'r',
      .name = "rate-limit",
      .kind = ARG_SIZE,
      .at = offsetof(struct commit, rate),
      .value = "RATE",
      .help = "bytes per second at most",
      .what = "rate limit" },
    { .letter = 't',
      .name = "cache",
      .kind = ARG_TEXT,
      .at = offsetof(struct commit, cache),
      .value = "CACHE",
      .hint = "@cache",
      .help = "cache mode of the images" },
    ARGS_PROGRESS(struct commit, percent, progress),
    ARGS_QUIET(struct commit, quiet),
    ARGS_OBJECT,
    ARGS_END,
};

/* How many backing edges below the top the base is; 0 after a complaint. */
static unsigned find_base(const struct commit *o, const char *filename)
{
    struct image_spec spec = {
        .name = filename,
        .format = o->format,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_QUIET | BLK_OPEN_NO_IO,
    };
    _cleanup_image_ struct blk_node *top = image_open(&spec);
    if (!top)
        return 0;
    unsigned depth = layer_depth(top, o->base);
    if (!depth)
        complain("'%s' is not in the backing chain of '%s'", o->base, filename);
    return depth;
}

static bool grow_base(struct blk_node *base, uint64_t size)
{
    struct error *err = NULL;
    if (blk_size(base) >= size || blk_resize(base, size, BLK_PREALLOC_OFF, &err) == 0)
        return true;
    complain_error(&err, "the base cannot become as large as the overlay");
    return false;
}

/* 0, or negative after a complaint. */
static int copy_down(const struct commit *o, struct blk_node *top, struct blk_node *base)
{
    struct blk_limits limits;
    uint64_t before = 0;
    blk_get_limits(base, &limits);
    struct blk_copy_args copy = {
        .src = top,
        .dst = base,
        .base = base,
        .length = blk_size(top),
        .min_sparse = MAX(limits.cluster_size, (uint32_t)4096),
        .rate_limit = o->rate,
        .progress = watch_step,
        .opaque = &before,
    };
    struct error *err = NULL;
    watch_total(copy.length);
    int r = copy.length ? blk_copy(&copy, &err) : 0;
    if (r == -ECANCELED) {
        complain("stopped before the end: '%s' is as it was, its content is partly in '%s', too",
                 blk_filename(top), blk_filename(base));
        blk_error_free(err);
    } else if (r < 0) {
        complain_error(&err, NULL);
    }
    return r;
}

/* The data is on the disk in the base before it goes from the overlay. */
static bool commit_into(const struct commit *o, struct blk_node *top, struct blk_node *base)
{
    struct error *err = NULL;
    if (!grow_base(base, blk_size(top)) || copy_down(o, top, base) < 0)
        return false;
    int r = blk_flush(base);
    if (r < 0) {
        complain("cannot write all of '%s' out: %s", blk_filename(base), strerror(-r));
        return false;
    }
    if (o->keep || o->base)
        return true;
    if (blk_make_empty(top, &err) == 0)
        return true;
    complain_error(&err, "the content is in '%s', but the overlay was not emptied",
                   blk_filename(base));
    return false;
}

static int commit(const struct commit *o, const char *filename)
{
    unsigned depth = o->base ? find_base(o, filename) : 1;
    if (!depth)
        return 1;
    struct image_spec spec = {
        .name = filename,
        .format = o->format,
        .cache = o->cache,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_UNMAP | (o->quiet ? BLK_OPEN_QUIET : 0),
        .writable_backing = depth,
    };
    struct blk_node *top = image_open(&spec);
    if (!top)
        return 1;
    struct blk_node *base = top;
    for (unsigned i = 0; i < depth && base; i++)
        base = blk_child(base, "backing");
    bool ok = false;
    if (!base)
        complain("'%s' has no backing file to write into", filename);
    else if (o->base && layer_depth(top, o->base) != depth)
        complain("the backing chain of '%s' has just changed", filename);
    else
        ok = commit_into(o, top, base);
    if (!image_close(top))
        ok = false;
    watch_hide();
    if (ok && !o->quiet)
        puts("Image committed.");
    return ok ? 0 : 1;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct commit o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 1) {
        complain("commit needs one file name");
        complain_usage("commit");
        return 1;
    }
    if (!image_opts_alone(o.image_opts, o.format) || !cache_valid(o.cache, "cache"))
        return 1;
    struct watch_how how = { .percent = o.percent, .mode = o.progress, .quiet = o.quiet };
    watch_begin("commit", &how);
    return output_end(watch_end(commit(&o, argv[first])));
}

const struct command cmd_commit = {
    .name = "commit",
    .summary = "write an overlay's content into its backing file",
    .operands = "FILENAME",
    .args = args,
    .exit_codes = "  0    the base has the overlay's content\n"
                  "  1    not all of it; the overlay reads as before\n"
                  "  130  stopped by SIGINT (128 and the signal's number), the same\n",
    .example = "commit -p overlay.qcow2",
    .run = run,
};
