/* The layers of a backing chain, and giving an overlay another one. All complain themselves, unless they say
 * otherwise. */
#ifndef IMG_LAYERS_H
#define IMG_LAYERS_H

#include <stdbool.h>

#include "block/block.h"

/* How many backing edges below `top` the image called `name` lies: by the name as it is stated or opened, or by
 * the file that it is. 0: nowhere. No complaint. */
unsigned layer_depth(struct blk_node *top, const char *name);

struct layer_exchange {
    struct blk_node *overlay; /* open for writing, with its present chain */
    struct blk_node *other;   /* what it is to rest on, NULL: nothing */
    bool compress;
};

/* Writes into the overlay what it needs to read as before on `other`; durable when it returns. 0 or
 * negative. */
int layer_copy_up(const struct layer_exchange *x);

/* Rewrites the backing file's name (NULL: none). */
bool layer_rename(struct blk_node *overlay, const char *name, const char *format);

#endif
