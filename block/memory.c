/* Leaf: a disk in memory, gone when it is closed. Chunks exist where something was written.
 *
 * 1. A chunk that is missing reads as zeroes.
 * 2. The two-level table never moves: the top is made by open, a second-level table once made stays
 *    until close. Both are followed without a lock.
 * 3. A chunk pointer, and the bytes behind it, are used under the chunk's lock, which is one of
 * LOCKS by number: shared to read, exclusively to write, make or drop.
 * 4. `used` counts chunks; it is raised before one is made, so that the limit holds with many
 * writers.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "base/macros.h"
#include "base/round.h"
#include "block/driver.h"
#include "block/driver_leaves.h"

enum {
    CHUNK = 64 << 10,
    SECOND = 8192, /* chunks of one second-level table */
    TOP = 131072,  /* second-level tables */
    LOCKS = 64,
};
#define MOST ((uint64_t)CHUNK * SECOND * TOP) /* 64 TiB */

typedef uint8_t *chunk_table[SECOND];

struct memory_state {
    chunk_table *_Atomic *top;
    uint64_t limit; /* chunks */
    _Atomic uint64_t used;
    struct rwlock lock[LOCKS];
};

struct memory_options {
    uint64_t size, limit;
};

static const struct opt_def memory_options[] = {
    { .name = "size",
      .type = OPT_SIZE,
      .at = offsetof(struct memory_options, size),
      .def = "0",
      .max = MOST,
      .help = "size at the beginning; writing past the end makes it larger" },
    { .name = "limit",
      .type = OPT_SIZE,
      .at = offsetof(struct memory_options, limit),
      .def = "1G",
      .min = CHUNK,
      .help = "memory it may take; more is refused as a full disk" },
    OPT_END,
};

/* ---- chunks --------------------------------------------------------------------------------- */

/* Where the pointer of a chunk stands; NULL when its table is missing and not to be made, or there
 * is no memory for it. */
static uint8_t **slot_of(struct memory_state *s, uint64_t chunk, bool make)
{
    chunk_table *_Atomic *at = &s->top[chunk / SECOND];
    chunk_table *table = atomic_load(at);

    if (!table && make) {
        chunk_table *fresh = calloc(1, sizeof(*fresh));

        if (!fresh)
            return NULL;
        if (atomic_compare_exchange_strong(at, &table, fresh))
            table = fresh;
        else
            free(fresh); /* another thread was first; its table is in `table` now */
    }
    return table ? &(*table)[chunk % SECOND] : NULL;
}

/* Under the chunk's lock, exclusively. */
static int make_chunk(struct memory_state *s, uint8_t **slot)
{
    if (atomic_fetch_add(&s->used, 1) >= s->limit) {
        atomic_fetch_sub(&s->used, 1);
        return -ENOSPC;
    }
    *slot = calloc(1, CHUNK);
    if (!*slot) {
        atomic_fetch_sub(&s->used, 1);
        return -ENOMEM;
    }
    return 0;
}

static void drop_chunk(struct memory_state *s, uint8_t **slot)
{
    if (*slot) {
        free(*slot);
        *slot = NULL;
        atomic_fetch_sub(&s->used, 1);
    }
}

static struct rwlock *lock_of(struct memory_state *s, uint64_t chunk)
{
    return &s->lock[chunk % LOCKS];
}

/* The part of a request that lies in one chunk. */
struct part {
    uint64_t chunk;
    size_t at, len;
};

static struct part part_at(uint64_t off, uint64_t len)
{
    size_t at = (size_t)(off % CHUNK);

    return (struct part){ .chunk = off / CHUNK,
                          .at = at,
                          .len = (size_t)MIN(len, (uint64_t)(CHUNK - at)) };
}

/* ---- data ----------------------------------------------------------------------------------- */

static void read_part(struct memory_state *s, const struct part *p, struct iov_cursor *to)
{
    RDLOCK_SCOPE(lock_of(s, p->chunk));
    uint8_t **slot = slot_of(s, p->chunk, false);

    if (slot && *slot)
        iov_write(to, *slot + p->at, p->len);
    else
        iov_fill(to, 0, p->len);
}

static int write_part(struct memory_state *s, const struct part *p, struct iov_cursor *from)
{
    WRLOCK_SCOPE(lock_of(s, p->chunk));
    uint8_t **slot = slot_of(s, p->chunk, true);
    int r = !slot ? -ENOMEM : *slot ? 0 : make_chunk(s, slot);

    if (r == 0)
        iov_read(from, *slot + p->at, p->len);
    return r;
}

static void zero_part(struct memory_state *s, const struct part *p)
{
    WRLOCK_SCOPE(lock_of(s, p->chunk));
    uint8_t **slot = slot_of(s, p->chunk, false);

    if (!slot || !*slot)
        return;
    if (p->len == CHUNK)
        drop_chunk(s, slot);
    else
        memset(*slot + p->at, 0, p->len);
}

