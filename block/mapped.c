/* The core moves the bytes: reading, writing, zeroing, discarding and asking extents of every
 * format, from what its driver says about places.
 *
 * Reading    map_read says where a run is; the run is read from the child, zeroed, decoded, or asked of the
 *            backing node; and so on until the request is done.
 * Writing    write_begin names a place. A place that is published already is just written. New storage
 *            is asked for again under a range reservation; the edges that the guest does not write are
 *            read first (through the old mapping, still in force), everything lands, and only then
 *            write_end publishes the place.
 *
 * Invariants
 *  M1  No lock of a driver is held while guest data moves; a reservation may be.
 *  M2  A WRITE_NEW plan is ended exactly once, whatever happens between.
 *  M3  A request holds at most one reservation.
 *  M4  Storage that a read was mapped to stays as it is until the read has ended: drivers
 *      quarantine what they free until the epoch has passed (gate.h).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "base/iszero.h"
#include "base/macros.h"
#include "base/round.h"
#include "node.h"
#include "slice.h"

static int map(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags, struct mapping *m)
{
    driver_lock(n);
    int ret = n->drv->map_read(n, off, len, flags & (BLK_NOWAIT | MAP_STATUS), m);
    driver_unlock(n);
    return ret;
}

/* ---- reading ------------------------------------------------------------------------------------ */

static int read_child(struct blk_node *child, uint64_t off, struct iov_cursor *at, uint64_t len,
                      unsigned flags)
{
    struct slice s;
    int ret = slice_take(&s, at, len, 0);

    if (ret < 0)
        return ret;
    ret = blk_readv(child, off, s.iov, s.count, flags & BLK_NOWAIT);
    slice_free(&s);
    return ret;
}

/* What no layer down to here decided: the backing node's bytes, zeroes past its end. */
static int read_backing(struct blk_node *n, uint64_t off, struct iov_cursor *at, uint64_t len,
                        unsigned flags)
{
    struct blk_node *backing = n->edge[EDGE_BACKING];
    uint64_t size = backing ? blk_size(backing) : 0;
    uint64_t there = off < size ? MIN(len, size - off) : 0;
    int ret = 0;

    if (there > 0)
        ret = read_child(backing, off, at, there, flags);
    if (ret == 0)
        iov_fill(at, 0, len - there);
    return ret;
}

/* The request takes the whole unit in one piece: it can be decoded in place. */
static bool takes_whole_unit(const struct iov_cursor *at, const struct mapping *m)
{
    return m->length == m->unit_length && at->left > 0 &&
           at->iov->iov_len - at->at >= m->unit_length;
}

static int read_encoded(struct blk_node *n, const struct mapping *m, struct iov_cursor *at,
                        unsigned flags)
{
    bool direct = takes_whole_unit(at, m);
    size_t room = m->encoded_length + (direct ? 0 : m->unit_length);
    uint8_t *in = malloc(room);
    if (!in)
        return -ENOMEM;
    uint8_t *out = direct ? (uint8_t *)at->iov->iov_base + at->at : in + m->encoded_length;

    int ret = blk_read(m->child, m->child_offset, in, m->encoded_length, flags & BLK_NOWAIT);
    if (ret == 0)
        ret = n->drv->decode(n, m, in, m->encoded_length, out, m->unit_length);
    if (ret == 0 && direct)
        iov_skip(at, m->length);
    else if (ret == 0)
        iov_write(at, out + (m->offset - m->unit_offset), m->length);
    free(in);
    return ret;
}

/* Tells the child (if it is a blkdebug node) what comes. */
static void announce(struct blk_node *n, enum blk_event event)
{
    if (n->edge[EDGE_FILE])
        node_event(n->edge[EDGE_FILE], event);
}

static int read_run(struct blk_node *n, const struct mapping *m, struct iov_cursor *at,
                    unsigned flags)
{
    switch (m->kind) {
    case MAP_DATA:
        announce(n, EVENT_READ_AIO);
        return read_child(m->child, m->child_offset, at, m->length, flags);
    case MAP_ZERO:
        iov_fill(at, 0, m->length);
        return 0;
    case MAP_UNALLOCATED:
        if (n->edge[EDGE_BACKING])
            announce(n, EVENT_READ_BACKING_AIO);
        return read_backing(n, m->offset, at, m->length, flags);
    case MAP_ENCODED:
        announce(n, EVENT_READ_COMPRESSED);
        return read_encoded(n, m, at, flags);
    }
    return -EINVAL;
}

