/* img check: does an image agree with itself. */
#include "img.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json_text.h"

#include "args.h"
#include "image.h"
#include "output.h"
#include "watch.h"

enum {
    CHECK_OK = 0,
    CHECK_FAILED = 1,
    CHECK_CORRUPT = 2,
    CHECK_LEAKS = 3,
    CHECK_UNSUPPORTED = 63,
};

struct check {
    const char *format, *output, *repair, *cache, *progress;
    bool image_opts, share, quiet, percent;
};

static const struct arg_def args[] = {
    ARGS_FORMAT(struct check, format),
    ARGS_IMAGE_OPTS(struct check, image_opts),
    { .letter = 'r',
      .name = "repair",
      .kind = ARG_CHOICE,
      .at = offsetof(struct check, repair),
      .value = "WHAT",
      .hint = "leaks|all",
      .help = "mend it: leaks only gives lost space back, all mends everything" },
    { .letter = 'T',
      .name = "cache",
      .kind = ARG_TEXT,
      .at = offsetof(struct check, cache),
      .value = "CACHE",
      .hint = "@cache",
      .help = "cache mode of the image" },
    ARGS_OUTPUT(struct check, output),
    ARGS_PROGRESS(struct check, percent, progress),
    ARGS_QUIET(struct check, quiet),
    ARGS_SHARE(struct check, share),
    ARGS_OBJECT,
    ARGS_END,
};

static void message(void *opaque, const char *text)
{
    (void)opaque;
    tell("%s", text);
}

static int progress(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    watch_total(total);
    watch_done(done);
    return watch_stopped();
}

static void add_count(json_t *o, const char *key, uint64_t n)
{
    if (n)
        output_add(o, key, json_integer((json_int_t)n));
}

static void print_json(struct blk_node *node, const char *filename, const struct blk_check *c)
{
    json_t *o = json_object();
    add_count(o, "image-end-offset", c->image_end_offset);
    add_count(o, "compressed-clusters", c->compressed_clusters);
    add_count(o, "total-clusters", c->total_clusters);
    add_count(o, "corruptions", c->corruptions);
    add_count(o, "corruptions-fixed", c->corruptions_fixed);
    output_add(o, "check-errors", json_integer((json_int_t)c->check_errors));
    add_count(o, "leaks", c->leaks);
    add_count(o, "leaks-fixed", c->leaks_fixed);
    add_count(o, "allocated-clusters", c->allocated_clusters);
    output_add(o, "filename", json_text(filename));
    output_add(o, "format", json_text(blk_format(node)));
    add_count(o, "fragmented-clusters", c->fragmented_clusters);
    output_json(o);
    json_decref(o);
}

static void print_human(const struct blk_check *c)
{
    if (!c->corruptions && !c->leaks && !c->check_errors) {
        puts("No errors were found on the image.");
    } else {
        if (c->corruptions) {
            printf("\n%" PRIu64 " errors were found on the image.\n", c->corruptions);
            puts("Data may be corrupted, or further writes to the image may corrupt it.");
        }
        if (c->leaks) {
            printf("\n%" PRIu64 " leaked clusters were found on the image.\n", c->leaks);
            puts("This means waste of disk space, but no harm to data.");
        }
        if (c->check_errors)
            printf("\n%" PRIu64 " internal errors have occurred during the check.\n",
                   c->check_errors);
    }
    if (c->total_clusters && c->allocated_clusters) {
        double allocated = (double)c->allocated_clusters;
        printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, "
               "%0.2f%% compressed clusters\n",
               c->allocated_clusters, c->total_clusters,
               allocated * 100 / (double)c->total_clusters,
               (double)c->fragmented_clusters * 100 / allocated,
               (double)c->compressed_clusters * 100 / allocated);
    }
    if (c->image_end_offset)
        printf("Image end offset: %" PRIu64 "\n", c->image_end_offset);
}

/* Some mending shows its result only to a second look. */
static int check_again(struct blk_node *node, bool json, const struct check *o, struct blk_check *c)
{
    uint64_t corruptions_fixed = c->corruptions_fixed, leaks_fixed = c->leaks_fixed;
    if (!corruptions_fixed && !leaks_fixed)
        return 0;
    if (!json && !o->quiet) {
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" PRIu64 " leaked clusters\n"
               "    %" PRIu64 " corruptions\n\n"
               "Double checking the fixed image now...\n",
               leaks_fixed, corruptions_fixed);
    }
    struct blk_check_hooks hooks = { .message = message };
    struct error *err = NULL;
    *c = (struct blk_check){ 0 };
    int r = blk_check(node, 0, c, &hooks, &err);
    if (r < 0) {
        complain_error(&err, NULL);
        return r;
    }
    c->corruptions_fixed = corruptions_fixed;
    c->leaks_fixed = leaks_fixed;
    return 0;
}

static int result(const struct blk_check *c)
{
    /* A check that could not look everywhere is no verdict, whatever else it saw. */
    if (c->check_errors)
        return CHECK_FAILED;
    if (c->corruptions)
        return CHECK_CORRUPT;
    return c->leaks ? CHECK_LEAKS : CHECK_OK;
}

static int check(const struct check *o, const char *filename)
{
    unsigned fix = 0;
    if (o->repair)
        fix = BLK_FIX_LEAKS | (strcmp(o->repair, "all") == 0 ? BLK_FIX_ERRORS : 0);
    struct image_spec spec = {
        .name = filename,
        .format = o->format,
        .cache = o->cache,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_NO_BACKING | BLK_OPEN_QUIET | (o->share ? BLK_OPEN_SHARED : 0) |
                 BLK_OPEN_REPAIR | (fix ? BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_UNMAP : 0),
    };
    struct blk_node *node = image_open(&spec);
    if (!node)
        return CHECK_FAILED;
    struct blk_check_hooks hooks = { .message = message, .progress = progress };
    struct blk_check c = { 0 };
    struct error *err = NULL;
    bool json = o->output && strcmp(o->output, "json") == 0;
    int r = blk_check(node, fix, &c, &hooks, &err);
    if (r < 0)
        complain_error(&err, NULL);
    else
        r = check_again(node, json, o, &c);
    watch_hide();
    if (r == 0 && json)
        print_json(node, filename, &c);
    else if (r == 0 && !o->quiet)
        print_human(&c);
    if (r == 0 && c.check_errors)
        complain("'%s' could not be looked at everywhere", blk_filename(node));
    bool closed = image_close(node);
    if (r == -ENOTSUP)
        return CHECK_UNSUPPORTED;
    return r < 0 || !closed ? CHECK_FAILED : result(&c);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct check o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 1) {
        complain("check needs one file name");
        complain_usage("check");
        return CHECK_FAILED;
    }
    if (!image_opts_alone(o.image_opts, o.format) || !cache_valid(o.cache, "cache"))
        return CHECK_FAILED;
    struct watch_how how = { .percent = o.percent, .mode = o.progress, .quiet = o.quiet };
    watch_begin("check", &how);
    return output_end(watch_end(check(&o, argv[first])));
}

const struct command cmd_check = {
    .name = "check",
    .summary = "look for damage in an image, and mend it",
    .operands = "FILENAME",
    .args = args,
    .exit_codes = "  0  the image is sound (or everything was mended)\n"
                  "  1  the check could not be done\n"
                  "  2  the image is corrupt\n"
                  "  3  the image has leaked clusters, but is not corrupt\n"
                  "  63 the format has nothing to check\n",
    .example = "check -r leaks vm.qcow2",
    .run = run,
};
