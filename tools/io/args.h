/* The options of the program itself. */
#ifndef IO_ARGS_H
#define IO_ARGS_H

#include <stdbool.h>

#include "base/vector.h"
#include "image.h"

struct args {
    VECTOR(const char *) commands; /* -c, in order */
    struct image_spec spec;
    bool misalign;
};

/* True: go on. False: the exit code is in *code (help was asked and given, or a complaint was
 * printed). */
bool args_parse(int argc, char **argv, struct args *args, int *code);

#endif
