/* virtio-blk-pci, driven as a driver would: random requests against a shadow, resets under way, and guests that mean harm. */
#include "bench.h"

enum {
    BAR = 4,
    QUEUE = 64,
    DISK = 1 << 20,
    DESC = 0x10000,
    AVAIL = 0x12000,
    USED = 0x13000,
    SLOT = 0x20000, /* of each head: header, status, indirect table; data behind SLOTS_END */
    SLOT_SIZE = 0x1000,
    TABLE = 0x80000, /* a long indirect one */
    DATA = 0x100000,
    DATA_SIZE = 0x10000,
};
enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, ZEROES = 13 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { BLK_FEATURES_WANTED = 0x7e77 };

struct driver {
    struct bench b;
    uint8_t *shadow;
    uint64_t features;
    uint16_t avail, used;
};

static void common(struct driver *d, unsigned offset, unsigned size, uint64_t value)
{
    bench_put(&d->b, BAR, offset, size, value);
}

static uint8_t status(struct driver *d)
{
    return (uint8_t)bench_get(&d->b, BAR, 0x14, 1);
}

static void start(struct driver *d, uint64_t features)
{
    common(d, 0x14, 1, 0);
    assert_int_equal(status(d), 0);
    common(d, 0x14, 1, 3);
    uint64_t offered = 0;
    for (unsigned i = 0; i < 2; i++) {
        common(d, 0, 4, i);
        offered |= bench_get(&d->b, BAR, 4, 4) << (32 * i);
    }
    d->features = offered & features;
    for (unsigned i = 0; i < 2; i++) {
        common(d, 8, 4, i);
        common(d, 12, 4, (uint32_t)(d->features >> (32 * i)));
    }
    common(d, 0x14, 1, 11);
    assert_int_equal(status(d), 11);
    common(d, 0x16, 2, 0);
    common(d, 0x18, 2, QUEUE);
    common(d, 0x1a, 2, 1);
    common(d, 0x20, 8, DESC);
    common(d, 0x28, 8, AVAIL);
    common(d, 0x30, 4, USED);
    common(d, 0x34, 4, 0);
    memset(bench_at(&d->b, DESC), 0, 0x10000);
    common(d, 0x1c, 2, 1);
    common(d, 0x14, 1, 15);
    assert_int_equal(status(d), 15);
    d->avail = d->used = 0;
}

static void setup_with(struct driver *d, const char *node, const char *device, uint64_t features)
{
    memset(d, 0, sizeof *d);
    bench_open(&d->b);
    d->shadow = calloc(1, DISK);
    bench_node(node);
    bench_device(&d->b, device);
    bench_map(&d->b);
    bench_msix(&d->b, 1, 2);
    start(d, features);
}

#define MEMORY       "{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":1048576,\"discard\":\"unmap\"}"
#define DEVICE(more) "{\"driver\":\"virtio-blk-pci\",\"drive\":\"m\",\"addr\":\"5\"" more "}"
#define ALL          UINT64_MAX
#define PLAIN        (UINT64_C(1) << 32 | BLK_FEATURES_WANTED)

static void setup(struct driver *d)
{
    setup_with(d, MEMORY, DEVICE(",\"serial\":\"PL1\""), ALL);
}

static void teardown(struct driver *d)
{
    bench_close(&d->b);
    free(d->shadow);
}

static void descriptor(struct driver *d, uint64_t table, unsigned i, uint64_t address,
                       uint32_t length, uint16_t flags, uint16_t next)
{
    uint8_t *at = bench_at(&d->b, table + 16ull * i);
    store_le64(at, address);
    store_le32(at + 8, length);
    store_le16(at + 12, flags);
    store_le16(at + 14, next);
}

static void offer(struct driver *d, uint16_t head)
{
    store_le16(bench_at(&d->b, AVAIL + 4 + 2 * (d->avail % QUEUE)), head);
    atomic_thread_fence(memory_order_seq_cst);
    store_le16(bench_at(&d->b, AVAIL + 2), ++d->avail);
}

