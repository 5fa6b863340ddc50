/* Images with one table of blocks: each of its 32-bit entries says where a block of the disk lies in the file, or
 * that it lies nowhere (VDI, VHD). What such formats share: the table, the allocator, the order of writing.
 *
 * A *record* is what the file holds for one block: a prefix of the format's own (VHD's sector bitmap) and the
 * block's data. Records are taken from what was freed, else from behind the last one; the file is made longer
 * by many records at a time.
 *
 * On the disk, in this order (bat_commit):
 *
 *      guest data, prefixes, and what says how long the file is
 *      -- flush --
 *      inner tables (VHD's sector bitmaps)
 *      -- flush --               (only if an entry follows)
 *      entries of the table
 *      -- flush --               now what they no longer refer to is durably unmapped
 *      quarantine until the epoch has passed, hole punches, then free
 *
 * Invariants
 *  B1  An entry on the disk refers to a record whose data and prefix are on the disk, inside the file.
 *  B2  A record is free only when no entry on the disk refers to it and every request that ran when
 *      the last one went has ended.
 *  B3  No two entries refer to records that overlap each other, or anything in `fixed`. An image that breaks
 *      this is not opened for writing.
 *  B4  A closed image is dense: the records at the end move into the gaps.
 *
 * Threads: `lock` guards all below it but what is atomic; commit_lock is for one commit at a time and is taken
 * first. Neither is held while guest data moves.
 */
#ifndef BLOCK_BAT_H
#define BLOCK_BAT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/rwlock.h"
#include "base/vector.h"
#include "block/driver.h"
#include "block/quarantine.h"
#include "block/table_cache.h"

enum {
    BAT_SECTOR = 512, /* the table is read and written by sectors: it begins and ends with one */
    BAT_MAX_FIXED = 12,
};

#define BAT_MAX_ENTRIES (UINT32_C(1) << 28)

struct bat_fixed {
    uint64_t offset, length;
    const char *what;
};

struct bat;

/* What the format does about it. All exclusive, 0 or a negative errno. */
struct bat_format {
    /* The file is to have room for records up to b->reserved, at least: makes it longer. */
    int (*reserve)(struct bat *b, uint64_t to);
    /* A record was taken: its prefix is to say that nothing was written. NULL: there is none. */
    int (*prepare)(struct bat *b, uint64_t record);
    /* No request in flight: the records end with b->end now; the file is to end there, too. */
    int (*trim)(struct bat *b);
    /* No request in flight, nothing dirty: no record lies from `end` on, so that a fixed part behind it may move
     * there, durably. May be NULL. */
    int (*lower)(struct bat *b, uint64_t end);
    /* A record moved to another place while no request is in flight. May be NULL. */
    void (*moved)(struct bat *b, uint64_t record);
};

struct bat {
    /* Set by the format before bat_open. */
    struct blk_node *node, *file;
    const struct bat_format *format;
    bool big_endian, keeps; /* keeps: storage is never given back (static images) */
    uint32_t free_mark;     /* entries of these values have no record: ask the backing node; */
    uint32_t zero_mark;     /* reads as zeroes (may be the same value) */
    uint32_t mark_from;     /* the least value that is no place */
    uint32_t entries;       /* of the table that are in use, the disk's blocks; and behind them */
    uint32_t all_entries;
    uint32_t block_size, prefix;
    uint64_t stride; /* from one record to the next, if they touch: prefix + block_size */
    uint64_t table_offset;
    uint64_t base; /* an entry e refers to base + e * factor */
    uint32_t factor;
    uint64_t data_start; /* no record lies before */
    uint64_t file_end;   /* no record lies behind */
    uint64_t claimed;    /* the image says that it ends here; 0: it does not say */
    struct bat_fixed fixed[BAT_MAX_FIXED]; /* what else lies among the records */
    unsigned fixed_count;
    struct table_cache *inner; /* may be NULL; uses `lock` */

    struct rwlock lock;
    struct table_cache *table;
    uint64_t end;      /* of the last record or fixed part, where the next one goes */
    uint64_t reserved; /* the file has room up to here */
    uint64_t fresh;    /* from here on nothing was ever written */
    freed_list free, freed, quarantine; /* of records in a row: their lengths count records */
    bool grows, unsynced;
    bool grown; /* room was made since the image was opened */
    bool holes; /* something was freed since the image was opened */
    _Atomic bool many_freed, failed, corrupt;

    pthread_mutex_t commit_lock;
};

void bat_init_locks(struct bat *b);

/* With everything set: makes the cache of the table, and for writing learns what is in use. A node that is open for
 * repair is not prepared for writing: bat_check does that. On failure nothing is left but the locks. */
