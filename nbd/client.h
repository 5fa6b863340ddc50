/* Names of exports. */
#ifndef NBD_CLIENT_H
#define NBD_CLIENT_H

#include <jansson.h>

struct error;

/* What "nbd...:..." means, as a description. NULL and an error when it means nothing. */
json_t *client_describe(const char *filename, struct error **err);

/* The name to open it by again; NULL: no memory. All but one of uri, path and host may be NULL. */
char *client_filename(const char *uri, const char *path, const char *host, const char *port,
                      const char *export);

#endif