static void ring(struct driver *d)
{
    bench_put(&d->b, BAR, 0x3000, 2, 0);
}

static uint16_t used_index(struct driver *d)
{
    return le16toh(atomic_load((_Atomic uint16_t *)bench_at(&d->b, USED + 2)));
}

/* The next that ended: its head. */
static uint16_t reap(struct driver *d, uint32_t *written)
{
    for (unsigned rounds = 0; used_index(d) == d->used;)
        bench_pause(&rounds);
    const uint8_t *e = bench_at(&d->b, USED + 4 + 8 * (d->used++ % QUEUE));
    *written = load_le32(e + 4);
    return (uint16_t)load_le32(e);
}

static uint64_t slot(unsigned i)
{
    return SLOT + (uint64_t)i * SLOT_SIZE;
}

static uint64_t data_of(unsigned i)
{
    return (i & 1 ? BENCH_HIGH : 0) + DATA + (uint64_t)i * DATA_SIZE;
}

/* A request in slot i, of three descriptors or an indirect table with the data cut in random pieces. */
static void build(struct driver *d, unsigned i, uint32_t type, uint64_t sector, uint32_t length)
{
    uint8_t *header = bench_at(&d->b, slot(i));
    bool indirect = d->features & (1 << 28) && bench_below(&d->b, 2);
    bool in = type == IN || type == GET_ID;
    uint64_t table = indirect ? slot(i) + 0x100 : DESC;
    unsigned first = indirect ? 0 : i * 3, n = first;

    store_le32(header, type);
    store_le32(header + 4, 0);
    store_le64(header + 8, sector);
    header[16] = 0xff;
    descriptor(d, table, n, slot(i), 16, NEXT, (uint16_t)(n + 1));
    n++;
    for (uint32_t done = 0; done < length;) {
        uint32_t part =
            indirect && n < 20 ? (uint32_t)bench_below(&d->b, length - done) + 1 : length - done;
        descriptor(d, table, n, data_of(i) + done, part, (uint16_t)(NEXT | (in ? WRITE : 0)),
                   (uint16_t)(n + 1));
        n++;
        done += part;
    }
    descriptor(d, table, n, slot(i) + 16, 1, WRITE, 0);
    n++;
    if (indirect)
        descriptor(d, DESC, i * 3, table, 16 * (n - first), INDIRECT, 0);
}

enum { SLOTS = QUEUE / 3 };

static uint8_t run(struct driver *d, uint32_t type, uint64_t sector, uint32_t length)
{
    uint32_t written;
    build(d, 0, type, sector, length);
    offer(d, 0);
    ring(d);
    assert_int_equal(reap(d, &written), 0);
    return *bench_at(&d->b, slot(0) + 16);
}

/* ---- what it does ---------------------------------------------------------------------------- */

static void test_it_says_what_it_is(void **state)
{
    struct driver d;
    uint32_t written;
    (void)state;
    setup(&d);
    assert_int_equal(bench_config(&d.b, 0, 4), 0x10011af4);
    assert_int_equal(bench_get(&d.b, BAR, 0x2000, 8), DISK / 512);
    assert_int_equal(bench_get(&d.b, BAR, 0x2000 + 20, 4), 512);
    assert_int_equal(bench_get(&d.b, BAR, 0x12, 2), 1);
    assert_int_equal(bench_get(&d.b, BAR, 0x2000 + 63, 1), 0);
    build(&d, 0, GET_ID, 0, 20);
    offer(&d, 0);
    ring(&d);
    reap(&d, &written);
    assert_string_equal((char *)bench_at(&d.b, data_of(0)), "PL1");
    /* the same registers through configuration space */
    unsigned cap = 0;
    for (unsigned i = 0; (cap = bench_capability(&d.b, 9, i)); i++)
        if (bench_config(&d.b, cap + 3, 1) == 5)
            break;
    assert_true(cap);
    bench_set_config(&d.b, cap + 4, 1, BAR);
    bench_set_config(&d.b, cap + 8, 4, 0x14);
    bench_set_config(&d.b, cap + 12, 4, 1);
    assert_int_equal(bench_config(&d.b, cap + 16, 1), 15);
    bench_set_config(&d.b, cap + 16, 1, 0);
    assert_int_equal(status(&d), 0);
    teardown(&d);
}

