/* qcow2, versions 2 and 3, as docs/interop/qcow2.txt of the format's specification lays it out.
 * "Spec" in comments here means that document. All integers on disk are big endian.
 *
 * Where things are
 *   qcow2.c    the driver record, open and close, info
 *   header.c   the header and its extensions, and changing single fields of it
 *   entry.h    what an L2 entry says
 *   subcluster.h subcluster.c  extended L2 entries: the entry with its bitmap, as map.c and write.c go
 *              about the plain ones
 *   map.c      map_read: guest offset to place
 *   reserved.c whether the file has holes under mapped clusters
 *   external.c guest data in a file of its own
 *   write.c    write_begin, write_end, zero_range, discard_range
 *   refcount.c refcounts: reading, changing, growing the table
 *   alloc.c    finding free clusters
 *   commit.c   the order in which metadata reaches the disk, and quarantine
 *   overlap.c  which clusters hold metadata: never to be written as data
 *   codec.c    compressed clusters
 *   snapshot*.c internal snapshots; snapshot.h has their rules
 *   layout.c create.c measure.c resize.c
 *   header_write.c  rewriting the header's cluster with all its extensions
 *   empty.c    forgetting all that the image holds
 *   amend*.c   changing options of an image that is there
 *   bitmap.c   persistent dirty bitmaps, read
 *   check*.c   check and repair
 *
 * Invariants (asserts and tests cite them)
 *  Q1  On disk a cluster that anything refers to has a refcount of at least the number of references.
 *      Hence increments reach the disk before the reference, decrements after the reference is
 *      durably gone. (commit.c)
 *  Q2  Data, copied edges included, is on the disk before the L2 entry that maps it. (commit.c)
 *  Q3  A new L2 table is on the disk before the L1 entry that names it. (commit.c)
 *  Q4  A freed cluster is reused only when its unmapping is durable, its hole punched, and every request that
 *      ran at the time of the free has ended. (commit.c, quarantine)
 *  Q5  No guest data is written to a cluster that holds metadata, no metadata to one that holds other
 *      metadata. (overlap.c)
 *  Q6  L2 entries of a guest range change only under a reservation of that range (block/reserve.h).
 *
 * Threads
 *   `lock` guards all mutable metadata: shared to look up, exclusive to change. It is held while
 *   metadata is loaded only inside table_cache_get, which drops it for the read, and during the rare growth
 *   of the refcount table. It is never held across guest data or a flush.
 *   `commit_lock` makes commits one at a time; rank: commit_lock before lock.
 */
#ifndef QCOW2_H
#define QCOW2_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/rwlock.h"
#include "base/vector.h"
#include "block/driver.h"
#include "block/quarantine.h"
#include "block/table_cache.h"

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

enum {
    QCOW2_MIN_CLUSTER_BITS = 9,
    QCOW2_MAX_CLUSTER_BITS = 21,
    QCOW2_MAX_BACKING_NAME = 1023,
    QCOW2_V2_HEADER = 72,
    QCOW2_V3_HEADER = 104, /* what version 3 has at least */
    QCOW2_MAX_L1_BYTES = 32 << 20,
    QCOW2_MAX_REFTABLE_BYTES = 8 << 20,
    QCOW2_MAX_SNAPSHOTS = 65536,
};

/* Feature bits (Spec, header) */
#define QCOW2_INCOMPAT_DIRTY       (UINT64_C(1) << 0)
#define QCOW2_INCOMPAT_CORRUPT     (UINT64_C(1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE   (UINT64_C(1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_INCOMPAT_EXTL2       (UINT64_C(1) << 4)
#define QCOW2_COMPAT_LAZY          (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_BITMAPS    (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA   (UINT64_C(1) << 1)

/* Header extension types */
#define QCOW2_EXT_END        0u
#define QCOW2_EXT_BACKING    0xe2792acau
#define QCOW2_EXT_FEATURES   0x6803f857u
#define QCOW2_EXT_BITMAPS    0x23852875u
#define QCOW2_EXT_ENCRYPTION 0x0537be77u
#define QCOW2_EXT_DATA_FILE  0x44415441u

enum qcow2_compression { QCOW2_ZLIB = 0, QCOW2_ZSTD = 1 };

