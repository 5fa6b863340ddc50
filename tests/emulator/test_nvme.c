/* The NVMe controller, driven as a driver would: random commands against a shadow, resets under way, and guests that mean
 * harm. */
#include "bench.h"

enum {
    DISK = 1 << 20,
    ADMIN_SQ = 0x10000,
    ADMIN_CQ = 0x11000,
    ADMIN_SIZE = 16,
    IO_SQ = 0x12000,
    IO_CQ = 0x13000,
    IO_SIZE = 32,
    PAGE = 4096,
    BUFFER = 0x20000,
    SLOTS = 24,
    LISTS = 0x80000, /* PRP lists, a page for each slot */
    DATA = 0x100000,
    DATA_SIZE = 0x10000,
};
enum { CAP = 0, CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30, BELLS = 0x1000 };
enum { FLUSH = 0, WRITE = 1, READ = 2, COMPARE = 5, ZEROES = 8, DATASET = 9 };

struct queue {
    uint64_t sq, cq;
    unsigned size, tail, head, id;
    uint8_t phase;
};

struct driver {
    struct bench b;
    uint8_t *shadow;
    struct queue admin, io;
    uint32_t result;
};

static uint32_t get(struct driver *d, unsigned at)
{
    return (uint32_t)bench_get(&d->b, 0, at, 4);
}

static void put(struct driver *d, unsigned at, uint32_t value)
{
    bench_put(&d->b, 0, at, 4, value);
}

struct command {
    uint8_t opcode;
    uint32_t nsid;
    uint64_t prp1, prp2;
    uint32_t cdw10, cdw11, cdw12;
};

static void issue(struct driver *d, struct queue *q, uint16_t id, const struct command *c)
{
    uint8_t *at = bench_at(&d->b, q->sq + 64 * q->tail);
    memset(at, 0, 64);
    at[0] = c->opcode;
    store_le16(at + 2, id);
    store_le32(at + 4, c->nsid);
    store_le64(at + 24, c->prp1);
    store_le64(at + 32, c->prp2);
    store_le32(at + 40, c->cdw10);
    store_le32(at + 44, c->cdw11);
    store_le32(at + 48, c->cdw12);
    q->tail = (q->tail + 1) % q->size;
}

static void ring(struct driver *d, const struct queue *q)
{
    put(d, BELLS + 8 * q->id, q->tail);
}

static bool ready(struct driver *d, const struct queue *q)
{
    uint32_t last = le32toh(
        atomic_load((_Atomic uint32_t *)(void *)bench_at(&d->b, q->cq + 16 * q->head + 12)));
    return (last >> 16 & 1) == q->phase;
}

/* The next completion: its command's id, and its status. */
static uint16_t reap(struct driver *d, struct queue *q, uint16_t *status)
{
    for (unsigned rounds = 0; !ready(d, q);)
        bench_pause(&rounds);
    const uint8_t *e = bench_at(&d->b, q->cq + 16 * q->head);
    *status = load_le16(e + 14) >> 1;
    d->result = load_le32(e);
    uint16_t id = load_le16(e + 12);
    if (++q->head == q->size) {
        q->head = 0;
        q->phase ^= 1;
    }
    put(d, BELLS + 8 * q->id + 4, q->head);
    return id;
}

static uint16_t run(struct driver *d, struct queue *q, const struct command *c)
{
    uint16_t status;
    issue(d, q, 7, c);
    ring(d, q);
    assert_int_equal(reap(d, q, &status), 7);
    return status & 0x7ff;
}

static uint16_t admin(struct driver *d, uint8_t opcode, uint32_t nsid, uint32_t cdw10,
                      uint32_t cdw11)
{
    return run(d, &d->admin,
               &(struct command){ opcode, nsid, BUFFER, BUFFER + PAGE, cdw10, cdw11, 0 });
}

