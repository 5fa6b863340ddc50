/* The AHCI controller with a disk and a CD drive, driven as a driver would. */
#include "bench.h"

enum {
    DISK = 1 << 20,
    LIST = 0x10000,
    FISES = 0x11000,
    TABLES = 0x20000,
    TABLE_SIZE = 0x1000,
    DATA = 0x100000,
    DATA_SIZE = 0x10000,
    HBA_CONTROL = 4,
    HBA_INTERRUPTS = 8,
};
enum { /* of a port */
       INTERRUPTS = 0x10,
       ENABLED = 0x14,
       COMMAND = 0x18,
       TASK = 0x20,
       SIGNATURE = 0x24,
       STATUS = 0x28,
       CONTROL = 0x2c,
       ACTIVE = 0x34,
       ISSUE = 0x38,
};
enum { D2H = 1, PIO = 2, BITS = 8, BUS = 1 << 29, TASK_ERROR = 1 << 30 };

struct driver {
    struct bench b;
    uint8_t *shadow;
    unsigned port;
};

static uint32_t hba(struct driver *d, unsigned at)
{
    return (uint32_t)bench_get(&d->b, 5, at, 4);
}

static uint32_t get(struct driver *d, unsigned at)
{
    return hba(d, 0x100 + 0x80 * d->port + at);
}

static void put(struct driver *d, unsigned at, uint32_t value)
{
    bench_put(&d->b, 5, 0x100 + 0x80 * d->port + at, 4, value);
}

static void start(struct driver *d, unsigned port)
{
    d->port = port;
    put(d, COMMAND, 0);
    assert_int_equal(get(d, COMMAND) & 0xc000, 0);
    memset(bench_at(&d->b, LIST), 0, 0x2000);
    put(d, 0, LIST);
    put(d, 4, 0);
    put(d, 8, FISES);
    put(d, 12, 0);
    put(d, INTERRUPTS, UINT32_MAX);
    put(d, ENABLED, UINT32_MAX);
    put(d, COMMAND, 0x10);
    put(d, COMMAND, 0x11);
    assert_int_equal(get(d, COMMAND) & 0xc000, 0xc000);
}

#define MEMORY "{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":1048576,\"discard\":\"unmap\"}"

static void setup_with(struct driver *d, const char *node, const char *device)
{
    memset(d, 0, sizeof *d);
    bench_open(&d->b);
    d->shadow = calloc(1, DISK);
    bench_node(node);
    bench_device(&d->b, "{\"driver\":\"ich9-ahci\",\"addr\":\"5\"}");
    bench_device(&d->b, device);
    bench_map(&d->b);
    bench_put(&d->b, 5, HBA_CONTROL, 4, 1u << 31 | 2);
    start(d, 0);
}

static void setup(struct driver *d)
{
    setup_with(d, MEMORY, "{\"driver\":\"ide-hd\",\"drive\":\"m\",\"serial\":\"PL9\"}");
}

static void teardown(struct driver *d)
{
    bench_close(&d->b);
    free(d->shadow);
}

static uint64_t data_of(unsigned slot)
{
    return (slot & 1 ? BENCH_HIGH : 0) + DATA + (uint64_t)slot * DATA_SIZE;
}

static uint8_t *bytes_of(struct driver *d, unsigned slot)
{
    return bench_at(&d->b, data_of(slot));
}

