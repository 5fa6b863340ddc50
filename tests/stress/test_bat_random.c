/* Random operations from many threads on images with one table of blocks (VDI, VHD): random.h. */
#include "random.h"

static const struct layout layouts[] = {
    { "vdi", "static=off", 1 << 20, 4, 24576, false, "", "vdi", false },
    { "vdi, 4k", "block_size=4k", 4096, 8, 5001, false, "", "vdi", true },
    { "vdi, 16k", "block_size=16k", 16384, 4, 24000, false, "", "vdi", true },
    { "vdi, differencing", "block_size=64k", 65536, 4, 24000, true, "", "vdi", true },
    { "vdi, differencing, 4k", "block_size=4k", 4096, 4, 9000, true, "", "vdi", true },
    { "vdi, static", "static=on", 1 << 20, 4, 24576, false, "", "vdi", false },
    { "vpc", "force_size=on", 2 << 20, 4, 24576, false, "", "vpc", false },
    { "vpc, 4k", "force_size=on,block_size=4k", 4096, 8, 5001, false, "", "vpc", false },
    { "vpc, 64k", "force_size=on,block_size=64k", 65536, 4, 24000, false, "", "vpc", false },
    { "vpc, differencing", "force_size=on", 2 << 20, 4, 24000, true, "", "vpc", true },
    { "vpc, differencing, 4k", "force_size=on,block_size=4k", 4096, 8, 5001, true, "", "vpc",
      true },
    { "vpc, fixed", "force_size=on,subformat=fixed", 4096, 4, 9000, false, "", "vpc", false },
};

static void block_tables(void **state)
{
    (void)state;
    random_operations(layouts, ARRAY_SIZE(layouts));
}

int main(void)
{
    return run_random(block_tables);
}
