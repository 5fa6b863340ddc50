/* Opening images as the command line describes them. All functions complain themselves. */
#ifndef IMG_IMAGE_H
#define IMG_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"

struct image_spec {
    const char *name;
    const char *format; /* NULL: guess */
    const char *cache;  /* NULL: the default */
    bool image_opts;
    unsigned flags; /* enum blk_open_flag */
    /* Show this internal snapshot (read-only): an id, a name, or snapshot.id=ID,snapshot.name=NAME.
     * NULL: the disk. */
    const char *snapshot;
    unsigned writable_backing; /* these as in struct blk_open_args */
    const char *stated_by;
};

/* NULL after a complaint. IMAGE:p2 is a partition. */
struct blk_node *image_open(const struct image_spec *spec);

/* IMAGE when the name is IMAGE:pN, and in *text the partition's description, NULL with an error; else NULL. Both to
 * be freed. */
char *image_partition(const struct image_spec *spec, char **text, struct error **err);

/* Closes; false after a complaint that the newest writes may be lost. NULL is fine. */
bool image_close(struct blk_node *node);

/* For the cleanup attribute, where nothing was written. */
void image_drop(struct blk_node **node);
#define _cleanup_image_ __attribute__((cleanup(image_drop)))

/* --image-opts goes without -f. */
bool image_opts_alone(bool image_opts, const char *format);

/* A cache mode as -t and -T take it; which: "cache" or "source cache". */
bool cache_valid(const char *cache, const char *which);

/* The driver of that name, or a complaint with the nearest one. */
bool format_known(const char *format);
bool format_find(const char *format, struct blk_driver_info *out);

/* Does this image or anything it rests on lie in the file of that device and inode? */
bool image_rests_on(struct blk_node *node, const char *filename);

/* What a guest sees, rounded up to whole sectors, as other tools and guests see it. */
uint64_t image_sectors_size(struct blk_node *node);

#endif
