/* At a terminal the line is edited by libedit, which keeps a history and completes names of
 * commands. Else it is read as it comes. Either way requests that finish meanwhile are told at
 * once.
 */
#include "prompt.h"

#include <editline/readline.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aio.h"
#include "base/cleanup.h"
#include "base/strbuf.h"
#include "io.h"

static const char *prompt_text(void)
{
    return as_qemu ? "qemu-io> " : "io> ";
}

/* Waits for input. True: it was a finished request that came. */
static bool finished_first(struct io *io)
{
    struct pollfd p[2] = {
        { .fd = STDIN_FILENO, .events = POLLIN },
        { .fd = aio_fd(io->aio), .events = POLLIN },
    };
    while (poll(p, 2, -1) < 0 && errno == EINTR)
        ;
    return p[1].revents & POLLIN;
}

/* ---- from a pipe
 * ----------------------------------------------------------------------------------- */

struct input {
    char bytes[4096];
    size_t at, len;
    bool ended;
};

static bool refill(struct input *in, struct io *io)
{
    fflush(stdout);
    while (finished_first(io)) {
        aio_reap(io->aio);
        fflush(stdout);
    }
    ssize_t n = read(STDIN_FILENO, in->bytes, sizeof(in->bytes));
    in->at = 0;
    in->len = n > 0 ? (size_t)n : 0;
    in->ended = n <= 0;
    return !in->ended;
}

/* The next line without its end; NULL when there is none. */
static char *next_line(struct input *in, struct io *io)
{
    struct strbuf line = STRBUF_INIT;
    bool any = false;
    while (in->at < in->len || (!in->ended && refill(in, io))) {
        char c = in->bytes[in->at++];
        any = true;
        if (c == '\n')
            break;
        strbuf_addc(&line, c);
    }
    if (any)
        return strbuf_take(&line);
    strbuf_free(&line);
    return NULL;
}

static bool run_pipe(struct io *io)
{
    struct input in = { .len = 0 };
    bool ok = true;
    while (!io->ended) {
        fputs(prompt_text(), stdout);
        _cleanup_free_ char *line = next_line(&in, io);
        if (!line)
            break;
        ok = command_run(io, line) && ok;
    }
    return ok;
}

/* ---- at a terminal
 * --------------------------------------------------------------------------------- */

/* libedit hands a line to a function without any argument of ours. */
static struct {
    struct io *io;
    bool ended, failed;
} typing;

static void take_line(char *line)
{
    if (!line) {
        putchar('\n');
        typing.ended = true;
        rl_callback_handler_remove();
        return;
    }
    if (*line)
        add_history(line);
    /* The terminal is as commands and signals expect it while one runs. */
    rl_callback_handler_remove();
    if (!command_run(typing.io, line))
        typing.failed = true;
    free(line);
    fflush(stdout);
    if (!typing.io->ended)
        rl_callback_handler_install(prompt_text(), take_line);
}

static char *next_name(const char *word, int again)
{
    static size_t at;
    at = again ? at : 0;
    while (commands[at]) {
        const char *name = commands[at++]->name;
        if (strncmp(name, word, strlen(word)) == 0)
            return strdup(name);
    }
    return NULL;
}

/* Names of commands for the first word and behind help; libedit offers files elsewhere. */
static char **complete(const char *word, int start, int end)
{
    (void)end;
    bool name = start == 0 || strncmp(rl_line_buffer, "help ", 5) == 0;
    return name ? rl_completion_matches(word, next_name) : NULL;
}

static void tell_finished(struct io *io)
{
    putchar('\n');
    aio_reap(io->aio);
    fflush(stdout);
    rl_forced_update_display();
}

static bool run_terminal(struct io *io)
{
    rl_readline_name = "io";
    using_history();
    rl_attempted_completion_function = complete;
    typing.io = io;
    rl_callback_handler_install(prompt_text(), take_line);
    while (!typing.ended && !io->ended) {
        if (finished_first(io))
            tell_finished(io);
        else
            rl_callback_read_char();
    }
    if (!typing.ended)
        rl_callback_handler_remove();
    return !typing.failed;
}

bool prompt_run(struct io *io)
{
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) ? run_terminal(io) : run_pipe(io);
}
