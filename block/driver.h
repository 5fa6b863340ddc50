/* What a driver is: for the leaves and filters in block/ and the formats in formats/.
 *
 * Two kinds. A *leaf or filter* moves bytes (preadv, pwritev, ...). A *format* says where bytes
 * are (map_read, write_begin, ...) and the core moves them (block/mapped.c). A driver that has
 * map_read is a format in this sense; it leaves the byte-moving members NULL.
 *
 * What the core guarantees before it calls: the node is open; the range is inside the node's size
 * and does not overflow; it is aligned to limits.align; len > 0; flags are of those listed for
 * the member; exclusive members run with no request in flight. A driver never re-checks.
 *
 * Errors: data members return 0 or a negative errno, whole or failed. Control members too, and set *err.
 * The real cause is never replaced by EIO. -EAGAIN only when BLK_NOWAIT was asked.
 *
 * Threads: data members may be called from any thread, many at once if DRIVER_PARALLEL is set, else one at a
 * time. A driver holds no lock of its own while it calls a child for guest data, starts no threads,
 * and does not wait for another request.
 *
 * One const struct driver per driver, last thing in its file, everything else static.
 */
#ifndef BLOCK_DRIVER_H
#define BLOCK_DRIVER_H

#include <jansson.h>

#include "base/error.h"
#include "base/options.h"
#include "block/block.h"

/* ---- mappings: where the bytes are ---------------------------------------------------------- */

enum map_kind {
    MAP_DATA,        /* in child at child_offset */
    MAP_ZERO,        /* reads as zeroes */
    MAP_UNALLOCATED, /* ask the backing edge; zero when there is none or it is shorter */
    MAP_ENCODED,     /* child holds encoded_length bytes at child_offset; decode gives the unit */
};

struct bitmap;

struct mapping {
    enum map_kind kind;
    uint64_t offset, length; /* guest bytes; offset as asked, length > 0 as far as the run holds,
                                    * at most what was asked */
    struct blk_node *child;  /* DATA, ENCODED; ZERO with storage reserved (else NULL) */
    uint64_t child_offset;   /* of guest byte `offset` (ENCODED: of the unit's encoding) */
    uint64_t encoded_length; /* ENCODED: bytes to read; reading past the child's end gives zeroes */
    uint64_t unit_offset, unit_length; /* ENCODED: the guest range that one decode yields */
    bool maybe_holes;                  /* DATA: the child may have holes worth asking for */
    uint64_t cookie;                   /* the driver's own, handed back to decode */
};

/* A flag of map_read beside BLK_NOWAIT: asked for block status, not to read. Only then maybe_holes
 * matters, and the driver may take time to find it out. */
enum { MAP_STATUS = 1 << 16 };

enum write_kind {
    WRITE_IN_PLACE, /* storage exists and is published: just write there */
    WRITE_NEW,      /* reserved, not published: edges first, then write_end */
};

/* What write_begin answers. The core writes guest bytes [offset, offset+length) to child_offset;
 * for WRITE_NEW it also fills what else of [unit_offset, unit_offset+unit_length) the new storage
 * covers with what the guest read there before (copy-up), at the corresponding child offsets. */
struct write_plan {
    enum write_kind kind;
    uint64_t offset, length;
    struct blk_node *child;
    uint64_t child_offset;             /* of guest byte `offset` */
    uint64_t unit_offset, unit_length; /* NEW: guest range of the reserved storage */
    bool storage_is_zero;              /* NEW: the storage was never used and reads as zeroes */
    uint64_t priv[6];                  /* the driver's own, for write_end */
};

/* Flags of write_begin, beside BLK_NOWAIT. */
enum {
    WB_RESERVED = 1 << 16, /* the caller holds the range reservation: may answer WRITE_NEW */
    WB_ENCODED = 1 << 17,  /* the unit at offset is to be stored in encoded_length bytes */
};
/* write_begin without WB_RESERVED: "this needs new storage; reserve [offset, +len) rounded to limits.unit, and
 * ask again". */
#define WRITE_NEEDS_RESERVATION 1

