/* Emptying an overlay whose content is in its backing file now.
 *
 * At every moment a cluster reads as what this layer holds or as what lies below, and the caller has seen to it
 * that these are the same. The order on the disk is that of any discard (commit.c).
 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "internal.h"

/* The host cluster behind the last one in use. */
static int used_end(struct qcow2 *q, uint64_t *end)
{
    WRLOCK_SCOPE(&q->lock);
    for (*end = cluster_of(q, q->fresh); *end > 1; --*end) {
        uint64_t refs;
        int ret;
        do {
            ret = qcow2_ref_get(q, *end - 1, &refs);
        } while (ret == TABLE_RELOCKED);
        if (ret < 0)
            return ret;
        if (refs)
            break;
    }
    return 0;
}

/* Gives the file's unused end back. Only a service: what cannot be cut off stays free. */
static void cut_file(struct qcow2 *q)
{
    uint64_t end;

    if (!q->grows || used_end(q, &end) < 0)
        return;
    end <<= q->cluster_bits;
    if (end < blk_size(q->file) && blk_resize(q->file, end, BLK_PREALLOC_OFF, NULL) == 0) {
        WRLOCK_SCOPE(&q->lock);
        q->fresh = end;
    }
}

int qcow2_make_empty(struct blk_node *n, struct error **err)
{
    struct qcow2 *q = node_state(n);

    if (q->external_raw)
        return error_set(err, ENOTSUP,
                         "%s: it cannot be emptied: its data file is a raw image by itself",
                         blk_filename(n));
    int ret = qcow2_commit(q, true);

    if (ret == 0 && q->header.l1_size > 0)
        ret = qcow2_forget_range(q, 0, (uint64_t)q->header.l1_size << q->l1_shift);
    if (ret == 0)
        ret = qcow2_commit(q, true);
    if (ret == 0)
        ret = qcow2_drop_tables(q, 0);
    if (ret == 0)
        ret = qcow2_settle(q);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not empty the image: %s", blk_filename(n),
                         strerror(-ret));
    if (q->external)
        (void)blk_discard(qcow2_data(q), 0, blk_size(qcow2_data(q))); /* a hint */
    cut_file(q);
    return 0;
}