static void test_random_requests(void **state)
{
    static const uint64_t features[] = { ALL, ALL & ~(UINT64_C(1) << 29), PLAIN };
    (void)state;
    for (unsigned f = 0; f < 3; f++) {
        struct driver d;
        struct {
            uint32_t type, length;
            uint64_t offset;
            bool busy;
        } q[SLOTS] = { 0 };
        setup_with(&d, MEMORY, DEVICE(""), features[f]);
        for (unsigned round = 0, busy = 0; round < 3000 || busy;) {
            unsigned i = (unsigned)bench_below(&d.b, SLOTS);
            if (round < 3000 && !q[i].busy) {
                static const uint32_t types[] = { IN, IN, OUT, OUT, FLUSH, DISCARD, ZEROES };
                q[i].type = types[bench_below(&d.b, 7)];
                q[i].length = 512 * (1 + (uint32_t)bench_below(&d.b, 32));
                /* each slot has its own part of the disk, so the order does not matter */
                uint64_t part = DISK / SLOTS / 512 * 512;
                q[i].offset = i * part + 512 * bench_below(&d.b, (part - q[i].length) / 512);
                uint8_t *data = bench_at(&d.b, data_of(i)), *shadow = d.shadow + q[i].offset;
                uint32_t length = q[i].type == FLUSH ? 0 : q[i].length;
                if (q[i].type == OUT) {
                    bench_fill(&d.b, data, length);
                    memcpy(shadow, data, length);
                } else if (q[i].type == ZEROES) {
                    memset(shadow, 0, length);
                }
                if (q[i].type >= DISCARD) {
                    store_le64(data, q[i].offset / 512);
                    store_le32(data + 8, length / 512);
                    store_le32(data + 12, q[i].type == ZEROES ? round & 1 : 0);
                    length = 16;
                }
                build(&d, i, q[i].type, q[i].type >= DISCARD ? 0 : q[i].offset / 512, length);
                q[i].busy = true;
                busy++;
                round++;
                offer(&d, (uint16_t)(i * 3));
                if (bench_below(&d.b, 4))
                    continue;
            }
            ring(&d);
            while (busy && (used_index(&d) != d.used || bench_below(&d.b, 2))) {
                uint32_t written;
                unsigned h = reap(&d, &written) / 3u;
                assert_true(h < SLOTS && q[h].busy);
                q[h].busy = false;
                busy--;
                assert_int_equal(*bench_at(&d.b, slot(h) + 16), 0);
                uint8_t *data = bench_at(&d.b, data_of(h)), *shadow = d.shadow + q[h].offset;
                assert_int_equal(written,
                                 q[h].type == IN || q[h].type == GET_ID ? q[h].length + 1 : 1);
                if (q[h].type == IN)
                    assert_memory_equal(data, shadow, q[h].length);
                if (q[h].type == DISCARD) { /* old data or zeroes: look */
                    uint32_t length = q[h].length;
                    build(&d, h, IN, q[h].offset / 512, length);
                    q[h].type = GET_ID; /* read again */
                    q[h].busy = true;
                    busy++;
                    offer(&d, (uint16_t)(h * 3));
                    ring(&d);
                } else if (q[h].type == GET_ID || q[h].type == FLUSH) {
                    if (q[h].type == GET_ID)
                        memcpy(shadow, data, q[h].length);
                }
            }
        }
        assert_true(atomic_load(&d.b.messages[1]) > 0);
        assert_int_equal(status(&d), 15);
        teardown(&d);
    }
}

