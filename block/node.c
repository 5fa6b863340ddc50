/* The life of a node: made, named, shared, closed. */
#include "node.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static_assert(offsetof(struct blk_node, state) == 0, "node_state() in driver.h relies on this");

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct blk_node *registry; /* under registry_lock */

const char *edge_name(const struct blk_node *n, enum node_edge edge)
{
    if (edge == EDGE_FILE && n->drv->first_edge)
        return n->drv->first_edge;
    if (edge == EDGE_SECOND)
        return n->drv->second_edge ? n->drv->second_edge : "";
    static const char *const names[EDGE_COUNT] = {
        [EDGE_FILE] = "file",
        [EDGE_BACKING] = "backing",
        [EDGE_DATA_FILE] = "data-file",
    };
    return names[edge];
}

struct blk_node *node_new(const struct driver *drv)
{
    struct blk_node *n = calloc(1, sizeof(*n));
    if (!n)
        return NULL;
    n->drv = drv;
    n->state = calloc(1, drv->state_size ? drv->state_size : 1);
    n->name = strdup("");
    n->filename = strdup("");
    if (!n->state || !n->name || !n->filename) {
        free(n->state);
        free(n->name);
        free(n->filename);
        free(n);
        return NULL;
    }
    n->limits = (struct node_limits){ .align = 1, .mem_align = 1 };
    atomic_init(&n->refs, 1);
    gate_init(&n->gate);
    reserve_init(&n->reserve);
    pthread_mutex_init(&n->serial, NULL);
    return n;
}

void node_discard(struct blk_node *n)
{
    if (!n)
        return;
    for (int i = 0; i < EDGE_COUNT; i++)
        blk_close(n->edge[i], NULL);
    for (size_t i = 0; i < n->extents.len; i++)
        blk_close(n->extents.at[i].node, NULL);
    vector_free(&n->extents);
    pthread_mutex_destroy(&n->serial);
    reserve_destroy(&n->reserve);
    gate_destroy(&n->gate);
    free(n->backing_filename);
    free(n->backing_format);
    free(n->backing_resolved);
    free(n->data_filename);
    free(n->filename);
    free(n->name);
    free(n->state);
    free(n);
}

/* ---- names ---------------------------------------------------------------------------------- */

static struct blk_node *find_locked(const char *name)
{
    for (struct blk_node *n = registry; n; n = n->next_named)
        if (!strcmp(n->name, name))
            return n;
    return NULL;
}

int node_register(struct blk_node *n, const char *name, struct error **err)
{
    char *copy = strdup(name);
    if (!copy)
        return error_set(err, ENOMEM, "out of memory");

    pthread_mutex_lock(&registry_lock);
    if (find_locked(name)) {
        pthread_mutex_unlock(&registry_lock);
        free(copy);
        return error_set(err, EEXIST, "node-name '%s' is taken already: choose another", name);
    }
    free(n->name);
    n->name = copy;
    n->next_named = registry;
    registry = n;
    pthread_mutex_unlock(&registry_lock);
    return 0;
}

struct blk_node *node_find(const char *name)
{
    pthread_mutex_lock(&registry_lock);
    struct blk_node *n = find_locked(name);
    if (n)
        blk_ref(n);
    pthread_mutex_unlock(&registry_lock);
    return n;
}

/* Drops one reference; with the last one the node is no longer to be found. */
static bool drop_reference(struct blk_node *n)
{
    pthread_mutex_lock(&registry_lock);
    bool last = atomic_fetch_sub(&n->refs, 1) == 1;
    if (last && n->name[0])
        for (struct blk_node **p = &registry; *p; p = &(*p)->next_named)
            if (*p == n) {
                *p = n->next_named;
                break;
            }
    pthread_mutex_unlock(&registry_lock);
    return last;
}

struct blk_node *blk_ref(struct blk_node *node)
{
    atomic_fetch_add(&node->refs, 1);
    return node;
}

int blk_close(struct blk_node *node, struct error **err)
{
    int ret = 0;

    if (!node || !drop_reference(node))
        return 0;

    if (node->opened) {
        if (!node->read_only) {
            ret = blk_flush(node);
            if (ret < 0)
                error_set(err, -ret, "%s: the newest writes may be lost: %s", node->filename,
                          strerror(-ret));
        }
        if (node->drv->close) {
            int r = node->drv->close(node, ret < 0 ? NULL : err);
            ret = ret < 0 ? ret : r;
        }
    }
    for (int i = 0; i < EDGE_COUNT; i++) {
        int r = blk_close(node->edge[i], ret < 0 ? NULL : err);
        ret = ret < 0 ? ret : r;
        node->edge[i] = NULL;
    }
    for (size_t i = 0; i < node->extents.len; i++) {
        int r = blk_close(node->extents.at[i].node, ret < 0 ? NULL : err);
        ret = ret < 0 ? ret : r;
        node->extents.at[i].node = NULL;
    }
    node_discard(node);
    return ret;
}

