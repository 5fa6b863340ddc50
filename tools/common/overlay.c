#include "overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/hidden.h"
#include "base/round.h"

/* The format that can stand on a backing file, as qemu-io takes it for the same purpose. */
#define OVERLAY_FORMAT "qcow2"

/* The size of what is described, and its format, to be freed. */
static int look(json_t *desc, uint64_t *size, char **format, struct error **err)
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
    if (format)
        *format = strdup(blk_format(node));
    return blk_close(node, err);
}

static int make_file(char **name, struct error **err)
{
    if (asprintf(name, "%s/platter-overlay-XXXXXX", hidden_folder()) < 0) {
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
    uint64_t size = 0;
    r = look(desc, &size, NULL, err);
    struct blk_create_args create = {
        .filename = name, .format = OVERLAY_FORMAT, .size_given = true, .size = size
    };
    if (r == 0)
        r = blk_create(&create, NULL, err);
    if (r == 0)
        r = open_over(name, desc, cache, flags, out, err);
    unlink(name);
    return r;
}

/* An overlay of another image would show rubbish. */
static int check_backing(const char *file, const char *image, struct error **err)
{
    struct blk_open_args args = { .format = OVERLAY_FORMAT,
                                  .flags = BLK_OPEN_NO_BACKING | BLK_OPEN_NO_IO | BLK_OPEN_SHARED };
    struct blk_info info = { 0 };
    struct blk_node *node;
    struct stat a, b;

    int r = blk_open(file, &args, &node, err);
    if (r < 0)
        return r;
    r = blk_info(node, &info, err);
    const char *rests_on = info.full_backing_filename;
    if (r == 0 && !rests_on)
        r = error_set(err, EINVAL, "%s: it is there already, and no overlay", file);
    else if (r == 0 && strcmp(rests_on, image) != 0 &&
             (stat(rests_on, &a) < 0 || stat(image, &b) < 0 || a.st_dev != b.st_dev ||
              a.st_ino != b.st_ino))
        r = error_set(err, EINVAL, "%s: it is an overlay of '%s', not of '%s'", file, rests_on,
                      image);
    blk_info_free(&info);
    blk_close(node, NULL);
    return r;
}

static int make_named(const char *file, const char *image, json_t *desc, struct error **err)
{
    _cleanup_free_ char *format = NULL;
    _cleanup_free_ char *real = realpath(image, NULL);
    uint64_t size = 0;

    int r = look(desc, &size, &format, err);
    if (r < 0)
        return r;
    /* Made only when it is new: what another process made meanwhile is not overwritten. */
    int fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return error_set(err, errno, "%s: cannot make it: %s", file, strerror(errno));
    close(fd);
    struct blk_create_args create = { .filename = file,
                                      .format = OVERLAY_FORMAT,
                                      .size_given = true,
                                      .size = size,
                                      .backing_file = real ? real : image,
                                      .backing_format = format,
                                      .backing_unchecked = true };
    r = blk_create(&create, NULL, err);
    if (r < 0)
        unlink(file);
    return r;
}

int overlay_open_file(const char *file, const char *image, json_t *desc, const char *cache,
                      unsigned flags, struct blk_node **out, struct error **err)
{
    struct stat st;
    int r =
        stat(file, &st) == 0 ? check_backing(file, image, err) : make_named(file, image, desc, err);
    return r < 0 ? r : open_over(file, desc, cache, flags, out, err);
}
