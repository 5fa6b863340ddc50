/* Building the graph: from a name or a description to an open node with all that it rests on.
 *
 * Every spelling becomes one JSON object first (describe_*), and open_described turns that object
 * into nodes, depth first: the "file" edge, the node itself, then its backing edge. A node inherits
 * from the one above it what `struct inherit` says.
 *
 * References that an image states itself (backing files, data files, extents) pass through open_reference,
 * which asks follow.c whether the image may reach that far.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "node.h"

/* Each level holds a descriptor and a stack frame. */
#define MAX_CHAIN   1024
#define MAX_NESTING 64

/* What runs down the graph while it is opened. */
struct inherit {
    unsigned flags;
    enum blk_follow follow;
    bool direct, no_flush, unmap;
    unsigned depth;           /* backing levels above */
    unsigned nesting;         /* levels of description */
    unsigned writable;        /* the backing level that is opened for writing; 0: none */
    const struct inherit *up; /* the overlay's, for loops */
    dev_t dev;                /* the overlay's own file, when it is a local one */
    ino_t ino;
    bool have_ino;
    bool leaf; /* under a "file" edge: a name without a driver is a protocol's */
    bool raw;  /* a data file: what has no driver is raw, and is not probed */
};

static int open_described(json_t *desc, const struct inherit *in, struct blk_node **out,
                          struct error **err);

/* ---- descriptions ---------------------------------------------------------------------------- */

static bool is_word(const char *word, const char *text, size_t len)
{
    return word && strlen(word) == len && !strncmp(word, text, len);
}

/* The driver that says what "PROTOCOL:..." means; "nbd+unix" is nbd's. NULL: none. */
static const struct driver *protocol_driver(const char *name, size_t n)
{
    const char *plus = memchr(name, '+', n);
    size_t len = plus ? (size_t)(plus - name) : n;

    for (const struct driver *const *d = driver_table; *d; d++)
        if ((*d)->describe &&
            (is_word((*d)->name, name, len) || is_word((*d)->also_named, name, len)))
            return *d;
    return NULL;
}

/* {"driver": protocol, "filename": name} for a name that is not json:. */
static json_t *describe_protocol(const char *name, struct error **err)
{
    size_t n = protocol_length(name);
    const struct driver *said = n ? protocol_driver(name, n) : NULL;

    if (said)
        return said->describe(name, err);
    if (n == 4 && !strncmp(name, "file:", 5)) {
        name += 5;
    } else if (n > 0) {
        error_set(err, ENOENT, "%s: unknown protocol '%.*s' (for a file of this name write './%s')",
                  name, (int)n, name, name);
        return NULL;
    }
    if (!*name) {
        error_set(err, ENOENT, "the file name is empty");
        return NULL;
    }
    /* Any bytes make a file name; the description never becomes JSON text. */
    json_t *d = json_pack("{s:s, s:o}", "driver", "file", "filename", json_string_nocheck(name));
    if (!d)
        error_set(err, ENOMEM, "%s: out of memory", name);
    return d;
}

json_t *describe_file(const char *name, struct error **err)
{
    return strncmp(name, "json:", 5) ? describe_protocol(name, err)
                                     : opts_parse_json(name + 5, err);
}

/* A description of what `name` means to a user. format: NULL to probe. */
static json_t *describe_name(const char *name, const char *format, struct error **err)
{
    if (!strncmp(name, "json:", 5)) {
        json_t *d = opts_parse_json(name + 5, err);
        if (d && format && !json_object_get(d, "driver"))
            json_object_set_new(d, "driver", json_string(format));
        return d;
    }
    json_t *file = describe_protocol(name, err);
    if (!file)
        return NULL;
    const struct driver *d = format ? driver_find(format) : NULL;
    if (d && d->kind == BLK_PROTOCOL) {
        json_object_set_new(file, "driver", json_string(format));
        return file;
    }
    json_t *desc = json_pack("{s:o}", "file", file);
    if (desc && format)
        json_object_set_new(desc, "driver", json_string(format));
    return desc;
}

/* ---- options every node has -------------------------------------------------------------------- */

enum discard_mode { DISCARD_IGNORE, DISCARD_UNMAP };