/* ---- what a node is ------------------------------------------------------------------------- */

uint64_t blk_size(struct blk_node *node)
{
    return atomic_load(&node->size);
}

const char *blk_format(struct blk_node *node)
{
    return node->drv->name;
}

const char *blk_filename(struct blk_node *node)
{
    return node->filename;
}

const char *blk_node_name(struct blk_node *node)
{
    return node->name;
}

bool blk_read_only(struct blk_node *node)
{
    return node->read_only;
}

bool blk_probed(struct blk_node *node)
{
    return node->probed;
}

struct blk_node *blk_child(struct blk_node *node, const char *edge)
{
    for (int i = 0; i < EDGE_COUNT; i++)
        if (!strcmp(edge_name(node, (enum node_edge)i), edge))
            return node->edge[i];
    for (size_t i = 0; i < node->extents.len; i++)
        if (!strcmp(node->extents.at[i].name, edge))
            return node->extents.at[i].node;
    return NULL;
}

struct blk_node *blk_child_at(struct blk_node *node, unsigned i, const char **name)
{
    for (int e = 0; e < EDGE_COUNT; e++)
        if (node->edge[e] && i-- == 0) {
            if (name)
                *name = edge_name(node, (enum node_edge)e);
            return node->edge[e];
        }
    if (i >= node->extents.len)
        return NULL;
    if (name)
        *name = node->extents.at[i].name;
    return node->extents.at[i].node;
}

int node_add_extent(struct blk_node *n, struct blk_node *extent, struct error **err)
{
    struct extent_edge e = { .node = extent };

    snprintf(e.name, sizeof(e.name), "extents.%zu", n->extents.len);
    if (vector_push(&n->extents, e) < 0) {
        blk_close(extent, NULL);
        return error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

struct blk_node *node_leaf(struct blk_node *n)
{
    while (n->edge[EDGE_FILE])
        n = n->edge[EDGE_FILE];
    return n;
}

void blk_get_limits(struct blk_node *node, struct blk_limits *out)
{
    const struct driver *d = node->drv;
    struct blk_node *data = node->edge[EDGE_DATA_FILE];
    uint32_t unit = node->limits.unit;

    /* A new file reads as zeroes; a device holds what it held. */
    *out = (struct blk_limits){
        .align = node->limits.align,
        .cluster_size = unit,
        .max_compressed = d->encode && !node->limits.no_encoding ? unit : 0,
        .must_compress = node->limits.must_encode,
        .unmap_reads_zero = d->flags & DRIVER_UNMAP_ZERO,
        .new_is_zero = (d->flags & DRIVER_NEW_ZERO) && (d->map_read || node_leaf(node)->grows) &&
                       (!data || node_leaf(data)->grows),
        .backing_allowed = d->flags & DRIVER_BACKING,
    };
}

/* ---- for drivers ---------------------------------------------------------------------------- */

struct blk_node *node_child(struct blk_node *n, enum node_edge edge)
{
    return n->edge[edge];
}

const void *node_state_as(struct blk_node *n, const struct driver *drv)
{
    return n && n->drv == drv ? n->state : NULL;
}

const char *node_final_name(struct blk_node *file)
{
    return file->final_name ? file->final_name : file->filename;
}

struct blk_node *node_create_backing(struct blk_node *file)
{
    return file->create_backing;
}

unsigned node_open_flags(struct blk_node *n)
{
    return n->open_flags;
}

bool node_writable(struct blk_node *n)
{
    return !n->read_only;
}

bool node_direct(struct blk_node *n)
{
    return n->direct;
}

bool node_no_flush(struct blk_node *n)
{
    return n->no_flush;
}

bool node_unmap(struct blk_node *n)
{
    return n->unmap;
}

void node_set_size(struct blk_node *n, uint64_t size)
{
    atomic_store(&n->size, size);
}

void node_set_fixed_size(struct blk_node *n)
{
    n->grows = false;
}

struct node_limits *node_limits(struct blk_node *n)
{
    return &n->limits;
}

static int replace(char **slot, const char *text)
{
    char *copy = text ? strdup(text) : NULL;
    if (text && !copy)
        return -ENOMEM;
    free(*slot);
    *slot = copy;
    return 0;
}

int node_set_backing(struct blk_node *n, const char *filename, const char *format)
{
    int ret = replace(&n->backing_filename, filename);
    return ret < 0 ? ret : replace(&n->backing_format, format);
}

int node_set_data_file(struct blk_node *n, const char *filename)
{
    n->has_data_file = true;
    return replace(&n->data_filename, filename);
}

int node_set_filename(struct blk_node *n, const char *filename)
{
    return replace(&n->filename, filename);
}

void node_set_failed(struct blk_node *n)
{
    atomic_store(&n->failed, true);
}

uint64_t node_epoch(struct blk_node *n)
{
    return gate_epoch(&n->gate);
}

bool node_epoch_passed(struct blk_node *n, uint64_t epoch)
{
    return gate_epoch_passed(&n->gate, epoch);
}
