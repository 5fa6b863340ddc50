/* img create: a new image. */
#include "img.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"

#include "args.h"
#include "image.h"
#include "output.h"

struct create {
    const char *format, *backing, *backing_format;
    char *options;
    bool quiet, unchecked;
};

static const struct arg_def args[] = {
    { .letter = 'f',
      .name = "format",
      .kind = ARG_TEXT,
      .at = offsetof(struct create, format),
      .value = "FMT",
      .hint = "@format",
      .help = "format of the new image (raw)" },
    { .letter = 'b',
      .name = "backing",
      .kind = ARG_TEXT,
      .at = offsetof(struct create, backing),
      .value = "FILE",
      .hint = "@file",
      .help = "what the image does not hold comes from FILE" },
    { .letter = 'F',
      .name = "backing-format",
      .kind = ARG_TEXT,
      .at = offsetof(struct create, backing_format),
      .value = "FMT",
      .hint = "@format",
      .help = "format of the backing file" },
    { .letter = 'u',
      .name = "backing-unsafe",
      .kind = ARG_FLAG,
      .at = offsetof(struct create, unchecked),
      .help = "do not open the backing file" },
    { .letter = 'o',
      .name = "options",
      .kind = ARG_JOIN,
      .at = offsetof(struct create, options),
      .value = "OPTIONS",
      .hint = "@options",
      .help = "key=value,... of the format; -o help lists them" },
    ARGS_QUIET(struct create, quiet),
    ARGS_OBJECT,
    ARGS_END,
};

/* -o size=, backing_file= and backing_fmt= are other spellings of what has a place of its own. */
static bool merge_options(struct create *o, struct blk_create_args *args_out, const char *size,
                          char **own_file, char **own_format)
{
    *own_file = options_take(o->options, "backing_file");
    *own_format = options_take(o->options, "backing_fmt");
    _cleanup_free_ char *own_size = options_take(o->options, "size");
    if (own_size && size) {
        complain("the size is given twice: '%s' and -o size=%s", size, own_size);
        return false;
    }
    if (!size)
        size = own_size;
    if (size) {
        args_out->size_given = true;
        if (!parse_size(size, "image size", &args_out->size))
            return false;
    }
    args_out->backing_file = o->backing ? o->backing : *own_file;
    args_out->backing_format = o->backing_format ? o->backing_format : *own_format;
    return true;
}

static int create(struct create *o, const char *filename, const char *size)
{
    _cleanup_free_ char *own_file = NULL, *own_format = NULL;
    struct blk_create_args make = {
        .filename = filename,
        .format = o->format,
        .backing_unchecked = o->unchecked,
    };
    if (!merge_options(o, &make, size, &own_file, &own_format))
        return 1;
    make.options = o->options && *o->options ? o->options : NULL;
    if (make.backing_file && !make.backing_format) {
        complain(
            "%s: the backing file '%s' needs its format stated with -F: a format that is guessed "
            "each time lets a guest choose it",
            filename, make.backing_file);
        return 1;
    }
    if (make.backing_format && !make.backing_file) {
        complain("%s: -F states the format of a backing file, but there is no -b", filename);
        return 1;
    }
    if (!make.size_given && (!make.backing_file || o->unchecked)) {
        complain("%s: the new image needs a size", filename);
        complain_usage("create");
        return 1;
    }
    _cleanup_free_ char *summary = NULL;
    struct error *err = NULL;
    if (blk_create(&make, &summary, &err) < 0) {
        complain_error(&err, NULL);
        return 1;
    }
    if (!o->quiet) {
        printf("Formatting '%s', fmt=%s%s%s\n", filename, o->format, summary && *summary ? " " : "",
               summary ? summary : "");
    }
    return output_end(0);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct create o = { .format = "raw" };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (options_ask_help(o.options)) {
        code = help_create_options(o.format);
    } else if (argc - first < 1) {
        complain("create needs a file name");
        complain_usage("create");
        code = 1;
    } else if (argc - first > 2) {
        complain("create takes a file name and a size, '%s' is too much", argv[first + 2]);
        complain_usage("create");
        code = 1;
    } else {
        code = format_known(o.format) ? create(&o, argv[first], argv[first + 1]) : 1;
    }
    free(o.options);
    return code;
}

const struct command cmd_create = {
    .name = "create",
    .summary = "make a new image",
    .operands = "FILENAME [SIZE]",
    .args = args,
    .example = "create -f qcow2 vm.qcow2 20G",
    .run = run,
};