/* A command in a slot; its data in pieces of random length. */
static uint8_t *build(struct driver *d, unsigned slot, uint8_t command, uint64_t lba,
                      unsigned count, uint32_t length, bool write)
{
    uint64_t table = TABLES + (uint64_t)slot * TABLE_SIZE;
    uint8_t *fis = bench_at(&d->b, table), *header = bench_at(&d->b, LIST + 32 * slot);
    uint32_t n = 0;

    memset(fis, 0, 0x80);
    fis[0] = 0x27;
    fis[1] = 0x80;
    fis[2] = command;
    for (unsigned i = 0; i < 3; i++) {
        fis[4 + i] = (uint8_t)(lba >> (8 * i));
        fis[8 + i] = (uint8_t)(lba >> (8 * i + 24));
    }
    fis[7] = 0x40;
    fis[12] = (uint8_t)count;
    fis[13] = (uint8_t)(count >> 8);
    for (uint32_t done = 0; done < length; n++) {
        uint32_t part = n < 20 ? 2 * (1 + (uint32_t)bench_below(&d->b, (length - done + 1) / 2))
                               : length - done;
        part = part > length - done ? length - done : part;
        uint8_t *prd = fis + 0x80 + 16 * n;
        store_le64(prd, data_of(slot) + done);
        store_le32(prd + 8, 0);
        store_le32(prd + 12, part - 1);
        done += part;
    }
    store_le32(header, 5 | (uint32_t)write << 6 | n << 16);
    store_le32(header + 4, 0);
    store_le64(header + 8, table);
    return fis;
}

/* Issues slot 0 and waits for an interrupt: its causes. */
static uint32_t run(struct driver *d)
{
    uint32_t causes;
    put(d, ISSUE, 1);
    for (unsigned rounds = 0; !(causes = get(d, INTERRUPTS));)
        bench_pause(&rounds);
    put(d, INTERRUPTS, causes);
    bench_put(&d->b, 5, HBA_INTERRUPTS, 4, UINT32_MAX);
    return causes;
}

static void restart(struct driver *d)
{
    put(d, COMMAND, 0x10);
    assert_int_equal(get(d, ISSUE), 0);
    put(d, COMMAND, 0x11);
}

static uint8_t *received(struct driver *d, unsigned at)
{
    return bench_at(&d->b, FISES + at);
}

/* ---- the disk ---------------------------------------------------------------------------------------- */

static void test_it_says_what_it_is(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    assert_int_equal(bench_config(&d.b, 0, 4), 0x29228086);
    assert_int_equal(bench_config(&d.b, 8, 4) >> 8, 0x010601);
    assert_int_equal(hba(&d, 12), 0x3f);
    assert_int_equal(hba(&d, 0) & 31, 5);
    assert_int_equal(get(&d, SIGNATURE), 0x101);
    assert_int_equal(get(&d, STATUS), 0x113);
    assert_int_equal(get(&d, TASK), 0x150);
    assert_int_equal(received(&d, 0x40)[0], 0x34);
    assert_int_equal(received(&d, 0x40)[2], 0x50);
    build(&d, 0, 0xec, 0, 1, 512, false);
    assert_int_equal(run(&d), PIO);
    assert_int_equal(received(&d, 0x20)[0], 0x5f);
    assert_int_equal(received(&d, 0x20)[15], 0x50);
    assert_memory_equal(bytes_of(&d, 0) + 20, "LP 9", 4);
    assert_int_equal(load_le64(bytes_of(&d, 0) + 200), DISK / 512);
    assert_int_equal(load_le32(bench_at(&d.b, LIST + 4)), 512);
    assert_int_equal(get(&d, TASK), 0x50);
    build(&d, 0, 0xa1, 0, 1, 512, false);
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    assert_int_equal(get(&d, TASK), 0x451);
    assert_int_equal(get(&d, ISSUE), 1);
    restart(&d);
    d.port = 3;
    assert_int_equal(get(&d, STATUS), 0);
    assert_int_equal(get(&d, TASK), 0x7f);
    teardown(&d);
}

