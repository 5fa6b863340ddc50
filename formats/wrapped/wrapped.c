#include "wrapped.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/macros.h"

const struct opt_def wrapped_options[] = {
    { .name = "max-size",
      .type = OPT_SIZE,
      .at = offsetof(struct wrapped_options, max_size),
      .def = "16T",
      .min = 1,
      .max = INT64_MAX,
      .help = "what decodes to more than this is refused" },
    OPT_END,
};

int wrapped_error(const struct wrapped *w, int code, uint64_t at, struct error **err)
{
    const char *name = blk_filename(w->file), *codec = w->codec->name;

    switch (code) {
    case -EIO:
        return error_set(err, EIO,
                         "%s: its %s data are damaged near byte %" PRIu64
                         " (if it is a raw disk, -f raw says so)",
                         name, codec, at);
    case -ENODATA:
        return error_set(
            err, EIO, "%s: its %s data end too early: the file is cut short at %" PRIu64 " bytes",
            name, codec, at);
    case -ENOMEM:
        return error_set(
            err, ENOMEM,
            "%s: there is no memory to decode it, or it wants a %s window of more than "
            "%d MiB",
            name, codec, MEMORY_MOST >> 20);
    case -EFBIG:
        return error_set(err, EFBIG,
                         "%s: it decodes to more than the %" PRIu64
                         " bytes that the option max-size of driver %s allows",
                         name, w->most, codec);
    default:
        return error_set(err, -code, "%s: cannot be read at byte %" PRIu64 ": %s", name, at,
                         strerror(-code));
    }
}

void wrapped_warn(struct wrapped *w, const struct error *err)
{
    const char *name = blk_filename(w->file), *text = error_text(err);
    size_t n = strlen(name);

    if (!err || atomic_exchange(&w->warned, true))
        return;
    /* A warning begins with the name by itself. */
    if (!strncmp(text, name, n) && !strncmp(text + n, ": ", 2))
        text += n + 2;
    node_warn(w->node, "%s", text);
}

/* What index found is used only where it is no burden. */
static void choose_way(struct wrapped *w)
{
    bool fit = w->size != WRAPPED_UNKNOWN && w->units.len <= UNITS_MOST;

    for (size_t i = 0; fit && i < w->units.len; i++)
        fit = w->units.at[i].length <= UNIT_MOST && w->units.at[i].file_length <= UNIT_MOST;
    if (!fit)
        vector_free(&w->units);
}

static int find_size(struct wrapped *w, struct error **err)
{
    int ret = w->codec->index ? w->codec->index(w, err) : 0;

    if (ret < 0)
        return ret;
    if (w->size != WRAPPED_UNKNOWN && w->size > w->most)
        return wrapped_error(w, -EFBIG, 0, err);
    choose_way(w);
    if (w->units.len > 0) {
        ret = units_begin(w);
        return ret < 0 ? wrapped_error(w, ret, 0, err) : 0;
    }
    if (w->size == 0)
        return 0;
    ret = spool_begin(w, err);
    if (ret == 0 && w->size == WRAPPED_UNKNOWN) {
        ret = spool_reach(w, UINT64_MAX, err);
        w->size = atomic_load(&w->spool.decoded);
    }
    return ret;
}

static void release(struct wrapped *w)
{
    units_end(w);
    spool_end(w);
    vector_free(&w->units);
}

int wrapped_open(struct blk_node *n, const struct codec *codec, const void *options,
                 struct error **err)
{
    const struct wrapped_options *o = options;
    struct wrapped *w = node_state(n);

    w->codec = codec;
    w->node = n;
    w->file = node_child(n, EDGE_FILE);
    w->size = WRAPPED_UNKNOWN;
    w->most = o->max_size;
    w->spool.fd = -1;
    if (node_writable(n))
        return error_set(err, EACCES, "%s: it is compressed as a whole, so it can only be read",
                         blk_filename(w->file));
    int ret = find_size(w, err);
    if (ret < 0) {
        release(w);
        return ret;
    }
    node_set_size(n, w->size);
    return 0;
}

int wrapped_close(struct blk_node *n, struct error **err)
{
    (void)err;
    release(node_state(n));
    return 0;
}

int wrapped_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                   uint64_t len, unsigned flags)
{
    struct wrapped *w = node_state(n);

    if (flags & BLK_NOWAIT)
        return -EAGAIN;
    return w->units.len > 0 ? units_read(w, off, iov, iovcnt, len)
                            : spool_read(w, off, iov, iovcnt, len);
}

int wrapped_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                    struct blk_extent *out)
{
    struct wrapped *w = node_state(n);
    uint64_t decoded = atomic_load(&w->spool.decoded);
    bool data = true;

    (void)flags;
    out->length = len;
    if (w->units.len == 0 && off < decoded)
        out->length = spool_run(w, off, MIN(len, decoded - off), &data);
    out->flags = BLK_EXT_ALLOCATED | (data ? BLK_EXT_DATA : BLK_EXT_ZERO);
    return 0;
}
