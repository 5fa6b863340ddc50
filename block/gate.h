/* The quiesce gate of a node, and its epochs.
 *
 * Requests pass through the gate shared; exclusive operations (resize, check, close) close it, wait
 * until nobody is inside, work, and open it again.
 *
 * Requests are counted under the parity of the epoch in which they entered. The epoch moves on
 * only when the previous epoch's requests have all left, so that epoch e+2 begins
 * only after every request that entered in e or before has ended: that is what quarantined space waits for.
 *
 * The counts are striped: each thread has a stripe, so that threads on several cores do not fight over one cache
 * line. A request leaves on the stripe it came in by; what is said of a count below holds for the
 * sum, which is 0 when each stripe was seen at 0.
 *
 * Invariants
 *  G1  active[p] counts requests inside that entered in the last epoch of parity p (and, for a moment, some
 *      that came too late and turn back).
 *  G2  epoch moves from e to e+1 only while active[(e+1) & 1] is 0.
 *  G3  while `closed` is set, and its setter has seen both counts 0, nobody is inside.
 * Threads: all members by any thread; a thread inside must not enter the same gate again nor close it.
 */
#ifndef BLOCK_GATE_H
#define BLOCK_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { GATE_STRIPES = 8 };

struct gate {
    _Atomic uint64_t epoch;
    _Atomic bool closed;
    struct {
        _Alignas(64) _Atomic int64_t active[2];
    } stripes[GATE_STRIPES];

    pthread_mutex_t lock; /* for sleeping only: guards no data but the owner's turn */
    pthread_cond_t changed;
    bool owned; /* an exclusive operation runs or waits */
};

void gate_init(struct gate *g);
void gate_destroy(struct gate *g);

/* Returns a ticket for gate_leave, or -1 when nowait is set and it would have to wait. */
int gate_enter(struct gate *g, bool nowait);
void gate_leave(struct gate *g, int ticket);

void gate_close(struct gate *g);
void gate_open(struct gate *g);

uint64_t gate_epoch(struct gate *g);
/* Moves the epoch on if it can, and tells whether e is over. */
bool gate_epoch_passed(struct gate *g, uint64_t e);

#endif
