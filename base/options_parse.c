/* From text to one JSON object: key=value lists and JSON, both with dotted keys unfolded.
 *
 * A dotted key names a place in nested objects; objects whose keys are 0, 1, ... n-1 are lists, as
 * in "server.0.host=a,server.1.host=b".
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"

enum {
    DEEPEST = 32,       /* nested objects */
    LONGEST_KEY = 1023, /* a whole dotted key */
};

static json_t *unfold(json_t *value, unsigned depth, struct error **err);

/* Stores a value, whose reference it takes, at a dotted key. A later value replaces an earlier one.
 */
static int store(json_t *object, const char *dotted, json_t *taken, unsigned depth,
                 struct error **err)
{
    _cleanup_json_ json_t *value = taken;
    const char *part = dotted;

    if (strlen(dotted) > LONGEST_KEY) {
        return error_set(err, EINVAL, "option name '%.32s...' is longer than %d characters", dotted,
                         LONGEST_KEY);
    }
    for (;;) {
        char name[LONGEST_KEY + 1];
        size_t len = strcspn(part, ".");
        json_t *inner;

        memcpy(name, part, len);
        name[len] = '\0';
        if (len == 0)
            return error_set(err, EINVAL, "option name '%s' has an empty part", dotted);
        inner = json_object_get(object, name);
        if (!part[len]) {
            if (inner && json_is_object(inner) != json_is_object(value)) {
                return error_set(err, EINVAL, "option '%s' is both a value and a group of options",
                                 dotted);
            }
            if (inner && json_is_object(inner)) {
                return json_object_update_recursive(inner, value) < 0
                           ? error_set(err, ENOMEM, "out of memory")
                           : 0;
            }
            return json_object_set(object, name, value) < 0
                       ? error_set(err, EINVAL, "option name '%s' is not UTF-8", dotted)
                       : 0;
        }
        if (++depth > DEEPEST) {
            return error_set(err, EINVAL, "option name '%s' is nested deeper than %d", dotted,
                             DEEPEST);
        }
        if (!inner) {
            inner = json_object();
            if (json_object_set_new(object, name, inner) < 0)
                return error_set(err, EINVAL, "option name '%s' is not UTF-8", dotted);
        } else if (!json_is_object(inner)) {
            return error_set(err, EINVAL, "option '%.*s' is both a value and a group of options",
                             (int)(part + len - dotted), dotted);
        }
        object = inner;
        part += len + 1;
    }
}

/* The list that an object with the keys 0 ... n-1 stands for; NULL when it is none. Borrows. */
static json_t *as_list(json_t *object)
{
    size_t n = json_object_size(object);
    json_t *list;

    if (n == 0 || !json_object_get(object, "0"))
        return NULL;
    list = json_array();
    for (size_t i = 0; i < n; i++) {
        char name[24];
        json_t *value;

        snprintf(name, sizeof(name), "%zu", i);
        value = json_object_get(object, name);
        if (!value || json_array_append(list, value) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* Replaces, from the leaves up, what as_list knows. */
static void make_lists(json_t *value)
{
    const char *key;
    json_t *inner;
    void *next;
    size_t i;

    json_array_foreach(value, i, inner)
    {
        make_lists(inner);
    }
    json_object_foreach_safe(value, next, key, inner)
    {
        json_t *list;

        make_lists(inner);
        list = json_is_object(inner) ? as_list(inner) : NULL;
        if (list)
            json_object_set_new(value, key, list);
    }
}

static json_t *unfold_list(json_t *list, unsigned depth, struct error **err)
{
    _cleanup_json_ json_t *out = json_array();
    json_t *inner;
    size_t i;

    json_array_foreach(list, i, inner)
    {
        json_t *value = unfold(inner, depth + 1, err);

        if (!value || json_array_append_new(out, value) < 0) {
            error_set(err, ENOMEM, "out of memory");
            return NULL;
        }
    }
    return json_incref(out);
}

/* How many levels a dotted key stands for. */
static unsigned levels_of(const char *key)
{
    unsigned levels = 1;

    for (; *key; key++)
        levels += *key == '.';
    return levels;
}

/* A copy with every dotted key unfolded. depth: how many objects and lists stand around it, once
 * unfolded. */
static json_t *unfold(json_t *value, unsigned depth, struct error **err)
{
    _cleanup_json_ json_t *out = NULL;
    const char *key;
    json_t *inner;

    if (!json_is_array(value) && !json_is_object(value))
        return json_incref(value);
    if (depth > DEEPEST) {
        error_set(err, EINVAL, "the description is nested deeper than %d", DEEPEST);
        return NULL;
    }
    if (json_is_array(value))
        return unfold_list(value, depth, err);
    out = json_object();
    json_object_foreach(value, key, inner)
    {
        json_t *copy = unfold(inner, depth + levels_of(key), err);

        if (!copy || store(out, key, copy, depth, err) < 0)
            return NULL;
    }
    return json_incref(out);
}

json_t *opts_parse_json(const char *text, struct error **err)
{
    _cleanup_json_ json_t *value = NULL;
    json_t *out;
    json_error_t where;

    value = json_loads(text, JSON_REJECT_DUPLICATES, &where);
    if (!value) {
        error_set(err, EINVAL, "JSON line %d column %d: %s", where.line, where.column, where.text);
        return NULL;
    }
    if (!json_is_object(value)) {
        error_set(err, EINVAL, "JSON description is not an object ({...})");
        return NULL;
    }
    out = unfold(value, 0, err);
    if (out)
        make_lists(out);
    return out;
}

/* One part of the list, up to a comma that is not doubled, with doubled ones made single. *text
 * moves past the comma. */
static char *next_part(const char **text)
{
    const char *p = *text;
    char *part = malloc(strlen(p) + 1);
    size_t n = 0;

    if (!part)
        return NULL;
    for (; *p; p++) {
        if (*p == ',') {
            if (p[1] != ',') {
                p++;
                break;
            }
            p++;
        }
        part[n++] = *p;
    }
    part[n] = '\0';
    *text = p;
    return part;
}

static int store_part(json_t *object, char *part, const char *implied_key, struct error **err)
{
    char *equals = strchr(part, '=');
    const char *key = part, *text = "on";
    json_t *value;

    if (equals) {
        *equals = '\0';
        text = equals + 1;
    } else if (implied_key) {
        key = implied_key;
        text = part;
    }
    if (!*key)
        return error_set(err, EINVAL, "option name missing before '=%s'", text);
    value = json_string(text);
    if (!value)
        return error_set(err, EINVAL, "the value of option '%s' is not UTF-8", key);
    return store(object, key, value, 0, err);
}

json_t *opts_parse_keyval(const char *text, const char *implied_key, struct error **err)
{
    _cleanup_json_ json_t *object = json_object();
    bool first = true;

    while (*text) {
        _cleanup_free_ char *part = next_part(&text);

        if (!part) {
            error_set(err, ENOMEM, "out of memory");
            return NULL;
        }
        if (first && !implied_key && !strchr(part, '=')) {
            error_set(err, EINVAL, "'%s' is not of the form key=value", part);
            return NULL;
        }
        if (!*part) {
            error_set(err, EINVAL, "empty option; a comma within a value is written twice");
            return NULL;
        }
        if (store_part(object, part, first ? implied_key : NULL, err) < 0)
            return NULL;
        first = false;
    }
    make_lists(object);
    return json_incref(object);
}