int mapped_read(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt, uint64_t len,
                unsigned flags)
{
    struct iov_cursor at = iov_begin(iov, iovcnt);

    while (len > 0) {
        struct mapping m = { .kind = MAP_ZERO };
        int ret = map(n, off, len, flags, &m);
        if (ret == 0 && m.kind == MAP_DATA && m.length == len && at.iov == iov && at.at == 0) {
            announce(n, EVENT_READ_AIO);
            return blk_readv(m.child, m.child_offset, iov, iovcnt, flags & BLK_NOWAIT);
        }
        if (ret == 0)
            ret = read_run(n, &m, &at, flags);
        if (ret < 0)
            return ret;
        off += m.length;
        len -= m.length;
    }
    return 0;
}

/* ---- writing ------------------------------------------------------------------------------------ */

static int begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags, uint64_t encoded,
                 struct write_plan *plan)
{
    *plan = (struct write_plan){ .offset = off };
    driver_lock(n);
    int ret = n->drv->write_begin(n, off, len, flags, encoded, plan);
    driver_unlock(n);
    return ret;
}

static int end(struct blk_node *n, struct write_plan *plan, int result)
{
    driver_lock(n);
    int ret = n->drv->write_end(n, plan, result);
    driver_unlock(n);
    return result < 0 ? result : ret;
}

/* The copied edges of a new unit, before and after what the guest writes. */
struct edges {
    uint8_t *mem;
    struct iovec head, tail; /* iov_len 0: need not be written */
};

/* What the guest reads at [off, off+len) now; zeroes beyond the disk's end. */
static int read_old(struct blk_node *n, uint64_t off, uint8_t *buf, uint64_t len)
{
    uint64_t size = atomic_load(&n->size);
    uint64_t there = off < size ? MIN(len, size - off) : 0;
    struct iovec iov = { .iov_base = buf, .iov_len = there };

    memset(buf + there, 0, len - there);
    return there ? mapped_read(n, off, &iov, 1, there, 0) : 0;
}

static int read_edges(struct blk_node *n, const struct write_plan *plan, struct edges *e)
{
    uint64_t end_of_data = plan->offset + plan->length;
    uint64_t head = plan->offset - plan->unit_offset;
    uint64_t tail = plan->unit_offset + plan->unit_length - end_of_data;

    *e = (struct edges){ 0 };
    if (head + tail == 0)
        return 0;
    announce(n, EVENT_COW_READ);
    e->mem = malloc(head + tail);
    if (!e->mem)
        return -ENOMEM;
    int ret = read_old(n, plan->unit_offset, e->mem, head);
    if (ret == 0)
        ret = read_old(n, end_of_data, e->mem + head, tail);
    if (ret < 0) {
        free(e->mem);
        e->mem = NULL;
        return ret;
    }
    if (!plan->storage_is_zero || !is_zero(e->mem, head))
        e->head = (struct iovec){ e->mem, head };
    if (!plan->storage_is_zero || !is_zero(e->mem + head, tail))
        e->tail = (struct iovec){ e->mem + head, tail };
    return 0;
}

/* Edges and guest bytes in one write. */
static int write_new(struct blk_node *n, struct write_plan *plan, struct iov_cursor *at,
                     unsigned flags)
{
    struct edges e;
    struct slice s;
    int ret = read_edges(n, plan, &e);

    if (ret < 0)
        return end(n, plan, ret);
    ret = slice_take(&s, at, plan->length, 1);
    if (ret == 0) {
        struct iovec *iov = s.iov + 1;
        int count = s.count;
        if (e.head.iov_len) {
            *--iov = e.head;
            count++;
        }
        if (e.tail.iov_len)
            iov[count++] = e.tail;
        announce(n, EVENT_WRITE_AIO);
        ret = blk_writev(plan->child, plan->child_offset - e.head.iov_len, iov, count,
                         flags & BLK_NOWAIT);
        slice_free(&s);
    }
    free(e.mem);
    return end(n, plan, ret);
}

