/* open, close, reopen. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "aio.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"
#include "image.h"
#include "io.h"

/* All the "key=value,..." of -o, later ones on top of earlier ones. NULL in *options when there was
 * none. */
static bool take_options(const struct given *given, json_t **options)
{
    _cleanup_json_ json_t *sum = NULL;
    for (int i = 0; i < given->count; i++) {
        if (given->all[i].letter != 'o')
            continue;
        _cleanup_error_ struct error *err = NULL;
        _cleanup_json_ json_t *more = opts_parse_keyval(given->all[i].value, NULL, &err);
        if (!more) {
            complain("%s", blk_error_text(err));
            return false;
        }
        if (!sum)
            sum = json_object();
        json_object_update_recursive(sum, more);
    }
    *options = json_incref(sum);
    return true;
}

/* ---- open
 * ---------------------------------------------------------------------------------------- */

static bool take_modes(const struct given *given, struct image_spec *spec)
{
    if (given->of['n'])
        spec->cache = "none";
    if (given->of['t']) {
        spec->cache = given->of['t'];
        if (!image_cache_valid(spec->cache))
            return false;
    }
    spec->native_aio = given->of['k'];
    if (given->of['d'] && !image_discard_valid(given->of['d'], &spec->ignore_discard))
        return false;
    return !given->of['i'] || image_aio_valid(given->of['i'], &spec->native_aio);
}

static int do_open(const struct command *self, struct io *io, int argc, char **argv)
{
    struct given given;
    int first;
    if (!flags_parse(self, argc, argv, &given, &first))
        return -EINVAL;
    struct image_spec spec = {
        .image_opts = io->image_opts,
        .read_only = given.of['r'],
        .share = given.of['U'],
        .snapshot = given.of['s'],
        .copy_on_read = given.of['C'],
    };
    if (!take_modes(&given, &spec))
        return -EINVAL;
    if (argc - first > 1 || (argc == first && !given.of['o']))
        return command_usage(self);
    spec.name = argc > first ? argv[first] : NULL;
    if (io->image) {
        complain("file open already, try 'help close'");
        return -EBUSY;
    }
    if (io->image_opts && given.of['o']) {
        complain("--image-opts and 'open -o' are mutually exclusive");
        return -EINVAL;
    }
    if (!take_options(&given, &spec.options))
        return -EINVAL;
    io->image = image_open(&spec);
    return io->image ? 0 : -EINVAL;
}

static const struct flag open_flags[] = {
    { 'r', false, "read-only" },
    { 's', false, "writes go to a temporary file and are lost in the end" },
    { 'C', false, "copy what is read from backing files into the image" },
    { 'n', false, "bypass the page cache, the same as -t none" },
    { 'U', false, "open it although others may be writing to it" },
    { 'k', false, "accepted for old scripts, needs -n" },
    { 'i', true, "threads, native or io_uring; the requests are the same" },
    { 't', true, "cache mode: none, writeback, writethrough, directsync or unsafe" },
    { 'd', true, "discards: ignore (off) or unmap (on)" },
    { 'o', true, "options of the driver: key=value,..." },
    { 0, false, NULL },
};

const struct command cmd_open = {
    .name = "open",
    .alias = "o",
    .args = "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
    .summary = "open the file specified by path",
    .text = " Opens an image, which the other commands then work on.\n"
            "\n"
            " Example:\n"
            " 'open -n -o driver=raw /tmp/data' - a raw file, past the page cache\n"
            "\n",
    .flags = open_flags,
    .min = 1,
    .max = -1,
    .run = do_open,
};

/* ---- close
 * --------------------------------------------------------------------------------------- */

static int do_close(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)argc;
    (void)argv;
    aio_wait(io->aio);
    bool ok = image_close(io->image);
    io->image = NULL;
    return ok ? 0 : -EIO;
}

const struct command cmd_close = {
    .name = "close",
    .alias = "c",
    .summary = "close the current open file",
    .needs = NEEDS_IMAGE,
    .run = do_close,
};

/* ---- reopen
 * -------------------------------------------------------------------------------------- */

/* What -o says may not contradict the letters. */
static bool agree(const struct given *given, json_t *options)
{
    json_t *cache = json_object_get(options, "cache");
    if (given->of['c'] && cache) {
        complain("Cannot set both -c and the cache options");
        return false;
    }
    if ((given->of['r'] || given->of['w']) && json_object_get(options, "read-only")) {
        complain("Cannot set both -r/-w and 'read-only'");
        return false;
    }
    return true;
}

static unsigned new_flags(const struct given *given, unsigned flags)
{
    if (given->of['r'])
        return flags & ~(unsigned)(BLK_OPEN_RDWR | BLK_OPEN_RESIZE);
    return given->of['w'] ? flags | BLK_OPEN_RDWR | BLK_OPEN_RESIZE : flags;
}

static int do_reopen(const struct command *self, struct io *io, int argc, char **argv)
{
    struct given given;
    int first, switches = 0;
    if (!flags_parse(self, argc, argv, &given, &first))
        return -EINVAL;
    for (int i = 0; i < given.count; i++)
        switches += given.all[i].letter == 'r' || given.all[i].letter == 'w';
    if (switches > 1) {
        complain("Only one -r/-w option may be given");
        return -EINVAL;
    }
    if (given.of['c'] && !image_cache_valid(given.of['c']))
        return -EINVAL;
    if (first < argc)
        return command_usage(self);
    json_t *options;
    if (!take_options(&given, &options))
        return -EINVAL;
    if (!agree(&given, options)) {
        json_decref(options);
        return -EINVAL;
    }
    aio_wait(io->aio);
    int r = image_reopen(io->image, options, given.of['c'], new_flags(&given, io->image->flags));
    if (!io->image->top) {
        image_close(io->image);
        io->image = NULL;
    }
    return r;
}

static const struct flag reopen_flags[] = {
    { 'r', false, "read-only from now on" },
    { 'w', false, "writable from now on" },
    { 'c', true, "another cache mode" },
    { 'o', true, "other options of the driver, as of open" },
    { 0, false, NULL },
};

const struct command cmd_reopen = {
    .name = "reopen",
    .args = "[(-r|-w)] [-c cache] [-o options]",
    .summary = "reopens an image with new options",
    .text = " Closes the image and opens it with other options.\n"
            "\n"
            " Example:\n"
            " 'reopen -o discard=ignore' - discards no longer reach the file\n"
            "\n",
    .flags = reopen_flags,
    .min = 0,
    .max = -1,
    .needs = NEEDS_IMAGE,
    .run = do_reopen,
};
