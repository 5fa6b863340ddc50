#include "base/rwlock.h"

#define ALONE UINT32_MAX
#define LOOKS 100 /* before sleeping */

void rwlock_init(struct rwlock *l)
{
    *l = (struct rwlock)RWLOCK_INIT;
}

void rwlock_destroy(struct rwlock *l)
{
    pthread_cond_destroy(&l->shared);
    pthread_cond_destroy(&l->alone);
    pthread_mutex_destroy(&l->mutex);
}

static void breathe(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

bool rwlock_try_share(struct rwlock *l)
{
    uint32_t s = atomic_load(&l->state);

    while (s != ALONE && atomic_load(&l->wanting) == 0)
        if (atomic_compare_exchange_weak(&l->state, &s, s + 1))
            return true;
    return false;
}

bool rwlock_try_hold(struct rwlock *l)
{
    uint32_t none = 0;
    return atomic_compare_exchange_strong(&l->state, &none, ALONE);
}

/* The counters and the state are sequentially consistent: either the sleeper's last try, under the mutex,
 * sees that the lock became free, or who freed it sees the sleeper. */
static void sleep_until(struct rwlock *l, bool (*try)(struct rwlock *), pthread_cond_t *changed,
                        _Atomic uint32_t *sleeping)
{
    for (int i = 0; i < LOOKS; i++) {
        if (try(l))
            return;
        breathe();
    }
    pthread_mutex_lock(&l->mutex);
    atomic_fetch_add(sleeping, 1);
    while (!try(l))
        pthread_cond_wait(changed, &l->mutex);
    atomic_fetch_sub(sleeping, 1);
    pthread_mutex_unlock(&l->mutex);
}

void rwlock_share(struct rwlock *l)
{
    if (!rwlock_try_share(l))
        sleep_until(l, rwlock_try_share, &l->shared, &l->sleep_shared);
}

void rwlock_hold(struct rwlock *l)
{
    if (rwlock_try_hold(l))
        return;
    atomic_fetch_add(&l->wanting, 1);
    sleep_until(l, rwlock_try_hold, &l->alone, &l->sleep_alone);
    atomic_fetch_sub(&l->wanting, 1);
}

void rwlock_release(struct rwlock *l)
{
    uint32_t s = atomic_load(&l->state);

    if (s == ALONE)
        atomic_store(&l->state, 0);
    else if (atomic_fetch_sub(&l->state, 1) != 1)
        return; /* others still share it */
    if (atomic_load(&l->sleep_alone)) {
        pthread_mutex_lock(&l->mutex);
        pthread_cond_signal(&l->alone);
        pthread_mutex_unlock(&l->mutex);
    } else if (s == ALONE && atomic_load(&l->sleep_shared)) {
        pthread_mutex_lock(&l->mutex);
        pthread_cond_broadcast(&l->shared);
        pthread_mutex_unlock(&l->mutex);
    }
}
