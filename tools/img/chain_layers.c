#include "chain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/macros.h"

#include "image.h"
#include "img.h"
#include "watch.h"

/* ---- opening ----------------------------------------------------------------------------------- */

static struct layer *add_layer(struct chain *c, const char *name)
{
    struct layer *more = realloc(c->layer, (c->n + 1) * sizeof(*more));
    if (!more)
        return NULL;
    c->layer = more;
    struct layer *l = &more[c->n];
    *l = (struct layer){ .name = strdup(name) };
    if (!l->name)
        return NULL;
    c->n++;
    return l;
}

static void set_fault(struct layer *l, struct error **err, const char *text)
{
    l->fault = strdup(text ? text : blk_error_text(*err));
    blk_error_free(*err);
    *err = NULL;
}

/* The same file stands higher up. */
static bool seen_above(const struct chain *c, const char *name)
{
    struct stat a, b;
    bool exists = stat(name, &a) == 0;
    for (size_t i = 0; i + 1 < c->n; i++) {
        const char *other = c->layer[i].node ? blk_filename(c->layer[i].node) : c->layer[i].name;
        if (exists ? stat(other, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino
                   : strcmp(other, name) == 0)
            return true;
    }
    return false;
}

static void open_layer(struct chain *c, struct layer *l, const struct chain_how *how)
{
    struct error *err = NULL;
    bool top = c->n == 1;
    struct blk_open_args args = {
        .format = top ? how->format : l->stated_format,
        .image_opts = top && how->image_opts,
        .flags = BLK_OPEN_NO_BACKING | BLK_OPEN_QUIET | (how->share ? BLK_OPEN_SHARED : 0) |
                 (how->repair ? BLK_OPEN_REPAIR : 0),
        .stated_by = top ? NULL : blk_filename(c->layer[c->n - 2].node),
    };
    if (!top && seen_above(c, l->name))
        set_fault(l, &err, "the chain is a loop: this image stands above itself");
    else if (c->n > CHAIN_MAX)
        set_fault(l, &err, "the chain is longer than 1024 images");
    else if (blk_open(l->name, &args, &l->node, &err) < 0 || blk_info(l->node, &l->info, &err) < 0)
        set_fault(l, &err, NULL);
}

bool chain_open(struct chain *c, const struct chain_how *how, const char *name)
{
    *c = (struct chain){ 0 };
    struct layer *l = add_layer(c, name);
    if (!l) {
        complain("out of memory");
        return false;
    }
    open_layer(c, l, how);
    if (l->fault) {
        complain("%s", l->fault);
        return false;
    }
    while (!l->fault && l->info.backing_filename && l->info.backing_filename[0]) {
        const struct blk_info above = l->info; /* the array may move; the strings stay */
        l = add_layer(c, above.full_backing_filename ? above.full_backing_filename
                                                     : above.backing_filename);
        if (!l) {
            complain("out of memory");
            return false;
        }
        l->stated = strdup(above.backing_filename);
        l->stated_format =
            above.backing_format && above.backing_format[0] ? strdup(above.backing_format) : NULL;
        open_layer(c, l, how);
    }
    return true;
}

void chain_close(struct chain *c)
{
    for (size_t i = 0; i < c->n; i++) {
        struct layer *l = &c->layer[i];
        image_drop(&l->node);
        blk_info_free(&l->info);
        free(l->name);
        free(l->stated);
        free(l->stated_format);
        free(l->fault);
    }
    free(c->layer);
    *c = (struct chain){ 0 };
}

/* ---- measuring --------------------------------------------------------------------------------- */

/* The run of a layer that the sweep stands in. */
struct cursor {
    uint64_t end;
    bool own, zero;
};

/* Moves the cursor to the run at `at`. */
static int advance(const struct layer *l, struct cursor *cur, uint64_t at, uint64_t end)
{
    uint64_t size = blk_size(l->node);
    struct blk_extent e;
    if (at >= size) {
        *cur = (struct cursor){ .end = end };
        return 0;
    }
    int r = blk_extents(l->node, at, size - at, BLK_LAYER, &e);
    if (r < 0) {
        complain("cannot tell what '%s' holds at offset %llu: %s", l->name, (unsigned long long)at,
                 strerror(-r));
        return r;
    }
    *cur = (struct cursor){
        .end = at + e.length,
        .own = e.flags & BLK_EXT_ALLOCATED,
        .zero = e.flags & BLK_EXT_ZERO,
    };
    return 0;
}

/* Adds [at, at + len) to what the layers hold. Below an upper layer that decides, and behind the end of one that is
 * shorter, nothing is seen. */
static void account(struct chain *c, const struct cursor *cur, uint64_t at, uint64_t len)
{
    bool hidden = false;
    for (size_t i = 0; i < c->n && c->layer[i].node; i++) {
        struct layer *l = &c->layer[i];
        bool behind = at >= blk_size(l->node);
        if (!behind && cur[i].own) {
            *(cur[i].zero ? &l->zero : &l->data) += len;
            if (hidden)
                *(cur[i].zero ? &l->hidden_zero : &l->hidden_data) += len;
        }
        hidden |= behind || cur[i].own;
    }
}

static uint64_t longest(const struct chain *c)
{
    uint64_t size = 0;
    for (size_t i = 0; i < c->n && c->layer[i].node; i++)
        size = MAX(size, blk_size(c->layer[i].node));
    return size;
}

int chain_measure(struct chain *c)
{
    _cleanup_free_ struct cursor *cur = calloc(c->n, sizeof(*cur));
    uint64_t end = longest(c);
    if (!cur) {
        complain("out of memory");
        return -ENOMEM;
    }
    watch_total(end);
    for (uint64_t at = 0; at < end;) {
        uint64_t next = end;
        for (size_t i = 0; i < c->n && c->layer[i].node; i++) {
            int r = cur[i].end <= at ? advance(&c->layer[i], &cur[i], at, end) : 0;
            if (r < 0)
                return r;
            next = MIN(next, cur[i].end);
        }
        account(c, cur, at, next - at);
        at = next;
        watch_done(at);
        if (watch_stopped())
            return -ECANCELED;
    }
    return 0;
}