static void test_the_last_request_of_each_ring_is_not_lost(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    /* Bells only when the device asks for them, as event_idx allows. */
    for (unsigned i = 0; i < 70000; i++) {
        uint16_t old = d.avail;
        build(&d, 0, FLUSH, 0, 0);
        offer(&d, 0);
        atomic_thread_fence(memory_order_seq_cst);
        uint16_t event = load_le16(bench_at(&d.b, USED + 4 + 8 * QUEUE));
        if ((uint16_t)(d.avail - event - 1) < (uint16_t)(d.avail - old))
            ring(&d);
        uint32_t written;
        reap(&d, &written);
    }
    teardown(&d);
}

static void test_requests_that_are_refused(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    assert_int_equal(run(&d, IN, DISK / 512, 512), 1);
    assert_int_equal(run(&d, OUT, UINT64_MAX / 512, 512), 1);
    assert_int_equal(run(&d, IN, UINT64_MAX, 512), 1);
    assert_int_equal(run(&d, IN, 0, 500), 1);
    assert_int_equal(run(&d, 77, 0, 512), 2);
    uint8_t *range = bench_at(&d.b, data_of(0));
    store_le64(range, 0);
    store_le32(range + 8, UINT32_MAX);
    store_le32(range + 12, 0);
    assert_int_equal(run(&d, DISCARD, 0, 16), 1);
    store_le32(range + 8, 8);
    store_le32(range + 12, 6);
    assert_int_equal(run(&d, ZEROES, 0, 16), 2);
    assert_int_equal(run(&d, ZEROES, 0, 15), 1);
    assert_int_equal(run(&d, IN, 0, 512), 0);
    teardown(&d);
}

/* The same memory over and over: more data than there is, for longer than anybody wants to wait. */
static void test_a_request_of_many_gigabytes(void **state)
{
    struct driver d;
    uint32_t written;
    (void)state;
    setup_with(&d, "{\"driver\":\"null-co\",\"node-name\":\"m\",\"size\":1099511627776}",
               DEVICE(""), ALL);
    uint64_t table = TABLE;
    build(&d, 0, IN, 0, 0);
    descriptor(&d, table, 0, slot(0), 16, NEXT, 1);
    for (unsigned i = 1; i < 1000; i++)
        descriptor(&d, table, i, BENCH_HIGH, BENCH_RAM, NEXT | WRITE, (uint16_t)(i + 1));
    descriptor(&d, table, 1000, slot(0) + 16, 1, WRITE, 0);
    descriptor(&d, DESC, 0, table, 16 * 1001, INDIRECT, 0);
    offer(&d, 0);
    ring(&d);
    assert_int_equal(reap(&d, &written), 0);
    assert_int_equal(*bench_at(&d.b, slot(0) + 16), 1);
    teardown(&d);
}

static void test_a_read_only_disk(void **state)
{
    struct driver d;
    (void)state;
    setup_with(&d,
               "{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":1048576,\"read-only\":true}",
               DEVICE(""), ALL);
    assert_true(d.features & (1 << 5));
    assert_int_equal(run(&d, OUT, 0, 512), 1);
    assert_int_equal(run(&d, IN, 0, 512), 0);
    teardown(&d);
}

static void test_blocks_of_4096(void **state)
{
    struct driver d;
    (void)state;
    setup_with(&d, MEMORY, DEVICE(",\"logical_block_size\":4096,\"physical_block_size\":4096"),
               ALL);
    assert_int_equal(bench_get(&d.b, BAR, 0x2000 + 20, 4), 4096);
    assert_int_equal(run(&d, IN, 8, 4096), 0);
    assert_int_equal(run(&d, IN, 1, 4096), 1);
    assert_int_equal(run(&d, IN, 8, 512), 1);
    teardown(&d);
}

