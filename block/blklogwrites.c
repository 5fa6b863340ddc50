/* Filter: records every write, zero, discard and flush into a log, in the format of dm-log-writes.
 *
 * The log is a second child: a superblock, then for each operation a sector that says what and
 * where, then the data. Replaying it up to any point gives what the disk below held at that point; the
 * power-cut tests build all their images from it.
 *
 * An operation is logged after it was done and before its caller hears of it: what a flush covers stands in front of
 * the flush.
 *
 * Threads: `lock` guards the place in the log. Entries are written outside it, each at its own place.
 * Source: drivers/md/dm-log-writes.c and Documentation/admin-guide/device-mapper/log-writes.rst of Linux.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/round.h"
#include "block/driver_leaves.h"
#include "filter.h"

#define MAGIC   UINT64_C(0x6a736677736872)
#define VERSION 1

enum entry_flag { ENTRY_FLUSH = 1, ENTRY_FUA = 2, ENTRY_DISCARD = 4 };

struct log_options {
    uint64_t sector_size, super_interval;
    bool append;
};

struct log_state {
    struct blk_node *log;
    uint32_t sector; /* bytes */
    uint64_t interval;

    pthread_mutex_t lock;
    /* under lock */
    uint64_t next; /* sector of the log */
    uint64_t entries;
};

#define AT(m) .at = offsetof(struct log_options, m)

static const struct opt_def log_options[] = {
    { .name = "log-sector-size",
      .type = OPT_SIZE,
      AT(sector_size),
      .def = "512",
      .min = 512,
      .max = 8 << 20,
      .help = "unit of the log" },
    { .name = "log-super-update-interval",
      .type = OPT_NUMBER,
      AT(super_interval),
      .def = "4096",
      .min = 1,
      .help = "entries between updates of the log's superblock" },
    { .name = "log-append",
      .type = OPT_BOOL,
      AT(append),
      .def = "off",
      .help = "continue the log that is there" },
    OPT_END,
};

/* ---- the log -------------------------------------------------------------------------------------- */

static int write_super(struct log_state *s, uint64_t entries)
{
    _cleanup_free_ uint8_t *b = calloc(1, s->sector);
    if (!b)
        return -ENOMEM;
    store_le64(b, MAGIC);
    store_le64(b + 8, VERSION);
    store_le64(b + 16, entries);
    store_le32(b + 24, s->sector);
    return blk_write(s->log, 0, b, s->sector, 0);
}

/* A number in what the format leaves empty of each entry, so that logs of several nodes can be merged. */
static _Atomic uint64_t next_order = 1;

/* One entry: iov NULL and data_len > 0 means that much of zeroes. */
static int append(struct log_state *s, uint64_t off, uint64_t len, uint64_t flags,
                  const struct iovec *iov, int iovcnt, uint64_t data_len)
{
    uint64_t at, number, order;
    _cleanup_free_ uint8_t *b = calloc(1, s->sector);
    if (!b)
        return -ENOMEM;
    {
        LOCK_SCOPE(&s->lock);
        at = s->next;
        s->next += 1 + div_round_up(data_len, s->sector);
        number = ++s->entries;
        order = atomic_fetch_add(&next_order, 1);
    }
    store_le64(b, off / s->sector);
    store_le64(b + 8, len / s->sector);
    store_le64(b + 16, flags);
    store_le64(b + 24, data_len);
    store_le64(b + 32, order);
    int ret = blk_write(s->log, at * s->sector, b, s->sector, 0);
    if (ret == 0 && iov)
        ret = blk_writev(s->log, (at + 1) * s->sector, iov, iovcnt, 0);
    else if (ret == 0 && data_len)
        ret = blk_zero(s->log, (at + 1) * s->sector, data_len, 0);
    if (ret == 0 && number % s->interval == 0)
        ret = write_super(s, number);
    return ret;
}

