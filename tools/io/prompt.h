/* Commands that are typed, or come through a pipe. */
#ifndef IO_PROMPT_H
#define IO_PROMPT_H

#include <stdbool.h>

struct io;

/* Asks for commands until there are no more. False: one of them failed. */
bool prompt_run(struct io *io);

#endif
