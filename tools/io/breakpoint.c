/* break, remove_break, resume, wait_break: requests held at named places.
 *
 * The places are those of a blkdebug node. The block layer has no calls for them yet; when it has,
 * they are made here and nowhere else.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "image.h"
#include "io.h"

static int unsupported(const char *what)
{
    printf("%s: %s\n", what, strerror(ENOTSUP));
    if (!as_qemu)
        complain("breakpoints need a blkdebug node, and nothing of this image is one");
    return -ENOTSUP;
}

static int do_break(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)io;
    (void)argc;
    (void)argv;
    return unsupported("Could not set breakpoint");
}

const struct command cmd_break = {
    .name = "break",
    .args = "event tag",
    .summary = "sets a breakpoint on event and tags the stopped request as tag",
    .min = 2,
    .max = 2,
    .needs = NEEDS_IMAGE,
    .run = do_break,
};

static int do_remove_break(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)io;
    (void)argc;
    char what[256];
    snprintf(what, sizeof(what), "Could not remove breakpoint %s", argv[1]);
    return unsupported(what);
}

const struct command cmd_remove_break = {
    .name = "remove_break",
    .args = "tag",
    .summary = "remove a breakpoint by tag",
    .min = 1,
    .max = 1,
    .needs = NEEDS_IMAGE,
    .run = do_remove_break,
};

static int do_resume(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)io;
    (void)argc;
    (void)argv;
    return unsupported("Could not resume request");
}

const struct command cmd_resume = {
    .name = "resume",
    .args = "tag",
    .summary = "resumes the request tagged as tag",
    .min = 1,
    .max = 1,
    .needs = NEEDS_IMAGE,
    .run = do_resume,
};

static int do_wait_break(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)io;
    (void)argc;
    (void)argv;
    return unsupported("Could not wait for breakpoint");
}

const struct command cmd_wait_break = {
    .name = "wait_break",
    .args = "tag",
    .summary = "waits for the suspension of a request",
    .min = 1,
    .max = 1,
    .needs = NEEDS_IMAGE,
    .run = do_wait_break,
};
