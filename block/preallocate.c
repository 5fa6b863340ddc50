/* Filter: a file that grows is given its space ahead, in large pieces.
 *
 * Stands between a file and the format that lives in it. The node's size is what was written; the file
 * below is longer by what lies ready, which reads as zeroes, and is cut back to the node's size at close. After a
 * crash the file is too long, and nothing worse.
 *
 * Where space cannot be had ahead (a full disk, a file system that cannot allocate), writes go on without.
 *
 * Threads: `lock` is held while the file is made longer; whoever writes within what is ready does not take it.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "block/driver_leaves.h"
#include "filter.h"

struct ahead_options {
    uint64_t align, size;
};

struct ahead_state {
    uint64_t align, size;
    bool active; /* the file below grows, and may be written */

    pthread_mutex_t lock;
    /* changed under lock, read by anyone */
    _Atomic uint64_t ready;   /* where the file below ends */
    _Atomic uint64_t give_up; /* no new attempt before writes reach this */
};

static const struct opt_def ahead_options[] = {
    { .name = "prealloc-align",
      .type = OPT_SIZE,
      .at = offsetof(struct ahead_options, align),
      .def = "1M",
      .min = 512,
      .max = UINT64_C(1) << 40,
      .help = "the file's length is a multiple of this while it is open" },
    { .name = "prealloc-size",
      .type = OPT_SIZE,
      .at = offsetof(struct ahead_options, size),
      .def = "128M",
      .max = UINT64_C(1) << 50,
      .help = "how much is allocated ahead" },
    OPT_END,
};

/* A write or zero will end at `end`. */
static void get_ready(struct blk_node *n, uint64_t end)
{
    struct ahead_state *s = node_state(n);
    _cleanup_error_ struct error *err = NULL;

    if (!s->active || end <= atomic_load(&s->ready) || end < atomic_load(&s->give_up))
        return;
    LOCK_SCOPE(&s->lock);
    if (end <= atomic_load(&s->ready) || end > INT64_MAX / 2 - s->size - s->align)
        return;
    uint64_t want = round_up(end + s->size, s->align);
    if (blk_size(filter_below(n)) >= want ||
        blk_resize(filter_below(n), want, BLK_PREALLOC_FALLOC, &err) < 0)
        atomic_store(&s->give_up, want);
    else
        atomic_store(&s->ready, want);
}

static int ahead_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                         uint64_t len, unsigned flags)
{
    struct ahead_state *s = node_state(n);

    if ((flags & BLK_NOWAIT) && s->active && off + len > atomic_load(&s->ready))
        return -EAGAIN;
    get_ready(n, off + len);
    return filter_pwritev(n, off, iov, iovcnt, len, flags);
}

static int ahead_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    get_ready(n, off + len);
    return filter_zero(n, off, len, flags);
}

/* Alone: the gate is closed. */
static int ahead_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc,
                        struct error **err)
{
    struct ahead_state *s = node_state(n);

    /* What lies ready is not of the kind that was asked for: begin at the old end. */
    int ret = 0;
    if (s->active && blk_size(filter_below(n)) > blk_size(n))
        ret = blk_resize(filter_below(n), blk_size(n), BLK_PREALLOC_OFF, err);
    if (ret == 0)
        ret = filter_resize(n, size, prealloc, err);
    atomic_store(&s->ready, blk_size(filter_below(n)));
    atomic_store(&s->give_up, 0);
    return ret;
}

static int ahead_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct ahead_options *o = options;
    struct ahead_state *s = node_state(n);

    if (o->align % 512)
        return error_set(err, EINVAL, "prealloc-align: %llu is not a multiple of 512",
                         (unsigned long long)o->align);
    s->align = o->align;
    s->size = o->size;
    s->active = node_writable(n) && node_grows(filter_below(n));
    atomic_init(&s->ready, blk_size(filter_below(n)));
    pthread_mutex_init(&s->lock, NULL);
    filter_adopt(n);
    return 0;
}

static int ahead_close(struct blk_node *n, struct error **err)
{
    struct ahead_state *s = node_state(n);
    int ret = 0;

    if (s->active && blk_size(filter_below(n)) > blk_size(n))
        ret = blk_resize(filter_below(n), blk_size(n), BLK_PREALLOC_OFF, err);
    pthread_mutex_destroy(&s->lock);
    return ret;
}

const struct driver preallocate_driver = {
    .name = "preallocate",
    .kind = BLK_FILTER,
    .flags = DRIVER_PARALLEL | DRIVER_GROWS,
    .state_size = sizeof(struct ahead_state),
    .options = ahead_options,
    .options_size = sizeof(struct ahead_options),
    .open = ahead_open,
    .close = ahead_close,
    .preadv = filter_preadv,
    .pwritev = ahead_pwritev,
    .zero = ahead_zero,
    .discard = filter_discard,
    .extents = filter_extents,
    .resize = ahead_resize,
};
