/* Every request fails in turn.
 *
 * A run of guest operations goes through a blkdebug node that fails the n-th request to the file (with EIO or
 * ENOSPC, alone or with all that follow). The image must check with leaks at most and hold for each
 * block what it held at the last good flush or something written later, and no descriptor may stay open.
 *
 * FAULT_STEP in the environment tries every so-manyth request only (default: some of each case).
 */
#include <dirent.h>

#include "guest.h"

struct trial {
    const struct disk_case *c;
    unsigned request, error;
    bool on;
};

static void complain(const struct trial *t, const char *what, const char *more)
{
    fail_msg("%s: request %u fails with %s%s: %s %s", t->c->name, t->request,
             strerror((int)t->error), t->on ? " and all after it" : "", what, more);
}

static int restore_image(void)
{
    char cmd[900];

    snprintf(
        cmd, sizeof(cmd),
        "cd %s && cp --reflink=auto start image && { ! test -e data.start || cp data.start data; }",
        dir);
    return system(cmd);
}

/* Runs the guest. Returns whether anything failed; *flushed is the last operation that is certain. */
static bool run_guest(const struct trial *t, struct guest *g, unsigned *flushed)
{
    _cleanup_error_ struct error *err = NULL;
    char opts[800];
    bool failed = false;

    *flushed = 0;
    /* Every other request of the data file, where there is one. */
    bool data = guest_has_data_file(t->c) && t->request % 2;
    const char *edge = data ? "data-file" : "file";
    snprintf(opts, sizeof(opts),
             "driver=%s,discard=unmap,%s.driver=blkdebug,%s.fail-request=%u,%s.fail-errno=%u,"
             "%s.fail-on=%s,%s.image.filename=%s/%s%s%s%s",
             t->c->format, edge, edge, t->request, edge, t->error, edge, t->on ? "on" : "off", edge,
             dir, data ? "data" : "image", data ? ",file.filename=" : "", data ? dir : "",
             data ? "/image" : "");
    struct blk_open_args args = { .image_opts = true, .flags = BLK_OPEN_RDWR | BLK_OPEN_UNMAP };
    struct blk_node *n = try_open(opts, &args, &err);
    if (!n)
        return true;
    for (unsigned op = 1; op <= g->c->operations; op++) {
        int ret = guest_operate(g, n, op);
        failed |= ret < 0;
        if (ret < 0)
            guest_failed(g, op);
        if (ret < 0 && ret != -(int)t->error && ret != -EIO)
            complain(t, "another error came up:", strerror(-ret));
        if (ret == 0 && g->is_flush[op])
            *flushed = op;
    }
    if (blk_close(n, &err) < 0)
        failed = true;
    else
        *flushed = g->c->operations;
    return failed;
}

static struct blk_node *open_image(const struct trial *t, unsigned flags)
{
    _cleanup_error_ struct error *err = NULL;
    char image[300];

    snprintf(image, sizeof(image), "%s/image", dir);
    struct blk_open_args args = { .format = t->c->format, .flags = flags };
    struct blk_node *n = try_open(image, &args, &err);
    if (!n)
        complain(t, "the image does not open:", error_text(err));
    return n;
}

static void must_be_sound(const struct trial *t)
{
    _cleanup_error_ struct error *err = NULL;
    char first[200] = "";
    struct blk_check_hooks hooks = { .message = first_finding, .opaque = first };
    struct blk_check found;
    struct blk_info info;

    struct blk_node *n = open_image(t, 0);
    assert_int_equal(blk_info(n, &info, NULL), 0);
    if (info.dirty) { /* whoever writes next brings it into line first */
        must_close(n);
        n = open_image(t, BLK_OPEN_RDWR);
    }
    blk_info_free(&info);
    int ret = check_image(n, &found, &hooks, &err);
    must_close(n);
    if (ret == 0 && flags_only(t->c, first)) {
        n = open_image(t, BLK_OPEN_RDWR | BLK_OPEN_REPAIR);
        ret = blk_check(n, BLK_FIX_ERRORS | BLK_FIX_LEAKS, &found, NULL, &err);
        must_close(n);
    }
    if (ret < 0 || found.corruptions || found.check_errors)
        complain(t, "the image is corrupt:", first);
}

