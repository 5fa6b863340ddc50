/* Guest data in a file of its own (Spec, external data file).
 *
 * Each guest cluster has its place there, at its own offset, for ever: nothing is allocated, counted or
 * quarantined. The L2 tables say which clusters read as zeroes or as the backing file. A raw data file reads
 * the same as the disk: zeroes are written to it, and its tables stay as they are, so that both agree
 * after a power cut, too, when the newest entries are lost.
 *
 * When a cluster is zeroed or discarded, its place may be emptied before the tables say so on the
 * disk: zeroes are what was asked for.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

int qcow2_external_open(struct qcow2 *q, struct error **err)
{
    const struct qcow2_header *h = &q->header;

    q->external = h->incompatible & QCOW2_INCOMPAT_DATA_FILE;
    /* Without a data file the bit means nothing, and the next writer clears it. */
    q->external_raw = q->external && (h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA);
    if (!q->external)
        return 0;
    q->data = NULL;
    q->stored_mask |= QE_COPIED;
    node_limits(q->node)->no_encoding = true;
    if (node_open_flags(q->node) & BLK_OPEN_NO_IO)
        q->unreadable = true;
    int ret = qcow2_read_data_file(q->file, h, &q->data_name, err);
    if (ret < 0)
        return ret;
    ret = node_set_data_file(q->node, q->data_name);
    return ret < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

/* What of [off, off + len) lies in the file. */
static uint64_t in_file(const struct qcow2 *q, uint64_t off, uint64_t len)
{
    uint64_t end = MIN(blk_size(qcow2_data(q)), q->header.size);
    return off < end ? MIN(len, end - off) : 0;
}

int qcow2_external_zero(struct qcow2 *q, uint64_t off, uint64_t len, unsigned flags)
{
    bool backing = node_child(q->node, EDGE_BACKING) || (flags & BLK_EXPLICIT);
    bool release = flags & BLK_MAY_UNMAP;
    uint64_t there = in_file(q, off, len);

    if (q->external_raw && there > 0) {
        int ret = blk_zero(qcow2_data(q), off, there, flags & BLK_MAY_UNMAP);
        if (ret < 0 || !backing)
            return ret;
        WRLOCK_SCOPE(&q->lock);
        q->unsynced = true; /* durable before the tables say it */
    }
    int ret = qcow2_unmap(q, off, len, release ? UNMAP_ZERO_FREE : UNMAP_ZERO, backing);
    if (ret == 0 && release && !q->external_raw && there > 0)
        (void)blk_discard(qcow2_data(q), off, there); /* a hint */
    return ret;
}

int qcow2_external_discard(struct qcow2 *q, uint64_t off, uint64_t len)
{
    uint64_t there = in_file(q, off, len);

    if (q->external_raw) {
        int ret = there ? blk_zero(qcow2_data(q), off, there, BLK_MAY_UNMAP | BLK_NO_FALLBACK) : 0;
        return ret == -ENOTSUP ? 0 : ret;
    }
    int ret = qcow2_unmap(q, off, len, UNMAP_DISCARD, node_child(q->node, EDGE_BACKING));
    if (ret == 0 && there > 0)
        (void)blk_discard(qcow2_data(q), off, there);
    return ret;
}

/* ---- resizing: the data file is as long as the disk ---------------------------------------------------- */

int qcow2_external_grow(struct qcow2 *q, uint64_t size, enum blk_prealloc prealloc,
                        struct error **err)
{
    struct blk_node *data = qcow2_data(q);
    uint64_t old = q->header.size, end = blk_size(data);

    if (prealloc == BLK_PREALLOC_METADATA)
        prealloc = BLK_PREALLOC_OFF;
    /* What a longer file holds behind the disk's end is not the disk's. */
    if (end > old) {
        int ret = blk_zero(data, old, MIN(size, end) - old,
                           prealloc == BLK_PREALLOC_OFF ? BLK_MAY_UNMAP : 0);
        if (ret < 0)
            return error_set(err, -ret, "%s: could not be cleared: %s", blk_filename(data),
                             strerror(-ret));
    }
    return end < size ? blk_resize(data, size, prealloc, err) : 0;
}

int qcow2_external_shrink(struct qcow2 *q, uint64_t size, struct error **err)
{
    struct blk_node *data = qcow2_data(q);

    if (!node_grows(data) || blk_size(data) <= size)
        return 0; /* a device stays as large as it is */
    return blk_resize(data, size, BLK_PREALLOC_OFF, err);
}
