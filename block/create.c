/* Making images, and saying how large one would be.
 *
 * A format's options and those of the protocol below it are given as one list; each table takes
 * what it knows, and what nobody knows is refused.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/round.h"
#include "base/strbuf.h"
#include "node.h"

static const struct opt_def no_options[] = { OPT_END };

static const struct opt_def *create_table(const struct driver *d)
{
    return d->create_options ? d->create_options : no_options;
}

static bool has_option(const struct opt_def *table, const char *name)
{
    for (; table->name; table++)
        if (!strcmp(table->name, name))
            return true;
    return false;
}

/* ---- the backing file's part ------------------------------------------------------------------------ */

static const char *text_of(json_t *options, const char *key)
{
    return json_string_value(json_object_get(options, key));
}

static int check_backing(const struct blk_create_args *args, json_t *options, struct error **err)
{
    const char *backing = text_of(options, "backing_file");
    const char *format = text_of(options, "backing_fmt");
    struct blk_node *node;

    if (!backing || !backing[0])
        return 0;
    _cleanup_free_ char *full = graph_resolve(args->filename, backing);
    if (!full)
        return error_set(err, ENOMEM, "out of memory");
    if (format && !driver_find(format))
        return error_set(err, EINVAL, "unknown backing format '%s'", format);
    if (args->backing_unchecked && (args->size_given || json_object_get(options, "size")))
        return 0;

    struct blk_open_args open = { .format = format, .flags = BLK_OPEN_NO_IO };
    int ret = blk_open(full, &open, &node, err);
    if (ret < 0) {
        error_prefix(err, "could not open the backing file to learn its size");
        return ret;
    }
    if (!format)
        ret = error_set(err, EINVAL,
                        "a backing file without a backing format is refused: detected format of "
                        "'%s' is %s, so add -F %s",
                        full, blk_format(node), blk_format(node));
    else if (!json_object_get(options, "size"))
        json_object_set_new(options, "size", json_integer((json_int_t)blk_size(node)));
    blk_close(node, NULL);
    return ret;
}

/* ---- options ------------------------------------------------------------------------------------------ */

static int set_once(json_t *options, const char *key, const char *value, struct error **err)
{
    if (!value)
        return 0;
    if (json_object_get(options, key))
        return error_set(err, EINVAL, "%s is given twice", key);
    /* Any bytes make a file name. */
    return json_object_set_new(options, key, json_string_nocheck(value)) < 0
               ? error_set(err, ENOMEM, "%s: out of memory", key)
               : 0;
}

static json_t *gather(const struct blk_create_args *args, struct error **err)
{
    json_t *options = args->options && args->options[0]
                          ? opts_parse_keyval(args->options, NULL, err)
                          : json_object();
    int ret = options ? 0 : -EINVAL;

    if (ret == 0)
        ret = set_once(options, "backing_file", args->backing_file, err);
    if (ret == 0)
        ret = set_once(options, "backing_fmt", args->backing_format, err);
    if (ret == 0 && args->size_given) {
        if (args->size > INT64_MAX)
            ret = error_set(err, EFBIG, "the size is above the limit of 8 EiB");
        else
            json_object_set_new(options, "size", json_integer((json_int_t)args->size));
    }
    if (ret < 0) {
        json_decref(options);
        return NULL;
    }
    return options;
}

static void append_option(struct strbuf *out, const struct opt_def *def, json_t *value)
{
    uint64_t size;

    if (!value && !def->def)
        return;
    strbuf_addf(out, "%s%s=", strbuf_text(out)[0] ? " " : "", def->name);
    if (!value && def->type == OPT_SIZE && opts_parse_size(def->def, &size, NULL) == 0)
        strbuf_addf(out, "%" PRIu64, size);
    else if (!value)
        strbuf_addf(out, "%s", def->def);
    else if (json_is_string(value) && def->type == OPT_SIZE &&
             opts_parse_size(json_string_value(value), &size, NULL) == 0)
        strbuf_addf(out, "%" PRIu64, size);
    else if (json_is_string(value))
        strbuf_addf(out, "%s", json_string_value(value));
    else if (json_is_boolean(value))
        strbuf_addf(out, "%s", json_is_true(value) ? "on" : "off");
    else
        strbuf_addf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
}

/* "cluster_size=65536 size=1048576 ...": what is in force, in the table's order. */
static char *summarise(const struct opt_def *table, json_t *options)
{
    struct strbuf out = STRBUF_INIT;

    for (; table->name; table++)
        append_option(&out, table, json_object_get(options, table->name));
    return strbuf_take(&out);
}

/* ---- create ---------------------------------------------------------------------------------------------- */

static const char *local_name(const char *filename)
{
    return strncmp(filename, "file:", 5) ? filename : filename + 5;
}

