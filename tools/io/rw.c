#include "rw.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "io.h"
#include "number.h"

bool rw_range(char **argv, int first, const char *than, int64_t limit, int64_t *offset,
              int64_t *length)
{
    if (!number_size(argv[first], offset) || !number_size(argv[first + 1], length))
        return false;
    if (*length > limit) {
        printf("length cannot exceed %" PRId64 "%s, given %s\n", limit, than, argv[first + 1]);
        return false;
    }
    return true;
}

bool rw_pattern(const struct given *given, int def, int *pattern)
{
    *pattern = def;
    return !given->of['P'] || number_pattern(given->of['P'], pattern);
}

int rw_failed(const char *what, int r)
{
    printf("%s failed: %s\n", what, strerror(-r));
    return r;
}

static bool sectors(int64_t value, const char *what)
{
    if (value % 512 == 0)
        return true;
    printf("%" PRId64 " is not a sector-aligned value for '%s'\n", value, what);
    return false;
}

int rw_vm_result(int r)
{
    if (r == -ENOTSUP && !as_qemu)
        complain("this format has no place for a VM state");
    return r;
}

bool rw_vm_aligned(int64_t offset, int64_t length)
{
    return sectors(offset, "offset") && sectors(length, "count");
}
