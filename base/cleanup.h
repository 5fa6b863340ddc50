/* Locks and temporaries that end with the scope.
 *
 *     _cleanup_free_ char *name = NULL;
 *     LOCK_SCOPE(&state->lock);
 *
 * A scope lock is held from the line that names it to the end of the enclosing block. An unlock
 * written by hand needs a comment.
 */
#ifndef BASE_CLEANUP_H
#define BASE_CLEANUP_H

#include <assert.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/rwlock.h"

#define CLEANUP(fn) __attribute__((cleanup(fn)))

#define _cleanup_free_   CLEANUP(cleanup_free_)
#define _cleanup_json_   CLEANUP(cleanup_json_)
#define _cleanup_fd_     CLEANUP(cleanup_fd_)
#define _cleanup_stream_ CLEANUP(cleanup_stream_)

static inline void cleanup_free_(void *at)
{
    free(*(void **)at);
}

static inline void cleanup_json_(json_t **at)
{
    json_decref(*at);
}

/* A descriptor below zero is none. errno survives. */
static inline void cleanup_fd_(int *at)
{
    if (*at >= 0) {
        int saved = errno;
        close(*at);
        errno = saved;
    }
}

static inline void cleanup_stream_(FILE **at)
{
    if (*at) {
        int saved = errno;
        fclose(*at);
        errno = saved;
    }
}

static inline void lock_must_(int r)
{
    assert(r == 0);
    (void)r;
}

static inline pthread_mutex_t *scope_lock_(pthread_mutex_t *lock)
{
    lock_must_(pthread_mutex_lock(lock));
    return lock;
}

static inline void scope_unlock_(pthread_mutex_t **lock)
{
    lock_must_(pthread_mutex_unlock(*lock));
}

static inline struct rwlock *scope_rdlock_(struct rwlock *lock)
{
    rwlock_share(lock);
    return lock;
}

static inline struct rwlock *scope_wrlock_(struct rwlock *lock)
{
    rwlock_hold(lock);
    return lock;
}

static inline void scope_rwunlock_(struct rwlock **lock)
{
    rwlock_release(*lock);
}

#define CLEANUP_PASTE2_(a, b) a##b
#define CLEANUP_PASTE_(a, b)  CLEANUP_PASTE2_(a, b)
#define CLEANUP_NAME_(stem)   CLEANUP_PASTE_(stem, __COUNTER__)

#define LOCK_SCOPE(lock)                                                                         \
    __attribute__((unused, cleanup(scope_unlock_))) pthread_mutex_t *CLEANUP_NAME_(scope_lock) = \
        scope_lock_(lock)
#define RDLOCK_SCOPE(lock)                                                                         \
    __attribute__((unused, cleanup(scope_rwunlock_))) struct rwlock *CLEANUP_NAME_(scope_rdlock) = \
        scope_rdlock_(lock)
#define WRLOCK_SCOPE(lock)                                                                         \
    __attribute__((unused, cleanup(scope_rwunlock_))) struct rwlock *CLEANUP_NAME_(scope_wrlock) = \
        scope_wrlock_(lock)

#endif
