#include "block/quarantine.h"

#include "base/cleanup.h"

void quarantine_enter(struct blk_node *n, struct rwlock *lock, freed_list *quarantine,
                      const freed_list *freed)
{
    if (freed->len == 0)
        return;
    WRLOCK_SCOPE(lock);
    uint64_t epoch = node_epoch(n);
    for (size_t i = 0; i < freed->len; i++) {
        struct freed f = freed->at[i];
        f.epoch = epoch;
        (void)vector_push(quarantine, f);
    }
}

void quarantine_take(struct blk_node *n, struct rwlock *lock, freed_list *quarantine, bool all,
                     freed_list *out)
{
    WRLOCK_SCOPE(lock);
    size_t count = 0;

    while (count < quarantine->len && (all || node_epoch_passed(n, quarantine->at[count].epoch)))
        count++;
    if (count == 0 || vector_reserve(out, count) < 0)
        return;
    memcpy(out->at, quarantine->at, count * sizeof(*out->at));
    out->len = count;
    memmove(quarantine->at, quarantine->at + count,
            (quarantine->len - count) * sizeof(*quarantine->at));
    quarantine->len -= count;
}
