/* How long a request took, as scripts expect to read it. */
#ifndef IO_REPORT_H
#define IO_REPORT_H

#include <stdbool.h>
#include <stdint.h>

struct stopwatch {
    int64_t began; /* nanoseconds */
    int64_t took;
};

struct stopwatch stopwatch_start(void);
void stopwatch_stop(struct stopwatch *watch);

/* "wrote 65536/65536 bytes at offset 0" and the line of figures; or, for machines, one line. */
void report(const char *verb, const struct stopwatch *watch, int64_t offset, int64_t length,
            bool machine);

#endif
