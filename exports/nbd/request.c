/* Requests: read from the client, judged, answered at once or handed over. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "block/block.h"
#include "internal.h"

enum {
    SHORT_WRITE = 32 << 10,
    SLOW_NS = 2000000,       /* an inline write that took longer has waited for something */
    PATIENCE_NS = 100000000, /* then the pool gets them for so long */
};

/* A request as it came. */
struct wire {
    uint64_t cookie, offset, length;
    uint16_t type, flags;
};

/* ---- reading -------------------------------------------------------------------------------------- */

/* 1: decoded, 0: more is needed, -EPROTO: the client does not speak the protocol. */
static int decode(const struct conn *c, const uint8_t *data, size_t len, struct wire *w)
{
    bool extended = c->style == REPLY_EXTENDED;

    if (len >= 4 && load_be32(data) != (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC))
        return -EPROTO;
    if (len < (size_t)(extended ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES))
        return 0;
    w->flags = load_be16(data + 4);
    w->type = load_be16(data + 6);
    w->cookie = load_be64(data + 8);
    w->offset = load_be64(data + 16);
    w->length = extended ? load_be64(data + 24) : load_be32(data + 24);
    return 1;
}

/* So many bytes follow the header. */
static uint64_t payload(const struct conn *c, const struct wire *w)
{
    if (w->type == NBD_CMD_WRITE)
        return w->length;
    return c->style == REPLY_EXTENDED && (w->flags & NBD_CMD_FLAG_PAYLOAD_LEN) ? w->length : 0;
}

static bool changes(uint16_t type)
{
    return type == NBD_CMD_WRITE || type == NBD_CMD_TRIM || type == NBD_CMD_WRITE_ZEROES;
}

static unsigned known_flags(const struct conn *c, uint16_t type)
{
    unsigned f = NBD_CMD_FLAG_FUA; /* allowed everywhere, without meaning for most */

    if (type == NBD_CMD_READ && c->style != REPLY_SIMPLE)
        f |= NBD_CMD_FLAG_DF;
    if (type == NBD_CMD_WRITE && c->style == REPLY_EXTENDED)
        f |= NBD_CMD_FLAG_PAYLOAD_LEN;
    if (type == NBD_CMD_WRITE_ZEROES)
        f |= NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    if (type == NBD_CMD_BLOCK_STATUS)
        f |= NBD_CMD_FLAG_REQ_ONE;
    return f;
}

/* 0, or what is wrong with it: a positive errno. */
static int judge(const struct conn *c, const struct wire *w)
{
    uint64_t size = blk_size(c->export->node);
    bool moves_data = w->type == NBD_CMD_READ || w->type == NBD_CMD_WRITE;

    if (w->type > NBD_CMD_BLOCK_STATUS || w->type == NBD_CMD_DISC)
        return EINVAL;
    if (w->flags & ~known_flags(c, w->type))
        return EINVAL;
    if (w->type == NBD_CMD_WRITE && c->style == REPLY_EXTENDED &&
        !(w->flags & NBD_CMD_FLAG_PAYLOAD_LEN))
        return EINVAL;
    if (changes(w->type) && c->export->read_only)
        return EPERM;
    if (w->type == NBD_CMD_FLUSH)
        return 0;
    if (moves_data && w->length > MAX_REQUEST)
        return EINVAL;
    if (w->offset > size || w->length > size - w->offset)
        return w->type == NBD_CMD_WRITE || w->type == NBD_CMD_WRITE_ZEROES ? ENOSPC : EINVAL;
    if (w->type == NBD_CMD_BLOCK_STATUS && (!c->contexts || w->length == 0))
        return EINVAL;
    return 0;
}

/* Memory is short for everybody: who holds some already waits, who holds none gets an error for a large request. */
static bool too_much(const struct conn *c, uint64_t bytes)
{
    return bytes > CONN_SMALL && atomic_load(&c->server->held) + bytes > c->server->config.memory;
}

/* ---- answering at once ------------------------------------------------------------------------------- */

static struct piece piece_of(const struct conn *c, const struct wire *w)
{
    return (struct piece){
        .export = c->export,
        .style = c->style,
        .contexts = c->contexts,
        .cookie = w->cookie,
        .request_offset = w->offset,
        .offset = w->offset,
        .length = w->length,
        .type = w->type,
        .flags = w->flags,
        .done = true,
    };
}

static void say(struct conn *c, const struct wire *w, int error)
{
    struct piece p = piece_of(c, w);
    uint8_t *room = out_room(c, REPLY_ROOM);

    c->loop->out_len += error ? reply_error(&p, error, room) : reply_ok(&p, room);
}

