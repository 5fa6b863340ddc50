/* The list of an image's internal snapshots, as info and snapshot print it. */
#ifndef IMG_SNAPSHOTS_H
#define IMG_SNAPSHOTS_H

#include <jansson.h>

/* list: what blk_info says in `snapshots`, parsed. Nothing where it is empty. */
void snapshots_print(json_t *list);

#endif
