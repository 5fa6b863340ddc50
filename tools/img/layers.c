#include "layers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"

#include "img.h"
#include "watch.h"

static bool is_file(const char *name, const struct stat *wanted)
{
    struct stat st;
    return stat(name, &st) == 0 && st.st_dev == wanted->st_dev && st.st_ino == wanted->st_ino;
}

/* The name that `above` states for its backing file. */
static bool is_stated(struct blk_node *above, const char *name)
{
    struct blk_info info;
    if (blk_info(above, &info, NULL) < 0)
        return false;
    bool same = info.backing_filename && strcmp(info.backing_filename, name) == 0;
    blk_info_free(&info);
    return same;
}

unsigned layer_depth(struct blk_node *top, const char *name)
{
    struct stat wanted;
    bool exists = stat(name, &wanted) == 0;
    unsigned depth = 1;
    for (struct blk_node *above = top, *n; (n = blk_child(above, "backing")); above = n, depth++) {
        if (strcmp(blk_filename(n), name) == 0 || (exists && is_file(blk_filename(n), &wanted)) ||
            is_stated(above, name))
            return depth;
    }
    return 0;
}

int layer_copy_up(const struct layer_exchange *x)
{
    uint64_t before = 0;
    struct blk_copy_args copy = {
        .src = x->overlay,
        .dst = x->overlay,
        .rebase = true,
        .other = x->other,
        .length = blk_size(x->overlay),
        .compress = x->compress,
        .progress = watch_step,
        .opaque = &before,
    };
    struct error *err = NULL;
    watch_total(copy.length);
    int r = copy.length ? blk_copy(&copy, &err) : 0;
    if (r == -ECANCELED) {
        complain("stopped before the end: '%s' reads as before, on its old backing file",
                 blk_filename(x->overlay));
        blk_error_free(err);
        return r;
    }
    if (r < 0) {
        complain_error(&err, NULL);
        return r;
    }
    r = blk_flush(x->overlay);
    if (r < 0)
        complain("cannot write all of '%s' out: %s", blk_filename(x->overlay), strerror(-r));
    return r;
}

bool layer_rename(struct blk_node *overlay, const char *name, const char *format)
{
    struct error *err = NULL;
    if (blk_change_backing(overlay, name, format, &err) == 0)
        return true;
    complain_error(&err, NULL);
    return false;
}
