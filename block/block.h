/* Platter's block layer: the one public header.
 *
 * A disk image is a node in a graph. A node moves bytes (a file, memory), maps them (qcow2, raw) or
 * filters them (throttle); named edges lead to the nodes it rests on: "file", "backing", "data-file".
 *
 * Units      Offsets and lengths are bytes, 64 bits. There are no sectors.
 * Errors     Data path: 0 or a negative errno. Control path: the same, and *err (when err is not
 *            NULL) gets a sentence for the user, to be freed with blk_error_free. Reads and writes
 *            are whole or failed.
 * Threads    Every data function may be called from any thread, many at once, on one node.
 *            Control functions (resize, check, close, ...) may be called from any thread; they wait
 *            until running requests have ended and hold new ones back meanwhile.
 * Durability What a completed write wrote is safe after the next blk_flush that returned 0.
 */
#ifndef BLOCK_BLOCK_H
#define BLOCK_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define BLK_API __attribute__((visibility("default")))
#else
#define BLK_API
#endif

struct blk_node;
struct error;

/* ---- errors -------------------------------------------------------------------------------- */

BLK_API const char *blk_error_text(const struct error *err);
BLK_API void blk_error_free(struct error *err);

/* Warnings are sentences for the user about what goes on all the same. Without a handler they go to
 * standard error. The handler may be called from any thread, one at a time. */
typedef void blk_warning_fn(void *opaque, const char *text);
BLK_API void blk_on_warning(blk_warning_fn *fn, void *opaque);

/* ---- objects ------------------------------------------------------------------------------- */

/* "tls-creds-x509,id=tls0,dir=..." or a JSON object: something that descriptions of nodes refer to by its id. Kept
 * as long as the process runs. -EEXIST: the id is taken. */
BLK_API int blk_object_add(const char *spec, struct error **err);
/* What it says under this key, its kind under "qom-type"; NULL: nothing, or there is no such object. */
BLK_API const char *blk_object_text(const char *id, const char *key);

/* ---- opening and closing ------------------------------------------------------------------- */

enum blk_open_flag {
    BLK_OPEN_RDWR = 1 << 0,       /* else read-only */
    BLK_OPEN_SHARED = 1 << 1,     /* -U: tolerate other writers of the files (and take no locks) */
    BLK_OPEN_NO_BACKING = 1 << 2, /* do not open backing files: unallocated reads as zero */
    BLK_OPEN_REPAIR = 1 << 3,     /* accept what check is there to repair (dirty, corrupt) */
    BLK_OPEN_UNMAP = 1 << 4,      /* discard=unmap where the description does not say */
    BLK_OPEN_NO_IO = 1 << 5,      /* for info: contents will not be read */
    BLK_OPEN_RESIZE = 1 << 6,     /* the node will be resized; takes the lock for it */
    BLK_OPEN_QUIET = 1 << 7,      /* no warning when raw was probed */
    BLK_OPEN_UNWRAP = 1 << 8,     /* with neither format nor writing: look into gzip, xz and zstd */
};

/* What references stored inside images (backing files) may be followed to. */
enum blk_follow {
    BLK_FOLLOW_DEFAULT, /* what PLATTER_FOLLOW in the environment says, else LOCAL */
    BLK_FOLLOW_NONE,    /* nothing: an image that needs another one does not open */
    BLK_FOLLOW_LOCAL,   /* regular files and block devices, named without protocol or json: */
    BLK_FOLLOW_ANY,
};

struct blk_open_args {
    const char *format; /* NULL: probe by content */
    /* "none" "writeback" "writethrough" "directsync" "unsafe"; NULL: writeback */
    const char *cache;
    const char *node_name;
    bool image_opts; /* the name is key=value,... rather than a file name */
    unsigned flags;  /* enum blk_open_flag */
    enum blk_follow follow;
    /* The node so many backing edges below the top is opened for writing and resizing, too; 0: none. */
    unsigned writable_backing;
    /* The name was found in the image of this name, so `follow` says whether it is opened; NULL: it is the
     * user's own. */
    const char *stated_by;
};

