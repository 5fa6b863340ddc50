/* Backends on something that is opened once: nothing, files, named pipes, serial lines. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "internal.h"

static int open_path(struct chardev *c, const char *path, int flags, int *fd, struct error **err)
{
    *fd = open(path, flags | O_CLOEXEC | O_NOCTTY, 0666);
    return *fd >= 0 ? 0
                    : error_set(err, errno, "chardev '%s': cannot open '%s': %s", c->id, path,
                                strerror(errno));
}

static int need_path(struct chardev *c, struct error **err)
{
    return c->o.path ? 0 : error_set(err, EINVAL, "chardev '%s': path= is missing", c->id);
}

static const struct opt_def none_options[] = { CHARDEV_COMMON, OPT_END };

static const struct opt_def file_options[] = {
    { .name = "path", .type = OPT_STRING, CHARDEV_AT(path), .help = "the file" },
    { .name = "input-path", .type = OPT_STRING, CHARDEV_AT(input_path), .help = "what is read" },
    { .name = "append", .type = OPT_BOOL, CHARDEV_AT(append), .help = "keep what is there" },
    CHARDEV_COMMON,
    OPT_END
};

static const struct opt_def path_options[] = {
    { .name = "path", .type = OPT_STRING, CHARDEV_AT(path), .help = "its name" },
    CHARDEV_COMMON,
    OPT_END
};

static int open_null(struct chardev *c, struct error **err)
{
    (void)c;
    (void)err;
    return 0;
}

static int open_file(struct chardev *c, struct error **err)
{
    int ret = need_path(c, err);

    if (ret == 0)
        ret = open_path(c, c->o.path, O_WRONLY | O_CREAT | (c->o.append ? O_APPEND : O_TRUNC),
                        &c->out, err);
    if (ret == 0 && c->o.input_path)
        ret = open_path(c, c->o.input_path, O_RDONLY, &c->in, err);
    return ret;
}

/* PATH.in and PATH.out, or one for both. Opened both ways, so that it waits for nobody and never ends. */
static int open_pipe(struct chardev *c, struct error **err)
{
    _cleanup_free_ char *in = NULL, *out = NULL;
    int ret = need_path(c, err);

    if (ret < 0)
        return ret;
    if (asprintf(&in, "%s.in", c->o.path) < 0 || asprintf(&out, "%s.out", c->o.path) < 0)
        return error_set(err, ENOMEM, "out of memory");
    if (access(in, F_OK) == 0 && access(out, F_OK) == 0) {
        ret = open_path(c, in, O_RDWR | O_NONBLOCK, &c->in, err);
        return ret < 0 ? ret : open_path(c, out, O_RDWR | O_NONBLOCK, &c->out, err);
    }
    ret = open_path(c, c->o.path, O_RDWR | O_NONBLOCK, &c->in, err);
    c->out = c->in;
    return ret;
}

static int open_serial(struct chardev *c, struct error **err)
{
    struct termios t;
    int ret = need_path(c, err);

    if (ret == 0)
        ret = open_path(c, c->o.path, O_RDWR | O_NONBLOCK, &c->in, err);
    if (ret < 0)
        return ret;
    c->out = c->in;
    if (tcgetattr(c->in, &t) < 0)
        return error_set(err, errno, "chardev '%s': '%s' is no serial line", c->id, c->o.path);
    cfmakeraw(&t);
    t.c_cflag |= CLOCAL;
    (void)tcsetattr(c->in, TCSANOW, &t); /* a line that cannot do it is used as it is */
    return 0;
}

const struct chardev_kind chardev_null = {
    .name = "null",
    .help = "takes everything, says nothing",
    .options = none_options,
    .open = open_null,
};

const struct chardev_kind chardev_file = {
    .name = "file",
    .help = "what the guest writes goes to a file",
    .options = file_options,
    .open = open_file,
};

const struct chardev_kind chardev_pipe = {
    .name = "pipe",
    .help = "named pipes, PATH.in and PATH.out",
    .options = path_options,
    .open = open_pipe,
};

const struct chardev_kind chardev_serial = {
    .name = "serial",
    .help = "a serial line of the host",
    .options = path_options,
    .open = open_serial,
};
