/* Planning a new image: which options go together, how many clusters each table takes. */
#include "layout.h"

#include <errno.h>
#include <inttypes.h>

#include "base/human.h"
#include "base/round.h"

enum { MIN_EXTENDED = 16384 };

/* ---- options -------------------------------------------------------------------------------------- */

static int check_features(const struct qcow2_create_options *o, struct error **err)
{
    bool backing = o->backing_file && o->backing_file[0];

    if (o->encryption && strcmp(o->encryption, "off"))
        return error_set(err, ENOTSUP,
                         "option 'encryption': images of this kind come in a later version");
    if (o->extended_l2 && o->cluster_size < MIN_EXTENDED)
        return error_set(err, EINVAL,
                         "option 'extended_l2' needs a cluster_size of at least %d, not %" PRIu64,
                         MIN_EXTENDED, o->cluster_size);
    if (o->data_file_raw && !(o->data_file && o->data_file[0]))
        return error_set(err, EINVAL, "option 'data_file_raw' has no meaning without 'data_file'");
    if (o->data_file_raw && backing)
        return error_set(err, EINVAL,
                         "options 'data_file_raw' and 'backing_file' exclude each other: the data "
                         "file holds the whole disk then");
    if (o->backing_fmt && o->backing_fmt[0] && !(o->backing_file && o->backing_file[0]))
        return error_set(err, EINVAL, "option 'backing_fmt' has no meaning without 'backing_file'");
    if (backing && o->preallocation != BLK_PREALLOC_OFF && !o->extended_l2)
        return error_set(err, EINVAL,
                         "options 'preallocation' and 'backing_file' exclude each other without "
                         "'extended_l2': what is preallocated would hide the backing file's "
                         "content");
    return 0;
}

static int check_version(const struct qcow2_create_options *o, struct error **err)
{
    if (o->compat != 2)
        return 0;
    if (o->refcount_bits != 16)
        return error_set(err, EINVAL,
                         "option 'refcount_bits': compat 0.10 has only 16, not %" PRIu64
                         "; use compat=1.1",
                         o->refcount_bits);
    if (o->lazy_refcounts)
        return error_set(err, EINVAL, "option 'lazy_refcounts' needs compat=1.1");
    if (o->extended_l2 || (o->data_file && o->data_file[0]))
        return error_set(err, EINVAL, "option '%s' needs compat=1.1",
                         o->extended_l2 ? "extended_l2" : "data_file");
    if (o->compression_type != QCOW2_ZLIB)
        return error_set(err, EINVAL,
                         "option 'compression_type': compat 0.10 has only zlib; use "
                         "compat=1.1");
    return 0;
}

static int check_options(const struct qcow2_create_options *o, struct error **err)
{
    if (!is_pow2(o->cluster_size) || o->cluster_size < 1u << QCOW2_MIN_CLUSTER_BITS ||
        o->cluster_size > 1u << QCOW2_MAX_CLUSTER_BITS)
        return error_set(err, EINVAL,
                         "option 'cluster_size' must be a power of two between 512 "
                         "and 2048k, not %" PRIu64,
                         o->cluster_size);
    if (!is_pow2(o->refcount_bits) || o->refcount_bits > 64)
        return error_set(err, EINVAL,
                         "option 'refcount_bits' must be a power of two of at most "
                         "64, not %" PRIu64,
                         o->refcount_bits);
    int ret = check_features(o, err);
    return ret < 0 ? ret : check_version(o, err);
}

/* ---- clusters -------------------------------------------------------------------------------------- */

static int too_large(const struct qcow2_layout *lay, uint64_t limit, struct error **err)
{
    if (lay->cluster_bits == QCOW2_MAX_CLUSTER_BITS)
        return error_set(err, EFBIG, "the size %" PRIu64 " is above the limit of %s", lay->size,
                         human_size(limit).s);
    return error_set(err, EFBIG,
                     "the size %s is too large for clusters of %s, whose limit is %s: "
                     "try a larger cluster_size",
                     human_size(lay->size).s, human_size(UINT64_C(1) << lay->cluster_bits).s,
                     human_size(limit).s);
}

/* The refcount structures count themselves, too, so this goes round until it fits. */
static void plan_refcounts(struct qcow2_layout *lay)
{
    uint64_t per_block = (UINT64_C(8) << lay->cluster_bits) >> lay->refcount_order;
    uint64_t others = 1 + lay->l1 + lay->l2 + lay->data;
    uint64_t before;

    lay->reftable = lay->refblocks = 1;
    do {
        before = lay->reftable + lay->refblocks;
        lay->refblocks = div_round_up(others + before, per_block);
        lay->reftable = div_round_up(lay->refblocks * 8, UINT64_C(1) << lay->cluster_bits);
    } while (lay->reftable + lay->refblocks != before);
    lay->total = others + before;
}

int qcow2_layout_plan(struct qcow2_layout *lay, const struct qcow2_create_options *o, uint64_t size,
                      bool full, struct error **err)
{
    int ret = check_options(o, err);

    if (ret < 0)
        return ret;
    *lay = (struct qcow2_layout){
        .cluster_bits = log2_floor(o->cluster_size),
        .refcount_order = log2_floor(o->refcount_bits),
        .entry_bits = o->extended_l2 ? 4 : 3,
        .external = o->data_file && o->data_file[0],
        .size = size,
    };
    lay->l1_shift = l1_shift_for(lay->cluster_bits, o->extended_l2);
    uint64_t cluster = o->cluster_size;
    uint64_t limit = UINT64_C(QCOW2_MAX_L1_BYTES / 8) << lay->l1_shift;

    if (size > limit || size > INT64_MAX - 511)
        return too_large(lay, limit < INT64_MAX ? limit : INT64_MAX - 511, err);
    lay->size = align_up(size, 512);
    lay->l1_entries = div_round_up(lay->size, UINT64_C(1) << lay->l1_shift);
    lay->l1 = div_round_up(lay->l1_entries * 8, cluster);
    if (full) {
        lay->l2 = lay->l1_entries;
        lay->data = lay->external ? 0 : div_round_up(lay->size, cluster);
    }
    plan_refcounts(lay);
    return 0;
}