static void judge(const struct trial *t, const struct guest *g, unsigned flushed)
{
    struct allowed *a = allowed_new(t->c);
    char text[100];
    uint64_t tag = 0;

    must_be_sound(t);
    size_t settled = allowed_settle(g, a, 0, flushed);
    allowed_add(g, a, settled, t->c->operations);
    struct blk_node *n = open_image(t, 0);
    int64_t wrong = allowed_verify(t->c, a, n, &tag);
    snprintf(text, sizeof(text), "%lld holds %#llx", (long long)wrong, (unsigned long long)tag);
    if (wrong >= 0)
        complain(t, "a wrong block:", text);
    free(a);
    must_close(n);
    for (unsigned i = 0; i < g->kept_count; i++) {
        n = open_image(t, 0);
        const char *bad = kept_verify(g, i, n, flushed, t->c->operations);
        if (bad)
            complain(t, bad, "");
        must_close(n);
    }
}

static unsigned open_descriptors(void)
{
    DIR *fds = opendir("/proc/self/fd");
    unsigned count = 0;

    assert_non_null(fds);
    while (readdir(fds))
        count++;
    closedir(fds);
    return count;
}

/* Returns whether anybody was told: a hole punch that fails is nobody's business, and late requests are
 * never reached. */
static bool try_one(const struct trial *t, unsigned seed)
{
    struct guest g;
    unsigned flushed, before = open_descriptors();

    assert_int_equal(restore_image(), 0);
    guest_init(&g, t->c, seed);
    bool failed = run_guest(t, &g, &flushed);
    if (open_descriptors() != before)
        complain(t, "descriptors stay open", "");
    judge(t, &g, flushed);
    guest_free(&g);
    return failed;
}

/* Requests that a run without failures makes, about. */
static unsigned count_requests(const struct disk_case *c, unsigned seed)
{
    struct trial t = { .c = c, .error = EIO, .request = 64 };

    while (try_one(&t, seed) && t.request < 1 << 16)
        t.request *= 2;
    return t.request;
}

static unsigned long run_case(const struct disk_case *whole, unsigned seed)
{
    static const unsigned errors[] = { EIO, ENOSPC };
    const char *env = getenv("FAULT_STEP");
    struct disk_case c = *whole;
    unsigned long tried = 0;
    char cmd[600];

    c.operations = MIN(c.operations, 60u);
    make_image(&c);
    snprintf(cmd, sizeof(cmd), "cd %s && rm -f data.start && cp image start", dir);
    assert_int_equal(system(cmd), 0);
    snprintf(cmd, sizeof(cmd), "cd %s && cp --sparse=always data data.start", dir);
    if (guest_has_data_file(&c))
        assert_int_equal(system(cmd), 0);
    unsigned requests = count_requests(&c, seed);
    unsigned step = env ? (unsigned)atoi(env) : MAX(requests / SOME, 1u);
    for (unsigned k = 0; k < 4; k++) {
        struct trial t = { .c = &c, .error = errors[k % 2], .on = k / 2 };
        for (t.request = 1 + seed % step; t.request < requests; t.request += step)
            tried += try_one(&t, seed);
    }
    return tried;
}

static void quiet(void *opaque, const char *text)
{
    (void)opaque;
    (void)text;
}

static void every_request_fails_once(void **state)
{
    const char *env = getenv("FAULT_SEED");
    unsigned seed = env ? (unsigned)atoi(env) : 1u;
    unsigned long tried = 0;

    (void)state;
    print_message("seed %u\n", seed);
    blk_on_warning(quiet, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(disk_cases); i++)
        if (case_wanted(&disk_cases[i]))
            tried += run_case(&disk_cases[i], seed);
    print_message("%lu failing requests, each told and survived\n", tried);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_request_fails_once, make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