/* Offsets of header fields (Spec, header) */
enum {
    HDR_MAGIC = 0,
    HDR_VERSION = 4,
    HDR_BACKING_OFFSET = 8,
    HDR_BACKING_SIZE = 16,
    HDR_CLUSTER_BITS = 20,
    HDR_SIZE = 24,
    HDR_CRYPT_METHOD = 32,
    HDR_L1_SIZE = 36,
    HDR_L1_OFFSET = 40,
    HDR_REFTABLE_OFFSET = 48,
    HDR_REFTABLE_CLUSTERS = 56,
    HDR_NB_SNAPSHOTS = 60,
    HDR_SNAPSHOTS_OFFSET = 64,
    HDR_INCOMPATIBLE = 72,
    HDR_COMPATIBLE = 80,
    HDR_AUTOCLEAR = 88,
    HDR_REFCOUNT_ORDER = 96,
    HDR_HEADER_LENGTH = 100,
    HDR_COMPRESSION_TYPE = 104,
};

/* The header in memory. */
struct qcow2_header {
    uint32_t version;
    uint64_t backing_offset;
    uint32_t backing_size;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t crypt_method;
    uint32_t l1_size; /* entries */
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint32_t header_length;
    uint8_t compression_type;
};

/* L1 and L2 entries (Spec, cluster mapping) */
#define L1E_OFFSET    UINT64_C(0x00fffffffffffe00)
#define L1E_RESERVED  UINT64_C(0x7f000000000001ff)
#define L2E_OFFSET    UINT64_C(0x00fffffffffffe00)
#define L2E_RESERVED  UINT64_C(0x3f000000000001fe)
#define L2E_ZERO      UINT64_C(1)
#define QE_COMPRESSED (UINT64_C(1) << 62)
#define QE_COPIED     (UINT64_C(1) << 63)
#define RTE_OFFSET    UINT64_C(0xfffffffffffffe00)
#define RTE_RESERVED  UINT64_C(0x1ff)

/* Host bytes that a reference was taken from: each host cluster they touch loses one when released. */
struct qcow2 {
    struct blk_node *node;
    struct blk_node *file;

    /* fixed after open */
    uint32_t cluster_bits, cluster_size;
    uint32_t version;
    uint32_t refcount_order; /* width is 1 << order bits */
    uint64_t refcount_max;
    uint32_t l2_entries;    /* per table */
    uint32_t entry_bits;    /* an L2 entry has 1 << entry_bits bytes: 3, extended 4 */
    uint32_t l1_shift;      /* an L2 table maps 1 << l1_shift guest bytes */
    uint32_t slice_size;    /* bytes of a table that are cached together; divides a cluster */
    uint32_t slice_entries; /* L2 entries in a slice */
    bool extended;          /* L2 entries have bitmaps of subclusters of 1 << sub_bits bytes */
    uint32_t sub_bits;
    uint64_t stored_mask;  /* bits of an L2 entry that say it has storage */
    bool external;         /* guest data lies in a file of its own, at the guest's offsets */
    bool external_raw;     /* which reads the same as the disk */
    char *data_name;       /* of the data file, as the image states it; NULL: it does not */
    struct blk_node *data; /* what holds guest data; NULL: the data file, see qcow2_data */
    enum qcow2_compression compression;
    bool unreadable;           /* opened for info only: a feature we do not know how to read */
    bool grows;                /* the file grows: past its end there are zeroes */
    bool keeps_freed;          /* freed space is not given back to the file system */
    bool viewing;              /* shows a snapshot instead of the disk */
    _Atomic bool corrupt_seen; /* this session found the image corrupt */

    struct rwlock lock;

