/* blkdebug's breakpoints, through the public interface, and what its rules refuse. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "scratch.h"

#define DEBUG "driver=blkdebug,image.driver=memory,image.size=1M"

struct held_write {
    struct blk_node *node;
    pthread_t thread;
    _Atomic bool done;
};

static void *write_one(void *arg)
{
    struct held_write *w = arg;
    char byte = 1;

    if (blk_write(w->node, 0, &byte, 1, 0) == 0)
        atomic_store(&w->done, true);
    return NULL;
}

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){ .tv_nsec = ms * 1000000 }, NULL);
}

static void set_break(struct blk_node *n, const char *event, const char *tag)
{
    assert_int_equal(blk_debug(n, BLK_DEBUG_BREAK, event, tag), 0);
}

static bool suspended(struct blk_node *n, const char *tag)
{
    return blk_debug(n, BLK_DEBUG_IS_SUSPENDED, NULL, tag) == 1;
}

static void start(struct held_write *w, const char *tag)
{
    assert_int_equal(pthread_create(&w->thread, NULL, write_one, w), 0);
    while (!suspended(w->node, tag))
        pause_ms(1);
}

static void two_breaks_hold_one_request_until_both_let_go(void **state)
{
    struct held_write w = { .node = must_open_opts(DEBUG, BLK_OPEN_RDWR) };

    (void)state;
    set_break(w.node, "pwritev", "A");
    set_break(w.node, "pwritev", "B");
    start(&w, "A");
    assert_true(suspended(w.node, "B"));
    assert_int_equal(blk_debug(w.node, BLK_DEBUG_RESUME, NULL, "A"), 0);
    assert_int_equal(blk_debug(w.node, BLK_DEBUG_RESUME, NULL, "A"), -ENOENT);
    pause_ms(20);
    assert_false(w.done);
    assert_int_equal(blk_debug(w.node, BLK_DEBUG_RESUME, NULL, "B"), 0);
    pthread_join(w.thread, NULL);
    assert_true(w.done);
    must_close(w.node);
}

static void removing_a_break_that_holds_lets_go(void **state)
{
    struct held_write w = { .node = must_open_opts(DEBUG, BLK_OPEN_RDWR) };

    (void)state;
    set_break(w.node, "pwritev_done", "A");
    start(&w, "A");
    assert_int_equal(blk_debug(w.node, BLK_DEBUG_REMOVE_BREAK, NULL, "A"), -ENOENT);
    pthread_join(w.thread, NULL);
    assert_true(w.done);
    must_close(w.node);
}

static void removing_takes_all_of_a_tag(void **state)
{
    struct blk_node *n = must_open_opts(DEBUG, BLK_OPEN_RDWR);

    (void)state;
    set_break(n, "pwritev", "A");
    set_break(n, "pwritev_zero", "A");
    assert_int_equal(blk_debug(n, BLK_DEBUG_REMOVE_BREAK, NULL, "A"), 0);
    assert_int_equal(blk_debug(n, BLK_DEBUG_REMOVE_BREAK, NULL, "A"), -ENOENT);
    write_bytes(n, 0, 1, 1);
    assert_int_equal(blk_zero(n, 0, 1, 0), 0);
    must_close(n);
}

static void breaks_need_an_event_and_a_blkdebug_node(void **state)
{
    struct blk_node *n = must_open_opts(DEBUG, 0);

    (void)state;
    assert_int_equal(blk_debug(n, BLK_DEBUG_BREAK, "nonsense", "A"), -ENOENT);
    assert_int_equal(blk_debug(n, BLK_DEBUG_RESUME, NULL, "A"), -ENOENT);
    must_close(n);
    n = must_open_opts("driver=memory,size=1M", 0);
    assert_int_equal(blk_debug(n, BLK_DEBUG_BREAK, "pwritev", "A"), -ENOTSUP);
    must_close(n);
}

/* Writes text as a config file; opening with it fails and says words. */
static void assert_config_refused(const char *config, const char *words)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_open_args args = { .image_opts = true };
    char *name = scratch_file(), *opts = NULL;
    FILE *f = fopen(name, "w");

    assert_non_null(f);
    fputs(config, f);
    fclose(f);
    assert_true(asprintf(&opts, DEBUG ",config=%s", name) > 0);
    assert_null(try_open(opts, &args, &err));
    if (!strstr(error_text(err), words))
        fail_msg("'%s' lacks '%s'", error_text(err), words);
    free(opts);
    scratch_remove(name);
}

static void wrong_config_files_are_refused(void **state)
{
    (void)state;
    assert_config_refused("[inject-error]\nevent = \"nonsense\"\n", "nonsense");
    assert_config_refused("[inject-error]\nevent = \"none\"\niotype = \"dance\"\n", "dance");
    assert_config_refused("[inject-error]\nevent = \"none\"\nerror = \"5\"\n", "errno");
    assert_config_refused("[nonsense]\n", ":1:");
    assert_config_refused("\nevent = \"none\"\n", ":2:");
    assert_config_refused("[set-state]\nevent none\n", ":2:");
    assert_config_refused("[set-state]\nevent = \"none\"\nnew_state = \"x\"\n", "new_state");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_breaks_hold_one_request_until_both_let_go),
        cmocka_unit_test(removing_a_break_that_holds_lets_go),
        cmocka_unit_test(removing_takes_all_of_a_tag),
        cmocka_unit_test(breaks_need_an_event_and_a_blkdebug_node),
        cmocka_unit_test(wrong_config_files_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