static uint16_t make_queue(struct driver *d, uint8_t opcode, uint64_t at, unsigned id,
                           unsigned size, uint32_t cdw11)
{
    return run(d, &d->admin,
               &(struct command){ opcode, 0, at, 0, (size - 1) << 16 | id, cdw11, 0 });
}

static struct queue queue_at(uint64_t sq, uint64_t cq, unsigned size, unsigned id)
{
    return (struct queue){ .sq = sq, .cq = cq, .size = size, .id = id, .phase = 1 };
}

static void enable(struct driver *d)
{
    put(d, CC, 0);
    assert_int_equal(get(d, CSTS) & 1, 0);
    memset(bench_at(&d->b, ADMIN_SQ), 0, 0x10000);
    put(d, AQA, (ADMIN_SIZE - 1) << 16 | (ADMIN_SIZE - 1));
    bench_put(&d->b, 0, ASQ, 8, ADMIN_SQ);
    bench_put(&d->b, 0, ACQ, 8, ADMIN_CQ);
    put(d, CC, 1 | 6 << 16 | 4 << 20);
    assert_int_equal(get(d, CSTS), 1);
    d->admin = queue_at(ADMIN_SQ, ADMIN_CQ, ADMIN_SIZE, 0);
}

static void start(struct driver *d)
{
    enable(d);
    assert_int_equal(make_queue(d, 5, IO_CQ, 1, IO_SIZE, 1 << 16 | 3), 0);
    assert_int_equal(make_queue(d, 1, IO_SQ, 1, IO_SIZE, 1 << 16 | 1), 0);
    d->io = queue_at(IO_SQ, IO_CQ, IO_SIZE, 1);
}

#define MEMORY "{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":1048576,\"discard\":\"unmap\"}"
#define DEVICE(more) \
    "{\"driver\":\"nvme\",\"drive\":\"m\",\"serial\":\"PL7\",\"addr\":\"5\"" more "}"

static void setup_with(struct driver *d, const char *node, const char *device)
{
    memset(d, 0, sizeof *d);
    bench_open(&d->b);
    d->shadow = calloc(1, DISK);
    bench_node(node);
    bench_device(&d->b, device);
    bench_map(&d->b);
    bench_msix(&d->b, 4, 8);
    start(d);
}

static void setup(struct driver *d)
{
    setup_with(d, MEMORY, DEVICE(""));
}

static void teardown(struct driver *d)
{
    bench_close(&d->b);
    free(d->shadow);
}

static uint64_t data_of(unsigned i)
{
    return (i & 1 ? BENCH_HIGH : 0) + DATA + (uint64_t)i * DATA_SIZE;
}

/* PRPs of slot i for so many bytes, from an offset within the first page. */
static struct command transfer(struct driver *d, uint8_t opcode, unsigned i, uint64_t block,
                               uint32_t length, unsigned shift)
{
    uint64_t first = data_of(i) + shift, list = LISTS + (uint64_t)i * PAGE;
    uint32_t left = length > PAGE - shift ? length - (PAGE - shift) : 0;
    struct command c = { opcode, 1, first, 0, (uint32_t)block, 0, length / 512 - 1 };
    if (left > PAGE) {
        unsigned n = (left + PAGE - 1) / PAGE;
        /* sometimes at the end of the page, so that it goes on in the next slot's second half */
        unsigned from = 0;
        for (unsigned k = 0; k < n; k++)
            store_le64(bench_at(&d->b, list + 8 * (from + k)),
                       (data_of(i) & ~UINT64_C(4095)) + (uint64_t)PAGE * (k + 1));
        c.prp2 = list;
    } else if (left) {
        c.prp2 = data_of(i) + PAGE;
    }
    return c;
}

/* ---- what it does -------------------------------------------------------------------------------- */

