/* VHDX, version 1, as [MS-VHDX] ("Spec") lays it out.
 *
 * Where things are
 *   vhdx.c     the driver record, open and close, info
 *   vhdx_layout.h guid.c crc32c.c   the numbers on disk, GUIDs, checksums
 *   header.c   the two headers
 *   region.c   the region tables
 *   metadata.c metadata items
 *   locator.c  where the parent is
 *   log.c      the log that was found: its active sequence, replay
 *   log_write.c  writing entries
 *   bat.c      the block allocation table in memory
 *   space.c    which MiB of the file are in use
 *   bitmap.c   sector bitmaps of differencing images
 *   map.c write.c unmap.c   guest offset to place, for reading, writing, zeroing
 *   commit.c   the order in which things reach the disk
 *   create.c resize.c relink.c check.c repair.c
 *
 * What is on the disk
 *   The file is parted into MiB. The header section is the first; log, metadata, block allocation table (BAT), payload
 *   and sector bitmap blocks lie anywhere behind it, aligned to a MiB. Nothing tells which MiB are free: those that
 *   nothing refers to.
 *
 * Invariants (tests cite them)
 *  V1  Metadata pages (4 KiB of the BAT, sector bitmaps, region tables, metadata) change in place only when
 *      the log entry that says so is durable. An entry is overwritten only when what it says is durable in its
 *      place and a younger entry is durable.
 *  V2  Guest data, copied edges and zeroes are durable before the log entry that maps them.
 *  V3  A freed block is reused only when its unmapping is durable and every request that ran at the time of
 *      the free has ended (commit.c, quarantine).
 *  V4  A block's BAT entry and bitmap bits change only under a reservation of the block (block/reserve.h).
 *  V5  A header that names a log is written only when the log holds an entry of that name.
 *  V6  No file space is given away twice: space.c knows of all that is referred to, and an image where two
 *      things lie in one place is opened read-only at most.
 *  V7  Storage of a block, where no sector of it was written, reads as zeroes from the moment that it is mapped.
 *
 * Threads
 *   `lock` guards the BAT, the space map and the lists; shared to look up, exclusive to change. It is never
 *   held across guest data or a flush. `commit_lock` makes commits one at a time, `session_lock` the first
 *   header update; rank: session_lock, commit_lock, lock.
 */
#ifndef VHDX_H
#define VHDX_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bitmap.h"
#include "base/rwlock.h"
#include "base/vector.h"
#include "block/driver.h"
#include "block/quarantine.h"
#include "block/table_cache.h"
#include "vhdx_layout.h"

/* ---- header.c ----------------------------------------------------------------------------------- */

struct vhdx_header {
    uint64_t sequence;
    struct vhdx_guid file_write, data_write, log;
    uint32_t log_length;
    uint64_t log_offset;
};

struct vhdx_headers {
    struct vhdx_header current;
    unsigned slot;   /* that the current one is in */
    bool damaged[2]; /* that copy is not valid */
};

int vhdx_headers_read(struct blk_node *file, struct vhdx_headers *h, struct error **err);
/* Writes h->current with the next sequence number over the other copy, which becomes the current one when
 * that is durable: everything before is durable first. */
int vhdx_header_write(struct blk_node *file, struct vhdx_headers *h);
void vhdx_header_build(const struct vhdx_header *h, uint8_t page[VHDX_PAGE]);

/* ---- log.c ---------------------------------------------------------------------------------------- */

/* One change of the active sequence, oldest first. */
struct vhdx_change {
    uint64_t offset, length; /* in the file; a page unless zero */
    bool zero;
    uint64_t sector;  /* in the log: the data sector */
    uint8_t edge[12]; /* the first 8 bytes of the page and the last 4 */
};
typedef VECTOR(struct vhdx_change) vhdx_changes;

/* The active sequence of a log that must be replayed. */
struct vhdx_replay {
    vhdx_changes changes;
    uint64_t flushed, last; /* file sizes that the newest entry states */
};

