/* The machine's clock and alarms on it.
 *
 * The clock counts nanoseconds while the machine runs and stands still while it is stopped. Alarms ring on one thread of
 * the clock's own, one after the other, with no lock held, so a callback takes its device's lock.
 */
#ifndef DEVICES_TIMER_H
#define DEVICES_TIMER_H

#include <stdbool.h>
#include <stdint.h>

struct clock; /* of a machine */
struct timer;

struct clock *clock_new(void);        /* standing still; NULL: no memory or no thread */
void clock_free(struct clock *clock); /* its timers are freed already */
uint64_t clock_now(struct clock *clock);
void clock_run(struct clock *clock, bool run);

struct timer *timer_new(struct clock *clock, void (*ring)(void *opaque), void *opaque);
/* Afterwards the callback is not running and will not run; not from within the callback. NULL is fine. */
void timer_free(struct timer *timer);
/* Rings once when the clock says `when`, soon if that is past; the last call counts. */
void timer_set(struct timer *timer, uint64_t when);
/* May still ring if it is about to: the callback looks at its device's state. */
void timer_cancel(struct timer *timer);

#endif
