#include "blockdev_drive.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/options.h"
#include "tools/describe.h"

/* What says how the drive is plugged in; others read it. */
static const char *const plug_keys[] = { "if",    "index",  "bus",    "unit",
                                         "media", "serial", "werror", "rerror" };

struct drive_keys {
    char *id, *format;
    int cache, aio;
    bool cache_given, snapshot, copy_on_read, readonly, writeback;
};

enum { CACHE_NONE, CACHE_WRITEBACK, CACHE_WRITETHROUGH, CACHE_DIRECTSYNC, CACHE_UNSAFE };

static const struct opt_choice cache_choices[] = {
    { "none", CACHE_NONE },
    { "off", CACHE_NONE },
    { "writeback", CACHE_WRITEBACK },
    { "writethrough", CACHE_WRITETHROUGH },
    { "directsync", CACHE_DIRECTSYNC },
    { "unsafe", CACHE_UNSAFE },
    { NULL, 0 },
};

static const char *const cache_names[] = { "none", "writeback", "writethrough", "directsync",
                                           "unsafe" };

enum { AIO_THREADS, AIO_NATIVE, AIO_URING };

static const struct opt_choice aio_choices[] = {
    { "threads", AIO_THREADS },
    { "native", AIO_NATIVE },
    { "io_uring", AIO_URING },
    { NULL, 0 },
};

#define AT(m) .at = offsetof(struct drive_keys, m)

static const struct opt_def drive_table[] = {
    { .name = "id", .type = OPT_STRING, AT(id), .help = "name of the drive" },
    { .name = "format", .type = OPT_STRING, AT(format), .help = "format of the image" },
    { .name = "snapshot",
      .type = OPT_BOOL,
      AT(snapshot),
      .help = "writes go to a temporary image" },
    { .name = "copy-on-read",
      .type = OPT_BOOL,
      AT(copy_on_read),
      .help = "what is read from below is kept" },
    { .name = "readonly", .type = OPT_BOOL, AT(readonly), .help = "refuse writes" },
    { .name = "aio",
      .type = OPT_ENUM,
      AT(aio),
      .def = "threads",
      .choices = aio_choices,
      .help = "how the host does I/O; always by threads here" },
    OPT_END,
};

static const struct opt_def cache_mode_table[] = {
    { .name = "cache",
      .type = OPT_ENUM,
      AT(cache),
      .given = offsetof(struct drive_keys, cache_given),
      .choices = cache_choices,
      .help = "how the host caches" },
    OPT_END,
};

static const struct opt_def writeback_table[] = {
    { .name = "writeback",
      .type = OPT_BOOL,
      AT(writeback),
      .def = "on",
      .help = "off: every write is durable when it ends" },
    OPT_END,
};

void drive_free(struct drive *drive)
{
    json_decref(drive->description);
    free(drive->id);
    *drive = (struct drive){ 0 };
}

/* "bps", "bps_rd", "iops_wr_max" ... are older names of throttling.*. */
static const char *const old_limits[][2] = {
    { "bps", "bps-total" },
    { "bps_rd", "bps-read" },
    { "bps_wr", "bps-write" },
    { "iops", "iops-total" },
    { "iops_rd", "iops-read" },
    { "iops_wr", "iops-write" },
    { "bps_max", "bps-total-max" },
    { "bps_rd_max", "bps-read-max" },
    { "bps_wr_max", "bps-write-max" },
    { "iops_max", "iops-total-max" },
    { "iops_rd_max", "iops-read-max" },
    { "iops_wr_max", "iops-write-max" },
    { "iops_size", "iops-size" },
};

/* Takes the limits out of keys; NULL: there are none. */
static json_t *take_limits(json_t *keys)
{
    json_t *limits = json_incref(json_object_get(keys, "throttling"));
    json_object_del(keys, "throttling");
    for (size_t i = 0; i < ARRAY_SIZE(old_limits); i++) {
        json_t *value = json_object_get(keys, old_limits[i][0]);
        if (!value)
            continue;
        if (!limits)
            limits = json_object();
        json_object_set(limits, old_limits[i][1], value);
        json_object_del(keys, old_limits[i][0]);
    }
    return limits;
}

/* "cache=none" is a mode; "cache.direct=on" is the node's but for cache.writeback. */
static int take_cache(json_t *keys, struct drive_keys *k, struct drive *out, struct error **err)
{
    json_t *cache = json_object_get(keys, "cache");
    if (!cache)
        return 0;
    if (!json_is_object(cache)) {
        int r = opts_take(cache_mode_table, keys, k, err);
        if (r == 0)
            out->cache = cache_names[k->cache];
        return r;
    }
    json_t *direct = json_object_get(cache, "direct");
    bool is_direct = json_is_true(direct);
    if (json_is_string(direct) && opts_parse_bool(json_string_value(direct), &is_direct) < 0)
        return error_set(err, EINVAL, "cache.direct is '%s', not on or off",
                         json_string_value(direct));
    int r = opts_take(writeback_table, cache, k, err);
    if (r == 0 && !k->writeback)
        out->cache = is_direct ? "directsync" : "writethrough";
    return r;
}

