#include "snapshots.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "base/human.h"

void snapshots_print(json_t *list)
{
    if (json_array_size(list) == 0)
        return;
    puts("Snapshot list:");
    printf("%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
    size_t i;
    json_t *s;
    json_array_foreach(list, i, s)
    {
        time_t date = (time_t)json_integer_value(json_object_get(s, "date-sec"));
        struct tm tm;
        char when[64] = "", clock[64], count[32] = "";
        if (localtime_r(&date, &tm))
            strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
        uint64_t secs = (uint64_t)json_integer_value(json_object_get(s, "vm-clock-sec"));
        uint64_t nsecs = (uint64_t)json_integer_value(json_object_get(s, "vm-clock-nsec"));
        snprintf(clock, sizeof(clock), "%02" PRIu64 ":%02u:%02u.%03u", secs / 3600,
                 (unsigned)(secs / 60 % 60), (unsigned)(secs % 60), (unsigned)(nsecs / 1000000));
        json_t *icount = json_object_get(s, "icount");
        if (icount)
            snprintf(count, sizeof(count), "%" JSON_INTEGER_FORMAT, json_integer_value(icount));
        uint64_t size = (uint64_t)json_integer_value(json_object_get(s, "vm-state-size"));
        printf("%-9s %-16s %8s%20s%13s%11s\n", json_string_value(json_object_get(s, "id")),
               json_string_value(json_object_get(s, "name")), human_size(size).s, when, clock,
               count);
    }
}
