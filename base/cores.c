#include "base/cores.h"

#include <errno.h>
#include <sched.h>
#include <unistd.h>

unsigned usable_cores(void)
{
    /* The fixed set holds 1024 cores; the call fails with EINVAL on machines that may have more. */
    for (int bits = 1024; bits <= 1 << 20; bits *= 4) {
        cpu_set_t *set = CPU_ALLOC((size_t)bits);
        size_t size = CPU_ALLOC_SIZE((size_t)bits);
        int count = 0;
        int r;

        if (!set)
            break;
        r = sched_getaffinity(0, size, set) < 0 ? errno : 0;
        if (r == 0)
            count = CPU_COUNT_S(size, set);
        CPU_FREE(set);
        if (count > 0)
            return (unsigned)count;
        if (r != EINVAL)
            break;
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (unsigned)online : 1;
}