static int make_file(const struct driver *d, const char *name, json_t *options, struct error **err)
{
    _cleanup_free_ void *o = calloc(1, d->create_options_size ? d->create_options_size : 1);
    if (!o)
        return error_set(err, ENOMEM, "out of memory");
    int ret = opts_take(create_table(d), options, o, err);
    if (ret < 0)
        return ret;
    ret = d->create_file(name, o, err);
    opts_free(create_table(d), o);
    return ret;
}

/* The file below, made by its protocol from the options that only it knows. */
static int create_file(const char *filename, const struct driver *format, json_t *options,
                       struct error **err)
{
    const struct driver *d = graph_creator(filename, err);
    if (!d)
        return -ENOTSUP;

    _cleanup_json_ json_t *mine = json_object();
    if (!mine)
        return error_set(err, ENOMEM, "out of memory");
    for (const struct opt_def *def = create_table(d); def->name; def++) {
        json_t *v = json_object_get(options, def->name);
        if (v && !has_option(create_table(format), def->name)) {
            json_object_set(mine, def->name, v);
            json_object_del(options, def->name);
        }
    }
    return make_file(d, local_name(filename), mine, err);
}

/* What the image will rest on, for drivers that write down which one it was. */
static int open_create_backing(const char *filename, json_t *options, struct blk_node **out,
                               struct error **err)
{
    const char *backing = text_of(options, "backing_file");
    struct blk_open_args open = { .format = text_of(options, "backing_fmt"),
                                  .flags = BLK_OPEN_NO_IO | BLK_OPEN_NO_BACKING };

    if (!backing || !backing[0])
        return 0;
    _cleanup_free_ char *full = graph_resolve(filename, backing);
    if (!full)
        return error_set(err, ENOMEM, "out of memory");
    int ret = blk_open(full, &open, out, err);
    if (ret < 0)
        error_prefix(err, "could not open the backing file");
    return ret;
}

static int create_format(const struct blk_create_args *args, const struct driver *d,
                         json_t *options, const void *o, struct error **err)
{
    struct blk_node *file, *backing = NULL;
    int ret = 0;

    if (!d->create)
        return error_set(err, ENOTSUP, "the format %s cannot be made, only read", d->name);
    if (d->flags & DRIVER_KNOWS_BACKING)
        ret = open_create_backing(args->filename, options, &backing, err);
    if (ret < 0)
        return ret;
    ret = graph_open_file(args->filename, BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_UNMAP, NULL,
                          &file, err);
    if (ret == 0) {
        file->final_name = args->final_name;
        file->create_backing = backing;
        ret = d->create(file, o, err);
        if (ret < 0)
            error_prefix(err, "%s", args->filename);
        int r = blk_close(file, ret < 0 ? NULL : err);
        ret = ret < 0 ? ret : r;
    }
    blk_close(backing, NULL);
    return ret;
}

int node_create_beside(struct blk_node *file, const char *name, uint64_t size,
                       enum blk_prealloc prealloc, struct blk_node **out, struct error **err)
{
    static const char *const words[] = { "off", "off", "falloc", "full" };
    _cleanup_free_ char *full = graph_resolve(node_final_name(file), name);
    _cleanup_json_ json_t *options =
        json_pack("{s:I, s:s}", "size", (json_int_t)size, "preallocation", words[prealloc]);

    *out = NULL;
    if (!full || !options)
        return error_set(err, ENOMEM, "out of memory");
    const struct driver *d = graph_creator(full, err);
    int ret = d ? make_file(d, local_name(full), options, err) : -ENOTSUP;
    if (ret == 0)
        ret =
            graph_open_file(full, BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_UNMAP, NULL, out, err);
    if (ret < 0)
        error_prefix(err, "the extent '%s'", name);
    return ret;
}

/* ---- the data file's part ----------------------------------------------------------------------------- */