/* name: a file name, "json:{...}", "file:NAME", or with image_opts "driver=qcow2,file.filename=x".
 * JSON object text ("{...}") is taken as a typed description when image_opts is set.
 * Releases nothing to the caller on failure. */
BLK_API int blk_open(const char *name, const struct blk_open_args *args, struct blk_node **out,
                     struct error **err);

/* Another reference to a node. Every reference ends with blk_close. */
BLK_API struct blk_node *blk_ref(struct blk_node *node);

/* Drops a reference. With the last one the node is flushed and closed with all that only it
 * rests on; an error says that the newest writes may not be on the disk. NULL is fine. */
BLK_API int blk_close(struct blk_node *node, struct error **err);

/* ---- what a node is ------------------------------------------------------------------------ */

BLK_API uint64_t blk_size(struct blk_node *node);         /* bytes as a guest sees them */
BLK_API const char *blk_format(struct blk_node *node);    /* driver name: "qcow2" */
BLK_API const char *blk_filename(struct blk_node *node);  /* as one would open it again */
BLK_API const char *blk_node_name(struct blk_node *node); /* "" when it has none */
BLK_API bool blk_read_only(struct blk_node *node);
BLK_API bool blk_probed(struct blk_node *node); /* the format was guessed, not stated */

/* The node at the end of an edge ("file", "backing", "data-file", "extents.0"), NULL if there is none. Borrowed:
 * valid while the caller holds this node and does not change the graph. */
BLK_API struct blk_node *blk_child(struct blk_node *node, const char *edge);
/* Edge number i, from 0; NULL past the last. *name gets the edge's name. */
BLK_API struct blk_node *blk_child_at(struct blk_node *node, unsigned i, const char **name);

struct blk_limits {
    /* Requests that are not aligned to this cost a bounce; power of two. */
    uint32_t align;
    uint32_t cluster_size; /* allocation unit, 0: none */
    /* BLK_COMPRESSED writes: so many bytes at a time, but for the last; 0: cannot. */
    uint64_t max_compressed;
    bool must_compress; /* it holds nothing else: BLK_COMPRESSED writes are the quick ones */
    /* What was zeroed with BLK_MAY_UNMAP costs no space and reads as zeroes. */
    bool unmap_reads_zero;
    bool new_is_zero; /* just created, it reads as zeroes without anybody writing them */
    bool backing_allowed;
};
BLK_API void blk_get_limits(struct blk_node *node, struct blk_limits *out);

/* All strings belong to the struct; freed by blk_info_free. */
struct blk_info {
    char *filename;
    char *format;
    uint64_t virtual_size;
    uint64_t actual_size; /* bytes on the disk, of the node's own file */
    bool actual_size_known;
    uint32_t cluster_size; /* 0: none */
    bool dirty, corrupt, encrypted, compressed;
    char *backing_filename;      /* as the image states it; NULL: none */
    char *full_backing_filename; /* as it would be opened from here */
    char *backing_format;
    char *wrapped;   /* the file is compressed as a whole: "gzip"; NULL: it is not */
    char *specific;  /* JSON object {"type": ..., "data": {...}} or NULL */
    char *snapshots; /* JSON array or NULL */
};
BLK_API int blk_info(struct blk_node *node, struct blk_info *out, struct error **err);
BLK_API void blk_info_free(struct blk_info *info);

/* ---- data path ----------------------------------------------------------------------------- */

enum blk_flag {
    BLK_FUA = 1 << 0,    /* write, zero: durable when it returns */
    BLK_NOWAIT = 1 << 1, /* read, extents, pure overwrite: -EAGAIN rather than wait, nothing changed
                               * but the read buffer */
    BLK_COMPRESSED = 1 << 2,  /* write: store it compressed; begins on a cluster, and what the last
                               * cluster holds behind it must not be written meanwhile */
    BLK_MAY_UNMAP = 1 << 3,   /* zero: may give the space back */
    BLK_NO_FALLBACK = 1 << 4, /* zero: -ENOTSUP rather than write zeroes */
    BLK_LAYER = 1 << 5,       /* extents: this layer only, do not look into backing files */
    BLK_HOLES = 1 << 6,       /* extents: look for holes of the file below data, too */
    BLK_EXPLICIT = 1 << 7,    /* zero: this layer itself is to say so, whatever lies below it */
};