/* ---- errors of the disk ------------------------------------------------------------------------ */

#define FAILING(errno_, once)                                                                 \
    "{\"driver\":\"blkdebug\",\"node-name\":\"m\",\"image\":{\"driver\":\"memory\",\"size\":" \
    "1048576},\"inject-error\":[{\"event\":\"none\",\"iotype\":\"write\",\"errno\":" errno_   \
    ",\"once\":" once "}]}"

static void test_errors_are_reported_or_ignored(void **state)
{
    struct driver d;
    (void)state;
    setup_with(&d, FAILING("5", "false"), DEVICE(""), ALL);
    assert_int_equal(run(&d, OUT, 0, 512), 1);
    assert_int_equal(d.b.stops, 0);
    teardown(&d);
    setup_with(&d, FAILING("5", "false"), DEVICE(",\"werror\":\"ignore\""), ALL);
    assert_int_equal(run(&d, OUT, 0, 512), 0);
    teardown(&d);
}

static void test_a_full_disk_stops_the_machine_and_goes_on(void **state)
{
    struct driver d;
    uint32_t written;
    (void)state;
    setup_with(&d, FAILING("28", "true"), DEVICE(""), ALL);
    build(&d, 0, OUT, 0, 512);
    offer(&d, 0);
    ring(&d);
    for (unsigned rounds = 0; !atomic_load(&d.b.stops);)
        bench_pause(&rounds);
    devices_drain(d.b.devices);
    assert_int_equal(used_index(&d), 0);
    devices_resume(d.b.devices);
    assert_int_equal(reap(&d, &written), 0);
    assert_int_equal(*bench_at(&d.b, slot(0) + 16), 0);
    teardown(&d);
}

static void test_a_parked_request_is_forgotten_by_a_reset(void **state)
{
    struct driver d;
    (void)state;
    setup_with(&d, FAILING("28", "false"), DEVICE(""), ALL);
    for (unsigned round = 0; round < 2; round++) {
        build(&d, 0, OUT, 0, 512);
        offer(&d, 0);
        ring(&d);
        for (unsigned rounds = 0; atomic_load(&d.b.stops) == round;)
            bench_pause(&rounds);
        if (round == 0)
            start(&d, ALL);
        assert_int_equal(used_index(&d), 0);
    }
    teardown(&d); /* and by the end */
}

/* ---- resets ---------------------------------------------------------------------------------------- */

#define SLOW                                                                                       \
    "{\"driver\":\"delay\",\"node-name\":\"m\",\"read-ns\":3000000,\"write-ns\":3000000,\"file\":" \
    "{"                                                                                            \
    "\"driver\":\"memory\",\"size\":1048576}}"

static void test_after_a_reset_nothing_touches_memory(void **state)
{
    struct driver d;
    (void)state;
    setup_with(&d, SLOW, DEVICE(""), ALL);
    for (unsigned round = 0; round < 10; round++) {
        for (unsigned i = 0; i < SLOTS; i++) {
            build(&d, i, i & 1 ? IN : OUT, 0, 8192);
            offer(&d, (uint16_t)(i * 3));
        }
        ring(&d);
        common(&d, 0x14, 1, 0);
        memset(d.b.ram + DESC, 0x5a, BENCH_RAM - DESC);
        for (unsigned rounds = 0; rounds < 60;)
            bench_pause(&rounds);
        for (size_t i = DESC; i < BENCH_RAM; i++)
            assert_int_equal(d.b.ram[i], 0x5a);
        start(&d, ALL);
        assert_int_equal(run(&d, IN, 0, 4096), 0);
    }
    teardown(&d);
}

static void test_the_machine_is_reset(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    assert_int_equal(run(&d, IN, 0, 4096), 0);
    devices_drain(d.b.devices);
    devices_reset(d.b.devices);
    assert_int_equal(bench_config(&d.b, 4, 2) & 7, 0);
    bench_map(&d.b);
    bench_msix(&d.b, 1, 2);
    start(&d, ALL);
    assert_int_equal(run(&d, IN, 0, 4096), 0);
    teardown(&d);
}

