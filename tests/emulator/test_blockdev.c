/* Drives and nodes as the command line describes them, and requests on them. */
#include <errno.h>
#include <jansson.h>
#include <pthread.h>

#include "../block/scratch.h"
#include "base/macros.h"
#include "emulator/blockdev.h"

static json_t *json(const char *text)
{
    json_t *j = json_loads(text, 0, NULL);
    assert_non_null(j);
    return j;
}

static int add(const char *text, struct error **err)
{
    json_t *j = json(text);
    int r = blockdev_add(j, err);
    json_decref(j);
    return r;
}

static void refused(int r, struct error **at, const char *part)
{
    struct error *err = *at;

    assert_true(r < 0);
    assert_non_null(err);
    if (!strstr(error_text(err), part))
        fail_msg("'%s' does not say '%s'", error_text(err), part);
    error_free(err);
    *at = NULL;
}

static int add_drive(const char *text, bool snapshot, const char **name, struct error **err)
{
    json_t *j = json(text);
    int r = blockdev_add_drive(j, snapshot, name, err);
    json_decref(j);
    return r;
}

static struct blockdev *take(const char *name, bool write)
{
    struct blockdev_user user = { .device = "disk0", .write = write };
    struct error *err = NULL;
    struct blockdev *b = NULL;
    if (blockdev_take(name, &user, &b, &err) < 0)
        fail_msg("%s", error_text(err));
    return b;
}

static void close_all(void)
{
    struct error *err = NULL;
    if (blockdevs_close(&err) < 0)
        fail_msg("%s", error_text(err));
}

/* ---- requests ------------------------------------------------------------------------------- */

struct wait {
    struct blockdev_request r;
    struct iovec iov;
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool ended;
    int result;
};

static void ended(struct blockdev_request *r, int result)
{
    struct wait *w = (struct wait *)r;
    pthread_mutex_lock(&w->lock);
    w->result = result;
    w->ended = true;
    pthread_cond_signal(&w->done);
    pthread_mutex_unlock(&w->lock);
}

static void prepare(struct wait *w, enum blockdev_op op, uint64_t offset, void *data, size_t length)
{
    *w = (struct wait){ .r = { .op = op, .offset = offset, .length = length, .done = ended } };
    w->iov = (struct iovec){ data, length };
    w->r.iov = &w->iov;
    w->r.iovcnt = data ? 1 : 0;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->done, NULL);
}

static int result(struct wait *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->ended)
        pthread_cond_wait(&w->done, &w->lock);
    pthread_mutex_unlock(&w->lock);
    return w->result;
}

static int request(struct blockdev *b, enum blockdev_op op, uint64_t offset, void *data,
                   size_t length)
{
    struct wait w;
    prepare(&w, op, offset, data, length);
    blockdev_submit(b, &w.r);
    int r = result(&w);
    blockdev_drain(b);
    return r;
}

