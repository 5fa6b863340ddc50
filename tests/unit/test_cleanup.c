#include <errno.h>
#include <fcntl.h>

#include "../check.h"
#include "base/cleanup.h"

static void descriptor_closes_and_errno_survives(void **state)
{
    int seen;

    (void)state;
    {
        _cleanup_fd_ int none = -1;
        _cleanup_fd_ int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

        (void)none;
        seen = fd;
        errno = ENOSPC;
    }
    assert_int_equal(errno, ENOSPC);
    assert_int_equal(fcntl(seen, F_GETFD), -1);
}

static void scope_locks_end_with_the_scope(void **state)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct rwlock rwlock = RWLOCK_INIT;

    (void)state;
    {
        LOCK_SCOPE(&lock);
        assert_int_equal(pthread_mutex_trylock(&lock), EBUSY);
    }
    assert_int_equal(pthread_mutex_trylock(&lock), 0);
    pthread_mutex_unlock(&lock);
    {
        RDLOCK_SCOPE(&rwlock);
        RDLOCK_SCOPE(&rwlock);
        assert_false(rwlock_try_hold(&rwlock));
    }
    {
        WRLOCK_SCOPE(&rwlock);
        assert_false(rwlock_try_share(&rwlock));
    }
    assert_true(rwlock_try_hold(&rwlock));
    rwlock_release(&rwlock);
}

static void memory_and_json_are_released(void **state)
{
    json_t *object = json_object();

    (void)state;
    {
        _cleanup_free_ char *text = malloc(10); /* the leak checker is the judge */
        _cleanup_json_ json_t *mine = json_incref(object);

        assert_non_null(text);
        assert_int_equal(mine->refcount, 2);
    }
    assert_int_equal(object->refcount, 1);
    json_decref(object);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(descriptor_closes_and_errno_survives),
        cmocka_unit_test(scope_locks_end_with_the_scope),
        cmocka_unit_test(memory_and_json_are_released),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
