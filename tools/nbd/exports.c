/* Images as exports: what the options say about opening, and what is found in a folder. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/options.h"
#include "nbd.h"
#include "partitions/partitions.h"
#include "tools/describe.h"
#include "tools/overlay.h"
#include "tools/window.h"

/* ---- opening ------------------------------------------------------------------------------------------ */

static bool partition_number(const char *text, unsigned *out, struct error **err)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    *out = (unsigned)n;
    if (*text >= '1' && *text <= '9' && !*end && n <= PARTITION_MOST)
        return true;
    error_set(err, EINVAL, "--partition '%s': it is a number from 1 to %d", text, PARTITION_MOST);
    return false;
}

/* The image with all that lies on top of it. */
static json_t *describe(const char *name, const struct args *a, struct error **err)
{
    unsigned number = 0;
    _cleanup_free_ char *disk = a->image_opts ? NULL : window_split(name, &number);

    if (a->partition && !partition_number(a->partition, &number, err))
        return NULL;
    json_t *desc = describe_image(disk ? disk : name, a->image_opts, err);
    if (!desc)
        return NULL;
    if (a->format && !json_object_get(desc, "driver"))
        json_object_set_new(desc, "driver", json_string(a->format));
    if (a->detect_zeroes)
        json_object_set_new(desc, "detect-zeroes", json_string(a->detect_zeroes));
    if (a->discard)
        json_object_set_new(desc, "discard", json_string(a->discard));
    describe_push_filename_down(desc);
    if (number)
        desc = window_on_partition(desc, number, err);
    if (desc && a->offset)
        desc = window_describe(desc, a->offset, 0, err);
    return desc;
}

static int open_described(json_t *desc, const struct args *a, bool read_only, const char *node_name,
                          struct blk_node **out, struct error **err)
{
    unsigned flags = read_only ? 0 : BLK_OPEN_RDWR | (a->grow ? BLK_OPEN_RESIZE : 0);

    if (a->snapshot)
        return overlay_open(desc, a->cache, BLK_OPEN_RDWR | (a->grow ? BLK_OPEN_RESIZE : 0), out,
                            err);
    _cleanup_free_ char *text = json_dumps(desc, JSON_COMPACT);
    if (!text)
        return error_set(err, ENOMEM, "out of memory");
    struct blk_open_args open = {
        .cache = a->cache, .node_name = node_name, .image_opts = true, .flags = flags
    };
    return blk_open(text, &open, out, err);
}

/* It is never made smaller. */
static int grow(struct blk_node *node, uint64_t size, struct error **err)
{
    return blk_size(node) < size ? blk_resize(node, size, BLK_PREALLOC_OFF, err) : 0;
}

/* Windows have no snapshots; the disk below them has. */
static struct blk_node *below_windows(struct blk_node *node)
{
    struct blk_node *child;

    while (strcmp(blk_format(node), "raw") == 0 && (child = blk_child(node, "file")) &&
           blk_child_at(child, 0, NULL))
        node = child;
    return node;
}

/* "ID_OR_NAME" or "snapshot.id=ID,snapshot.name=NAME". */
static int view_snapshot(struct blk_node *node, const char *what, struct error **err)
{
    if (strncmp(what, "snapshot.", 9) == 0) {
        _cleanup_json_ json_t *o = opts_parse_keyval(what, NULL, err);
        json_t *s = o ? json_object_get(o, "snapshot") : NULL;
        if (!o)
            return -EINVAL;
        return blk_snapshot_view(node, json_string_value(json_object_get(s, "id")),
                                 json_string_value(json_object_get(s, "name")), err);
    }
    if (blk_snapshot_view(node, what, NULL, NULL) == 0)
        return 0;
    return blk_snapshot_view(node, NULL, what, err);
}

/* ---- partitions ----------------------------------------------------------------------------------------- */

/* A window of the node that is served already, found by its name: both see each other's writes at once. */
static int add_partition(struct nbd_server *s, const struct nbd_export *disk,
                         const struct partition *p, struct error **err)
{
    _cleanup_free_ char *name = NULL;
    _cleanup_json_ json_t *desc =
        json_pack("{s:s, s:I, s:I, s:s}", "driver", "raw", "offset", (json_int_t)p->start, "size",
                  (json_int_t)p->size, "file", blk_node_name(disk->node));
    _cleanup_free_ char *text = desc ? json_dumps(desc, JSON_COMPACT) : NULL;
    struct blk_open_args open = { .image_opts = true,
                                  .flags = disk->read_only ? 0 : BLK_OPEN_RDWR };
    struct nbd_export x = *disk;

    if (!text || asprintf(&name, "%s/%u", disk->name, p->number) < 0)
        return error_set(err, ENOMEM, "out of memory");
    int ret = blk_open(text, &open, &x.node, err);
    if (ret < 0)
        return ret;
    x.name = name;
    x.description = p->label[0] ? p->label : disk->description;
    ret = nbd_server_add(s, &x, err);
    if (ret < 0)
        blk_close(x.node, NULL);
    return ret;
}