static const struct opt_choice discard_choices[] = {
    { "ignore", DISCARD_IGNORE },
    { "off", DISCARD_IGNORE },
    { "unmap", DISCARD_UNMAP },
    { "on", DISCARD_UNMAP },
    { NULL, 0 },
};

static const struct opt_choice detect_choices[] = {
    { "off", DETECT_OFF },
    { "on", DETECT_ON },
    { "unmap", DETECT_UNMAP },
    { NULL, 0 },
};

#define AT(m)    .at = offsetof(struct node_options, m)
#define GIVEN(m) .given = offsetof(struct node_options, m##_given)

static const struct opt_def node_table[] = {
    { .name = "node-name", .type = OPT_STRING, AT(node_name), .help = "name of the node" },
    { .name = "read-only",
      .type = OPT_BOOL,
      AT(read_only),
      GIVEN(read_only),
      .help = "refuse writes" },
    { .name = "discard",
      .type = OPT_ENUM,
      AT(discard),
      GIVEN(discard),
      .def = "ignore",
      .choices = discard_choices,
      .help = "whether discards reach the file below" },
    { .name = "detect-zeroes",
      .type = OPT_ENUM,
      AT(detect_zeroes),
      .def = "off",
      .choices = detect_choices,
      .help = "turn writes of zeroes into zero operations" },
    { .name = "force-share",
      .type = OPT_BOOL,
      AT(force_share),
      GIVEN(force_share),
      .help = "tolerate other writers" },
    OPT_END,
};

static const struct opt_def cache_table[] = {
    { .name = "direct",
      .type = OPT_BOOL,
      AT(direct),
      GIVEN(direct),
      .help = "bypass the page cache" },
    { .name = "no-flush",
      .type = OPT_BOOL,
      AT(no_flush),
      GIVEN(no_flush),
      .help = "ignore flushes" },
    OPT_END,
};

static int take_node_options(json_t *desc, struct node_options *o, struct error **err)
{
    int ret = opts_take(node_table, desc, o, err);
    if (ret < 0)
        return ret;

    json_t *cache = json_object_get(desc, "cache");
    if (!cache)
        return 0;
    if (!json_is_object(cache)) {
        ret = error_set(err, EINVAL,
                        "cache is not an object: use cache.direct=on|off, "
                        "cache.no-flush=on|off");
    } else {
        ret = opts_take(cache_table, cache, o, err);
        if (ret == 0)
            ret = opts_refuse_rest(cache_table, cache, "cache", err);
    }
    if (ret < 0) {
        opts_free(node_table, o);
        return ret;
    }
    json_object_del(desc, "cache");
    return 0;
}

/* Sets what the node is from what it inherits and what it was told. */
static void apply(struct blk_node *n, const struct node_options *o, const struct inherit *in)
{
    n->open_flags = in->flags;
    if (o->read_only_given && o->read_only)
        n->open_flags &= ~(unsigned)(BLK_OPEN_RDWR | BLK_OPEN_RESIZE);
    if (o->force_share_given && o->force_share)
        n->open_flags |= BLK_OPEN_SHARED;
    n->read_only = !(n->open_flags & BLK_OPEN_RDWR);
    n->direct = o->direct_given ? o->direct : in->direct;
    n->no_flush = o->no_flush_given ? o->no_flush : in->no_flush;
    n->unmap = o->discard_given ? o->discard == DISCARD_UNMAP : in->unmap;
    n->detect = (enum detect_zeroes)o->detect_zeroes;
}

/* ---- edges ------------------------------------------------------------------------------------- */

static struct inherit child_of(const struct blk_node *n, const struct inherit *in, bool leaf)
{
    struct inherit c = *in;
    c.flags = n->open_flags;
    c.direct = n->direct;
    c.no_flush = n->no_flush;
    c.unmap = n->unmap;
    c.leaf = leaf;
    c.raw = false;
    c.nesting = in->nesting + 1;
    return c;
}