BLK_API int blk_read(struct blk_node *node, uint64_t offset, void *buf, size_t len, unsigned flags);
BLK_API int blk_write(struct blk_node *node, uint64_t offset, const void *buf, size_t len,
                      unsigned flags);
BLK_API int blk_readv(struct blk_node *node, uint64_t offset, const struct iovec *iov, int iovcnt,
                      unsigned flags);
BLK_API int blk_writev(struct blk_node *node, uint64_t offset, const struct iovec *iov, int iovcnt,
                       unsigned flags);
BLK_API int blk_zero(struct blk_node *node, uint64_t offset, uint64_t len, unsigned flags);
/* A hint: may do nothing. Afterwards the range reads as old data or zeroes. */
BLK_API int blk_discard(struct blk_node *node, uint64_t offset, uint64_t len);
BLK_API int blk_flush(struct blk_node *node);

enum blk_extent_flag {
    BLK_EXT_DATA = 1 << 0,      /* has storage: bytes must be read to know them */
    BLK_EXT_ZERO = 1 << 1,      /* reads as zeroes */
    BLK_EXT_ALLOCATED = 1 << 2, /* decided by this node or, without BLK_LAYER, by some layer */
    BLK_EXT_COMPRESSED = 1 << 3,
    BLK_EXT_HOST = 1 << 4, /* host and host_offset are valid */
};

struct blk_extent {
    uint64_t offset;       /* where asked */
    uint64_t length;       /* > 0, at most what was asked */
    unsigned flags;        /* enum blk_extent_flag */
    unsigned depth;        /* 0: this node, 1: its backing node, ... of the layer that decided */
    struct blk_node *host; /* the node (a file) that holds the bytes; borrowed */
    uint64_t host_offset;  /* and where in it */
};

/* The one run that begins at offset; len > 0 and in range. A run may be shorter than the
 * longest possible: ask again where it ends. */
BLK_API int blk_extents(struct blk_node *node, uint64_t offset, uint64_t len, unsigned flags,
                        struct blk_extent *out);

/* Copies on the host (copy_file_range, reflink) without the bytes passing through here. *done gets
 * how many bytes from the start were copied; -ENOTSUP when it cannot. */
BLK_API int blk_copy_range(struct blk_node *src, uint64_t src_offset, struct blk_node *dst,
                           uint64_t dst_offset, uint64_t len, unsigned flags, uint64_t *done);

/* ---- bulk copy ----------------------------------------------------------------------------- */

/* Called from time to time by long work, from one thread at a time: a non-zero answer cancels (-ECANCELED). */
typedef int blk_progress_fn(void *opaque, uint64_t done, uint64_t total);

struct blk_copy_args {
    struct blk_node *src, *dst;
    uint64_t src_offset, dst_offset, length;
    struct blk_node *base; /* copy only what lies above this node of src's chain; NULL: all */
    /* src and dst are one overlay that is to rest on `other` (NULL: on nothing) from now on: what its own
     * layer does not hold, and other reads differently there, is written into it. */
    bool rebase;
    struct blk_node *other;
    unsigned workers;    /* 0: one per core */
    uint64_t memory;     /* bytes of buffers altogether; 0: 64 MiB at most */
    uint64_t min_sparse; /* runs of zeroes at least this long are not written; 0: detection off */
    uint64_t rate_limit; /* bytes per second, 0: none */
    bool compress;
    bool dst_is_zero; /* dst reads as zeroes already (or as its backing, for what base hides) */
    bool offload;     /* try blk_copy_range first */
    bool ordered;     /* write in order of offset */
    bool salvage;     /* unreadable parts become zeroes; reported through bad */
    void (*bad)(void *opaque, uint64_t offset, uint64_t len, int error); /* source offset */
    blk_progress_fn *progress; /* bytes of length dealt with */
    void *opaque;
};
BLK_API int blk_copy(const struct blk_copy_args *args, struct error **err);

