/* What an L2 entry says (Spec, standard and compressed cluster descriptors). */
#ifndef QCOW2_ENTRY_H
#define QCOW2_ENTRY_H

#include "qcow2.h"

enum entry_kind {
    ENTRY_UNALLOCATED,
    ENTRY_NORMAL,
    ENTRY_ZERO,       /* reads as zeroes, no storage */
    ENTRY_ZERO_ALLOC, /* reads as zeroes, storage kept */
    ENTRY_COMPRESSED,
};

/* What becomes of an entry that is zeroed or discarded. */
enum unmap_mode {
    UNMAP_ZERO,      /* must read as zeroes; storage may stay */
    UNMAP_ZERO_FREE, /* must read as zeroes; storage goes */
    UNMAP_DISCARD,   /* need not be kept */
    UNMAP_EMPTY,     /* this layer is to say nothing; whole clusters */
};

/* A standard entry has storage. In an external data file it may lie at offset 0. */
static inline bool entry_stored(const struct qcow2 *q, uint64_t entry)
{
    return entry & q->stored_mask;
}

/* Not for extended entries, but for whether they have storage or are compressed. */
static inline enum entry_kind entry_kind(const struct qcow2 *q, uint64_t entry)
{
    if (entry & QE_COMPRESSED)
        return ENTRY_COMPRESSED;
    bool has_storage = entry_stored(q, entry);
    if ((entry & L2E_ZERO) && q->version >= 3)
        return has_storage ? ENTRY_ZERO_ALLOC : ENTRY_ZERO;
    return has_storage ? ENTRY_NORMAL : ENTRY_UNALLOCATED;
}

static inline uint64_t entry_host(uint64_t entry)
{
    return entry & L2E_OFFSET;
}

/* Storage that this entry alone refers to: it may be written in place. */
static inline bool entry_exclusive(uint64_t entry)
{
    return entry & QE_COPIED;
}

static inline uint64_t slice_entry(const uint8_t *slice, uint32_t index)
{
    return load_be64(slice + 8 * (size_t)index);
}

static inline void slice_set_entry(uint8_t *slice, uint32_t index, uint64_t entry)
{
    store_be64(slice + 8 * (size_t)index, entry);
}

#endif
