/* The calling thread moves the bytes through the descriptor, in order; a pool reads or writes the
 * image. Between them go SLOTS buffers in a ring: memory stays bounded whatever comes.
 *
 * A slot is with a worker (BUSY) or not (IDLE). Slots are taken round robin, so that waiting for
 * slot i to be IDLE again bounds the work under way; stream_out writes them in the order they were
 * handed out, which is the order of the bytes.
 */
#include "stream.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/cores.h"
#include "base/iszero.h"
#include "base/macros.h"
#include "base/pool.h"
#include "base/round.h"

#include "block/block.h"

#include "concat.h"
#include "img.h"
#include "watch.h"

enum {
    SLOTS = 16,
    SLOT_SIZE = 2 << 20,
    GRAIN = 4096, /* of zero detection */
};
#define GROW_STEP (UINT64_C(64) << 20)

enum slot_state { IDLE, BUSY };

struct ring;

struct slot {
    struct ring *ring;
    struct pool_job job;
    uint8_t *buf;
    uint64_t offset;
    size_t len;
    bool zero;             /* out: nothing but zeroes, the buffer was not filled */
    bool writing;          /* copy: the source was read */
    enum slot_state state; /* under ring->lock */
};

struct ring {
    const struct stream *stream;
    struct pool *pool;
    struct blk_limits limits;
    pthread_mutex_t lock;
    pthread_cond_t change;
    int result; /* under lock: the first failure */
    uint64_t failed_at;
    bool failed_writing;
    struct slot slots[SLOTS];
    struct timespec began;
};

static void give_back(struct slot *slot, int result)
{
    struct ring *ring = slot->ring;
    LOCK_SCOPE(&ring->lock);
    slot->state = IDLE;
    if (result < 0 && ring->result == 0) {
        ring->result = result;
        ring->failed_at = slot->offset;
        ring->failed_writing = slot->writing;
    }
    pthread_cond_broadcast(&ring->change);
}

static int wait_while_busy(struct slot *slot)
{
    struct ring *ring = slot->ring;
    LOCK_SCOPE(&ring->lock);
    while (slot->state == BUSY)
        pthread_cond_wait(&ring->change, &ring->lock);
    return ring->result;
}

static void submit(struct slot *slot, void (*fn)(void *))
{
    slot->state = BUSY; /* the worker does not know it yet */
    slot->job = (struct pool_job){ .fn = fn, .arg = slot };
    pool_submit(slot->ring->pool, &slot->job);
}

static int ring_fill(struct ring *ring, const struct stream *s)
{
    *ring = (struct ring){
        .stream = s,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .change = PTHREAD_COND_INITIALIZER,
    };
    if (s->node)
        blk_get_limits(s->node, &ring->limits);
    clock_gettime(CLOCK_MONOTONIC, &ring->began);
    for (int i = 0; i < SLOTS; i++) {
        ring->slots[i].ring = ring;
        ring->slots[i].buf = aligned_alloc(4096, SLOT_SIZE);
        if (!ring->slots[i].buf)
            return -ENOMEM;
    }
    unsigned workers = s->workers ? s->workers : usable_cores();
    return pool_create(&ring->pool, MIN(workers, (unsigned)SLOTS), "stream");
}

/* Waits for all that is under way. */
static void ring_settle(struct ring *ring)
{
    for (int i = 0; i < SLOTS; i++)
        wait_while_busy(&ring->slots[i]);
}

static void ring_end(struct ring *ring)
{
    pool_destroy(ring->pool);
    for (int i = 0; i < SLOTS; i++)
        free(ring->slots[i].buf);
}

/* 0, or a negative errno after a complaint and with nothing to end. */
static int ring_begin(struct ring *ring, const struct stream *s)
{
    int r = ring_fill(ring, s);
    if (r == 0)
        return 0;
    complain("cannot start: %s", strerror(-r));
    ring_end(ring);
    return r;
}

