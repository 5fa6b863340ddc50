/* The image that is open, and the description that it can be opened from again. */
#ifndef IO_IMAGE_H
#define IO_IMAGE_H

#include <jansson.h>
#include <stdbool.h>

#include "block/block.h"

/* How an image is to be opened. The strings are the caller's until image_open, which copies what it
 * keeps; options is a reference that image_open takes. */
struct image_spec {
    const char *name;   /* NULL: the options say it all */
    const char *format; /* NULL: by content */
    const char *cache;  /* NULL: writeback */
    json_t *options;    /* on top of the name; NULL: none */
    bool image_opts;    /* the name is a description */
    bool read_only, share, ignore_discard;
    bool native_aio; /* wants cache.direct */
    bool snapshot;   /* writes go to a temporary file */
    bool copy_on_read;
};

struct image {
    struct blk_node *top;  /* where requests go */
    struct blk_node *self; /* the image itself, below the filters that were asked for */
    json_t *desc;          /* what it was opened from */
    char *cache;           /* or NULL */
    unsigned flags;        /* enum blk_open_flag */
    bool snapshot;
};

/* The image, or NULL after a complaint. */
struct image *image_open(struct image_spec *spec);

/* Closes; false after a complaint that the newest writes may be lost. NULL is fine. */
bool image_close(struct image *image);

/* Opens the image anew, with these options on top (a reference that is taken; NULL: none), another
 * cache mode (NULL: as before) and flags. When that fails it says so and opens it as before;
 * without success there, too, image->top is NULL. 0 or a negative errno. */
int image_reopen(struct image *image, json_t *options, const char *cache, unsigned flags);

/* Is it a cache mode, a discard mode (*ignore gets which), a way of I/O? A complaint when not. */
bool image_cache_valid(const char *cache);
bool image_discard_valid(const char *discard, bool *ignore);
bool image_aio_valid(const char *aio, bool *native);

#endif
