/* The life of devices and their place in the machine's list. */
#include "device.h"

#include "base/cleanup.h"
#include "base/distance.h"
#include "base/error.h"

#include <string.h>

/* What every device has; the rest is its type's table. */
struct common {
    char *id, *bus;
    uint64_t boot_index;
    bool boots;
};

static const struct opt_def common_options[] = {
    { .name = "id", .type = OPT_STRING, .at = offsetof(struct common, id), .help = "its name" },
    { .name = "bus",
      .type = OPT_STRING,
      .at = offsetof(struct common, bus),
      .help = "where it is plugged in" },
    { .name = "bootindex",
      .type = OPT_NUMBER,
      .at = offsetof(struct common, boot_index),
      .given = offsetof(struct common, boots),
      .max = 0x7fffffff,
      .help = "its place in the order of booting" },
    OPT_END,
};

const struct device_type *device_type_find(const char *name)
{
    const struct device_type *t;
    for (unsigned i = 0; (t = device_type_at(i)); i++) {
        if (!strcmp(name, t->name) || (t->alias && !strcmp(name, t->alias)))
            return t;
    }
    return NULL;
}

static const struct device_type *find_or_say(const char *name, struct error **err)
{
    const struct device_type *t = device_type_find(name);
    if (t)
        return t;
    struct nearest best = nearest_begin(name);
    for (unsigned i = 0; (t = device_type_at(i)); i++)
        nearest_try(&best, t->name);
    if (best.name)
        error_set(err, ENODEV, "There is no device '%s'; did you mean '%s'?", name, best.name);
    else
        error_set(err, ENODEV, "There is no device '%s'; '-device help' lists them", name);
    return NULL;
}

/* Puts the failing device's name in front. */
static int named(int r, const char *type, const char *id, struct error **err)
{
    if (r && id)
        error_prefix(err, "device '%s' (%s)", id, type);
    else if (r)
        error_prefix(err, "device %s", type);
    return r;
}

static int check_common(const struct device_type *t, const struct common *c, struct device *list,
                        struct error **err)
{
    if (c->id && device_find(list, c->id))
        return error_set(err, EEXIST, "id: there is another device of that name");
    if (c->boots && !t->boot_path)
        return error_set(err, EINVAL, "bootindex: nothing can be booted from it");
    if (c->bus && t->bus && !strcmp(t->bus, "PCI") && strcmp(c->bus, "pcie.0") &&
        strcmp(c->bus, "pci.0"))
        return error_set(err, EINVAL, "bus: there is no PCI bus '%s', only pcie.0", c->bus);
    return 0;
}

static void free_one(struct device *d)
{
    if (d->type->free)
        d->type->free(d);
    if (d->type->options)
        opts_free(d->type->options, d);
    free(d->id);
    free(d->bus);
    free(d);
}

/* Takes what is in *c. */
static int make(struct device **list, const struct device_host *host, const struct device_type *t,
                json_t *object, struct common *c, struct error **err)
{
    struct device *d = calloc(1, t->size);
    if (!d)
        return error_set(err, ENOMEM, "No memory left for it");
    int r = t->options ? opts_take(t->options, object, d, err) : 0;
    if (!r)
        r = opts_refuse_rest(t->options ? t->options : common_options, object, t->name, err);
    d->type = t;
    d->host = host;
    d->boot_index = c->boots ? (int)c->boot_index : -1;
    d->id = c->id;
    d->bus = c->bus;
    c->id = c->bus = NULL;
    if (r) {
        if (t->options)
            opts_free(t->options, d);
        free(d->id);
        free(d->bus);
        free(d);
        return r;
    }
    r = t->realize ? t->realize(d, err) : 0;
    if (r) {
        free_one(d);
        return r;
    }
    while (*list)
        list = &(*list)->next;
    *list = d;
    return 0;
}

int device_add(struct device **list, const struct device_host *host, json_t *options,
               struct error **err)
{
    _cleanup_json_ json_t *object = json_deep_copy(options);
    _cleanup_json_ json_t *driver = json_incref(json_object_get(object, "driver"));
    if (!json_is_string(driver))
        return error_set(err, EINVAL, "A device needs driver=NAME; '-device help' lists them");
    json_object_del(object, "driver");
    const struct device_type *t = find_or_say(json_string_value(driver), err);
    if (!t)
        return -ENODEV;
    struct common c = { 0 };
    int r = opts_take(common_options, object, &c, err);
    if (!r)
        r = check_common(t, &c, *list, err);
    if (!r) {
        const char *id = json_string_value(json_object_get(options, "id"));
        return named(make(list, host, t, object, &c, err), t->name, id, err);
    }
    named(r, t->name, c.id, err);
    opts_free(common_options, &c);
    return r;
}

struct device *device_find(struct device *list, const char *id)
{
    for (; list; list = list->next) {
        if (list->id && !strcmp(list->id, id))
            return list;
    }
    return NULL;
}

void devices_reset(struct device *list)
{
    for (; list; list = list->next) {
        if (list->type->reset)
            list->type->reset(list);
    }
}

void devices_drain(struct device *list)
{
    for (; list; list = list->next) {
        if (list->type->drain)
            list->type->drain(list);
    }
}

void devices_resume(struct device *list)
{
    for (; list; list = list->next) {
        if (list->type->resume)
            list->type->resume(list);
    }
}

void devices_free(struct device **list)
{
    while (*list) {
        struct device **last = list;
        while ((*last)->next)
            last = &(*last)->next;
        free_one(*last);
        *last = NULL;
    }
}
