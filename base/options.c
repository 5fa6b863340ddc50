/* From the JSON object to the typed struct. */
#include "base/options.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/distance.h"
#include "base/error.h"
#include "base/human.h"
#include "base/strbuf.h"
#include "options_number.h"

/* ---- finding and taking keys ---------------------------------------------------------------- */

/* Takes the value at a (possibly dotted) name out of the object, and objects that it leaves
 * empty. NULL when it is not there. */
static json_t *take(json_t *object, const char *name)
{
    const char *dot = strchr(name, '.');
    json_t *value = NULL;

    if (!dot) {
        value = json_incref(json_object_get(object, name));
        json_object_del(object, name);
        return value;
    }
    _cleanup_free_ char *head = strndup(name, (size_t)(dot - name));
    json_t *inner = head ? json_object_get(object, head) : NULL;

    if (json_is_object(inner)) {
        value = take(inner, dot + 1);
        if (value && json_object_size(inner) == 0)
            json_object_del(object, head);
    }
    return value;
}

/* ---- one value ------------------------------------------------------------------------------ */

/* How a value is named in a sentence. */
struct shown {
    char text[72];
};

static struct shown show(const json_t *value)
{
    struct shown shown;

    if (json_is_string(value)) {
        const char *s = json_string_value(value);

        snprintf(shown.text, sizeof(shown.text), "'%.60s%s'", s, strlen(s) > 60 ? "..." : "");
    } else {
        char *s = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);

        snprintf(shown.text, sizeof(shown.text), "%.60s", s ? s : "?");
        free(s);
    }
    return shown;
}

static int set_bool(const struct opt_def *def, const json_t *value, void *at, struct error **err)
{
    bool *out = at;

    if (json_is_boolean(value)) {
        *out = json_is_true(value);
        return 0;
    }
    if (json_is_string(value) && opts_parse_bool(json_string_value(value), out) == 0)
        return 0;
    return error_set(err, EINVAL, "option '%s' must be on or off, not %s", def->name,
                     show(value).text);
}

static int refuse_range(const struct opt_def *def, const json_t *value, struct error **err)
{
    if (def->type == OPT_SIZE && def->max) {
        return error_set(err, EINVAL, "option '%s' must be between %s and %s, not %s", def->name,
                         human_size_exact(def->min).s, human_size_exact(def->max).s,
                         show(value).text);
    }
    if (def->max) {
        return error_set(err, EINVAL,
                         "option '%s' must be between %" PRIu64 " and %" PRIu64 ", not %s",
                         def->name, def->min, def->max, show(value).text);
    }
    if (def->min) {
        return error_set(err, EINVAL, "option '%s' must be at least %" PRIu64 ", not %s", def->name,
                         def->min, show(value).text);
    }
    return error_set(err, EINVAL, "option '%s' is too large: %s", def->name, show(value).text);
}

static int set_number(const struct opt_def *def, const json_t *value, void *at, struct error **err)
{
    bool size = def->type == OPT_SIZE;
    uint64_t *out = at;
    int r = -EINVAL;

    if (json_is_integer(value)) {
        *out = (uint64_t)json_integer_value(value);
        r = json_integer_value(value) < 0 ? -EINVAL : 0;
    } else if (json_is_string(value)) {
        const char *text = json_string_value(value);
        r = size ? size_parse(text, out) : number_parse(text, out);
    }
    if (r == -EINVAL) {
        return error_set(err, EINVAL, "option '%s' must be a %s, not %s", def->name,
                         size ? "size such as 64k or 1.5G" : "whole number", show(value).text);
    }
    if (r < 0 || *out < def->min || (def->max && *out > def->max))
        return refuse_range(def, value, err);
    return 0;
}

static int set_string(const struct opt_def *def, const json_t *value, void *at, struct error **err)
{
    char **out = at;

    if (!json_is_string(value)) {
        return error_set(err, EINVAL, "option '%s' must be a string, not %s", def->name,
                         show(value).text);
    }
    if (strlen(json_string_value(value)) != json_string_length(value))
        return error_set(err, EINVAL, "option '%s' holds a zero byte", def->name);
    char *copy = strdup(json_string_value(value));

    if (!copy)
        return error_set(err, ENOMEM, "out of memory");
    free(*out);
    *out = copy;
    return 0;
}