static void test_plain_commands(void **state)
{
    static const struct {
        uint8_t read, write;
        bool pio;
    } pairs[] = { { 0x20, 0x30, true },  { 0x24, 0x34, true },  { 0xc4, 0xc5, true },
                  { 0xc8, 0xca, false }, { 0x25, 0x35, false }, { 0x25, 0x3d, false } };
    struct driver d;
    (void)state;
    setup(&d);
    for (unsigned i = 0; i < 600; i++) {
        unsigned k = i % 6, count = 1 + (unsigned)bench_below(&d.b, 100);
        uint64_t lba = bench_below(&d.b, DISK / 512 - count);
        uint8_t *shadow = d.shadow + lba * 512;
        if (bench_below(&d.b, 2)) {
            bench_fill(&d.b, shadow, count * 512);
            memcpy(bytes_of(&d, 0), shadow, count * 512);
            build(&d, 0, pairs[k].write, lba, count, count * 512, true);
            assert_int_equal(run(&d), D2H);
        } else {
            build(&d, 0, pairs[k].read, lba, count, count * 512, false);
            assert_int_equal(run(&d), pairs[k].pio ? PIO : D2H);
            assert_memory_equal(bytes_of(&d, 0), shadow, count * 512);
        }
        assert_int_equal(load_le32(bench_at(&d.b, LIST + 4)), count * 512);
        assert_int_equal(get(&d, ISSUE), 0);
    }
    build(&d, 0, 0xe7, 0, 0, 0, false);
    assert_int_equal(run(&d), D2H);
    build(&d, 0, 0x42, 0, 100, 0, false);
    assert_int_equal(run(&d), D2H);
    build(&d, 0, 0xe5, 0, 0, 0, false);
    assert_int_equal(run(&d), D2H);
    assert_int_equal(received(&d, 0x40)[12], 0xff);
    build(&d, 0, 0x27, 0, 0, 0, false);
    assert_int_equal(run(&d), D2H);
    assert_int_equal(load_le16(received(&d, 0x44)), DISK / 512 - 1);
    teardown(&d);
}

static void test_queued_commands(void **state)
{
    struct driver d;
    struct {
        bool busy, write;
        uint64_t lba;
        unsigned count;
    } q[32] = { 0 };
    (void)state;
    setup(&d);
    for (unsigned round = 0, busy = 0; round < 4000 || busy;) {
        unsigned i = (unsigned)bench_below(&d.b, 32);
        if (round < 4000 && !q[i].busy) {
            unsigned part = DISK / 512 / 32;
            q[i].count = 1 + (unsigned)bench_below(&d.b, 32);
            q[i].lba = i * part + bench_below(&d.b, part - q[i].count);
            q[i].write = bench_below(&d.b, 2);
            q[i].busy = true;
            uint8_t *shadow = d.shadow + q[i].lba * 512;
            if (q[i].write) {
                bench_fill(&d.b, shadow, q[i].count * 512);
                memcpy(bytes_of(&d, i), shadow, q[i].count * 512);
            }
            uint8_t *fis = build(&d, i, q[i].write ? 0x61 : 0x60, q[i].lba, i << 3,
                                 q[i].count * 512, q[i].write);
            fis[3] = (uint8_t)q[i].count;
            fis[11] = (uint8_t)(q[i].count >> 8);
            fis[7] |= (uint8_t)(bench_below(&d.b, 2) << 7);
            put(&d, ACTIVE, 1u << i);
            put(&d, ISSUE, 1u << i);
            busy++;
            round++;
        }
        put(&d, INTERRUPTS, BITS);
        uint32_t active = get(&d, ACTIVE);
        assert_int_equal(get(&d, TASK) & 1, 0);
        for (unsigned k = 0; k < 32; k++) {
            if (!q[k].busy || active >> k & 1)
                continue;
            q[k].busy = false;
            busy--;
            if (!q[k].write)
                assert_memory_equal(bytes_of(&d, k), d.shadow + q[k].lba * 512, q[k].count * 512);
        }
    }
    assert_int_equal(received(&d, 0x58)[0], 0xa1);
    teardown(&d);
}

static void test_a_queued_command_that_fails(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    uint8_t *fis = build(&d, 0, 0x60, DISK / 512, 7 << 3, 512, false);
    fis[3] = 1;
    put(&d, ACTIVE, 1u << 7);
    assert_int_equal(run(&d), BITS | TASK_ERROR);
    assert_int_equal(get(&d, ACTIVE), 1u << 7);
    restart(&d);
    assert_int_equal(get(&d, ACTIVE), 0);
    build(&d, 0, 0x2f, 0x10, 1, 512, false);
    assert_int_equal(run(&d), PIO);
    assert_int_equal(bytes_of(&d, 0)[0], 7);
    assert_int_equal(bytes_of(&d, 0)[3], 0x10);
    teardown(&d);
}

