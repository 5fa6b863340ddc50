/* The table of commands, and how a line becomes a call. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "base/vector.h"
#include "image.h"
#include "io.h"

const struct command *const commands[] = {
    &cmd_abort,  &cmd_aio_flush, &cmd_aio_read, &cmd_aio_write, &cmd_alloc,    &cmd_break,
    &cmd_close,  &cmd_discard,   &cmd_flush,    &cmd_help,      &cmd_info,     &cmd_length,
    &cmd_map,    &cmd_open,      &cmd_quit,     &cmd_read,      &cmd_readv,    &cmd_remove_break,
    &cmd_reopen, &cmd_resume,    &cmd_sigraise, &cmd_sleep,     &cmd_truncate, &cmd_wait_break,
    &cmd_write,  &cmd_writev,    NULL,
};

const struct command *command_find(const char *name)
{
    for (const struct command *const *cmd = commands; *cmd; cmd++) {
        if (strcmp((*cmd)->name, name) == 0 || ((*cmd)->alias && strcmp((*cmd)->alias, name) == 0))
            return *cmd;
    }
    return NULL;
}

/* ---- help ---------------------------------------------------------------------------------------
 */

static void print_line(const struct command *cmd, const char *name)
{
    printf("%s ", name);
    if (cmd->args)
        printf("%s ", cmd->args);
    printf("-- %s\n", cmd->summary);
}

static void print_text(const struct command *cmd)
{
    if (!cmd->text)
        return;
    printf("\n%s", cmd->text);
    for (const struct flag *flag = cmd->flags; flag && flag->letter; flag++) {
        if (flag->help)
            printf(" -%c, -- %s\n", flag->letter, flag->help);
    }
    putchar('\n');
}

int command_usage(const struct command *cmd)
{
    print_line(cmd, cmd->name);
    return -EINVAL;
}

static int help(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)io;
    if (argc == 1) {
        for (const struct command *const *cmd = commands; *cmd; cmd++)
            print_line(*cmd, (*cmd)->name);
        puts("\nUse 'help commandname' for extended help.");
        return 0;
    }
    const struct command *cmd = command_find(argv[1]);
    if (!cmd) {
        printf("command %s not found\n", argv[1]);
        return -EINVAL;
    }
    print_line(cmd, argv[1]);
    print_text(cmd);
    return 0;
}

const struct command cmd_help = {
    .name = "help",
    .alias = "?",
    .args = "[command]",
    .summary = "help for one or all commands",
    .max = 1,
    .run = help,
};

/* ---- flags --------------------------------------------------------------------------------------
 */

bool flags_parse(const struct command *cmd, int argc, char **argv, struct given *given, int *first)
{
    char letters[2 * 26 * 2 + 1], *p = letters;
    for (const struct flag *flag = cmd->flags; flag->letter; flag++) {
        *p++ = flag->letter;
        if (flag->has_value)
            *p++ = ':';
    }
    *p = '\0';
    *given = (struct given){ .count = 0 };
    optind = 0; /* glibc: start afresh */
    for (int c; (c = getopt(argc, argv, letters)) != -1;) {
        if (c == '?') {
            command_usage(cmd);
            return false;
        }
        given->of[c] = optarg ? optarg : "";
        if (given->count < (int)ARRAY_SIZE(given->all)) {
            given->all[given->count].letter = (char)c;
            given->all[given->count++].value = given->of[c];
        }
    }
    *first = optind;
    return true;
}

/* ---- one line -----------------------------------------------------------------------------------
 */

/* Says what is wrong with the number of arguments, if anything. */
static bool count_fits(const struct command *cmd, const char *typed, int count)
{
    if (cmd->needs & ANY_COUNT || (count >= cmd->min && (cmd->max < 0 || count <= cmd->max)))
        return true;
    fprintf(stderr, "bad argument count %d to %s, expected ", count, typed);
    if (cmd->max < 0)
        fprintf(stderr, "at least %d arguments\n", cmd->min);
    else if (cmd->min == cmd->max)
        fprintf(stderr, "%d arguments\n", cmd->min);
    else
        fprintf(stderr, "between %d and %d arguments\n", cmd->min, cmd->max);
    return false;
}

static int run_words(struct io *io, int argc, char **argv)
{
    const struct command *cmd = command_find(argv[0]);
    if (!cmd) {
        fprintf(stderr, "command \"%s\" not found\n", argv[0]);
        return -EINVAL;
    }
    if ((cmd->needs & NEEDS_IMAGE) && !io->image) {
        fprintf(stderr, "no file open, try 'help open'\n");
        return -EINVAL;
    }
    if (!count_fits(cmd, argv[0], argc - 1))
        return -EINVAL;
    if ((cmd->needs & NEEDS_WRITE) && blk_read_only(io->image->top)) {
        complain("Block node is read-only");
        return -EACCES;
    }
    return cmd->run(cmd, io, argc, argv);
}

bool command_run(struct io *io, char *line)
{
    VECTOR(char *) words = VECTOR_INIT;
    char *save = NULL;
    int r = 0;
    for (char *word = strtok_r(line, " ", &save); word && r == 0; word = strtok_r(NULL, " ", &save))
        r = vector_push(&words, word);
    if (r == 0)
        r = vector_push(&words, NULL);
    if (r < 0)
        complain("out of memory");
    else if (words.len > 1)
        r = run_words(io, (int)words.len - 1, words.at);
    vector_free(&words);
    return r >= 0;
}
