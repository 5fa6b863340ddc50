/* What the command line asks of convert; convert.c reads it, transfer.c does it. */
#ifndef IMG_CONVERT_H
#define IMG_CONVERT_H

#include "img.h"

struct convert {
    const char *format, *target_format, *backing, *backing_format;
    const char *cache, *source_cache, *snapshot, *progress;
    char *options, *own_backing, *own_backing_format, *own_size;
    uint64_t sparse, rate, workers;
    bool sparse_given;
    bool compress, offload, no_create, target_is_zero, out_of_order, salvage;
    bool bitmaps, skip_bitmaps;
    bool image_opts, target_opts, share, quiet, percent;
};

/* The exit code. */
int convert(struct convert *o, char **sources, int n, const char *target);

#endif
