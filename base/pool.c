/* Thread rules: `lock` guards the queue and `ending`; the threads array is written before the first
 * job can come and read by pool_destroy only. A group's lock is never taken under a pool's lock.
 */
#include "base/pool.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

struct pool {
    char name[16];
    unsigned threads;
    pthread_t *thread;

    pthread_mutex_t lock;
    pthread_cond_t work;
    /* under lock */
    struct pool_job *head, **tail;
    bool ending;
};

static _Thread_local const struct pool *my_pool;

static void group_begin(struct pool_group *group, struct pool *pool)
{
    LOCK_SCOPE(&group->lock);
    group->pool = pool;
    group->pending++;
}

static void group_end(struct pool_group *group)
{
    LOCK_SCOPE(&group->lock);
    assert(group->pending > 0);
    if (--group->pending == 0)
        pthread_cond_broadcast(&group->idle);
}

/* The next job, waiting for one; NULL when the pool ends and the queue is empty. */
static struct pool_job *next_job(struct pool *pool)
{
    struct pool_job *job;

    LOCK_SCOPE(&pool->lock);
    while (!pool->head && !pool->ending)
        pthread_cond_wait(&pool->work, &pool->lock);
    job = pool->head;
    if (job) {
        pool->head = job->next;
        if (!pool->head)
            pool->tail = &pool->head;
    }
    return job;
}

static void *worker(void *arg)
{
    struct pool *pool = arg;
    struct pool_job *job;

    my_pool = pool;
    pthread_setname_np(pthread_self(), pool->name);
    while ((job = next_job(pool))) {
        struct pool_group *group = job->group;

        job->fn(job->arg);
        if (group)
            group_end(group);
    }
    return NULL;
}

static int start_workers(struct pool *pool, unsigned threads)
{
    sigset_t all, before;
    int r = 0;

    /* Signals are for the program's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (r == 0 && pool->threads < threads) {
        r = pthread_create(&pool->thread[pool->threads], NULL, worker, pool);
        if (r == 0)
            pool->threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -r;
}

int pool_create(struct pool **out, unsigned threads, const char *name)
{
    struct pool *pool = calloc(1, sizeof(*pool));
    int r;

    assert(threads > 0);
    if (!pool)
        return -ENOMEM;
    pool->thread = calloc(threads, sizeof(*pool->thread));
    if (!pool->thread) {
        free(pool);
        return -ENOMEM;
    }
    strncpy(pool->name, name, sizeof(pool->name) - 1);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pool->tail = &pool->head;
    r = start_workers(pool, threads);
    if (r < 0) {
        pool_destroy(pool);
        return r;
    }
    *out = pool;
    return 0;
}

void pool_destroy(struct pool *pool)
{
    if (!pool)
        return;
    assert(!pool_is_mine(pool));
    {
        LOCK_SCOPE(&pool->lock);
        pool->ending = true;
        pthread_cond_broadcast(&pool->work);
    }
    for (unsigned i = 0; i < pool->threads; i++)
        pthread_join(pool->thread[i], NULL);
    assert(!pool->head || pool->threads == 0);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->work);
    free(pool->thread);
    free(pool);
}

unsigned pool_threads(const struct pool *pool)
{
    return pool->threads;
}

bool pool_is_mine(const struct pool *pool)
{
    return my_pool == pool;
}

void pool_submit(struct pool *pool, struct pool_job *job)
{
    if (job->group)
        group_begin(job->group, pool);
    job->next = NULL;
    LOCK_SCOPE(&pool->lock);
    assert(!pool->ending || pool_is_mine(pool));
    *pool->tail = job;
    pool->tail = &job->next;
    pthread_cond_signal(&pool->work);
}

void pool_group_init(struct pool_group *group)
{
    *group = (struct pool_group){ 0 };
    pthread_mutex_init(&group->lock, NULL);
    pthread_cond_init(&group->idle, NULL);
}

void pool_wait(struct pool_group *group)
{
    LOCK_SCOPE(&group->lock);
    assert(!group->pool || !pool_is_mine(group->pool));
    while (group->pending > 0)
        pthread_cond_wait(&group->idle, &group->lock);
}

void pool_group_destroy(struct pool_group *group)
{
    {
        /* The last job may still hold the lock on its way out of group_end. */
        LOCK_SCOPE(&group->lock);
        assert(group->pending == 0);
    }
    pthread_mutex_destroy(&group->lock);
    pthread_cond_destroy(&group->idle);
}
