/* Mounting, the threads, the end. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#include "base/cleanup.h"
#include "base/error.h"
#include "base/strbuf.h"

enum { THREADS = 16 };

/* What libfuse says goes into the error: it knows why a mount failed, and has no other way to tell. */
static __thread char last_words[256];

static void listen_to_libfuse(enum fuse_log_level level, const char *fmt, va_list ap)
{
    if (level <= FUSE_LOG_ERR) {
        vsnprintf(last_words, sizeof(last_words), fmt, ap);
        last_words[strcspn(last_words, "\n")] = '\0';
    }
}

static int add_options(struct fuse_args *args, const struct fuse_export_config *c)
{
    _cleanup_strbuf_ struct strbuf s = STRBUF_INIT;
    char *list = NULL;

    strbuf_addf(&s, "fsname=%s", c->source);
    bool ok =
        fuse_opt_add_arg(args, "platter") == 0 &&
        fuse_opt_add_opt_escaped(&list, strbuf_text(&s)) == 0 &&
        fuse_opt_add_opt(&list, "subtype=platter,default_permissions,noatime,nosuid,nodev") == 0 &&
        fuse_opt_add_opt(&list, c->writable ? "rw" : "ro") == 0 &&
        (!c->allow_other || fuse_opt_add_opt(&list, "allow_other") == 0) &&
        fuse_opt_add_arg(args, "-o") == 0 && fuse_opt_add_arg(args, list) == 0;
    free(list);
    return ok ? 0 : -ENOMEM;
}

static int mount_it(struct fuse_export *x, const struct fuse_export_config *c, struct error **err)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);

    fuse_set_log_func(listen_to_libfuse);
    last_words[0] = '\0';
    int ret = add_options(&args, c);
    if (ret == 0) {
        x->session = fuse_session_new(&args, &fuse_ops, sizeof(fuse_ops), x);
        x->mounted = x->session && fuse_session_mount(x->session, c->mountpoint) == 0;
        ret = x->mounted ? 0 : -EIO;
    }
    fuse_opt_free_args(&args);
    if (ret == 0)
        return 0;
    return error_set(err, -ret, "%s: cannot mount%s%s", c->mountpoint, last_words[0] ? ": " : "",
                     last_words[0] ? last_words : "");
}

int fuse_export_new(struct fuse_export **out, const struct fuse_export_config *c,
                    struct error **err)
{
    struct stat st;

    if (stat(c->mountpoint, &st) < 0)
        return error_set(err, errno, "%s: cannot mount there: %s", c->mountpoint, strerror(errno));
    if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode))
        return error_set(err, ENOTDIR, "%s: cannot mount there: it is neither a folder nor a file",
                         c->mountpoint);
    struct fuse_export *x = calloc(1, sizeof(*x));
    if (!x)
        return error_set(err, ENOMEM, "out of memory");
    x->single = S_ISREG(st.st_mode);
    x->writable = c->writable;
    x->growable = c->growable && c->writable;
    x->direct_io = c->direct_io;
    x->writeback = c->writeback && c->writable && !c->direct_io;
    x->threads = c->threads ? c->threads : THREADS;
    x->uid = getuid();
    x->gid = getgid();
    x->node = c->node;
    clock_gettime(CLOCK_REALTIME, &x->born);
    pthread_mutex_init(&x->lock, NULL);
    pthread_mutex_init(&x->growing, NULL);
    int ret = names_make(x, c->table, x->single);
    if (ret < 0)
        error_set(err, -ret, "out of memory");
    else
        ret = mount_it(x, c, err);
    if (ret < 0) {
        x->node = NULL; /* still the caller's */
        fuse_export_free(x, NULL);
        return ret;
    }
    *out = x;
    return 0;
}

int fuse_export_run(struct fuse_export *x)
{
    return loop_run(x);
}

int fuse_export_free(struct fuse_export *x, struct error **err)
{
    if (!x)
        return 0;
    if (x->mounted)
        fuse_session_unmount(x->session);
    if (x->session)
        fuse_session_destroy(x->session);
    int r = blk_close(x->node, err);
    names_free(x);
    pthread_mutex_destroy(&x->lock);
    pthread_mutex_destroy(&x->growing);
    free(x);
    return r;
}