static int cannot_read(const struct ring *ring)
{
    uint64_t at;
    struct blk_node *node = concat_at(ring->stream->sources, ring->failed_at, &at);
    complain("cannot read '%s' at offset %" PRIu64 ": %s", blk_filename(node), at,
             strerror(-ring->result));
    return ring->result;
}

static int cannot_write(const struct ring *ring)
{
    complain("cannot write '%s' at offset %" PRIu64 ": %s", blk_filename(ring->stream->node),
             ring->failed_at, strerror(-ring->result));
    return ring->result;
}

static void keep_rate(const struct stream *s, const struct timespec *began)
{
    if (!s->rate_limit)
        return;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double spent =
        (double)(now.tv_sec - began->tv_sec) + (double)(now.tv_nsec - began->tv_nsec) / 1e9;
    double wait = (double)s->moved / (double)s->rate_limit - spent;
    if (wait > 0) {
        struct pollfd stop = { .fd = watch_stop_fd(), .events = POLLIN };
        poll(&stop, 1, wait > 1000 ? 1000000 : (int)(wait * 1000));
    }
}

/* ---- in ------------------------------------------------------------------------------------ */

static int write_zero_run(const struct stream *s, uint64_t offset, uint64_t len)
{
    return s->skip_zeroes ? 0 : blk_zero(s->node, offset, len, BLK_MAY_UNMAP);
}

static int write_slot(const struct ring *ring, const struct slot *slot)
{
    const struct stream *s = ring->stream;
    size_t grain = s->compress ? (size_t)ring->limits.max_compressed : GRAIN;
    for (size_t at = 0; at < slot->len;) {
        size_t left = slot->len - at;
        bool zero = false;
        size_t run = left;
        if (s->detect_zeroes)
            run = zero_run(slot->buf + at, left, grain, &zero);
        if (!zero && s->compress)
            run = MIN(run, grain);
        int r = zero ? write_zero_run(s, slot->offset + at, run)
                     : blk_write(s->node, slot->offset + at, slot->buf + at, run,
                                 s->compress ? BLK_COMPRESSED : 0);
        if (r < 0)
            return r;
        at += run;
    }
    return 0;
}

static void write_job(void *arg)
{
    struct slot *slot = arg;
    int r = write_slot(slot->ring, slot);
    give_back(slot, r);
}

/* Fills the buffer as far as the descriptor gives; 0 at its end, -ECANCELED when a signal came. */
static ssize_t read_full(int fd, uint8_t *buf, size_t len)
{
    size_t got = 0;
    while (got < len) {
        struct pollfd fds[] = {
            { .fd = fd, .events = POLLIN },
            { .fd = watch_stop_fd(), .events = POLLIN },
        };
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return -errno;
        if (watch_stopped())
            return -ECANCELED;
        if (!fds[0].revents)
            continue;
        ssize_t n = read(fd, buf + got, len - got);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        got += (size_t)n;
    }
    return (ssize_t)got;
}

static int resize(const struct stream *s, uint64_t size)
{
    struct error *err = NULL;
    int r = blk_resize(s->node, size, BLK_PREALLOC_OFF, &err);
    if (r < 0)
        complain_error(&err, NULL);
    return r;
}

static int make_room(const struct stream *s, uint64_t end, uint64_t *size)
{
    if (end <= *size)
        return 0;
    if (!s->grow) {
        complain("the stream is longer than '%s', which has %" PRIu64 " bytes",
                 blk_filename(s->node), *size);
        return -ENOSPC;
    }
    uint64_t wanted = round_up(end, GROW_STEP);
    int r = resize(s, wanted);
    if (r == 0)
        *size = wanted;
    return r;
}

/* Hands slot after slot to the pool until the stream ends. Complains about what is not a worker's
 * failure. */
