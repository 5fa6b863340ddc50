/* img amend: other options for an image that is there. */
#include "img.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"

#include "args.h"
#include "image.h"
#include "output.h"
#include "watch.h"

struct amend {
    const char *format, *cache, *progress;
    char *options;
    bool image_opts, force, quiet, percent;
};

static const struct arg_def args[] = {
    { .letter = 'o',
      .name = "options",
      .kind = ARG_JOIN,
      .at = offsetof(struct amend, options),
      .value = "OPTIONS",
      .hint = "@amend",
      .help = "key=value,... to change; -o help lists them" },
    ARGS_FORMAT(struct amend, format),
    ARGS_IMAGE_OPTS(struct amend, image_opts),
    { .letter = 't',
      .name = "cache",
      .kind = ARG_TEXT,
      .at = offsetof(struct amend, cache),
      .value = "CACHE",
      .hint = "@cache",
      .help = "cache mode of the image" },
    { .name = "force",
      .kind = ARG_FLAG,
      .at = offsetof(struct amend, force),
      .help = "allow to erase the last key of an encrypted image (there are none yet)" },
    ARGS_PROGRESS(struct amend, percent, progress),
    ARGS_QUIET(struct amend, quiet),
    ARGS_OBJECT,
    ARGS_END,
};

static int progress(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    watch_total(total);
    watch_done(done);
    return watch_stopped();
}

static int amend(const struct amend *o, const char *filename)
{
    struct image_spec spec = {
        .name = filename,
        .format = o->format,
        .cache = o->cache,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_UNMAP | (o->quiet ? BLK_OPEN_QUIET : 0),
    };
    struct blk_node *node = image_open(&spec);
    if (!node)
        return 1;
    if (options_ask_help(o->options)) {
        int code = help_amend_options(blk_format(node));
        image_drop(&node);
        return code;
    }
    struct error *err = NULL;
    int r = blk_amend(node, o->options, progress, NULL, &err);
    if (r < 0)
        complain_error(&err, NULL);
    return image_close(node) && r == 0 ? 0 : 1;
}

static int run_with(struct amend *o, int operands, char **argv, int first)
{
    if (!o->options) {
        complain("amend needs options to change: -o KEY=VALUE,...");
        complain_usage("amend");
        return 1;
    }
    if (options_ask_help(o->options) && o->format)
        return help_amend_options(o->format);
    if (operands != 1) {
        complain("amend needs one file name");
        complain_usage("amend");
        return 1;
    }
    if (!image_opts_alone(o->image_opts, o->format) || !cache_valid(o->cache, "cache"))
        return 1;
    struct watch_how how = { .percent = o->percent, .mode = o->progress, .quiet = o->quiet };
    watch_begin("amend", &how);
    return watch_end(amend(o, argv[first]));
}

static int run(const struct command *self, int argc, char **argv)
{
    struct amend o = { 0 };
    int first, code;
    if (args_parse(self, argc, argv, &o, &first, &code))
        code = run_with(&o, argc - first, argv, first);
    free(o.options);
    return output_end(code);
}

const struct command cmd_amend = {
    .name = "amend",
    .summary = "change the options of an image",
    .operands = "FILENAME",
    .args = args,
    .exit_codes = "  0    done\n"
                  "  1    not done; the image is whole and holds what it held\n"
                  "  130  stopped by SIGINT (128 and the signal's number), the same\n",
    .example = "amend -o compat=1.1,refcount_bits=64 vm.qcow2",
    .run = run,
};