/* Where an earlier log ends. */
static int find_end(struct log_state *s, struct error **err)
{
    uint8_t b[32];
    int ret = blk_read(s->log, 0, b, sizeof(b), 0);

    if (ret < 0 || load_le64(b) != MAGIC || load_le32(b + 24) != s->sector)
        return error_set(err, EINVAL, "%s: there is no log of %u-byte sectors to append to",
                         blk_filename(s->log), s->sector);
    s->entries = load_le64(b + 16);
    for (uint64_t i = 0; i < s->entries; i++) {
        ret = blk_read(s->log, s->next * s->sector, b, sizeof(b), 0);
        uint64_t data = load_le64(b + 24);
        if (ret < 0 || data > blk_size(s->log))
            return error_set(err, EINVAL, "%s: the log is damaged at entry %llu",
                             blk_filename(s->log), (unsigned long long)i);
        s->next += 1 + (load_le64(b + 16) & ENTRY_DISCARD ? 0 : div_round_up(data, s->sector));
    }
    return 0;
}

/* ---- operations ------------------------------------------------------------------------------------- */

static int log_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                       uint64_t len, unsigned flags)
{
    int ret = blk_writev(filter_below(n), off, iov, iovcnt, flags);
    if (ret < 0)
        return ret;
    return append(node_state(n), off, len, flags & BLK_FUA ? ENTRY_FUA : 0, iov, iovcnt, len);
}

static int log_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    int ret = blk_zero(filter_below(n), off, len, flags);
    if (ret < 0)
        return ret;
    return append(node_state(n), off, len, flags & BLK_FUA ? ENTRY_FUA : 0, NULL, 0, len);
}

static int log_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    int ret = blk_discard(filter_below(n), off, len);
    if (ret < 0)
        return ret;
    return append(node_state(n), off, len, ENTRY_DISCARD, NULL, 0, 0);
}

static int log_flush(struct blk_node *n)
{
    struct log_state *s = node_state(n);
    uint64_t entries;
    int ret = blk_flush(filter_below(n));

    if (ret == 0)
        ret = append(s, 0, 0, ENTRY_FLUSH, NULL, 0, 0);
    if (ret < 0)
        return ret;
    {
        LOCK_SCOPE(&s->lock);
        entries = s->entries;
    }
    ret = write_super(s, entries);
    return ret < 0 ? ret : blk_flush(s->log);
}

static int log_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct log_options *o = options;
    struct log_state *s = node_state(n);

    if (!is_pow2(o->sector_size))
        return error_set(err, EINVAL, "log-sector-size %llu is not a power of two",
                         (unsigned long long)o->sector_size);
    s->log = node_child(n, EDGE_SECOND);
    s->sector = (uint32_t)o->sector_size;
    s->interval = o->super_interval;
    s->next = 1;
    int ret = 0;
    if (o->append)
        ret = find_end(s, err);
    else if (node_writable(n) && (ret = write_super(s, 0)) < 0)
        error_set(err, -ret, "%s: could not write the log: %s", blk_filename(s->log),
                  strerror(-ret));
    if (ret < 0)
        return ret;
    pthread_mutex_init(&s->lock, NULL);
    node_limits(n)->align = s->sector; /* the log knows whole sectors only */
    filter_adopt(n);
    return 0;
}

static int log_close(struct blk_node *n, struct error **err)
{
    struct log_state *s = node_state(n);
    int ret = node_writable(n) ? write_super(s, s->entries) : 0;

    if (ret < 0)
        error_set(err, -ret, "%s: could not write the log: %s", blk_filename(s->log),
                  strerror(-ret));
    pthread_mutex_destroy(&s->lock);
    return ret;
}

const struct driver blklogwrites_driver = {
    .name = "blklogwrites",
    .kind = BLK_FILTER,
    .flags = DRIVER_PARALLEL | DRIVER_GROWS,
    .state_size = sizeof(struct log_state),
    .options = log_options,
    .options_size = sizeof(struct log_options),
    .second_edge = "log",
    .open = log_open,
    .close = log_close,
    .preadv = filter_preadv,
    .pwritev = log_pwritev,
    .zero = log_zero,
    .discard = log_discard,
    .extents = filter_extents,
    .flush = log_flush,
    .resize = filter_resize,
};