/* ---- the legacy interface ---------------------------------------------------------------------- */

static uint64_t in(struct driver *d, unsigned offset, unsigned size)
{
    return d->b.ports->read(d->b.ports_opaque, offset, size);
}

static void out(struct driver *d, unsigned offset, unsigned size, uint64_t value)
{
    d->b.ports->write(d->b.ports_opaque, offset, size, value);
}

static void test_a_legacy_driver(void **state)
{
    struct driver d;
    (void)state;
    memset(&d, 0, sizeof d);
    bench_open(&d.b);
    bench_node(MEMORY);
    bench_device(&d.b, DEVICE(",\"queue-size\":64"));
    bench_map(&d.b);
    out(&d, 18, 1, 0);
    out(&d, 18, 1, 3);
    assert_true(in(&d, 0, 4) & (1 << 9));
    out(&d, 4, 4, 1 << 9);
    out(&d, 14, 2, 0);
    assert_int_equal(in(&d, 12, 2), QUEUE);
    assert_int_equal(in(&d, 8, 4), 0);
    out(&d, 8, 4, DESC >> 12);
    assert_int_equal(in(&d, 8, 4), DESC >> 12);
    out(&d, 18, 1, 7);
    assert_int_equal(in(&d, 20, 4), DISK / 512);
    build(&d, 0, IN, 0, 512);
    /* its rings lie one behind the other */
    uint64_t avail = DESC + 16 * QUEUE, used = DESC + 0x1000;
    store_le16(bench_at(&d.b, avail + 4), 0);
    store_le16(bench_at(&d.b, avail + 2), 1);
    out(&d, 16, 2, 0);
    for (unsigned rounds = 0; load_le16(bench_at(&d.b, used + 2)) != 1;)
        bench_pause(&rounds);
    devices_drain(d.b.devices);
    assert_int_equal(atomic_load(&d.b.pin), 1);
    assert_int_equal(in(&d, 19, 1), 1);
    assert_int_equal(atomic_load(&d.b.pin), 0);
    assert_int_equal(in(&d, 19, 1), 0);
    out(&d, 8, 4, 0);
    assert_int_equal(in(&d, 18, 1), 0);
    teardown(&d);
}

static void test_names_for_old_and_new_drivers_only(void **state)
{
    struct bench b;
    struct error *err = NULL;
    (void)state;
    bench_open(&b);
    bench_node(MEMORY);
    assert_true(bench_try_device(&b, DEVICE(",\"disable-legacy\":\"on\",\"disable-modern\":\"on\""),
                                 &err) < 0);
    error_free(err);
    err = NULL;
    assert_true(bench_try_device(&b, DEVICE(",\"queue-size\":100"), &err) < 0);
    assert_non_null(strstr(error_text(err), "queue-size"));
    error_free(err);
    err = NULL;
    assert_true(bench_try_device(&b, "{\"driver\":\"virtio-blk-pci\"}", &err) < 0);
    assert_non_null(strstr(error_text(err), "drive"));
    error_free(err);
    bench_device(&b,
                 "{\"driver\":\"virtio-blk-pci-non-transitional\",\"drive\":\"m\",\"addr\":\"5\"}");
    assert_int_equal(bench_config(&b, 0, 4), 0x10421af4);
    assert_int_equal(bench_config(&b, 0x10, 4), 0);
    bench_close(&b);
}

/* ---- guests that mean harm ----------------------------------------------------------------------- */

static void broken(struct driver *d, const char *what)
{
    ring(d);
    devices_drain(d->b.devices);
    if (status(d) != (15 | 64))
        fail_msg("%s: the status is %u", what, status(d));
    start(d, ALL);
    assert_int_equal(run(d, IN, 0, 512), 0);
}

