/* io: requests to a disk image, one by one, as a script or a person says. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aio.h"
#include "args.h"
#include "base/cleanup.h"
#include "image.h"
#include "io.h"
#include "prompt.h"
#include "tools/follow.h"

static bool run_commands(struct io *io, const struct args *args)
{
    bool ok = true;
    for (size_t i = 0; i < args->commands.len && !io->ended; i++) {
        _cleanup_free_ char *line = strdup(args->commands.at[i]);
        ok = line && command_run(io, line) && ok;
    }
    return ok;
}

static bool run(struct args *args)
{
    struct io io = { .misalign = args->misalign, .image_opts = args->spec.image_opts };
    if (args->spec.name) {
        io.image = image_open(&args->spec);
        if (!io.image)
            return false;
    }
    bool ok = args->commands.len ? run_commands(&io, args) : prompt_run(&io);
    aio_destroy(io.aio);
    held_free(&io);
    return image_close(io.image) && ok;
}

int main(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    if (argc > 0 && strcmp(slash ? slash + 1 : argv[0], "qemu-io") == 0) {
        program = "qemu-io";
        as_qemu = true;
    }
    /* A file that may not grow is an error to report. */
    signal(SIGXFSZ, SIG_IGN);
    const char *bad = follow_take(&argc, argv);
    if (bad) {
        complain("--follow=%s: it is none, local or any", bad);
        return 1;
    }
    struct args args = { .spec.name = NULL };
    int code;
    if (args_parse(argc, argv, &args, &code))
        code = run(&args) ? 0 : 1;
    vector_free(&args.commands);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        complain("could not write to standard output");
        code = 1;
    }
    return code;
}
