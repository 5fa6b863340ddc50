#include "base/deflate.h"

#include <errno.h>
#include <isa-l/igzip_lib.h>
#include <limits.h>
#include <pthread.h>
#include <zlib.h>

#include "base/cleanup.h"
#include "base/macros.h"

enum { LEVEL = 3, MEMORY = ISAL_DEF_LVL3_DEFAULT };

/* One thread's state; members are made when first wanted. */
struct state {
    struct {
        struct isal_zstream stream;
        uint8_t memory[MEMORY];
    } * out;
    struct inflate_state *in;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static int key_error;

static void state_free(void *arg)
{
    struct state *s = arg;

    free(s->out);
    free(s->in);
    free(s);
}

static void make_key(void)
{
    key_error = pthread_key_create(&key, state_free);
}

static struct state *state_here(void)
{
    pthread_once(&once, make_key);
    if (key_error)
        return NULL;
    struct state *s = pthread_getspecific(key);
    if (s)
        return s;
    s = calloc(1, sizeof(*s));
    if (s && pthread_setspecific(key, s)) {
        free(s);
        s = NULL;
    }
    return s;
}

int64_t deflate_encode(enum deflate_wrap wrap, unsigned window_bits, const void *in, size_t in_len,
                       void *out, size_t cap)
{
    struct state *here = state_here();

    if (here && !here->out)
        here->out = malloc(sizeof(*here->out));
    if (!here || !here->out)
        return -ENOMEM;
    struct isal_zstream *s = &here->out->stream;
    isal_deflate_stateless_init(s);
    s->level = LEVEL;
    s->level_buf = here->out->memory;
    s->level_buf_size = MEMORY;
    s->hist_bits = (uint16_t)window_bits;
    s->gzip_flag = wrap == DEFLATE_ZLIB ? IGZIP_ZLIB : IGZIP_DEFLATE;
    s->end_of_stream = 1;
    s->next_in = (uint8_t *)(uintptr_t)in;
    s->avail_in = (uint32_t)in_len;
    s->next_out = out;
    s->avail_out = (uint32_t)MIN(cap, (size_t)UINT32_MAX);
    int ret = isal_deflate_stateless(s);
    if (ret == STATELESS_OVERFLOW)
        return -E2BIG;
    return ret == COMP_OK ? (int64_t)s->total_out : -EIO;
}

/* zlib takes a few streams that ISA-L refuses. */
static int64_t decode_with_zlib(enum deflate_wrap wrap, unsigned window_bits, const void *in,
                                size_t in_len, void *out, size_t out_len)
{
    z_stream s = {
        .next_in = (Bytef *)(uintptr_t)in,
        .avail_in = (uInt)in_len,
        .next_out = out,
        .avail_out = (uInt)out_len,
    };

    if (inflateInit2(&s, wrap == DEFLATE_ZLIB ? 15 : -(int)window_bits) != Z_OK)
        return -ENOMEM;
    int ret = inflate(&s, Z_FINISH);
    inflateEnd(&s);
    bool enough = wrap == DEFLATE_RAW && s.avail_out == 0;
    return enough || ret == Z_STREAM_END ? (int64_t)(out_len - s.avail_out) : -EIO;
}

int64_t deflate_decode(enum deflate_wrap wrap, unsigned window_bits, const void *in, size_t in_len,
                       void *out, size_t out_len)
{
    struct state *here = state_here();

    if (here && !here->in)
        here->in = malloc(sizeof(*here->in));
    if (!here || !here->in)
        return -ENOMEM;
    if (in_len == 0 || in_len > INT_MAX || out_len > INT_MAX)
        return -EIO;
    struct inflate_state *s = here->in;
    isal_inflate_init(s);
    s->crc_flag = wrap == DEFLATE_ZLIB ? ISAL_ZLIB : ISAL_DEFLATE;
    s->next_in = (uint8_t *)(uintptr_t)in;
    s->avail_in = (uint32_t)in_len;
    s->next_out = out;
    s->avail_out = (uint32_t)out_len;
    int ret = isal_inflate_stateless(s);
    bool enough = wrap == DEFLATE_RAW && ret == ISAL_OUT_OVERFLOW && s->total_out == out_len;
    if (ret == ISAL_DECOMP_OK || enough)
        return s->total_out;
    return decode_with_zlib(wrap, window_bits, in, in_len, out, out_len);
}
