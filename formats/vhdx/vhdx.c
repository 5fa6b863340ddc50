/* The driver record; opening, closing and describing an image. */
#include "vhdx.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"

enum {
    MIN_BITS_PAGES = 256,
    MAX_BITS_PAGES = 8192
}; /* 32 MiB of sector bitmaps: 128 GiB of disk */

int vhdx_corrupt(struct vhdx *v, const char *fmt, ...)
{
    _cleanup_free_ char *text = NULL;
    va_list args;

    if (atomic_exchange(&v->corrupt_seen, true))
        return -EIO; /* the first finding tells enough */
    va_start(args, fmt);
    if (vasprintf(&text, fmt, args) < 0)
        text = NULL;
    va_end(args);
    node_warn(v->node, "the image is corrupt: %s%s", text ? text : "",
              node_writable(v->node) ? "; no more is written to it, see img check" : "");
    if (node_writable(v->node))
        node_set_failed(v->node);
    return -EIO;
}

int vhdx_read(struct vhdx *v, uint64_t offset, void *buf, size_t len)
{
    return vhdx_replayed_read(v->file, &v->headers.current, &v->replay, offset, buf, len);
}

/* ---- opening ------------------------------------------------------------------------------------------ */

static int check_signature(struct vhdx *v, struct error **err)
{
    uint8_t b[8] = { 0 };
    int ret = blk_size(v->file) < VHDX_MIB ? 0 : blk_read(v->file, 0, b, sizeof(b), 0);

    if (ret < 0)
        return error_set(err, -ret, "%s: could not read the file's signature: %s",
                         blk_filename(v->file), strerror(-ret));
    if (memcmp(b, SIG_FILE, sizeof(b)) != 0)
        return error_set(err, EINVAL,
                         "%s: not a VHDX image: it has less than 1 MiB or no signature 'vhdxfile'",
                         blk_filename(v->file));
    return 0;
}

/* A log that must be replayed: in place when the image is open for writing, else in memory. */
static int read_log(struct vhdx *v, struct error **err)
{
    v->dirty = !guid_zero(&v->headers.current.log);
    if (!v->dirty)
        return 0;
    int ret = vhdx_log_find(v->file, &v->headers.current, &v->replay, err);
    if (ret < 0 || !node_writable(v->node))
        return ret;
    ret = vhdx_replay(v->file, &v->headers, &v->replay, err);
    vhdx_replay_free(&v->replay);
    memset(&v->replay, 0, sizeof(v->replay));
    v->dirty = ret < 0;
    return ret;
}

static bool is_metadata(const struct vhdx *v, const struct vhdx_change *c)
{
    uint64_t end = c->offset + c->length;

    if (c->offset < VHDX_MIB)
        return true;
    for (size_t i = 0; i < v->regions.all.len; i++) {
        const struct vhdx_place *p = &v->regions.all.at[i].place;
        if (c->offset >= p->offset && end <= p->offset + p->length)
            return true;
    }
    return false;
}

static int by_offset(const void *a, const void *b)
{
    const struct vhdx_place *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* A place of the sorted list lies in the block at host. */
static bool hits(const struct vhdx_place *at, size_t n, uint64_t host, uint64_t len)
{
    size_t low = 0, high = n;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (at[mid].offset + at[mid].length <= host)
            low = mid + 1;
        else
            high = mid;
    }
    return low < n && at[low].offset < host + len;
}

/* Guest data is read from the file as it is: a log that changes it can be replayed in place only. */
static int check_replay(struct vhdx *v, struct error **err)
{
    VECTOR(struct vhdx_place) loose = VECTOR_INIT;
    int ret = 0;

    for (size_t i = 0; i < v->replay.changes.len && ret == 0; i++) {
        const struct vhdx_change *c = &v->replay.changes.at[i];
        uint64_t piece = c->zero ? c->length : VHDX_PAGE;
        if (!is_metadata(v, c))
            ret = vector_push(&loose, (struct vhdx_place){ c->offset, piece });
    }
    if (ret == 0 && loose.len > 1)
        qsort(loose.at, loose.len, sizeof(*loose.at), by_offset);
    /* what overlaps becomes one, so that the ends are in order, too */
    size_t n = 0;
    for (size_t i = 0; i < loose.len; i++) {
        struct vhdx_place *p = &loose.at[i], *last = n ? &loose.at[n - 1] : NULL;
        if (last && p->offset <= last->offset + last->length)
            last->length = MAX(last->length, p->offset + p->length - last->offset);
        else
            loose.at[n++] = *p;
    }
    for (uint64_t b = 0; ret == 0 && n > 0 && b << v->block_bits < v->meta.size; b++) {
        uint64_t entry = v->bat[bat_index(v, b)];
        if (entry_stored(entry) && hits(loose.at, n, entry & BAT_OFFSET, v->meta.block_size))
            ret = -ENOTSUP;
    }
    vector_free(&loose);
    if (ret == -ENOTSUP)
        error_set(err, ENOTSUP,
                  "%s: its log changes guest data, which can only be replayed when it is opened "
                  "for writing",
                  blk_filename(v->file));
    return ret < 0 && ret != -ENOTSUP ? error_set(err, -ret, "out of memory") : ret;
}