static void test_it_says_what_it_is(void **state)
{
    struct driver d;
    uint8_t *buffer;
    (void)state;
    setup(&d);
    buffer = bench_at(&d.b, BUFFER);
    assert_int_equal(bench_config(&d.b, 0, 4), 0x00101b36);
    assert_int_equal(bench_config(&d.b, 8, 4) >> 8, 0x010802);
    assert_int_equal(admin(&d, 6, 0, 1, 0), 0);
    assert_memory_equal(buffer + 4, "PL7                 ", 20);
    assert_int_equal(buffer[512], 0x66);
    assert_int_equal(admin(&d, 6, 1, 0, 0), 0);
    assert_int_equal(load_le64(buffer), DISK / 512);
    assert_int_equal(buffer[130], 9);
    assert_int_equal(admin(&d, 6, 0, 2, 0), 0);
    assert_int_equal(load_le32(buffer), 1);
    assert_int_equal(load_le32(buffer + 4), 0);
    assert_int_equal(admin(&d, 6, 1, 3, 0), 0);
    assert_int_equal(admin(&d, 6, 2, 0, 0), 0xb);
    assert_int_equal(admin(&d, 6, 1, 99, 0), 2);
    assert_int_equal(admin(&d, 0x55, 0, 0, 0), 1);
    teardown(&d);
}

static void test_features_and_logs(void **state)
{
    struct driver d;
    (void)state;
    setup_with(&d, MEMORY, DEVICE(",\"max_ioqpairs\":4"));
    enable(&d);
    assert_int_equal(admin(&d, 9, 0, 7, 63 << 16 | 2), 0);
    assert_int_equal(d.result, 3 << 16 | 2);
    assert_int_equal(admin(&d, 9, 0, 7, 0xffff), 2);
    assert_int_equal(admin(&d, 10, 0, 7, 0), 0);
    assert_int_equal(d.result, 3 << 16 | 3);
    assert_int_equal(admin(&d, 10, 0, 6, 0), 0);
    assert_int_equal(d.result, 1);
    assert_int_equal(admin(&d, 9, 0, 6, 0), 0);
    assert_int_equal(admin(&d, 10, 0, 6, 0), 0);
    assert_int_equal(d.result, 0);
    assert_int_equal(admin(&d, 10, 0, 6 | 1 << 8, 0), 0);
    assert_int_equal(d.result, 1);
    assert_int_equal(admin(&d, 9, 0, UINT32_C(1) << 31 | 6, 0), 0x10d);
    assert_int_equal(admin(&d, 10, 0, 200, 0), 2);
    for (unsigned page = 1; page <= 3; page++)
        assert_int_equal(admin(&d, 2, 0, page | 127 << 16, 0), 0);
    assert_int_equal(admin(&d, 2, 0, 99 | 127 << 16, 0), 0x109);
    assert_int_equal(admin(&d, 2, 0, 1 | 15 << 16, 0), 0); /* the newest error: that one */
    assert_int_equal(load_le16(bench_at(&d.b, BUFFER + 12)) >> 1 & 0x7ff, 0x109);
    assert_int_equal(admin(&d, 8, 0, 1 << 16 | 1, 0), 0);
    assert_int_equal(d.result, 1);
    teardown(&d);
}

