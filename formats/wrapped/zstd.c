/* zstd: frames, each for itself. Most say how much they decode to; the length of one shows by walking along the
 * headers of its blocks. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/macros.h"
#include "wrapped.h"

extern const struct driver zstd_driver;

#define MAGIC     0xfd2fb528u
#define SKIPPABLE 0x184d2a50u /* the last four bits are free */

enum {
    HEADER_LEAST = 5,
    HEADER_MOST = 18,
    SKIP_HEADER = 8,
    WINDOW_LOG = 29, /* MEMORY_MOST */
    LOOK = 4096,     /* read at once in the walk: most blocks are longer */
};

/* ---- the walk ------------------------------------------------------------------------------------ */

struct walk {
    struct wrapped *w;
    uint64_t at, size;       /* in the file */
    uint64_t seen, seen_end; /* what `buf` holds */
    uint8_t buf[LOOK];
};

/* The n bytes at `at`, which are in the file. */
static const uint8_t *look(struct walk *k, size_t n, int *ret)
{
    *ret = range_inside(k->at, n, k->size) ? 0 : -ENODATA;
    if (*ret == 0 && (k->at < k->seen || k->at + n > k->seen_end)) {
        size_t len = (size_t)MIN((uint64_t)LOOK, k->size - k->at);
        *ret = blk_read(k->w->file, k->at, k->buf, len, 0);
        k->seen = k->at;
        k->seen_end = *ret < 0 ? k->at : k->at + len;
    }
    return *ret < 0 ? NULL : k->buf + (k->at - k->seen);
}

static int skip(struct walk *k, uint64_t n)
{
    if (!range_inside(k->at, n, k->size))
        return -ENODATA;
    k->at += n;
    return 0;
}

static bool is_skippable(const uint8_t *magic)
{
    return (load_le32(magic) & ~15u) == SKIPPABLE;
}

/* From behind the frame's header to its end. */
static int walk_blocks(struct walk *k, bool checksum)
{
    enum { RAW, RLE, COMPRESSED, RESERVED };
    bool last = false;

    while (!last) {
        int ret;
        const uint8_t *b = look(k, 3, &ret);
        if (!b)
            return ret;
        uint32_t head = b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16;
        unsigned type = head >> 1 & 3;
        if (type == RESERVED)
            return -EIO;
        last = head & 1;
        ret = skip(k, 3 + (type == RLE ? 1 : (uint64_t)(head >> 3)));
        if (ret < 0)
            return ret;
    }
    return checksum ? skip(k, 4) : 0;
}

/* One frame with data. *length: what it decodes to, WRAPPED_UNKNOWN if it does not say. */
static int walk_frame(struct walk *k, uint64_t *length)
{
    static const uint8_t dictionary_bytes[] = { 0, 1, 2, 4 }, size_bytes[] = { 0, 2, 4, 8 };
    int ret;
    size_t n = (size_t)MIN((uint64_t)HEADER_MOST, k->size - k->at);
    const uint8_t *b = look(k, n, &ret);

    if (!b)
        return ret;
    if (n < HEADER_LEAST)
        return -ENODATA;
    unsigned descriptor = b[4], said = descriptor >> 6;
    bool single = descriptor & 32;
    unsigned long long content = ZSTD_getFrameContentSize(b, n);
    if (content == ZSTD_CONTENTSIZE_ERROR)
        return n < HEADER_MOST ? -ENODATA : -EIO;
    *length = content == ZSTD_CONTENTSIZE_UNKNOWN ? WRAPPED_UNKNOWN : content;
    if (*length == WRAPPED_UNKNOWN)
        return 0;
    ret = skip(k, HEADER_LEAST + (single ? 0u : 1u) + dictionary_bytes[descriptor & 3] +
                      (said == 0 && single ? 1u : size_bytes[said]));
    return ret < 0 ? ret : walk_blocks(k, descriptor & 4);
}