static void test_trim(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    memset(bytes_of(&d, 0), 0, 512);
    store_le64(bytes_of(&d, 0), 8 | UINT64_C(8) << 48);
    store_le64(bytes_of(&d, 0) + 8, 100 | UINT64_C(1) << 48);
    build(&d, 0, 0x06, 0, 1, 512, true)[3] = 1;
    assert_int_equal(run(&d), D2H);
    store_le64(bytes_of(&d, 0) + 8, UINT64_MAX);
    build(&d, 0, 0x06, 0, 1, 512, true)[3] = 1;
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    restart(&d);
    build(&d, 0, 0x06, 0, 9, 9 * 512, true)[3] = 1;
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    teardown(&d);
}

static void test_settings_and_smart(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    build(&d, 0, 0xef, 0, 0, 0, false)[3] = 0x82;
    assert_int_equal(run(&d), D2H);
    build(&d, 0, 0xec, 0, 1, 512, false);
    run(&d);
    assert_int_equal(load_le16(bytes_of(&d, 0) + 170) & 0x20, 0);
    build(&d, 0, 0xef, 0, 0, 0, false)[3] = 0x77;
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    restart(&d);
    build(&d, 0, 0xb0, 0xc24f00, 1, 512, false)[3] = 0xd0;
    assert_int_equal(run(&d), PIO);
    uint8_t sum = 0;
    for (unsigned i = 0; i < 512; i++)
        sum = (uint8_t)(sum + bytes_of(&d, 0)[i]);
    assert_int_equal(sum, 0);
    build(&d, 0, 0xb0, 0xc24f00, 0, 0, false)[3] = 0xda;
    assert_int_equal(run(&d), D2H);
    assert_int_equal(received(&d, 0x40)[5], 0x4f);
    build(&d, 0, 0xb0, 0, 0, 0, false)[3] = 0xda;
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    teardown(&d);
}

static void test_interrupts(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    put(&d, ENABLED, D2H);
    build(&d, 0, 0xec, 0, 1, 512, false);
    run(&d); /* PIO: not enabled */
    assert_int_equal(atomic_load(&d.b.pin), 0);
    build(&d, 0, 0xe5, 0, 0, 0, false);
    put(&d, ISSUE, 1);
    assert_int_equal(atomic_load(&d.b.pin), 1);
    assert_int_equal(hba(&d, HBA_INTERRUPTS), 1);
    bench_put(&d.b, 5, HBA_INTERRUPTS, 4, 1); /* the port still wants it */
    assert_int_equal(hba(&d, HBA_INTERRUPTS), 1);
    put(&d, INTERRUPTS, D2H);
    bench_put(&d.b, 5, HBA_INTERRUPTS, 4, 1);
    assert_int_equal(atomic_load(&d.b.pin), 0);
    unsigned msi = bench_capability(&d.b, 5, 0);
    bench_set_config(&d.b, msi + 4, 4, 0xfee00000);
    bench_set_config(&d.b, msi + 12, 2, 33);
    bench_set_config(&d.b, msi + 2, 2, 1);
    put(&d, ISSUE, 1);
    assert_int_equal(atomic_load(&d.b.messages[33]), 1);
    assert_int_equal(atomic_load(&d.b.pin), 0);
    teardown(&d);
}

/* ---- resets -------------------------------------------------------------------------------------------- */

#define SLOW                                                                                       \
    "{\"driver\":\"delay\",\"node-name\":\"m\",\"read-ns\":3000000,\"write-ns\":3000000,\"file\":" \
    "{\"driver\":\"memory\",\"size\":1048576}}"

static void link_reset(struct driver *d)
{
    put(d, CONTROL, 1);
    assert_int_equal(get(d, STATUS), 0);
    put(d, CONTROL, 0);
    assert_int_equal(get(d, STATUS), 0x113);
    assert_int_equal(get(d, TASK), 0x150);
}

/* A reset while writes are under way: each lands where it was meant to, or nowhere; above all the partition table at the
 * beginning stays (CVE-2023-5088), and no read arrives in memory afterwards. */
