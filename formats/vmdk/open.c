/* Opening: the descriptor, the extents it names, and what must agree before anything is read or written. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vmdk.h"

int vmdk_corrupt(struct vmdk *v, const char *fmt, ...)
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

/* ---- the descriptor ----------------------------------------------------------------------------------- */

static int read_descriptor(struct vmdk *v, uint64_t offset, uint64_t room, struct error **err)
{
    uint64_t size = blk_size(v->file), len = MIN(room, MAX_DESCRIPTOR);

    if (offset > size)
        return error_set(err, EINVAL,
                         "%s: its descriptor at byte %" PRIu64 " is not inside the file",
                         blk_filename(v->file), offset);
    len = MIN(len, size - offset);
    char *text = malloc(len + 1);
    if (!text)
        return error_set(err, ENOMEM, "out of memory");
    int ret = len ? blk_read(v->file, offset, text, len, 0) : 0;
    text[len] = '\0';
    if (ret < 0) {
        free(text);
        return error_set(err, -ret, "%s: could not read its descriptor: %s", blk_filename(v->file),
                         strerror(-ret));
    }
    v->desc_offset = offset;
    v->desc_room = room;
    if (room == UINT64_MAX && !vmdk_looks_like_desc(text, len)) {
        free(text);
        return error_set(
            err, EINVAL,
            "%s: it is no VMDK: neither a sparse extent, nor a descriptor of a version "
            "from 1 to 3",
            blk_filename(v->file));
    }
    return vmdk_desc_parse(&v->desc, blk_filename(v->file), text, len, err);
}

/* ---- extents ------------------------------------------------------------------------------------------- */

struct extent_type {
    const char *name;
    enum extent_kind kind;
};

static const struct extent_type types[] = {
    { "FLAT", EXTENT_FLAT },     { "VMFS", EXTENT_FLAT },       { "ZERO", EXTENT_ZERO },
    { "SPARSE", EXTENT_HOSTED }, { "VMFSSPARSE", EXTENT_COWD }, { "SESPARSE", EXTENT_SE },
};

static int find_type(struct vmdk *v, const struct vmdk_line *line, enum extent_kind *kind,
                     struct error **err)
{
    for (size_t i = 0; i < ARRAY_SIZE(types); i++)
        if (!strcmp(types[i].name, line->type)) {
            *kind = types[i].kind;
            return 0;
        }
    return error_set(err, ENOTSUP,
                     "%s: it has an extent of the type '%s', which is not supported: FLAT, VMFS, "
                     "ZERO, SPARSE, VMFSSPARSE and SESPARSE are",
                     blk_filename(v->file), line->type);
}

static int open_flat(struct vmdk *v, struct vmdk_extent *e, const struct vmdk_line *line,
                     struct error **err)
{
    uint64_t len = line->sectors * SECTOR;

    if (!line->has_offset && !strcmp(line->type, "FLAT"))
        return error_set(err, EINVAL, "%s: its FLAT extent '%s' has no offset",
                         blk_filename(v->file), line->name);
    e->flat_offset = line->offset * SECTOR;
    e->end = e->start + len;
    if (!range_inside(e->flat_offset, len, blk_size(e->file)) &&
        !(node_open_flags(v->node) & (BLK_OPEN_NO_IO | BLK_OPEN_REPAIR)))
        return error_set(err, EINVAL,
                         "%s: its extent '%s' has %" PRIu64 " bytes, but %" PRIu64
                         " at offset %" PRIu64 " are stated: was it truncated?",
                         blk_filename(v->file), line->name, blk_size(e->file), len, e->flat_offset);
    return 0;
}

static int open_kind(struct vmdk *v, struct vmdk_extent *e, const struct vmdk_line *line,
                     struct error **err)
{
    switch (e->kind) {
    case EXTENT_FLAT:
        return open_flat(v, e, line, err);
    case EXTENT_HOSTED:
        return vmdk_sparse_open(v, e, err);
    case EXTENT_COWD:
        return vmdk_cowd_open(v, e, err);
    case EXTENT_SE:
        return vmdk_se_open(v, e, err);
    case EXTENT_ZERO:
        e->end = e->start + line->sectors * SECTOR;
        break;
    }
    return 0;
}

