/* Leaf: a disk of any size that swallows writes; for benchmarks, to see what the layers above cost.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/iov.h"
#include "block/driver.h"
#include "block/driver_leaves.h"

struct null_options {
    uint64_t size;
    bool read_zeroes;
    uint64_t latency_ns;
};

/* Set by open, then only read. */
struct null_state {
    bool read_zeroes;
    struct timespec latency;
};

static const struct opt_def null_options[] = {
    { .name = "size",
      .type = OPT_SIZE,
      .at = offsetof(struct null_options, size),
      .def = "1G",
      .max = INT64_MAX,
      .help = "size of the disk" },
    { .name = "read-zeroes",
      .type = OPT_BOOL,
      .at = offsetof(struct null_options, read_zeroes),
      .def = "off",
      .help = "reads give zeroes; off: reads leave the buffer as it is" },
    { .name = "latency-ns",
      .type = OPT_NUMBER,
      .at = offsetof(struct null_options, latency_ns),
      .def = "0",
      .max = UINT64_C(1000000000000),
      .help = "how long each request takes, in nanoseconds" },
    OPT_END,
};

/* "null-co://": there is nothing else to say in a name. */
static json_t *null_describe(const char *filename, struct error **err)
{
    size_t n = strcspn(filename, ":");

    if (strcmp(filename + n, "://")) {
        error_set(err, EINVAL, "%s: the only file name of this driver is '%.*s://'", filename,
                  (int)n, filename);
        return NULL;
    }
    return json_pack("{s:s%}", "driver", filename, n);
}

static int null_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct null_options *o = options;
    struct null_state *s = node_state(n);

    (void)err;
    s->read_zeroes = o->read_zeroes;
    s->latency.tv_sec = (time_t)(o->latency_ns / 1000000000);
    s->latency.tv_nsec = (long)(o->latency_ns % 1000000000);
    node_set_size(n, o->size);
    node_set_filename(n, "null-co://");
    return 0;
}

static bool waits(const struct null_state *s)
{
    return s->latency.tv_sec || s->latency.tv_nsec;
}

static int wait_latency(struct blk_node *n)
{
    const struct null_state *s = node_state(n);
    struct timespec left = s->latency;

    while (waits(s) && nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
    return 0;
}

static int null_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                       uint64_t len, unsigned flags)
{
    const struct null_state *s = node_state(n);

    (void)off;
    if ((flags & BLK_NOWAIT) && waits(s))
        return -EAGAIN;
    if (s->read_zeroes) {
        struct iov_cursor at = iov_begin(iov, iovcnt);

        iov_fill(&at, 0, len);
    }
    return wait_latency(n);
}

static int null_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                        uint64_t len, unsigned flags)
{
    (void)off;
    (void)iov;
    (void)iovcnt;
    (void)len;
    if ((flags & BLK_NOWAIT) && waits(node_state(n)))
        return -EAGAIN;
    return wait_latency(n);
}

static int null_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    (void)off;
    (void)len;
    (void)flags;
    return wait_latency(n);
}

static int null_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    (void)off;
    (void)len;
    return wait_latency(n);
}

static int null_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                        struct blk_extent *out)
{
    const struct null_state *s = node_state(n);

    (void)flags;
    out->length = len;
    out->flags = BLK_EXT_ALLOCATED | BLK_EXT_HOST | (s->read_zeroes ? BLK_EXT_ZERO : BLK_EXT_DATA);
    out->host = n;
    out->host_offset = off;
    return 0;
}

static int null_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc,
                       struct error **err)
{
    (void)n;
    (void)size;
    (void)prealloc;
    (void)err;
    return 0;
}

static int64_t null_actual_size(struct blk_node *n)
{
    (void)n;
    return 0;
}

#define NULL_MEMBERS                                                                            \
    .kind = BLK_PROTOCOL, .flags = DRIVER_PARALLEL | DRIVER_NO_CHILD,                           \
    .state_size = sizeof(struct null_state), .options = null_options,                           \
    .options_size = sizeof(struct null_options), .describe = null_describe, .open = null_open,  \
    .preadv = null_preadv, .pwritev = null_pwritev, .zero = null_zero, .discard = null_discard, \
    .extents = null_extents, .flush = wait_latency, .resize = null_resize,                      \
    .actual_size = null_actual_size

const struct driver null_co_driver = { .name = "null-co", NULL_MEMBERS };
const struct driver null_aio_driver = { .name = "null-aio", NULL_MEMBERS };
