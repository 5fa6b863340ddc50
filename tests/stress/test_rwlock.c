/* The lock that many share or one holds: whoever holds it is alone, and everybody gets on. */
#include <pthread.h>
#include <stdatomic.h>

#include "../check.h"
#include "base/cleanup.h"
#include "base/rwlock.h"

enum { THREADS = 8, ROUNDS = 20000 };

struct shared {
    struct rwlock lock;
    unsigned number; /* under lock */
    _Atomic int alone, together, trouble;
};

static void *work(void *opaque)
{
    struct shared *s = opaque;
    unsigned last = 0;

    for (int i = 0; i < ROUNDS; i++) {
        if (i % 5 == 0) {
            WRLOCK_SCOPE(&s->lock);
            if (atomic_fetch_add(&s->alone, 1) || atomic_load(&s->together))
                atomic_store(&s->trouble, 1);
            s->number++;
            atomic_fetch_sub(&s->alone, 1);
        } else if (i % 7 || rwlock_try_share(&s->lock)) {
            if (i % 7)
                rwlock_share(&s->lock);
            atomic_fetch_add(&s->together, 1);
            if (atomic_load(&s->alone) || s->number < last)
                atomic_store(&s->trouble, 2);
            last = s->number;
            atomic_fetch_sub(&s->together, 1);
            rwlock_release(&s->lock); /* taken by trying or waiting */
        }
    }
    return NULL;
}

static void the_one_who_holds_it_is_alone(void **state)
{
    struct shared s = { .lock = RWLOCK_INIT };
    pthread_t t[THREADS];

    (void)state;
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&t[i], NULL, work, &s), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(atomic_load(&s.trouble), 0);
    assert_int_equal(s.number, THREADS * ROUNDS / 5);
    rwlock_destroy(&s.lock);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_one_who_holds_it_is_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
