/* The gate: exclusive operations are alone, and epochs end only when their requests have left. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "../check.h"
#include "gate.h"
#include "reserve.h"

enum { THREADS = 6, ROUNDS = 3000 };

struct shared {
    struct gate gate;
    struct reserve_table reserve;
    _Atomic int inside, exclusive, trouble;
    int owner[16]; /* each slot is touched only under a reservation */
};

static void *requests(void *opaque)
{
    struct shared *s = opaque;

    for (int i = 0; i < ROUNDS; i++) {
        int ticket = gate_enter(&s->gate, i % 7 == 0);
        if (ticket < 0)
            continue;
        atomic_fetch_add(&s->inside, 1);
        if (atomic_load(&s->exclusive))
            atomic_store(&s->trouble, 1);
        atomic_fetch_sub(&s->inside, 1);
        gate_leave(&s->gate, ticket);
    }
    return NULL;
}

static void *closer(void *opaque)
{
    struct shared *s = opaque;

    for (int i = 0; i < ROUNDS / 10; i++) {
        gate_close(&s->gate);
        if (atomic_fetch_add(&s->exclusive, 1) || atomic_load(&s->inside))
            atomic_store(&s->trouble, 2);
        atomic_fetch_sub(&s->exclusive, 1);
        gate_open(&s->gate);
    }
    return NULL;
}

static void run(struct shared *s, void *(*first)(void *), void *(*other)(void *))
{
    pthread_t t[THREADS];

    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&t[i], NULL, i < 2 ? first : other, s), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(t[i], NULL);
    assert_int_equal(atomic_load(&s->trouble), 0);
}

static void exclusive_is_alone(void **state)
{
    struct shared s = { 0 };

    (void)state;
    gate_init(&s.gate);
    run(&s, closer, requests);
    gate_destroy(&s.gate);
}

static void an_epoch_outlives_its_requests(void **state)
{
    struct gate g;

    (void)state;
    gate_init(&g);
    int old = gate_enter(&g, false);
    uint64_t freed = gate_epoch(&g);
    assert_false(gate_epoch_passed(&g, freed));
    int young = gate_enter(&g, false); /* in the next epoch: it cannot see what was freed */
    assert_false(gate_epoch_passed(&g, freed));
    gate_leave(&g, old);
    /* Still inside: a request that entered while the first was there. */
    gate_leave(&g, young);
    assert_true(gate_epoch_passed(&g, freed));
    gate_destroy(&g);
}

static void nowait_does_not_wait(void **state)
{
    struct gate g;

    (void)state;
    gate_init(&g);
    gate_close(&g);
    assert_int_equal(gate_enter(&g, true), -1);
    gate_open(&g);
    int t = gate_enter(&g, true);
    assert_true(t >= 0);
    gate_leave(&g, t);
    gate_destroy(&g);
}

static void *reservers(void *opaque)
{
    struct shared *s = opaque;
    unsigned seed = (unsigned)(uintptr_t)&seed;

    for (int i = 0; i < ROUNDS; i++) {
        struct reservation r;
        unsigned from = (unsigned)rand_r(&seed) % 16, to = from + 1 + (unsigned)rand_r(&seed) % 4;
        if (to > 16)
            to = 16;
        if (!reserve_take(&s->reserve, &r, from * 512, to * 512, i % 5 == 0))
            continue;
        for (unsigned k = from; k < to; k++)
            if (s->owner[k]++)
                atomic_store(&s->trouble, 3);
        for (unsigned k = from; k < to; k++)
            s->owner[k]--;
        reserve_release(&s->reserve, &r);
    }
    return NULL;
}

static void reservations_do_not_overlap(void **state)
{
    struct shared s = { 0 };

    (void)state;
    reserve_init(&s.reserve);
    run(&s, reservers, reservers);
    reserve_destroy(&s.reserve);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exclusive_is_alone),
        cmocka_unit_test(an_epoch_outlives_its_requests),
        cmocka_unit_test(nowait_does_not_wait),
        cmocka_unit_test(reservations_do_not_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