/* Points in a driver's work where tests may inject errors or stop (block/blkdebug.c). The names are those
 * of QEMU's blkdebug, so that its configuration files work; blkdebug.c has the spelling. */
enum blk_event {
    EVENT_NONE,
    EVENT_L1_UPDATE,
    EVENT_L1_GROW_ALLOC_TABLE,
    EVENT_L1_GROW_WRITE_TABLE,
    EVENT_L1_GROW_ACTIVATE_TABLE,
    EVENT_L1_SHRINK_WRITE_TABLE,
    EVENT_L1_SHRINK_FREE_L2_CLUSTERS,
    EVENT_L2_LOAD,
    EVENT_L2_UPDATE,
    EVENT_L2_UPDATE_COMPRESSED,
    EVENT_L2_ALLOC_COW_READ,
    EVENT_L2_ALLOC_WRITE,
    EVENT_READ_AIO,
    EVENT_READ_BACKING_AIO,
    EVENT_READ_COMPRESSED,
    EVENT_WRITE_AIO,
    EVENT_WRITE_COMPRESSED,
    EVENT_VMSTATE_LOAD,
    EVENT_VMSTATE_SAVE,
    EVENT_COW_READ,
    EVENT_COW_WRITE,
    EVENT_REFTABLE_LOAD,
    EVENT_REFTABLE_GROW,
    EVENT_REFTABLE_UPDATE,
    EVENT_REFBLOCK_LOAD,
    EVENT_REFBLOCK_UPDATE,
    EVENT_REFBLOCK_UPDATE_PART,
    EVENT_REFBLOCK_ALLOC,
    EVENT_REFBLOCK_ALLOC_HOOKUP,
    EVENT_REFBLOCK_ALLOC_WRITE,
    EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS,
    EVENT_REFBLOCK_ALLOC_WRITE_TABLE,
    EVENT_REFBLOCK_ALLOC_SWITCH_TABLE,
    EVENT_CLUSTER_ALLOC,
    EVENT_CLUSTER_ALLOC_BYTES,
    EVENT_CLUSTER_ALLOC_SPACE,
    EVENT_CLUSTER_FREE,
    EVENT_FLUSH_TO_OS,
    EVENT_FLUSH_TO_DISK,
    EVENT_PWRITEV_RMW_HEAD,
    EVENT_PWRITEV_RMW_AFTER_HEAD,
    EVENT_PWRITEV_RMW_TAIL,
    EVENT_PWRITEV_RMW_AFTER_TAIL,
    EVENT_PWRITEV,
    EVENT_PWRITEV_ZERO,
    EVENT_PWRITEV_DONE,
    EVENT_EMPTY_IMAGE_PREPARE,
    EVENT_COR_WRITE,
    EVENT_COUNT,
};

struct node_limits {
    uint32_t align;        /* of offset and length; power of two, >= 1 */
    uint32_t mem_align;    /* of buffers; power of two, >= 1 */
    uint64_t max_transfer; /* bytes per request; 0: 1 GiB */
    uint32_t unit;         /* formats: allocation unit (cluster), what reservations are rounded to;
                             * zero_range and discard_range get multiples of it. Others: 0 */
    uint32_t
        part; /* formats: zero_range and discard_range take multiples of this fraction of a unit, too;
                    * -ENOTSUP from zero_range: this time not. 0: whole units only */
    bool no_encoding;     /* formats: this image cannot hold encoded units */
    bool must_encode;     /* formats: this image holds nothing else; every write is encoded */
    uint32_t encode_room; /* formats: what an encoding may be longer than its unit */
};

