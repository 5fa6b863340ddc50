/* img mount: an image as files, without root. */
#include "img.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "exports/fuse_export.h"
#include "tools/daemon.h"
#include "tools/describe.h"
#include "tools/overlay.h"

#include "args.h"
#include "image.h"

struct mount {
    const char *format, *cache, *snapshot, *overlay;
    bool image_opts, share, writable, growable, direct_io, writeback, allow_other, foreground;
    uint64_t threads;
};

static const struct arg_def args[] = {
    ARGS_FORMAT(struct mount, format),
    ARGS_IMAGE_OPTS(struct mount, image_opts),
    { .letter = 't',
      .name = "cache",
      .kind = ARG_TEXT,
      .at = offsetof(struct mount, cache),
      .value = "CACHE",
      .hint = "@cache",
      .help = "cache mode of the image" },
    { .letter = 'w',
      .name = "writable",
      .kind = ARG_FLAG,
      .at = offsetof(struct mount, writable),
      .help = "the files may be written to" },
    { .name = "overlay",
      .kind = ARG_OPTIONAL,
      .at = offsetof(struct mount, overlay),
      .value = "FILE",
      .hint = "@file",
      .help = "writes go to a qcow2 image on top; without FILE they are lost in the end" },
    { .name = "growable",
      .kind = ARG_FLAG,
      .at = offsetof(struct mount, growable),
      .help = "with -w: writing behind the end makes the disk longer" },
    { .letter = 'l',
      .name = "snapshot",
      .kind = ARG_TEXT,
      .at = offsetof(struct mount, snapshot),
      .value = "SNAPSHOT",
      .help = "an internal snapshot, read-only: its id or name" },
    { .name = "direct-io",
      .kind = ARG_FLAG,
      .at = offsetof(struct mount, direct_io),
      .help = "requests go to the image as they are, past the page cache" },
    { .name = "writeback",
      .kind = ARG_FLAG,
      .at = offsetof(struct mount, writeback),
      .help = "the kernel collects writes: quicker, but errors show at fsync only" },
    { .name = "allow-other",
      .kind = ARG_FLAG,
      .at = offsetof(struct mount, allow_other),
      .help = "other users may look, too" },
    { .name = "foreground",
      .kind = ARG_FLAG,
      .at = offsetof(struct mount, foreground),
      .help = "stay, until it is unmounted" },
    { .name = "threads",
      .kind = ARG_NUMBER,
      .at = offsetof(struct mount, threads),
      .value = "NUM",
      .help = "requests at a time (16)",
      .what = "number of threads" },
    ARGS_SHARE(struct mount, share),
    ARGS_END,
};

/* Writes go to an image on top. */
static struct blk_node *open_overlay(const struct mount *o, const struct image_spec *spec)
{
    struct error *err = NULL;
    struct blk_node *node = NULL;
    _cleanup_free_ char *window = NULL;
    _cleanup_free_ char *image = image_partition(spec, &window, &err);
    _cleanup_json_ json_t *desc = NULL;

    if (!err)
        desc = describe_image(window ? window : spec->name, window || spec->image_opts, &err);
    if (desc && spec->format && !window)
        json_object_set_new(desc, "driver", json_string(spec->format));
    if (desc && o->overlay[0])
        overlay_open_file(o->overlay, spec->name, desc, spec->cache, spec->flags, &node, &err);
    else if (desc)
        overlay_open(desc, spec->cache, spec->flags, &node, &err);
    if (!node)
        complain_error(&err, NULL);
    return node;
}

static struct blk_node *open_image(const struct mount *o, const char *name)
{
    struct image_spec spec = {
        .name = name,
        .format = o->format,
        .cache = o->cache,
        .image_opts = o->image_opts,
        .flags = (o->writable ? BLK_OPEN_RDWR | BLK_OPEN_UNMAP : 0) |
                 (o->growable ? BLK_OPEN_RESIZE : 0) | (o->share ? BLK_OPEN_SHARED : 0),
        .snapshot = o->snapshot,
    };
    if (spec.format && !format_known(spec.format))
        return NULL;
    return o->overlay ? open_overlay(o, &spec) : image_open(&spec);
}

/* Lists of mounts show the whole name, so that it means something in any folder. */
static char *source_name(const char *name)
{
    char *real = realpath(name, NULL);
    return real ? real : strdup(name);
}

/* A table that cannot be read costs the partitions, not the disk. */
static void read_table(struct blk_node *node, struct partition_table *table)
{
    struct error *err = NULL;

    if (partitions_read(node, table, &err) < 0)
        complain_error(&err, "warning: only the whole disk is shown");
    for (const char *w = table->warnings; w && *w; w += strcspn(w, "\n") + 1)
        complain("warning: %.*s", (int)strcspn(w, "\n"), w);
}

/* Signals are for the thread that serves; those that the block layer starts must not take them. */
static void hold_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static int serve(const struct mount *o, struct fuse_export *x)
{
    struct error *err = NULL;
    bool ready = daemon_ready(NULL, !o->foreground, &err) == 0;

    if (!o->foreground && chdir("/") < 0) /* not to keep that folder's disk busy */
        complain("cannot leave the folder: %s", strerror(errno));
    int ret = ready ? fuse_export_run(x) : -EIO;
    if (ret < 0 && ready)
        complain("cannot serve the mount: %s", strerror(-ret));
    int closed = fuse_export_free(x, ready ? &err : NULL);
    if (err)
        complain_error(&err, "closing failed, the newest writes may be lost");
    return ret < 0 || closed < 0 ? 1 : 0;
}

static int mount_image(const struct mount *o, const char *name, const char *where)
{
    struct partition_table table = { 0 };
    struct fuse_export *x = NULL;
    struct error *err = NULL;

    if (!o->foreground && daemon_begin(&err) < 0) {
        complain_error(&err, NULL);
        return 1;
    }
    hold_signals();
    struct blk_node *node = open_image(o, name);
    if (!node)
        return 1;
    _cleanup_free_ char *source = source_name(name), *real = realpath(where, NULL);
    read_table(node, &table);
    struct fuse_export_config config = {
        .node = node,
        .mountpoint = real ? real : where,
        .source = source ? source : name,
        .table = &table,
        .writable = o->writable,
        .growable = o->growable,
        .direct_io = o->direct_io,
        .writeback = o->writeback,
        .allow_other = o->allow_other,
        .threads = (unsigned)o->threads,
    };
    int ret = fuse_export_new(&x, &config, &err);
    partitions_free(&table);
    if (ret == 0)
        return serve(o, x);
    complain_error(&err, NULL);
    blk_close(node, NULL);
    return 1;
}

static bool options_agree(struct mount *o)
{
    if (!image_opts_alone(o->image_opts, o->format) || !cache_valid(o->cache, "cache"))
        return false;
    if (o->overlay)
        o->writable = true;
    if (o->snapshot && o->writable)
        complain("a snapshot is read-only: -l goes with neither -w nor --overlay");
    else if (o->growable && !o->writable)
        complain("--growable needs -w");
    else if (o->threads > 256)
        complain("--threads: it is a number up to 256");
    else
        return true;
    return false;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct mount o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 2) {
        complain("mount needs an image and a folder or file");
        complain_usage("mount");
        return 1;
    }
    return options_agree(&o) ? mount_image(&o, argv[first], argv[first + 1]) : 1;
}

const struct command cmd_mount = {
    .name = "mount",
    .summary = "show an image and its partitions as files",
    .operands = "FILENAME DIRECTORY",
    .args = args,
    .example = "mount vm.qcow2 /tmp/vm",
    .run = run,
};
