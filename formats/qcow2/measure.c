/* How large would it be? The answer is qemu-img's: what the tables of a full image take, and of the
 * data what the source holds. */
#include <errno.h>
#include <string.h>

#include "base/macros.h"
#include "base/round.h"
#include "layout.h"

/* Clusters of the new image that the source has data for. */
static int count_data(struct blk_node *src, uint32_t cluster_bits, uint64_t *out,
                      struct error **err)
{
    uint64_t size = blk_size(src), next = 0, count = 0;

    for (uint64_t at = 0; at < size;) {
        struct blk_extent e;
        int ret = blk_extents(src, at, size - at, 0, &e);
        if (ret < 0)
            return error_set(err, -ret, "could not find out where %s has data: %s",
                             blk_filename(src), strerror(-ret));
        if ((e.flags & BLK_EXT_DATA) && !(e.flags & BLK_EXT_ZERO)) {
            uint64_t first = MAX(at >> cluster_bits, next);
            next = ((at + e.length - 1) >> cluster_bits) + 1;
            count += next > first ? next - first : 0;
        }
        at += e.length;
    }
    *out = count;
    return 0;
}

int qcow2_measure(const void *options, uint64_t size, struct blk_node *src, struct blk_measure *out,
                  struct error **err)
{
    const struct qcow2_create_options *o = options;
    struct qcow2_layout lay;
    uint64_t data = 0;
    bool backing = o->backing_file && o->backing_file[0];

    size = src ? blk_size(src) : size;
    int ret = qcow2_layout_plan(&lay, o, size, true, err);
    if (ret == 0) {
        /* A data file counts as if it were the image's own. */
        struct qcow2_create_options one = *o;
        one.data_file = NULL;
        one.data_file_raw = false;
        ret = qcow2_layout_plan(&lay, &one, size, true, err);
    }
    if (ret < 0)
        return ret;
    /* How much of a backing chain both would share is not known: the worst case, then. */
    if (o->preallocation == BLK_PREALLOC_FULL || o->preallocation == BLK_PREALLOC_FALLOC ||
        (src && backing))
        data = lay.data;
    else if (src)
        ret = count_data(src, lay.cluster_bits, &data, err);
    out->required = (lay.total - lay.data + data) << lay.cluster_bits;
    out->fully_allocated = lay.total << lay.cluster_bits;
    return ret;
}
