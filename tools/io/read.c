/* read, readv. */
#include <errno.h>
#include <stdio.h>

#include "image.h"
#include "io.h"
#include "number.h"
#include "pieces.h"
#include "report.h"
#include "request.h"
#include "rw.h"

/* Which part of what was read the pattern is to be found in. */
struct part {
    int pattern; /* -1: nowhere */
    int64_t from, length;
    bool length_given;
};

static bool take_part(const struct given *given, struct part *part)
{
    *part = (struct part){ .pattern = -1, .length_given = given->of['l'] };
    return (!given->of['l'] || number_size(given->of['l'], &part->length)) &&
           rw_pattern(given, -1, &part->pattern) &&
           (!given->of['s'] || number_size(given->of['s'], &part->from));
}

/* Verifies, shows, and tells the figures. */
static int finish(const struct given *given, const struct buffer *buf, const struct part *part,
                  const struct stopwatch *watch, int64_t offset)
{
    int r = 0;
    if (part->pattern >= 0 &&
        !buffer_verify(buf, offset, (size_t)part->from, (size_t)part->length, part->pattern))
        r = -EINVAL;
    if (given->of['q'])
        return r;
    if (given->of['v'])
        buffer_dump(buf, offset);
    report("read", watch, offset, (int64_t)buf->len, given->of['C']);
    return r;
}

static int do_read(const struct command *self, struct io *io, int argc, char **argv)
{
    struct given given;
    struct part part;
    int first;
    int64_t offset, length;
    if (!flags_parse(self, argc, argv, &given, &first) || !take_part(&given, &part))
        return -EINVAL;
    if (first != argc - 2)
        return command_usage(self);
    if (!rw_range(argv, first, "", MAX_REQUEST, &offset, &length))
        return -EINVAL;
    if (part.pattern < 0 && (part.length_given || given.of['s']))
        return command_usage(self);
    if (!part.length_given)
        part.length = length - part.from;
    if (part.length < 0 || part.from > length || part.length > length - part.from) {
        puts("pattern verification range exceeds end of read data");
        return -EINVAL;
    }
    if (given.of['b'] && !rw_vm_aligned(offset, length))
        return -EINVAL;
    _cleanup_buffer_ struct buffer buf = { 0 };
    if (!buffer_make(&buf, (size_t)length, FILL_READ, io->misalign))
        return -ENOMEM;
    struct iovec iov = { buf.at, buf.len };
    struct stopwatch watch = stopwatch_start();
    int r =
        given.of['b']
            ? rw_vm_result(blk_vm_state_read(io->image->self, (uint64_t)offset, buf.at, buf.len))
            : request_readv(io->image->top, offset, &iov, 1);
    stopwatch_stop(&watch);
    return r < 0 ? rw_failed("read", r) : finish(&given, &buf, &part, &watch, offset);
}

static const struct flag read_flags[] = {
    { 'b', false, "the VM state rather than the disk" },
    FLAG_MACHINE,
    { 'l', true, "how many bytes -P looks at (only with -P)" },
    { 'p', false, "ignored, for old scripts" },
    FLAG_PATTERN_READ,
    FLAG_QUIET,
    { 's', true, "how far into what was read -P begins (only with -P)" },
    FLAG_DUMP,
    FLAG_END,
};

const struct command cmd_read = {
    .name = "read",
    .alias = "r",
    .args = "[-abCqv] [-P pattern [-s off] [-l len]] off len",
    .summary = "reads a number of bytes at a specified offset",
    .text = " Reads len bytes at off.\n"
            "\n"
            " Example:\n"
            " 'read -v 512 1k' - shows the second and the third sector\n"
            "\n",
    .flags = read_flags,
    .min = 2,
    .max = -1,
    .needs = NEEDS_IMAGE,
    .run = do_read,
};

static int do_readv(const struct command *self, struct io *io, int argc, char **argv)
{
    struct given given;
    struct part part;
    int first;
    int64_t offset;
    if (!flags_parse(self, argc, argv, &given, &first) || !take_part(&given, &part))
        return -EINVAL;
    if (first > argc - 2)
        return command_usage(self);
    if (!number_size(argv[first], &offset))
        return -EINVAL;
    first++;
    _cleanup_pieces_ struct pieces p = { .iov = NULL };
    if (!pieces_make(&p, argv + first, argc - first, FILL_READ, io->misalign))
        return -EINVAL;
    part.length = (int64_t)p.buf.len;
    struct stopwatch watch = stopwatch_start();
    int r = request_readv(io->image->top, offset, p.iov, p.iovcnt);
    stopwatch_stop(&watch);
    return r < 0 ? rw_failed("readv", r) : finish(&given, &p.buf, &part, &watch, offset);
}

static const struct flag readv_flags[] = {
    FLAG_MACHINE, FLAG_PATTERN_READ, FLAG_DUMP, FLAG_QUIET, FLAG_END,
};

const struct command cmd_readv = {
    .name = "readv",
    .args = "[-Cqv] [-P pattern] off len [len..]",
    .summary = "reads a number of bytes at a specified offset",
    .text = " Reads at off into as many buffers as there are lengths.\n"
            "\n"
            " Example:\n"
            " 'readv -v 512 1k 1k' - shows two kilobytes, read with one request\n"
            "\n",
    .flags = readv_flags,
    .min = 2,
    .max = -1,
    .needs = NEEDS_IMAGE,
    .run = do_readv,
};
