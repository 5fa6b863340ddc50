/* VMDK: one disk made of extents.
 *
 * A text, the descriptor, names the extents in the order in which the disk goes through them. It is a file of its own, or
 * lies inside the one sparse extent. Extents are flat (bytes as they are), or sparse: grains (units of storage) found
 * through a grain directory (GD) of grain tables (GTs), kept twice in most files. Offsets on disk are sectors of 512.
 *
 *   hosted   "KDMV", little endian, 512 entries of 4 bytes in a GT; grains may be compressed, each behind a marker
 *   stream   hosted, compressed, and the directory lies at the end, named by a footer (stream.c)
 *   COWD     the older kind of ESX, 4096 entries of 4 bytes in a GT; read only
 *   SE       "space efficient", 4096 entries of 8 bytes in a GT; read only
 *
 * Sources: the published "Virtual Disk Format 5.0" for all but SE.
 *
 * Threads: `lock` guards tables and allocation, and is never held while guest data moves; commit_lock is taken before
 * it, by who writes metadata. What open sets is only read afterwards.
 */
#ifndef VMDK_H
#define VMDK_H

#include <stdatomic.h>

#include "base/bytes.h"
#include "base/vector.h"
#include "block/driver.h"
#include "block/quarantine.h"
#include "block/table_cache.h"

#define SECTOR UINT64_C(512)

#define VMDK_MAGIC UINT32_C(0x564d444b) /* "KDMV" */
#define COWD_MAGIC UINT32_C(0x44574f43) /* "COWD" */
#define SE_MAGIC   UINT64_C(0xcafebabe)

enum {
    VMDK_NL_TEST = 1 << 0,
    VMDK_REDUNDANT = 1 << 1,
    VMDK_ZEROED = 1 << 2, /* GT entry 1: a grain of zeroes */
    VMDK_COMPRESSED = 1 << 16,
    VMDK_MARKERS = 1 << 17,
};

enum { VMDK_DEFLATE = 1 };                          /* compressAlgorithm */
#define VMDK_GD_AT_END UINT64_C(0xffffffffffffffff) /* gdOffset: see the footer */

/* Types of the markers between the grains of a stream. */
enum { MARKER_EOS, MARKER_GT, MARKER_GD, MARKER_FOOTER };

#define GRAIN_MARKER 12 /* bytes: u64 sector of the disk, u32 length of what follows */

#define NO_PARENT UINT32_C(0xffffffff) /* parentCID */

#define MAX_DESCRIPTOR (UINT64_C(1) << 20)
#define MAX_EXTENTS    4096
#define MAX_GD         (UINT64_C(8) << 20) /* entries */
#define MAX_GRAIN      (UINT64_C(1) << 30)
#define MAX_ENCODED    (UINT64_C(64) << 20) /* a compressed grain is decoded in memory */

/* ---- descriptor.c ------------------------------------------------------------------------------- */

enum vmdk_access { ACCESS_RW, ACCESS_RDONLY, ACCESS_NOACCESS };

struct vmdk_line {
    enum vmdk_access access;
    uint64_t sectors;
    char type[16];
    char *name;      /* NULL: ZERO */
    uint64_t offset; /* sectors */
    bool has_offset;
    size_t at, len; /* of the line in the text */
};

struct vmdk_desc {
    char *text; /* as in the file, up to the first NUL; NULL: there is none */
    size_t len;
    uint32_t version;
    uint32_t cid, parent_cid;
    size_t cid_at, parent_cid_at; /* of the number in the text; 0: there is none */
    size_t cid_len, parent_cid_len;
    char create_type[32];
    char *parent_hint;
    VECTOR(struct vmdk_line) lines;
};

/* Takes text over, also when it fails. name: for messages. */
int vmdk_desc_parse(struct vmdk_desc *d, const char *name, char *text, size_t len,
                    struct error **err);
void vmdk_desc_free(struct vmdk_desc *d);
bool vmdk_looks_like_desc(const char *text, size_t len);

