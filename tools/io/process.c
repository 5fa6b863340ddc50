/* sleep, sigraise, abort, quit: what concerns the program itself. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio.h"
#include "io.h"
#include "number.h"

static int do_sleep(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)argc;
    char *end;
    errno = 0;
    long milliseconds = strtol(argv[1], &end, 0);
    if (errno || end == argv[1] || *end || milliseconds < 0) {
        printf("%s is not a valid number\n", argv[1]);
        return -EINVAL;
    }
    aio_sleep(io->aio, milliseconds);
    return 0;
}

const struct command cmd_sleep = {
    .name = "sleep",
    .summary = "waits for the given value in milliseconds",
    .min = 1,
    .max = 1,
    .run = do_sleep,
};

static int do_sigraise(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)io;
    (void)argc;
    int64_t number;
    if (!number_size(argv[1], &number))
        return -EINVAL;
    if (number > NSIG) {
        printf("signal argument '%s' is too large to be a valid signal\n", argv[1]);
        return -EINVAL;
    }
    /* What was said so far is not to be lost. */
    fflush(NULL);
    raise((int)number);
    return 0;
}

const struct command cmd_sigraise = {
    .name = "sigraise",
    .args = "signal",
    .summary = "raises a signal",
    .text = " Sends the signal with that number to the program itself.\n"
            "\n"
            " Example:\n"
            " 'sigraise 9' - ends it without any chance to tidy up\n"
            "\n",
    .min = 1,
    .max = 1,
    .run = do_sigraise,
};

static int do_abort(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)io;
    (void)argc;
    (void)argv;
    abort();
}

const struct command cmd_abort = {
    .name = "abort",
    .summary = "simulate a program crash using abort(3)",
    .run = do_abort,
};

static int do_quit(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)argc;
    (void)argv;
    io->ended = true;
    return 0;
}

const struct command cmd_quit = {
    .name = "quit",
    .alias = "q",
    .summary = "exit the program",
    .needs = ANY_COUNT,
    .run = do_quit,
};
