/* img info: what an image is. */
#include "img.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/human.h"
#include "base/json_text.h"
#include "partitions/partitions.h"

#include "args.h"
#include "image.h"
#include "output.h"
#include "picture.h"
#include "snapshots.h"

struct info {
    const char *format, *output;
    bool chain, image_opts, share;
};

static const struct arg_def args[] = {
    ARGS_FORMAT(struct info, format),
    ARGS_IMAGE_OPTS(struct info, image_opts),
    { .name = "backing-chain",
      .kind = ARG_FLAG,
      .at = offsetof(struct info, chain),
      .help = "also what the image rests on, down to the last backing file" },
    ARGS_OUTPUT(struct info, output),
    ARGS_SHARE(struct info, share),
    ARGS_OBJECT,
    ARGS_END,
};

static json_t *info_json(const struct blk_info *info)
{
    json_t *o = json_object();
    if (info->backing_format)
        output_add(o, "backing-filename-format", json_text(info->backing_format));
    if (info->snapshots)
        output_add(o, "snapshots", json_loads(info->snapshots, 0, NULL));
    output_add(o, "virtual-size", json_integer((json_int_t)info->virtual_size));
    output_add(o, "filename", json_text(info->filename));
    if (info->cluster_size)
        output_add(o, "cluster-size", json_integer(info->cluster_size));
    output_add(o, "format", json_text(info->format));
    if (info->actual_size_known)
        output_add(o, "actual-size", json_integer((json_int_t)info->actual_size));
    if (info->wrapped)
        output_add(o, "wrapped", json_text(info->wrapped));
    if (info->specific)
        output_add(o, "format-specific", json_loads(info->specific, 0, NULL));
    if (info->full_backing_filename)
        output_add(o, "full-backing-filename", json_text(info->full_backing_filename));
    if (info->backing_filename)
        output_add(o, "backing-filename", json_text(info->backing_filename));
    if (info->encrypted)
        output_add(o, "encrypted", json_true());
    if (info->compressed)
        output_add(o, "compressed", json_true());
    output_add(o, "dirty-flag", json_boolean(info->dirty));
    return o;
}

static void print_human(const struct blk_info *info)
{
    printf("image: %s\n", info->filename);
    printf("file format: %s\n", info->format);
    if (info->wrapped)
        printf("compressed as a whole: %s\n", info->wrapped);
    printf("virtual size: %s\n", human_size_exact(info->virtual_size).s);
    if (info->actual_size_known)
        printf("disk size: %s\n", human_size(info->actual_size).s);
    else
        puts("disk size: unavailable");
    if (info->encrypted)
        puts("encrypted: yes");
    if (info->cluster_size)
        printf("cluster_size: %" PRIu32 "\n", info->cluster_size);
    if (info->dirty)
        puts("cleanly shut down: no");
    if (info->backing_filename) {
        _cleanup_free_ char *name = output_tamed(info->backing_filename);
        _cleanup_free_ char *full = output_tamed(info->full_backing_filename);
        _cleanup_free_ char *format = output_tamed(info->backing_format);
        printf("backing file: %s", name ? name : "");
        if (!info->full_backing_filename)
            fputs(" (cannot determine actual path)", stdout);
        else if (strcmp(info->backing_filename, info->full_backing_filename) != 0)
            printf(" (actual path: %s)", full ? full : "");
        putchar('\n');
        if (info->backing_format)
            printf("backing file format: %s\n", format ? format : "");
    }
    if (info->snapshots) {
        _cleanup_json_ json_t *list = json_loads(info->snapshots, 0, NULL);
        snapshots_print(list);
    }
    if (info->specific) {
        _cleanup_json_ json_t *specific = json_loads(info->specific, 0, NULL);
        json_t *data = json_object_get(specific, "data");
        if (json_object_size(data) > 0) {
            puts("Format specific information:");
            output_tree(data, 1);
        }
    }
}

/* One step of the chain. The name and the format of the next one go to *name and *format, and who states
 * them to *stated_by, which is NULL for the first. */
