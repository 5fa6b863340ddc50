/* On the way to version 2, which has no zero clusters. */
#include <errno.h>
#include <string.h>

#include "base/macros.h"
#include "internal.h"

uint64_t qcow2_expand_steps(const struct qcow2 *q)
{
    return q->header.l1_size;
}

/* What the guest cannot see behind the disk's end need not be kept as data. */
static int expand_run(struct qcow2 *q, uint64_t off, uint64_t len, bool below)
{
    uint64_t end = cluster_up(q, q->header.size),
             kept = off < end && below ? MIN(len, end - off) : 0;
    int ret = kept ? qcow2_store_zeroes(q, off, off + kept) : 0;

    if (ret == 0 && kept < len)
        ret = qcow2_forget_range(q, off + kept, cluster_up(q, len - kept));
    return ret;
}

static int expand_table(struct qcow2 *q, uint64_t off, uint64_t end, bool below)
{
    while (off < end) {
        struct mapping m = { 0 };
        int ret = qcow2_map_read(q->node, off, end - off, 0, &m);
        if (ret == 0 && m.kind == MAP_ZERO)
            ret = expand_run(q, off, m.length, below);
        if (ret < 0)
            return ret;
        off += m.length;
    }
    return 0;
}

int qcow2_expand_zeroes(struct qcow2 *q, struct qcow2_progress *p, struct error **err)
{
    bool below = node_child(q->node, EDGE_BACKING) || q->header.backing_offset;
    uint64_t span = UINT64_C(1) << q->l1_shift;

    for (uint64_t i = 0; i < q->header.l1_size; i++) {
        int ret = q->l1[i] & L1E_OFFSET ? expand_table(q, i * span, (i + 1) * span, below) : 0;
        if (ret < 0)
            return error_set(err, -ret, "%s: could not store zero clusters as data: %s",
                             blk_filename(q->node), strerror(-ret));
        ret = qcow2_step(p, 1);
        if (ret < 0)
            return error_set(err, ECANCELED, "%s: stopped", blk_filename(q->node));
    }
    return 0;
}