/* What a new descriptor says. */
struct vmdk_new {
    const char *create_type;
    uint32_t cid, parent_cid;
    const char *parent_hint; /* NULL: none */
    const char *hwversion, *adapter, *toolsversion;
    const char *extents; /* lines */
    uint64_t size;
};
/* To be freed; NULL: no memory. */
char *vmdk_desc_build(const struct vmdk_new *n);
/* The text with another parent: its name (NULL: none) and CID. To be freed; NULL: no memory. */
char *vmdk_desc_reparented(const struct vmdk_desc *d, const char *hint, uint32_t cid);
/* The text with line i's number of sectors changed. To be freed; NULL: no memory. */
char *vmdk_desc_resized(const struct vmdk_desc *d, size_t i, uint64_t sectors);

/* ---- extents ------------------------------------------------------------------------------------ */

enum extent_kind { EXTENT_FLAT, EXTENT_ZERO, EXTENT_HOSTED, EXTENT_COWD, EXTENT_SE };

/* The header of a hosted sparse extent, and of a footer. */
struct vmdk_header {
    uint32_t version, flags;
    uint64_t capacity, grain; /* sectors, as all that follow */
    uint64_t desc_offset, desc_size;
    uint32_t gt_entries;
    uint64_t rgd, gd, overhead;
    uint8_t unclean;
    uint16_t algorithm;
};

struct vmdk_range {
    uint64_t from, to;
};

struct vmdk_extent {
    /* set by open */
    enum extent_kind kind;
    const char *name, *type; /* as stated; type "": it is the image itself */
    struct blk_node *file;   /* NULL: EXTENT_ZERO */
    bool read_only;
    uint64_t start, end;  /* guest bytes */
    uint64_t flat_offset; /* bytes */
    uint32_t grain;       /* bytes */
    uint32_t gt_entries, entry_size, gt_size;
    uint64_t gt_span; /* guest bytes that one GT maps */
    uint32_t gd_entries;
    uint64_t tables_offset, grains_offset; /* SE */
    bool compressed, markers, zeroed;
    bool redundant;            /* there is a second GD with GTs of its own */
    bool stream;               /* the directory is at the end */
    bool used_redundant;       /* the first GD was bad */
    struct table_cache *cache; /* of GTs, by offset; NULL: all are in `tables` */

    /* under the lock */
    struct vmdk_header header; /* hosted */
    uint32_t *gd, *rgd;        /* sectors; SE: number of the GT plus one */
    bool gd_dirty;
    uint32_t gd_from, gd_to; /* entries [from, to) that are not on the disk */
    uint32_t *order;         /* numbers of GTs by place, when redundant and writable */
    uint32_t order_len;
    VECTOR(struct vmdk_range) meta; /* where metadata lies: sorted, apart; writable only */
    uint64_t fresh;                 /* from here on nothing of the file was ever used */
    uint64_t extended;              /* the file was made at least so long */
    uint64_t gt_room, gt_room_end;  /* for new GTs */
    bool unsynced;                  /* data was written to new grains since the last commit */
    freed_list freed;               /* unmapped in memory, not yet on the disk */
    freed_list quarantine;          /* unmapped on the disk, waiting for their epoch */
    VECTOR(uint64_t) free;          /* grains to take before fresh ones */
    /* streams that are written to, or were found by their markers */
    uint8_t **tables; /* by GD entry; NULL: empty */
    uint8_t *table_dirty;
    bool dirty;          /* something of the directory is not on the disk */
    bool footer_lost;    /* the tables were found by the grains' markers */
    uint64_t stream_end; /* of what the footer, or the last good marker, ends */
    uint64_t log_end;    /* of the last footer that this session wrote; 0: none */
};

struct vmdk {
    struct blk_node *node;
    struct blk_node *file; /* what was opened: the descriptor's file, or the sparse extent */
    struct vmdk_desc desc;
    uint64_t desc_offset,
        desc_room; /* bytes in `file`; room UINT64_MAX: as far as the file grows */
    VECTOR(struct vmdk_extent) extents;
    bool embedded; /* the one extent is `file` itself */
    bool must_encode;
    bool damaged; /* opened for repair only: something of it is not to be relied on */
    _Atomic bool corrupt_seen;

    struct rwlock lock;
    pthread_mutex_t commit_lock;
    _Atomic bool many_freed;

    pthread_mutex_t cid_lock;
    _Atomic bool cid_changed;
};

/* ---- geometry -------------------------------------------------------------------------------- */

static inline bool extent_sparse(const struct vmdk_extent *e)
{
    return e->kind >= EXTENT_HOSTED;
}

