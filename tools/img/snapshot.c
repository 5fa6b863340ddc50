/* img snapshot: keep, apply, list and remove states inside an image. */
#include "img.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"

#include "args.h"
#include "image.h"
#include "output.h"
#include "snapshots.h"

struct snapshot {
    const char *format, *output, *create, *apply, *remove;
    bool list, image_opts, share, quiet;
};

static const struct arg_def args[] = {
    { .letter = 'l',
      .kind = ARG_FLAG,
      .at = offsetof(struct snapshot, list),
      .help = "list the snapshots (what it does when nothing is asked)" },
    { .letter = 'c',
      .kind = ARG_TEXT,
      .at = offsetof(struct snapshot, create),
      .value = "NAME",
      .help = "keep the disk as it is now under this name" },
    { .letter = 'a',
      .kind = ARG_TEXT,
      .at = offsetof(struct snapshot, apply),
      .value = "SNAPSHOT",
      .help = "the disk becomes what it was then; what it is now is lost" },
    { .letter = 'd',
      .kind = ARG_TEXT,
      .at = offsetof(struct snapshot, remove),
      .value = "SNAPSHOT",
      .help = "remove the snapshot of this name (or else of this id)" },
    ARGS_FORMAT(struct snapshot, format),
    ARGS_IMAGE_OPTS(struct snapshot, image_opts),
    ARGS_OUTPUT(struct snapshot, output),
    ARGS_SHARE(struct snapshot, share),
    ARGS_QUIET(struct snapshot, quiet),
    ARGS_OBJECT,
    ARGS_END,
};

static int create(struct blk_node *node, const char *name, struct error **err)
{
    struct timespec now = { 0 };
    clock_gettime(CLOCK_REALTIME, &now);
    struct blk_snapshot what = {
        .name = name,
        .date_sec = (uint32_t)now.tv_sec,
        .date_nsec = (uint32_t)now.tv_nsec,
        .icount = UINT64_MAX,
    };
    return blk_snapshot_create(node, &what, err);
}

/* With the text as an id, or as a name, whichever comes first; then as the other, where there is none. */
static int id_or_name(struct blk_node *node, const char *text, bool id_first,
                      int (*fn)(struct blk_node *node, const char *id, const char *name,
                                struct error **err),
                      struct error **err)
{
    struct error *again = NULL;
    int ret = fn(node, id_first ? text : NULL, id_first ? NULL : text, err);
    if (ret != -ENOENT)
        return ret;
    ret = fn(node, id_first ? NULL : text, id_first ? text : NULL, &again);
    blk_error_free(*err);
    *err = again;
    return ret;
}

static bool list(struct blk_node *node, bool json)
{
    struct blk_info info = { 0 };
    struct error *err = NULL;
    if (blk_info(node, &info, &err) < 0) {
        complain_error(&err, NULL);
        return false;
    }
    _cleanup_json_ json_t *all =
        info.snapshots ? json_loads(info.snapshots, 0, NULL) : json_array();
    blk_info_free(&info);
    if (json)
        output_json(all);
    else
        snapshots_print(all);
    return true;
}

static bool change(const struct snapshot *o, struct blk_node *node)
{
    struct error *err = NULL;
    const char *what = o->create ? o->create : o->apply ? o->apply : o->remove;
    int ret = o->create  ? create(node, what, &err)
              : o->apply ? id_or_name(node, what, true, blk_snapshot_apply, &err)
                         : id_or_name(node, what, false, blk_snapshot_delete, &err);
    if (ret == 0)
        return true;
    complain_error(&err, "could not %s snapshot '%s'",
                   o->create  ? "create"
                   : o->apply ? "apply"
                              : "delete",
                   what);
    return false;
}

static int snapshot(const struct snapshot *o, const char *filename)
{
    bool changes = o->create || o->apply || o->remove;
    struct image_spec spec = {
        .name = filename,
        .format = o->format,
        .image_opts = o->image_opts,
        .flags = (changes ? BLK_OPEN_RDWR | BLK_OPEN_UNMAP : BLK_OPEN_NO_IO | BLK_OPEN_NO_BACKING) |
                 (o->share ? BLK_OPEN_SHARED : 0) | (o->quiet ? BLK_OPEN_QUIET : 0),
    };
    struct blk_node *node = image_open(&spec);
    if (!node)
        return 1;
    bool ok = changes ? change(o, node) : list(node, o->output && strcmp(o->output, "json") == 0);
    ok = image_close(node) && ok;
    return output_end(ok ? 0 : 1);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct snapshot o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (o.list + !!o.create + !!o.apply + !!o.remove > 1) {
        complain("-l, -a, -c and -d exclude each other");
        complain_usage("snapshot");
        return 1;
    }
    if (argc - first != 1) {
        complain("snapshot needs one file name");
        complain_usage("snapshot");
        return 1;
    }
    if (o.share && (o.create || o.apply || o.remove)) {
        complain("-U is for looking only: a snapshot is not made, applied or removed under another "
                 "writer");
        return 1;
    }
    if (!image_opts_alone(o.image_opts, o.format))
        return 1;
    return snapshot(&o, argv[first]);
}

const struct command cmd_snapshot = {
    .name = "snapshot",
    .summary = "keep, apply and remove states inside an image",
    .operands = "FILENAME",
    .args = args,
    .example = "snapshot -c before-upgrade vm.qcow2",
    .run = run,
};
