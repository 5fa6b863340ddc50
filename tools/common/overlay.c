#include "overlay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/round.h"

/* The format that can stand on a backing file, as qemu-io takes it for the same purpose. */
#define OVERLAY_FORMAT "qcow2"

/* The size of what is described. */
static int size_of(json_t *desc, uint64_t *size, struct error **err)
{
    _cleanup_free_ char *text = json_dumps(desc, JSON_COMPACT);
    if (!text)
        return error_set(err, ENOMEM, "out of memory");
    struct blk_open_args args = { .image_opts = true, .flags = BLK_OPEN_QUIET | BLK_OPEN_SHARED };
    struct blk_node *node;
    int r = blk_open(text, &args, &node, err);
    if (r < 0)
        return r;
    *size = round_up(blk_size(node), 512);
    return blk_close(node, err);
}

static int make_file(char **name, struct error **err)
{
    const char *folder = getenv("TMPDIR");
    if (asprintf(name, "%s/platter-overlay-XXXXXX", folder && *folder ? folder : "/var/tmp") < 0) {
        *name = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    int fd = mkstemp(*name);
    if (fd < 0)
        return error_set(err, errno, "%s: could not make a temporary file: %s", *name,
                         strerror(errno));
    close(fd);
    return 0;
}

static int open_over(const char *name, json_t *desc, const char *cache, unsigned flags,
                     struct blk_node **out, struct error **err)
{
    uint64_t size = 0;
    int r = size_of(desc, &size, err);
    if (r < 0)
        return r;
    struct blk_create_args create = {
        .filename = name, .format = OVERLAY_FORMAT, .size_given = true, .size = size
    };
    r = blk_create(&create, NULL, err);
    if (r < 0)
        return r;
    _cleanup_json_ json_t *over =
        json_pack("{s:s, s:{s:s, s:s}, s:O}", "driver", OVERLAY_FORMAT, "file", "driver", "file",
                  "filename", name, "backing", desc);
    _cleanup_free_ char *text = over ? json_dumps(over, JSON_COMPACT) : NULL;
    if (!text)
        return error_set(err, ENOMEM, "out of memory");
    struct blk_open_args args = { .cache = cache, .image_opts = true, .flags = flags };
    return blk_open(text, &args, out, err);
}

int overlay_open(json_t *desc, const char *cache, unsigned flags, struct blk_node **out,
                 struct error **err)
{
    _cleanup_free_ char *name = NULL;
    int r = make_file(&name, err);
    if (r < 0)
        return r;
    r = open_over(name, desc, cache, flags, out, err);
    unlink(name);
    return r;
}
