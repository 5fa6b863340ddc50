#include "reserve.h"

#include <stddef.h>

void reserve_init(struct reserve_table *t)
{
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->released, NULL);
    t->held = NULL;
    t->waiting = 0;
}

void reserve_destroy(struct reserve_table *t)
{
    pthread_cond_destroy(&t->released);
    pthread_mutex_destroy(&t->lock);
}

static bool overlaps(const struct reserve_table *t, uint64_t start, uint64_t end)
{
    for (const struct reservation *r = t->held; r; r = r->next)
        if (r->start < end && start < r->end)
            return true;
    return false;
}

bool reserve_take(struct reserve_table *t, struct reservation *r, uint64_t start, uint64_t end,
                  bool nowait)
{
    bool ok = true;

    pthread_mutex_lock(&t->lock);
    while (overlaps(t, start, end)) {
        if (nowait) {
            ok = false;
            break;
        }
        t->waiting++;
        pthread_cond_wait(&t->released, &t->lock);
        t->waiting--;
    }
    if (ok) {
        *r = (struct reservation){ .start = start, .end = end, .next = t->held };
        t->held = r;
    }
    pthread_mutex_unlock(&t->lock);
    return ok;
}

void reserve_release(struct reserve_table *t, struct reservation *r)
{
    pthread_mutex_lock(&t->lock);
    struct reservation **p = &t->held;
    while (*p != r)
        p = &(*p)->next;
    *p = r->next;
    if (t->waiting)
        pthread_cond_broadcast(&t->released);
    pthread_mutex_unlock(&t->lock);
}