static int refuse_choice(const struct opt_def *def, const json_t *value, struct error **err)
{
    _cleanup_strbuf_ struct strbuf list = STRBUF_INIT;

    for (const struct opt_choice *c = def->choices; c->name; c++)
        strbuf_addf(&list, "%s%s", c == def->choices ? "" : c[1].name ? ", " : " or ", c->name);
    return error_set(err, EINVAL, "option '%s' must be %s, not %s", def->name, strbuf_text(&list),
                     show(value).text);
}

static int set_enum(const struct opt_def *def, const json_t *value, void *at, struct error **err)
{
    const char *text = json_is_string(value)  ? json_string_value(value)
                       : json_is_true(value)  ? "on"
                       : json_is_false(value) ? "off"
                                              : NULL;
    int *out = at;

    for (const struct opt_choice *c = def->choices; text && c->name; c++) {
        if (strcmp(c->name, text) == 0) {
            *out = c->value;
            return 0;
        }
    }
    return refuse_choice(def, value, err);
}

static int set_value(const struct opt_def *def, const json_t *value, void *dst, struct error **err)
{
    void *at = (char *)dst + def->at;

    switch (def->type) {
    case OPT_BOOL:
        return set_bool(def, value, at, err);
    case OPT_SIZE:
    case OPT_NUMBER:
        return set_number(def, value, at, err);
    case OPT_STRING:
        return set_string(def, value, at, err);
    case OPT_ENUM:
        return set_enum(def, value, at, err);
    case OPT_JSON:
        json_decref(*(json_t **)at);
        *(json_t **)at = json_incref((json_t *)(uintptr_t)value);
        return 0;
    }
    assert(false);
    return -EINVAL;
}

/* ---- the table ------------------------------------------------------------------------------ */

static int take_one(const struct opt_def *def, json_t *object, void *dst, struct error **err)
{
    _cleanup_json_ json_t *value = take(object, def->name);

    if (value) {
        if (def->given)
            *(bool *)((char *)dst + def->given) = true;
        return set_value(def, value, dst, err);
    }
    if (def->def) {
        _cleanup_json_ json_t *text = json_string(def->def);

        return set_value(def, text, dst, err);
    }
    return 0;
}

int opts_take(const struct opt_def *table, json_t *object, void *dst, struct error **err)
{
    for (const struct opt_def *def = table; def && def->name; def++) {
        int r = take_one(def, object, dst, err);

        if (r < 0) {
            opts_free(table, dst);
            return r;
        }
    }
    return 0;
}

void opts_free(const struct opt_def *table, void *dst)
{
    for (const struct opt_def *def = table; def && def->name; def++) {
        if (def->type == OPT_STRING) {
            char **at = (char **)(void *)((char *)dst + def->at);

            free(*at);
            *at = NULL;
        } else if (def->type == OPT_JSON) {
            json_t **at = (json_t **)(void *)((char *)dst + def->at);

            json_decref(*at);
            *at = NULL;
        }
    }
}

/* The first key that is left, with the names of the groups around it. */
static void first_key(json_t *object, struct strbuf *name)
{
    while (json_is_object(object)) {
        void *first = json_object_iter(object);

        if (!first)
            return;
        strbuf_addf(name, "%s%s", name->len ? "." : "", json_object_iter_key(first));
        object = json_object_iter_value(first);
    }
}

int opts_refuse_rest(const struct opt_def *table, json_t *object, const char *what,
                     struct error **err)
{
    _cleanup_strbuf_ struct strbuf name = STRBUF_INIT;
    struct nearest best;

    if (json_object_size(object) == 0)
        return 0;
    first_key(object, &name);
    best = nearest_begin(strbuf_text(&name));
    for (const struct opt_def *def = table; def && def->name; def++)
        nearest_try(&best, def->name);
    if (best.name) {
        return error_set(err, EINVAL, "%s: unknown option '%s'; did you mean '%s'?", what,
                         strbuf_text(&name), best.name);
    }
    return error_set(err, EINVAL, "%s: unknown option '%s'", what, strbuf_text(&name));
}