int vhdx_log_find(struct blk_node *file, const struct vhdx_header *h, struct vhdx_replay *out,
                  struct error **err);
/* Reads bytes of the file as they will be when the log is replayed. */
int vhdx_replayed_read(struct blk_node *file, const struct vhdx_header *h,
                       const struct vhdx_replay *r, uint64_t offset, void *buf, size_t len);
int vhdx_replay(struct blk_node *file, struct vhdx_headers *h, const struct vhdx_replay *r,
                struct error **err);
void vhdx_replay_free(struct vhdx_replay *r);

/* ---- region.c ------------------------------------------------------------------------------------- */

struct vhdx_place {
    uint64_t offset, length; /* length 0: there is none */
};

struct vhdx_region {
    struct vhdx_guid guid;
    struct vhdx_place place;
    bool required;
};

struct vhdx_regions {
    VECTOR(struct vhdx_region) all;
    struct vhdx_place bat, metadata;
    bool damaged[2]; /* that copy is not valid, or says something else than the first */
};

struct vhdx; /* below */
int vhdx_regions_read(struct vhdx *v, struct error **err);
/* A whole table, from the regions in memory. */
void vhdx_regions_build(const struct vhdx_regions *r, uint8_t table[VHDX_REGION_TABLE]);

/* ---- metadata.c ------------------------------------------------------------------------------------ */

struct vhdx_meta {
    uint32_t block_size, logical, physical;
    uint32_t flags; /* PARAM_ */
    uint64_t size;
    struct vhdx_guid id;
    uint64_t size_at;            /* where in the file the disk's size stands */
    struct vhdx_place locator;   /* the parent locator item, in the file */
    char *parent;                /* a file name as the image states it, NULL: none */
    struct vhdx_guid linkage[2]; /* data write GUIDs that the parent may have */
    unsigned linkages;
};

int vhdx_metadata_read(struct vhdx *v, struct error **err);
/* locator.c: fills parent and linkage from the bytes of the item. */
int vhdx_locator_parse(const char *name, const uint8_t *item, size_t len, struct vhdx_meta *m,
                       struct error **err);
/* Where in the item the value of this key is, if it is a GUID in braces; 0: there is none. */
size_t vhdx_locator_find(const uint8_t *item, size_t len, const char *wanted);
/* The item for a parent with this name; NULL: no memory or no such name can be stored. */
uint8_t *vhdx_locator_build(const char *parent, const struct vhdx_guid *linkage, size_t *len,
                            struct error **err);

/* ---- the image -------------------------------------------------------------------------------------- */

/* Four KiB of metadata that is to be changed. */
struct vhdx_page {
    uint64_t offset;
    const uint8_t *bytes;
};
typedef VECTOR(struct vhdx_page) vhdx_pages;

struct vhdx {
    struct blk_node *node, *file;

    /* changed by open, resize and check only, when nothing else runs */
    struct vhdx_headers headers; /* the header: also under commit_lock, session_lock */
    struct vhdx_replay replay;   /* read-only: the log is replayed in memory */
    bool dirty;                  /* there is something to replay */
    struct vhdx_regions regions;
    struct vhdx_meta meta;
    uint32_t block_bits, sector_bits, chunk_bits; /* a chunk is 1 << chunk_bits payload blocks */
    bool differencing, fixed, grows;
    bool writing;     /* what writers need is there */
    uint64_t entries; /* of the BAT that the disk's size needs */
    _Atomic bool corrupt_seen;

    struct rwlock lock;

