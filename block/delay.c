/* Filter: every request takes longer; for tests that look at what happens meanwhile.
 *
 * A read, write (zero and discard are writes) or flush first sleeps its fixed time, and up to jitter-ns more, drawn
 * from a generator with a seed: the same requests in the same order wait the same. To stop at a named
 * point instead, put blkdebug in its place.
 */
#include <errno.h>
#include <stdatomic.h>
#include <time.h>

#include "block/driver_leaves.h"
#include "filter.h"

#define SECOND UINT64_C(1000000000)
#define MOST   (3600 * SECOND)

struct delay_options {
    uint64_t read, write, flush, jitter, seed;
};

struct delay_state {
    uint64_t read, write, flush, jitter; /* nanoseconds */
    _Atomic uint64_t random;             /* the next draw's number */
};

#define TIME(key, m, what)                                                                     \
    {                                                                                          \
        .name = key, .type = OPT_NUMBER, .at = offsetof(struct delay_options, m), .max = MOST, \
        .def = "0", .help = "nanoseconds " what                                                \
    }

static const struct opt_def delay_options[] = {
    TIME("read-ns", read, "that a read waits"),
    TIME("write-ns", write, "that a write, zero or discard waits"),
    TIME("flush-ns", flush, "that a flush waits"),
    TIME("jitter-ns", jitter, "that each may wait longer at random"),
    { .name = "seed",
      .type = OPT_NUMBER,
      .at = offsetof(struct delay_options, seed),
      .def = "1",
      .help = "of the jitter" },
    OPT_END,
};

/* splitmix64: good numbers from a counter, without a lock. */
static uint64_t draw(struct delay_state *s)
{
    uint64_t z = atomic_fetch_add(&s->random, UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void wait_for(struct delay_state *s, uint64_t ns)
{
    if (s->jitter)
        ns += draw(s) % (s->jitter + 1);
    struct timespec left = { .tv_sec = (time_t)(ns / SECOND), .tv_nsec = (long)(ns % SECOND) };
    while (ns && nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
}

static int delay_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                        uint64_t len, unsigned flags)
{
    struct delay_state *s = node_state(n);

    if ((flags & BLK_NOWAIT) && (s->read || s->jitter))
        return -EAGAIN;
    wait_for(s, s->read);
    return filter_preadv(n, off, iov, iovcnt, len, flags);
}

static int delay_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                         uint64_t len, unsigned flags)
{
    struct delay_state *s = node_state(n);

    if ((flags & BLK_NOWAIT) && (s->write || s->jitter))
        return -EAGAIN;
    wait_for(s, s->write);
    return filter_pwritev(n, off, iov, iovcnt, len, flags);
}

static int delay_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct delay_state *s = node_state(n);

    wait_for(s, s->write);
    return filter_zero(n, off, len, flags);
}

static int delay_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct delay_state *s = node_state(n);

    wait_for(s, s->write);
    return filter_discard(n, off, len);
}

static int delay_flush(struct blk_node *n)
{
    struct delay_state *s = node_state(n);

    wait_for(s, s->flush);
    return blk_flush(filter_below(n));
}

static int delay_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct delay_options *o = options;
    struct delay_state *s = node_state(n);

    (void)err;
    s->read = o->read;
    s->write = o->write;
    s->flush = o->flush;
    s->jitter = o->jitter;
    atomic_init(&s->random, o->seed);
    filter_adopt(n);
    return 0;
}

const struct driver delay_driver = {
    .name = "delay",
    .kind = BLK_FILTER,
    .flags = DRIVER_PARALLEL | DRIVER_GROWS,
    .state_size = sizeof(struct delay_state),
    .options = delay_options,
    .options_size = sizeof(struct delay_options),
    .open = delay_open,
    .preadv = delay_preadv,
    .pwritev = delay_pwritev,
    .zero = delay_zero,
    .discard = delay_discard,
    .extents = filter_extents,
    .flush = delay_flush,
    .resize = filter_resize,
};
