#include "gate.h"

void gate_init(struct gate *g)
{
    atomic_init(&g->epoch, 0);
    for (int i = 0; i < GATE_STRIPES; i++)
        for (int p = 0; p < 2; p++)
            atomic_init(&g->stripes[i].active[p], 0);
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

/* The calling thread's. */
static unsigned stripe(void)
{
    static atomic_uint threads;
    static _Thread_local unsigned mine; /* plus 1; 0: not known yet */

    if (!mine)
        mine = atomic_fetch_add(&threads, 1) % GATE_STRIPES + 1;
    return mine - 1;
}

static bool is_empty(struct gate *g, int p)
{
    for (int i = 0; i < GATE_STRIPES; i++)
        if (atomic_load(&g->stripes[i].active[p]) != 0)
            return false;
    return true;
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
        int p = (int)(e & 1), ticket = (int)stripe() * 2 + p;
        atomic_fetch_add(&g->stripes[ticket / 2].active[p], 1);
        if (!atomic_load(&g->closed) && atomic_load(&g->epoch) == e)
            return ticket;
        gate_leave(g, ticket);
    }
}

void gate_leave(struct gate *g, int ticket)
{
    atomic_fetch_sub(&g->stripes[ticket / 2].active[ticket % 2], 1);
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
    while (!is_empty(g, 0) || !is_empty(g, 1))
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
        if (!is_empty(g, (int)((now + 1) & 1)))
            return false;
        atomic_compare_exchange_strong(&g->epoch, &now, now + 1);
    }
}