static int write_in_place(struct blk_node *n, const struct write_plan *plan, struct iov_cursor *at,
                          unsigned flags)
{
    struct slice s;
    int ret = slice_take(&s, at, plan->length, 0);

    if (ret < 0)
        return ret;
    announce(n, EVENT_WRITE_AIO);
    ret = blk_writev(plan->child, plan->child_offset, s.iov, s.count, flags & BLK_NOWAIT);
    slice_free(&s);
    return ret;
}

/* Everything under one reservation: nothing else allocates here meanwhile. */
static int write_reserved(struct blk_node *n, uint64_t off, struct iov_cursor *at, uint64_t len,
                          unsigned flags)
{
    struct reservation held;
    uint32_t unit = n->limits.unit;
    int ret = 0;

    reserve_take(&n->reserve, &held, round_down(off, unit), round_up(off + len, unit), false);
    while (len > 0 && ret == 0) {
        struct write_plan plan;
        ret = begin(n, off, len, WB_RESERVED, 0, &plan);
        if (ret < 0)
            break;
        ret = plan.kind == WRITE_NEW ? write_new(n, &plan, at, flags)
                                     : write_in_place(n, &plan, at, flags);
        off += plan.length;
        len -= plan.length;
    }
    reserve_release(&n->reserve, &held);
    return ret;
}

static int write_from(struct blk_node *n, uint64_t off, struct iov_cursor *at, uint64_t len,
                      unsigned flags)
{
    while (len > 0) {
        struct write_plan plan;
        int ret = begin(n, off, len, flags & BLK_NOWAIT, 0, &plan);
        if (ret == WRITE_NEEDS_RESERVATION)
            return flags & BLK_NOWAIT ? -EAGAIN : write_reserved(n, off, at, len, flags);
        if (ret == 0)
            ret = write_in_place(n, &plan, at, flags);
        if (ret < 0)
            return ret;
        off += plan.length;
        len -= plan.length;
    }
    return 0;
}

static int write_units_encoded(struct blk_node *n, uint64_t off, struct iov_cursor *at,
                               uint64_t len);

int mapped_write(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                 uint64_t len, unsigned flags)
{
    struct iov_cursor at = iov_begin(iov, iovcnt);

    if (n->limits.must_encode)
        return flags & BLK_NOWAIT ? -EAGAIN : write_units_encoded(n, off, &at, len);
    return write_from(n, off, &at, len, flags);
}

/* ---- compressed writing ---------------------------------------------------------------------------- */

int mapped_store_encoded(struct blk_node *n, uint64_t off, uint64_t len, const void *enc,
                         uint64_t enc_len)
{
    struct reservation held;
    struct write_plan plan;
    uint32_t unit = n->limits.unit;

    reserve_take(&n->reserve, &held, off, off + unit, false);
    int ret = begin(n, off, len, WB_RESERVED | WB_ENCODED, enc_len, &plan);
    announce(n, EVENT_WRITE_COMPRESSED);
    if (ret == 0)
        ret = end(n, &plan, blk_write(plan.child, plan.child_offset, enc, enc_len, 0));
    reserve_release(&n->reserve, &held);
    return ret;
}

/* One unit, flat and padded with zeroes; len is what of it lies on the disk. */
static int write_unit_compressed(struct blk_node *n, uint64_t off, uint64_t len,
                                 const uint8_t *flat, uint8_t *enc)
{
    uint32_t unit = n->limits.unit;
    int64_t enc_len = n->drv->encode(n, off, flat, unit, enc, (size_t)unit + n->limits.encode_room);

    if (enc_len == -E2BIG) {
        struct iovec iov = { .iov_base = (void *)(uintptr_t)flat, .iov_len = len };
        return mapped_write(n, off, &iov, 1, len, 0);
    }
    return enc_len < 0 ? (int)enc_len : mapped_store_encoded(n, off, len, enc, (uint64_t)enc_len);
}

int mapped_write_compressed(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                            uint64_t len)
{
    struct iov_cursor at = iov_begin(iov, iovcnt);
    uint32_t unit = n->limits.unit;
    int ret = 0;

    if (off % unit)
        return -EINVAL;
    uint8_t *mem = malloc(2 * (size_t)unit + n->limits.encode_room);
    if (!mem)
        return -ENOMEM;
    while (len > 0 && ret == 0) {
        uint64_t piece = MIN(len, (uint64_t)unit);
        const uint8_t *flat = mem;
        if (piece == unit && at.iov->iov_len - at.at >= unit) {
            flat = (const uint8_t *)at.iov->iov_base + at.at;
            iov_skip(&at, unit);
        } else {
            iov_read(&at, mem, piece);
            ret = read_old(n, off + piece, mem + piece, unit - piece);
        }
        if (ret == 0)
            ret = write_unit_compressed(n, off, piece, flat, mem + unit);
        off += piece;
        len -= piece;
    }
    free(mem);
    return ret;
}

