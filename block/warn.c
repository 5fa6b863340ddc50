/* Warnings: what the user should know although the operation goes on. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/tame.h"
#include "node.h"

static pthread_mutex_t warn_lock = PTHREAD_MUTEX_INITIALIZER;
static blk_warning_fn *warn_fn; /* both under warn_lock */
static void *warn_opaque;

void blk_on_warning(blk_warning_fn *fn, void *opaque)
{
    LOCK_SCOPE(&warn_lock);
    warn_fn = fn;
    warn_opaque = opaque;
}

void node_warn(struct blk_node *n, const char *fmt, ...)
{
    _cleanup_free_ char *text = NULL;
    _cleanup_free_ char *whole = NULL;
    va_list args;

    va_start(args, fmt);
    int r = vasprintf(&text, fmt, args);
    va_end(args);
    if (r < 0) {
        text = NULL;
        return;
    }
    if (asprintf(&whole, "%s: %s", n->filename[0] ? n->filename : n->drv->name, text) < 0) {
        whole = NULL;
        return;
    }
    tame(whole, "\n\t");
    LOCK_SCOPE(&warn_lock);
    if (warn_fn)
        warn_fn(warn_opaque, whole);
    else
        fprintf(stderr, "warning: %s\n", whole);
}