    /* under lock */
    struct qcow2_header header;
    uint64_t *l1; /* header.l1_size entries, host order, as on disk otherwise */
    bool l1_dirty;
    uint32_t l1_dirty_from, l1_dirty_to; /* entries [from, to) not on the disk yet */
    uint64_t *reftable;                  /* host order */
    uint32_t reftable_entries;
    struct table_cache *l2;   /* slices of L2 tables, by host offset */
    struct table_cache *refs; /* slices of refcount blocks, by host offset */
    uint64_t alloc_hint;      /* no free cluster lies below this index */
    uint64_t fresh;           /* host offsets from here on were never used; cluster aligned */
    uint64_t packed_next;     /* next free byte for compressed data; 0: none */
    struct qcow2_overlap *overlap;
    freed_list freed;        /* unmapped in memory, not yet on the disk */
    _Atomic bool many_freed; /* a commit is due for them; read without the lock */
    freed_list quarantine;   /* unmapped on the disk, waiting for their epoch */
    uint64_t snapshots_len;  /* bytes of the snapshot table, as last read or written */
    bool unsynced;           /* data was written to new clusters since the last commit */

    struct qcow2_cleaner *cleaner; /* NULL: unused tables stay in memory */
    pthread_mutex_t commit_lock;

    pthread_mutex_t ahead_lock; /* guards what follows: see reserved.c */
    bool ahead_known, ahead;
};

/* ---- geometry -------------------------------------------------------------------------------- */

static inline uint64_t cluster_of(const struct qcow2 *q, uint64_t offset)
{
    return offset >> q->cluster_bits;
}

static inline uint64_t in_cluster(const struct qcow2 *q, uint64_t offset)
{
    return offset & (q->cluster_size - 1);
}

static inline uint64_t cluster_up(const struct qcow2 *q, uint64_t offset)
{
    return (offset + q->cluster_size - 1) & ~(uint64_t)(q->cluster_size - 1);
}

/* The L2 table that maps a guest offset, as an index of the L1 table. */
static inline uint64_t l1_index_of(const struct qcow2 *q, uint64_t guest)
{
    return guest >> q->l1_shift;
}

static inline uint32_t l2_index_of(const struct qcow2 *q, uint64_t guest)
{
    return (uint32_t)(guest >> q->cluster_bits) & (q->l2_entries - 1);
}

/* Guest bytes that one L2 table maps, as a shift: a cluster's worth of entries of clusters. */
static inline uint32_t l1_shift_for(uint32_t cluster_bits, bool extended)
{
    return 2 * cluster_bits - (extended ? 4 : 3);
}

/* Entries of the L1 table that a disk of this size needs. */
static inline uint64_t l1_entries_for(uint32_t l1_shift, uint64_t size)
{
    return (size >> l1_shift) + ((size & ((UINT64_C(1) << l1_shift) - 1)) != 0);
}

/* Where a machine's saved state begins, as a guest offset: behind what the disk's L1 entries cover. */
static inline uint64_t vm_state_offset(const struct qcow2 *q)
{
    return l1_entries_for(q->l1_shift, q->header.size) << q->l1_shift;
}

/* Clusters that one refcount block counts. */
static inline uint64_t refblock_entries(const struct qcow2 *q)
{
    return (uint64_t)q->cluster_size * 8 >> q->refcount_order;
}

/* Refcount number i of a block whose refcounts are 1 << order bits wide (Spec, refcounts). Shared by
 * the driver, create and check. */
static inline uint64_t refcount_load(const void *block, uint64_t i, uint32_t order)
{
    const uint8_t *b = block;
    switch (order) {
    case 4:
        return load_be16(b + 2 * i);
    case 5:
        return load_be32(b + 4 * i);
    case 6:
        return load_be64(b + 8 * i);
    case 3:
        return b[i];
    default: { /* widths below a byte: the least significant bits come first */
        uint32_t per = 8u >> order, width = 1u << order;
        return (b[i / per] >> (width * (i % per))) & ((1u << width) - 1);
    }
    }
}

static inline void refcount_store(void *block, uint64_t i, uint32_t order, uint64_t value)
{
    uint8_t *b = block;
    switch (order) {
    case 4:
        store_be16(b + 2 * i, (uint16_t)value);
        break;
    case 5:
        store_be32(b + 4 * i, (uint32_t)value);
        break;
    case 6:
        store_be64(b + 8 * i, value);
        break;
    case 3:
        b[i] = (uint8_t)value;
        break;
    default: {
        uint32_t per = 8u >> order, width = 1u << order;
        uint32_t shift = width * (uint32_t)(i % per), mask = ((1u << width) - 1) << shift;
        b[i / per] = (uint8_t)((b[i / per] & ~mask) | ((uint32_t)value << shift));
    }
    }
}