/* One unit of an image that holds nothing but encoded ones: what the guest does not write of it comes from
 * the old one, and both are under one reservation. */
static int replace_unit(struct blk_node *n, uint64_t off, struct iov_cursor *at, uint64_t len,
                        uint8_t *mem)
{
    struct reservation held;
    struct write_plan plan;
    uint32_t unit = n->limits.unit;
    uint64_t start = round_down(off, unit), head = off - start;

    reserve_take(&n->reserve, &held, start, start + unit, false);
    int ret = read_old(n, start, mem, head);
    if (ret == 0)
        ret = read_old(n, off + len, mem + head + len, unit - head - len);
    iov_read(at, mem + head, len);
    uint8_t *enc = mem + unit;
    int64_t enc_len = 0;
    if (ret == 0) {
        enc_len = n->drv->encode(n, start, mem, unit, enc, (size_t)unit + n->limits.encode_room);
        ret = enc_len < 0 ? (int)enc_len : 0;
    }
    if (ret == 0)
        ret = begin(n, start, unit, WB_RESERVED | WB_ENCODED, (uint64_t)enc_len, &plan);
    if (ret == 0)
        ret = end(n, &plan, blk_write(plan.child, plan.child_offset, enc, (size_t)enc_len, 0));
    reserve_release(&n->reserve, &held);
    return ret;
}

static int write_units_encoded(struct blk_node *n, uint64_t off, struct iov_cursor *at,
                               uint64_t len)
{
    uint32_t unit = n->limits.unit;
    int ret = 0;

    uint8_t *mem = malloc(2 * (size_t)unit + n->limits.encode_room);
    if (!mem)
        return -ENOMEM;
    while (len > 0 && ret == 0) {
        uint64_t piece = MIN(len, unit - off % unit);
        ret = replace_unit(n, off, at, piece, mem);
        off += piece;
        len -= piece;
    }
    free(mem);
    return ret;
}

/* ---- zeroes and discard ------------------------------------------------------------------------------ */

/* The whole units (of this size) inside [off, off+len); the one that the disk's end cuts counts as whole. */
static void whole_units(struct blk_node *n, uint32_t unit, uint64_t off, uint64_t len,
                        uint64_t *start, uint64_t *stop)
{
    uint64_t to = off + len;

    *start = round_up(off, unit);
    *stop = to == atomic_load(&n->size) ? to : round_down(to, unit);
    if (*stop < *start)
        *start = *stop = to;
}

static bool reads_zero(struct blk_node *n, uint64_t off, uint64_t len)
{
    while (len > 0) {
        struct blk_extent e = { 0 };
        if (mapped_extents(n, off, len, 0, &e) < 0 || !(e.flags & BLK_EXT_ZERO))
            return false;
        off += e.length;
        len -= e.length;
    }
    return true;
}

/* Part of a unit: nothing to do where it reads as zero already, else zeroes are data. */
static int zero_part(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    if (len == 0 || (!(flags & BLK_EXPLICIT) && reads_zero(n, off, len)))
        return 0;
    return io_write_zeroes(n, off, len, 0, mapped_write);
}

static int zero_units(struct blk_node *n, uint64_t start, uint64_t stop, unsigned flags)
{
    struct reservation held;
    uint32_t unit = n->limits.unit;

    if (start >= stop || !n->drv->zero_range)
        return -ENOTSUP;
    reserve_take(&n->reserve, &held, round_down(start, unit), round_up(stop, unit), false);
    driver_lock(n);
    int ret = n->drv->zero_range(n, start, stop - start, flags & (BLK_MAY_UNMAP | BLK_EXPLICIT));
    driver_unlock(n);
    reserve_release(&n->reserve, &held);
    return ret;
}

/* What cannot be zeroed by changing the map, [off, start) and [stop, off+len), may stay as it is. */
static bool rest_is_zero(struct blk_node *n, uint64_t off, uint64_t len, uint64_t start,
                         uint64_t stop)
{
    return reads_zero(n, off, start - off) && reads_zero(n, stop, off + len - stop);
}

