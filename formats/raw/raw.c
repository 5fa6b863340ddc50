/* The raw format: the disk as it is, or a window of the file below. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "block/driver.h"

extern const struct driver raw_driver;

struct raw_options {
    uint64_t offset, size;
    bool size_given;
};

/* Set by open; offset and windowed never change after. */
struct raw_state {
    uint64_t offset; /* of the window in the file */
    bool windowed;   /* the size was given: it cannot change */
};

static const struct opt_def raw_options[] = {
    { .name = "offset",
      .type = OPT_SIZE,
      .at = offsetof(struct raw_options, offset),
      .def = "0",
      .max = INT64_MAX,
      .help = "where in the file the disk begins" },
    { .name = "size",
      .type = OPT_SIZE,
      .at = offsetof(struct raw_options, size),
      .given = offsetof(struct raw_options, size_given),
      .max = INT64_MAX,
      .help = "size of the disk; without it, up to the end of the file" },
    OPT_END,
};

static struct blk_node *file_of(struct blk_node *n)
{
    return node_child(n, EDGE_FILE);
}

static uint64_t offset_of(struct blk_node *n)
{
    const struct raw_state *s = node_state(n);

    return s->offset;
}

static int raw_open(struct blk_node *n, const void *options, struct error **err)
{
    const struct raw_options *o = options;
    struct raw_state *s = node_state(n);
    uint64_t length = blk_size(file_of(n));

    if (o->offset > length) {
        return error_set(err, EINVAL,
                         "%s: offset %" PRIu64 " lies past the end of the file, which has %" PRIu64
                         " bytes",
                         blk_filename(file_of(n)), o->offset, length);
    }
    if (o->size_given && !range_inside(o->offset, o->size, length)) {
        return error_set(err, EINVAL,
                         "%s: size %" PRIu64 " at offset %" PRIu64
                         " goes past the end of the file, which has %" PRIu64 " bytes",
                         blk_filename(file_of(n)), o->size, o->offset, length);
    }
    s->offset = o->offset;
    s->windowed = o->size_given;
    node_set_size(n, o->size_given ? o->size : length - o->offset);
    return 0;
}

/* Whatever another format claims comes first. */
static int raw_probe(const uint8_t *buf, size_t len, const char *filename)
{
    (void)buf;
    (void)len;
    (void)filename;
    return 1;
}

/* ---- data ----------------------------------------------------------------------------------- */

static int raw_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                      uint64_t len, unsigned flags)
{
    (void)len;
    node_event(file_of(n), EVENT_READ_AIO);
    return blk_readv(file_of(n), offset_of(n) + off, iov, iovcnt, flags);
}

static int raw_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                       uint64_t len, unsigned flags)
{
    (void)len;
    node_event(file_of(n), EVENT_WRITE_AIO);
    return blk_writev(file_of(n), offset_of(n) + off, iov, iovcnt, flags);
}

static int raw_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    return blk_zero(file_of(n), offset_of(n) + off, len, flags);
}

static int raw_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    return blk_discard(file_of(n), offset_of(n) + off, len);
}

static int raw_extents(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                       struct blk_extent *out)
{
    return blk_extents(file_of(n), offset_of(n) + off, len, flags, out);
}

/* ---- control -------------------------------------------------------------------------------- */

static int raw_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc,
                      struct error **err)
{
    const struct raw_state *s = node_state(n);

    if (s->windowed) {
        return error_set(err, ENOTSUP,
                         "%s: a window of a file, opened with the option 'size', cannot be resized",
                         blk_filename(n));
    }
    return blk_resize(file_of(n), s->offset + size, prealloc, err);
}

struct raw_create {
    uint64_t size;
    int preallocation; /* enum blk_prealloc */
};

static const struct opt_choice preallocation_choices[] = {
    { "off", BLK_PREALLOC_OFF },
    { "falloc", BLK_PREALLOC_FALLOC },
    { "full", BLK_PREALLOC_FULL },
    { NULL, 0 },
};

/* The rest (nocow, extent_size_hint) is the file's. */
static const struct opt_def raw_create_options[] = {
    { .name = "size",
      .type = OPT_SIZE,
      .at = offsetof(struct raw_create, size),
      .max = INT64_MAX,
      .help = "size of the disk" },
    { .name = "preallocation",
      .type = OPT_ENUM,
      .at = offsetof(struct raw_create, preallocation),
      .choices = preallocation_choices,
      .help = "space to set aside: off, falloc (reserved), full (written)" },
    OPT_END,
};

static int raw_create(struct blk_node *file, const void *options, struct error **err)
{
    const struct raw_create *o = options;

    return blk_resize(file, o->size, (enum blk_prealloc)o->preallocation, err);
}

static int raw_measure(const void *create_options, uint64_t size, struct blk_node *src,
                       struct blk_measure *out, struct error **err)
{
    (void)create_options;
    (void)err;
    out->required = out->fully_allocated = src ? blk_size(src) : size;
    return 0;
}

const struct driver raw_driver = {
    .name = "raw",
    .kind = BLK_FORMAT,
    .flags = DRIVER_PARALLEL | DRIVER_UNMAP_ZERO | DRIVER_NEW_ZERO,
    .state_size = sizeof(struct raw_state),
    .options = raw_options,
    .options_size = sizeof(struct raw_options),
    .create_options = raw_create_options,
    .create_options_size = sizeof(struct raw_create),
    .probe = raw_probe,
    .open = raw_open,
    .create = raw_create,
    .preadv = raw_preadv,
    .pwritev = raw_pwritev,
    .zero = raw_zero,
    .discard = raw_discard,
    .extents = raw_extents,
    .resize = raw_resize,
    .measure = raw_measure,
};