/* The disk goes on where the extents so far end. */
static int add_extent(struct vmdk *v, const struct vmdk_line *line, struct error **err)
{
    struct vmdk_extent e = { .name = line->name, .type = line->type };
    bool embedded = !line->type[0];
    unsigned flags = line->access == ACCESS_RW ? 0 : EXTENT_READ_ONLY;
    int ret = 0;

    e.start = v->extents.len ? v->extents.at[v->extents.len - 1].end : 0;
    e.read_only = line->access != ACCESS_RW;
    e.kind = EXTENT_HOSTED;
    if (!embedded)
        ret = find_type(v, line, &e.kind, err);
    if (ret < 0)
        return ret;
    if (e.start > INT64_MAX - line->sectors * SECTOR)
        return error_set(err, EFBIG, "%s: its extents together are above the limit of 8 EiB",
                         blk_filename(v->file));
    if (embedded)
        e.file = v->file;
    else if (e.kind != EXTENT_ZERO)
        ret = node_open_extent(v->node, line->name, flags, &e.file, err);
    if (ret == 0)
        ret = open_kind(v, &e, line, err);
    if (ret == 0 && e.end > INT64_MAX)
        ret = error_set(err, EFBIG, "%s: its extents together are above the limit of 8 EiB",
                        blk_filename(v->file));
    if (ret == 0 && vector_push(&v->extents, e) < 0)
        ret = error_set(err, ENOMEM, "out of memory");
    if (ret < 0)
        vmdk_extent_free(&e);
    return ret;
}