    /* under lock */
    uint64_t *bat;              /* entries, host order */
    struct bitmap bat_dirty;    /* pages of the BAT that are not on the disk */
    _Atomic uint64_t bat_pages; /* how many of them */
    struct table_cache *bits;   /* pages of sector bitmaps; NULL: not differencing */
    struct bitmap used;         /* MiB of the file; longer than it */
    uint64_t units;             /* MiB that the file has */
    uint64_t fresh;             /* MiB from here on were never used and read as zeroes */
    uint64_t hint;              /* no room for a block begins below this MiB */
    freed_list freed;           /* in units of a MiB; unmapped in memory, not yet on the disk */
    freed_list quarantine;      /* unmapped on the disk, waiting for their epoch */
    _Atomic bool many_freed;
    bool trim; /* the file may be longer than what it holds */

    pthread_mutex_t session_lock;
    _Atomic bool session;             /* the header says that somebody writes */
    struct vhdx_guid next_data_write; /* what it will say then */

    pthread_mutex_t commit_lock;
    /* under commit_lock */
    uint64_t log_at;       /* where in the log the next entry goes */
    uint64_t log_sequence; /* its number */
    bool log_stuck; /* the newest entry is not in its place, and nobody will write it there */
    bool log_named; /* the header on the disk names the log for certain */
};

/* ---- geometry ------------------------------------------------------------------------------------------ */

static inline uint64_t block_of(const struct vhdx *v, uint64_t guest)
{
    return guest >> v->block_bits;
}

static inline uint64_t in_block(const struct vhdx *v, uint64_t guest)
{
    return guest & (v->meta.block_size - 1);
}

/* The BAT entry of a payload block: after each chunk's there is one for the chunk's sector bitmap. */
static inline uint64_t bat_index(const struct vhdx *v, uint64_t block)
{
    return block + (block >> v->chunk_bits);
}

/* The entry of the sector bitmap block for this payload block. */
static inline uint64_t bitmap_index(const struct vhdx *v, uint64_t block)
{
    uint64_t chunk = block >> v->chunk_bits;

    return ((chunk + 1) << v->chunk_bits) + chunk;
}

static inline enum vhdx_state entry_state(uint64_t entry)
{
    return (enum vhdx_state)(entry & BAT_STATE);
}

static inline bool entry_stored(uint64_t entry)
{
    return entry_state(entry) == BLOCK_PRESENT || entry_state(entry) == BLOCK_PARTIAL;
}

/* MiB that a block takes. */
static inline uint64_t block_units(const struct vhdx *v)
{
    return v->meta.block_size / VHDX_MIB;
}

/* Entries of the BAT that a disk of this size needs (Spec 2.5). */
uint64_t vhdx_entries_for(uint64_t size, uint32_t block_bits, uint32_t chunk_bits,
                          bool differencing);

/* ---- vhdx.c ---------------------------------------------------------------------------------------------- */

extern const struct driver vhdx_driver;