/* An edge described as an object or as the name of a node. */
static int open_edge(json_t *value, const char *edge, const struct inherit *in,
                     struct blk_node **out, struct error **err)
{
    if (json_is_object(value))
        return open_described(value, in, out, err);
    if (!json_is_string(value))
        return error_set(err, EINVAL, "%s must be an object or the name of a node", edge);
    *out = node_find(json_string_value(value));
    if (!*out)
        return error_set(err, ENOENT, "%s: no node is named '%s'", edge, json_string_value(value));
    if ((in->flags & BLK_OPEN_RDWR) && blk_read_only(*out)) {
        blk_close(*out, NULL);
        *out = NULL;
        return error_set(err, EACCES, "%s: node '%s' is read-only", edge, json_string_value(value));
    }
    return 0;
}

/* The edge called `key`; the first edge may also be meant by "filename". Takes the keys out of desc. */
static int open_child_edge(json_t *desc, const char *key, bool or_filename,
                           const struct inherit *in, struct blk_node **out, struct error **err)
{
    json_t *child = json_object_get(desc, key);
    json_t *filename = or_filename ? json_object_get(desc, "filename") : NULL;
    _cleanup_json_ json_t *made = NULL;

    if (!child && json_is_string(filename)) {
        const char *name = json_string_value(filename);
        made = describe_file(name, err);
        if (!made)
            return -EINVAL;
        child = made;
        key = "filename";
    }
    if (!child)
        return error_set(err, EINVAL, "nothing says which file to open: give %s.filename=NAME",
                         key);

    int ret = open_edge(child, key, in, out, err);
    if (ret == 0)
        json_object_del(desc, key);
    return ret;
}

/* ---- references that images state -------------------------------------------------------------- */

enum reference { REF_BACKING, REF_DATA_FILE, REF_EXTENT };

/* Opens what an image states: its backing file, which is any image, or its data file or an extent, which are just
 * bytes. `name` is what `stated` means from here. */
static int open_reference(struct blk_node *n, enum reference what, const char *stated,
                          const char *name, const char *format, const struct inherit *in,
                          struct blk_node **out, struct error **err)
{
    int ret;

    if (what == REF_EXTENT)
        ret = may_follow_extent(n->edge[EDGE_FILE]->filename, in->follow, stated, name, err);
    else if (what == REF_DATA_FILE)
        ret = may_follow_data(n, in->follow, name, err);
    else
        ret = may_follow(n->filename, in->follow, name, err);
    if (ret < 0)
        return ret;
    _cleanup_json_ json_t *desc =
        what == REF_BACKING ? describe_name(name, format, err) : describe_file(name, err);
    if (!desc)
        return -EINVAL;
    return open_described(desc, in, out, err);
}

/* Notes which local file n is, and refuses one that stands above it already. */
static int enter_chain(const struct blk_node *n, struct inherit *in, struct error **err)
{
    struct stat st;

    in->have_ino = protocol_length(n->filename) == 0 && stat(n->filename, &st) == 0;
    if (in->have_ino) {
        in->dev = st.st_dev;
        in->ino = st.st_ino;
        for (const struct inherit *u = in->up; u; u = u->up)
            if (u->have_ino && u->dev == in->dev && u->ino == in->ino)
                return error_set(err, ELOOP,
                                 "%s: the backing chain is a loop: this file is above itself",
                                 n->filename);
    }
    if (in->depth >= MAX_CHAIN)
        return error_set(err, ELOOP, "%s: the backing chain is longer than %d images", n->filename,
                         MAX_CHAIN);
    return 0;
}

static int open_backing(struct blk_node *n, json_t *override, const struct inherit *in,
                        struct error **err)
{
    if (n->backing_filename && n->backing_filename[0]) {
        n->backing_resolved = graph_resolve(n->filename, n->backing_filename);
        if (!n->backing_resolved)
            return error_set(err, ENOMEM, "out of memory");
    }
    struct inherit self = *in;
    int ret = enter_chain(n, &self, err);
    if (ret < 0)
        return ret;
    bool stated = !override && n->backing_resolved && !(n->open_flags & BLK_OPEN_NO_BACKING);
    bool none =
        json_is_null(override) || (json_is_string(override) && !json_string_value(override)[0]);
    if (!stated && (none || !override))
        return 0;

