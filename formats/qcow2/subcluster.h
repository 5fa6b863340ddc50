/* Extended L2 entries (Spec, extended L2 entries): 16 bytes, a cluster's entry as entry.h knows it and a
 * bitmap of its 32 subclusters. In the bitmap's low half a bit says that the subcluster's bytes are in the
 * cluster's storage, in the high half that it reads as zeroes; a subcluster with neither is
 * unallocated, with both the entry is corrupt. A compressed cluster has no subclusters.
 *
 * Storage is given out by the cluster, copied up and mapped by the subcluster: an entry with storage
 * may have subclusters that do not use theirs yet.
 */
#ifndef QCOW2_SUBCLUSTER_H
#define QCOW2_SUBCLUSTER_H

#include "entry.h"

enum { SUBCLUSTERS = 32 };

struct sub_entry {
    uint64_t entry, bitmap;
};

static inline struct sub_entry sub_load(const uint8_t *slice, uint32_t index)
{
    const uint8_t *at = slice + 16 * (size_t)index;
    return (struct sub_entry){ load_be64(at), load_be64(at + 8) };
}

static inline void sub_store(uint8_t *slice, uint32_t index, struct sub_entry e)
{
    store_be64(slice + 16 * (size_t)index, e.entry);
    store_be64(slice + 16 * (size_t)index + 8, e.bitmap);
}

static inline uint32_t sub_data(struct sub_entry e)
{
    return (uint32_t)e.bitmap;
}

static inline uint32_t sub_zero(struct sub_entry e)
{
    return (uint32_t)(e.bitmap >> 32);
}

static inline uint64_t sub_bitmap(uint32_t data, uint32_t zero)
{
    return (uint64_t)zero << 32 | data;
}

/* Bits first to last. */
static inline uint32_t sub_mask(uint32_t first, uint32_t last)
{
    return UINT32_MAX >> (SUBCLUSTERS - 1 - last) & UINT32_MAX << first;
}

/* Of any image: entry number i of a table, and its bitmap (0: plain entries have none). */
static inline uint64_t l2_entry_at(const struct qcow2 *q, const uint8_t *table, uint32_t i)
{
    return load_be64(table + ((size_t)i << q->entry_bits));
}

static inline void l2_set_entry_at(const struct qcow2 *q, uint8_t *table, uint32_t i, uint64_t e)
{
    store_be64(table + ((size_t)i << q->entry_bits), e);
}

static inline uint64_t l2_bitmap_at(const struct qcow2 *q, const uint8_t *table, uint32_t i)
{
    return q->extended ? sub_load(table, i).bitmap : 0;
}

/* A bitmap that goes with its entry. What a compressed cluster has there is only check's business. */
static inline bool sub_sane(const struct qcow2 *q, struct sub_entry e)
{
    if (e.entry & QE_COMPRESSED)
        return true;
    return entry_stored(q, e.entry) ? !(sub_data(e) & sub_zero(e)) : !sub_data(e);
}

/* Storage that may be written in place, where it is used at all. */
static inline bool sub_exclusive(const struct qcow2 *q, struct sub_entry e)
{
    return !(e.entry & QE_COMPRESSED) && entry_stored(q, e.entry) && entry_exclusive(e.entry);
}

/* ---- subcluster.c: as the functions of map.c and write.c for plain entries. The lock is held. ------ */

struct mapping;
struct write_plan;

int qcow2_sub_map(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off, uint64_t len,
                  struct mapping *m);
/* slice NULL: there is no table yet. WRITE_NEEDS_RESERVATION unless `reserved`. */
int qcow2_sub_begin(struct qcow2 *q, const uint8_t *slice, uint32_t index, uint64_t off,
                    uint64_t len, bool reserved, struct write_plan *p);
/* The cluster at `guest` got `entry`, and storage for what of it lies in [from, to). Exclusive. */
void qcow2_sub_publish(struct qcow2 *q, uint8_t *slice, uint32_t index, uint64_t entry,
                       uint64_t guest, uint64_t from, uint64_t to);
/* Zeroes or discards what of the cluster at `guest` lies in [from, to). -ENOTSUP, with nothing changed, for
 * part of a compressed cluster. Exclusive. */
int qcow2_sub_unmap(struct qcow2 *q, uint8_t *slice, uint32_t index, uint64_t guest, uint64_t from,
                    uint64_t to, enum unmap_mode mode, bool backing);

#endif