static int make_cache(struct vhdx *v, struct error **err)
{
    if (!v->differencing || v->bits)
        return 0;
    uint64_t pages = (v->meta.size >> v->sector_bits) / (VHDX_PAGE * 8) + 1;
    unsigned count = (unsigned)MIN(MAX(pages, (uint64_t)MIN_BITS_PAGES), (uint64_t)MAX_BITS_PAGES);
    int ret = table_cache_new(&v->bits, v->file, &v->lock, VHDX_PAGE, count, EVENT_L2_LOAD,
                              EVENT_L2_UPDATE);
    return ret < 0 ? error_set(err, -ret, "out of memory for sector bitmaps") : 0;
}

static int prepare_writing(struct vhdx *v, struct error **err)
{
    _cleanup_free_ char *what = NULL;

    v->writing = false;
    if (!node_writable(v->node) || (node_open_flags(v->node) & BLK_OPEN_REPAIR))
        return 0;
    int ret = vhdx_space_build(v, &what);
    if (ret < 0)
        return error_set(err, -ret, "%s: the image is corrupt: %s: see img check",
                         blk_filename(v->file), what ? what : strerror(-ret));
    v->writing = true;
    return vhdx_guid_new(&v->next_data_write) < 0
               ? error_set(err, EIO, "no random numbers for a GUID")
               : 0;
}

static void forget(struct vhdx *v)
{
    vhdx_replay_free(&v->replay);
    vector_free(&v->regions.all);
    free(v->meta.parent);
    memset(&v->replay, 0, sizeof(v->replay));
    memset(&v->regions, 0, sizeof(v->regions));
    memset(&v->meta, 0, sizeof(v->meta));
    v->freed.len = v->quarantine.len = 0;
    atomic_store(&v->corrupt_seen, false);
    if (v->bits) {
        WRLOCK_SCOPE(&v->lock);
        table_cache_clear(v->bits);
    }
}

/* Only to be described: the BAT can be large, and is left alone. */
static bool no_bat(struct vhdx *v)
{
    return (node_open_flags(v->node) & BLK_OPEN_NO_IO) && !node_writable(v->node);
}

int vhdx_load(struct vhdx *v, struct error **err)
{
    forget(v);
    int ret = check_signature(v, err);
    if (ret == 0)
        ret = vhdx_headers_read(v->file, &v->headers, err);
    if (ret == 0)
        ret = read_log(v, err);
    if (ret == 0)
        ret = vhdx_regions_read(v, err);
    if (ret == 0)
        ret = vhdx_metadata_read(v, err);
    if (ret == 0)
        ret = vhdx_bat_check(v, err);
    if (ret < 0 || no_bat(v))
        return ret;
    ret = vhdx_bat_load(v, err);
    if (ret == 0 && v->dirty)
        ret = check_replay(v, err);
    if (ret == 0)
        ret = make_cache(v, err);
    return ret == 0 ? prepare_writing(v, err) : ret;
}

static void free_all(struct vhdx *v)
{
    forget(v);
    table_cache_free(v->bits);
    free(v->bat);
    bitmap_free(&v->bat_dirty);
    bitmap_free(&v->used);
    vector_free(&v->freed);
    vector_free(&v->quarantine);
    pthread_mutex_destroy(&v->commit_lock);
    pthread_mutex_destroy(&v->session_lock);
    rwlock_destroy(&v->lock);
}

static int vhdx_open(struct blk_node *n, const void *options, struct error **err)
{
    struct vhdx *v = node_state(n);

    (void)options;
    v->node = n;
    v->file = node_child(n, EDGE_FILE);
    v->grows = node_grows(v->file);
    rwlock_init(&v->lock);
    pthread_mutex_init(&v->commit_lock, NULL);
    pthread_mutex_init(&v->session_lock, NULL);
    int ret = vhdx_load(v, err);
    if (ret == 0 && v->differencing && node_set_backing(n, v->meta.parent, "vhdx") < 0)
        ret = error_set(err, ENOMEM, "out of memory");
    if (ret < 0) {
        free_all(v);
        return ret;
    }
    node_set_size(n, v->meta.size);
    node_limits(n)->unit = v->meta.block_size;
    node_limits(n)->no_encoding = true;
    return 0;
}