    struct inherit below = child_of(n, &self, false);
    below.flags &= ~(unsigned)(BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_REPAIR);
    below.up = &self;
    below.depth = self.depth + 1;
    below.nesting = 0;
    if (below.depth == self.writable)
        below.flags |= BLK_OPEN_RDWR | BLK_OPEN_RESIZE;
    const char *format = n->backing_format && n->backing_format[0] ? n->backing_format : NULL;
    ret = stated ? open_reference(n, REF_BACKING, n->backing_filename, n->backing_resolved, format,
                                  &below, &n->edge[EDGE_BACKING], err)
                 : open_edge(override, "backing", &below, &n->edge[EDGE_BACKING], err);
    if (ret == 0 && n->edge[EDGE_BACKING] && n->drv->backing_opened && stated)
        ret = n->drv->backing_opened(n, err);
    if (ret < 0 && in->depth == 0) /* of a long chain, the two ends tell enough */
        error_prefix(err, "%s: could not open its backing chain", n->filename);
    return ret;
}

/* The leaves of both are one local file. */
static bool same_file(struct blk_node *a, struct blk_node *b)
{
    const char *x = node_leaf(a)->filename, *y = node_leaf(b)->filename;
    struct stat s, t;

    return protocol_length(x) == 0 && protocol_length(y) == 0 && stat(x, &s) == 0 &&
           stat(y, &t) == 0 && s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

static int open_data_file(struct blk_node *n, json_t *override, const struct inherit *in,
                          struct error **err)
{
    int ret;

    if (override && !n->has_data_file)
        return error_set(err, EINVAL, "%s: data-file is given, but the image has no data file",
                         n->filename);
    if (!n->has_data_file || (n->open_flags & BLK_OPEN_NO_IO))
        return 0;
    struct inherit below = child_of(n, in, true);
    below.raw = true;
    if (override) {
        ret = open_edge(override, "data-file", &below, &n->edge[EDGE_DATA_FILE], err);
    } else if (!n->data_filename || !n->data_filename[0]) {
        return error_set(err, EINVAL,
                         "%s: it does not say which its data file is: give data-file.filename=NAME",
                         n->filename);
    } else {
        _cleanup_free_ char *name = graph_resolve(n->filename, n->data_filename);
        if (!name)
            return error_set(err, ENOMEM, "out of memory");
        ret = open_reference(n, REF_DATA_FILE, n->data_filename, name, NULL, &below,
                             &n->edge[EDGE_DATA_FILE], err);
    }
    if (ret < 0)
        return error_prefix(err, "%s: could not open its data file", n->filename), ret;
    if (same_file(n, n->edge[EDGE_DATA_FILE]))
        return error_set(err, ELOOP, "%s: the image cannot be its own data file", n->filename);
    return 0;
}

/* What node_open_extent needs while the driver's open runs. */
struct opening {
    const struct inherit *in;
    json_t *extents; /* as described, by number; NULL: as the image states them */
};

static json_t *described_extent(const struct opening *o, unsigned i)
{
    char key[16];

    snprintf(key, sizeof(key), "%u", i);
    return json_is_array(o->extents) ? json_array_get(o->extents, i)
                                     : json_object_get(o->extents, key);
}

enum blk_follow graph_follow(const struct blk_node *n)
{
    return n->opening->in->follow;
}

int node_open_extent(struct blk_node *n, const char *stated, unsigned flags, struct blk_node **out,
                     struct error **err)
{
    json_t *described = described_extent(n->opening, (unsigned)n->extents.len);
    struct inherit below = child_of(n, n->opening->in, true);
    int ret;

    below.raw = true;
    if (flags & EXTENT_READ_ONLY)
        below.flags &= ~(unsigned)(BLK_OPEN_RDWR | BLK_OPEN_RESIZE);
    if (described) {
        ret = open_edge(described, "extents", &below, out, err);
    } else {
        _cleanup_free_ char *name = graph_resolve(n->edge[EDGE_FILE]->filename, stated);
        if (!name)
            return error_set(err, ENOMEM, "out of memory");
        ret = open_reference(n, REF_EXTENT, stated, name, NULL, &below, out, err);
    }
    if (ret == 0 && same_file(n->edge[EDGE_FILE], *out))
        ret = error_set(err, ELOOP, "the image cannot be its own extent");
    if (ret == 0)
        ret = node_add_extent(n, *out, err);
    else
        blk_close(*out, NULL);
    if (ret < 0) {
        *out = NULL;
        error_prefix(err, "%s: could not open its extent '%s'", n->edge[EDGE_FILE]->filename,
                     stated);
    }
    return ret;
}

/* ---- a node --------------------------------------------------------------------------------------- */

/* Calls the driver's open with the options left in desc. */
static int open_driver(struct blk_node *n, json_t *desc, struct error **err)
{
    const struct driver *d = n->drv;
    static const struct opt_def no_options[] = { OPT_END };
    const struct opt_def *table = d->options ? d->options : no_options;
    char what[64];

    _cleanup_free_ void *options = calloc(1, d->options_size ? d->options_size : 1);
    if (!options)
        return error_set(err, ENOMEM, "out of memory");
    int ret = opts_take(table, desc, options, err);
    if (ret < 0)
        return ret;
    snprintf(what, sizeof(what), "driver %s", d->name);
    ret = opts_refuse_rest(table, desc, what, err);
    n->grows = d->flags & DRIVER_GROWS;
    if (ret == 0)
        ret = d->open(n, options, err);
    opts_free(table, options);
    if (ret < 0)
        return ret;
    n->opened = true;
    if (!n->filename[0] && n->edge[EDGE_FILE])
        return node_set_filename(n, n->edge[EDGE_FILE]->filename);
    return 0;
}

/* Finds the driver the description names, or NULL to probe. */
static int named_driver(json_t *desc, bool leaf, const struct driver **out, struct error **err)
{
    json_t *v = json_object_get(desc, "driver");

    *out = NULL;
    if (!v) {
        if (leaf && json_object_get(desc, "filename"))
            *out = driver_find("file");
        return 0;
    }
    if (!json_is_string(v))
        return error_set(err, EINVAL, "driver must be a name");
    *out = driver_find(json_string_value(v));
    if (!*out)
        return error_set(err, ENOENT, "unknown driver or format '%s' (img --help lists them)",
                         json_string_value(v));
    json_object_del(desc, "driver");
    return 0;
}

/* A file that is compressed as a whole is looked into, or not. Its first bytes alone do not decide that, since a guest may
 * write any bytes to its disk:
 *
 * 1. The user named it without a format, and the program asked for it (BLK_OPEN_UNWRAP: commands that read a source).
 *    A stated format is the truth, and raw is one.
 * 2. It is the top of the graph. What an image states, backing file or extent, is taken as it is.
 * 3. Nobody will write to it: not with RDWR, RESIZE or REPAIR.
 * 4. What lies inside may not lead to other files unless the user says --follow=any: a disk that was raw until its guest
 *    wrote a compressed image with a backing file gains nothing by that.
 *
 * And the guard of guessed raw disks (io.c) refuses writes of such beginnings, as of those of formats. */
static bool may_unwrap(const struct inherit *in)
{
    const unsigned writes = BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_REPAIR;

    return (in->flags & BLK_OPEN_UNWRAP) && !(in->flags & writes) && in->depth == 0 && !in->leaf &&
           !in->raw;
}

/* Puts the filter between the file and whoever will read it. */
static int unwrap(struct blk_node **file, const struct node_options *o, const struct inherit *in,
                  struct inherit *inside, struct error **err)
{
    const struct driver *d;
    int ret = probe_wrapping(*file, &d, err);
    if (ret < 0 || !d)
        return ret;
    _cleanup_json_ json_t *none = json_object();
    struct blk_node *n = none ? node_new(d) : NULL;
    if (!n)
        return error_set(err, ENOMEM, "out of memory");
    apply(n, o, in);
    n->edge[EDGE_FILE] = blk_ref(*file);
    ret = open_driver(n, none, err);
    if (ret < 0) {
        node_discard(n);
        return ret;
    }
    blk_close(*file, NULL);
    *file = n;
    if (in->follow != BLK_FOLLOW_ANY)
        inside->follow = BLK_FOLLOW_NONE;
    return 0;
}

/* The edge is opened before the node exists, since its bytes may decide the driver, which *d becomes. */
static int open_edges(json_t *desc, const struct node_options *o, const struct inherit *in,
                      struct inherit *inside, const struct driver **d, struct blk_node *edge[2],
                      struct error **err)
{
    struct blk_node as = { .read_only = false };
    const char *first = *d && (*d)->first_edge ? (*d)->first_edge : "file";

    if (*d && ((*d)->flags & DRIVER_NO_CHILD))
        return 0;
    apply(&as, o, in);
    struct inherit below = child_of(&as, in, true);
    int ret = open_child_edge(desc, first, true, &below, &edge[0], err);
    if (!*d && in->raw)
        *d = driver_find("raw");
    if (ret == 0 && !*d && may_unwrap(in))
        ret = unwrap(&edge[0], o, in, inside, err);
    if (ret == 0 && !*d)
        ret = probe_node(edge[0], blk_filename(edge[0]), d, err);
    if (ret == 0 && (*d)->second_edge)
        ret = open_child_edge(desc, (*d)->second_edge, false, &below, &edge[1], err);
    return ret;
}

/* What the user says instead of the image, for drivers that know of such a thing. */
static json_t *take_override(json_t *desc, const char *key, bool known)
{
    json_t *value = json_incref(json_object_get(desc, key));

    if (value && known)
        json_object_del(desc, key);
    return value;
}

/* The driver itself, then what its image states. */
static int open_all(struct blk_node *n, json_t *desc, const struct inherit *inside,
                    struct error **err)
{
    const struct driver *d = n->drv;
    _cleanup_json_ json_t *backing = take_override(desc, "backing", d->flags & DRIVER_BACKING);
    _cleanup_json_ json_t *data = take_override(desc, "data-file", d->flags & DRIVER_DATA_FILE);
    _cleanup_json_ json_t *extents =
        d->flags & DRIVER_EXTENTS ? take_override(desc, "extents", true) : NULL;
    struct opening opening = { inside, extents };

    n->opening = &opening;
    int ret = open_driver(n, desc, err);
    n->opening = NULL;
    if (ret == 0 && (d->flags & DRIVER_DATA_FILE))
        ret = open_data_file(n, data, inside, err);
    if (ret == 0 && (d->flags & DRIVER_BACKING))
        ret = open_backing(n, backing, inside, err);
    return ret;
}

static int build(json_t *desc, const struct node_options *o, const struct inherit *in,
                 struct blk_node **out, struct error **err)
{
    const struct driver *d;
    struct blk_node *edge[2] = { NULL, NULL };
    struct inherit inside = *in;
    int ret = named_driver(desc, in->leaf, &d, err);
    if (ret < 0)
        return ret;
    bool probed = !d && !in->raw;

    ret = open_edges(desc, o, in, &inside, &d, edge, err);
    struct blk_node *n = ret == 0 ? node_new(d) : NULL;
    if (!n) {
        blk_close(edge[0], NULL);
        blk_close(edge[1], NULL);
        return ret < 0 ? ret : error_set(err, ENOMEM, "out of memory");
    }
    apply(n, o, in);
    n->edge[EDGE_FILE] = edge[0];
    n->edge[EDGE_SECOND] = edge[1];
    n->probed = probed;
    n->guard_magic = probed && !strcmp(d->name, "raw");
    ret = open_all(n, desc, &inside, err);
    if (ret == 0 && o->node_name && o->node_name[0])
        ret = node_register(n, o->node_name, err);
    if (ret == 0 && n->guard_magic && !n->read_only && !(in->flags & BLK_OPEN_QUIET))
        node_warn(n,
                  "no format was given and it looks like raw; so that a guest cannot turn it into "
                  "another format, writes of such a beginning are refused. Say -f raw (or "
                  "driver=raw) to allow them");
    if (ret < 0) {
        if (n->opened && n->drv->close)
            n->drv->close(n, NULL);
        node_discard(n);
        return ret;
    }
    *out = n;
    return 0;
}

static int open_described(json_t *desc, const struct inherit *in, struct blk_node **out,
                          struct error **err)
{
    struct node_options o = { 0 };

    if (in->nesting > MAX_NESTING)
        return error_set(err, ELOOP, "the description is nested deeper than %d nodes", MAX_NESTING);
    int ret = take_node_options(desc, &o, err);
    if (ret < 0)
        return ret;
    ret = build(desc, &o, in, out, err);
    opts_free(node_table, &o);
    return ret;
}

/* ---- the way in ------------------------------------------------------------------------------------ */

struct cache_mode {
    const char *name;
    bool direct, no_flush, writethrough;
};

static const struct cache_mode cache_modes[] = {
    { "writeback", false, false, false }, { "none", true, false, false },
    { "off", true, false, false },        { "writethrough", false, false, true },
    { "directsync", true, false, true },  { "unsafe", false, true, false },
};

static const struct cache_mode *find_cache_mode(const char *name, struct error **err)
{
    if (!name)
        return &cache_modes[0];
    for (size_t i = 0; i < sizeof(cache_modes) / sizeof(cache_modes[0]); i++)
        if (!strcmp(cache_modes[i].name, name))
            return &cache_modes[i];
    error_set(err, EINVAL,
              "unknown cache mode '%s': use none, writeback, writethrough, directsync or unsafe",
              name);
    return NULL;
}

static json_t *describe(const char *name, const struct blk_open_args *args, struct error **err)
{
    json_t *d;

    if (!args->image_opts)
        return describe_name(name, args->format, err);
    if (name[0] == '{')
        d = opts_parse_json(name, err);
    else
        d = opts_parse_keyval(name, NULL, err);
    if (d && args->format && !json_object_get(d, "driver"))
        json_object_set_new(d, "driver", json_string(args->format));
    return d;
}

static enum blk_follow follow_policy(enum blk_follow asked)
{
    const char *env = getenv("PLATTER_FOLLOW");

    if (asked != BLK_FOLLOW_DEFAULT)
        return asked;
    if (env && !strcmp(env, "any"))
        return BLK_FOLLOW_ANY;
    if (env && !strcmp(env, "none"))
        return BLK_FOLLOW_NONE;
    return BLK_FOLLOW_LOCAL;
}

int blk_open(const char *name, const struct blk_open_args *args, struct blk_node **out,
             struct error **err)
{
    static const struct blk_open_args none;

    *out = NULL;
    if (!args)
        args = &none;
    const struct cache_mode *mode = find_cache_mode(args->cache, err);
    if (!mode)
        return -EINVAL;
    int ret =
        args->stated_by ? may_follow(args->stated_by, follow_policy(args->follow), name, err) : 0;
    if (ret < 0)
        return ret;
    if (args->format && !driver_find(args->format))
        return error_set(err, ENOENT, "unknown driver or format '%s' (img --help lists them)",
                         args->format);
    _cleanup_json_ json_t *desc = describe(name, args, err);
    if (!desc)
        return -EINVAL;
    if (args->node_name)
        json_object_set_new(desc, "node-name", json_string(args->node_name));

    struct inherit top = {
        .flags = args->flags,
        .follow = follow_policy(args->follow),
        .direct = mode->direct,
        .no_flush = mode->no_flush,
        .unmap = args->flags & BLK_OPEN_UNMAP,
        .writable = args->writable_backing,
    };
    ret = open_described(desc, &top, out, err);
    if (ret < 0)
        return ret;
    (*out)->writethrough = mode->writethrough;
    return 0;
}

const struct driver *graph_creator(const char *filename, struct error **err)
{
    size_t n = protocol_length(filename);
    const struct driver *d = n ? protocol_driver(filename, n) : NULL;
    bool plain = n == 0 || !strncmp(filename, "file:", 5);

    if (plain)
        d = driver_find("file");
    if (d && d->create_file)
        return d;
    if (d)
        error_set(err, ENOTSUP, "%s: nothing can be made with the protocol '%s'", filename,
                  d->name);
    else
        error_set(err, ENOENT, "%s: unknown protocol '%.*s' (for a file of this name write './%s')",
                  filename, (int)n, filename, filename);
    return NULL;
}

int graph_open_file(const char *filename, unsigned flags, const char *cache, struct blk_node **out,
                    struct error **err)
{
    _cleanup_json_ json_t *desc = describe_protocol(filename, err);
    const struct cache_mode *mode = find_cache_mode(cache, err);
    if (!desc || !mode)
        return -EINVAL;
    struct inherit top = {
        .flags = flags,
        .direct = mode->direct,
        .no_flush = mode->no_flush,
        .unmap = flags & BLK_OPEN_UNMAP,
        .leaf = true,
    };
    return open_described(desc, &top, out, err);
}
