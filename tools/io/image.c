/* Opening, closing and opening again.
 *
 * Whatever way an image is named, it becomes one JSON description here, so that options can be laid
 * on top of it. Only a plain name without options goes to the block layer as it is.
 */
#include "image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"
#include "io.h"
#include "tools/describe.h"
#include "tools/overlay.h"

/* ---- words -------------------------------------------------------------------------------------
 */

static bool one_of(const char *word, const char *const *words)
{
    for (; *words; words++) {
        if (strcmp(word, *words) == 0)
            return true;
    }
    return false;
}

bool image_cache_valid(const char *cache)
{
    static const char *const modes[] = { "none",       "off",    "writeback", "writethrough",
                                         "directsync", "unsafe", NULL };
    if (one_of(cache, modes))
        return true;
    complain("Invalid cache option: %s", cache);
    return false;
}

bool image_discard_valid(const char *discard, bool *ignore)
{
    static const char *const off[] = { "ignore", "off", NULL }, *const on[] = { "unmap", "on",
                                                                                NULL };
    *ignore = one_of(discard, off);
    if (*ignore || one_of(discard, on))
        return true;
    complain("Invalid discard option: %s", discard);
    return false;
}

bool image_aio_valid(const char *aio, bool *native)
{
    static const char *const modes[] = { "threads", "native", "io_uring", NULL };
    *native = strcmp(aio, "native") == 0;
    if (one_of(aio, modes))
        return true;
    complain("Invalid aio option: %s", aio);
    return false;
}

/* ---- the description ----------------------------------------------------------------------------
 */

static json_t *describe(const struct image_spec *spec, struct error **err)
{
    json_t *desc = spec->name ? describe_image(spec->name, spec->image_opts, err) : json_object();
    if (!desc)
        return NULL;
    if (spec->format && !json_object_get(desc, "driver"))
        json_object_set_new(desc, "driver", json_string(spec->format));
    if (spec->options)
        json_object_update_recursive(desc, spec->options);
    describe_push_filename_down(desc);
    return desc;
}

/* A description may say read-only where the caller means to write. */
static int check_writable(struct blk_node **node, unsigned flags, struct error **err)
{
    if (!(flags & BLK_OPEN_RDWR) || !blk_read_only(*node))
        return 0;
    blk_close(*node, NULL);
    *node = NULL;
    return error_set(err, EACCES, "Block node is read-only");
}

static int open_described(json_t *desc, const char *cache, unsigned flags, struct blk_node **out,
                          struct error **err)
{
    _cleanup_free_ char *text = json_dumps(desc, JSON_COMPACT);
    if (!text)
        return error_set(err, ENOMEM, "out of memory");
    struct blk_open_args args = { .cache = cache, .image_opts = true, .flags = flags };
    int r = blk_open(text, &args, out, err);
    return r < 0 ? r : check_writable(out, flags, err);
}

/* ---- opening ------------------------------------------------------------------------------------
 */

static unsigned open_flags(const struct image_spec *spec)
{
    return (spec->read_only ? 0 : BLK_OPEN_RDWR | BLK_OPEN_RESIZE) |
           (spec->share ? BLK_OPEN_SHARED : 0) | (spec->ignore_discard ? 0 : BLK_OPEN_UNMAP);
}

static bool is_direct(const struct image_spec *spec)
{
    static const char *const direct[] = { "none", "off", "directsync", NULL };
    return spec->cache && one_of(spec->cache, direct);
}

/* What cannot go together. */
static int check(const struct image_spec *spec, struct error **err)
{
    if (spec->share && !spec->read_only)
        return error_set(err, EINVAL, "force-share=on can only be used with read-only images");
    if (spec->copy_on_read && spec->read_only)
        return error_set(err, EINVAL, "Can't use copy-on-read on read-only device");
    if (spec->native_aio && !is_direct(spec))
        return error_set(err, EINVAL,
                         "aio=native was specified, but it requires cache.direct=on, which was not "
                         "specified.");
    return 0;
}