static void test_requests_of_all_kinds(void **state)
{
    char data[4096], back[4096];
    (void)state;
    assert_int_equal(add("{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":1048576}", NULL), 0);
    struct blockdev *b = take("m", true);
    assert_true(blockdev_size(b) == 1048576 && blockdev_inserted(b) && !blockdev_read_only(b));
    memset(data, 7, sizeof(data));
    assert_int_equal(request(b, BLOCKDEV_WRITE, 8192, data, sizeof(data)), 0);
    assert_int_equal(request(b, BLOCKDEV_READ, 8192, back, sizeof(back)), 0);
    assert_memory_equal(data, back, sizeof(data));
    assert_int_equal(request(b, BLOCKDEV_ZERO, 8192, NULL, 512), 0);
    assert_int_equal(request(b, BLOCKDEV_READ, 8192, back, sizeof(back)), 0);
    assert_true(back[0] == 0 && back[511] == 0 && back[512] == 7);
    assert_int_equal(request(b, BLOCKDEV_DISCARD, 8192, NULL, 512), 0);
    assert_int_equal(request(b, BLOCKDEV_FLUSH, 0, NULL, 0), 0);
    assert_int_equal(request(b, BLOCKDEV_READ, 1048576 - 512, back, 1024), -EINVAL);
    assert_int_equal(request(b, BLOCKDEV_WRITE, UINT64_MAX - 511, back, 1024), -EINVAL);
    blockdev_release(b);
    close_all();
}

static void test_neighbours_of_a_batch_are_one_request(void **state)
{
    enum { COUNT = 40, EACH = 512 };
    static struct wait w[COUNT];
    static char data[COUNT][EACH], all[COUNT * EACH];
    struct blockdev_request *r[COUNT];
    (void)state;

    assert_int_equal(add("{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":1048576}", NULL), 0);
    struct blockdev *b = take("m", true);
    for (unsigned i = 0; i < COUNT; i++) {
        memset(data[i], (int)i + 1, EACH);
        /* a gap in the middle, and one that is out of range */
        prepare(&w[i], BLOCKDEV_WRITE, i == 30 ? 1u << 20 : (i + (i > 20)) * EACH, data[i], EACH);
        r[i] = &w[i].r;
    }
    blockdev_submit_all(b, r, COUNT);
    for (unsigned i = 0; i < COUNT; i++)
        assert_int_equal(result(&w[i]), i == 30 ? -EINVAL : 0);
    assert_int_equal(request(b, BLOCKDEV_READ, 0, all, sizeof(all)), 0);
    for (unsigned i = 0; i < COUNT - 1; i++)
        if (i != 30)
            assert_int_equal(all[(i + (i > 20)) * EACH], (int)i + 1);
    blockdev_release(b);
    close_all();
}

/* Together they fail; alone only the one that hits the bad spot does. */
static void test_an_error_hits_the_request_it_belongs_to(void **state)
{
    static struct wait w[4];
    static char data[4][512];
    struct blockdev_request *r[4];
    (void)state;

    assert_int_equal(add("{\"driver\":\"blkdebug\",\"node-name\":\"d\",\"image\":{\"driver\":"
                         "\"memory\",\"size\":65536},\"inject-error\":[{\"event\":\"none\","
                         "\"iotype\":\"write\",\"sector\":2,\"errno\":28}]}",
                         NULL),
                     0);
    struct blockdev *b = take("d", true);
    for (unsigned i = 0; i < 4; i++) {
        prepare(&w[i], BLOCKDEV_WRITE, i * 512, data[i], 512);
        r[i] = &w[i].r;
    }
    blockdev_submit_all(b, r, 4);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(result(&w[i]), i == 2 ? -ENOSPC : 0);
    blockdev_release(b);
    close_all();
}

/* ---- descriptions --------------------------------------------------------------------------- */

static void test_descriptions_that_are_refused(void **state)
{
    struct error *err = NULL;
    const char *name;
    (void)state;

    refused(add("{\"node-name\":\"x\"}", &err), &err, "driver");
    refused(add("{\"driver\":\"memory\",\"size\":512}", &err), &err, "node-name");
    refused(add("{\"driver\":\"memory\",\"node-name\":\"x\",\"size\":512,\"sise\":1}", &err), &err,
            "sise");
    refused(add("{\"driver\":\"memory\",\"node-name\":\"x\",\"size\":512,\"read-only\":\"maybe\"}",
                &err),
            &err, "read-only");
    refused(add_drive("{\"file\":\"/x\",\"cache\":\"fast\"}", false, &name, &err), &err, "cache");
    refused(add_drive("{\"file\":\"/x\",\"aio\":\"native\"}", false, &name, &err), &err,
            "cache.direct");
    refused(add_drive("{\"file\":\"/x\",\"media\":\"tape\"}", false, &name, &err), &err, "media");
    refused(add_drive("{\"file\":\"/does/not/exist\"}", false, &name, &err), &err,
            "/does/not/exist");
    assert_null(blockdev_at(0));
}

static void test_nodes_refer_to_each_other(void **state)
{
    struct error *err = NULL;
    struct blockdev *b;
    (void)state;

    assert_int_equal(add("{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":65536}", NULL), 0);
    assert_int_equal(
        add("{\"driver\":\"raw\",\"node-name\":\"r\",\"file\":\"m\",\"offset\":512}", NULL), 0);
    refused(add("{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":512}", &err), &err, "taken");
    b = take("r", true);
    assert_int_equal(blockdev_size(b), 65024);
    struct blockdev_user user = { .device = "other", .write = true };
    struct blockdev *no;
    refused(blockdev_take("r", &user, &no, &err), &err, "in use by disk0");
    refused(blockdev_take("m", &user, &no, &err), &err, "rests on");
    refused(blockdev_take("q", &user, &no, &err), &err, "'q'");
    blockdev_release(b);
    close_all();
}

static void test_read_only_nodes_are_shared(void **state)
{
    char data[512];
    (void)state;
    assert_int_equal(
        add("{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":65536,\"read-only\":\"on\"}",
            NULL),
        0);
    struct blockdev *a = take("m", true), *b = take("m", false);
    assert_true(blockdev_read_only(a));
    assert_int_equal(request(a, BLOCKDEV_WRITE, 0, data, 512), -EROFS);
    assert_int_equal(request(b, BLOCKDEV_READ, 0, data, 512), 0);
    blockdev_release(a);
    blockdev_release(b);
    close_all();
}

static char *make_image(const char *format)
{
    char *file = scratch_file();
    struct blk_create_args args = {
        .filename = file, .format = format, .size_given = true, .size = 1 << 20
    };
    assert_int_equal(blk_create(&args, NULL, NULL), 0);
    return file;
}

static const char *drive(const char *file, const char *more, bool snapshot)
{
    _cleanup_error_ struct error *err = NULL;
    char text[512];
    const char *name = NULL;
    snprintf(text, sizeof(text), "{\"file\":\"%s\"%s}", file, more);
    if (add_drive(text, snapshot, &name, &err) < 0)
        fail_msg("%s: %s", text, error_text(err));
    return name;
}

static void test_drives(void **state)
{
    char data[512], back[512];
    char *file = make_image("qcow2");
    (void)state;

    memset(data, 9, sizeof(data));
    assert_string_equal(
        drive(file,
              ",\"id\":\"d\",\"if\":\"none\",\"format\":\"qcow2\",\"cache\":\"unsafe\","
              "\"discard\":\"unmap\",\"detect-zeroes\":\"on\",\"serial\":\"x\"",
              false),
        "d");
    struct blockdev *b = take("d", true);
    assert_int_equal(request(b, BLOCKDEV_WRITE, 512, data, sizeof(data)), 0);
    char *text = blockdev_describe(b);
    assert_non_null(strstr(text, "Attached to:      disk0"));
    assert_non_null(strstr(text, "unsafe"));
    free(text);
    blockdev_release(b);
    close_all();

    /* What a snapshot takes in is gone afterwards. */
    const char *name = drive(file, ",\"cache\":{\"direct\":\"off\",\"writeback\":\"off\"}", true);
    assert_string_equal(name, "drive0");
    b = take(name, true);
    assert_int_equal(request(b, BLOCKDEV_READ, 512, back, 512), 0);
    assert_memory_equal(data, back, 512);
    memset(back, 3, sizeof(back));
    assert_int_equal(request(b, BLOCKDEV_WRITE, 512, back, 512), 0);
    blockdev_release(b);
    close_all();
    name = drive(file, ",\"media\":\"cdrom\",\"throttling\":{\"iops-total\":100000}", false);
    b = take(name, false);
    assert_true(blockdev_read_only(b));
    assert_int_equal(request(b, BLOCKDEV_READ, 512, back, 512), 0);
    assert_memory_equal(data, back, 512);
    blockdev_release(b);
    close_all();
    scratch_remove(file);
}

static void test_a_drive_without_a_file(void **state)
{
    char data[512];
    const char *name;
    (void)state;
    assert_int_equal(
        add_drive("{\"if\":\"ide\",\"media\":\"cdrom\",\"id\":\"cd\"}", true, &name, NULL), 0);
    struct blockdev *b = take(name, false);
    assert_true(!blockdev_inserted(b) && blockdev_size(b) == 0 && blockdev_read_only(b));
    assert_int_equal(request(b, BLOCKDEV_READ, 0, data, 512), -ENOMEDIUM);
    char *text = blockdev_describe(b);
    assert_non_null(strstr(text, "cd: [not inserted]"));
    free(text);
    blockdev_release(b);
    close_all();
}

static void test_auto_read_only(void **state)
{
    char text[512];
    char *file = make_image("raw");
    (void)state;
    chmod(file, 0444);
    const bool root = geteuid() == 0; /* who may write to everything */
    if (root)
        assert_int_equal(seteuid(65534), 0);

    snprintf(text, sizeof(text), "{\"driver\":\"file\",\"node-name\":\"f\",\"filename\":\"%s\"}",
             file);
    assert_true(add(text, NULL) < 0);
    snprintf(
        text, sizeof(text),
        "{\"driver\":\"file\",\"node-name\":\"f\",\"filename\":\"%s\",\"auto-read-only\":true}",
        file);
    assert_int_equal(add(text, NULL), 0);
    assert_true(blockdev_read_only(blockdev_at(0)));
    close_all();
    if (root)
        assert_int_equal(seteuid(0), 0);
    scratch_remove(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests_of_all_kinds),
        cmocka_unit_test(test_neighbours_of_a_batch_are_one_request),
        cmocka_unit_test(test_an_error_hits_the_request_it_belongs_to),
        cmocka_unit_test(test_descriptions_that_are_refused),
        cmocka_unit_test(test_nodes_refer_to_each_other),
        cmocka_unit_test(test_read_only_nodes_are_shared),
        cmocka_unit_test(test_drives),
        cmocka_unit_test(test_a_drive_without_a_file),
        cmocka_unit_test(test_auto_read_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
