/* -s: an image whose writes go to a file that nobody will find again. */
#ifndef TOOLS_COMMON_OVERLAY_H
#define TOOLS_COMMON_OVERLAY_H

#include <jansson.h>

#include "block/block.h"

/* Opens a temporary image on top of what desc describes. 0 or a negative errno with an error. */
int overlay_open(json_t *desc, const char *cache, unsigned flags, struct blk_node **out,
                 struct error **err);

#endif