static void test_chains_that_are_none(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    descriptor(&d, DESC, 0, slot(0), 16, NEXT, 1);
    descriptor(&d, DESC, 1, slot(0), 16, NEXT, 0);
    offer(&d, 0);
    broken(&d, "a loop");
    offer(&d, QUEUE);
    broken(&d, "a head behind the table");
    build(&d, 0, IN, 0, 512);
    descriptor(&d, DESC, 0, slot(0), 16, NEXT, QUEUE);
    offer(&d, 0);
    broken(&d, "a link behind the table");
    descriptor(&d, DESC, 0, BENCH_RAM - 8, 16, NEXT, 1);
    offer(&d, 0);
    broken(&d, "a buffer beyond RAM");
    descriptor(&d, DESC, 0, UINT64_MAX - 8, 16, NEXT, 1);
    offer(&d, 0);
    broken(&d, "a buffer that wraps");
    descriptor(&d, DESC, 0, slot(0), UINT32_MAX, NEXT, 1);
    offer(&d, 0);
    broken(&d, "a huge buffer");
    descriptor(&d, DESC, 0, slot(0), 0, NEXT, 1);
    offer(&d, 0);
    broken(&d, "an empty buffer");
    descriptor(&d, DESC, 0, slot(0), 16, WRITE | NEXT, 1);
    descriptor(&d, DESC, 1, slot(0), 16, 0, 0);
    offer(&d, 0);
    broken(&d, "what is read behind what is written");
    descriptor(&d, DESC, 0, slot(0), 15, NEXT, 1);
    descriptor(&d, DESC, 1, slot(0) + 16, 1, WRITE, 0);
    offer(&d, 0);
    broken(&d, "a short header");
    descriptor(&d, DESC, 0, slot(0), 16, 0, 0);
    offer(&d, 0);
    broken(&d, "no status");
    descriptor(&d, DESC, 0, BENCH_BAR + (BAR << 20), 16, NEXT, 1);
    offer(&d, 0);
    broken(&d, "a device's registers as a buffer");
    teardown(&d);
}

static void test_indirect_tables_that_are_none(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    descriptor(&d, DESC, 0, slot(0), 24, INDIRECT, 0);
    offer(&d, 0);
    broken(&d, "half an entry");
    descriptor(&d, DESC, 0, slot(0), 0, INDIRECT, 0);
    offer(&d, 0);
    broken(&d, "no entry");
    descriptor(&d, DESC, 0, slot(0), 0xfffffff0, INDIRECT, 0);
    offer(&d, 0);
    broken(&d, "a huge table");
    descriptor(&d, DESC, 0, slot(0), 16, INDIRECT, 0);
    descriptor(&d, slot(0), 0, slot(0), 16, INDIRECT, 0);
    offer(&d, 0);
    broken(&d, "a table within a table");
    descriptor(&d, DESC, 0, slot(0), 32, INDIRECT | NEXT, 1);
    offer(&d, 0);
    broken(&d, "a table that goes on");
    descriptor(&d, DESC, 0, slot(0), 32, INDIRECT, 0);
    descriptor(&d, slot(0), 0, slot(1), 16, NEXT, 0);
    offer(&d, 0);
    broken(&d, "a loop in a table");
    descriptor(&d, DESC, 0, UINT64_MAX - 15, 32, INDIRECT, 0);
    offer(&d, 0);
    broken(&d, "a table that wraps");
    teardown(&d);
}

static void test_indices_that_run_away(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    store_le16(bench_at(&d.b, AVAIL + 2), QUEUE + 1);
    broken(&d, "more than the ring holds");
    store_le16(bench_at(&d.b, AVAIL + 2), 0xffff);
    broken(&d, "an index that goes back");
    teardown(&d);
    /* The same slot over and over while nothing comes back. */
    setup_with(&d, SLOW, DEVICE(""), ALL);
    for (unsigned i = 0; i <= QUEUE && status(&d) == 15; i++) {
        build(&d, 0, IN, 0, 512);
        offer(&d, 0);
        ring(&d);
    }
    devices_drain(d.b.devices);
    teardown(&d);
}

