/* img convert: the content of one or more images, in a new one. */
#include "convert.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "args.h"
#include "image.h"
#include "output.h"
#include "tools/window.h"
#include "watch.h"

static const struct arg_def args[] = {
    { .letter = 'f',
      .name = "source-format",
      .kind = ARG_TEXT,
      .at = offsetof(struct convert, format),
      .value = "FMT",
      .hint = "@format",
      .help = "format of the sources; guessed when not given" },
    { .letter = 'O',
      .name = "target-format",
      .kind = ARG_TEXT,
      .at = offsetof(struct convert, target_format),
      .value = "FMT",
      .hint = "@format",
      .help = "format of the target (raw)" },
    { .letter = 'o',
      .name = "target-options",
      .kind = ARG_JOIN,
      .at = offsetof(struct convert, options),
      .value = "OPTIONS",
      .hint = "@options",
      .help = "key=value,... of the target; -o help lists them" },
    { .letter = 'B',
      .name = "backing",
      .kind = ARG_TEXT,
      .at = offsetof(struct convert, backing),
      .value = "FILE",
      .hint = "@file",
      .help = "make an overlay of FILE, which holds what the source's backing file holds" },
    { .letter = 'F',
      .name = "backing-format",
      .kind = ARG_TEXT,
      .at = offsetof(struct convert, backing_format),
      .value = "FMT",
      .hint = "@format",
      .help = "format of the backing file" },
    { .letter = 'c',
      .name = "compress",
      .kind = ARG_FLAG,
      .at = offsetof(struct convert, compress),
      .help = "compress the target" },
    { .letter = 'C',
      .name = "copy-range-offloading",
      .kind = ARG_FLAG,
      .at = offsetof(struct convert, offload),
      .help = "let the host copy or share the blocks where it can" },
    { .letter = 'S',
      .name = "sparse-size",
      .kind = ARG_SIZE,
      .at = offsetof(struct convert, sparse),
      .value = "SIZE",
      .help = "so many zeroes in a row are not written (4k); 0: write them all",
      .what = "buffer size for sparse output" },
    { .letter = 'n',
      .name = "no-create",
      .kind = ARG_FLAG,
      .at = offsetof(struct convert, no_create),
      .help = "write into the target that is there" },
    { .name = "target-is-zero",
      .kind = ARG_FLAG,
      .at = offsetof(struct convert, target_is_zero),
      .help = "with -n: the target reads as zeroes already" },
    { .letter = 'r',
      .name = "rate-limit",
      .kind = ARG_SIZE,
      .at = offsetof(struct convert, rate),
      .value = "RATE",
      .help = "bytes per second at most",
      .what = "rate limit" },
    { .letter = 'm',
      .name = "parallel",
      .kind = ARG_NUMBER,
      .at = offsetof(struct convert, workers),
      .value = "N",
      .help = "workers; one per core when not given",
      .what = "number of workers" },
    { .letter = 'W',
      .name = "oob",
      .kind = ARG_FLAG,
      .at = offsetof(struct convert, out_of_order),
      .help =
          "allow writing out of order (which is the default wherever the order does not show)" },
    { .letter = 't',
      .name = "target-cache",
      .kind = ARG_TEXT,
      .at = offsetof(struct convert, cache),
      .value = "CACHE",
      .hint = "@cache",
      .help =
          "cache mode of the target; writeback with -n, else unsafe when not given, but brought to "
          "the disk at the end" },
    { .letter = 'T',
      .name = "source-cache",
      .kind = ARG_TEXT,
      .at = offsetof(struct convert, source_cache),
      .value = "CACHE",
      .hint = "@cache",
      .help = "cache mode of the sources" },
    { .letter = 'l',
      .name = "snapshot",
      .kind = ARG_TEXT,
      .at = offsetof(struct convert, snapshot),
      .value = "SNAPSHOT",
      .help = "the state that an internal snapshot keeps" },
    { .name = "salvage",
      .kind = ARG_FLAG,
      .at = offsetof(struct convert, salvage),
      .help = "what cannot be read becomes zeroes, and is listed" },
    { .name = "bitmaps",
      .kind = ARG_FLAG,
      .at = offsetof(struct convert, bitmaps),
      .help = "copy the persistent bitmaps, too (not there yet)" },
    { .name = "skip-broken-bitmaps",
      .kind = ARG_FLAG,
      .at = offsetof(struct convert, skip_bitmaps),
      .help = "with --bitmaps: leave out those that are not intact" },
    ARGS_IMAGE_OPTS(struct convert, image_opts),
    { .name = "target-image-opts",
      .kind = ARG_FLAG,
      .at = offsetof(struct convert, target_opts),
      .help = "with -n: TARGET is a description" },
    ARGS_PROGRESS(struct convert, percent, progress),
    ARGS_QUIET(struct convert, quiet),
    ARGS_SHARE(struct convert, share),
    ARGS_OBJECT,
    ARGS_END,
};

enum {
    SECTOR = 512,
    MAX_SPARSE = 16 << 20,
    MAX_WORKERS = 16, /* as in qemu-img */
};

