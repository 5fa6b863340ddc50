/* xz: streams of blocks, and at the end of each stream an index of its blocks, under a checksum. */
#include <errno.h>
#include <lzma.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "wrapped.h"

extern const struct driver xz_driver;

static int xz_errno(lzma_ret ret)
{
    switch (ret) {
    case LZMA_MEM_ERROR:
    case LZMA_MEMLIMIT_ERROR:
        return -ENOMEM;
    case LZMA_BUF_ERROR:
        return -ENODATA;
    default:
        return -EIO;
    }
}

/* ---- the index ---------------------------------------------------------------------------------- */

static void index_cleanup(lzma_index **at)
{
    lzma_index_end(*at, NULL);
}

/* The decoder says where it wants to read: the ends of the streams, from the last to the first. */
static int read_index(struct wrapped *w, lzma_stream *s, uint8_t *buf, struct error **err)
{
    uint64_t size = blk_size(w->file), at = 0;
    lzma_ret ret = LZMA_OK;

    while (ret == LZMA_OK || ret == LZMA_SEEK_NEEDED) {
        if (ret == LZMA_SEEK_NEEDED) {
            at = s->seek_pos;
            s->avail_in = 0;
        }
        if (s->avail_in == 0 && at < size) {
            size_t n = (size_t)MIN((uint64_t)CHUNK, size - at);
            int r = blk_read(w->file, at, buf, n, 0);
            if (r < 0)
                return wrapped_error(w, r, at, err);
            s->next_in = buf;
            s->avail_in = n;
            at += n;
        }
        ret = lzma_code(s, LZMA_RUN);
    }
    if (ret == LZMA_STREAM_END)
        return 0;
    /* It looks from the end: a cut there is not to be told from damage. */
    return wrapped_error(w, ret == LZMA_BUF_ERROR ? -EIO : xz_errno(ret), MIN(at, size), err);
}

static int take_blocks(struct wrapped *w, const lzma_index *index)
{
    lzma_index_iter iter;

    lzma_index_iter_init(&iter, index);
    while (!lzma_index_iter_next(&iter, LZMA_INDEX_ITER_NONEMPTY_BLOCK)) {
        struct unit u = {
            .file_offset = iter.block.compressed_file_offset,
            .file_length = iter.block.total_size,
            .offset = iter.block.uncompressed_file_offset,
            .length = iter.block.uncompressed_size,
            .check = (uint32_t)iter.stream.flags->check,
        };
        if (w->units.len > UNITS_MOST)
            break;
        if (vector_push(&w->units, u) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int xz_index(struct wrapped *w, struct error **err)
{
    __attribute__((cleanup(index_cleanup))) lzma_index *index = NULL;
    _cleanup_free_ uint8_t *buf = malloc(CHUNK);
    lzma_stream s = LZMA_STREAM_INIT;

    if (!buf || lzma_file_info_decoder(&s, &index, MEMORY_MOST, blk_size(w->file)) != LZMA_OK)
        return wrapped_error(w, -ENOMEM, 0, err);
    int ret = read_index(w, &s, buf, err);
    lzma_end(&s);
    if (ret < 0)
        return ret;
    w->size = lzma_index_uncompressed_size(index);
    ret = take_blocks(w, index);
    return ret < 0 ? wrapped_error(w, ret, 0, err) : 0;
}

/* ---- a block ------------------------------------------------------------------------------------- */

static int decode_block(lzma_block *block, const struct unit *u, const uint8_t *in, uint8_t *out)
{
    size_t in_at = block->header_size, out_at = 0;

    /* What the header leaves open must be what the index says. */
    if (block->uncompressed_size != LZMA_VLI_UNKNOWN && block->uncompressed_size != u->length)
        return -EIO;
    if (lzma_raw_decoder_memusage(block->filters) > MEMORY_MOST)
        return -ENOMEM;
    lzma_ret ret = lzma_block_buffer_decode(block, NULL, in, &in_at, (size_t)u->file_length, out,
                                            &out_at, (size_t)u->length);
    if (ret == LZMA_MEM_ERROR)
        return -ENOMEM;
    return ret == LZMA_OK && out_at == u->length ? 0 : -EIO;
}

static int xz_decode(const struct unit *u, const uint8_t *in, uint8_t *out)
{
    lzma_filter filters[LZMA_FILTERS_MAX + 1];
    lzma_block block = {
        .version = 1,
        .check = (lzma_check)u->check,
        .filters = filters,
        .header_size = lzma_block_header_size_decode(in[0]),
    };

    if (in[0] == 0 || block.header_size > u->file_length)
        return -EIO;
    lzma_ret ret = lzma_block_header_decode(&block, NULL, in);
    if (ret != LZMA_OK)
        return ret == LZMA_MEM_ERROR ? -ENOMEM : -EIO;
    int r = decode_block(&block, u, in, out);
    lzma_filters_free(filters, NULL);
    return r;
}

/* ---- the whole ----------------------------------------------------------------------------------- */

static void xz_end(void *decoder)
{
    lzma_end(decoder);
    free(decoder);
}

static int xz_begin(void **decoder)
{
    lzma_stream *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    lzma_ret ret = lzma_stream_decoder(s, MEMORY_MOST, LZMA_CONCATENATED);
    if (ret != LZMA_OK) {
        xz_end(s);
        return xz_errno(ret);
    }
    *decoder = s;
    return 0;
}

static int xz_step(void *decoder, struct flow *flow)
{
    lzma_stream *s = decoder;

    s->next_in = flow->in;
    s->avail_in = flow->in_len;
    s->next_out = flow->out;
    s->avail_out = flow->out_len;
    lzma_ret ret = lzma_code(s, flow->in_ended ? LZMA_FINISH : LZMA_RUN);
    flow->in = s->next_in;
    flow->in_len = s->avail_in;
    flow->out = s->next_out;
    flow->out_len = s->avail_out;
    if (ret == LZMA_STREAM_END)
        return flow->in_len == 0 && flow->in_ended ? WRAPPED_END : -EIO;
    return ret == LZMA_OK ? 0 : xz_errno(ret);
}

static const struct codec xz_codec = {
    .name = "xz",
    .index = xz_index,
    .decode = xz_decode,
    .begin = xz_begin,
    .step = xz_step,
    .end = xz_end,
};

static bool xz_wraps(const uint8_t *buf, size_t len)
{
    lzma_stream_flags flags;

    return len >= LZMA_STREAM_HEADER_SIZE && lzma_stream_header_decode(&flags, buf) == LZMA_OK;
}

static int xz_open(struct blk_node *n, const void *options, struct error **err)
{
    return wrapped_open(n, &xz_codec, options, err);
}

const struct driver xz_driver = {
    WRAPPED_DRIVER("xz"),
    .wraps = xz_wraps,
    .open = xz_open,
};