static int pump_in(struct ring *ring, struct stream *s, int fd)
{
    uint64_t size = blk_size(s->node);
    for (unsigned i = 0; s->moved < s->length; i = (i + 1) % SLOTS) {
        struct slot *slot = &ring->slots[i];
        if (wait_while_busy(slot) < 0)
            return 0; /* the caller looks at ring->result */
        ssize_t n =
            read_full(fd, slot->buf, (size_t)MIN((uint64_t)SLOT_SIZE, s->length - s->moved));
        if (n < 0) {
            if (n != -ECANCELED)
                complain("cannot read the stream: %s", strerror((int)-n));
            return (int)n;
        }
        if (n == 0)
            return 0;
        /* Disks have whole sectors, and what is compressed has whole clusters. */
        uint64_t sectors = round_up((uint64_t)n, 512);
        slot->offset = s->offset + s->moved;
        int r = make_room(s, slot->offset + sectors, &size);
        if (r < 0)
            return r;
        uint64_t padded = s->compress ? round_up(sectors, ring->limits.max_compressed) : sectors;
        slot->len = (size_t)MIN(padded, size - slot->offset);
        memset(slot->buf + n, 0, slot->len - (size_t)n);
        submit(slot, write_job);
        s->moved += sectors;
        watch_done(s->moved);
        keep_rate(s, &ring->began);
    }
    return 0;
}

int stream_in(struct stream *s, int fd)
{
    struct ring ring;
    int r = ring_begin(&ring, s);
    if (r < 0)
        return r;
    uint64_t before = blk_size(s->node);
    r = pump_in(&ring, s, fd);
    ring_settle(&ring);
    if (r == 0 && ring.result < 0)
        r = cannot_write(&ring);
    uint64_t end = s->offset + s->moved;
    if (s->keep)
        end = MAX(end, before);
    if (r == 0 && s->grow && blk_size(s->node) != end)
        r = resize(s, end);
    ring_end(&ring);
    return r;
}

/* ---- out ----------------------------------------------------------------------------------- */

static int read_slot(struct slot *slot)
{
    return concat_read(slot->ring->stream->sources, slot->offset, slot->buf, slot->len,
                       &slot->zero);
}

static void read_job(void *arg)
{
    struct slot *slot = arg;
    give_back(slot, read_slot(slot));
}

static int write_full(int fd, const uint8_t *buf, size_t len)
{
    while (len > 0) {
        struct pollfd fds[] = {
            { .fd = fd, .events = POLLOUT },
            { .fd = watch_stop_fd(), .events = POLLIN },
        };
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return -errno;
        if (watch_stopped())
            return -ECANCELED;
        if (!fds[0].revents)
            continue;
        ssize_t n = write(fd, buf, len);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return -errno;
        buf += n;
        len -= (size_t)n;
    }
    return 0;
}

/* In a regular file that ends here, zeroes can stay a hole. */
static bool can_seek(int fd)
{
    struct stat st;
    off_t at = lseek(fd, 0, SEEK_CUR);
    return at >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && at >= st.st_size;
}

static int put_zeroes(int fd, size_t len, bool seekable)
{
    static const uint8_t zeroes[64 << 10];
    if (seekable)
        return lseek(fd, (off_t)len, SEEK_CUR) < 0 ? -errno : 0;
    int r = 0;
    while (len > 0 && r == 0) {
        size_t n = MIN(len, sizeof(zeroes));
        r = write_full(fd, zeroes, n);
        len -= n;
    }
    return r;
}

static int pump_out(struct ring *ring, struct stream *s, int fd, bool seekable)
{
    uint64_t asked = 0;
    unsigned in = 0, out = 0; /* counted without end; slot i % SLOTS */
    while (s->moved < s->length) {
        while (asked < s->length && in - out < SLOTS) {
            struct slot *slot = &ring->slots[in % SLOTS];
            slot->offset = s->offset + asked;
            slot->len = (size_t)MIN((uint64_t)SLOT_SIZE, s->length - asked);
            submit(slot, read_job);
            asked += slot->len;
            in++;
        }
        struct slot *slot = &ring->slots[out % SLOTS];
        int r = wait_while_busy(slot);
        if (r < 0)
            return cannot_read(ring);
        r = slot->zero ? put_zeroes(fd, slot->len, seekable) : write_full(fd, slot->buf, slot->len);
        if (r < 0) {
            if (r != -ECANCELED)
                complain("cannot write the stream: %s", strerror(-r));
            return r;
        }
        out++;
        s->moved += slot->len;
        watch_done(s->moved);
        keep_rate(s, &ring->began);
    }
    return 0;
}