static void test_resets_under_way(void **state)
{
    struct driver d;
    (void)state;
    setup_with(&d, SLOW, "{\"driver\":\"ide-hd\",\"drive\":\"m\"}");
    for (unsigned round = 0; round < 12; round++) {
        bool queued = round & 1;
        for (unsigned i = 0; i < 16; i++) {
            memset(bytes_of(&d, i), 0xee, 8192);
            uint8_t *fis = build(&d, i, i & 1 ? (queued ? 0x60 : 0x25) : (queued ? 0x61 : 0x35),
                                 1024 + 16 * i, queued ? i << 3 : 16, 8192, !(i & 1));
            fis[3] = queued ? 16 : 0;
        }
        if (queued)
            put(&d, ACTIVE, 0xffff);
        put(&d, ISSUE, 0xffff);
        if (round % 3 == 0)
            put(&d, COMMAND, 0x10);
        else if (round % 3 == 1)
            link_reset(&d);
        else
            bench_put(&d.b, 5, HBA_CONTROL, 4, 1u << 31 | 1);
        assert_int_equal(get(&d, ISSUE), 0);
        assert_int_equal(get(&d, ACTIVE), 0);
        memset(d.b.ram + LIST, 0x5a, BENCH_RAM - LIST);
        for (unsigned rounds = 0; rounds < 60;)
            bench_pause(&rounds);
        for (size_t i = LIST; i < BENCH_RAM; i++)
            assert_int_equal(d.b.ram[i], 0x5a);
        bench_put(&d.b, 5, HBA_CONTROL, 4, 1u << 31 | 2);
        start(&d, 0);
        build(&d, 0, 0x25, 0, 64, 64 * 512, false);
        assert_int_equal(run(&d), D2H);
        for (unsigned i = 0; i < 64 * 512; i++)
            assert_int_equal(bytes_of(&d, 0)[i], 0);
    }
    devices_drain(d.b.devices);
    devices_reset(d.b.devices);
    bench_map(&d.b);
    start(&d, 0);
    teardown(&d);
}

static void test_the_soft_reset(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    uint8_t *fis = build(&d, 0, 0, 0, 0, 0, false);
    fis[1] = 0;
    fis[15] = 4;
    put(&d, ISSUE, 1);
    assert_int_equal(get(&d, ISSUE), 0);
    assert_true(get(&d, TASK) & 0x80);
    memset(received(&d, 0x40), 0, 20);
    fis[15] = 0;
    put(&d, ISSUE, 1);
    assert_int_equal(get(&d, TASK), 0x150);
    assert_int_equal(received(&d, 0x40)[0], 0x34);
    assert_int_equal(received(&d, 0x40)[12], 1);
    assert_int_equal(received(&d, 0x40)[4], 1);
    teardown(&d);
}

static void test_a_full_disk_stops_the_machine_and_goes_on(void **state)
{
    struct driver d;
    (void)state;
    setup_with(&d,
               "{\"driver\":\"blkdebug\",\"node-name\":\"m\",\"image\":{\"driver\":\"memory\","
               "\"size\":1048576},\"inject-error\":[{\"event\":\"none\",\"iotype\":\"write\","
               "\"errno\":28,\"once\":true}]}",
               "{\"driver\":\"ide-hd\",\"drive\":\"m\"}");
    build(&d, 0, 0x35, 0, 1, 512, true);
    put(&d, ISSUE, 1);
    for (unsigned rounds = 0; !atomic_load(&d.b.stops);)
        bench_pause(&rounds);
    devices_drain(d.b.devices);
    assert_int_equal(get(&d, ISSUE), 1);
    devices_resume(d.b.devices);
    for (unsigned rounds = 0; get(&d, ISSUE);)
        bench_pause(&rounds);
    assert_int_equal(get(&d, TASK), 0x50);
    teardown(&d);
}

/* ---- the CD --------------------------------------------------------------------------------------------- */

static uint8_t *packet(struct driver *d, uint8_t command, uint32_t length)
{
    uint8_t *fis = build(d, 0, 0xa0, 0, 0, length, false);
    uint8_t *header = bench_at(&d->b, LIST);
    store_le32(header, load_le32(header) | 1 << 5);
    memset(fis + 0x40, 0, 16);
    fis[0x40] = command;
    return fis + 0x40;
}

