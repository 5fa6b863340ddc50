/* img rebase: another backing file for an overlay. */
#include "img.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"

#include "args.h"
#include "image.h"
#include "layers.h"
#include "output.h"
#include "watch.h"

struct rebase {
    const char *format, *backing, *backing_format, *cache, *source_cache, *progress;
    bool image_opts, unsafe, share, compress, quiet, percent;
};

static const struct arg_def args[] = {
    ARGS_FORMAT(struct rebase, format),
    ARGS_IMAGE_OPTS(struct rebase, image_opts),
    { .letter = 'b',
      .name = "backing",
      .kind = ARG_TEXT,
      .at = offsetof(struct rebase, backing),
      .value = "FILE",
      .hint = "@file",
      .help = "the new backing file, as seen from FILENAME's folder; \"\": none" },
    { .letter = 'F',
      .name = "backing-format",
      .kind = ARG_TEXT,
      .at = offsetof(struct rebase, backing_format),
      .value = "FMT",
      .hint = "@format",
      .help = "format of the new backing file" },
    { .letter = 'u',
      .name = "unsafe",
      .kind = ARG_FLAG,
      .at = offsetof(struct rebase, unsafe),
      .help = "only write the name: the new backing file has the content of the old one" },
    { .letter = 'c',
      .name = "compress",
      .kind = ARG_FLAG,
      .at = offsetof(struct rebase, compress),
      .help = "compress what is copied into FILENAME" },
    { .letter = 't',
      .name = "cache",
      .kind = ARG_TEXT,
      .at = offsetof(struct rebase, cache),
      .value = "CACHE",
      .hint = "@cache",
      .help = "cache mode of the image" },
    { .letter = 'T',
      .name = "source-cache",
      .kind = ARG_TEXT,
      .at = offsetof(struct rebase, source_cache),
      .value = "CACHE",
      .hint = "@cache",
      .help = "cache mode of the new backing file" },
    ARGS_PROGRESS(struct rebase, percent, progress),
    ARGS_QUIET(struct rebase, quiet),
    ARGS_SHARE(struct rebase, share),
    ARGS_OBJECT,
    ARGS_END,
};

static bool has_backing(const struct rebase *o)
{
    return o->backing && o->backing[0];
}

/* The new backing file's chain, opened; NULL with *ok when there is to be none. */
static struct blk_node *open_other(const struct rebase *o, struct blk_node *overlay, bool *ok)
{
    *ok = !has_backing(o);
    if (*ok)
        return NULL;
    _cleanup_free_ char *name = blk_resolve(blk_filename(overlay), o->backing);
    if (!name) {
        complain("out of memory");
        return NULL;
    }
    struct image_spec spec = {
        .name = name,
        .format = o->backing_format,
        .cache = o->source_cache,
        .flags = BLK_OPEN_QUIET | (o->share ? BLK_OPEN_SHARED : 0),
    };
    struct blk_node *other = image_open(&spec);
    if (other && image_rests_on(other, blk_filename(overlay))) {
        complain("'%s' rests on '%s' itself, so it cannot be its backing file", o->backing,
                 blk_filename(overlay));
        image_drop(&other);
    }
    *ok = other;
    return other;
}

static bool rebase_safely(const struct rebase *o, struct blk_node *overlay)
{
    bool ok;
    _cleanup_image_ struct blk_node *other = open_other(o, overlay, &ok);
    if (!ok)
        return false;
    struct layer_exchange x = { .overlay = overlay, .other = other, .compress = o->compress };
    return layer_copy_up(&x) == 0 && !watch_stopped();
}

/* Before anything is copied for nothing. */
static bool backing_agrees(const struct rebase *o, struct blk_node *overlay)
{
    struct blk_limits limits;
    blk_get_limits(overlay, &limits);
    if (!limits.backing_allowed) {
        complain("'%s' has the format %s, which has no backing files", blk_filename(overlay),
                 blk_format(overlay));
        return false;
    }
    if (!has_backing(o))
        return true;
    if (!o->backing_format) {
        complain("the backing file '%s' needs its format stated with -F", o->backing);
        return false;
    }
    _cleanup_free_ char *name = blk_resolve(blk_filename(overlay), o->backing);
    struct stat a, b;
    if (name && stat(name, &a) == 0 && stat(blk_filename(overlay), &b) == 0 &&
        a.st_dev == b.st_dev && a.st_ino == b.st_ino) {
        complain("'%s' cannot be its own backing file", blk_filename(overlay));
        return false;
    }
    return true;
}

static int rebase(const struct rebase *o, const char *filename)
{
    struct image_spec spec = {
        .name = filename,
        .format = o->format,
        .cache = o->cache,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_RDWR | BLK_OPEN_UNMAP | (o->unsafe ? BLK_OPEN_NO_BACKING : 0) |
                 (o->share ? BLK_OPEN_SHARED : 0) | (o->quiet ? BLK_OPEN_QUIET : 0),
    };
    struct blk_node *overlay = image_open(&spec);
    if (!overlay)
        return 1;
    bool ok = backing_agrees(o, overlay) && (o->unsafe || rebase_safely(o, overlay)) &&
              layer_rename(overlay, o->backing, o->backing_format);
    if (!image_close(overlay))
        ok = false;
    return ok ? 0 : 1;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct rebase o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 1) {
        complain("rebase needs one file name");
        complain_usage("rebase");
        return 1;
    }
    if (!o.backing && !o.unsafe) {
        complain("rebase needs the new backing file: -b FILE, or -b \"\" for none");
        complain_usage("rebase");
        return 1;
    }
    if (!image_opts_alone(o.image_opts, o.format) || !cache_valid(o.cache, "cache") ||
        !cache_valid(o.source_cache, "source cache") ||
        (o.backing_format && !format_known(o.backing_format)))
        return 1;
    struct watch_how how = { .percent = o.percent, .mode = o.progress, .quiet = o.quiet };
    watch_begin("rebase", &how);
    return output_end(watch_end(rebase(&o, argv[first])));
}

const struct command cmd_rebase = {
    .name = "rebase",
    .summary = "give an overlay another backing file",
    .operands = "FILENAME",
    .args = args,
    .exit_codes = "  0    it rests on the new backing file\n"
                  "  1    it rests on the old one, and reads as before\n"
                  "  130  stopped by SIGINT (128 and the signal's number), the same\n",
    .example = "rebase -b base.qcow2 -F qcow2 overlay.qcow2",
    .run = run,
};