static void test_random_commands(void **state)
{
    struct driver d;
    struct {
        uint8_t opcode;
        uint32_t length;
        unsigned shift;
        uint64_t offset;
        bool busy, again, differs;
    } q[SLOTS] = { 0 };
    (void)state;
    setup(&d);
    for (unsigned round = 0, busy = 0; round < 6000 || busy;) {
        unsigned i = (unsigned)bench_below(&d.b, SLOTS);
        if (round < 6000 && !q[i].busy) {
            static const uint8_t ops[] = {
                READ, READ, WRITE, WRITE, FLUSH, COMPARE, ZEROES, DATASET
            };
            uint64_t part = DISK / SLOTS / 512 * 512;
            q[i].opcode = ops[bench_below(&d.b, 8)];
            q[i].length = 512 * (1 + (uint32_t)bench_below(&d.b, 64));
            q[i].shift = 4 * (unsigned)bench_below(&d.b, 1024);
            q[i].offset = i * part + 512 * bench_below(&d.b, (part - q[i].length) / 512);
            uint8_t *data = bench_at(&d.b, data_of(i)) + q[i].shift;
            uint8_t *shadow = d.shadow + q[i].offset;
            struct command c =
                transfer(&d, q[i].opcode, i, q[i].offset / 512, q[i].length, q[i].shift);
            if (q[i].opcode == WRITE) {
                bench_fill(&d.b, data, q[i].length);
                memcpy(shadow, data, q[i].length);
                c.cdw12 |= (uint32_t)(round & 1) << 30;
            } else if (q[i].opcode == ZEROES) {
                memset(shadow, 0, q[i].length);
                c.cdw12 |= (uint32_t)(round & 1) << 25;
            } else if (q[i].opcode == COMPARE) {
                memcpy(data, shadow, q[i].length);
                q[i].differs = round & 1;
                if (q[i].differs)
                    data[bench_below(&d.b, q[i].length)] ^= 1;
            } else if (q[i].opcode == DATASET) { /* as two ranges, and an empty one */
                data = bench_at(&d.b, data_of(i));
                memset(data, 0, 48);
                store_le32(data + 4, 1);
                store_le64(data + 8, q[i].offset / 512);
                store_le32(data + 36, q[i].length / 512 - 1);
                store_le64(data + 40, q[i].offset / 512 + 1);
                c = (struct command){ DATASET, 1, data_of(i), 0, 2, 4, 0 };
            }
            issue(&d, &d.io, (uint16_t)i, &c);
            q[i].busy = true;
            busy++;
            round++;
            if (bench_below(&d.b, 4))
                continue;
        }
        ring(&d, &d.io);
        while (busy && (ready(&d, &d.io) || bench_below(&d.b, 2))) {
            uint16_t status;
            unsigned h = reap(&d, &d.io, &status);
            assert_true(h < SLOTS && q[h].busy);
            q[h].busy = false;
            busy--;
            assert_int_equal(status & 0x7ff, q[h].opcode == COMPARE && q[h].differs ? 0x285 : 0);
            uint8_t *data = bench_at(&d.b, data_of(h)) + q[h].shift,
                    *shadow = d.shadow + q[h].offset;
            if (q[h].opcode == READ && q[h].again)
                memcpy(shadow, data, q[h].length); /* discarded: old data or zeroes */
            else if (q[h].opcode == READ)
                assert_memory_equal(data, shadow, q[h].length);
            q[h].again = q[h].opcode == DATASET;
            if (q[h].again) {
                struct command c =
                    transfer(&d, READ, h, q[h].offset / 512, q[h].length, q[h].shift);
                q[h].opcode = READ;
                q[h].busy = true;
                busy++;
                issue(&d, &d.io, (uint16_t)h, &c);
                ring(&d, &d.io);
            }
        }
    }
    assert_true(atomic_load(&d.b.messages[1]) > 0);
    assert_int_equal(admin(&d, 2, 0, 2 | 127 << 16, 0), 0);
    assert_true(load_le64(bench_at(&d.b, BUFFER + 64)) > 0);
    teardown(&d);
}

static void test_the_pin_without_messages(void **state)
{
    struct driver d;
    uint16_t status;
    (void)state;
    setup(&d);
    bench_set_config(&d.b, bench_capability(&d.b, 0x11, 0) + 2, 2, 0);
    enable(&d);
    issue(&d, &d.admin, 1, &(struct command){ 6, 0, BUFFER, 0, 1, 0, 0 });
    ring(&d, &d.admin);
    assert_int_equal(atomic_load(&d.b.pin), 1);
    put(&d, 0x0c, 1);
    assert_int_equal(atomic_load(&d.b.pin), 0);
    put(&d, 0x10, 1);
    assert_int_equal(atomic_load(&d.b.pin), 1);
    reap(&d, &d.admin, &status);
    assert_int_equal(atomic_load(&d.b.pin), 0);
    assert_int_equal(make_queue(&d, 5, IO_CQ, 1, IO_SIZE, 1 << 16 | 3), 0x108);
    teardown(&d);
}

