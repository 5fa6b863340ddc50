/* How -serial and -monitor spell a chardev: "stdio", "unix:PATH,server=on", "tcp:HOST:PORT", "file:PATH". */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"
#include "internal.h"

static bool begins(const char *text, const char *with, const char **rest)
{
    size_t n = strlen(with);

    if (strncmp(text, with, n) != 0)
        return false;
    *rest = text + n;
    return true;
}

/* "PLACE,key=value,...": the options; *place is what stands before them, to be freed. */
static json_t *split(const char *rest, char **place, struct error **err)
{
    size_t n = strcspn(rest, ",");

    *place = strndup(rest, n);
    if (!*place)
        return NULL;
    return rest[n] ? opts_parse_keyval(rest + n + 1, NULL, err) : json_object();
}

/* "server" alone and "nowait" are of old. */
static char *modern(const char *rest)
{
    _cleanup_free_ char *place = strndup(rest, strcspn(rest, ","));
    char *out = place ? strdup(place) : NULL;

    for (rest += strcspn(rest, ","); out && *rest; rest += strcspn(rest, ",")) {
        size_t n = strcspn(++rest, ",");
        bool off = n > 2 && !strncmp(rest, "no", 2) && strncmp(rest, "nodelay", 7) != 0;
        char *longer = NULL;
        int r = memchr(rest, '=', n) ? asprintf(&longer, "%s,%.*s", out, (int)n, rest)
                                     : asprintf(&longer, "%s,%.*s=%s", out, (int)n - (off ? 2 : 0),
                                                rest + (off ? 2 : 0), off ? "off" : "on");
        free(out);
        out = r < 0 ? NULL : longer;
    }
    return out;
}

static json_t *with_place(const char *rest, const char *backend, const char *key,
                          struct error **err)
{
    _cleanup_free_ char *place = NULL;
    json_t *o = split(rest, &place, err);

    if (o && (json_object_set_new(o, "backend", json_string(backend)) < 0 ||
              (key && json_object_set_new(o, key, json_string(place)) < 0)))
        error_set(err, EINVAL, "chardev: '%s' is not UTF-8", place);
    return o;
}

/* HOST:PORT; the host may be [an IPv6 address] or empty. */
static int host_and_port(json_t *o, const char *place, struct error **err)
{
    const char *colon = strrchr(place, ':');

    if (!colon || !colon[1])
        return error_set(err, EINVAL, "chardev: '%s' is no HOST:PORT", place);
    size_t n = (size_t)(colon - place);
    if (n >= 2 && place[0] == '[' && place[n - 1] == ']') {
        place++;
        n -= 2;
    }
    json_object_set_new(o, "host", json_stringn(place, n));
    json_object_set_new(o, "port", json_string(colon + 1));
    return 0;
}

static json_t *tcp(const char *rest, bool telnet, struct error **err)
{
    _cleanup_free_ char *place = NULL;
    json_t *o = split(rest, &place, err);

    if (!o)
        return NULL;
    json_object_set_new(o, "backend", json_string("socket"));
    if (telnet)
        json_object_set_new(o, "telnet", json_true());
    if (host_and_port(o, place, err) < 0) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static json_t *describe(const char *text, struct error **err)
{
    const char *rest;

    if (begins(text, "unix:", &rest))
        return with_place(rest, "socket", "path", err);
    if (begins(text, "tcp:", &rest))
        return tcp(rest, false, err);
    if (begins(text, "telnet:", &rest))
        return tcp(rest, true, err);
    if (begins(text, "file:", &rest))
        return with_place(rest, "file", "path", err);
    if (begins(text, "pipe:", &rest))
        return with_place(rest, "pipe", "path", err);
    if (begins(text, "/dev/", &rest))
        return with_place(text, "serial", "path", err);
    return with_place(text, text, NULL, err);
}

int chardev_add_legacy(const char *text, const char *id, const char **name, struct error **err)
{
    const char *rest;

    *name = NULL;
    if (!strcmp(text, "none"))
        return 0;
    if (begins(text, "chardev:", &rest)) {
        struct chardev *c = chardev_find(rest);
        *name = c ? c->id : NULL;
        return c ? 0 : error_set(err, ENOENT, "there is no chardev '%s'", rest);
    }
    bool mux = begins(text, "mon:", &text);
    _cleanup_free_ char *spelt = modern(text);
    if (!spelt)
        return error_set(err, ENOMEM, "out of memory");
    _cleanup_json_ json_t *o = describe(spelt, err);
    if (!o)
        return -EINVAL;
    json_object_set_new(o, "id", json_string(id));
    if (mux) {
        json_object_set_new(o, "mux", json_true());
        if (!strcmp(text, "stdio"))
            json_object_set_new(o, "signal", json_false()); /* Ctrl-C is the guest's */
    }
    int ret = chardev_add(o, err);
    if (ret == 0)
        *name = chardev_find(id)->id;
    return ret;
}
