#include "gate.h"

void gate_init(struct gate *g)
{
    atomic_init(&g->epoch, 0);
    atomic_init(&g->active[0], 0);
    atomic_init(&g->active[1], 0);
    atomic_init(&g->closed, false);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    g->owned = false;
}

void gate_destroy(struct gate *g)
{
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
}

static void wait_until_open(struct gate *g)
{
    pthread_mutex_lock(&g->lock);
    while (atomic_load(&g->closed))
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

/* The counters are sequentially consistent: either the entering thread sees the gate closed (or the
 * epoch moved), or the one who closes (or moves) sees the count. */
int gate_enter(struct gate *g, bool nowait)
{
    for (;;) {
        if (atomic_load(&g->closed)) {
            if (nowait)
                return -1;
            wait_until_open(g);
        }
        uint64_t e = atomic_load(&g->epoch);
        int p = (int)(e & 1);
        atomic_fetch_add(&g->active[p], 1);
        if (!atomic_load(&g->closed) && atomic_load(&g->epoch) == e)
            return p;
        gate_leave(g, p);
    }
}

void gate_leave(struct gate *g, int ticket)
{
    atomic_fetch_sub(&g->active[ticket], 1);
    if (atomic_load(&g->closed)) {
        pthread_mutex_lock(&g->lock);
        pthread_cond_broadcast(&g->changed);
        pthread_mutex_unlock(&g->lock);
    }
}

void gate_close(struct gate *g)
{
    pthread_mutex_lock(&g->lock);
    while (g->owned)
        pthread_cond_wait(&g->changed, &g->lock);
    g->owned = true;
    atomic_store(&g->closed, true);
    while (atomic_load(&g->active[0]) + atomic_load(&g->active[1]) != 0)
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

void gate_open(struct gate *g)
{
    pthread_mutex_lock(&g->lock);
    g->owned = false;
    atomic_store(&g->closed, false);
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

uint64_t gate_epoch(struct gate *g)
{
    return atomic_load(&g->epoch);
}

bool gate_epoch_passed(struct gate *g, uint64_t e)
{
    for (;;) {
        uint64_t now = atomic_load(&g->epoch);
        if (now >= e + 2)
            return true;
        if (atomic_load(&g->active[(now + 1) & 1]) != 0)
            return false;
        atomic_compare_exchange_strong(&g->epoch, &now, now + 1);
    }
}