/* Warns once and stops writing. -EIO. */
int vhdx_corrupt(struct vhdx *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Metadata as it is when the log is replayed. */
int vhdx_read(struct vhdx *v, uint64_t offset, void *buf, size_t len);

/* ---- bat.c ----------------------------------------------------------------------------------------------- */

/* It lies in the file. */
int vhdx_bat_check(struct vhdx *v, struct error **err);
int vhdx_bat_load(struct vhdx *v, struct error **err);
/* The lock is exclusive. */
void vhdx_bat_set(struct vhdx *v, uint64_t index, uint64_t entry);
void vhdx_bat_touch_page(struct vhdx *v, uint64_t page);
/* What a page of the BAT says now. */
void vhdx_bat_page(const struct vhdx *v, uint64_t page, uint8_t out[VHDX_PAGE]);

/* ---- space.c --------------------------------------------------------------------------------------------- */

/* Collects what the image refers to. -EINVAL: *what tells what lies where something else does, or out of the file. */
int vhdx_space_build(struct vhdx *v, char **what);
/* The lock is exclusive. Takes `count` MiB in a row; *clean: they read as zeroes. */
int vhdx_space_take(struct vhdx *v, uint64_t count, uint64_t *unit, bool *clean);
void vhdx_space_release(struct vhdx *v, uint64_t unit, uint64_t count);
/* The MiB behind the last that is in use. */
uint64_t vhdx_space_end(const struct vhdx *v);
/* To be called with what vhdx_space_take gave, and no lock: makes it read as zeroes. */
int vhdx_space_clean(struct vhdx *v, uint64_t unit, uint64_t count, bool clean);

/* ---- bitmap.c -------------------------------------------------------------------------------------------- */

/* The run of sectors at guest offset `off` that are alike, of at most len bytes. 0, TABLE_RELOCKED or an
 * error; the lock is held as `exclusive` says. */
int vhdx_bits_run(struct vhdx *v, uint64_t off, uint64_t len, bool exclusive, bool nowait,
                  bool *present, uint64_t *run);
/* Exclusive: the sectors of [off, off+len) are present from now on or not. -EAGAIN never; TABLE_RELOCKED: once
 * more, all of it. */
int vhdx_bits_set(struct vhdx *v, uint64_t off, uint64_t len, bool present);

/* ---- map.c, write.c, unmap.c ------------------------------------------------------------------------------ */

int vhdx_map_read(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                  struct mapping *m);
/* The block's storage lies inside the file. */
int vhdx_check_place(struct vhdx *v, uint64_t guest, uint64_t entry);
int vhdx_write_begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                     uint64_t encoded, struct write_plan *p);
int vhdx_write_end(struct blk_node *n, struct write_plan *p, int result);
int vhdx_zero_range(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
int vhdx_discard_range(struct blk_node *n, uint64_t off, uint64_t len);
/* The blocks [from, to) get this state; what they had goes. */
int vhdx_forget_blocks(struct vhdx *v, uint64_t from, uint64_t to, enum vhdx_state state);

/* ---- commit.c, log_write.c ---------------------------------------------------------------------------------- */

/* To be called before the first change of anything. */
int vhdx_session(struct vhdx *v);
int vhdx_commit(struct vhdx *v, bool durable);
int vhdx_commit_if_pressed(struct vhdx *v);
/* Commit, and all that was freed is free. */
int vhdx_settle(struct vhdx *v);
/* The lock is exclusive: that space is free when this is durable. */
void vhdx_free_later(struct vhdx *v, uint64_t unit, uint64_t count);
/* These pages change together, durably, through the log. commit_lock is held. They fit into one entry. */
int vhdx_log_pages(struct vhdx *v, const struct vhdx_page *pages, size_t count);
size_t vhdx_log_room(const struct vhdx *v);
/* One entry; not durable yet. */
int vhdx_log_write(struct vhdx *v, const struct vhdx_page *pages, size_t count);
/* Closes the log: the header does not name it any more. Everything is in its place. */
int vhdx_log_close(struct vhdx *v);

/* ---- control -------------------------------------------------------------------------------------------------- */

struct vhdx_create_options {
    uint64_t size, log_size, block_size;
    int subformat; /* enum vhdx_subformat */
    bool subformat_given, state_zero, state_zero_given;
    uint64_t logical;
    int preallocation; /* enum blk_prealloc */
    char *backing_file, *backing_fmt;
};
extern const struct opt_def vhdx_create_table[];
int vhdx_check_create(const void *options, struct error **err);
int vhdx_create(struct blk_node *file, const void *options, struct error **err);
int vhdx_measure(const void *create_options, uint64_t size, struct blk_node *src,
                 struct blk_measure *out, struct error **err);
int vhdx_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err);
int vhdx_check(struct blk_node *n, unsigned fix, struct blk_check *out,
               const struct blk_check_hooks *hooks, struct error **err);
/* relink.c. The parent is open for writing: the child will know it again. */
int vhdx_expect_parent(struct vhdx *v, const struct vhdx *parent);
int vhdx_make_empty(struct blk_node *n, struct error **err);
/* Reads everything anew, after a repair. */
int vhdx_load(struct vhdx *v, struct error **err);

#endif