/* Puts a filter on top: {"driver": name, "file": what is there}. */
static int wrap(json_t **description, const char *driver, json_t *limits, struct error **err)
{
    json_t *filter = json_pack("{s:s, s:O}", "driver", driver, "file", *description);
    if (!filter)
        return error_set(err, ENOMEM, "out of memory");
    if (limits)
        json_object_set(filter, "limits", limits);
    json_decref(*description);
    *description = filter;
    return 0;
}

/* The file, as a name or an object, laid over with what is left of the keys. */
static int describe(json_t *keys, const struct drive_keys *k, json_t **out, struct error **err)
{
    json_t *file = json_object_get(keys, "file");
    json_t *description;

    if (json_is_string(file)) {
        if (!json_string_value(file)[0])
            return error_set(err, EINVAL, "file is empty: leave it out for a drive without a file");
        description = describe_image(json_string_value(file), false, err);
        if (!description)
            return -EINVAL;
        json_object_del(keys, "file");
        json_object_update(description, keys);
    } else {
        description = json_incref(keys);
    }
    if (k->format)
        json_object_set_new(description, "driver", json_string(k->format));
    describe_push_filename_down(description);
    /* Below a filter a bare name would be a protocol's, and its format not looked at. */
    json_t *name = json_object_get(description, "filename");
    if (name && !json_object_get(description, "driver") &&
        !strchr(json_string_value(name) ? json_string_value(name) : ":", ':')) {
        json_object_set_new(description, "file", json_pack("{s:O}", "filename", name));
        json_object_del(description, "filename");
    }
    *out = description;
    return 0;
}

/* A word that stays among the node's keys, or "". */
static const char *word(json_t *keys, const char *key)
{
    const char *value = json_string_value(json_object_get(keys, key));
    return value ? value : "";
}

static int judge(json_t *options, json_t *keys, const struct drive_keys *k, struct drive *out,
                 struct error **err)
{
    const char *media = word(options, "media"), *discard = word(keys, "discard");
    bool read_only = json_is_true(json_object_get(keys, "read-only"));

    if (*media && strcmp(media, "cdrom") != 0 && strcmp(media, "disk") != 0)
        return error_set(err, EINVAL, "media is '%s': disk and cdrom are known", media);
    opts_parse_bool(word(keys, "read-only"), &read_only);
    json_object_del(keys, "read-only");
    out->read_only = read_only || k->readonly || strcmp(media, "cdrom") == 0;
    out->snapshot = k->snapshot;
    out->unmap = strcmp(discard, "unmap") == 0 || strcmp(discard, "on") == 0;
    if (k->copy_on_read && out->read_only)
        return error_set(err, EINVAL, "copy-on-read cannot be had with a read-only drive");
    bool direct = out->cache && (!strcmp(out->cache, "none") || !strcmp(out->cache, "directsync"));
    if (k->aio == AIO_NATIVE && !direct && !json_object_get(keys, "cache"))
        return error_set(err, EINVAL, "aio=native wants cache.direct=on (or cache=none)");
    return 0;
}

static int make(json_t *options, json_t *keys, struct drive_keys *k, struct drive *out,
                struct error **err)
{
    int r = take_cache(keys, k, out, err);
    if (r == 0)
        r = judge(options, keys, k, out, err);
    if (r < 0)
        return r;
    if (k->id && !(out->id = strdup(k->id)))
        return error_set(err, ENOMEM, "out of memory");
    _cleanup_json_ json_t *limits = take_limits(keys);
    if (json_object_size(keys) == 0 && !k->format)
        return 0;
    if (!json_object_get(keys, "file") && !json_object_get(keys, "driver") && !k->format)
        return 0; /* options of a drive that has no file */
    r = describe(keys, k, &out->description, err);
    if (r == 0 && k->copy_on_read)
        r = wrap(&out->description, "copy-on-read", NULL, err);
    if (r == 0 && limits)
        r = wrap(&out->description, "throttle", limits, err);
    return r;
}

int drive_parse(json_t *options, struct drive *out, struct error **err)
{
    struct drive_keys k = { .writeback = true };

    *out = (struct drive){ 0 };
    _cleanup_json_ json_t *keys = json_deep_copy(options);
    if (!keys)
        return error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < ARRAY_SIZE(plug_keys); i++)
        json_object_del(keys, plug_keys[i]);
    int r = opts_take(drive_table, keys, &k, err);
    if (r < 0)
        return r;
    r = make(options, keys, &k, out, err);
    opts_free(drive_table, &k);
    if (r < 0)
        drive_free(out);
    return r;
}
