/* --object: keys, passwords and who is welcome.
 *
 *     tls-creds-x509,id=tls0,dir=/etc/pki/qemu,endpoint=server,verify-peer=on,passwordid=sec0
 *     tls-creds-psk,id=tls0,dir=/tmp/keys,endpoint=server
 *     authz-simple,id=auth0,identity=CN=client
 *     secret,id=sec0,data=...   or file=...
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/options.h"
#include "exports/nbd_tls.h"
#include "nbd.h"

struct objects {
    json_t *list; /* of objects, each with "qom-type" and "id" */
    struct nbd_tls *tls;
    char *password, *identity;
};

static json_t *find(const struct objects *o, const char *id)
{
    size_t i;
    json_t *x;

    json_array_foreach(o->list, i, x)
    {
        const char *has = json_string_value(json_object_get(x, "id"));
        if (has && !strcmp(has, id))
            return x;
    }
    return NULL;
}

static const char *text(json_t *x, const char *key)
{
    return json_string_value(json_object_get(x, key));
}

static const char *type_of(json_t *x)
{
    const char *type = text(x, "qom-type");
    return type ? type : "";
}

static int parse(struct objects *o, const char *spec, struct error **err)
{
    static const char *const types[] = { "tls-creds-x509", "tls-creds-psk", "tls-creds-anon",
                                         "authz-simple",   "secret",        NULL };
    json_t *x =
        spec[0] == '{' ? opts_parse_json(spec, err) : opts_parse_keyval(spec, "qom-type", err);

    if (!x)
        return -EINVAL;
    json_array_append_new(o->list, x);
    if (!text(x, "id"))
        return error_set(err, EINVAL, "--object %s: id= is missing", spec);
    for (const char *const *t = types; *t; t++)
        if (!strcmp(*t, type_of(x)))
            return 0;
    return error_set(err, EINVAL, "--object: the type '%s' is not known", type_of(x));
}

/* ---- passwords ----------------------------------------------------------------------------------------- */

static char *read_file(const char *path, struct error **err)
{
    enum { MAX_SECRET = 4096 };
    _cleanup_stream_ FILE *f = fopen(path, "re");
    char *buf = calloc(1, MAX_SECRET);

    if (!f || !buf) {
        error_set(err, errno ? errno : ENOMEM, "%s: %s", path, strerror(errno));
        free(buf);
        return NULL;
    }
    size_t n = fread(buf, 1, MAX_SECRET - 1, f);
    buf[n] = '\0';
    return buf;
}

static int load_password(struct objects *o, const char *id, struct error **err)
{
    json_t *x = find(o, id);

    if (!x || strcmp(type_of(x), "secret") != 0)
        return error_set(err, ENOENT, "there is no secret '%s'", id);
    if (text(x, "keyid") || (text(x, "format") && strcmp(text(x, "format"), "raw") != 0))
        return error_set(err, ENOTSUP, "secret '%s': only format=raw without a keyid", id);
    if (text(x, "data"))
        o->password = strdup(text(x, "data"));
    else if (text(x, "file"))
        o->password = read_file(text(x, "file"), err);
    else
        return error_set(err, EINVAL, "secret '%s': data= or file= is missing", id);
    return o->password ? 0 : -EINVAL;
}

/* ---- TLS ------------------------------------------------------------------------------------------------- */

static bool welcome(void *opaque, const char *identity)
{
    const struct objects *o = opaque;
    return !strcmp(o->identity, identity);
}

static int load_authz(struct objects *o, const char *id, struct error **err)
{
    json_t *x = find(o, id);

    if (!x || strcmp(type_of(x), "authz-simple") != 0 || !text(x, "identity"))
        return error_set(err, ENOENT, "there is no authz-simple object '%s' with an identity", id);
    o->identity = strdup(text(x, "identity"));
    return o->identity ? 0 : error_set(err, ENOMEM, "out of memory");
}

static int load_tls(struct objects *o, const struct args *a, struct error **err)
{
    json_t *x = find(o, a->tls_creds);
    const char *type = x ? type_of(x) : "";
    bool verify = true;

    if (strncmp(type, "tls-creds-", 10) != 0)
        return error_set(err, ENOENT, "there are no TLS credentials '%s'", a->tls_creds);
    const char *endpoint = text(x, "endpoint"), *peer = text(x, "verify-peer");
    if (endpoint && strcmp(endpoint, "server") != 0)
        return error_set(err, EINVAL, "the TLS credentials '%s' are for a %s, not a server",
                         a->tls_creds, endpoint);
    if (peer && opts_parse_bool(peer, &verify) < 0)
        return error_set(err, EINVAL, "verify-peer=%s: it is on or off", peer);
    int ret = text(x, "passwordid") ? load_password(o, text(x, "passwordid"), err) : 0;
    if (ret == 0 && a->tls_authz)
        ret = load_authz(o, a->tls_authz, err);
    if (ret < 0)
        return ret;
    struct nbd_tls_config config = {
        .kind = !strcmp(type, "tls-creds-x509")  ? NBD_TLS_X509
                : !strcmp(type, "tls-creds-psk") ? NBD_TLS_PSK
                                                 : NBD_TLS_ANON,
        .dir = text(x, "dir"),
        .priority = text(x, "priority"),
        .password = o->password,
        .verify_peer = verify,
        .authorize = o->identity ? welcome : NULL,
        .opaque = o,
    };
    return nbd_tls_new(&o->tls, &config, err);
}

int objects_new(struct objects **out, const struct args *a, struct error **err)
{
    struct objects *o = calloc(1, sizeof(*o));
    int ret = 0;

    *out = o;
    if (!o || !(o->list = json_array()))
        return error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < a->objects.len && ret == 0; i++)
        ret = parse(o, a->objects.at[i], err);
    return ret == 0 && a->tls_creds ? load_tls(o, a, err) : ret;
}

struct nbd_tls *objects_tls(struct objects *o)
{
    return o->tls;
}

void objects_free(struct objects *o)
{
    if (!o)
        return;
    nbd_tls_free(o->tls);
    json_decref(o->list);
    free(o->password);
    free(o->identity);
    free(o);
}
