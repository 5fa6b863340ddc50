/* A cache of metadata tables of one child, for format drivers.
 *
 * Tables have one size and are named by their offset in the child. The driver's own metadata lock guards
 * the cache: it is held shared to look up, exclusive to change. The cache drops that lock while it
 * reads a table, so a caller that misses starts over.
 *
 * An entry is EMPTY, LOADING (lock dropped, others wait), CLEAN, DIRTY; a DIRTY one that is being
 * written back counts as CLEAN but cannot be evicted until the write has landed.
 *
 * Invariants
 *  T1  An entry leaves memory only while it is CLEAN and no write-back of it is under way.
 *  T2  A pointer to a table is valid while the lock is held without a break.
 *  T3  A batch holds what all dirty tables said at one moment, so that tables written together agree.
 */
#ifndef BLOCK_TABLE_CACHE_H
#define BLOCK_TABLE_CACHE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/rwlock.h"
#include "block/driver.h"

struct table_cache;
struct table_batch;

/* `count` tables of `size` bytes at most; memory is touched as it is used. The events are told before a table is
 * read and before one is written. 0 or -ENOMEM. */
int table_cache_new(struct table_cache **out, struct blk_node *child, struct rwlock *lock,
                    uint32_t size, unsigned count, enum blk_event load, enum blk_event update);
void table_cache_free(struct table_cache *c);

/* What table_cache_get answers beside 0 and errors: the lock was dropped and taken again in the
 * same mode; whatever the caller looked at before may have changed. */
#define TABLE_RELOCKED 1

/* The table at `offset`. The lock is held, `exclusive` says how. 0: *table points at it. nowait: -EAGAIN
 * instead of loading. */
int table_cache_get(struct table_cache *c, uint64_t offset, bool exclusive, bool nowait,
                    void **table);

/* Exclusive: the table was changed through its pointer. */
void table_cache_dirty(struct table_cache *c, void *table);

/* Exclusive: forgets the tables in [offset, offset + len): their space was freed. */
void table_cache_drop(struct table_cache *c, uint64_t offset, uint64_t len);

/* Exclusive, with no write-back under way: forgets everything, clean or not. */
void table_cache_clear(struct table_cache *c);

/* Exclusive: gives back the memory of tables that are clean and were not asked for since the last time. */
void table_cache_trim(struct table_cache *c);

/* So much is dirty or being written that a commit is due before more is changed. Any thread, no lock. */
bool table_cache_pressed(struct table_cache *c);
bool table_cache_has_dirty(struct table_cache *c);

/* Exclusive: copies what is dirty; the tables count as clean from now on. Collections are one at a time,
 * each ended by table_batch_finish. 0 or -ENOMEM. */
int table_cache_collect(struct table_cache *c, struct table_batch **out);
/* Without the lock: writes the batch, neighbours together. */
int table_batch_write(struct table_batch *b);
/* The same at other places, for formats that keep their tables twice: where() says where the copy of the table at
 * `offset` lies, 0: it has none. */
int table_batch_write_at(struct table_batch *b, uint64_t (*where)(void *opaque, uint64_t offset),
                         void *opaque);
bool table_batch_empty(const struct table_batch *b);
/* Table number i of the batch, in order of offset, for those who write it another way; NULL past the last. */
const void *table_batch_at(const struct table_batch *b, unsigned i, uint64_t *offset);
/* Without the lock: ends the write-back; ok false: the tables are dirty again. */
void table_batch_finish(struct table_batch *b, bool ok);

#endif
