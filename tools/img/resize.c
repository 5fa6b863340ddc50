/* img resize: make an image larger or smaller. */
#include "img.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/human.h"

#include "args.h"
#include "image.h"
#include "output.h"

struct resize {
    const char *format, *preallocation;
    bool image_opts, shrink, quiet;
};

static const struct arg_def args[] = {
    ARGS_FORMAT(struct resize, format),
    ARGS_IMAGE_OPTS(struct resize, image_opts),
    { .name = "preallocation",
      .kind = ARG_CHOICE,
      .at = offsetof(struct resize, preallocation),
      .value = "MODE",
      .hint = "off|metadata|falloc|full",
      .help = "reserve the space of the new part now (off)" },
    { .name = "shrink",
      .kind = ARG_FLAG,
      .at = offsetof(struct resize, shrink),
      .help = "yes, what lies beyond the new end shall be lost" },
    ARGS_QUIET(struct resize, quiet),
    ARGS_OBJECT,
    ARGS_END,
};

static enum blk_prealloc prealloc_of(const char *mode)
{
    static const char *const modes[] = { "off", "metadata", "falloc", "full" };
    for (unsigned i = 0; mode && i < 4; i++) {
        if (strcmp(mode, modes[i]) == 0)
            return (enum blk_prealloc)i;
    }
    return BLK_PREALLOC_OFF;
}

/* "20G", "+5G", "-5G" on top of the present size. */
static bool new_size(const char *text, uint64_t present, uint64_t *out)
{
    bool plus = text[0] == '+', minus = text[0] == '-';
    uint64_t n;
    if (!parse_size(text + (plus || minus), "size", &n))
        return false;
    if (plus && n > INT64_MAX - present) {
        complain("the new size '%s' is beyond what an image can have", text);
        return false;
    }
    if (minus && n >= present) {
        complain("the image has %" PRIu64 " bytes, so '%s' leaves nothing of it", present, text);
        return false;
    }
    *out = plus ? present + n : minus ? present - n : n;
    if (*out == 0) {
        complain("the new size must not be 0");
        return false;
    }
    return true;
}

static int resize_node(const struct resize *o, struct blk_node *node, const char *filename,
                       const char *text)
{
    uint64_t present = blk_size(node), size;
    if (!new_size(text, present, &size))
        return 1;
    enum blk_prealloc prealloc = prealloc_of(o->preallocation);
    if (size <= present && prealloc != BLK_PREALLOC_OFF) {
        complain("--preallocation=%s is for growing, but the image has %" PRIu64 " bytes already",
                 o->preallocation, present);
        return 1;
    }
    if (size < present && !o->shrink) {
        complain("'%s' would shrink from %s to %s: all data beyond would be lost. Make sure that "
                 "the guest "
                 "does not use it, then say --shrink",
                 filename, human_size(present).s, human_size(size).s);
        return 1;
    }
    struct error *err = NULL;
    if (blk_resize(node, size, prealloc, &err) < 0) {
        complain_error(&err, NULL);
        return 1;
    }
    return 0;
}

static int resize(const struct resize *o, const char *filename, const char *text)
{
    struct image_spec spec = {
        .name = filename,
        .format = o->format,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_UNMAP | (o->quiet ? BLK_OPEN_QUIET : 0),
    };
    struct blk_node *node = image_open(&spec);
    if (!node)
        return 1;
    int code = resize_node(o, node, filename, text);
    if (!image_close(node))
        code = 1;
    if (code == 0 && !o->quiet)
        puts("Image resized.");
    return output_end(code);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct resize o = { 0 };
    int first, code;
    /* The size comes last and may begin with a '-', so it is taken off before options are looked
     * at. */
    const char *size = argc >= 3 ? argv[argc - 1] : NULL;
    if (size && size[0] == '-' && (size[1] < '0' || size[1] > '9'))
        size = NULL;
    if (!args_parse(self, argc - (size ? 1 : 0), argv, &o, &first, &code))
        return code;
    int operands = argc - (size ? 1 : 0) - first;
    if (!size || operands != 1) {
        complain("resize needs a file name and a size");
        complain_usage("resize");
        return 1;
    }
    if (!image_opts_alone(o.image_opts, o.format))
        return 1;
    return resize(&o, argv[first], size);
}

const struct command cmd_resize = {
    .name = "resize",
    .summary = "make an image larger or smaller",
    .operands = "FILENAME [+|-]SIZE",
    .args = args,
    .example = "resize vm.qcow2 +10G",
    .run = run,
};
