/* Any bytes as a qcow2 image: open, describe, map, read, check, and write if it may be written.
 *
 * The bytes lie in a memory node, so that nothing touches the disk. Two bytes in front choose how the
 * image is opened. The mutator knows where header fields, tables and entries are, and what values
 * hurt; half of the time it leaves the work to libFuzzer's own.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/macros.h"
#include "block/block.h"

#include "image.h"
#include "mutate.h"
#include "qcow2.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

/* Tables of megabytes cost a hundred times what others do and teach nothing new; tests/hostile has
 * them. What is above the format's limits is refused before it costs. */
static bool costly(const uint8_t *image, size_t size)
{
    if (size < QCOW2_V2_HEADER)
        return false;
    uint32_t bits = load_be32(image + HDR_CLUSTER_BITS);
    uint32_t l1 = load_be32(image + HDR_L1_SIZE);
    uint64_t reftable = load_be32(image + HDR_REFTABLE_CLUSTERS);

    if (bits > QCOW2_MAX_CLUSTER_BITS)
        return false;
    reftable <<= bits;
    return bits > 16 || (l1 > 4096 && l1 <= QCOW2_MAX_L1_BYTES / 8) ||
           (reftable > 65536 && reftable <= QCOW2_MAX_REFTABLE_BYTES);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > 1 << 20)
        return 0;
    if (costly(data + 2, size - 2))
        return -1; /* not for the corpus */
    unsigned how = data[0];
    struct blk_open_args args = {
        .image_opts = true,
        .flags = BLK_OPEN_NO_BACKING | (how & 1 ? BLK_OPEN_RDWR | BLK_OPEN_UNMAP : 0) |
                 (how & 2 ? BLK_OPEN_REPAIR : 0) | (how & 4 ? BLK_OPEN_NO_IO : 0),
    };
    struct blk_check result;
    struct blk_node *node;

    blk_on_warning(quiet, NULL);
    fill_memory(data + 2, size - 2);
    if (blk_open("driver=qcow2,file=bytes,discard=unmap", &args, &node, NULL) == 0) {
        describe(node);
        walk(node);
        if (how & 8)
            (void)blk_check(node, how & 1 ? (how >> 4) & 3 : 0, &result, NULL, NULL);
        if ((how & 7) == 1)
            change(node, how >> 4);
        blk_close(node, NULL);
    }
    return 0;
}

/* ---- the mutator ---------------------------------------------------------------------------------- */

/* The beginning of one of the image's clusters, sometimes one past its end. */
static uint64_t some_cluster(struct victim *v)
{
    return below(v, (v->size >> v->kind) + 2) << v->kind;
}

static uint64_t some_number(struct victim *v)
{
    static const uint64_t limits[] = {
        0,         1,         2, 9, 21, 1023, 1024, 65536, 1 << 22, UINT32_MAX, UINT64_C(1) << 32,
        INT64_MAX, UINT64_MAX
    };

    return hurtful(v, limits, ARRAY_SIZE(limits),
                   some_cluster(v) + (below(v, 4) ? 0 : below(v, 600)), 1000);
}

static uint64_t load(const struct victim *v, uint64_t at)
{
    return v->size >= 8 && at <= v->size - 8 ? load_be64(v->image + at) : 0;
}

