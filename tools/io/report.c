#include "report.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "number.h"

static int64_t now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

struct stopwatch stopwatch_start(void)
{
    return (struct stopwatch){ .began = now() };
}

void stopwatch_stop(struct stopwatch *watch)
{
    watch->took = now() - watch->began;
}

/* "00.02 sec", from a minute on and for machines "0:01:03.27". */
static void duration(int64_t took, bool full, char *text, size_t size)
{
    unsigned hundredths = (unsigned)(took / 10000000 % 100);
    unsigned seconds = (unsigned)(took / 1000000000 % 60);
    unsigned minutes = (unsigned)(took / 60000000000 % 60);
    unsigned hours = (unsigned)(took / 3600000000000);
    if (full || hours || minutes)
        snprintf(text, size, "%u:%02u:%02u.%02u", hours, minutes, seconds, hundredths);
    else
        snprintf(text, size, "%02u.%02u sec", seconds, hundredths);
}

void report(const char *verb, const struct stopwatch *watch, int64_t offset, int64_t length,
            bool machine)
{
    char time[64];
    duration(watch->took, machine, time, sizeof(time));
    double seconds = (double)(watch->took ? watch->took : 1) / 1e9;
    double rate = (double)length / seconds, ops = 1 / seconds;
    if (machine) {
        printf("%" PRId64 ",1,%s,%.3f,%.3f\n", length, time, rate, ops);
        return;
    }
    printf("%s %" PRId64 "/%" PRId64 " bytes at offset %" PRId64 "\n", verb, length, length,
           offset);
    printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n", number_human((double)length).s, time,
           number_human(rate).s, ops);
}
