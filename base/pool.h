/* A pool of worker threads.
 *
 * Jobs live in the caller's memory, so handing one over cannot fail; the pool does not touch a job
 * once its function has been called, which may free it. Jobs begin in the order of handing over.
 * A worker must not wait for a group whose jobs go to its own pool: with all workers waiting,
 * nobody would work. pool_wait asserts it.
 */
#ifndef BASE_POOL_H
#define BASE_POOL_H

#include <pthread.h>
#include <stdbool.h>

struct pool;

/* Counts jobs under way, so that one can wait for all of them. */
struct pool_group {
    pthread_mutex_t lock;
    pthread_cond_t idle;
    struct pool *pool; /* under lock from here: where its jobs went last */
    unsigned pending;
};

struct pool_job {
    void (*fn)(void *arg);
    void *arg;
    struct pool_group *group; /* NULL: nobody waits for it */
    struct pool_job *next;    /* the pool's */
};

/* Starts `threads` (at least 1) workers called `name` (at most 15 characters). 0 or -errno. */
int pool_create(struct pool **out, unsigned threads, const char *name);

/* Waits for all jobs handed over so far, then ends the workers. NULL is fine. */
void pool_destroy(struct pool *pool);

unsigned pool_threads(const struct pool *pool);

/* The calling thread is one of this pool's workers. */
bool pool_is_mine(const struct pool *pool);

/* job->fn, ->arg and ->group are set by the caller. */
void pool_submit(struct pool *pool, struct pool_job *job);

void pool_group_init(struct pool_group *group);
void pool_wait(struct pool_group *group);
void pool_group_destroy(struct pool_group *group); /* no job of it may be under way */

#endif