static int open_filtered(const struct image_spec *spec, struct image *image, struct error **err)
{
    int r = check(spec, err);
    if (r < 0)
        return r;
    image->flags = open_flags(spec);
    image->snapshot = spec->snapshot;
    image->cache = spec->cache ? strdup(spec->cache) : NULL;
    image->desc = describe(spec, err);
    if (!image->desc)
        return -EINVAL;
    if (spec->copy_on_read)
        image->desc = json_pack("{s:s, s:o}", "driver", "copy-on-read", "file", image->desc);
    if (spec->snapshot)
        r = overlay_open(image->desc, image->cache, image->flags, &image->top, err);
    else
        r = open_described(image->desc, image->cache, image->flags, &image->top, err);
    if (r == 0)
        image->self = spec->copy_on_read ? blk_child(image->top, "file") : image->top;
    return r;
}

static void image_free(struct image *image)
{
    json_decref(image->desc);
    free(image->cache);
    free(image);
}

struct image *image_open(struct image_spec *spec)
{
    struct error *err = NULL;
    struct image *image = calloc(1, sizeof(*image));
    int r = image ? open_filtered(spec, image, &err) : error_set(&err, ENOMEM, "out of memory");
    json_decref(spec->options);
    spec->options = NULL;
    if (r == 0)
        return image;
    if (spec->name)
        complain_error(&err, "can't open device %s", spec->name);
    else
        complain_error(&err, "can't open");
    if (image)
        image_free(image);
    return NULL;
}

static bool close_node(struct blk_node *node)
{
    struct error *err = NULL;
    if (blk_close(node, &err) == 0)
        return true;
    complain_error(&err, "closing failed, the newest writes may be lost");
    return false;
}

bool image_close(struct image *image)
{
    if (!image)
        return true;
    bool ok = close_node(image->top);
    image_free(image);
    return ok;
}

/* ---- opening again
 * ------------------------------------------------------------------------------- */

static int restore(struct image *image)
{
    struct error *err = NULL;
    int r = open_described(image->desc, image->cache, image->flags, &image->top, &err);
    if (r < 0)
        complain_error(&err, "and it cannot be opened as it was");
    image->self = image->top;
    return r;
}

/* Which of the files an image rests on it is cannot change under its users. */
static bool may_change(json_t *options, const char *format)
{
    const char *key;
    json_t *value;
    json_object_foreach(options, key, value)
    {
        const char *text = json_string_value(value);
        bool same = strcmp(key, "driver") == 0 && format && text && strcmp(text, format) == 0;
        if ((strcmp(key, "driver") == 0 || strcmp(key, "filename") == 0) && !same) {
            complain("Cannot change the option '%s'", key);
            return false;
        }
        if (json_is_object(value) && !may_change(value, NULL))
            return false;
    }
    return true;
}

int image_reopen(struct image *image, json_t *options, const char *cache, unsigned flags)
{
    _cleanup_json_ json_t *own = options;
    _cleanup_error_ struct error *err = NULL;
    if (image->snapshot || image->self != image->top) {
        complain("an image under -s or -C cannot be opened again");
        return -ENOTSUP;
    }
    if (own && !may_change(own, blk_format(image->self)))
        return -EINVAL;
    _cleanup_json_ json_t *desc = json_deep_copy(image->desc);
    _cleanup_free_ char *mode = cache ? strdup(cache) : NULL;
    if (!desc || (cache && !mode))
        return -ENOMEM;
    /* It was told from the content then; a guest may have written since. */
    if (!json_object_get(desc, "driver"))
        json_object_set_new(desc, "driver", json_string(blk_format(image->self)));
    if (own)
        json_object_update_recursive(desc, own);
    if (!close_node(image->top))
        complain("going on with what is on the disk");
    image->top = image->self = NULL;
    int r = open_described(desc, mode ? mode : image->cache, flags, &image->top, &err);
    if (r < 0) {
        complain("%s", blk_error_text(err));
        restore(image);
        return r;
    }
    image->self = image->top;
    image->flags = flags;
    json_decref(image->desc);
    image->desc = json_incref(desc);
    if (mode) {
        free(image->cache);
        image->cache = mode;
        mode = NULL;
    }
    return 0;
}
