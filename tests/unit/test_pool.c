#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../check.h"
#include "base/cores.h"
#include "base/pool.h"

static atomic_int done;

static void count(void *arg)
{
    (void)arg;
    atomic_fetch_add(&done, 1);
}

static void count_and_free(void *arg)
{
    count(NULL);
    free(arg);
}

static void every_job_runs_once(void **state)
{
    struct pool_job jobs[500];
    struct pool_group group;
    struct pool *pool;

    (void)state;
    atomic_store(&done, 0);
    assert_int_equal(pool_create(&pool, 4, "test"), 0);
    assert_int_equal(pool_threads(pool), 4);
    pool_group_init(&group);
    pool_wait(&group);
    for (int round = 1; round <= 3; round++) {
        for (int i = 0; i < 500; i++) {
            jobs[i] = (struct pool_job){ .fn = count, .group = &group };
            pool_submit(pool, &jobs[i]);
        }
        pool_wait(&group);
        assert_int_equal(atomic_load(&done), 500 * round);
    }
    pool_group_destroy(&group);
    pool_destroy(pool);
}

static void ending_waits_for_jobs(void **state)
{
    struct pool *pool;

    (void)state;
    atomic_store(&done, 0);
    assert_int_equal(pool_create(&pool, 2, "test"), 0);
    for (int i = 0; i < 100; i++) {
        struct pool_job *job = malloc(sizeof(*job));

        assert_non_null(job);
        *job = (struct pool_job){ .fn = count_and_free, .arg = job };
        pool_submit(pool, job);
    }
    pool_destroy(pool);
    pool_destroy(NULL);
    assert_int_equal(atomic_load(&done), 100);
}

struct chain {
    struct pool *pool;
    struct pool_group *group;
    struct pool_job second;
    bool mine;
};

static void submit_second(void *arg)
{
    struct chain *chain = arg;

    chain->mine = pool_is_mine(chain->pool);
    chain->second = (struct pool_job){ .fn = count, .group = chain->group };
    pool_submit(chain->pool, &chain->second);
}

static void a_job_may_hand_over_another(void **state)
{
    struct pool_group group;
    struct chain chain = { .group = &group };
    struct pool_job first = { .fn = submit_second, .arg = &chain, .group = &group };

    (void)state;
    atomic_store(&done, 0);
    assert_int_equal(pool_create(&chain.pool, 1, "test"), 0);
    pool_group_init(&group);
    pool_submit(chain.pool, &first);
    pool_wait(&group);
    assert_int_equal(atomic_load(&done), 1);
    assert_true(chain.mine);
    assert_false(pool_is_mine(chain.pool));
    pool_group_destroy(&group);
    pool_destroy(chain.pool);
}

static void wait_for_group(void *arg)
{
    pool_wait(arg);
}

/* In a child, since the answer is an abort. */
static void waiting_for_ones_own_pool_is_caught(void **state)
{
    pid_t child;
    int status;

    (void)state;
    child = fork();
    if (child == 0) {
        struct pool_group group;
        struct pool_job job = { .fn = wait_for_group, .arg = &group, .group = &group };
        struct pool *pool;

        signal(SIGABRT, SIG_DFL);
        alarm(20);
        close(2);
        pool_create(&pool, 2, "test");
        pool_group_init(&group);
        pool_submit(pool, &job);
        pool_wait(&group);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void cores_are_counted(void **state)
{
    (void)state;
    assert_true(usable_cores() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_job_runs_once),
        cmocka_unit_test(ending_waits_for_jobs),
        cmocka_unit_test(a_job_may_hand_over_another),
        cmocka_unit_test(waiting_for_ones_own_pool_is_caught),
        cmocka_unit_test(cores_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