/* 0 or -errno; -EAGAIN: it would wait. */
static int read_now(struct conn *c, const struct wire *w)
{
    struct piece p = piece_of(c, w);
    size_t len;

    if (w->length > INLINE_MAX || too_much(c, serve_room(&p)))
        return -EAGAIN;
    uint8_t *room = out_room(c, serve_room(&p));
    if (!room)
        return -EAGAIN;
    int ret = serve_read(&p, BLK_NOWAIT, room, &len);
    if (ret == 0)
        c->loop->out_len += len;
    return ret;
}

/* Writes into a page cache seldom wait, but cannot say beforehand whether they would: they are tried until one was
 * slow, and then left to the pool for a while. */
static int write_now(struct conn *c, const struct wire *w, const uint8_t *data)
{
    struct piece p = piece_of(c, w);

    if (w->length > INLINE_MAX || (w->flags & NBD_CMD_FLAG_FUA))
        return -EAGAIN;
    int64_t start = clock_ns();
    if (start < atomic_load_explicit(&c->export->patience, memory_order_relaxed))
        return -EAGAIN;
    int ret = serve_change(&p, data, 0);
    int64_t end = clock_ns();
    if (end - start > SLOW_NS)
        atomic_store_explicit(&c->export->patience, end + PATIENCE_NS, memory_order_relaxed);
    return ret == -EAGAIN ? -EIO : ret;
}

/* Whether it has been answered. */
static bool answered(struct conn *c, const struct wire *w, int ret)
{
    if (ret == -EAGAIN)
        return false;
    serve_count(c->export, w->type, w->length, ret);
    if (ret < 0 || w->type == NBD_CMD_WRITE)
        say(c, w, -ret);
    return true;
}

/* ---- handing over ------------------------------------------------------------------------------------- */

static struct request *request_new(const struct wire *w, bool cut, unsigned pieces)
{
    struct request *r = malloc(sizeof(*r));

    if (r)
        *r = (struct request){ .cookie = w->cookie,
                               .offset = w->offset,
                               .length = w->length,
                               .type = w->type,
                               .flags = w->flags,
                               .cut = cut,
                               .pieces = pieces };
    return r;
}

static size_t held_for(const struct conn *c, const struct wire *w, uint64_t length)
{
    struct piece p = piece_of(c, w);
    p.length = length;
    return serve_room(&p);
}

/* Everything but writes: cut where the replies may be cut. */
static void hand_over(struct conn *c, const struct wire *w)
{
    bool cut = w->type == NBD_CMD_READ && c->style != REPLY_SIMPLE &&
               !(w->flags & NBD_CMD_FLAG_DF) && w->length > PIECE;
    unsigned count = cut ? (unsigned)((w->length + PIECE - 1) / PIECE) : 1, made = 0;
    struct job *jobs[MAX_REQUEST / PIECE];
    struct request *r = request_new(w, cut, count);

    if (!r || too_much(c, held_for(c, w, w->type == NBD_CMD_READ ? w->length : 0))) {
        free(r);
        say(c, w, ENOMEM);
        return;
    }
    for (uint64_t at = 0; made < count; made++, at += PIECE) {
        uint64_t len = cut ? MIN(w->length - at, (uint64_t)PIECE) : w->length;
        jobs[made] = job_new(c, r, w->offset + at, len, 0, held_for(c, w, len));
        if (!jobs[made])
            break;
    }
    if (made < count) {
        while (made > 0)
            job_free(jobs[--made]);
        free(r);
        say(c, w, ENOMEM);
        return;
    }
    for (unsigned i = 0; i < count; i++)
        job_submit(jobs[i]);
}

/* ---- writes, whose data arrives bit by bit --------------------------------------------------------------- */

static bool next_piece(struct conn *c)
{
    struct request *r = c->writing;
    uint64_t len = MIN(r->length - c->writing_at, (uint64_t)PIECE);

    c->filling = job_new(c, r, r->offset + c->writing_at, len, len, 0);
    c->filled = 0;
    return c->filling;
}

/* A write whose data has arrived bit by bit, but is all there now. */
static bool filled_now(struct conn *c, const struct job *j)
{
    const struct request *r = j->request;
    struct wire w = { r->cookie, r->offset, r->length, r->type, r->flags };

    return answered(c, &w, write_now(c, &w, j->data));
}