/* With serve, partition 1 of NAME is NAME/1. A disk whose table is damaged is served as it is. */
static void add_partitions(struct nbd_server *s, const struct nbd_export *disk)
{
    struct partition_table table = { 0 };
    struct error *err = NULL;

    if (!blk_node_name(disk->node)[0]) /* with -s it has none */
        return;
    if (partitions_read(disk->node, &table, &err) < 0)
        complain_error(&err, "no partitions of '%s'", disk->name);
    for (size_t i = 0; i < table.count; i++) {
        const struct partition *p = &table.at[i];
        if (!p->outside && !p->extended && add_partition(s, disk, p, &err) < 0)
            complain_error(&err, "partition %u of '%s' is left out", p->number, disk->name);
    }
    partitions_free(&table);
}

static int add_image(struct nbd_server *s, const char *file, const char *name, bool read_only,
                     const struct args *a, struct error **err)
{
    struct blk_node *node = NULL;
    static unsigned disks;
    char node_name[32];

    snprintf(node_name, sizeof(node_name), "disk-%u", disks++);
    read_only |= a->read_only || a->load_snapshot;
    _cleanup_json_ json_t *desc = describe(file, a, err);
    int ret = desc ? open_described(desc, a, read_only, a->serve ? node_name : NULL, &node, err)
                   : -EINVAL;
    if (ret == 0 && a->grow && !read_only)
        ret = grow(node, a->grow, err);
    if (ret == 0 && a->load_snapshot)
        ret = view_snapshot(below_windows(node), a->load_snapshot, err);
    struct nbd_export x = {
        .name = name,
        .description = a->description,
        .node = node,
        .read_only = read_only,
        .allocation_depth = a->allocation_depth,
        .bitmaps = a->bitmaps.at,
    };
    if (ret == 0)
        ret = nbd_server_add(s, &x, err);
    if (ret < 0) {
        blk_close(node, NULL);
        error_prefix(err, "%s", file);
    } else if (a->serve) {
        add_partitions(s, &x);
    }
    return ret;
}

/* ---- folders -------------------------------------------------------------------------------------------- */

/* An image is a file that a format knows by its content, or that is called raw, img or iso. */
static bool looks_like_image(const char *path)
{
    const char *dot = strrchr(path, '.');
    struct stat st;

    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    if (dot && (!strcmp(dot, ".raw") || !strcmp(dot, ".img") || !strcmp(dot, ".iso")))
        return true;
    struct blk_open_args open = { .flags = BLK_OPEN_SHARED | BLK_OPEN_NO_IO | BLK_OPEN_NO_BACKING |
                                           BLK_OPEN_QUIET };
    struct blk_node *node;
    if (blk_open(path, &open, &node, NULL) < 0)
        return false;
    bool known = strcmp(blk_format(node), "raw") != 0;
    blk_close(node, NULL);
    return known;
}

static int visible(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

static int add_folder(struct nbd_server *s, const char *folder, bool read_only,
                      const struct args *a, struct error **err)
{
    struct dirent **list;
    int n = scandir(folder, &list, visible, alphasort), added = 0;

    if (n < 0)
        return error_set(err, errno, "%s: %s", folder, strerror(errno));
    for (int i = 0; i < n; i++) {
        _cleanup_free_ char *path = NULL;
        struct error *why = NULL;
        if (asprintf(&path, "%s/%s", folder, list[i]->d_name) < 0)
            path = NULL;
        if (path && looks_like_image(path)) {
            if (add_image(s, path, list[i]->d_name, read_only, a, &why) == 0)
                added++;
            else
                complain_error(&why, "left out");
        }
        free(list[i]);
    }
    free(list);
    return added > 0 ? 0 : error_set(err, ENOENT, "%s: there is no image in it", folder);
}

/* ---- all that is named ------------------------------------------------------------------------------------ */

static const char *last_part(const char *name)
{
    const char *slash = strrchr(name, '/');
    return slash && slash[1] ? slash + 1 : name;
}

/* "[NAME=]IMAGE": a name has no slash, and a file called so comes first. */
static int add_named(struct nbd_server *s, const char *word, bool read_only, const struct args *a,
                     struct error **err)
{
    struct stat st;
    size_t n = strcspn(word, "=/");

    if (stat(word, &st) == 0 && S_ISDIR(st.st_mode))
        return add_folder(s, word, read_only, a, err);
    if (a->image_opts || word[n] != '=' || n == 0 || stat(word, &st) == 0 ||
        !strncmp(word, "json:", 5))
        return add_image(s, word, last_part(word), read_only, a, err);
    _cleanup_free_ char *name = strndup(word, n);
    return name ? add_image(s, word + n + 1, name, read_only, a, err)
                : error_set(err, ENOMEM, "out of memory");
}

int exports_add(struct nbd_server *s, const struct args *a, struct error **err)
{
    int ret = 0;

    if (!a->serve)
        return add_image(s, a->images.at[0], a->export_name ? a->export_name : "", false, a, err);
    for (size_t i = 0; i < a->images.len && ret == 0; i++)
        ret = add_named(s, a->images.at[i], false, a, err);
    for (size_t i = 0; i < a->read_only_images.len && ret == 0; i++)
        ret = add_named(s, a->read_only_images.at[i], true, a, err);
    return ret;
}
