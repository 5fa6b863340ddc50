/* TLS on a connection, by GnuTLS, and what the server shows and believes. */
#include "nbd_tls.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "internal.h"

struct nbd_tls {
    struct nbd_tls_config config;
    gnutls_certificate_credentials_t x509;
    gnutls_psk_server_credentials_t psk;
    gnutls_anon_server_credentials_t anon;
    gnutls_priority_t priority;
};

/* ---- credentials ------------------------------------------------------------------------------------- */

static char *in_dir(const char *dir, const char *name)
{
    char *path = NULL;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static int fail(struct error **err, const char *what, const char *path, int code)
{
    return error_set(err, EINVAL, "TLS: cannot use the %s %s: %s", what, path,
                     gnutls_strerror(code));
}

static int load_x509(struct nbd_tls *t, const char *dir, struct error **err)
{
    _cleanup_free_ char *ca = in_dir(dir, "ca-cert.pem"), *crl = in_dir(dir, "ca-crl.pem");
    _cleanup_free_ char *cert = in_dir(dir, "server-cert.pem");
    _cleanup_free_ char *key = in_dir(dir, "server-key.pem");

    if (!ca || !crl || !cert || !key)
        return error_set(err, ENOMEM, "out of memory");
    int ret = gnutls_certificate_set_x509_trust_file(t->x509, ca, GNUTLS_X509_FMT_PEM);
    if (ret < 0)
        return fail(err, "authority's certificate", ca, ret);
    ret = gnutls_certificate_set_x509_key_file2(t->x509, cert, key, GNUTLS_X509_FMT_PEM,
                                                t->config.password, 0);
    if (ret < 0)
        return fail(err, "server's certificate or key in", dir, ret);
    if (access(crl, R_OK) == 0) {
        ret = gnutls_certificate_set_x509_crl_file(t->x509, crl, GNUTLS_X509_FMT_PEM);
        if (ret < 0)
            return fail(err, "revocation list", crl, ret);
    }
    return 0;
}

static const char *usual_dir(void)
{
    static const char *const dirs[] = { "/etc/pki/qemu", "/etc/pki/platter" };

    for (size_t i = 0; i < sizeof(dirs) / sizeof(*dirs); i++)
        if (access(dirs[i], R_OK) == 0)
            return dirs[i];
    return NULL;
}

static int load(struct nbd_tls *t, struct error **err)
{
    const char *dir = t->config.dir ? t->config.dir : usual_dir();
    int ret;

    if (t->config.kind == NBD_TLS_ANON)
        return gnutls_anon_allocate_server_credentials(&t->anon) < 0
                   ? error_set(err, ENOMEM, "out of memory")
                   : 0;
    if (!dir)
        return error_set(err, EINVAL, "TLS: dir= is missing: the folder with the keys");
    if (t->config.kind == NBD_TLS_X509) {
        ret = gnutls_certificate_allocate_credentials(&t->x509);
        return ret < 0 ? error_set(err, ENOMEM, "out of memory") : load_x509(t, dir, err);
    }
    _cleanup_free_ char *keys = in_dir(dir, "keys.psk");
    if (!keys || gnutls_psk_allocate_server_credentials(&t->psk) < 0)
        return error_set(err, ENOMEM, "out of memory");
    if (access(keys, R_OK) < 0)
        return error_set(err, errno, "TLS: cannot read the keys in %s: %s", keys, strerror(errno));
    ret = gnutls_psk_set_server_credentials_file(t->psk, keys);
    return ret < 0 ? fail(err, "keys in", keys, ret) : 0;
}

/* The kinds without certificates must be named beside what is usual. */
static int set_priority(struct nbd_tls *t, struct error **err)
{
    static const char *const added[] = {
        [NBD_TLS_X509] = "",
        [NBD_TLS_PSK] = ":+ECDHE-PSK:+DHE-PSK:+PSK",
        [NBD_TLS_ANON] = ":+ANON-DH:+ANON-ECDH",
    };
    const char *base = t->config.priority ? t->config.priority : "NORMAL";
    _cleanup_free_ char *text = NULL;

    if (asprintf(&text, "%s%s", base, added[t->config.kind]) < 0) {
        text = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    int ret = gnutls_priority_init(&t->priority, text, NULL);
    return ret < 0 ? error_set(err, EINVAL, "TLS: the priority string '%s' is not known: %s", text,
                               gnutls_strerror(ret))
                   : 0;
}

int nbd_tls_new(struct nbd_tls **out, const struct nbd_tls_config *config, struct error **err)
{
    struct nbd_tls *t = calloc(1, sizeof(*t));

    *out = NULL;
    if (!t)
        return error_set(err, ENOMEM, "out of memory");
    t->config = *config;
    int ret = load(t, err);
    if (ret == 0)
        ret = set_priority(t, err);
    if (ret < 0) {
        nbd_tls_free(t);
        return ret;
    }
    t->config.dir = t->config.priority = t->config.password = NULL; /* the caller's */
    *out = t;
    return 0;
}

void nbd_tls_free(struct nbd_tls *t)
{
    if (!t)
        return;
    if (t->x509)
        gnutls_certificate_free_credentials(t->x509);
    if (t->psk)
        gnutls_psk_free_server_credentials(t->psk);
    if (t->anon)
        gnutls_anon_free_server_credentials(t->anon);
    if (t->priority)
        gnutls_priority_deinit(t->priority);
    free(t);
}

/* ---- a session ------------------------------------------------------------------------------------------ */

static ssize_t push(gnutls_transport_ptr_t p, const void *data, size_t len)
{
    struct conn *c = p;
    ssize_t n;

    do {
        n = send(c->watch.fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    return n;
}

static ssize_t pull(gnutls_transport_ptr_t p, void *data, size_t len)
{
    struct conn *c = p;
    ssize_t n;

    do {
        n = recv(c->watch.fd, data, len, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    return n;
}

int tls_start(struct conn *c)
{
    struct nbd_tls *t = c->server->config.tls;
    gnutls_session_t s;

    if (gnutls_init(&s, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) < 0)
        return -ENOMEM;
    int ret = gnutls_priority_set(s, t->priority);
    if (ret == 0)
        ret = t->x509  ? gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, t->x509)
              : t->psk ? gnutls_credentials_set(s, GNUTLS_CRD_PSK, t->psk)
                       : gnutls_credentials_set(s, GNUTLS_CRD_ANON, t->anon);
    if (ret < 0) {
        gnutls_deinit(s);
        return -EINVAL;
    }
    if (t->config.kind == NBD_TLS_X509 && t->config.verify_peer)
        gnutls_certificate_server_set_request(s, GNUTLS_CERT_REQUIRE);
    gnutls_transport_set_ptr(s, c);
    gnutls_transport_set_push_function(s, push);
    gnutls_transport_set_pull_function(s, pull);
    gnutls_handshake_set_timeout(s, GNUTLS_INDEFINITE_TIMEOUT); /* conn.deadline is what counts */
    c->tls = s;
    return 0;
}

/* Who the client says it is, as far as that was proved. NULL: it did not say. */
static char *identity(gnutls_session_t s, enum nbd_tls_kind kind)
{
    if (kind == NBD_TLS_PSK) {
        const char *name = gnutls_psk_server_get_username(s);
        return name ? strdup(name) : NULL;
    }
    unsigned count = 0;
    const gnutls_datum_t *certs =
        kind == NBD_TLS_X509 ? gnutls_certificate_get_peers(s, &count) : NULL;
    gnutls_x509_crt_t crt;
    gnutls_datum_t dn = { NULL, 0 };
    char *text = NULL;
    if (!certs || count == 0 || gnutls_x509_crt_init(&crt) < 0)
        return NULL;
    if (gnutls_x509_crt_import(crt, &certs[0], GNUTLS_X509_FMT_DER) == 0 &&
        gnutls_x509_crt_get_dn2(crt, &dn) == 0)
        text = strndup((const char *)dn.data, dn.size);
    gnutls_free(dn.data);
    gnutls_x509_crt_deinit(crt);
    return text;
}

static bool believed(struct conn *c)
{
    struct nbd_tls *t = c->server->config.tls;
    gnutls_session_t s = c->tls;
    unsigned status = 0;

    if (t->config.kind == NBD_TLS_X509 && t->config.verify_peer &&
        (gnutls_certificate_verify_peers2(s, &status) < 0 || status != 0)) {
        server_log(c->server, "%s: refused: its certificate is not one of our authority's",
                   c->peer);
        return false;
    }
    if (!t->config.authorize)
        return true;
    _cleanup_free_ char *who = identity(s, t->config.kind);
    if (who && t->config.authorize(t->config.opaque, who))
        return true;
    server_log(c->server, "%s: refused: '%s' is not authorized", c->peer, who ? who : "");
    return false;
}

int tls_handshake(struct conn *c)
{
    int ret = gnutls_handshake(c->tls);

    if (ret < 0 && !gnutls_error_is_fatal(ret))
        return 0;
    if (ret < 0) {
        server_log(c->server, "%s: the TLS handshake failed: %s", c->peer, gnutls_strerror(ret));
        return -EPROTO;
    }
    if (!believed(c))
        return -EACCES;
    c->secure = true;
    return 1;
}

static ssize_t outcome(ssize_t n)
{
    if (n >= 0)
        return n;
    errno = n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED ? EAGAIN
            : n == GNUTLS_E_PREMATURE_TERMINATION            ? ECONNRESET
                                                             : EPROTO;
    return -1;
}

ssize_t tls_recv(struct conn *c, void *buf, size_t len)
{
    return outcome(gnutls_record_recv(c->tls, buf, len));
}

/* A record that could not be sent whole is kept by GnuTLS and must be offered again: the queue does that, because
 * it stays as it is. */
ssize_t tls_send(struct conn *c, const void *buf, size_t len)
{
    size_t sent = 0;

    while (sent < len) {
        ssize_t n = gnutls_record_send(c->tls, (const uint8_t *)buf + sent, len - sent);
        if (n < 0)
            return sent > 0 && (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED) ? (ssize_t)sent
                                                                                  : outcome(n);
        sent += (size_t)n;
    }
    return (ssize_t)sent;
}

void tls_end(struct conn *c)
{
    if (c->tls)
        gnutls_deinit(c->tls);
    c->tls = NULL;
}