int stream_out(struct stream *s, int fd)
{
    struct ring ring;
    int r = ring_begin(&ring, s);
    if (r < 0)
        return r;
    bool seekable = can_seek(fd);
    r = pump_out(&ring, s, fd, seekable);
    ring_settle(&ring);
    /* A hole at the end only comes to be when the file is made that long. */
    if (r == 0 && seekable && ftruncate(fd, lseek(fd, 0, SEEK_CUR)) < 0) {
        r = -errno;
        complain("cannot write the stream: %s", strerror(errno));
    }
    ring_end(&ring);
    return r;
}

/* ---- copy ---------------------------------------------------------------------------------- */

static void copy_job(void *arg)
{
    struct slot *slot = arg;
    const struct ring *ring = slot->ring;
    int r = read_slot(slot);
    slot->writing = r == 0;
    if (r == 0 && slot->zero)
        r = write_zero_run(ring->stream, slot->offset, slot->len);
    else if (r == 0)
        r = write_slot(ring, slot);
    give_back(slot, r);
}

int stream_copy(struct stream *s)
{
    struct ring ring;
    int r = ring_begin(&ring, s);
    if (r < 0)
        return r;
    for (unsigned i = 0; r == 0 && s->moved < s->length; i = (i + 1) % SLOTS) {
        struct slot *slot = &ring.slots[i];
        if (wait_while_busy(slot) < 0)
            break;
        if (watch_stopped())
            r = -ECANCELED;
        slot->offset = s->moved;
        slot->len = (size_t)MIN((uint64_t)SLOT_SIZE, s->length - s->moved);
        if (r == 0)
            submit(slot, copy_job);
        s->moved += slot->len;
        watch_done(s->moved);
        keep_rate(s, &ring.began);
    }
    ring_settle(&ring);
    if (r == 0 && ring.result < 0)
        r = ring.failed_writing ? cannot_write(&ring) : cannot_read(&ring);
    ring_end(&ring);
    return r;
}

/* ---- kept ---------------------------------------------------------------------------------- */

int stream_save(int in, int out)
{
    _cleanup_free_ uint8_t *buf = malloc(SLOT_SIZE);
    int r = buf ? 0 : -ENOMEM;
    ssize_t n = 1;
    while (r == 0 && n > 0) {
        n = read_full(in, buf, SLOT_SIZE);
        r = n < 0 ? (int)n : write_full(out, buf, (size_t)n);
    }
    if (r < 0 && r != -ECANCELED)
        complain("cannot keep the stream: %s", strerror(-r));
    return r;
}

/* ---- through ------------------------------------------------------------------------------- */

int stream_through(struct stream *s, int in, int out)
{
    _cleanup_free_ uint8_t *buf = malloc(SLOT_SIZE);
    struct timespec began;
    clock_gettime(CLOCK_MONOTONIC, &began);
    int r = buf ? 0 : -ENOMEM;
    while (r == 0) {
        ssize_t n = read_full(in, buf, SLOT_SIZE);
        if (n <= 0) {
            r = (int)n;
            break;
        }
        size_t sectors = round_up((uint64_t)n, 512);
        memset(buf + n, 0, sectors - (size_t)n);
        r = write_full(out, buf, sectors);
        s->moved += sectors;
        watch_done(s->moved);
        keep_rate(s, &began);
    }
    if (r < 0 && r != -ECANCELED)
        complain("cannot pass the stream through: %s", strerror(-r));
    return r;
}
