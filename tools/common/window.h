/* Naming partitions: "IMAGE:p2" is the second partition of IMAGE, unless a file has just that name. */
#ifndef TOOLS_COMMON_WINDOW_H
#define TOOLS_COMMON_WINDOW_H

#include <jansson.h>
#include <stdbool.h>

#include "block/block.h"

/* *image: to be freed; its name without the partition. NULL when the name has none. */
char *window_split(const char *name, unsigned *number);

/* The name means a partition of a file that is there. */
bool window_is_there(const char *name);

/* What lies on top of the described image: a raw disk that is just this partition. Takes desc over; NULL and an
 * error when there is no such partition. */
json_t *window_on_partition(json_t *desc, unsigned number, struct error **err);

/* The same for [offset, offset + size); size 0: to the end. */
json_t *window_describe(json_t *desc, uint64_t offset, uint64_t size, struct error **err);

#endif
