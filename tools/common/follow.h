/* --follow=none|local|any, an option of every program: what names stored inside images may be
 * followed to (block/block.h). It is taken out of the arguments wherever it stands, and set for
 * everything that the program opens. */
#ifndef TOOLS_COMMON_FOLLOW_H
#define TOOLS_COMMON_FOLLOW_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* NULL, or the value that is none of the three. argv loses the option. */
static inline const char *follow_take(int *argc, char **argv)
{
    static const char name[] = "--follow";
    int to = 1;
    bool options = true;

    for (int from = 1; from < *argc; from++) {
        const char *arg = argv[from], *value = NULL;
        options = options && strcmp(arg, "--") != 0;
        if (options && !strncmp(arg, "--follow=", sizeof(name)))
            value = arg + sizeof(name);
        else if (options && !strcmp(arg, name) && from + 1 < *argc)
            value = argv[++from];
        if (!value) {
            argv[to++] = argv[from];
            continue;
        }
        if (strcmp(value, "none") && strcmp(value, "local") && strcmp(value, "any"))
            return value;
        setenv("PLATTER_FOLLOW", value, 1);
    }
    *argc = to;
    argv[to] = NULL;
    return NULL;
}

#endif