static void test_a_full_completion_queue_waits(void **state)
{
    struct driver d;
    uint16_t status;
    (void)state;
    setup(&d);
    enable(&d);
    assert_int_equal(make_queue(&d, 5, IO_CQ, 1, 2, 1 << 16 | 3), 0);
    assert_int_equal(make_queue(&d, 1, IO_SQ, 1, IO_SIZE, 1 << 16 | 1), 0);
    d.io = queue_at(IO_SQ, IO_CQ, IO_SIZE, 1);
    struct queue cq = queue_at(IO_SQ, IO_CQ, 2, 1);
    for (unsigned round = 0; round < 5; round++) {
        for (unsigned i = 0; i < IO_SIZE - 1; i++) {
            struct command c = transfer(&d, READ, i % SLOTS, 0, 512, 0);
            issue(&d, &d.io, (uint16_t)i, &c);
        }
        ring(&d, &d.io);
        unsigned seen = 0;
        for (unsigned i = 0; i < IO_SIZE - 1; i++)
            seen |= 1u << reap(&d, &cq, &status);
        assert_int_equal(seen, 0x7fffffff);
    }
    teardown(&d);
}

static void test_a_queue_goes_when_its_commands_have_ended(void **state)
{
    struct driver d;
    uint16_t status;
    (void)state;
    setup_with(&d,
               "{\"driver\":\"delay\",\"node-name\":\"m\",\"read-ns\":5000000,\"file\":{\"driver\":"
               "\"memory\",\"size\":1048576}}",
               DEVICE(""));
    for (unsigned i = 0; i < 10; i++) {
        struct command c = transfer(&d, READ, i, 0, 512, 0);
        issue(&d, &d.io, (uint16_t)i, &c);
    }
    ring(&d, &d.io);
    assert_int_equal(run(&d, &d.admin, &(struct command){ .opcode = 4, .cdw10 = 1 }), 0x10c);
    assert_int_equal(run(&d, &d.admin, &(struct command){ .opcode = 0, .cdw10 = 1 }), 0);
    for (unsigned i = 0; i < 10; i++) {
        assert_true(ready(&d, &d.io));
        reap(&d, &d.io, &status);
    }
    assert_int_equal(run(&d, &d.admin, &(struct command){ .opcode = 0, .cdw10 = 1 }), 0x101);
    assert_int_equal(run(&d, &d.admin, &(struct command){ .opcode = 4, .cdw10 = 1 }), 0);
    assert_int_equal(run(&d, &d.admin, &(struct command){ .opcode = 4, .cdw10 = 1 }), 0x101);
    teardown(&d);
}

static void test_shutdown(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    put(&d, CC, 1 | 1 << 14 | 6 << 16 | 4 << 20);
    for (unsigned rounds = 0; (get(&d, CSTS) >> 2 & 3) != 2;)
        bench_pause(&rounds);
    start(&d);
    assert_int_equal(get(&d, CSTS), 1);
    teardown(&d);
}

static void test_an_event_for_a_wrong_doorbell(void **state)
{
    struct driver d;
    uint16_t status;
    (void)state;
    setup(&d);
    for (unsigned i = 0; i < 4; i++)
        issue(&d, &d.admin, (uint16_t)(100 + i), &(struct command){ .opcode = 12 });
    ring(&d, &d.admin);
    assert_int_equal(run(&d, &d.admin, &(struct command){ .opcode = 12 }), 0x105);
    put(&d, BELLS + 8 * 40, 1);
    put(&d, BELLS + 8, 9999);
    assert_int_equal(reap(&d, &d.admin, &status), 103);
    assert_int_equal(d.result, 1 << 16);
    assert_false(ready(&d, &d.admin)); /* one at a time, until the log was read */
    assert_int_equal(admin(&d, 2, 0, 1 | 15 << 16, 0), 0);
    put(&d, BELLS + 8, 9999);
    assert_int_equal(reap(&d, &d.admin, &status), 102);
    assert_int_equal(d.result, 1 << 16 | 1 << 8);
    teardown(&d);
}

