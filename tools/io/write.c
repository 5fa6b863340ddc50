/* write, writev. */
#include <errno.h>
#include <stdio.h>

#include "image.h"
#include "io.h"
#include "number.h"
#include "pieces.h"
#include "report.h"
#include "request.h"
#include "rw.h"

/* Letters that exclude each other. */
static bool consistent(const struct given *given)
{
    const char *const *of = given->of;
    const char *wrong = NULL;
    if (of['b'] && of['z'])
        wrong = "-b and -z cannot be specified at the same time";
    else if (of['f'] && (of['b'] || of['c']))
        wrong = "-f and -b or -c cannot be specified at the same time";
    else if (of['n'] && !of['z'])
        wrong = "-n requires -z to be specified";
    else if (of['u'] && !of['z'])
        wrong = "-u requires -z to be specified";
    else if (!!of['z'] + !!of['P'] + !!of['s'] > 1)
        wrong = "Only one of -z, -P, and -s can be specified at the same time";
    if (wrong)
        puts(wrong);
    return !wrong;
}

static unsigned zero_flags(const struct given *given)
{
    return (given->of['f'] ? BLK_FUA : 0) | (given->of['u'] ? BLK_MAY_UNMAP : 0) |
           (given->of['n'] ? BLK_NO_FALLBACK : 0);
}

static int finish(const struct given *given, int r, const struct stopwatch *watch, int64_t offset,
                  int64_t length)
{
    if (r < 0)
        return rw_failed("write", r);
    if (!given->of['q'])
        report("wrote", watch, offset, length, given->of['C']);
    return 0;
}

static int write_bytes(const struct given *given, struct io *io, int64_t offset, int64_t length,
                       int pattern)
{
    struct blk_node *node = io->image->top;
    _cleanup_buffer_ struct buffer buf = { 0 };
    if (!buffer_make(&buf, (size_t)length, pattern, io->misalign))
        return -ENOMEM;
    if (given->of['s'] && !buffer_fill_from(&buf, given->of['s']))
        return -EINVAL;
    if (given->of['b'] && !rw_vm_aligned(offset, length))
        return -EINVAL;
    struct iovec iov = { buf.at, buf.len };
    struct stopwatch watch = stopwatch_start();
    int r;
    if (given->of['b'])
        r = rw_vm_result(blk_vm_state_write(io->image->self, (uint64_t)offset, buf.at, buf.len));
    else if (given->of['c'])
        r = request_write_compressed(node, offset, buf.at, buf.len);
    else
        r = request_writev(node, offset, &iov, 1, given->of['f'] ? BLK_FUA : 0);
    stopwatch_stop(&watch);
    return finish(given, r, &watch, offset, length);
}

static int do_write(const struct command *self, struct io *io, int argc, char **argv)
{
    struct given given;
    int first, pattern;
    int64_t offset, length;
    if (!flags_parse(self, argc, argv, &given, &first) || !rw_pattern(&given, FILL_WRITE, &pattern))
        return -EINVAL;
    if (first != argc - 2)
        return command_usage(self);
    if (!consistent(&given))
        return -EINVAL;
    int64_t limit = given.of['n'] ? INT64_MAX : MAX_REQUEST;
    if (!rw_range(argv, first, " without -n", limit, &offset, &length))
        return -EINVAL;
    if (!given.of['z'])
        return write_bytes(&given, io, offset, length, pattern);
    struct stopwatch watch = stopwatch_start();
    int r = request_zero(io->image->top, offset, (uint64_t)length, zero_flags(&given));
    stopwatch_stop(&watch);
    return finish(&given, r, &watch, offset, length);
}

static const struct flag write_flags[] = {
    { 'b', false, "the VM state rather than the disk" },
    { 'c', false, "store it compressed" },
    FLAG_FUA,
    { 'n', false, "with -z, fail rather than write zeroes" },
    { 'p', false, "ignored, for old scripts" },
    FLAG_PATTERN_WRITE,
    { 's', true, "a file with the bytes to write, over and over" },
    FLAG_MACHINE,
    FLAG_QUIET,
    { 'u', false, "with -z, the space may be given back" },
    { 'z', false, "zeroes, by the operation that has no data" },
    FLAG_END,
};

const struct command cmd_write = {
    .name = "write",
    .alias = "w",
    .args = "[-bcCfnquz] [-P pattern | -s source_file] off len",
    .summary = "writes a number of bytes at a specified offset",
    .text = " Writes len bytes at off; 0xcd, if nothing else is said.\n"
            "\n"
            " Example:\n"
            " 'write -P 0x11 512 1k' - two sectors full of 0x11\n"
            "\n",
    .flags = write_flags,
    .min = 2,
    .max = -1,
    .needs = NEEDS_IMAGE | NEEDS_WRITE,
    .run = do_write,
};

static int do_writev(const struct command *self, struct io *io, int argc, char **argv)
{
    struct given given;
    int first, pattern;
    int64_t offset;
    if (!flags_parse(self, argc, argv, &given, &first) || !rw_pattern(&given, FILL_WRITE, &pattern))
        return -EINVAL;
    if (first > argc - 2)
        return command_usage(self);
    if (!number_size(argv[first], &offset))
        return -EINVAL;
    first++;
    _cleanup_pieces_ struct pieces p = { .iov = NULL };
    if (!pieces_make(&p, argv + first, argc - first, pattern, io->misalign))
        return -EINVAL;
    struct stopwatch watch = stopwatch_start();
    int r = request_writev(io->image->top, offset, p.iov, p.iovcnt, given.of['f'] ? BLK_FUA : 0);
    stopwatch_stop(&watch);
    return r < 0 ? rw_failed("writev", r) : finish(&given, 0, &watch, offset, (int64_t)p.buf.len);
}

static const struct flag writev_flags[] = {
    FLAG_PATTERN_WRITE, FLAG_MACHINE, FLAG_FUA, FLAG_QUIET, FLAG_END,
};

const struct command cmd_writev = {
    .name = "writev",
    .args = "[-Cfq] [-P pattern] off len [len..]",
    .summary = "writes a number of bytes at a specified offset",
    .text = " Writes at off from as many buffers as there are lengths.\n"
            "\n"
            " Example:\n"
            " 'writev 512 1k 1k' - two kilobytes with one request\n"
            "\n",
    .flags = writev_flags,
    .min = 2,
    .max = -1,
    .needs = NEEDS_IMAGE | NEEDS_WRITE,
    .run = do_writev,
};
