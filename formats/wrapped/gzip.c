/* gzip: one or more members, each a stream of its own that nothing tells the length of. */
#include <errno.h>
#include <isa-l/igzip_lib.h>
#include <stdlib.h>
#include <string.h>

#include "base/iszero.h"
#include "wrapped.h"

extern const struct driver gzip_driver;

enum place { MEMBER, BETWEEN, PADDING };

struct gzip {
    struct inflate_state inflate;
    enum place place;
    uint8_t head[2]; /* BETWEEN: what came so far of the next member's magic */
    unsigned have;
};

static void start_member(struct gzip *g)
{
    isal_inflate_init(&g->inflate);
    g->inflate.crc_flag = ISAL_GZIP; /* headers and checksums are its own business */
    g->place = MEMBER;
}

static int gzip_begin(void **decoder)
{
    struct gzip *g = calloc(1, sizeof(*g));

    if (!g)
        return -ENOMEM;
    start_member(g);
    *decoder = g;
    return 0;
}

static int inflate_some(struct gzip *g, struct flow *flow)
{
    struct inflate_state *s = &g->inflate;

    s->next_in = (uint8_t *)(uintptr_t)flow->in;
    s->avail_in = (uint32_t)flow->in_len;
    s->next_out = flow->out;
    s->avail_out = (uint32_t)flow->out_len;
    int ret = isal_inflate(s);
    flow->in += flow->in_len - s->avail_in;
    flow->in_len = s->avail_in;
    flow->out = s->next_out;
    flow->out_len = s->avail_out;
    if (ret != ISAL_DECOMP_OK && ret != ISAL_END_INPUT)
        return -EIO;
    if (s->block_state == ISAL_BLOCK_FINISH) {
        g->place = BETWEEN;
        g->have = 0;
    }
    return 0;
}

/* Behind a member there is another one, or zeroes as tapes leave them, or the end. */
static int next_member(struct gzip *g, struct flow *flow)
{
    while (flow->in_len > 0 && g->have < 2) {
        g->head[g->have++] = *flow->in++;
        flow->in_len--;
    }
    if (g->have == 0 && flow->in_ended)
        return WRAPPED_END;
    if (g->have > 0 && is_zero(g->head, g->have)) {
        g->place = PADDING;
        return 0;
    }
    if (g->have < 2)
        return flow->in_ended ? -ENODATA : 0;
    if (g->head[0] != 0x1f || g->head[1] != 0x8b)
        return -EIO;
    start_member(g);
    struct flow magic = { .in = g->head, .in_len = 2, .out = flow->out, .out_len = flow->out_len };
    return inflate_some(g, &magic);
}

static int gzip_step(void *decoder, struct flow *flow)
{
    struct gzip *g = decoder;

    if (g->place == MEMBER)
        return inflate_some(g, flow);
    if (g->place == BETWEEN)
        return next_member(g, flow);
    if (!is_zero(flow->in, flow->in_len))
        return -EIO;
    flow->in += flow->in_len;
    flow->in_len = 0;
    return flow->in_ended ? WRAPPED_END : 0;
}

static const struct codec gzip_codec = {
    .name = "gzip",
    .begin = gzip_begin,
    .step = gzip_step,
    .end = free,
};

static bool gzip_wraps(const uint8_t *buf, size_t len)
{
    /* deflate, and no flag that is not defined */
    return len >= 18 && buf[0] == 0x1f && buf[1] == 0x8b && buf[2] == 8 && !(buf[3] & 0xe0);
}

static int gzip_open(struct blk_node *n, const void *options, struct error **err)
{
    return wrapped_open(n, &gzip_codec, options, err);
}

const struct driver gzip_driver = {
    WRAPPED_DRIVER("gzip"),
    .wraps = gzip_wraps,
    .open = gzip_open,
};