/* ---- control ------------------------------------------------------------------------------- */

enum blk_prealloc {
    BLK_PREALLOC_OFF,
    BLK_PREALLOC_METADATA,
    BLK_PREALLOC_FALLOC,
    BLK_PREALLOC_FULL,
};

BLK_API int blk_resize(struct blk_node *node, uint64_t size, enum blk_prealloc prealloc,
                       struct error **err);

/* Rewrites what the image says of its backing file, in one write of its header; durable when it returns, and all
 * that was written before is durable before. The open graph stays as it is. filename NULL: it has none; format
 * NULL: it does not say. The name is stored as given (blk_resolve says what it means). -ENOTSUP when the
 * format has no backing files, -ENOSPC when the name does not fit into the header. */
BLK_API int blk_change_backing(struct blk_node *node, const char *filename, const char *format,
                               struct error **err);

/* What a name means that the file `from` states: relative ones lie beneath its folder. To be freed with
 * free(); NULL: no memory. */
BLK_API char *blk_resolve(const char *from, const char *name);

/* Forgets all that this layer holds, so that every read asks the backing node. Interrupted, it has forgotten some
 * of it. -ENOTSUP when the format cannot. */
BLK_API int blk_make_empty(struct blk_node *node, struct error **err);

/* Changes options of an image that is there: "compat=1.1,refcount_bits=8,...", as
 * blk_driver_amend_option_at lists them. All are judged before anything is changed. progress (may be NULL)
 * counts steps; a non-zero answer stops with -ECANCELED and an image that is whole. */
BLK_API int blk_amend(struct blk_node *node, const char *options, blk_progress_fn *progress,
                      void *opaque, struct error **err);

struct blk_create_args {
    const char *filename;
    const char *final_name; /* that the file is to get when it is whole; NULL: filename */
    const char *format;     /* required: "qcow2", "raw" */
    const char *options;    /* "key=value,..." or NULL */
    bool size_given;
    uint64_t size;            /* bytes; without it, the backing file's */
    const char *backing_file; /* as stored; resolved against filename */
    const char *backing_format;
    bool backing_unchecked; /* -u: do not open the backing file */
};
/* Makes (or replaces the content of) the file. *summary (when not NULL, to be freed) gets the
 * effective options as "cluster_size=65536 compression_type=zlib size=...". */
BLK_API int blk_create(const struct blk_create_args *args, char **summary, struct error **err);

enum blk_fix { BLK_FIX_LEAKS = 1, BLK_FIX_ERRORS = 2 };

struct blk_check {
    uint64_t corruptions, leaks, check_errors;
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t image_end_offset;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
};

struct blk_check_hooks {
    /* One finding, without newline: "ERROR cluster 3 refcount=0 reference=1". May be NULL. */
    void (*message)(void *opaque, const char *text);
    blk_progress_fn *progress;
    void *opaque;
};

/* -ENOTSUP when the format has nothing to check. With fix the node must be open for writing;
 * *out then tells what was found and what was mended, as of before and after. */
BLK_API int blk_check(struct blk_node *node, unsigned fix, struct blk_check *out,
                      const struct blk_check_hooks *hooks, struct error **err);

/* ---- snapshots inside an image ----------------------------------------------------------------- */

/* What a new snapshot says of itself. */
struct blk_snapshot {
    const char *name;             /* at most 255 bytes; need not be unique */
    uint32_t date_sec, date_nsec; /* since 1970 */
    uint64_t vm_clock_nsec;       /* the machine's clock; 0 without one */
    uint64_t vm_state_size;       /* bytes written before by blk_vm_state_write; 0: none */
    uint64_t icount;              /* instructions executed; UINT64_MAX: not counted */
};

/* Keeps the present state of the disk inside the image. Where formats number snapshots, this one gets the highest
 * number so far plus one. -ENOTSUP: the format has no snapshots. blk_info lists them. */
BLK_API int blk_snapshot_create(struct blk_node *node, const struct blk_snapshot *what,
                                struct error **err);
