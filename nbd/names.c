/* File names of NBD exports: URIs (doc/uri.md of the NBD project), and what QEMU had before. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "client.h"

#define EXPORT_NAME ":exportname="

/* "HOST:PORT" or "unix:PATH", n bytes; an IPv6 address has brackets. */
static json_t *describe_address(const char *text, size_t n)
{
    if (n > 5 && !strncmp(text, "unix:", 5))
        return json_pack("{s:s, s:s%}", "type", "unix", "path", text + 5, n - 5);
    size_t host = n;
    while (host > 0 && text[host - 1] != ':')
        host--;
    if (host < 2 || host == n)
        return NULL;
    size_t first = text[0] == '[' && text[host - 2] == ']' ? 1 : 0;
    return json_pack("{s:s, s:s%, s:s%}", "type", "inet", "host", text + first,
                     host - 1 - 2 * first, "port", text + host, n - host);
}

static json_t *describe_old(const char *filename, struct error **err)
{
    const char *address = filename + strlen("nbd:");
    const char *export = strstr(address, EXPORT_NAME);
    size_t n = export ? (size_t)(export - address) : strlen(address);
    json_t *server = describe_address(address, n);

    if (!server) {
        error_set(err, EINVAL,
                  "%s: an export is named nbd://HOST:PORT/EXPORT or "
                  "nbd+unix:///EXPORT?socket=PATH",
                  filename);
        return NULL;
    }
    return json_pack("{s:s, s:o, s:s*}", "driver", "nbd", "server", server, "export",
                     export ? export + strlen(EXPORT_NAME) : NULL);
}

json_t *client_describe(const char *filename, struct error **err)
{
    static const char *const schemes[] = {
        "nbd://",  "nbd+tcp://",  "nbd+unix://",  "nbd+vsock://",
        "nbds://", "nbds+tcp://", "nbds+unix://", "nbds+vsock://"
    };

    for (size_t i = 0; i < sizeof(schemes) / sizeof(*schemes); i++)
        if (!strncmp(filename, schemes[i], strlen(schemes[i]))) {
            json_t *o = json_pack("{s:s, s:s}", "driver", "nbd", "uri", filename);
            if (!o)
                error_set(err, EINVAL, "the name of the export is not UTF-8");
            return o;
        }
    if (!strncmp(filename, "nbd:", 4))
        return describe_old(filename, err);
    error_set(err, EINVAL, "%s: this is not a way to name an NBD export", filename);
    return NULL;
}

char *client_filename(const char *uri, const char *path, const char *host, const char *port,
                      const char *export)
{
    char *name = NULL;
    int n;

    if (uri)
        return strdup(uri);
    const char *slash = export && *export ? "/" : "";
    export = export ? export : "";
    if (path)
        n = asprintf(&name, "nbd+unix:///%s?socket=%s", export, path);
    else if (host && strchr(host, ':'))
        n = asprintf(&name, "nbd://[%s]:%s%s%s", host, port, slash, export);
    else
        n = asprintf(&name, "nbd://%s:%s%s%s", host ? host : "vsock", port, slash, export);
    return n < 0 ? NULL : name;
}
