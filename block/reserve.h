/* Range reservations: allocating writes that overlap wait for each other here.
 *
 * A reservation spans guest data I/O, which no lock may. A request holds at most one per node, so
 * waiting cannot close a circle.
 */
#ifndef BLOCK_RESERVE_H
#define BLOCK_RESERVE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct reservation {
    uint64_t start, end;
    struct reservation *next;
};

struct reserve_table {
    pthread_mutex_t lock;
    pthread_cond_t released;
    struct reservation *held; /* as many as threads are allocating: a list is enough */
    unsigned waiting;
};

void reserve_init(struct reserve_table *t);
void reserve_destroy(struct reserve_table *t);

/* Waits until [start, end) overlaps nothing held, then holds it. r lives on the caller's stack. With
 * nowait: false instead of waiting. */
bool reserve_take(struct reserve_table *t, struct reservation *r, uint64_t start, uint64_t end,
                  bool nowait);
void reserve_release(struct reserve_table *t, struct reservation *r);

#endif
