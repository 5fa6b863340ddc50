/* Whether space was reserved without being written: far more clusters are counted as used than the
 * file takes on the disk. Only then are holes worth looking for under every mapped cluster; elsewhere the
 * answer would cost a call each and fall apart into crumbs. The line is drawn where qemu-img draws it. */
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

/* Clusters in use, counted until there are enough. */
static uint64_t count_used(struct qcow2 *q, uint64_t enough)
{
    uint64_t per_block = refblock_entries(q), used = 0;
    _cleanup_free_ uint8_t *block = malloc(q->cluster_size);

    for (uint32_t i = 0; block && i < q->reftable_entries && used < enough; i++) {
        uint64_t host;
        {
            RDLOCK_SCOPE(&q->lock);
            host = i < q->reftable_entries ? q->reftable[i] & RTE_OFFSET : 0;
        }
        if (!host || blk_read(q->file, host, block, q->cluster_size, 0) < 0)
            continue;
        for (uint64_t k = 0; k < per_block; k++)
            used += refcount_load(block, k, q->refcount_order) != 0;
    }
    return used;
}

static bool look(struct qcow2 *q)
{
    int64_t stored = node_actual_size(q->file);

    if (stored < 0)
        return false;
    uint64_t clusters = (uint64_t)stored >> q->cluster_bits;
    uint64_t enough = MAX(clusters * 10 / 9, clusters + 2);
    return count_used(q, enough) >= enough;
}

bool qcow2_reserved_ahead(struct qcow2 *q)
{
    LOCK_SCOPE(&q->ahead_lock);
    if (!q->ahead_known) {
        q->ahead = look(q);
        q->ahead_known = true;
    }
    return q->ahead;
}