static void cd(struct driver *d, const char *node)
{
    setup_with(d, node, "{\"driver\":\"ide-cd\",\"drive\":\"m\",\"bus\":\"ide.2\"}");
    start(d, 2);
}

static void sense(struct driver *d, uint8_t key, uint8_t code)
{
    assert_int_equal(get(d, TASK) >> 12, key);
    restart(d);
    packet(d, 0x03, 18)[4] = 18;
    assert_int_equal(run(d), D2H);
    assert_int_equal(bytes_of(d, 0)[2], key);
    assert_int_equal(bytes_of(d, 0)[12], code);
}

static void test_a_cd(void **state)
{
    struct driver d;
    uint8_t *c;
    (void)state;
    cd(&d, "{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":1048576,\"read-only\":true}");
    assert_int_equal(get(&d, SIGNATURE), 0xeb140101);
    build(&d, 0, 0xa1, 0, 1, 512, false);
    assert_int_equal(run(&d), PIO);
    assert_int_equal(load_le16(bytes_of(&d, 0)), 0x85c0);
    build(&d, 0, 0xec, 0, 1, 512, false);
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    assert_int_equal(received(&d, 0x40)[5], 0x14);
    assert_int_equal(received(&d, 0x40)[6], 0xeb);
    restart(&d);
    packet(&d, 0x00, 0);
    assert_int_equal(run(&d), D2H);
    packet(&d, 0x25, 8);
    assert_int_equal(run(&d), D2H);
    assert_int_equal(load_be32(bytes_of(&d, 0)), 511);
    assert_int_equal(load_be32(bytes_of(&d, 0) + 4), 2048);
    memset(bytes_of(&d, 0), 1, 8192);
    c = packet(&d, 0x28, 4 * 2048);
    store_be32(c + 2, 508);
    c[8] = 4;
    assert_int_equal(run(&d), D2H);
    assert_int_equal(bytes_of(&d, 0)[8191], 0);
    assert_int_equal(load_le32(bench_at(&d.b, LIST + 4)), 8192);
    store_be32(c + 2, 509);
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    sense(&d, 5, 0x21);
    packet(&d, 0xff, 0);
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    sense(&d, 5, 0x20);
    c = packet(&d, 0x12, 36);
    c[4] = 36;
    assert_int_equal(run(&d), D2H);
    assert_int_equal(bytes_of(&d, 0)[0], 5);
    c = packet(&d, 0x43, 20);
    c[8] = 20;
    c[1] = 2;
    assert_int_equal(run(&d), D2H);
    assert_int_equal(load_be16(bytes_of(&d, 0)), 18);
    assert_int_equal(bytes_of(&d, 0)[14], 0xaa);
    static const uint8_t others[] = { 0x5a, 0x46, 0x4a, 0x51, 0xbd };
    for (unsigned i = 0; i < sizeof(others); i++) {
        c = packet(&d, others[i], 64);
        c[1] = others[i] == 0x4a;
        c[2] = others[i] == 0x5a ? 0x3f : 0;
        c[4] = others[i] == 0x4a ? 0x10 : 0;
        store_be16(c + (others[i] == 0xbd ? 8 : 7), 64);
        if (run(&d) != D2H)
            fail_msg("command %x failed", others[i]);
    }
    teardown(&d);
}

static void test_the_tray(void **state)
{
    struct driver d;
    (void)state;
    cd(&d, "{\"driver\":\"memory\",\"node-name\":\"m\",\"size\":1048576,\"read-only\":true}");
    packet(&d, 0x1e, 0)[4] = 1;
    assert_int_equal(run(&d), D2H);
    packet(&d, 0x1b, 0)[4] = 2;
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    sense(&d, 5, 0x53);
    packet(&d, 0x1e, 0);
    assert_int_equal(run(&d), D2H);
    packet(&d, 0x1b, 0)[4] = 2;
    assert_int_equal(run(&d), D2H);
    packet(&d, 0x00, 0);
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    sense(&d, 2, 0x3a);
    packet(&d, 0x1b, 0)[4] = 3;
    assert_int_equal(run(&d), D2H);
    packet(&d, 0x00, 0);
    assert_int_equal(run(&d), D2H);
    teardown(&d);
}