static inline uint64_t table_place(const struct vmdk_extent *e, uint32_t i)
{
    if (e->kind == EXTENT_SE)
        return e->tables_offset + (uint64_t)(e->gd[i] - 1) * e->gt_size;
    return e->gd[i] * SECTOR;
}

enum grain_kind { GRAIN_NONE, GRAIN_ZERO, GRAIN_DATA };

/* Entry number k of a table; *offset: in the file. */
static inline enum grain_kind grain_at(const struct vmdk_extent *e, const uint8_t *table,
                                       uint32_t k, uint64_t *offset)
{
    if (e->kind == EXTENT_SE) {
        uint64_t x = load_le64(table + 8 * (size_t)k);
        unsigned kind = (unsigned)(x >> 60);
        uint64_t number = (x >> 48 & 0xfff) | (x & UINT64_C(0xffffffffffff)) << 12;
        if (kind < 3)
            return kind == 0 ? GRAIN_NONE : GRAIN_ZERO;
        if (kind > 3 || __builtin_mul_overflow(number, e->grain, offset) ||
            __builtin_add_overflow(*offset, e->grains_offset, offset))
            *offset = UINT64_MAX;
        return GRAIN_DATA;
    }
    uint32_t x = load_le32(table + 4 * (size_t)k);
    *offset = x * SECTOR;
    return x == 0 ? GRAIN_NONE : x == 1 && e->zeroed ? GRAIN_ZERO : GRAIN_DATA;
}

static inline uint32_t gt_of(const struct vmdk_extent *e, uint64_t guest)
{
    return (uint32_t)((guest - e->start) / e->gt_span);
}

static inline uint32_t index_of(const struct vmdk_extent *e, uint64_t guest)
{
    return (uint32_t)((guest - e->start) % e->gt_span / e->grain);
}

static inline uint64_t in_grain(const struct vmdk_extent *e, uint64_t guest)
{
    return (guest - e->start) % e->grain;
}

/* ---- open.c, header.c -------------------------------------------------------------------------- */

int vmdk_open(struct blk_node *n, const void *options, struct error **err);
int vmdk_close(struct blk_node *n, struct error **err);
int vmdk_backing_opened(struct blk_node *n, struct error **err);
extern const struct driver vmdk_driver;

/* Reads 512 bytes and parses them; name: for messages. */
int vmdk_header_read(struct blk_node *file, uint64_t offset, struct vmdk_header *h,
                     struct error **err);
void vmdk_header_build(const struct vmdk_header *h, uint8_t out[512]);
/* Fills e from its file, which has the magic of its kind. */
int vmdk_sparse_open(struct vmdk *v, struct vmdk_extent *e, struct error **err);
int vmdk_cowd_open(struct vmdk *v, struct vmdk_extent *e, struct error **err);
int vmdk_se_open(struct vmdk *v, struct vmdk_extent *e, struct error **err);
void vmdk_extent_free(struct vmdk_extent *e);
/* Metadata ranges: added when tables are made; 0 or -ENOMEM. */
int vmdk_meta_add(struct vmdk_extent *e, uint64_t from, uint64_t len);
bool vmdk_meta_at(const struct vmdk_extent *e, uint64_t from, uint64_t len);
/* The ranges, and the tables by place, from where the metadata is now: after opening and after repairs. */
int vmdk_note_metadata(struct vmdk *v, struct vmdk_extent *e);

