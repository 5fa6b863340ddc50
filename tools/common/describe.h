/* Whatever way an image is named, as one JSON description, so that options can be laid on top of it. */
#ifndef TOOLS_COMMON_DESCRIBE_H
#define TOOLS_COMMON_DESCRIBE_H

#include <jansson.h>
#include <stdbool.h>

struct error;

/* A file name, "json:{...}", or with image_opts "driver=qcow2,file.filename=x" or "{...}". The caller owns the
 * object; NULL and an error when it cannot be parsed. */
json_t *describe_image(const char *name, bool image_opts, struct error **err);

/* A file name beside "file": {...} is that file's. */
void describe_push_filename_down(json_t *desc);

#endif