/* ---- errors of the disk ----------------------------------------------------------------------------- */

static void test_a_full_disk_stops_the_machine_and_goes_on(void **state)
{
    struct driver d;
    uint16_t status;
    (void)state;
    setup_with(&d,
               "{\"driver\":\"blkdebug\",\"node-name\":\"m\",\"image\":{\"driver\":\"memory\","
               "\"size\":1048576},\"inject-error\":[{\"event\":\"none\",\"iotype\":\"write\","
               "\"errno\":28,\"once\":true}]}",
               DEVICE(""));
    struct command c = transfer(&d, WRITE, 0, 0, 512, 0);
    issue(&d, &d.io, 1, &c);
    ring(&d, &d.io);
    for (unsigned rounds = 0; !atomic_load(&d.b.stops);)
        bench_pause(&rounds);
    devices_drain(d.b.devices);
    assert_false(ready(&d, &d.io));
    devices_resume(d.b.devices);
    assert_int_equal(reap(&d, &d.io, &status), 1);
    assert_int_equal(status & 0x7ff, 0);
    teardown(&d);
}

static void test_errors_are_reported(void **state)
{
    struct driver d;
    (void)state;
    setup_with(
        &d,
        "{\"driver\":\"blkdebug\",\"node-name\":\"m\",\"image\":{\"driver\":\"memory\","
        "\"size\":1048576},\"inject-error\":[{\"event\":\"none\",\"iotype\":\"write\"},{\"event\":"
        "\"none\",\"iotype\":\"read\"}]}",
        DEVICE(""));
    struct command c = transfer(&d, WRITE, 0, 0, 512, 0);
    assert_int_equal(run(&d, &d.io, &c), 0x280);
    c.opcode = READ;
    assert_int_equal(run(&d, &d.io, &c), 0x281);
    teardown(&d);
}

static void test_a_read_only_disk(void **state)
{
    struct driver d;
    (void)state;
    setup_with(&d,
               "{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":1048576,\"read-only\":true}",
               DEVICE(""));
    struct command c = transfer(&d, WRITE, 0, 0, 512, 0);
    assert_int_equal(run(&d, &d.io, &c), 0x182);
    c.opcode = READ;
    assert_int_equal(run(&d, &d.io, &c), 0);
    teardown(&d);
}

/* ---- resets ------------------------------------------------------------------------------------------ */

static void test_after_a_reset_nothing_touches_memory(void **state)
{
    struct driver d;
    (void)state;
    setup_with(&d,
               "{\"driver\":\"delay\",\"node-name\":\"m\",\"read-ns\":3000000,\"write-ns\":3000000,"
               "\"file\":{\"driver\":\"memory\",\"size\":1048576}}",
               DEVICE(""));
    for (unsigned round = 0; round < 10; round++) {
        for (unsigned i = 0; i < SLOTS; i++) {
            struct command c = transfer(&d, i & 1 ? READ : WRITE, i, 0, 8192, 0);
            issue(&d, &d.io, (uint16_t)i, &c);
        }
        ring(&d, &d.io);
        put(&d, CC, 0);
        assert_int_equal(get(&d, CSTS), 0);
        memset(d.b.ram + ADMIN_SQ, 0x5a, BENCH_RAM - ADMIN_SQ);
        for (unsigned rounds = 0; rounds < 60;)
            bench_pause(&rounds);
        for (size_t i = ADMIN_SQ; i < BENCH_RAM; i++)
            assert_int_equal(d.b.ram[i], 0x5a);
        start(&d);
    }
    devices_drain(d.b.devices);
    devices_reset(d.b.devices);
    bench_map(&d.b);
    bench_msix(&d.b, 4, 8);
    start(&d);
    teardown(&d);
}