/* Of the next three, each means the first snapshot with this id and this name, NULL meaning any; -ENOENT
 * when there is none. apply: the disk becomes what it was, its size included; what it is now is lost. */
BLK_API int blk_snapshot_apply(struct blk_node *node, const char *id, const char *name,
                               struct error **err);
BLK_API int blk_snapshot_delete(struct blk_node *node, const char *id, const char *name,
                                struct error **err);
/* For nodes opened read-only: they show the snapshot from now on, its size included. */
BLK_API int blk_snapshot_view(struct blk_node *node, const char *id, const char *name,
                              struct error **err);

/* The saved state of a machine (its memory, its devices), beside the disk. A snapshot made after writing it takes
 * it along, and the disk forgets it; apply and view bring it back. Position and length are bytes;
 * what was not written reads as zeroes. */
BLK_API int blk_vm_state_write(struct blk_node *node, uint64_t pos, const void *buf, size_t len);
BLK_API int blk_vm_state_read(struct blk_node *node, uint64_t pos, void *buf, size_t len);

/* ---- dirty bitmaps inside an image -------------------------------------------------------------- */

/* What was written since somebody began to count, as the image keeps it. In memory: 256 MiB at most. */
struct blk_bitmap;
/* The first of this name in the node and its backing files. -ENOENT: there is none; -EBUSY: it was not saved. */
BLK_API int blk_bitmap_open(struct blk_node *node, const char *name, struct blk_bitmap **out,
                            struct error **err);
/* Whether offset is dirty; *length comes in as a limit and says how far that goes. Any thread. */
BLK_API bool blk_bitmap_at(const struct blk_bitmap *bitmap, uint64_t offset, uint64_t *length);
BLK_API void blk_bitmap_close(struct blk_bitmap *bitmap); /* NULL is fine */

struct blk_measure {
    uint64_t required;        /* bytes that the file needs for this content */
    uint64_t fully_allocated; /* and when every guest byte has been written */
};
/* For a new image of that format holding the size given or src's content (src may be NULL). */
BLK_API int blk_measure(const char *format, const char *options, uint64_t size,
                        struct blk_node *src, struct blk_measure *out, struct error **err);

/* ---- stopping at points, for tests ------------------------------------------------------------ */

/* Where a blkdebug node lies at or below `node`: BREAK stops the next request that comes to the event and gives it the
 * tag; RESUME lets it go on; REMOVE_BREAK forgets the tag (and lets it go on); IS_SUSPENDED answers 1 or
 * 0. -ENOTSUP without such a node, -ENOENT for an unknown event or tag. event: only for BREAK. */
enum blk_debug_call {
    BLK_DEBUG_BREAK,
    BLK_DEBUG_REMOVE_BREAK,
    BLK_DEBUG_RESUME,
    BLK_DEBUG_IS_SUSPENDED,
};
BLK_API int blk_debug(struct blk_node *node, enum blk_debug_call call, const char *event,
                      const char *tag);

/* ---- the drivers --------------------------------------------------------------------------- */

enum blk_driver_kind { BLK_PROTOCOL = 1, BLK_FORMAT = 2, BLK_FILTER = 4 };

struct blk_option_info {
    const char *name;
    const char *type; /* "bool" "size" "num" "str" or "a|b|c" for a choice */
    const char *help;
    const char *def; /* NULL: none */
};

struct blk_driver_info {
    const char *name;
    unsigned kind; /* enum blk_driver_kind */
    bool can_create, can_write, can_check, can_resize, can_compress, can_amend;
    bool has_extents; /* its images may name files that hold parts of them */
};

/* Driver number i, from 0; -ENOENT past the last. */
BLK_API int blk_driver_at(unsigned i, struct blk_driver_info *out);
/* Option number i of a driver; create: of making an image, else of opening one. -ENOENT past the last
 * or for an unknown driver. */
BLK_API int blk_driver_option_at(const char *driver, bool create, unsigned i,
                                 struct blk_option_info *out);
/* The same for the options that blk_amend changes. */
BLK_API int blk_driver_amend_option_at(const char *driver, unsigned i, struct blk_option_info *out);

#ifdef __cplusplus
}
#endif

#endif
