/* What a whole table of blocks refers to: for opening for writing, check and compaction. */
#ifndef BLOCK_BAT_SCAN_H
#define BLOCK_BAT_SCAN_H

#include "bat.h"

enum bat_bad {
    BAT_OUTSIDE, /* the record begins outside the file, or not where records are */
    BAT_CUT,     /* it ends behind the file */
    BAT_CROSSED, /* it overlaps another one, or what else the image is made of */
};

struct bat_finding {
    uint32_t block;
    enum bat_bad kind;
    uint64_t record;
};

/* At most one record begins in each stretch of `stride` bytes. */
struct bat_slot {
    uint32_t block; /* of the disk, plus one; 0: none begins here */
    uint32_t delta; /* in units of b->factor, from the slot's beginning */
};

struct bat_scan {
    struct bat_slot *slot; /* memory is touched where there are records */
    uint64_t slots;
    size_t bytes;
    uint64_t end;         /* where the last record or fixed part ends */
    uint64_t records_end; /* the last record alone */
    uint64_t stored;      /* records that are fine, or cut */
    uint64_t behind;      /* of them, of blocks behind the disk's end */
    uint64_t bad_count;   /* of them the first ones are in `bad` */
    VECTOR(struct bat_finding) bad;
};

/* Reads the table from the file: nothing of it may be dirty. 0, -ENOMEM or what reading said. all_bad: keeps
 * every finding rather than the first. */
int bat_scan(struct bat *b, struct bat_scan *s, const bool *all_bad);
void bat_scan_free(struct bat_scan *s);
const char *bat_bad_text(enum bat_bad kind);

/* Where the record of slot i begins. */
static inline uint64_t bat_slot_record(const struct bat *b, const struct bat_scan *s, uint64_t i)
{
    return b->data_start + i * b->stride + (uint64_t)s->slot[i].delta * b->factor;
}

/* Walks the gaps among records and fixed parts, each cut into whole records. */
struct bat_gap {
    uint64_t at, next_slot;
};
bool bat_next_gap(const struct bat *b, const struct bat_scan *s, struct bat_gap *g,
                  struct freed *out);

/* No request in flight, the lock not held. */
int bat_set_entry(struct bat *b, uint64_t block, uint32_t value);

/* No request in flight: the record of this block goes from one place to another, which is taken for it. */
int bat_move(struct bat *b, uint64_t block, uint64_t from, uint64_t to);

/* What the allocator knows becomes what the scan found. 0 or -ENOMEM. */
int bat_adopt(struct bat *b, const struct bat_scan *s);

#endif