int mapped_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    uint64_t start, stop, to = off + len;
    uint32_t unit = n->limits.unit, part = n->limits.part;

    whole_units(n, part ? part : unit, off, len, &start, &stop);
    if ((flags & BLK_NO_FALLBACK) && !rest_is_zero(n, off, len, start, stop))
        return -ENOTSUP;
    int ret = zero_units(n, start, stop, flags);
    if (ret == -ENOTSUP && part) {
        whole_units(n, unit, off, len, &start, &stop);
        if ((flags & BLK_NO_FALLBACK) && !rest_is_zero(n, off, len, start, stop))
            return -ENOTSUP;
        ret = zero_units(n, start, stop, flags);
    }
    if (start < stop && ret == -ENOTSUP && !(flags & BLK_NO_FALLBACK))
        ret = io_write_zeroes(n, start, stop - start, 0, mapped_write);
    if (start < stop && ret < 0)
        return ret;
    ret = zero_part(n, off, start - off, flags);
    return ret < 0 ? ret : zero_part(n, stop, to - stop, flags);
}

int mapped_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct reservation held;
    uint64_t start, stop;
    uint32_t unit = n->limits.unit, part = n->limits.part;

    whole_units(n, part ? part : unit, off, len, &start, &stop);
    if (start >= stop || !n->drv->discard_range)
        return 0;
    reserve_take(&n->reserve, &held, round_down(start, unit), round_up(stop, unit), false);
    driver_lock(n);
    int ret = n->drv->discard_range(n, start, stop - start);
    driver_unlock(n);
    reserve_release(&n->reserve, &held);
    return ret == -ENOTSUP ? 0 : ret;
}

/* ---- extents -------------------------------------------------------------------------------------------- */

/* Where in a file the run lies, and whether the file has a hole there. */
static int extents_below(const struct mapping *m, bool look, unsigned flags, struct blk_extent *out)
{
    struct blk_extent below;

    out->flags |= BLK_EXT_HOST;
    out->host = m->child;
    out->host_offset = m->child_offset;
    if (!look)
        return 0;
    int ret =
        blk_extents(m->child, m->child_offset, m->length, flags & (BLK_NOWAIT | BLK_HOLES), &below);
    if (ret < 0)
        return ret;
    out->length = below.length;
    if (below.flags & BLK_EXT_ZERO)
        out->flags |= BLK_EXT_ZERO;
    if (below.flags & BLK_EXT_HOST) {
        out->host = below.host;
        out->host_offset = below.host_offset;
    }
    return 0;
}

static int extents_backing(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                           struct blk_extent *out)
{
    struct blk_node *backing = n->edge[EDGE_BACKING];
    uint64_t size = backing ? blk_size(backing) : 0;

    if ((flags & BLK_LAYER) && backing && off < size) {
        out->length = MIN(len, size - off);
        return 0;
    }
    if (off >= size) {
        out->length = len;
        out->flags |= BLK_EXT_ZERO;
        return 0;
    }
    int ret = blk_extents(backing, off, MIN(len, size - off), flags, out);
    out->depth++;
    return ret;
}

int mapped_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                   struct blk_extent *out)
{
    struct mapping m = { .kind = MAP_ZERO };
    int ret = map(n, off, len, flags | (flags & BLK_HOLES ? 0 : MAP_STATUS), &m);

    if (ret < 0)
        return ret;
    out->length = m.length;
    switch (m.kind) {
    case MAP_DATA:
        out->flags = BLK_EXT_DATA | BLK_EXT_ALLOCATED;
        return extents_below(&m, (flags & BLK_HOLES) || m.maybe_holes, flags, out);
    case MAP_ZERO:
        out->flags = BLK_EXT_ZERO | BLK_EXT_ALLOCATED;
        return m.child ? extents_below(&m, false, flags, out) : 0;
    case MAP_ENCODED:
        out->flags = BLK_EXT_DATA | BLK_EXT_ALLOCATED | BLK_EXT_COMPRESSED;
        return 0;
    case MAP_UNALLOCATED:
        if (m.child && !n->edge[EDGE_BACKING])
            extents_below(&m, false, flags, out); /* storage that is not used yet */
        return extents_backing(n, off, m.length, flags, out);
    }
    return -EINVAL;
}