static bool same_file(const char *a, const char *b)
{
    struct stat s, t;

    return stat(a, &s) == 0 && stat(b, &t) == 0 && s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

/* A data file is made anew. *out: its name, NULL: the image has none. Nothing else must lie there. */
static int check_data_file(const char *filename, json_t *options, char **out, struct error **err)
{
    const char *stated = text_of(options, "data_file"), *backing = text_of(options, "backing_file");

    *out = NULL;
    if (!stated || !stated[0])
        return 0;
    _cleanup_free_ char *name = graph_resolve(filename, stated);
    _cleanup_free_ char *below = backing ? graph_resolve(filename, backing) : NULL;
    if (!name)
        return error_set(err, ENOMEM, "out of memory");
    if (!strcmp(name, local_name(filename)) || same_file(name, local_name(filename)))
        return error_set(err, EINVAL, "%s: the image cannot be its own data file", filename);
    if (below && same_file(name, local_name(below)))
        return error_set(err, EINVAL, "%s: '%s' cannot be its data file and its backing file",
                         filename, stated);
    *out = name;
    name = NULL;
    return 0;
}

static int create_data_file(const char *name, json_t *options, struct error **err)
{
    const char *prealloc = text_of(options, "preallocation");
    const struct driver *d = driver_find("file");
    uint64_t size = 0;
    json_t *v = json_object_get(options, "size");

    if (json_is_integer(v))
        size = (uint64_t)json_integer_value(v);
    else if (!json_is_string(v) || opts_parse_size(json_string_value(v), &size, NULL) < 0)
        return error_set(err, EINVAL, "the image's size is missing");
    if (prealloc && !strcmp(prealloc, "metadata"))
        prealloc = "off";
    _cleanup_json_ json_t *mine = json_pack("{s:I, s:s}", "size", (json_int_t)round_up(size, 512),
                                            "preallocation", prealloc ? prealloc : "off");
    if (!mine)
        return error_set(err, ENOMEM, "out of memory");
    int ret = make_file(d, name, mine, err);
    if (ret < 0)
        error_prefix(err, "the data file");
    return ret;
}

/* A file that was not there before is not left half made. */
static int create_both(const struct blk_create_args *args, const struct driver *d, json_t *options,
                       const void *o, struct error **err)
{
    const char *filename = args->filename;
    bool existed = access(local_name(filename), F_OK) == 0, data_existed = false;
    _cleanup_free_ char *data = NULL;
    int ret = 0;

    if (d->flags & DRIVER_DATA_FILE)
        ret = check_data_file(filename, options, &data, err);
    if (ret < 0)
        return ret;
    ret = create_file(filename, d, options, err);
    if (ret == 0 && data && same_file(data, local_name(filename))) /* by another name */
        ret = error_set(err, EINVAL, "%s: the image cannot be its own data file", filename);
    else if (ret == 0 && data) {
        data_existed = access(data, F_OK) == 0;
        ret = create_data_file(data, options, err);
        data_existed |= ret < 0;
    }
    if (ret == 0 && d->create)
        ret = create_format(args, d, options, o, err);
    if (ret < 0 && !existed)
        unlink(local_name(filename));
    if (ret < 0 && data && !data_existed)
        unlink(data);
    return ret;
}

int blk_create(const struct blk_create_args *args, char **summary, struct error **err)
{
    const struct driver *d = driver_find(args->format);
    char what[64];

    if (!d || !(d->create || d->create_file))
        return error_set(err, EINVAL, "unknown or not creatable format '%s'", args->format);
    const struct opt_def *table = create_table(d);
    _cleanup_json_ json_t *options = gather(args, err);
    if (!options)
        return -EINVAL;
    if (json_object_get(options, "backing_file") && !has_option(table, "backing_file"))
        return error_set(err, EINVAL, "the format %s does not support backing files", d->name);
    int ret = check_backing(args, options, err);
    if (ret < 0)
        return ret;
    if (has_option(table, "size") && !json_object_get(options, "size"))
        return error_set(err, EINVAL, "the image's size is missing: give it after the name");

    /* All options are understood before anything is written. */
    _cleanup_free_ char *text = summarise(table, options);
    _cleanup_free_ void *o = calloc(1, d->create_options_size ? d->create_options_size : 1);
    _cleanup_json_ json_t *rest = json_deep_copy(options);
    if (!text || !o || !rest)
        return error_set(err, ENOMEM, "out of memory");
    const struct driver *below = driver_find("file");
    for (const struct opt_def *def = below ? create_table(below) : no_options; def->name; def++)
        if (!has_option(table, def->name))
            json_object_del(rest, def->name);
    ret = opts_take(table, rest, o, err);
    if (ret < 0)
        return ret;
    snprintf(what, sizeof(what), "%s create options", d->name);
    ret = opts_refuse_rest(table, rest, what, err);
    if (ret == 0 && d->check_create) {
        ret = d->check_create(o, err);
        if (ret < 0)
            error_prefix(err, "%s", args->filename);
    }
    if (ret == 0)
        ret = create_both(args, d, options, o, err);
    opts_free(table, o);
    if (ret < 0)
        return ret;
    if (summary) {
        *summary = text;
        text = NULL;
    }
    return 0;
}

/* ---- measure ------------------------------------------------------------------------------------------------ */

int blk_measure(const char *format, const char *options, uint64_t size, struct blk_node *src,
                struct blk_measure *out, struct error **err)
{
    const struct driver *d = driver_find(format);

    if (!d || !d->measure)
        return error_set(err, ENOTSUP, "the format '%s' cannot be measured", format);
    if (src)
        size = blk_size(src);
    struct blk_create_args args = {
        .options = options,
        .size_given = true,
        .size = size,
    };
    _cleanup_json_ json_t *given = gather(&args, err);
    _cleanup_free_ void *o = calloc(1, d->create_options_size ? d->create_options_size : 1);
    if (!given || !o)
        return -EINVAL;
    int ret = opts_take(create_table(d), given, o, err);
    if (ret < 0)
        return ret;
    ret = opts_refuse_rest(create_table(d), given, "create options", err);
    if (ret == 0)
        ret = d->measure(o, size, src, out, err);
    opts_free(create_table(d), o);
    return ret;
}
