/* Compressed clusters: what goes in comes out, a window of 4 KiB suffices, and no input, however
 * wrong, makes the codec leave its buffers. These end at a page that must not be touched. */
#include "../check.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "qcow2.h"

/* len bytes right before a page without access. */
struct fenced {
    uint8_t *p;
    void *base;
    size_t total;
};

static struct fenced fenced(size_t len)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (len + page - 1) / page * page;
    struct fenced f = { .total = room + page };

    f.base = mmap(NULL, f.total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(f.base != MAP_FAILED);
    assert_int_equal(mprotect((uint8_t *)f.base + room, page, PROT_NONE), 0);
    f.p = (uint8_t *)f.base + room - len;
    return f;
}

static void unfence(struct fenced *f)
{
    munmap(f->base, f->total);
}

static uint32_t next(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*seed >> 33);
}

enum content { TEXT, ONE_BYTE, FAR_REPEATS, RANDOM, CONTENTS };

static void fill(uint8_t *p, size_t len, enum content kind, uint64_t seed)
{
    for (size_t i = 0; i < len; i++) {
        switch (kind) {
        case TEXT:
            p[i] =
                next(&seed) % 5 && i >= 400 ? p[i - 200 - seed % 3] : "etaoin sh"[next(&seed) % 9];
            break;
        case ONE_BYTE:
            p[i] = 7;
            break;
        case FAR_REPEATS: /* 6000 bytes away: beyond the window */
            p[i] = i >= 6000 ? p[i - 6000] : (uint8_t)(next(&seed) % 40);
            break;
        default:
            p[i] = (uint8_t)next(&seed);
        }
    }
}

static const size_t sizes[] = { 512, 4096, 65536, 2 << 20 };

static void round_trip(enum qcow2_compression type)
{
    for (size_t n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++) {
        size_t len = sizes[n];
        struct fenced in = fenced(len), enc = fenced(len), out = fenced(len);
        for (enum content kind = 0; kind < CONTENTS; kind++) {
            fill(in.p, len, kind, n + 1);
            int64_t got = qcow2_compress(type, in.p, len, enc.p, len);
            if (kind == RANDOM) {
                assert_int_equal(got, -E2BIG);
                continue;
            }
            assert_true(got > 0 && got < (int64_t)len);
            memset(enc.p + got, 0xa5, len - (size_t)got); /* what follows on the disk */
            assert_int_equal(qcow2_decompress(type, enc.p, len, out.p, len), 0);
            assert_memory_equal(in.p, out.p, len);
            struct fenced tight = fenced((size_t)got);
            memcpy(tight.p, enc.p, (size_t)got);
            memset(out.p, 0, len);
            assert_int_equal(qcow2_decompress(type, tight.p, (size_t)got, out.p, len), 0);
            assert_memory_equal(in.p, out.p, len);
            unfence(&tight);
        }
        unfence(&in);
        unfence(&enc);
        unfence(&out);
    }
}

static void zlib_round_trip(void **state)
{
    (void)state;
    round_trip(QCOW2_ZLIB);
}

static void zstd_round_trip(void **state)
{
    (void)state;
    round_trip(QCOW2_ZSTD);
}

static void any_reader_with_a_4k_window_inflates(void **state)
{
    (void)state;
    size_t len = 65536;
    uint8_t *in = malloc(len), *enc = malloc(len), *out = malloc(len);

    for (enum content kind = 0; kind < RANDOM; kind++) {
        fill(in, len, kind, 3);
        int64_t got = qcow2_compress(QCOW2_ZLIB, in, len, enc, len);
        assert_true(got > 0);
        z_stream s = {
            .next_in = enc, .avail_in = (uInt)got, .next_out = out, .avail_out = (uInt)len
        };
        assert_int_equal(inflateInit2(&s, -12), Z_OK);
        assert_int_equal(inflate(&s, Z_FINISH), Z_STREAM_END);
        assert_int_equal(s.avail_in, 0);
        assert_int_equal(s.avail_out, 0);
        inflateEnd(&s);
        assert_memory_equal(in, out, len);
    }
    free(in);
    free(enc);
    free(out);
}

static void too_small_a_place_is_refused(void **state)
{
    (void)state;
    size_t len = 65536;
    uint8_t *in = malloc(len);

    fill(in, len, TEXT, 1);
    for (enum qcow2_compression type = QCOW2_ZLIB; type <= QCOW2_ZSTD; type++) {
        uint8_t *enc = malloc(len);
        int64_t full = qcow2_compress(type, in, len, enc, len);
        assert_true(full > 0);
        for (size_t cap = 1; cap < (size_t)full; cap += 997) {
            struct fenced f = fenced(cap);
            assert_int_equal(qcow2_compress(type, in, len, f.p, cap), -E2BIG);
            unfence(&f);
        }
        free(enc);
    }
    free(in);
}