static int memory_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                         uint64_t len, unsigned flags)
{
    struct iov_cursor to = iov_begin(iov, iovcnt);

    (void)flags;
    while (len > 0) {
        struct part p = part_at(off, len);

        if (off >= MOST) {
            iov_fill(&to, 0, len);
            return 0;
        }
        read_part(node_state(n), &p, &to);
        off += p.len;
        len -= p.len;
    }
    return 0;
}

static int memory_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                          uint64_t len, unsigned flags)
{
    struct iov_cursor from = iov_begin(iov, iovcnt);
    int r = off + len > MOST ? -EFBIG : 0;

    (void)flags;
    while (r == 0 && len > 0) {
        struct part p = part_at(off, len);

        r = write_part(node_state(n), &p, &from);
        off += p.len;
        len -= p.len;
    }
    return r;
}

/* Drops whole second-level tables' worth of nothing at once, so that a sparse range costs little.
 */
static void zero_range(struct memory_state *s, uint64_t off, uint64_t len)
{
    while (len > 0 && off < MOST) {
        struct part p = part_at(off, len);
        uint64_t step = p.len;

        if (atomic_load(&s->top[p.chunk / SECOND])) {
            zero_part(s, &p);
        } else {
            uint64_t span = (uint64_t)SECOND * CHUNK;

            step = MIN(len, span - off % span);
        }
        off += step;
        len -= step;
    }
}

static int memory_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    (void)flags;
    if (off + len > MOST)
        return -EFBIG;
    zero_range(node_state(n), off, len);
    return 0;
}

static int memory_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    zero_range(node_state(n), off, len);
    return 0;
}

static int memory_flush(struct blk_node *n)
{
    (void)n;
    return 0;
}

static bool has_chunk(struct memory_state *s, uint64_t chunk)
{
    RDLOCK_SCOPE(lock_of(s, chunk));
    uint8_t **slot = slot_of(s, chunk, false);

    return slot && *slot;
}

static int memory_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                          struct blk_extent *out)
{
    struct memory_state *s = node_state(n);
    bool data = off < MOST && has_chunk(s, off / CHUNK);
    uint64_t end = align_down(off, CHUNK) + CHUNK;

    (void)flags;
    /* As far as it is of one kind, a second-level table at most. */
    while (end < off + len && end < MOST && end - off < (uint64_t)SECOND * CHUNK &&
           has_chunk(s, end / CHUNK) == data)
        end += CHUNK;
    out->length = MIN(len, end - off);
    out->flags = BLK_EXT_ALLOCATED | BLK_EXT_HOST | (data ? BLK_EXT_DATA : BLK_EXT_ZERO);
    out->host = n;
    out->host_offset = off;
    return 0;
}

/* ---- control -------------------------------------------------------------------------------- */

static int memory_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc,
                         struct error **err)
{
    (void)prealloc;
    if (size > MOST) {
        return error_set(err, EFBIG, "a memory disk has at most %" PRIu64 " bytes, not %" PRIu64,
                         MOST, size);
    }
    if (size < blk_size(n))
        zero_range(node_state(n), size, blk_size(n) - size);
    return 0;
}

static int64_t memory_actual_size(struct blk_node *n)
{
    struct memory_state *s = node_state(n);

    return (int64_t)(atomic_load(&s->used) * CHUNK);
}

static int memory_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct memory_options *o = options;
    struct memory_state *s = node_state(n);

    s->top = calloc(TOP, sizeof(*s->top));
    if (!s->top)
        return error_set(err, ENOMEM, "out of memory");
    s->limit = o->limit / CHUNK;
    for (unsigned i = 0; i < LOCKS; i++)
        rwlock_init(&s->lock[i]);
    node_set_size(n, o->size);
    node_set_filename(n, "memory");
    return 0;
}

static int memory_close(struct blk_node *n, struct error **err)
{
    struct memory_state *s = node_state(n);

    (void)err;
    for (unsigned i = 0; i < TOP; i++) {
        chunk_table *table = atomic_load(&s->top[i]);

        for (unsigned j = 0; table && j < SECOND; j++)
            free((*table)[j]);
        free(table);
    }
    free(s->top);
    for (unsigned i = 0; i < LOCKS; i++)
        rwlock_destroy(&s->lock[i]);
    return 0;
}

const struct driver memory_driver = {
    .name = "memory",
    .kind = BLK_PROTOCOL,
    .flags = DRIVER_PARALLEL | DRIVER_GROWS | DRIVER_NO_CHILD | DRIVER_UNMAP_ZERO | DRIVER_NEW_ZERO,
    .state_size = sizeof(struct memory_state),
    .options = memory_options,
    .options_size = sizeof(struct memory_options),
    .open = memory_open,
    .close = memory_close,
    .preadv = memory_preadv,
    .pwritev = memory_pwritev,
    .zero = memory_zero,
    .discard = memory_discard,
    .extents = memory_extents,
    .flush = memory_flush,
    .resize = memory_resize,
    .actual_size = memory_actual_size,
};
