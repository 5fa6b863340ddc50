/* break, remove_break, resume, wait_break: requests held at the named places of a blkdebug node.
 *
 * Scripts wait for the lines "blkdebug: Suspended request 'TAG'" and "blkdebug: Resuming request 'TAG'". The block
 * layer prints nothing, so they are printed here, when a command finds it so: one of each, in this order.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio.h"
#include "image.h"
#include "io.h"

/* How often it is asked whether a request is held yet. */
enum { STEP_MS = 1 };

static int failed(const char *what, int r)
{
    printf("%s: %s\n", what, strerror(-r));
    if (r == -ENOTSUP && !as_qemu)
        complain("breakpoints need a blkdebug node, and nothing of this image is one");
    return r;
}

/* ---- what was told -------------------------------------------------------------------------------- */

static size_t held_find(const struct io *io, const char *tag)
{
    size_t i = 0;
    while (i < io->held.len && strcmp(io->held.at[i], tag) != 0)
        i++;
    return i;
}

static void tell_suspended(struct io *io, const char *tag)
{
    if (held_find(io, tag) < io->held.len)
        return;
    printf("blkdebug: Suspended request '%s'\n", tag);
    char *copy = strdup(tag);
    if (copy && vector_push(&io->held, copy) < 0)
        free(copy);
}

static void tell_resumed(struct io *io, const char *tag)
{
    tell_suspended(io, tag);
    printf("blkdebug: Resuming request '%s'\n", tag);
    size_t i = held_find(io, tag);
    if (i < io->held.len) {
        free(io->held.at[i]);
        vector_remove(&io->held, i);
    }
}

void held_free(struct io *io)
{
    for (size_t i = 0; i < io->held.len; i++)
        free(io->held.at[i]);
    vector_free(&io->held);
}

/* ---- the commands --------------------------------------------------------------------------------- */

static bool is_suspended(struct io *io, const char *tag)
{
    return blk_debug(io->image->top, BLK_DEBUG_IS_SUSPENDED, NULL, tag) > 0;
}

static int do_break(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)argc;
    int r = blk_debug(io->image->top, BLK_DEBUG_BREAK, argv[1], argv[2]);
    return r < 0 ? failed("Could not set breakpoint", r) : 0;
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
    (void)argc;
    if (is_suspended(io, argv[1]))
        tell_resumed(io, argv[1]);
    int r = blk_debug(io->image->top, BLK_DEBUG_REMOVE_BREAK, NULL, argv[1]);
    if (r >= 0)
        return 0;
    char what[256];
    snprintf(what, sizeof(what), "Could not remove breakpoint %s", argv[1]);
    return failed(what, r);
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
    (void)argc;
    if (is_suspended(io, argv[1]))
        tell_resumed(io, argv[1]);
    int r = blk_debug(io->image->top, BLK_DEBUG_RESUME, NULL, argv[1]);
    return r < 0 ? failed("Could not resume request", r) : 0;
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
    (void)argc;
    for (;;) {
        int r = blk_debug(io->image->top, BLK_DEBUG_IS_SUSPENDED, NULL, argv[1]);
        if (r < 0)
            return failed("Could not wait for breakpoint", r);
        if (r > 0) {
            tell_suspended(io, argv[1]);
            return 0;
        }
        aio_sleep(io->aio, STEP_MS);
    }
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