/* ---- guests that mean harm ------------------------------------------------------------------------------ */

static void test_prps_that_are_none(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    struct command c = transfer(&d, READ, 0, 0, 512, 0);
    c.prp1 = BENCH_RAM;
    assert_int_equal(run(&d, &d.io, &c), 4);
    c.prp1 = BENCH_RAM - 256;
    assert_int_equal(run(&d, &d.io, &c), 0); /* goes on at 0, which is RAM */
    c.prp1 = UINT64_MAX & ~UINT64_C(3);
    assert_true(run(&d, &d.io, &c) != 0);
    c.prp1 = BENCH_BAR;
    assert_int_equal(run(&d, &d.io, &c), 4);
    c = transfer(&d, READ, 0, 0, 512, 0);
    c.prp1 += 2;
    assert_int_equal(run(&d, &d.io, &c), 0x13);
    c = transfer(&d, READ, 0, 0, 8192, 0);
    c.prp2 += 4;
    assert_int_equal(run(&d, &d.io, &c), 0x13);
    c = transfer(&d, READ, 0, 0, 32768, 0);
    c.prp2 += 4;
    assert_int_equal(run(&d, &d.io, &c), 0x13);
    c.prp2 = BENCH_RAM + 8;
    assert_int_equal(run(&d, &d.io, &c), 4);
    c = transfer(&d, READ, 0, 0, 32768, 0);
    store_le64(bench_at(&d.b, LISTS + 8), 0x1001);
    assert_int_equal(run(&d, &d.io, &c), 0x13);
    /* a list that leads to itself, to the end of its page again and again */
    c = transfer(&d, READ, 0, 0, 32768, 0);
    c.prp2 = LISTS + PAGE - 8;
    store_le64(bench_at(&d.b, LISTS + PAGE - 8), LISTS);
    run(&d, &d.io, &c);
    /* longer than it may be */
    c = transfer(&d, READ, 0, 0, 512, 0);
    c.cdw12 = 0xffff;
    assert_true(run(&d, &d.io, &c) != 0);
    c.cdw12 = 1024;
    assert_int_equal(run(&d, &d.io, &c), 2);
    teardown(&d);
}

static void test_blocks_beyond_the_end(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    struct command c = transfer(&d, READ, 0, DISK / 512, 512, 0);
    assert_int_equal(run(&d, &d.io, &c), 0x80);
    c.cdw10 = c.cdw11 = UINT32_MAX;
    assert_int_equal(run(&d, &d.io, &c), 0x80);
    c.opcode = ZEROES;
    assert_int_equal(run(&d, &d.io, &c), 0x80);
    c = (struct command){ DATASET, 1, data_of(0), 0, 255, 4, 0 };
    store_le64(bench_at(&d.b, data_of(0) + 8), UINT64_MAX);
    store_le32(bench_at(&d.b, data_of(0) + 4), UINT32_MAX);
    assert_int_equal(run(&d, &d.io, &c), 0x80);
    c = transfer(&d, READ, 0, 0, 512, 0);
    c.nsid = 2;
    assert_int_equal(run(&d, &d.io, &c), 0xb);
    c.nsid = 1;
    c.opcode = 0x99;
    assert_int_equal(run(&d, &d.io, &c), 1);
    teardown(&d);
}