/* Where the bytes of a compressed cluster are (Spec, compressed clusters descriptor). length
 * reaches to the end of the last 512-byte sector. */
static inline void compressed_place(uint32_t cluster_bits, uint64_t entry, uint64_t *offset,
                                    uint64_t *length)
{
    uint32_t shift = 62 - (cluster_bits - 8);
    uint64_t sectors = ((entry & ~(QE_COPIED | QE_COMPRESSED)) >> shift) + 1;

    *offset = entry & ((UINT64_C(1) << shift) - 1);
    *length = sectors * 512 - (*offset & 511);
}

/* ---- header.c --------------------------------------------------------------------------------- */

/* Reads and validates what every reader must rely on; features are judged by qcow2_unsupported. */
int qcow2_header_read(struct blk_node *file, struct qcow2_header *h, struct error **err);
/* Names the features of this image that are not supported, NULL when all are. To be freed. *known: we
 * know what they mean, so that the rest of the image can at least be described. */
char *qcow2_unsupported(struct blk_node *file, const struct qcow2_header *h, bool *known);
/* The backing file's name and its format from the header extension; NULL when absent. To be freed. */
int qcow2_read_strings(struct blk_node *file, const struct qcow2_header *h, char **backing,
                       char **backing_format, struct error **err);
/* The data file's name from the header extension; NULL when absent. To be freed. */
int qcow2_read_data_file(struct blk_node *file, const struct qcow2_header *h, char **name,
                         struct error **err);
/* A header extension's first bytes, and its length; 0: there is none. */
int qcow2_read_extension(struct blk_node *file, const struct qcow2_header *h, uint32_t type,
                         void *to, size_t room, struct error **err);
/* Writes a byte range of the fixed header, built from q->header. */
int qcow2_header_update(struct qcow2 *q, uint32_t from, uint32_t to);
/* The header becomes `next`, of which that byte range is written, durably. Sticky when it fails. */
int qcow2_header_switch(struct qcow2 *q, const struct qcow2_header *next, uint32_t from,
                        uint32_t to);
/* Serialises the fixed part (104 or 112 bytes for v3, 72 for v2). Returns its length. */
uint32_t qcow2_header_build(const struct qcow2_header *h, uint8_t out[112]);

/* ---- codec.c ---------------------------------------------------------------------------------- */

/* Pure; any thread. 0 or negative errno: -EIO when the data is not what it should be. Exactly out_len bytes. */
int qcow2_decompress(enum qcow2_compression type, const void *in, size_t in_len, void *out,
                     size_t out_len);
/* The encoded length, -E2BIG when it would not be smaller than out_cap - 1 or so. */
int64_t qcow2_compress(enum qcow2_compression type, const void *in, size_t in_len, void *out,
                       size_t out_cap);

/* ---- create.c, measure.c ----------------------------------------------------------------------- */

struct qcow2_create_options {
    int compat; /* 2 or 3 */
    uint64_t cluster_size;
    int preallocation; /* enum blk_prealloc */
    bool lazy_refcounts;
    uint64_t refcount_bits;
    int compression_type;
    uint64_t size;
    char *backing_file, *backing_fmt;
    bool extended_l2, data_file_raw;
    char *data_file, *encryption;
};
extern const struct opt_def qcow2_create_table[];
/* The content of the extension that names the features we know of. */
#define QCOW2_FEATURE_NAMES (8 * 48)
void qcow2_feature_names(uint8_t table[QCOW2_FEATURE_NAMES]);
int qcow2_check_create(const void *options, struct error **err);
int qcow2_create(struct blk_node *file, const void *options, struct error **err);
int qcow2_measure(const void *options, uint64_t size, struct blk_node *src, struct blk_measure *out,
                  struct error **err);

/* ---- check.c ----------------------------------------------------------------------------------- */

int qcow2_check(struct blk_node *n, unsigned fix, struct blk_check *out,
                const struct blk_check_hooks *hooks, struct error **err);

/* ---- the rest: see internal.h ------------------------------------------------------------------- */

#endif
