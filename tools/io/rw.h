/* What the commands that move bytes share. */
#ifndef IO_RW_H
#define IO_RW_H

#include <stdbool.h>
#include <stdint.h>

struct command;
struct given;

/* "off len" at argv[first]; complaints of both words. What: "length cannot exceed ... <than>,
 * given". */
bool rw_range(char **argv, int first, const char *than, int64_t limit, int64_t *offset,
              int64_t *length);

/* -P, or `def` when it was not given. */
bool rw_pattern(const struct given *given, int def, int *pattern);

/* "read failed: Input/output error"; returns r. */
int rw_failed(const char *what, int r);

/* -b: whole sectors are asked for; complains when it is not so. */
bool rw_vm_aligned(int64_t offset, int64_t length);
/* r, with a word on why there is nothing like it. */
int rw_vm_result(int r);

#define FLAG_MACHINE                                    \
    {                                                   \
        'C', false, "the figures for a program to read" \
    }
#define FLAG_QUIET                                  \
    {                                               \
        'q', false, "say nothing when it went well" \
    }
#define FLAG_PATTERN_READ                                         \
    {                                                             \
        'P', true, "the byte that must have been read everywhere" \
    }
#define FLAG_PATTERN_WRITE                    \
    {                                         \
        'P', true, "the byte to write (0xcd)" \
    }
#define FLAG_FUA                                    \
    {                                               \
        'f', false, "on the disk before it is done" \
    }
#define FLAG_DUMP                    \
    {                                \
        'v', false, "show the bytes" \
    }
#define FLAG_END       \
    {                  \
        0, false, NULL \
    }

#endif