/* What cannot be served yet, or contradicts itself. */
static bool options_agree(const struct convert *o)
{
    if (o->skip_bitmaps && !o->bitmaps) {
        complain("--skip-broken-bitmaps goes with --bitmaps");
    } else if (o->bitmaps) {
        complain("bitmaps cannot be copied yet: leave out --bitmaps");
    } else if (o->target_opts && !o->no_create) {
        complain("--target-image-opts describes an image that is there: it needs -n");
    } else if (o->target_opts && o->target_format) {
        complain("--target-image-opts and -O exclude each other: say driver=%s in the description",
                 o->target_format);
    } else if (o->target_is_zero && !o->no_create) {
        complain("--target-is-zero tells about an image that is there: it needs -n");
    } else if (o->target_is_zero && o->backing) {
        complain(
            "--target-is-zero and -B exclude each other: a target over a backing file is not zero");
    } else if (o->no_create && o->options) {
        complain("-o is for making the target, which -n forbids");
    } else if (o->offload && o->compress) {
        complain("-C and -c exclude each other: what is compressed cannot be copied by the host");
    } else if (o->offload && o->sparse_given) {
        complain("-C and -S exclude each other: zeroes are not looked for when the host copies");
    } else {
        return true;
    }
    return false;
}

static bool values_agree(struct convert *o)
{
    o->sparse_given = o->sparse != UINT64_MAX;
    if (!o->sparse_given)
        o->sparse = 4096;
    if (o->sparse % SECTOR || o->sparse > MAX_SPARSE) {
        complain("-S is %llu, but it must be a multiple of 512 and at most 16M",
                 (unsigned long long)o->sparse);
        return false;
    }
    if (o->workers != UINT64_MAX && (o->workers < 1 || o->workers > MAX_WORKERS)) {
        complain("-m is %llu, but it must be between 1 and %d", (unsigned long long)o->workers,
                 MAX_WORKERS);
        return false;
    }
    if (o->workers == UINT64_MAX)
        o->workers = 0;
    return options_agree(o) && cache_valid(o->cache, "cache") &&
           cache_valid(o->source_cache, "source cache") &&
           image_opts_alone(o->image_opts, o->format);
}

/* -o backing_file= and backing_fmt= are other spellings of -B and -F. */
static bool backing_agrees(struct convert *o)
{
    o->own_backing = options_take(o->options, "backing_file");
    o->own_backing_format = options_take(o->options, "backing_fmt");
    o->own_size = options_take(o->options, "size");
    if (!o->backing)
        o->backing = o->own_backing;
    if (!o->backing_format)
        o->backing_format = o->own_backing_format;
    if (o->backing && !o->backing_format && !o->no_create) {
        complain("the backing file '%s' needs its format stated with -F", o->backing);
        return false;
    }
    return true;
}

/* A partition is there already, so it is written as with -n; -O is the format of the disk it lies on. */
static bool partition_agrees(struct convert *o, const char *target)
{
    if (o->target_opts)
        return true;
    if (!window_is_there(target)) {
        if (!o->target_format)
            o->target_format = "raw";
        return true;
    }
    o->no_create = true;
    if (o->backing)
        complain("'%s' is a partition, which has no backing file: leave out -B", target);
    else if (o->options)
        complain("'%s' is a partition, which is not made anew: leave out -o", target);
    return !o->backing && !o->options;
}

static bool target_agrees(const struct convert *o)
{
    if (!o->target_format) /* described, or a partition */
        return true;
    struct blk_driver_info info;
    if (!format_known(o->target_format))
        return false;
    format_find(o->target_format, &info);
    if (!info.can_create && !o->no_create) {
        complain("images of format '%s' can be read, but not made", o->target_format);
        return false;
    }
    if (o->compress && !info.can_compress) {
        complain("format '%s' has no compression: use -O qcow2, or leave out -c", o->target_format);
        return false;
    }
    return true;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct convert o = { .sparse = UINT64_MAX, .workers = UINT64_MAX };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code)) {
        free(o.options);
        return code;
    }
    bool help = options_ask_help(o.options);
    code = 1;
    if (!help && argc - first < 2) {
        complain("convert needs a source and a target");
        complain_usage("convert");
    } else if (!help && values_agree(&o) && backing_agrees(&o)) {
        const char *target = argv[argc - 1];
        if (partition_agrees(&o, target) && target_agrees(&o)) {
            struct watch_how how = { .percent = o.percent,
                                     .mode = o.progress,
                                     .quiet = o.quiet,
                                     .busy_stdout = strcmp(target, "-") == 0 };
            watch_begin("convert", &how);
            code = watch_end(convert(&o, argv + first, argc - first - 1, target));
        }
    }
    if (help)
        code = help_create_options(o.target_format ? o.target_format : "raw");
    free(o.options);
    free(o.own_backing);
    free(o.own_backing_format);
    free(o.own_size);
    return output_end(code);
}

const struct command cmd_convert = {
    .name = "convert",
    .summary = "copy images into a new one, of any format",
    .operands = "SOURCE... TARGET",
    .args = args,
    .exit_codes = "  0    the target is complete\n"
                  "  1    it is not; a target that was to be made is as it was before\n"
                  "  130  stopped by SIGINT (128 and the signal's number), the same\n",
    .example = "convert -p -O qcow2 -c disk.raw vm.qcow2",
    .run = run,
};
