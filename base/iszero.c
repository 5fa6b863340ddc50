#include "base/iszero.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "base/macros.h"

/* Blocks of this size are or-ed together without a branch inside. */
enum { BLOCK = 256 };

static inline uint64_t word_at(const unsigned char *p)
{
    uint64_t word;

    memcpy(&word, p, sizeof(word));
    return word;
}

/* Eight bytes or more: the last word may overlap the one before it. */
static inline bool words_are_zero(const unsigned char *p, size_t len)
{
    uint64_t any = word_at(p + len - 8);

    for (size_t i = 0; i + 8 <= len; i += 8)
        any |= word_at(p + i);
    return any == 0;
}

typedef uint64_t lane __attribute__((vector_size(32), aligned(1), may_alias));

/* Compiled twice, for what every machine has and for AVX2. */
static inline __attribute__((always_inline)) bool blocks_are_zero(const unsigned char *p,
                                                                  size_t len)
{
    for (size_t i = 0; i + BLOCK <= len; i += BLOCK) {
        lane any = { 0 };

        for (size_t j = 0; j < BLOCK; j += sizeof(lane))
            any |= *(const lane *)(const void *)(p + i + j);
        if ((any[0] | any[1] | any[2] | any[3]) != 0)
            return false;
    }
    return true;
}

static bool blocks_are_zero_plain(const unsigned char *p, size_t len)
{
    return blocks_are_zero(p, len);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static bool blocks_are_zero_avx2(const unsigned char *p, size_t len)
{
    return blocks_are_zero(p, len);
}

static bool have_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}
#else
static bool blocks_are_zero_avx2(const unsigned char *p, size_t len)
{
    return blocks_are_zero(p, len);
}

static bool have_avx2(void)
{
    return false;
}
#endif

bool is_zero(const void *buf, size_t len)
{
    const unsigned char *p = buf;

    if (len < 8) {
        unsigned char any = 0;
        for (size_t i = 0; i < len; i++)
            any |= p[i];
        return any == 0;
    }
    if ((word_at(p) | word_at(p + len - 8)) != 0)
        return false;
    if (len >= BLOCK) {
        size_t tail = len % BLOCK;

        if (!(have_avx2() ? blocks_are_zero_avx2 : blocks_are_zero_plain)(p, len - tail))
            return false;
        p += len - tail;
        len = tail;
        if (len < 8)
            return true; /* the last word was looked at above */
    }
    return words_are_zero(p, len);
}

size_t zero_run(const void *buf, size_t len, size_t granule, bool *zero)
{
    const unsigned char *p = buf;
    size_t run;

    assert(len > 0 && granule > 0);
    run = MIN(len, granule);
    *zero = is_zero(p, run);
    while (run < len) {
        size_t n = MIN(len - run, granule);

        if (is_zero(p + run, n) != *zero)
            break;
        run += n;
    }
    return run;
}
