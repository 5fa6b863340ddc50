/* A lock that many may share or one hold alone, for critical sections far below a microsecond.
 *
 * Whoever finds it taken looks a few times more before he sleeps: with many threads on few cores, sleeping and
 * being woken costs more than the work that the lock guards. Those who want it alone go first.
 *
 * Not recursive, either way. Fair enough: who waits to hold it alone is overtaken only by others who do.
 */
#ifndef BASE_RWLOCK_H
#define BASE_RWLOCK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct rwlock {
    _Atomic uint32_t state;   /* how many share it, or RWLOCK_ALONE */
    _Atomic uint32_t wanting; /* who waits to hold it alone */
    pthread_mutex_t mutex;    /* for sleeping only */
    pthread_cond_t alone, shared;
    _Atomic uint32_t sleep_alone, sleep_shared;
};

#define RWLOCK_INIT                                                            \
    {                                                                          \
        .mutex = PTHREAD_MUTEX_INITIALIZER, .alone = PTHREAD_COND_INITIALIZER, \
        .shared = PTHREAD_COND_INITIALIZER                                     \
    }

void rwlock_init(struct rwlock *l);
void rwlock_destroy(struct rwlock *l);

void rwlock_share(struct rwlock *l);
bool rwlock_try_share(struct rwlock *l);
void rwlock_hold(struct rwlock *l);
bool rwlock_try_hold(struct rwlock *l);
/* Of either kind. */
void rwlock_release(struct rwlock *l);

#endif