static void test_an_empty_drive(void **state)
{
    struct driver d;
    const char *name;
    json_t *j = json_loads("{\"if\":\"none\",\"media\":\"cdrom\",\"id\":\"m\"}", 0, NULL);
    (void)state;
    memset(&d, 0, sizeof d);
    bench_open(&d.b);
    assert_int_equal(blockdev_add_drive(j, false, &name, NULL), 0);
    json_decref(j);
    bench_device(&d.b, "{\"driver\":\"ich9-ahci\",\"addr\":\"5\"}");
    bench_device(&d.b, "{\"driver\":\"ide-cd\",\"drive\":\"m\"}");
    bench_map(&d.b);
    start(&d, 0);
    packet(&d, 0x25, 8);
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    sense(&d, 2, 0x3a);
    packet(&d, 0x28, 2048)[8] = 1;
    assert_int_equal(run(&d), D2H | TASK_ERROR);
    sense(&d, 2, 0x3a);
    teardown(&d);
}

static void test_where_drives_are_plugged_in(void **state)
{
    struct bench b;
    struct error *err = NULL;
    (void)state;
    bench_open(&b);
    bench_node(MEMORY);
    bench_node("{\"driver\":\"memory\",\"node-name\":\"n\",\"size\":65536,\"read-only\":true}");
    assert_true(bench_try_device(&b, "{\"driver\":\"ide-hd\",\"drive\":\"m\"}", &err) < 0);
    error_free(err);
    err = NULL;
    bench_device(&b, "{\"driver\":\"ich9-ahci\",\"id\":\"sata\",\"addr\":\"4\"}");
    bench_device(&b, "{\"driver\":\"ich9-ahci\",\"addr\":\"5\"}");
    bench_device(&b, "{\"driver\":\"ide-hd\",\"drive\":\"m\",\"bus\":\"ide.1\"}");
    struct device *last = b.devices->next->next;
    char *path = last->type->boot_path(last);
    assert_string_equal(path, "/pci@i0cf8/pci8086,2922@5/drive@1/disk@0");
    free(path);
    assert_true(bench_try_device(&b, "{\"driver\":\"ide-cd\",\"drive\":\"n\",\"bus\":\"ide.1\"}",
                                 &err) < 0);
    assert_non_null(strstr(error_text(err), "already"));
    error_free(err);
    err = NULL;
    assert_true(bench_try_device(&b, "{\"driver\":\"ide-hd\",\"drive\":\"n\"}", &err) < 0);
    assert_non_null(strstr(error_text(err), "read-only"));
    error_free(err);
    err = NULL;
    assert_true(bench_try_device(&b, "{\"driver\":\"ide-cd\",\"drive\":\"n\",\"bus\":\"ide.9\"}",
                                 &err) < 0);
    assert_non_null(strstr(error_text(err), "ide.9"));
    error_free(err);
    bench_device(&b, "{\"driver\":\"ide-cd\",\"drive\":\"n\",\"bus\":\"sata.5\"}");
    bench_close(&b);
}

/* ---- guests that mean harm ---------------------------------------------------------------------------- */