void request_filled(struct conn *c, size_t n)
{
    struct job *j = c->filling;

    c->filled += n;
    c->writing_at += n;
    if (c->filled < j->length)
        return;
    struct request *r = c->writing;
    c->filling = NULL;
    if (c->writing_at == r->length)
        c->writing = NULL; /* the jobs' from now on */
    if (!r->cut && filled_now(c, j)) {
        job_free(j);
        free(r);
    } else {
        job_submit(j);
    }
}

static size_t fill(struct conn *c, const uint8_t *data, size_t len)
{
    if (!c->filling && !next_piece(c)) {
        conn_close(c); /* half a request cannot be taken back */
        return len;
    }
    size_t n = (size_t)MIN((uint64_t)len, c->filling->length - c->filled);
    memcpy(c->filling->data + c->filled, data, n);
    request_filled(c, n);
    return n;
}

void request_drop(struct conn *c)
{
    struct request *r = c->writing;

    if (c->filling)
        job_free(c->filling);
    c->writing = NULL;
    c->filling = NULL;
    if (!r)
        return;
    uint64_t count = (r->length + PIECE - 1) / PIECE, submitted = c->writing_at / PIECE;
    LOCK_SCOPE(&c->lock);
    r->pieces -= (unsigned)(count - submitted);
    if (r->pieces == 0)
        free(r); /* else the last job does */
}

static void begin_write(struct conn *c, const struct wire *w)
{
    unsigned count = (unsigned)((w->length + PIECE - 1) / PIECE);

    if (!too_much(c, MIN(w->length, (uint64_t)PIECE)))
        c->writing = request_new(w, count > 1, count);
    c->writing_at = 0;
    if (!c->writing) {
        say(c, w, ENOMEM);
        c->skip = w->length;
    }
}

/* ---- one after the other ---------------------------------------------------------------------------------- */

/* `data` is what there is of its payload; how much of that was taken. */
static size_t perform(struct conn *c, const struct wire *w, const uint8_t *data, size_t len)
{
    uint64_t follows = payload(c, w);
    int error = judge(c, w);

    if (error) {
        serve_count(c->export, w->type, 0, -error);
        say(c, w, error);
        c->skip = follows;
        return 0;
    }
    if (w->type == NBD_CMD_WRITE) {
        if (w->length == 0) {
            say(c, w, 0);
        } else if (len >= w->length && answered(c, w, write_now(c, w, data))) {
            return w->length;
        } else {
            begin_write(c, w);
        }
        return 0;
    }
    if (w->length == 0 && w->type != NBD_CMD_FLUSH) {
        if (w->type == NBD_CMD_READ && c->style != REPLY_SIMPLE) {
            struct piece p = piece_of(c, w);
            c->loop->out_len += reply_end(&p, out_room(c, REPLY_ROOM));
        } else {
            say(c, w, 0);
        }
    } else if (w->type != NBD_CMD_READ || !answered(c, w, read_now(c, w))) {
        hand_over(c, w);
    }
    return 0;
}

/* The data of a short write is in part still to come: then it is read together, and written where it lies. */
static bool waits_for_data(const struct conn *c, const struct wire *w, size_t len)
{
    size_t header = c->style == REPLY_EXTENDED ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES;
    return w->type == NBD_CMD_WRITE && w->length <= SHORT_WRITE && len - header < w->length;
}

/* N2 */
static void pause_if_full(struct conn *c)
{
    LOCK_SCOPE(&c->lock);
    uint64_t held = c->held + c->loop->out_len;
    c->paused = held > CONN_LIMIT ||
                (held > CONN_SMALL && atomic_load(&c->server->held) > c->server->config.memory);
}

size_t request_parse(struct conn *c, const uint8_t *data, size_t len)
{
    size_t at = 0;

    while (at < len && c->state == CONN_REQUESTS && !c->paused) {
        struct wire w;
        if (c->skip > 0) {
            size_t n = (size_t)MIN(c->skip, (uint64_t)(len - at));
            c->skip -= n;
            at += n;
        } else if (c->writing) {
            at += fill(c, data + at, len - at);
        } else {
            int ret = decode(c, data + at, len - at, &w);
            if (ret == 0)
                break;
            if (ret > 0 && waits_for_data(c, &w, len - at))
                break;
            if (ret < 0 || w.type == NBD_CMD_DISC) {
                c->eof = true; /* what is under way is answered still */
                return len;
            }
            at += c->style == REPLY_EXTENDED ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES;
            at += perform(c, &w, data + at, len - at);
        }
        pause_if_full(c);
    }
    return at;
}
