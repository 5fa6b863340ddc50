/* img: the disk image tool. Picks the subcommand. */
#include "img.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/distance.h"

#include "output.h"
#include "tools/follow.h"

const struct command *const commands[] = {
    &cmd_amend,    &cmd_bench,   &cmd_bitmap, &cmd_chain,      &cmd_check,  &cmd_commit,
    &cmd_compare,  &cmd_convert, &cmd_create, &cmd_dd,         &cmd_info,   &cmd_map,
    &cmd_measure,  &cmd_mount,   &cmd_mounts, &cmd_partitions, &cmd_rebase, &cmd_resize,
    &cmd_snapshot, &cmd_umount,  NULL,
};

const struct command *command_find(const char *name)
{
    for (const struct command *const *cmd = commands; *cmd; cmd++) {
        if (strcmp((*cmd)->name, name) == 0)
            return *cmd;
    }
    return NULL;
}

static int unknown_command(const char *name)
{
    struct nearest best = nearest_begin(name);
    for (const struct command *const *cmd = commands; *cmd; cmd++)
        nearest_try(&best, (*cmd)->name);
    nearest_try(&best, "help");
    if (best.name)
        complain("there is no command '%s', did you mean '%s'?", name, best.name);
    else
        complain("there is no command '%s'", name);
    complain_usage(NULL);
    return 1;
}

static int help(int argc, char **argv)
{
    if (argc < 2) {
        help_overview();
        return 0;
    }
    const struct command *cmd = command_find(argv[1]);
    if (!cmd)
        return unknown_command(argv[1]);
    help_command(cmd);
    return 0;
}

static bool is_either(const char *word, const char *a, const char *b)
{
    return strcmp(word, a) == 0 || strcmp(word, b) == 0;
}

static int dispatch(int argc, char **argv)
{
    /* -T, --trace of qemu-img says what to log; there is nothing to log here. */
    while (argc > 1 &&
           (is_either(argv[1], "-T", "--trace") || strncmp(argv[1], "--trace=", 8) == 0)) {
        int n = argv[1][1] == '-' && argv[1][7] == '=' ? 1 : 2;
        argc -= n;
        argv += n;
    }
    if (argc < 2) {
        complain("which command?");
        complain_usage(NULL);
        return 1;
    }
    const char *word = argv[1];
    if (is_either(word, "-V", "--version")) {
        help_version();
        return 0;
    }
    if (is_either(word, "-h", "--help") || strcmp(word, "help") == 0)
        return help(argc - 1, argv + 1);
    if (strcmp(word, "__complete") == 0)
        return complete(argc - 2, argv + 2);
    const struct command *cmd = command_find(word);
    if (cmd)
        return cmd->run(cmd, argc - 1, argv + 1);
    if (word[0] != '-')
        return unknown_command(word);
    complain("there is no option '%s' before the command", word);
    complain_usage(NULL);
    return 1;
}

int main(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *called = slash ? slash + 1 : argc > 0 ? argv[0] : "img";
    if (strcmp(called, "qemu-img") == 0) {
        program = "qemu-img";
        as_qemu = true;
    }
    /* A reader that goes away or a file that may not grow is an error to report, not a reason to
     * die with half a file left behind. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    const char *bad = follow_take(&argc, argv);
    if (bad) {
        complain("--follow=%s: it is none, local or any", bad);
        return 1;
    }
    return output_end(dispatch(argc, argv));
}