static void test_tables_that_are_none(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    build(&d, 0, 0x25, 0, 8, 4096, false);
    store_le64(bench_at(&d.b, LIST + 8), UINT64_MAX);
    assert_true(run(&d) & BUS);
    restart(&d);
    build(&d, 0, 0x25, 0, 8, 4096, false);
    store_le64(bench_at(&d.b, TABLES + 0x80), BENCH_RAM - 128);
    assert_true(run(&d) & (BUS | TASK_ERROR));
    restart(&d);
    build(&d, 0, 0x25, 0, 8, 4096, false);
    store_le64(bench_at(&d.b, TABLES + 0x80), BENCH_BAR + (5 << 20));
    assert_true(run(&d) & (BUS | TASK_ERROR));
    restart(&d);
    build(&d, 0, 0x25, 0, 8, 2048, false); /* too short */
    assert_true(run(&d) & TASK_ERROR);
    restart(&d);
    build(&d, 0, 0x25, 0, 0, 0, false); /* 65536 blocks, no entries */
    assert_true(run(&d) & TASK_ERROR);
    restart(&d);
    build(&d, 0, 0x20, 0, 0, 512, false); /* 65535 entries, most of them rubbish */
    store_le32(bench_at(&d.b, LIST), 5 | 0xffffu << 16);
    bench_fill(&d.b, bench_at(&d.b, TABLES + 0x90), 0x10000);
    run(&d);
    restart(&d);
    build(&d, 0, 0x25, UINT64_MAX >> 16, 1, 512, false);
    assert_true(run(&d) & TASK_ERROR);
    restart(&d);
    put(&d, 0, UINT32_MAX);
    put(&d, 4, UINT32_MAX);
    assert_true(run(&d) & BUS);
    restart(&d);
    put(&d, 8, UINT32_MAX);
    put(&d, 12, UINT32_MAX);
    put(&d, 0, LIST);
    put(&d, 4, 0);
    build(&d, 0, 0xe5, 0, 0, 0, false);
    run(&d);
    start(&d, 0);
    teardown(&d);
}

static void test_random_registers(void **state)
{
    struct driver d;
    (void)state;
    setup(&d);
    bench_node("{\"driver\":\"memory\",\"node-name\":\"n\",\"size\":65536,\"read-only\":true}");
    bench_device(&d.b, "{\"driver\":\"ide-cd\",\"drive\":\"n\"}");
    for (unsigned i = 0; i < 200000; i++) {
        unsigned size = 1u << bench_below(&d.b, 4);
        uint64_t at =
            bench_below(&d.b, 8) ? 0x100 + bench_below(&d.b, 0x100) : bench_below(&d.b, 0x400);
        uint64_t value = bench_random(&d.b) >> bench_below(&d.b, 64);
        if (bench_below(&d.b, 50) == 0) { /* plausible commands */
            unsigned port = (unsigned)bench_below(&d.b, 2);
            start(&d, port);
            for (unsigned slot = 0; slot < 8; slot++) {
                uint8_t *fis = build(&d, slot, (uint8_t)bench_random(&d.b), bench_below(&d.b, 100),
                                     (unsigned)bench_below(&d.b, 32), 512, false);
                if (port)
                    fis[2] = 0xa0;
                fis[3] = (uint8_t)bench_random(&d.b);
                bench_fill(&d.b, fis + 0x40, 16);
                store_le32(bench_at(&d.b, LIST + 32 * slot),
                           load_le32(bench_at(&d.b, LIST + 32 * slot)) | port << 5);
            }
            put(&d, ISSUE, 0xff);
        }
        if (bench_below(&d.b, 3))
            bench_put(&d.b, 5, at, size, value);
        else
            bench_get(&d.b, 5, at, size);
    }
    devices_drain(d.b.devices);
    start(&d, 0);
    build(&d, 0, 0xe5, 0, 0, 0, false);
    assert_int_equal(run(&d), D2H);
    teardown(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_says_what_it_is),
        cmocka_unit_test(test_plain_commands),
        cmocka_unit_test(test_queued_commands),
        cmocka_unit_test(test_a_queued_command_that_fails),
        cmocka_unit_test(test_trim),
        cmocka_unit_test(test_settings_and_smart),
        cmocka_unit_test(test_interrupts),
        cmocka_unit_test(test_resets_under_way),
        cmocka_unit_test(test_the_soft_reset),
        cmocka_unit_test(test_a_full_disk_stops_the_machine_and_goes_on),
        cmocka_unit_test(test_a_cd),
        cmocka_unit_test(test_the_tray),
        cmocka_unit_test(test_an_empty_drive),
        cmocka_unit_test(test_where_drives_are_plugged_in),
        cmocka_unit_test(test_tables_that_are_none),
        cmocka_unit_test(test_random_registers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