enum driver_flag {
    DRIVER_PARALLEL = 1 << 0, /* data members may run in parallel */
    DRIVER_BACKING = 1 << 1,  /* can have a backing edge */
    DRIVER_GROWS = 1 << 2, /* leaves: writing past the end grows it; reading there gives zeroes */
    DRIVER_NO_CHILD = 1 << 3, /* leaves: rests on no other node (else the "file" edge is opened) */
    DRIVER_UNMAP_ZERO = 1 << 4, /* what zero with BLK_MAY_UNMAP released reads as zeroes */
    DRIVER_NEW_ZERO = 1 << 5,   /* a new image reads as zeroes */
    DRIVER_DATA_FILE = 1 << 6,  /* may have a data file, and then the create option "data_file" */
    DRIVER_EXTENTS = 1 << 7,    /* open may call node_open_extent */
    DRIVER_KNOWS_BACKING = 1 << 8, /* create and change_backing want node_create_backing, whatever
                                    * "unchecked" says */
};

struct driver {
    const char *name;
    unsigned kind;  /* enum blk_driver_kind */
    unsigned flags; /* enum driver_flag */

    size_t
        state_size; /* node_state(n): allocated zeroed by the core before open, freed after close */
    const struct opt_def *options; /* of opening; NULL: none */
    size_t options_size;
    const struct opt_def *create_options; /* of making; must have "size" if sizes mean anything */
    size_t create_options_size;
    const struct opt_def *amend_options; /* of changing an image that is there; NULL: none */
    size_t amend_options_size;

    /* How descriptions call the "file" edge, where it is not "file"; and a second child that is opened as the
     * first is, NULL: none. */
    const char *first_edge, *second_edge;

    /* 0..100: how sure this is the format, from the first len bytes (at most 2048, zero padded to
     * that) and the file name (may be NULL). Pure. */
    int (*probe)(const uint8_t *buf, size_t len, const char *filename);

    /* Filters for files that are compressed as a whole: the first len bytes are of such a file. Pure. Asked only
     * where graph.c says that it may be. */
    bool (*wraps)(const uint8_t *buf, size_t len);

    /* What the file name "NAME:..." means, NAME being the driver's, or beginning with it and a '+' ("nbd+unix"):
     * a description as in json:{...}. NULL and an error when it means nothing. NULL: no file name of this driver. */
    json_t *(*describe)(const char *filename, struct error **err);
    const char *also_named; /* another NAME that describe takes ("nbds"); NULL: none */

    /* Opens; leaves nothing behind on failure. The "file" edge is open already; the backing edge and the data
     * file are opened by the core afterwards from what node_set_backing and node_set_data_file said. Sets
     * size and limits. */
    int (*open)(struct blk_node *n, const void *options, struct error **err);
    /* The backing file that the image states is open: refuses what the image was not made for. May be NULL. */
    int (*backing_opened)(struct blk_node *n, struct error **err);
    /* Exclusive, after a successful flush was tried; must free all, whatever it returns. */
    int (*close)(struct blk_node *n, struct error **err);

    /* Protocols: make the file. Formats: write a new image into file, which is open for writing. */
    int (*create_file)(const char *filename, const void *options, struct error **err);
    int (*create)(struct blk_node *file, const void *options, struct error **err);
    /* Pure: refuses options that create would refuse, before anything is touched. May be NULL. */
    int (*check_create)(const void *options, struct error **err);

