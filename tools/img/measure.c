/* img measure: how large would an image become. */
#include "img.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#include "args.h"
#include "image.h"
#include "output.h"

#define NO_SIZE UINT64_MAX

struct measure {
    const char *format, *target_format, *output, *snapshot;
    char *options;
    uint64_t size;
    bool image_opts, share;
};

static const struct arg_def args[] = {
    { .letter = 'O',
      .name = "target-format",
      .kind = ARG_TEXT,
      .at = offsetof(struct measure, target_format),
      .value = "FMT",
      .hint = "@format",
      .help = "format of the image to be made (raw)" },
    { .letter = 'o',
      .name = "target-options",
      .kind = ARG_JOIN,
      .at = offsetof(struct measure, options),
      .value = "OPTIONS",
      .hint = "@options",
      .help = "options it would be made with; -o help lists them" },
    { .letter = 's',
      .name = "size",
      .kind = ARG_SIZE,
      .at = offsetof(struct measure, size),
      .value = "SIZE",
      .help = "of an empty disk of that size, instead of FILENAME",
      .what = "image size" },
    ARGS_FORMAT(struct measure, format),
    ARGS_IMAGE_OPTS(struct measure, image_opts),
    { .letter = 'l',
      .name = "snapshot",
      .kind = ARG_TEXT,
      .at = offsetof(struct measure, snapshot),
      .value = "SNAPSHOT",
      .help = "the state that an internal snapshot keeps" },
    ARGS_OUTPUT(struct measure, output),
    ARGS_SHARE(struct measure, share),
    ARGS_OBJECT,
    ARGS_END,
};

/* Both sides of a conversion can keep bitmaps; neither compat 0.10 nor another format can. */
static bool keeps_bitmaps(const struct measure *o, struct blk_node *src)
{
    if (!src || strcmp(o->target_format, "qcow2") != 0 || strcmp(blk_format(src), "qcow2") != 0)
        return false;
    _cleanup_free_ char *copy = o->options ? strdup(o->options) : NULL;
    _cleanup_free_ char *compat = options_take(copy, "compat");
    if (compat && (strcmp(compat, "0.10") == 0 || strcmp(compat, "v2") == 0))
        return false;
    struct blk_info info = { 0 };
    if (blk_info(src, &info, NULL) < 0)
        return false;
    _cleanup_json_ json_t *specific = info.specific ? json_loads(info.specific, 0, NULL) : NULL;
    const char *version =
        json_string_value(json_object_get(json_object_get(specific, "data"), "compat"));
    bool keeps = version && strcmp(version, "1.1") == 0;
    blk_info_free(&info);
    return keeps;
}

static void print(const struct measure *o, const struct blk_measure *m, bool bitmaps)
{
    if (!o->output || strcmp(o->output, "human") == 0) {
        printf("required size: %" PRIu64 "\n", m->required);
        printf("fully allocated size: %" PRIu64 "\n", m->fully_allocated);
        if (bitmaps)
            puts("bitmaps size: 0");
        return;
    }
    _cleanup_json_ json_t *j = json_object();
    if (bitmaps)
        output_add(j, "bitmaps", json_integer(0));
    output_add(j, "required", json_integer((json_int_t)m->required));
    output_add(j, "fully-allocated", json_integer((json_int_t)m->fully_allocated));
    output_json(j);
}

static int measure(struct measure *o, const char *filename)
{
    _cleanup_image_ struct blk_node *src = NULL;
    if (filename) {
        struct image_spec spec = {
            .name = filename,
            .format = o->format,
            .image_opts = o->image_opts,
            .flags = BLK_OPEN_QUIET | BLK_OPEN_UNWRAP | (o->share ? BLK_OPEN_SHARED : 0),
            .snapshot = o->snapshot,
        };
        src = image_open(&spec);
        if (!src)
            return 1;
    }
    _cleanup_free_ char *own_size = options_take(o->options, "size");
    uint64_t size = o->size;
    if (own_size && !parse_size(own_size, "image size", &size))
        return 1;
    if (src)
        size = image_sectors_size(src);
    struct blk_measure m = { 0 };
    struct error *err = NULL;
    const char *options = o->options && *o->options ? o->options : NULL;
    if (blk_measure(o->target_format, options, size, src, &m, &err) < 0) {
        complain_error(&err, NULL);
        return 1;
    }
    print(o, &m, keeps_bitmaps(o, src));
    return output_end(0);
}

static bool sensible(const struct measure *o, int operands)
{
    if (operands > 1 || (operands == 0 && o->size == NO_SIZE)) {
        complain("measure needs either --size or one file name");
        complain_usage("measure");
        return false;
    }
    if (operands == 1 && o->size != NO_SIZE) {
        complain("measure takes --size or a file name, not both");
        return false;
    }
    if (operands == 0 && (o->format || o->image_opts || o->snapshot)) {
        complain("-f, -l and --image-opts say how to read a file, but there is no file name");
        return false;
    }
    return image_opts_alone(o->image_opts, o->format) && format_known(o->target_format);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct measure o = { .target_format = "raw", .size = NO_SIZE };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (options_ask_help(o.options))
        code = help_create_options(o.target_format);
    else
        code = sensible(&o, argc - first) ? measure(&o, argv[first]) : 1;
    free(o.options);
    return code;
}

const struct command cmd_measure = {
    .name = "measure",
    .summary = "tell how much space a new image would need",
    .operands = "[FILENAME]",
    .args = args,
    .example = "measure -O qcow2 disk.raw",
    .run = run,
};
