#include "base/human.h"

#include <inttypes.h>
#include <stdio.h>

struct human_text human_size(uint64_t bytes)
{
    static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    struct human_text text;
    double value = (double)bytes;
    unsigned i = 0;

    /* The unit in which fewer than four digits stand before the point. */
    while (value >= 1000) {
        value /= 1024;
        i++;
    }
    snprintf(text.s, sizeof(text.s), "%0.3g %s", value, unit[i]);
    return text;
}

struct human_text human_size_exact(uint64_t bytes)
{
    struct human_text text;

    snprintf(text.s, sizeof(text.s), "%.32s (%" PRIu64 " bytes)", human_size(bytes).s, bytes);
    return text;
}