static int open_extents(struct vmdk *v, struct error **err)
{
    const char *type = v->desc.create_type;
    static const char *const devices[] = {
        "fullDevice",       "partitionedDevice",           "vmfsRaw",
        "vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap", "vmfsRDM",
        "vmfsRDMP",
    };

    for (size_t i = 0; i < ARRAY_SIZE(devices); i++)
        if (!strcmp(type, devices[i]))
            return error_set(err, ENOTSUP,
                             "%s: it is a map of a device (createType \"%s\"), not an image: open "
                             "the device itself",
                             blk_filename(v->file), type);
    if (v->desc.lines.len == 0)
        return error_set(err, EINVAL, "%s: its descriptor names no extents", blk_filename(v->file));
    for (size_t i = 0; i < v->desc.lines.len; i++) {
        int ret = add_extent(v, &v->desc.lines.at[i], err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* One file: a sparse extent with the descriptor inside. Of a split image, one extent can be looked at, too. */
static int open_embedded(struct vmdk *v, bool cowd, struct error **err)
{
    static const struct vmdk_line self = { .access = ACCESS_RW, .type = "" };
    struct vmdk_header h;
    int ret = 0;

    v->desc = (struct vmdk_desc){ .cid = NO_PARENT, .parent_cid = NO_PARENT };
    if (cowd) {
        struct vmdk_extent e = { .name = "", .type = "", .file = v->file };
        ret = vmdk_cowd_open(v, &e, err);
        if (ret == 0 && vector_push(&v->extents, e) < 0)
            ret = error_set(err, ENOMEM, "out of memory");
        if (ret < 0)
            vmdk_extent_free(&e);
        v->embedded = true;
        return ret;
    }
    ret = vmdk_header_read(v->file, 0, &h, err);
    if (ret < 0)
        return ret;
    if (h.desc_offset && (h.desc_offset > INT64_MAX / SECTOR || h.desc_size > INT64_MAX / SECTOR))
        return error_set(err, EINVAL, "%s: descriptorOffset or descriptorSize is above 2^54",
                         blk_filename(v->file));
    if (h.desc_offset && h.desc_size)
        ret = read_descriptor(v, h.desc_offset * SECTOR, h.desc_size * SECTOR, err);
    if (ret < 0)
        return ret;
    if (h.capacity == 0 && v->desc.lines.len)
        return open_extents(v, err);
    v->embedded = true;
    return add_extent(v, &self, err);
}

static int open_content(struct vmdk *v, struct error **err)
{
    uint8_t magic[4] = { 0 };
    int ret = blk_size(v->file) >= 4 ? blk_read(v->file, 0, magic, 4, 0) : 0;

    if (ret < 0)
        return error_set(err, -ret, "%s: could not read it: %s", blk_filename(v->file),
                         strerror(-ret));
    if (load_le32(magic) == VMDK_MAGIC || load_le32(magic) == COWD_MAGIC)
        return open_embedded(v, load_le32(magic) == COWD_MAGIC, err);
    if (blk_size(v->file) > MAX_DESCRIPTOR)
        return error_set(
            err, EINVAL,
            "%s: it is no VMDK: neither a sparse extent, nor a descriptor of at most 1 "
            "MiB",
            blk_filename(v->file));
    ret = read_descriptor(v, 0, UINT64_MAX, err);
    if (ret < 0)
        return ret;
    return open_extents(v, err);
}

/* ---- what may be written ---------------------------------------------------------------------------------- */

static int prepare_extent(struct vmdk *v, struct vmdk_extent *e, struct error **err)
{
    const char *name = e->file ? blk_filename(e->file) : "";

    if (!extent_sparse(e) || e->read_only)
        return 0;
    if (e->kind != EXTENT_HOSTED)
        return error_set(err, ENOTSUP, "%s: it is %s, which can only be opened read-only", name,
                         e->kind == EXTENT_COWD ? "a COW disk" : "an SE sparse disk");
    if (!node_grows(e->file))
        return error_set(err, ENOTSUP,
                         "%s: it cannot grow, so the image can only be opened "
                         "read-only",
                         name);
    if (e->start % e->grain)
        return error_set(err, ENOTSUP,
                         "%s: it begins at byte %" PRIu64
                         " of the disk, which is within a grain: the image can only be opened "
                         "read-only",
                         name, e->start);
    if (e->compressed && !e->markers)
        return error_set(err, ENOTSUP,
                         "%s: its compressed grains have no markers: the image can only be opened "
                         "read-only",
                         name);
    if (e->compressed && v->extents.len > 1)
        return error_set(err, ENOTSUP,
                         "%s: it is compressed and one of several extents: the image can only be "
                         "opened read-only",
                         name);
    if (v->damaged)
        return error_set(
            err, EACCES,
            "%s: the image is damaged and can only be opened read-only: repair it with "
            "img check -r all",
            name);
    e->fresh = MAX(round_up(blk_size(e->file), e->compressed ? SECTOR : e->grain), SECTOR);
    e->extended = blk_size(e->file);
    if (e->tables) {
        e->fresh = e->stream_end;
        return 0;
    }
    return vmdk_note_metadata(v, e) < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

static int prepare_writing(struct vmdk *v, struct error **err)
{
    if (!node_writable(v->node) || (node_open_flags(v->node) & BLK_OPEN_REPAIR))
        return 0;
    for (size_t i = 0; i < v->extents.len; i++) {
        int ret = prepare_extent(v, &v->extents.at[i], err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* ---- the parent ---------------------------------------------------------------------------------------------- */

static int set_parent(struct vmdk *v, struct error **err)
{
    const struct vmdk_desc *d = &v->desc;

    if (d->parent_hint)
        return node_set_backing(v->node, d->parent_hint, "vmdk") < 0
                   ? error_set(err, ENOMEM, "out of memory")
                   : 0;
    if (d->parent_cid != NO_PARENT &&
        !(node_open_flags(v->node) & (BLK_OPEN_NO_IO | BLK_OPEN_NO_BACKING)))
        return error_set(err, EINVAL,
                         "%s: it has a parent (parentCID %08" PRIx32
                         "), but parentFileNameHint does not say which",
                         blk_filename(v->file), d->parent_cid);
    return 0;
}

int vmdk_backing_opened(struct blk_node *n, struct error **err)
{
    struct vmdk *v = node_state(n);
    struct blk_node *parent = node_child(n, EDGE_BACKING);
    const struct vmdk *p = node_state_as(parent, &vmdk_driver);

    if (!p)
        return error_set(err, EINVAL, "%s: its parent '%s' is no VMDK, but %s",
                         blk_filename(v->file), blk_filename(parent), blk_format(parent));
    if (p->desc.cid == v->desc.parent_cid || (node_open_flags(n) & BLK_OPEN_NO_IO))
        return 0;
    return error_set(err, EINVAL,
                     "%s: its parent '%s' has changed since (CID %08" PRIx32
                     ", parentCID is %08" PRIx32
                     "): to read it all the same, name the parent as backing.file.filename",
                     blk_filename(v->file), blk_filename(parent), p->desc.cid, v->desc.parent_cid);
}

/* ---- open and close ------------------------------------------------------------------------------------------ */

static void set_limits(struct vmdk *v)
{
    struct node_limits *l = node_limits(v->node);
    bool encode = v->extents.len == 1 && v->extents.at[0].compressed;
    uint32_t unit = SECTOR;

    for (size_t i = 0; i < v->extents.len; i++)
        if (extent_sparse(&v->extents.at[i]))
            unit = MAX(unit, v->extents.at[i].grain);
    l->unit = unit;
    l->no_encoding = !encode;
    l->must_encode = v->must_encode = encode;
    l->encode_room = ENCODE_ROOM;
}

static void free_all(struct vmdk *v)
{
    for (size_t i = 0; i < v->extents.len; i++)
        vmdk_extent_free(&v->extents.at[i]);
    vector_free(&v->extents);
    vmdk_desc_free(&v->desc);
    pthread_mutex_destroy(&v->cid_lock);
    pthread_mutex_destroy(&v->commit_lock);
    rwlock_destroy(&v->lock);
}

int vmdk_open(struct blk_node *n, const void *options, struct error **err)
{
    struct vmdk *v = node_state(n);

    (void)options;
    v->node = n;
    v->file = node_child(n, EDGE_FILE);
    rwlock_init(&v->lock);
    pthread_mutex_init(&v->commit_lock, NULL);
    pthread_mutex_init(&v->cid_lock, NULL);
    int ret = open_content(v, err);
    if (ret == 0)
        ret = prepare_writing(v, err);
    if (ret == 0)
        ret = set_parent(v, err);
    if (ret < 0) {
        free_all(v);
        return ret;
    }
    node_set_size(n, v->extents.at[v->extents.len - 1].end);
    set_limits(v);
    return 0;
}

/* What was made longer ahead of need, and freed grains at the end; these are sorted from there. */
static void cut_tail(struct vmdk_extent *e)
{
    for (size_t i = 0; i < e->free.len && e->free.at[i] + e->grain == e->fresh; i++)
        e->fresh = e->free.at[i];
    if (blk_size(e->file) > e->fresh)
        (void)blk_resize(e->file, e->fresh, BLK_PREALLOC_OFF, NULL); /* else it stays: a hole */
}

static int by_offset_down(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x > y ? -1 : x < y;
}

static void cut_tails(struct vmdk *v)
{
    for (size_t i = 0; i < v->extents.len; i++) {
        struct vmdk_extent *e = &v->extents.at[i];
        if (!e->fresh || (e->tables && e->log_end != e->fresh))
            continue; /* nothing was written, or the footer is not the end */
        if (e->free.len > 1)
            qsort(e->free.at, e->free.len, sizeof(*e->free.at), by_offset_down);
        cut_tail(e);
    }
}

int vmdk_close(struct blk_node *n, struct error **err)
{
    struct vmdk *v = node_state(n);
    int ret = 0;

    if (node_writable(n) && !(node_open_flags(n) & BLK_OPEN_REPAIR)) {
        ret = vmdk_settle(v);
        if (ret < 0)
            error_set(err, -ret, "%s: could not write its metadata: %s", blk_filename(n),
                      strerror(-ret));
        else
            cut_tails(v);
    }
    free_all(v);
    return ret;
}