static void test_queues_that_are_none(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    assert_int_equal(make_queue(&d, 5, IO_CQ, 0, 16, 3), 0x101);
    assert_int_equal(make_queue(&d, 5, IO_CQ, 1, 16, 3), 0x101);
    assert_int_equal(make_queue(&d, 5, IO_CQ, 65, 16, 3), 0x101);
    assert_int_equal(make_queue(&d, 5, IO_CQ, 2, 1, 3), 0x102);
    assert_int_equal(make_queue(&d, 5, IO_CQ, 2, 4096, 3), 0x102);
    assert_int_equal(make_queue(&d, 5, IO_CQ + 8, 2, 16, 3), 2);
    assert_int_equal(make_queue(&d, 5, IO_CQ, 2, 16, 2), 2);
    assert_int_equal(make_queue(&d, 5, IO_CQ, 2, 16, 99 << 16 | 3), 0x108);
    assert_int_equal(make_queue(&d, 1, IO_SQ, 2, 16, 5 << 16 | 1), 0x100);
    assert_int_equal(make_queue(&d, 1, IO_SQ, 2, 16, 1), 0x100);
    assert_int_equal(make_queue(&d, 1, IO_SQ, 1, 16, 1 << 16 | 1), 0x101);
    /* places that are no memory: known when they are used */
    assert_int_equal(make_queue(&d, 5, BENCH_BAR, 2, 16, 3), 0);
    assert_int_equal(make_queue(&d, 1, BENCH_RAM, 2, 16, 2 << 16 | 1), 0);
    put(&d, BELLS + 16, 1);
    assert_int_equal(get(&d, CSTS) & 2, 2);
    start(&d);
    assert_int_equal(make_queue(&d, 5, BENCH_BAR, 2, 16, 3), 0);
    assert_int_equal(make_queue(&d, 1, IO_SQ, 2, 16, 2 << 16 | 1), 0);
    put(&d, BELLS + 16, 1);
    devices_drain(d.b.devices);
    assert_int_equal(get(&d, CSTS) & 2, 2);
    put(&d, CC, 0);
    bench_put(&d.b, 0, ASQ, 8, UINT64_MAX & ~UINT64_C(4095));
    put(&d, CC, 1 | 6 << 16 | 4 << 20);
    put(&d, BELLS, 1);
    assert_int_equal(get(&d, CSTS) & 2, 2);
    put(&d, CC, 0);
    put(&d, CC, 1 | 7 << 4);
    assert_int_equal(get(&d, CSTS), 2);
    start(&d);
    teardown(&d);
}

static void test_random_registers(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    for (unsigned i = 0; i < 200000; i++) {
        unsigned size = 1u << bench_below(&d.b, 4);
        uint64_t at = bench_below(&d.b, 2) ? bench_below(&d.b, 0x40)
                                           : BELLS + (bench_below(&d.b, 0x210) & ~3ull);
        uint64_t value = bench_random(&d.b) >> bench_below(&d.b, 64);
        if (bench_below(&d.b, 100) == 0)
            bench_fill(&d.b, bench_at(&d.b, ADMIN_SQ), 0x4000);
        if (bench_below(&d.b, 3))
            bench_put(&d.b, 0, at, size, value);
        else
            bench_get(&d.b, 0, at, size);
        if (bench_below(&d.b, 2000) == 0)
            start(&d);
    }
    devices_drain(d.b.devices);
    start(&d);
    teardown(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_says_what_it_is),
        cmocka_unit_test(test_features_and_logs),
        cmocka_unit_test(test_random_commands),
        cmocka_unit_test(test_the_pin_without_messages),
        cmocka_unit_test(test_a_full_completion_queue_waits),
        cmocka_unit_test(test_a_queue_goes_when_its_commands_have_ended),
        cmocka_unit_test(test_shutdown),
        cmocka_unit_test(test_an_event_for_a_wrong_doorbell),
        cmocka_unit_test(test_a_full_disk_stops_the_machine_and_goes_on),
        cmocka_unit_test(test_errors_are_reported),
        cmocka_unit_test(test_a_read_only_disk),
        cmocka_unit_test(test_after_a_reset_nothing_touches_memory),
        cmocka_unit_test(test_prps_that_are_none),
        cmocka_unit_test(test_blocks_beyond_the_end),
        cmocka_unit_test(test_queues_that_are_none),
        cmocka_unit_test(test_random_registers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
