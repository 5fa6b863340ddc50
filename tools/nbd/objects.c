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
    struct nbd_tls *tls;
    char *password, *identity;
};

static bool is_kind(const char *id, const char *kind)
{
    const char *type = blk_object_text(id, "qom-type");
    return type && !strcmp(type, kind);
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
    const char *format = blk_object_text(id, "format"), *data = blk_object_text(id, "data");
    const char *file = blk_object_text(id, "file");

    if (!is_kind(id, "secret"))
        return error_set(err, ENOENT, "there is no secret '%s'", id);
    if (blk_object_text(id, "keyid") || (format && strcmp(format, "raw") != 0))
        return error_set(err, ENOTSUP, "secret '%s': only format=raw without a keyid", id);
    if (data)
        o->password = strdup(data);
    else if (file)
        o->password = read_file(file, err);
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
    const char *identity = blk_object_text(id, "identity");

    if (!is_kind(id, "authz-simple") || !identity)
        return error_set(err, ENOENT, "there is no authz-simple object '%s' with an identity", id);
    o->identity = strdup(identity);
    return o->identity ? 0 : error_set(err, ENOMEM, "out of memory");
}

static int load_tls(struct objects *o, const struct args *a, struct error **err)
{
    const char *id = a->tls_creds, *type = blk_object_text(id, "qom-type");
    bool verify = true;

    if (!type || strncmp(type, "tls-creds-", 10) != 0)
        return error_set(err, ENOENT, "there are no TLS credentials '%s'", a->tls_creds);
    const char *endpoint = blk_object_text(id, "endpoint");
    const char *peer = blk_object_text(id, "verify-peer");
    const char *password = blk_object_text(id, "passwordid");
    if (endpoint && strcmp(endpoint, "server") != 0)
        return error_set(err, EINVAL, "the TLS credentials '%s' are for a %s, not a server",
                         a->tls_creds, endpoint);
    if (peer && opts_parse_bool(peer, &verify) < 0)
        return error_set(err, EINVAL, "verify-peer=%s: it is on or off", peer);
    int ret = password ? load_password(o, password, err) : 0;
    if (ret == 0 && a->tls_authz)
        ret = load_authz(o, a->tls_authz, err);
    if (ret < 0)
        return ret;
    struct nbd_tls_config config = {
        .kind = !strcmp(type, "tls-creds-x509")  ? NBD_TLS_X509
                : !strcmp(type, "tls-creds-psk") ? NBD_TLS_PSK
                                                 : NBD_TLS_ANON,
        .dir = blk_object_text(id, "dir"),
        .priority = blk_object_text(id, "priority"),
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
    if (!o)
        return error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < a->objects.len && ret == 0; i++)
        ret = blk_object_add(a->objects.at[i], err);
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
    free(o->password);
    free(o->identity);
    free(o);
}
