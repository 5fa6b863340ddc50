/* What the parts of nbd share. */
#ifndef NBD_TOOL_H
#define NBD_TOOL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/vector.h"
#include "exports/nbd_server.h"

extern const char *program;
extern bool as_qemu; /* called qemu-nbd */

enum { DEFAULT_PORT = 10809 };

/* One line on standard error, beginning with the program's name. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same with the error's sentence behind a colon; frees it. */
void complain_error(struct error **err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

typedef VECTOR(const char *) text_list;

/* Texts belong to argv. */
struct args {
    bool serve; /* nbd serve: many exports, for many clients, for long */
    text_list images;
    text_list read_only_images;

    /* where clients come from */
    const char *address, *port, *socket;
    bool vsock, stdio, port_given;
    text_list allow;

    /* who, how many, how long */
    unsigned shared;
    bool shared_given, persistent, verbose, stats;
    unsigned handshake_sec, threads;
    uint64_t memory;
    const char *tls_creds, *tls_authz;
    bool tls_optional;
    text_list objects;

    /* what is shown */
    text_list bitmaps; /* and at the end NULL, when there are any */
    const char *export_name, *description, *load_snapshot, *partition;
    uint64_t offset, grow;
    bool allocation_depth, read_only, snapshot;
    const char *format, *cache, *discard, *detect_zeroes;
    bool image_opts;

    /* the process */
    bool fork, list;
    const char *pid_file, *connect, *disconnect;
};

/* false: *code is the exit status, and everything has been said. */
bool args_parse(int argc, char **argv, struct args *args, int *code);
void args_free(struct args *args);

/* objects.c: --object. The TLS credentials and the authorization of these names. */
struct objects;
int objects_new(struct objects **out, const struct args *args, struct error **err);
struct nbd_tls *objects_tls(struct objects *objects); /* NULL: none wanted */
void objects_free(struct objects *objects);

/* exports.c: opens what args name and adds it. */
int exports_add(struct nbd_server *server, const struct args *args, struct error **err);

/* listen.c: sockets to listen on, or a client that is there. */
int listen_all(struct nbd_server *server, const struct args *args, struct error **err);
void listen_cleanup(void); /* removes the socket file */
/* Descriptors that systemd handed over, from 3 on; 0: none. */
int listen_inherited(void);

/* allow.c: --allow. Checks the list. */
int allow_check(const struct args *args, struct error **err);
bool allow_peer(const struct args *args, const char *peer);

/* kernel.c: -c and -d. */
int kernel_serve(struct nbd_server *server, const char *device, const char *export,
                 struct error **err);
int kernel_disconnect(const char *device, struct error **err);

/* list.c: -L. The exit status. */
int list_exports(const struct args *args);

#endif
