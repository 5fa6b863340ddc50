/* What -drive says, as a description of a node and how to open it. Knows nothing of the block layer. */
#ifndef EMULATOR_BLOCKDEV_DRIVE_H
#define EMULATOR_BLOCKDEV_DRIVE_H

#include <jansson.h>
#include <stdbool.h>

struct error;

struct drive {
    json_t *description; /* NULL: an empty drive */
    char *id;            /* NULL: none given */
    const char *cache;   /* a mode of the graph; NULL: the default */
    bool snapshot, read_only, unmap;
};

/* options stays as it is. On failure there is nothing to free. */
int drive_parse(json_t *options, struct drive *out, struct error **err);
void drive_free(struct drive *drive);

#endif
