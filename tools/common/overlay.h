/* Writes go to an image of their own: one that nobody will find again (-s), or one with a name. */
#ifndef TOOLS_COMMON_OVERLAY_H
#define TOOLS_COMMON_OVERLAY_H

#include <jansson.h>

#include "block/block.h"

/* Opens the image `file` on top of what desc describes, which is made when it is not there. One that is there must
 * say that it rests on `image`, the name of what desc describes. 0 or a negative errno with an error. */
int overlay_open_file(const char *file, const char *image, json_t *desc, const char *cache,
                      unsigned flags, struct blk_node **out, struct error **err);

/* Opens a temporary image on top of what desc describes. 0 or a negative errno with an error. */
int overlay_open(json_t *desc, const char *cache, unsigned flags, struct blk_node **out,
                 struct error **err);

#endif
