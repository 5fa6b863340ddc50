/* What the parts of io share: the image that is open, the commands, and how the program speaks.
 *
 * io takes the commands of qemu-io 7.2 and prints what that prints, on the same stream: the answer
 * of a command, its usage and its complaints about numbers go to standard output, what keeps a
 * command from starting goes to standard error. Tests and scripts compare these texts, so a
 * word that changes here changes for them.
 *
 * One thread runs the commands. aio_* hand requests to a pool (aio.c); what they have to say is
 * printed by the main thread, when it looks (aio_reap, aio_wait).
 */
#ifndef IO_IO_H
#define IO_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/block.h"

#include "base/vector.h"

struct aio;
struct image;

struct io {
    struct image *image; /* NULL: no file open */
    struct aio *aio;     /* NULL until the first aio_* */
    bool misalign;       /* -m */
    bool image_opts;     /* names are descriptions, also for open */
    bool ended;          /* quit was said */
    VECTOR(char *) held; /* tags of requests that were told to be suspended */
};

/* ---- commands: command.c ------------------------------------------------------------------------
 */

/* The letters that a command takes. A table ends with a row whose letter is 0. */
struct flag {
    char letter;
    bool has_value;
    const char *help; /* NULL: not in the help */
};

/* What was given: the value, or "" for a letter without one; NULL when it was not given. Of a
 * letter that was given many times it is the last one; all holds them in order. */
struct given {
    const char *of[128];
    int count;
    struct {
        char letter;
        const char *value;
    } all[16];
};

enum command_needs {
    NEEDS_IMAGE = 1 << 0,
    NEEDS_WRITE = 1 << 1, /* an image that may be written */
    ANY_COUNT = 1 << 2,   /* arguments are not counted */
};

struct command {
    const char *name;
    const char *alias;   /* a shorter name, or NULL */
    const char *args;    /* "[-Cq] off len"; NULL: none */
    const char *summary; /* one line */
    const char *text;    /* more, for help NAME; NULL: none */
    const struct flag *flags;
    int min, max;   /* of arguments, flags included; max -1: no limit */
    unsigned needs; /* enum command_needs */
    /* argv[0] is the name as typed. 0, or a negative errno that was told already. */
    int (*run)(const struct command *self, struct io *io, int argc, char **argv);
};

/* All of them in the order of the alphabet; NULL ends it. */
extern const struct command *const commands[];

extern const struct command cmd_abort, cmd_aio_flush, cmd_aio_read, cmd_aio_write, cmd_alloc,
    cmd_break, cmd_close, cmd_discard, cmd_flush, cmd_help, cmd_info, cmd_length, cmd_map, cmd_open,
    cmd_quit, cmd_read, cmd_readv, cmd_remove_break, cmd_reopen, cmd_resume, cmd_sigraise,
    cmd_sleep, cmd_truncate, cmd_wait_break, cmd_write, cmd_writev;

const struct command *command_find(const char *name);

/* Runs one line, which is taken apart. False: the command failed. */
bool command_run(struct io *io, char *line);

/* "read [-v] off len -- reads ..." on standard output; -EINVAL. */
int command_usage(const struct command *cmd);

/* The flags in front; the operands begin at *first. False after a complaint. */
bool flags_parse(const struct command *cmd, int argc, char **argv, struct given *given, int *first);

/* ---- breakpoint.c ------------------------------------------------------------------------------- */

/* Forgets the tags. */
void held_free(struct io *io);

/* ---- say.c: messages ----------------------------------------------------------------------------
 */

/* "io", or "qemu-io" when called by that name. */
extern const char *program;
extern bool as_qemu;

/* "io: sentence" on stderr. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The same with the words of the error behind "fmt: " (fmt may be NULL); frees it and clears *err.
 */
void complain_error(struct error **err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