/* One frame of either kind, whose content begins at w->size. */
static int walk_one(struct walk *k)
{
    struct wrapped *w = k->w;
    uint64_t begin = k->at, length = WRAPPED_UNKNOWN;
    int ret;
    const uint8_t *magic = look(k, 4, &ret);

    if (!magic)
        return ret;
    if (is_skippable(magic)) {
        const uint8_t *head = look(k, SKIP_HEADER, &ret);
        return head ? skip(k, SKIP_HEADER + (uint64_t)load_le32(head + 4)) : ret;
    }
    if (load_le32(magic) != MAGIC)
        return -EIO;
    ret = walk_frame(k, &length);
    if (ret < 0)
        return ret;
    if (length == WRAPPED_UNKNOWN) {
        w->size = WRAPPED_UNKNOWN;
        return 0;
    }
    struct unit u = { begin, k->at - begin, w->size, length, 0 };
    if (!checked_add(w->size, length, &w->size) || w->size > INT64_MAX)
        return -EFBIG;
    return length == 0 || w->units.len > UNITS_MOST ? 0 : vector_push(&w->units, u);
}

static int zstd_index(struct wrapped *w, struct error **err)
{
    struct walk *k = calloc(1, sizeof(*k));
    int ret = 0;

    if (!k)
        return wrapped_error(w, -ENOMEM, 0, err);
    k->w = w;
    k->size = blk_size(w->file);
    w->size = 0;
    while (ret == 0 && k->at < k->size && w->size != WRAPPED_UNKNOWN)
        ret = walk_one(k);
    if (ret < 0)
        ret = wrapped_error(w, ret, ret == -ENODATA ? k->size : k->at, err);
    free(k);
    return ret;
}

/* ---- decoding ------------------------------------------------------------------------------------ */

static int zstd_decode(const struct unit *u, const uint8_t *in, uint8_t *out)
{
    size_t n = ZSTD_decompress(out, (size_t)u->length, in, (size_t)u->file_length);

    return !ZSTD_isError(n) && n == u->length ? 0 : -EIO;
}

struct zstd {
    ZSTD_DCtx *context;
    bool inside; /* a frame */
};

static void zstd_end(void *decoder)
{
    struct zstd *z = decoder;

    ZSTD_freeDCtx(z->context);
    free(z);
}

static int zstd_begin(void **decoder)
{
    struct zstd *z = calloc(1, sizeof(*z));

    if (!z)
        return -ENOMEM;
    z->context = ZSTD_createDCtx();
    if (!z->context ||
        ZSTD_isError(ZSTD_DCtx_setParameter(z->context, ZSTD_d_windowLogMax, WINDOW_LOG))) {
        zstd_end(z);
        return -ENOMEM;
    }
    *decoder = z;
    return 0;
}

static int zstd_step(void *decoder, struct flow *flow)
{
    struct zstd *z = decoder;
    ZSTD_inBuffer in = { flow->in, flow->in_len, 0 };
    ZSTD_outBuffer out = { flow->out, flow->out_len, 0 };

    if (!z->inside && flow->in_len == 0)
        return flow->in_ended ? WRAPPED_END : 0;
    size_t left = ZSTD_decompressStream(z->context, &out, &in);
    if (ZSTD_isError(left)) {
        /* The window is the one thing that is refused although the data are sound. */
        bool window = strstr(ZSTD_getErrorName(left), "memory");
        return window ? -ENOMEM : -EIO;
    }
    flow->in += in.pos;
    flow->in_len -= in.pos;
    flow->out += out.pos;
    flow->out_len -= out.pos;
    z->inside = left > 0;
    return 0;
}

static const struct codec zstd_codec = {
    .name = "zstd",
    .index = zstd_index,
    .decode = zstd_decode,
    .begin = zstd_begin,
    .step = zstd_step,
    .end = zstd_end,
};

static bool zstd_wraps(const uint8_t *buf, size_t len)
{
    /* pzstd begins with a frame to be skipped. */
    if (len >= SKIP_HEADER && is_skippable(buf)) {
        uint64_t behind = SKIP_HEADER + (uint64_t)load_le32(buf + 4);
        if (!range_inside(behind, HEADER_LEAST, len))
            return false;
        buf += behind;
        len -= behind;
    }
    if (len < HEADER_MOST || load_le32(buf) != MAGIC)
        return false;
    return ZSTD_getFrameContentSize(buf, HEADER_MOST) != ZSTD_CONTENTSIZE_ERROR;
}

static int zstd_open(struct blk_node *n, const void *options, struct error **err)
{
    return wrapped_open(n, &zstd_codec, options, err);
}

const struct driver zstd_driver = {
    WRAPPED_DRIVER("zstd"),
    .wraps = zstd_wraps,
    .open = zstd_open,
};
