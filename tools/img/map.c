/* img map: where the bytes of an image lie. */
#include "img.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "args.h"
#include "extents.h"
#include "image.h"
#include "output.h"
#include "picture.h"

struct map {
    const char *format, *output;
    uint64_t start, length;
    bool image_opts, share;
};

static const struct arg_def args[] = {
    ARGS_FORMAT(struct map, format),
    ARGS_IMAGE_OPTS(struct map, image_opts),
    { .letter = 's',
      .name = "start-offset",
      .kind = ARG_SIZE,
      .at = offsetof(struct map, start),
      .value = "OFFSET",
      .help = "begin there (0)",
      .what = "start offset" },
    { .letter = 'l',
      .name = "max-length",
      .kind = ARG_SIZE,
      .at = offsetof(struct map, length),
      .value = "LEN",
      .help = "so many bytes at most",
      .what = "max length" },
    { .name = "output",
      .kind = ARG_TEXT,
      .at = offsetof(struct map, output),
      .value = "OFMT",
      .hint = "human|json|picture|svg",
      .help = "as a table, as JSON, or drawn: picture in the terminal, svg or svg=FILE as a file" },
    ARGS_SHARE(struct map, share),
    ARGS_OBJECT,
    ARGS_END,
};

static int print_human(void *opaque, const struct run *run)
{
    (void)opaque;
    if (!run->data || run->zero)
        return 0;
    if (!run->has_offset) {
        complain("the image holds compressed, encrypted or external clusters, which have no place "
                 "in the "
                 "table; --output=json shows them");
        return 1;
    }
    printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", run->start, run->length,
           run->offset, run->file);
    return ferror(stdout);
}

static int print_json(void *opaque, const struct run *run)
{
    bool *more = opaque;
    printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
           ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
           *more ? ",\n" : "[", run->start, run->length, run->depth,
           run->present ? "true" : "false", run->zero ? "true" : "false",
           run->data ? "true" : "false");
    if (run->has_offset)
        printf(", \"offset\": %" PRIu64, run->offset);
    putchar('}');
    *more = true;
    return ferror(stdout);
}

static int print(struct blk_node *node, const char *output, uint64_t start, uint64_t end)
{
    if (strcmp(output, "human") == 0) {
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
        return extents_walk(node, start, end, true, 0, print_human, NULL);
    }
    if (strcmp(output, "json") == 0) {
        bool more = false;
        int r = extents_walk(node, start, end, true, 0, print_json, &more);
        if (!more)
            print_json(&more, &(struct run){ .start = start });
        puts("]");
        return r;
    }
    if (strcmp(output, "picture") == 0)
        return picture_terminal(node, start, end);
    return picture_svg(node, start, end, output[3] == '=' ? output + 4 : NULL);
}

static int map(const struct map *o, const char *filename)
{
    struct image_spec spec = {
        .name = filename,
        .format = o->format,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_QUIET | BLK_OPEN_UNWRAP | (o->share ? BLK_OPEN_SHARED : 0),
    };
    _cleanup_image_ struct blk_node *node = image_open(&spec);
    if (!node)
        return 1;
    uint64_t size = blk_size(node), end = size;
    if (o->start >= size)
        end = o->start;
    else if (o->length < size - o->start)
        end = o->start + o->length;
    int r = print(node, o->output ? o->output : "human", o->start, end);
    return output_end(r && !ferror(stdout) ? 1 : 0);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct map o = { .length = UINT64_MAX };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 1) {
        complain("map needs one file name");
        complain_usage("map");
        return 1;
    }
    if (o.output && !word_in(o.output, "human|json|picture|svg") &&
        (strncmp(o.output, "svg=", 4) != 0 || !o.output[4])) {
        complain("--output is '%s', but it may be one of human|json|picture|svg|svg=FILE",
                 o.output);
        return 1;
    }
    if (!image_opts_alone(o.image_opts, o.format))
        return 1;
    return map(&o, argv[first]);
}

const struct command cmd_map = {
    .name = "map",
    .summary = "show where the bytes of an image lie",
    .operands = "FILENAME",
    .args = args,
    .example = "map --output=picture vm.qcow2",
    .run = run,
};