static void short_and_wrong_input_is_an_error(void **state)
{
    (void)state;
    size_t len = 65536;
    struct fenced in = fenced(len), out = fenced(len);
    uint8_t *enc = malloc(len);
    uint64_t seed = 11;

    fill(in.p, len, TEXT, 5);
    for (enum qcow2_compression type = QCOW2_ZLIB; type <= QCOW2_ZSTD; type++) {
        size_t got = (size_t)qcow2_compress(type, in.p, len, enc, len);
        for (size_t cut = 0; cut < got; cut += 1 + got / 100) {
            struct fenced f = fenced(cut);
            memcpy(f.p, enc, cut);
            assert_int_equal(qcow2_decompress(type, f.p, cut, out.p, len), -EIO);
            unfence(&f);
        }
        for (int round = 0; round < 300; round++) { /* any answer but a crash */
            struct fenced f = fenced(got);
            memcpy(f.p, enc, got);
            for (unsigned flips = next(&seed) % 8; flips-- > 0;)
                f.p[next(&seed) % (round % 2 ? got : 60)] ^= (uint8_t)(1u << next(&seed) % 8);
            int ret = qcow2_decompress(type, f.p, got, out.p, len);
            assert_true(ret == 0 || ret == -EIO);
            unfence(&f);
        }
        for (int round = 0; round < 300; round++) {
            struct fenced f = fenced(1 + next(&seed) % 3000);
            size_t n = f.total;
            n = (size_t)((uint8_t *)f.base + n - (size_t)sysconf(_SC_PAGESIZE) - f.p);
            fill(f.p, n, RANDOM, seed + (uint64_t)round);
            int ret = qcow2_decompress(type, f.p, n, out.p, len);
            assert_true(ret == 0 || ret == -EIO);
            unfence(&f);
        }
    }
    free(enc);
    unfence(&in);
    unfence(&out);
}

/* A cluster is exactly so long: what gives less is damaged, what would give more ends there. */
static void the_length_is_exact(void **state)
{
    (void)state;
    size_t len = 8192;
    uint8_t *in = malloc(len), *enc = malloc(len);
    struct fenced out = fenced(2 * len), half = fenced(len / 2);

    fill(in, len, TEXT, 5);
    int64_t got = qcow2_compress(QCOW2_ZLIB, in, len, enc, len);
    assert_int_equal(qcow2_decompress(QCOW2_ZLIB, enc, (size_t)got, out.p, 2 * len), -EIO);
    assert_int_equal(qcow2_decompress(QCOW2_ZLIB, enc, (size_t)got, half.p, len / 2), 0);
    assert_memory_equal(half.p, in, len / 2);
    got = qcow2_compress(QCOW2_ZSTD, in, len, enc, len);
    assert_int_equal(qcow2_decompress(QCOW2_ZSTD, enc, (size_t)got, out.p, 2 * len), -EIO);
    free(in);
    free(enc);
    unfence(&out);
    unfence(&half);
}

static void *many(void *arg)
{
    uint64_t seed = (uint64_t)(uintptr_t)arg;
    uint8_t *in = malloc(65536), *enc = malloc(65536), *out = malloc(65536);
    bool good = true;

    for (int i = 0; i < 60; i++) {
        enum qcow2_compression type = next(&seed) % 2 ? QCOW2_ZSTD : QCOW2_ZLIB;
        fill(in, 65536, (enum content)(next(&seed) % RANDOM), seed);
        int64_t got = qcow2_compress(type, in, 65536, enc, 65536);
        good = good && got > 0 && qcow2_decompress(type, enc, (size_t)got, out, 65536) == 0 &&
               !memcmp(in, out, 65536);
    }
    free(in);
    free(enc);
    free(out);
    return good ? arg : NULL;
}

static void threads_do_not_meet(void **state)
{
    (void)state;
    pthread_t t[4];

    for (uintptr_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, many, (void *)(i + 1)), 0);
    for (uintptr_t i = 0; i < 4; i++) {
        void *result;
        pthread_join(t[i], &result);
        assert_non_null(result);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zlib_round_trip),
        cmocka_unit_test(zstd_round_trip),
        cmocka_unit_test(any_reader_with_a_4k_window_inflates),
        cmocka_unit_test(too_small_a_place_is_refused),
        cmocka_unit_test(short_and_wrong_input_is_an_error),
        cmocka_unit_test(the_length_is_exact),
        cmocka_unit_test(threads_do_not_meet),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
