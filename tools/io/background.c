/* aio_read, aio_write, aio_flush. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "aio.h"
#include "image.h"
#include "io.h"
#include "number.h"
#include "pieces.h"
#include "rw.h"

static struct aio_request *request_new(enum aio_kind kind, struct io *io, const struct given *given)
{
    struct aio_request *r = calloc(1, sizeof(*r));
    if (!r) {
        complain("out of memory");
        return NULL;
    }
    r->kind = kind;
    r->node = io->image->top;
    r->pattern = -1;
    r->quiet = given->of['q'];
    r->machine = given->of['C'];
    r->dump = given->of['v'];
    return r;
}

/* Takes "off len [len..]" of the words and sends it. */
static int send_pieces(struct aio_request *r, struct io *io, char **argv, int count, int fill)
{
    struct pieces p;
    if (!number_size(argv[0], &r->offset) ||
        !pieces_make(&p, argv + 1, count - 1, fill, io->misalign)) {
        aio_request_free(r);
        return -EINVAL;
    }
    r->buf = p.buf;
    r->iov = p.iov;
    r->iovcnt = p.iovcnt;
    r->length = (int64_t)p.buf.len;
    return aio_submit(&io->aio, r) ? 0 : -ENOMEM;
}

/* -i: a request that fails before it begins, for those who count failures. */
static int refuse(const char *what)
{
    printf("injecting invalid %s request\n", what);
    return 0;
}

static int do_aio_read(const struct command *self, struct io *io, int argc, char **argv)
{
    struct given given;
    int first, pattern;
    if (!flags_parse(self, argc, argv, &given, &first) || !rw_pattern(&given, -1, &pattern))
        return -EINVAL;
    if (given.of['i'])
        return refuse("read");
    if (first > argc - 2)
        return command_usage(self);
    struct aio_request *r = request_new(AIO_READ, io, &given);
    if (!r)
        return -ENOMEM;
    r->pattern = pattern;
    return send_pieces(r, io, argv + first, argc - first, FILL_READ);
}

static const struct flag read_flags[] = {
    FLAG_MACHINE, FLAG_PATTERN_READ, { 'i', false, "an invalid request" },
    FLAG_DUMP,    FLAG_QUIET,        FLAG_END,
};

const struct command cmd_aio_read = {
    .name = "aio_read",
    .args = "[-Ciqv] [-P pattern] off len [len..]",
    .summary = "asynchronously reads a number of bytes",
    .text = " Begins to read at off and does not wait. What comes of it is told when aio_flush,\n"
            " sleep or close wait, or at the end, and does not count for the exit code.\n"
            "\n"
            " Example:\n"
            " 'aio_read -v 512 1k 1k' - shows two kilobytes, later\n"
            "\n",
    .flags = read_flags,
    .min = 2,
    .max = -1,
    .needs = NEEDS_IMAGE,
    .run = do_aio_read,
};

static int send_zero(const struct given *given, struct io *io, char **argv, int count)
{
    if (count != 2) {
        puts("-z supports only a single length parameter");
        return -EINVAL;
    }
    struct aio_request *r = request_new(AIO_ZERO, io, given);
    if (!r)
        return -ENOMEM;
    if (!number_size(argv[0], &r->offset) || !number_size(argv[1], &r->length)) {
        aio_request_free(r);
        return -EINVAL;
    }
    r->flags = (given->of['f'] ? BLK_FUA : 0) | (given->of['u'] ? BLK_MAY_UNMAP : 0);
    return aio_submit(&io->aio, r) ? 0 : -ENOMEM;
}

static int do_aio_write(const struct command *self, struct io *io, int argc, char **argv)
{
    struct given given;
    int first, pattern;
    if (!flags_parse(self, argc, argv, &given, &first) || !rw_pattern(&given, FILL_WRITE, &pattern))
        return -EINVAL;
    if (given.of['i'])
        return refuse("write");
    if (first > argc - 2)
        return command_usage(self);
    if (given.of['z'])
        return send_zero(&given, io, argv + first, argc - first);
    if (given.of['u']) {
        puts("-u requires -z to be specified");
        return -EINVAL;
    }
    struct aio_request *r = request_new(AIO_WRITE, io, &given);
    if (!r)
        return -ENOMEM;
    r->flags = given.of['f'] ? BLK_FUA : 0;
    return send_pieces(r, io, argv + first, argc - first, pattern);
}

static const struct flag write_flags[] = {
    FLAG_PATTERN_WRITE,
    FLAG_MACHINE,
    FLAG_FUA,
    { 'i', false, "an invalid request" },
    FLAG_QUIET,
    { 'u', false, "with -z, the space may be given back" },
    { 'z', false, "zeroes, by the operation that has no data" },
    FLAG_END,
};

const struct command cmd_aio_write = {
    .name = "aio_write",
    .args = "[-Cfiquz] [-P pattern] off len [len..]",
    .summary = "asynchronously writes a number of bytes",
    .text = " Begins to write at off and does not wait. What comes of it is told when aio_flush,\n"
            " sleep or close wait, or at the end, and does not count for the exit code.\n"
            "\n"
            " Example:\n"
            " 'aio_write 512 1k 1k' - two kilobytes with one request\n"
            "\n",
    .flags = write_flags,
    .min = 2,
    .max = -1,
    .needs = NEEDS_IMAGE | NEEDS_WRITE,
    .run = do_aio_write,
};

static int do_aio_flush(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)argc;
    (void)argv;
    aio_wait(io->aio);
    return 0;
}

const struct command cmd_aio_flush = {
    .name = "aio_flush",
    .summary = "completes all outstanding aio requests",
    .needs = NEEDS_IMAGE,
    .run = do_aio_flush,
};