/* The parent must be what it was when this image was made: its data write GUID says so. */
static int vhdx_backing_opened(struct blk_node *n, struct error **err)
{
    struct vhdx *v = node_state(n);
    struct blk_node *backing = node_child(n, EDGE_BACKING);
    const struct vhdx *parent = node_state_as(backing, &vhdx_driver);
    char is[VHDX_GUID_TEXT], wanted[VHDX_GUID_TEXT];

    if (!parent)
        return error_set(err, EINVAL, "%s: its parent '%s' is not a VHDX image", blk_filename(n),
                         blk_filename(backing));
    if (parent->meta.logical != v->meta.logical)
        return error_set(
            err, EINVAL,
            "%s: its parent '%s' has logical sectors of %" PRIu32 " bytes, it has such of %" PRIu32,
            blk_filename(n), blk_filename(backing), parent->meta.logical, v->meta.logical);
    for (unsigned i = 0; i < v->meta.linkages; i++)
        if (guid_equal(&v->meta.linkage[i], &parent->headers.current.data_write)) {
            int ret = v->writing && parent->writing ? vhdx_expect_parent(v, parent) : 0;
            return ret < 0 ? error_set(err, -ret, "%s: could not change its parent locator: %s",
                                       blk_filename(n), strerror(-ret))
                           : 0;
        }
    vhdx_guid_print(&parent->headers.current.data_write, is);
    vhdx_guid_print(&v->meta.linkage[0], wanted);
    return error_set(err, EINVAL,
                     "%s: its parent '%s' was written to since this image was made: its data write "
                     "GUID is %s, not %s",
                     blk_filename(n), blk_filename(backing), is, wanted);
}

/* ---- closing -------------------------------------------------------------------------------------------- */

/* What the file has behind all that is in use. Nothing depends on it: a failure is none. */
static void trim(struct vhdx *v)
{
    uint64_t end = vhdx_space_end(v) * VHDX_MIB;

    if (v->trim && v->grows && end < blk_size(v->file))
        (void)blk_resize(v->file, end, BLK_PREALLOC_OFF, NULL);
}

static int vhdx_close(struct blk_node *n, struct error **err)
{
    struct vhdx *v = node_state(n);
    int ret = 0;

    if (v->writing && atomic_load(&v->session)) {
        ret = vhdx_settle(v);
        if (ret == 0)
            ret = vhdx_log_close(v);
        if (ret < 0)
            error_set(err, -ret, "%s: could not write its metadata: %s", blk_filename(n),
                      strerror(-ret));
        else
            trim(v);
    }
    free_all(v);
    return ret;
}

static int vhdx_flush(struct blk_node *n)
{
    return vhdx_commit(node_state(n), true);
}

/* ---- info ------------------------------------------------------------------------------------------------ */

static int vhdx_info(struct blk_node *n, struct blk_info *out, struct error **err)
{
    const struct vhdx *v = node_state(n);

    (void)err;
    out->cluster_size = v->meta.block_size;
    out->dirty = v->dirty;
    out->corrupt = atomic_load(&v->corrupt_seen);
    return 0;
}

static int vhdx_probe(const uint8_t *buf, size_t len, const char *filename)
{
    (void)filename;
    return len >= 8 && !memcmp(buf, SIG_FILE, 8) ? 100 : 0;
}

const struct driver vhdx_driver = {
    .name = "vhdx",
    .kind = BLK_FORMAT,
    .flags = DRIVER_PARALLEL | DRIVER_BACKING | DRIVER_KNOWS_BACKING | DRIVER_UNMAP_ZERO |
             DRIVER_NEW_ZERO,
    .state_size = sizeof(struct vhdx),
    .create_options = vhdx_create_table,
    .create_options_size = sizeof(struct vhdx_create_options),
    .probe = vhdx_probe,
    .open = vhdx_open,
    .backing_opened = vhdx_backing_opened,
    .close = vhdx_close,
    .create = vhdx_create,
    .check_create = vhdx_check_create,
    .flush = vhdx_flush,
    .map_read = vhdx_map_read,
    .write_begin = vhdx_write_begin,
    .write_end = vhdx_write_end,
    .zero_range = vhdx_zero_range,
    .discard_range = vhdx_discard_range,
    .resize = vhdx_resize,
    .make_empty = vhdx_make_empty,
    .check = vhdx_check,
    .info = vhdx_info,
    .measure = vhdx_measure,
};
