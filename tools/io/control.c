/* flush, discard, truncate, length. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "image.h"
#include "io.h"
#include "number.h"
#include "report.h"
#include "request.h"
#include "rw.h"

static int do_flush(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)argc;
    (void)argv;
    int r = blk_flush(io->image->top);
    if (r < 0)
        complain("flush failed: %s", strerror(-r));
    return r;
}

const struct command cmd_flush = {
    .name = "flush",
    .alias = "f",
    .summary = "flush all in-core file state to disk",
    .needs = NEEDS_IMAGE,
    .run = do_flush,
};

static int do_discard(const struct command *self, struct io *io, int argc, char **argv)
{
    struct given given;
    int first;
    int64_t offset, length;
    if (!flags_parse(self, argc, argv, &given, &first))
        return -EINVAL;
    if (first != argc - 2)
        return command_usage(self);
    if (!rw_range(argv, first, "", MAX_REQUEST, &offset, &length))
        return -EINVAL;
    struct stopwatch watch = stopwatch_start();
    int r = request_discard(io->image->top, offset, (uint64_t)length);
    stopwatch_stop(&watch);
    if (r < 0)
        return rw_failed("discard", r);
    if (!given.of['q'])
        report("discard", &watch, offset, length, given.of['C']);
    return 0;
}

static const struct flag discard_flags[] = { FLAG_MACHINE, FLAG_QUIET, FLAG_END };

const struct command cmd_discard = {
    .name = "discard",
    .alias = "d",
    .args = "[-Cq] off len",
    .summary = "discards a number of bytes at a specified offset",
    .text = " Says that nobody needs these bytes any more.\n"
            "\n"
            " Example:\n"
            " 'discard 512 1k' - the second and the third sector\n"
            "\n",
    .flags = discard_flags,
    .min = 2,
    .max = -1,
    .needs = NEEDS_IMAGE | NEEDS_WRITE,
    .run = do_discard,
};

static bool preallocation(const char *name, enum blk_prealloc *out)
{
    static const char *const names[] = {
        [BLK_PREALLOC_OFF] = "off",
        [BLK_PREALLOC_METADATA] = "metadata",
        [BLK_PREALLOC_FALLOC] = "falloc",
        [BLK_PREALLOC_FULL] = "full",
    };
    *out = BLK_PREALLOC_OFF;
    for (unsigned i = 0; name && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (enum blk_prealloc)i;
            return true;
        }
    }
    if (name)
        complain("Invalid preallocation mode '%s'", name);
    return !name;
}

static int do_truncate(const struct command *self, struct io *io, int argc, char **argv)
{
    struct given given;
    int first;
    int64_t size;
    enum blk_prealloc prealloc;
    if (!flags_parse(self, argc, argv, &given, &first) || !preallocation(given.of['m'], &prealloc))
        return -EINVAL;
    if (first >= argc)
        return command_usage(self);
    if (!number_size(argv[first], &size))
        return -EINVAL;
    struct error *err = NULL;
    int r = blk_resize(io->image->top, (uint64_t)size, prealloc, &err);
    if (r < 0)
        complain_error(&err, NULL);
    return r;
}

static const struct flag truncate_flags[] = {
    { 'm', true, "how new space is allocated: off, metadata, falloc or full" },
    FLAG_END,
};

const struct command cmd_truncate = {
    .name = "truncate",
    .alias = "t",
    .args = "[-m prealloc_mode] off",
    .summary = "truncates the current file at the given offset",
    .flags = truncate_flags,
    .min = 1,
    .max = 3,
    .needs = NEEDS_IMAGE | NEEDS_WRITE,
    .run = do_truncate,
};

static int do_length(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)argc;
    (void)argv;
    puts(number_human((double)request_size(io->image->top)).s);
    return 0;
}

const struct command cmd_length = {
    .name = "length",
    .alias = "l",
    .summary = "gets the length of the current file",
    .needs = NEEDS_IMAGE,
    .run = do_length,
};
