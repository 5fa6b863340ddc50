/* What the subcommands of img share: the command record, and how the program speaks to its user.
 *
 * The program is a client of block/block.h. Each subcommand is one file that ends with its record;
 * main.c holds the table. Messages to people go through say.c, so that they do not collide with a
 * progress bar and carry the name the program was called by.
 */
#ifndef IMG_IMG_H
#define IMG_IMG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/block.h"

struct arg_def;

struct command {
    const char *name;
    const char *summary;        /* one line */
    const char *operands;       /* "FILENAME [SIZE]" */
    const struct arg_def *args; /* see args.h */
    const char *exit_codes;     /* for the help: lines of "  N  meaning\n"; NULL: 0 and 1 */
    const char *example;        /* one command line, without the program's name */
    int (*run)(const struct command *self, int argc, char **argv); /* the exit code */
};

extern const struct command cmd_amend, cmd_bench, cmd_bitmap, cmd_chain, cmd_check, cmd_commit,
    cmd_compare, cmd_convert, cmd_create, cmd_dd, cmd_info, cmd_map, cmd_measure, cmd_mount,
    cmd_mounts, cmd_partitions, cmd_rebase, cmd_resize, cmd_snapshot, cmd_umount;

/* All of them in the order of the alphabet; NULL ends it. */
extern const struct command *const commands[];

const struct command *command_find(const char *name);

/* ---- say.c: messages ----------------------------------------------------------------------- */

/* "img", or "qemu-img" when called by that name. */
extern const char *program;
extern bool as_qemu;

/* "img: sentence" on stderr. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The same with the words of the error behind "fmt: " (fmt may be NULL); frees it and clears *err.
 */
void complain_error(struct error **err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Where to read more: "Try 'img help convert' for more information". */
void complain_usage(const char *command);

/* A line for people on stderr, without the program's name. */
void tell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- help.c -------------------------------------------------------------------------------- */

void help_overview(void);
void help_command(const struct command *cmd);
void help_version(void);
/* `-o help`: the options of making an image of that format, or a complaint and 1. */
int help_create_options(const char *format);
/* The same for the options of changing one. */
int help_amend_options(const char *format);

/* Candidates for the word that is being typed, one per line; for the shell's completion. */
int complete(int argc, char **argv);

#endif
