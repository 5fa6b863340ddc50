/* Space that was given up and may not be used again yet, for format drivers.
 *
 * unmapped in memory -> unmapped durably: quarantine_enter -> every request that ran then has ended: quarantine_take
 * -> free. A write or a punch that is still under way can so never hit what belongs to somebody else already.
 *
 * Threads: any; the driver's metadata lock, which guards the lists, is taken here.
 */
#ifndef BLOCK_QUARANTINE_H
#define BLOCK_QUARANTINE_H

#include <stdint.h>

#include "base/rwlock.h"
#include "base/vector.h"
#include "block/driver.h"

struct freed {
    uint64_t offset, length; /* in the format's own units */
    uint64_t epoch; /* of the node when its unmapping had become durable; set by quarantine_enter */
};
typedef VECTOR(struct freed) freed_list;

/* What the list holds has just become durable. What finds no memory leaks, which check mends. */
void quarantine_enter(struct blk_node *n, struct rwlock *lock, freed_list *quarantine,
                      const freed_list *freed);

/* Moves what has waited long enough (or all, when no request is in flight) into the empty list `out`, which the
 * caller frees. */
void quarantine_take(struct blk_node *n, struct rwlock *lock, freed_list *quarantine, bool all,
                     freed_list *out);

#endif