    /* Leaves and filters. flags: NOWAIT (read), FUA, MAY_UNMAP, NO_FALLBACK as declared by block.h. A
     * missing zero is emulated by writing, a missing discard does nothing. zero answers -ENOTSUP when it
     * cannot without writing them: the core falls back. */
    int (*preadv)(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                  uint64_t len, unsigned flags);
    int (*pwritev)(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                   uint64_t len, unsigned flags);
    int (*zero)(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
    int (*discard)(struct blk_node *n, uint64_t off, uint64_t len);
    /* out->offset is set by the core; fills length, flags and host. NULL: all is data. */
    int (*extents)(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                   struct blk_extent *out);
    int (*copy_range)(struct blk_node *src, uint64_t src_off, struct blk_node *dst,
                      uint64_t dst_off, uint64_t len, uint64_t *done);

    /* All kinds: everything acknowledged so far becomes durable. Formats write metadata in order, then
     * flush their children. NULL: the core flushes the "file" edge. */
    int (*flush)(struct blk_node *n);

    /* Formats. */
    int (*map_read)(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                    struct mapping *out);
    /* encoded_length: only with WB_ENCODED. 0, WRITE_NEEDS_RESERVATION or a negative errno. */
    int (*write_begin)(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                       uint64_t encoded_length, struct write_plan *out);
    /* Exactly once for each write_begin that answered 0 with WRITE_NEW. result 0: publish, else undo. */
    int (*write_end)(struct blk_node *n, struct write_plan *plan, int result);
    /* Both under a reservation, multiples of limits.unit (the last one may end at the size). -ENOTSUP: the core
     * writes zeroes (zero) or does nothing (discard). flags: MAY_UNMAP, EXPLICIT. */
    int (*zero_range)(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
    int (*discard_range)(struct blk_node *n, uint64_t off, uint64_t len);
    /* Pure computation, any thread, no locks. decode fills out_len == unit_length bytes; the input may be
     * longer than the encoding. encode returns the encoded length, or -E2BIG when it would not be
     * smaller. */
    int (*decode)(struct blk_node *n, const struct mapping *m, const void *in, size_t in_len,
                  void *out, size_t out_len);
    int64_t (*encode)(struct blk_node *n, uint64_t unit_offset, const void *in, size_t in_len,
                      void *out, size_t out_cap);

    /* Exclusive control members; NULL: not supported. */
    int (*resize)(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc,
                  struct error **err);
    /* As block.h says of blk_change_backing and blk_make_empty. */
    int (*change_backing)(struct blk_node *n, const char *filename, const char *format,
                          struct error **err);
    int (*make_empty)(struct blk_node *n, struct error **err);
    /* *size: the disk's in, the wanted one out; the core resizes. */
    int (*amend)(struct blk_node *n, const void *options, uint64_t *size, blk_progress_fn *progress,
                 void *opaque, struct error **err);
    int (*check)(struct blk_node *n, unsigned fix, struct blk_check *out,
                 const struct blk_check_hooks *hooks, struct error **err);
    /* Fills what it knows beyond the generic (cluster_size, dirty, ..., specific). */
    int (*info)(struct blk_node *n, struct blk_info *out, struct error **err);
    int (*measure)(const void *create_options, uint64_t size, struct blk_node *src,
                   struct blk_measure *out, struct error **err);
    /* Exclusive. Snapshots inside the image, named as block.h says. view: for read-only nodes, contents and size become
     * those of the snapshot. The driver sets the node's size where it changes. */
    int (*snapshot_create)(struct blk_node *n, const struct blk_snapshot *what, struct error **err);
    int (*snapshot_apply)(struct blk_node *n, const char *id, const char *name, struct error **err);
    int (*snapshot_delete)(struct blk_node *n, const char *id, const char *name,
                           struct error **err);
    int (*snapshot_view)(struct blk_node *n, const char *id, const char *name, struct error **err);
    /* Exclusive. Formats that can keep a machine's state: where it begins, as an offset beyond the disk for
     * map_read and the others; bytes > 0: room is made for so many. */
    int (*vm_state)(struct blk_node *n, uint64_t bytes, uint64_t *offset, struct error **err);
    /* The dirty bitmap of this name, which the caller frees; -ENOENT when there is none. A bit stands for
     * 1 << *granularity_bits bytes; it does not change while the node is open. */
    int (*bitmap_load)(struct blk_node *n, const char *name, struct bitmap *bits,
                       unsigned *granularity_bits, struct error **err);
    /* blkdebug: the node above is at this point of its work; and what tests ask for (block.h). */
    void (*event)(struct blk_node *n, enum blk_event event);
    int (*debug)(struct blk_node *n, enum blk_debug_call call, const char *event, const char *tag);
    /* Leaves: bytes the file takes on the disk. */
    int64_t (*actual_size)(struct blk_node *n);
};

/* The drivers a program links; ends with NULL. Defined in formats/registry.c. */
extern const struct driver *const driver_table[];

/* For describe: what a file name means within another, not to be probed. NULL and an error if nothing. */
json_t *describe_file(const char *name, struct error **err);

/* ---- what a driver may ask of and tell its node --------------------------------------------- */

/* The state is the first member of struct blk_node (asserted in node.c). */
static inline void *node_state(struct blk_node *n)
{
    return *(void **)(void *)n;
}

/* EDGE_SECOND is what the driver's second_edge names. */
enum node_edge { EDGE_FILE, EDGE_BACKING, EDGE_DATA_FILE, EDGE_SECOND, EDGE_COUNT };
struct blk_node *node_child(struct blk_node *n, enum node_edge edge); /* NULL: none */

/* The state of n if it is one of drv's, else NULL. */
const void *node_state_as(struct blk_node *n, const struct driver *drv);

/* In open, of DRIVER_EXTENTS: opens one more file that the image states as part of itself, as just bytes. It must lie
 * beneath the image's folder, unless --follow says otherwise or the description names it. The edges are called
 * "extents.0", "extents.1", ... in this order; the node is borrowed. */
enum { EXTENT_READ_ONLY = 1 };
int node_open_extent(struct blk_node *n, const char *stated, unsigned flags, struct blk_node **out,
                     struct error **err);

/* In create: the name that the file will have when it is whole; the backing node of the image (NULL: none), in
 * change_backing the new one of this node;
 * and one more file in the same folder, made or overwritten, size bytes of zeroes and open for writing, to be
 * closed with blk_close. */
const char *node_final_name(struct blk_node *file);
struct blk_node *node_create_backing(struct blk_node *file);
int node_create_beside(struct blk_node *file, const char *name, uint64_t size,
                       enum blk_prealloc prealloc, struct blk_node **out, struct error **err);

unsigned node_open_flags(struct blk_node *n); /* enum blk_open_flag */
bool node_writable(struct blk_node *n);
/* cache.direct, cache.no-flush and discard=unmap as they apply to this node. */
bool node_direct(struct blk_node *n);
bool node_no_flush(struct blk_node *n);
bool node_unmap(struct blk_node *n);

void node_set_size(struct blk_node *n, uint64_t size);
struct node_limits *node_limits(struct blk_node *n); /* to fill in open */
/* In open: the image states this backing file (format NULL: it does not say). Copied; 0 or -ENOMEM. */
int node_set_backing(struct blk_node *n, const char *filename, const char *format);
/* In open, for images that do not name their backing file but say what stands in it: the name of a file in the image's
 * own folder of whose first `len` bytes is_it says yes (it has so many, at least). *name is to be freed; NULL:
 * there is none, or --follow=none does not even look. 0 or -ENOMEM. */
int node_find_beside(struct blk_node *n, size_t len,
                     bool (*is_it)(const void *what, const uint8_t *head), const void *what,
                     char **name);
/* In open: guest data lies in another file. The image states this name, NULL: it states none and the description must.
 * Not opened with BLK_OPEN_NO_IO. Copied; 0 or -ENOMEM. */
int node_set_data_file(struct blk_node *n, const char *filename);
/* Leaves: the name as one would open it again. Copied; 0 or -ENOMEM. */
int node_set_filename(struct blk_node *n, const char *filename);

/* The caller is at this point of its work on `child`. Costs a load where no blkdebug node listens. */
void node_event(struct blk_node *child, enum blk_event event);

/* Bytes that the leaf below takes on the disk, -ENOTSUP when nobody knows. */
int64_t node_actual_size(struct blk_node *n);

/* Something the user should know although the operation goes on (block.h, warnings). */
void node_warn(struct blk_node *n, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Writing past this node's end makes it longer, and there are zeroes until then. */
bool node_grows(struct blk_node *n);
/* In open, by a DRIVER_GROWS leaf whose storage has a fixed size after all (a block device). */
void node_set_fixed_size(struct blk_node *n);

/* A failed metadata update: from now on writes are refused with -EIO until the node is reopened. */
void node_set_failed(struct blk_node *n);

/* Epochs, for quarantine: space freed in epoch e may be used again when node_epoch_passed(e): every
 * request on this node that ran at the time of the free has ended. */
uint64_t node_epoch(struct blk_node *n);
bool node_epoch_passed(struct blk_node *n, uint64_t epoch);

#endif