static void change_field(struct victim *v)
{
    static const struct {
        uint8_t at, size;
    } field[] = {
        { HDR_VERSION, 4 },
        { HDR_BACKING_OFFSET, 8 },
        { HDR_BACKING_SIZE, 4 },
        { HDR_CLUSTER_BITS, 4 },
        { HDR_SIZE, 8 },
        { HDR_CRYPT_METHOD, 4 },
        { HDR_L1_SIZE, 4 },
        { HDR_L1_OFFSET, 8 },
        { HDR_REFTABLE_OFFSET, 8 },
        { HDR_REFTABLE_CLUSTERS, 4 },
        { HDR_NB_SNAPSHOTS, 4 },
        { HDR_SNAPSHOTS_OFFSET, 8 },
        { HDR_INCOMPATIBLE, 8 },
        { HDR_COMPATIBLE, 8 },
        { HDR_AUTOCLEAR, 8 },
        { HDR_REFCOUNT_ORDER, 4 },
        { HDR_HEADER_LENGTH, 4 },
        { HDR_COMPRESSION_TYPE, 1 },
        { HDR_COMPRESSION_TYPE, 8 },
        { QCOW2_V3_HEADER + 8, 8 },
        { QCOW2_V3_HEADER + 16, 8 },
    };
    size_t i = below(v, ARRAY_SIZE(field));
    uint8_t *at = v->image + field[i].at;
    uint64_t value = some_number(v);

    if (field[i].size == 8)
        store_be64(at, value);
    else if (field[i].size == 4)
        store_be32(at, (uint32_t)value);
    else
        *at = (uint8_t)value;
}

/* A place in a table, near its beginning as often as not. */
static uint64_t place_in(struct victim *v, uint64_t table, uint64_t bytes)
{
    return table +
           8 * below(v, MAX(below(v, 2) ? MIN(bytes / 8, (uint64_t)8) : bytes / 8, UINT64_C(1)));
}

static uint64_t find_entry(struct victim *v)
{
    uint64_t cluster = UINT64_C(1) << v->kind;
    uint64_t l1 = place_in(v, load(v, HDR_L1_OFFSET),
                           8 * (uint64_t)MIN(load_be32(v->image + HDR_L1_SIZE), 1u << 16));
    uint64_t reftable = place_in(v, load(v, HDR_REFTABLE_OFFSET), cluster);

    switch (below(v, 6)) {
    case 0:
        return l1;
    case 1:
        return reftable;
    case 2:
        return place_in(v, load(v, reftable) & RTE_OFFSET, cluster);
    case 3:
        return place_in(v, load(v, HDR_SNAPSHOTS_OFFSET), 128);
    default:
        return place_in(v, load(v, l1) & L1E_OFFSET, cluster);
    }
}

static void change_entry(struct victim *v)
{
    uint64_t at = find_entry(v);
    uint64_t was = load(v, at), value;

    if (at > v->size - 8)
        return;
    switch (below(v, 8)) {
    case 0:
        value = some_number(v);
        break;
    case 1:
        value = was ^ UINT64_C(1) << below(v, 64);
        break;
    case 2:
        value = was ^ QE_COMPRESSED;
        break;
    case 3:
        value = was ^ L2E_ZERO;
        break;
    case 4: /* what another entry says */
        value = load(v, find_entry(v));
        break;
    case 5: /* the table itself */
        value = (at & ~((UINT64_C(1) << v->kind) - 1)) | QE_COPIED;
        break;
    default:
        value = some_cluster(v) | (below(v, 2) ? QE_COPIED : 0);
        break;
    }
    store_be64(v->image + at, value);
}

/* A cluster becomes a copy of another one. */
static void copy_cluster(struct victim *v)
{
    uint64_t from = some_cluster(v), to = some_cluster(v), len = UINT64_C(1) << v->kind;

    if (from + len <= v->size && to + len <= v->size)
        memmove(v->image + to, v->image + from, len);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    struct victim v = victim_of(data, size, seed);

    if (v.size < 128 || below(&v, 2))
        return LLVMFuzzerMutate(data, size, max);
    v.kind = load_be32(v.image + HDR_CLUSTER_BITS);
    if (v.kind < QCOW2_MIN_CLUSTER_BITS || v.kind > QCOW2_MAX_CLUSTER_BITS)
        v.kind = QCOW2_MIN_CLUSTER_BITS;
    store_be32(v.image, QCOW2_MAGIC);
    for (uint64_t n = 1 + below(&v, 3); n > 0; n--)
        switch (below(&v, 8)) {
        case 0:
            data[0] = (uint8_t)number(&v);
            break;
        case 1:
        case 2:
            change_field(&v);
            break;
        case 3:
            copy_cluster(&v);
            break;
        default:
            change_entry(&v);
            break;
        }
    return size;
}