int bat_open(struct bat *b, struct error **err);
/* For writable nodes, settles and trims; frees all, the locks included. */
int bat_close(struct bat *b, struct error **err);
void bat_free(struct bat *b);

/* The image turned out to be wrong while in use. Says so, refuses further writes. Returns -EIO. */
int bat_corrupt(struct bat *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- entries ------------------------------------------------------------------------------------ */

static inline uint32_t bat_load(const struct bat *b, const uint8_t *at)
{
    return b->big_endian ? load_be32(at) : load_le32(at);
}

static inline void bat_store(const struct bat *b, uint8_t *at, uint32_t entry)
{
    if (b->big_endian)
        store_be32(at, entry);
    else
        store_le32(at, entry);
}

static inline bool bat_stored(const struct bat *b, uint32_t entry)
{
    return entry < b->mark_from;
}

static inline uint64_t bat_place(const struct bat *b, uint32_t entry)
{
    return b->base + (uint64_t)entry * b->factor;
}

static inline uint32_t bat_entry(const struct bat *b, uint64_t record)
{
    return (uint32_t)((record - b->base) / b->factor);
}

/* Where entry `block` is, and how many entries its sector holds from there on. The lock is held. 0,
 * TABLE_RELOCKED or an error. */
int bat_get(struct bat *b, uint64_t block, bool exclusive, bool nowait, uint8_t **at,
            uint32_t *left);
/* Exclusive, of an entry that bat_get just gave. */
void bat_set(struct bat *b, uint8_t *at, uint32_t entry);
/* A record can be read: it begins inside the file. 0 or -EIO. */
int bat_check_place(struct bat *b, uint64_t block, uint64_t record);

/* ---- records: exclusive ---------------------------------------------------------------------------- */

/* Up to `want` records in a row. *fresh: their data was never written and reads as zeroes. */
int bat_alloc(struct bat *b, uint64_t want, uint64_t *record, uint64_t *got, bool *fresh);
/* `bytes` bytes of whole sectors behind all records. */
int bat_alloc_bytes(struct bat *b, uint64_t bytes, uint64_t *offset);
/* Gives back what was never published. */
void bat_release(struct bat *b, uint64_t record, uint64_t count);
/* No entry refers to this record any more: it is released once that is durable. */
void bat_free_later(struct bat *b, uint64_t record);

/* ---- without locks ----------------------------------------------------------------------------------- */

int bat_commit(struct bat *b, bool durable);
int bat_commit_if_pressed(struct bat *b);
/* No request in flight: commits and releases all that is in quarantine. */
int bat_settle(struct bat *b);
/* Blocks of whole [off, off + len) have no record from now on and read as zeroes, or, with `forget`, as what lies
 * below. */
int bat_unmap(struct bat *b, uint64_t off, uint64_t len, bool forget);
/* Some block in [off, off + len) has a record: 1; or 0, or an error. */
int bat_any_stored(struct bat *b, uint64_t off, uint64_t len);

/* The driver's members, for formats without inner tables. The node's state begins with its struct bat. */
int bat_map_read(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                 struct mapping *out);
int bat_write_begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                    uint64_t encoded, struct write_plan *p);
int bat_write_end(struct blk_node *n, struct write_plan *p, int result);
int bat_zero_range(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
int bat_discard_range(struct blk_node *n, uint64_t off, uint64_t len);
int bat_flush(struct blk_node *n);

/* ---- no request in flight ------------------------------------------------------------------------------ */

/* Blocks without record in [off, end) get one that reads as zeroes. */
int bat_store_zeroes(struct bat *b, uint64_t off, uint64_t end);
/* Records move from the end into the gaps, and the file is trimmed. */
int bat_compact(struct bat *b);
/* Records that begin before `limit` move behind all others, durably; nothing goes there any more. */
int bat_vacate(struct bat *b, uint64_t limit);

/* For measure: how many blocks of the source hold anything but zeroes. */
int bat_measure(struct blk_node *src, uint64_t size, uint64_t block_size, uint64_t *count);

/* What a check is about, beside the table: filled by bat_check, shown by the format's own findings. */
struct bat_report {
    unsigned fix;
    struct blk_check *out;
    const struct blk_check_hooks *hooks;
    unsigned messages;
};
void bat_say(struct bat_report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Whether what was found is to be mended; counts it as an error or leak, mended or not. */
bool bat_found(struct bat_report *r, bool leak, uint64_t count);
int bat_check(struct bat *b, struct bat_report *r, struct error **err);

#endif
