/* Random operations from many threads on qcow2 images: random.h. */
#include "random.h"

static const struct layout layouts[] = {
    { "64k clusters", "cluster_size=64k", 65536, 4, 24576, false, "", NULL, false },
    { "64k clusters, backing", "cluster_size=64k", 65536, 4, 24000, true, "", NULL, false },
    { "one thread, backing", "cluster_size=4k", 4096, 1, 6000, true, "", NULL, false },
    { "4k clusters, small caches", "cluster_size=4k", 4096, 8, 5001, true,
      ",l2-cache-size=4096,refcount-cache-size=4096,cache-clean-interval=1", NULL, false },
    { "512 byte clusters, 1 bit refcounts", "cluster_size=512,refcount_bits=1", 512, 4, 3000, false,
      "", NULL, false },
    { "512 byte clusters, 64 bit refcounts", "cluster_size=512,refcount_bits=64", 512, 4, 3000,
      true, "", NULL, false },
    { "version 2", "compat=0.10,cluster_size=4k", 4096, 4, 9000, false, "", NULL, false },
    { "version 2, backing", "compat=0.10,cluster_size=4k", 4096, 4, 9000, true, "", NULL, false },
    { "2M clusters", "cluster_size=2M", 2097152, 4, 24576, false, "", NULL, false },
    { "subclusters", "extended_l2=on,cluster_size=16k", 16384, 8, 5001, false, "", NULL, false },
    { "subclusters, backing", "extended_l2=on", 65536, 4, 24000, true, "", NULL, false },
    { "subclusters, backing, small caches", "extended_l2=on,cluster_size=16k", 16384, 4, 20000,
      true, ",l2-cache-size=4096,refcount-cache-size=4096", NULL, false },
    { "zstd", "cluster_size=16k,compression_type=zstd", 16384, 4, 20000, true, "", NULL, false },
};

static void qcow2(void **state)
{
    (void)state;
    random_operations(layouts, ARRAY_SIZE(layouts));
}

int main(void)
{
    return run_random(qcow2);
}
