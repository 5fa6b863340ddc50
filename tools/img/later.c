/* Commands of qemu-img that are still to come. They say so and do nothing. */
#include "img.h"

#include "args.h"

static const struct arg_def no_args[] = { ARGS_END };

static int run(const struct command *self, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    complain("%s is not there yet: nothing was changed", self->name);
    return 1;
}

#define LATER(id, text)                     \
    const struct command cmd_##id = {       \
        .name = #id,                        \
        .summary = text " (not there yet)", \
        .operands = "...",                  \
        .args = no_args,                    \
        .run = run,                         \
    }

LATER(bitmap, "keep track of changed blocks in an image");
