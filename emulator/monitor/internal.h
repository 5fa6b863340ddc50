/* What the parts of the monitor share. */
#ifndef MONITOR_INTERNAL_H
#define MONITOR_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "chardev/chardev.h"
#include "monitor.h"

struct machine;

enum { LINE_MAX_ = 4096, LINE_HISTORY = 64 };

/* line.c: a line being typed. */
struct line {
    char text[LINE_MAX_];
    size_t len, at; /* the cursor */
    int escape;     /* where in "ESC [ A" the input stands */
    char *history[LINE_HISTORY];
    unsigned count, shown; /* shown == count: the line itself */
};

struct monitor {
    struct chardev *chardev;
    struct chardev_user user;
    struct machine *machine;
    const char *name; /* of the machine; may be NULL */
    bool prelaunch;   /* -S, and not continued since */
    struct line line;
};

/* true: a line is complete in line->text. */
bool line_type(struct monitor *m, uint8_t key);
void line_prompt(struct monitor *m);
void line_free(struct line *line);

/* monitor.c */
void monitor_print(struct monitor *m, const char *text); /* newlines become CR LF */
void monitor_printf(struct monitor *m, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* commands.c */
void command_run(struct monitor *m, char *line);
/* Number i of those that begin so; NULL past the last. Also for what follows "info ". */
const char *command_completion(const char *begun, unsigned i);

/* info.c */
void info_run(struct monitor *m, const char *what);
const char *info_name(unsigned i);
const char *info_help(unsigned i);

#endif