static void test_rings_that_are_not_in_memory(void **state)
{
    static const uint64_t places[] = { BENCH_RAM, BENCH_RAM - 2, BENCH_HIGH - 4096, BENCH_BAR, 0 };
    struct driver d;
    (void)state;
    setup(&d);
    for (unsigned part = 0; part < 3; part++) {
        for (unsigned i = 0; i < 5; i++) {
            common(&d, 0x14, 1, 0);
            common(&d, 0x14, 1, 11);
            common(&d, 0x16, 2, 0);
            common(&d, 0x18, 2, QUEUE);
            common(&d, 0x20, 8, part == 0 ? places[i] & ~15ull : DESC);
            common(&d, 0x28, 8, part == 1 ? places[i] : AVAIL);
            common(&d, 0x30, 8, part == 2 ? places[i] & ~3ull : USED);
            common(&d, 0x1c, 2, 1);
            common(&d, 0x14, 1, 15);
            d.avail = 0;
            offer(&d, 0);
            ring(&d);
            devices_drain(d.b.devices);
        }
    }
    common(&d, 0x14, 1, 0);
    common(&d, 0x16, 2, 0);
    common(&d, 0x20, 8, DESC + 1);
    common(&d, 0x1c, 2, 1);
    assert_int_equal(status(&d), 64);
    teardown(&d);
}

static void test_random_registers(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    for (unsigned i = 0; i < 200000; i++) {
        static const uint64_t pages[] = { 0, 0, 0, 0x1000, 0x2000, 0x3000 };
        unsigned size = 1u << bench_below(&d.b, 4);
        uint64_t at = pages[bench_below(&d.b, 6)] + bench_below(&d.b, 0x48);
        uint64_t value = bench_random(&d.b) >> bench_below(&d.b, 64);
        if (bench_below(&d.b, 3))
            bench_put(&d.b, BAR, at, size, value);
        else
            bench_get(&d.b, BAR, at, size);
        if (bench_below(&d.b, 4) == 0) {
            out(&d, (unsigned)bench_below(&d.b, 100), 1u << bench_below(&d.b, 3), (uint32_t)value);
            in(&d, (unsigned)bench_below(&d.b, 100), 1u << bench_below(&d.b, 3));
        }
        if (bench_below(&d.b, 1000) == 0)
            start(&d, ALL);
    }
    start(&d, ALL);
    assert_int_equal(run(&d, IN, 0, 512), 0);
    teardown(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_says_what_it_is),
        cmocka_unit_test(test_random_requests),
        cmocka_unit_test(test_the_last_request_of_each_ring_is_not_lost),
        cmocka_unit_test(test_requests_that_are_refused),
        cmocka_unit_test(test_a_request_of_many_gigabytes),
        cmocka_unit_test(test_a_read_only_disk),
        cmocka_unit_test(test_blocks_of_4096),
        cmocka_unit_test(test_errors_are_reported_or_ignored),
        cmocka_unit_test(test_a_full_disk_stops_the_machine_and_goes_on),
        cmocka_unit_test(test_a_parked_request_is_forgotten_by_a_reset),
        cmocka_unit_test(test_after_a_reset_nothing_touches_memory),
        cmocka_unit_test(test_the_machine_is_reset),
        cmocka_unit_test(test_a_legacy_driver),
        cmocka_unit_test(test_names_for_old_and_new_drivers_only),
        cmocka_unit_test(test_chains_that_are_none),
        cmocka_unit_test(test_indirect_tables_that_are_none),
        cmocka_unit_test(test_indices_that_run_away),
        cmocka_unit_test(test_rings_that_are_not_in_memory),
        cmocka_unit_test(test_random_registers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
