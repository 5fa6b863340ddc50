/* Random operations from many threads on VHDX images: random.h. */
#include "random.h"

static const struct layout layouts[] = {
    { "vhdx", "block_size=1M", 1 << 20, 4, 24576, false, "", "vhdx", false },
    { "vhdx, 8 threads", "block_size=1M", 1 << 20, 8, 5001, false, "", "vhdx", false },
    { "vhdx, 8M", "block_size=8M,block_state_zero=off", 8 << 20, 4, 24000, false, "", "vhdx",
      false },
    { "vhdx, fixed", "block_size=1M,subformat=fixed", 1 << 20, 4, 9000, false, "", "vhdx", false },
    { "vhdx, differencing", "block_size=1M", 1 << 20, 4, 24000, true, "", "vhdx", true },
    { "vhdx, differencing, 4M", "block_size=4M", 4 << 20, 8, 5001, true, "", "vhdx", true },
};

static void vhdx(void **state)
{
    (void)state;
    random_operations(layouts, ARRAY_SIZE(layouts));
}

int main(void)
{
    return run_random(vhdx);
}
