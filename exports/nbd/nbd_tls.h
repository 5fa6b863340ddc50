/* TLS for the NBD server: whose certificate or key it shows, and whom it believes.
 *
 * Folders are laid out as QEMU's: x509: ca-cert.pem, server-cert.pem, server-key.pem, maybe ca-crl.pem;
 * psk: keys.psk with lines "name:hexadecimal key".
 * Errors: 0 or a negative errno, and a sentence. Threads: any, once made.
 */
#ifndef EXPORTS_NBD_TLS_H
#define EXPORTS_NBD_TLS_H

#include <stdbool.h>

struct error;
struct nbd_tls;

enum nbd_tls_kind { NBD_TLS_X509, NBD_TLS_PSK, NBD_TLS_ANON };

struct nbd_tls_config {
    enum nbd_tls_kind kind;
    const char *dir;      /* NULL: the usual places, for x509 */
    const char *priority; /* a GnuTLS priority string; NULL: NORMAL */
    const char *password; /* of the key; NULL: none */
    bool verify_peer;     /* x509: clients must show a certificate of our authority */
    /* The client's distinguished name or PSK identity is welcome; NULL: all are. Any thread. */
    bool (*authorize)(void *opaque, const char *identity);
    void *opaque;
};

int nbd_tls_new(struct nbd_tls **out, const struct nbd_tls_config *config, struct error **err);
void nbd_tls_free(struct nbd_tls *tls); /* NULL is fine */

#endif