/* Marks the image corrupt in this session: no more is written to it. -EIO. */
int vmdk_corrupt(struct vmdk *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- map.c --------------------------------------------------------------------------------------- */

struct vmdk_extent *vmdk_extent_at(struct vmdk *v, uint64_t guest);
/* The lock is held. 0, -ENOENT (there is none), TABLE_RELOCKED, or an error. */
int vmdk_table(struct vmdk *v, struct vmdk_extent *e, uint32_t i, bool exclusive, bool nowait,
               uint8_t **table);
int vmdk_check_place(struct vmdk *v, const struct vmdk_extent *e, uint64_t guest, uint64_t offset);
int vmdk_map_read(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                  struct mapping *m);
int vmdk_decode(struct blk_node *n, const struct mapping *m, const void *in, size_t in_len,
                void *out, size_t out_len);
int vmdk_decode_extent(const struct vmdk_extent *e, const struct mapping *m, const void *in,
                       size_t in_len, void *out, size_t out_len);
int64_t vmdk_encode(struct blk_node *n, uint64_t unit_offset, const void *in, size_t in_len,
                    void *out, size_t out_cap);
enum { ENCODE_ROOM = 4096 };

/* ---- write.c, alloc.c, commit.c, stream.c, empty.c ------------------------------------------------ */

int vmdk_write_begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                     uint64_t encoded_length, struct write_plan *p);
int vmdk_write_end(struct blk_node *n, struct write_plan *p, int result);
int vmdk_zero_range(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
int vmdk_discard_range(struct blk_node *n, uint64_t off, uint64_t len);
int vmdk_make_empty(struct blk_node *n, struct error **err);
/* Empties the entries of [off, end), whole grains of one extent. */
int vmdk_forget_grains(struct vmdk *v, struct vmdk_extent *e, uint64_t off, uint64_t end);

/* The lock is exclusive. `count` grains in a row, less if so many are not to be had; *fresh: never used. */
int vmdk_alloc(struct vmdk *v, struct vmdk_extent *e, uint32_t count, uint64_t *offset,
               uint32_t *got, bool *fresh);
/* The same for one encoded grain. */
int vmdk_alloc_bytes(struct vmdk *v, struct vmdk_extent *e, uint64_t bytes, uint64_t *offset);
/* A new, empty GT number i, published in memory. 0 or an error. */
int vmdk_make_table(struct vmdk *v, struct vmdk_extent *e, uint32_t i);
/* The table of entry i was changed. */
void vmdk_table_touch(struct vmdk_extent *e, uint32_t i, uint8_t *table);
void vmdk_free_later(struct vmdk *v, struct vmdk_extent *e, uint64_t offset, uint64_t length);

int vmdk_commit(struct vmdk *v, bool durable);
/* No request runs: commits, and frees all that was unmapped. */
int vmdk_settle(struct vmdk *v);
int vmdk_commit_if_pressed(struct vmdk *v);
int vmdk_flush(struct blk_node *n);
/* Writes a new random CID, once in a session; before the first change. */
int vmdk_change_cid(struct vmdk *v);
int vmdk_write_cid(struct vmdk *v, bool parent, uint32_t cid);

/* Streams: reads the directory that the footer names, or finds the grains by their markers. */
int vmdk_stream_find(struct vmdk *v, struct vmdk_extent *e, struct error **err);
int vmdk_stream_load(struct vmdk *v, struct vmdk_extent *e, struct error **err);
/* commit_lock is held: writes tables, directory and footer behind the grains. */
int vmdk_stream_commit(struct vmdk *v, struct vmdk_extent *e);
/* An empty directory with its footer. */
int vmdk_stream_create(struct blk_node *file, const struct vmdk_header *h);

/* ---- the rest ------------------------------------------------------------------------------------ */

struct vmdk_create_options {
    char *adapter_type, *backing_file, *backing_fmt, *hwversion, *toolsversion;
    bool compat6;
    int subformat;
    bool zeroed_grain;
    uint64_t size;
    int preallocation;
};
extern const struct opt_def vmdk_create_table[];
int vmdk_check_create(const void *options, struct error **err);
int vmdk_create(struct blk_node *file, const void *options, struct error **err);
int vmdk_measure(const void *options, uint64_t size, struct blk_node *src, struct blk_measure *out,
                 struct error **err);
/* The places of a new hosted extent of so many sectors. */
void vmdk_layout(struct vmdk_header *h, uint64_t sectors);
/* Writes both directories and the tables' places. */
int vmdk_write_directories(struct blk_node *file, const struct vmdk_header *h);

/* Line i's number of sectors, in place; what else the descriptor says stays. */
/* Takes over the text in force from now on; extents borrow their names from it. */
int vmdk_desc_adopt(struct vmdk *v, char *text, struct error **err);
int vmdk_change_backing(struct blk_node *n, const char *filename, const char *format,
                        struct error **err);
int vmdk_desc_rewrite(struct vmdk *v, size_t i, uint64_t sectors, struct error **err);
int vmdk_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err);
int vmdk_check(struct blk_node *n, unsigned fix, struct blk_check *out,
               const struct blk_check_hooks *hooks, struct error **err);
int vmdk_info(struct blk_node *n, struct blk_info *out, struct error **err);

#endif
