/* Random operations from many threads on VMDKs: random.h. */
#include "random.h"

static const struct layout layouts[] = {
    { "vmdk", "", 65536, 4, 24576, false, "", "vmdk", false },
    { "vmdk, delta", "", 65536, 8, 5001, true, "", "vmdk", false },
    { "vmdk, zeroed grains", "zeroed_grain=on", 65536, 4, 24000, false, "", "vmdk", false },
    { "vmdk, zeroed grains, delta", "zeroed_grain=on", 65536, 8, 24000, true, "", "vmdk", false },
    { "vmdk, flat", "subformat=monolithicFlat", 65536, 4, 24000, false, "", "vmdk", false },
    { "vmdk, split", "subformat=twoGbMaxExtentSparse", 65536, 4, 24000, false, "", "vmdk", false },
    { "vmdk, stream", "subformat=streamOptimized", 65536, 4, 9000, false, "", "vmdk", false },
    { "vmdk, stream, delta", "subformat=streamOptimized", 65536, 4, 9000, true, "", "vmdk", false },
};

static void grains(void **state)
{
    (void)state;
    random_operations(layouts, ARRAY_SIZE(layouts));
}

int main(void)
{
    return run_random(grains);
}