static bool show(const struct info *o, char **name, char **format, char **stated_by, json_t *list)
{
    bool first = !*stated_by;
    bool bar = !o->output && isatty(STDOUT_FILENO);
    struct image_spec spec = {
        .name = *name,
        .format = *format,
        .image_opts = o->image_opts && first,
        .flags = BLK_OPEN_NO_BACKING | BLK_OPEN_QUIET | (first ? BLK_OPEN_UNWRAP : 0) |
                 (bar ? 0 : BLK_OPEN_NO_IO) | (o->share ? BLK_OPEN_SHARED : 0),
        .stated_by = *stated_by,
    };
    _cleanup_image_ struct blk_node *node = image_open(&spec);
    if (!node)
        return false;
    struct blk_info info = { 0 };
    struct error *err = NULL;
    if (blk_info(node, &info, &err) < 0) {
        complain_error(&err, NULL);
        return false;
    }
    if (list) {
        json_array_append_new(list, info_json(&info));
    } else {
        if (!first)
            putchar('\n');
        print_human(&info);
        if (bar)
            picture_bar(node);
    }
    free(*name);
    free(*format);
    free(*stated_by);
    *stated_by = strdup(info.filename);
    *name = info.full_backing_filename ? strdup(info.full_backing_filename) : NULL;
    *format = info.backing_format ? strdup(info.backing_format) : NULL;
    bool lost = info.backing_filename && !info.full_backing_filename && o->chain;
    if (lost)
        complain("cannot tell where '%s' has its backing file '%s'", info.filename,
                 info.backing_filename);
    blk_info_free(&info);
    return !lost;
}

/* What the disk is divided into, in a line; the disk as a guest sees it, with its backing files. */
static void print_partitions(const struct info *o, const char *name)
{
    struct blk_open_args open = {
        .format = o->format,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_QUIET | (o->share ? BLK_OPEN_SHARED : 0),
    };
    _cleanup_image_ struct blk_node *node = NULL;
    struct partition_table table;

    if (blk_open(name, &open, &node, NULL) < 0 || partitions_read(node, &table, NULL) < 0)
        return;
    if (table.count > 0)
        printf("partitions: %zu (%s)\n", table.count, partition_scheme_name(table.scheme));
    partitions_free(&table);
}

static bool seen_before(json_t *seen, const char *name)
{
    _cleanup_free_ char *real = realpath(name, NULL);
    const char *key = real ? real : name;
    if (json_object_get(seen, key))
        return true;
    json_object_set_new_nocheck(seen, key, json_true());
    return false;
}

static int info(const struct info *o, const char *filename)
{
    bool json = o->output && strcmp(o->output, "json") == 0;
    _cleanup_json_ json_t *list = json ? json_array() : NULL;
    _cleanup_json_ json_t *seen = json_object();
    _cleanup_free_ char *name = strdup(filename);
    _cleanup_free_ char *format = o->format ? strdup(o->format) : NULL;
    _cleanup_free_ char *stated_by = NULL;
    bool first = true, ok = true;
    while (ok && name && (first || o->chain)) {
        if (seen_before(seen, name)) {
            complain("backing file '%s' stands twice in the chain: the images rest on themselves",
                     name);
            ok = false;
            break;
        }
        ok = show(o, &name, &format, &stated_by, list);
        if (ok && first && !list && !as_qemu)
            print_partitions(o, filename);
        first = false;
    }
    if (!ok)
        return 1;
    if (json)
        output_json(o->chain ? list : json_array_get(list, 0));
    return output_end(0);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct info o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 1) {
        complain("info needs one file name");
        complain_usage("info");
        return 1;
    }
    if (!image_opts_alone(o.image_opts, o.format))
        return 1;
    return info(&o, argv[first]);
}

const struct command cmd_info = {
    .name = "info",
    .summary = "say what an image is",
    .operands = "FILENAME",
    .args = args,
    .example = "info --backing-chain vm.qcow2",
    .run = run,
};
