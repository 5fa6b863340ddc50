/* One table: parsing and help come from it. */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "base/options.h"
#include "nbd.h"

/* Programs ask qemu-nbd for its version to know what it can do. */
#define QEMU_NBD_LIKE "7.2.0"

enum {
    OPT_OBJECT = 256,
    OPT_TLS_CREDS,
    OPT_TLS_AUTHZ,
    OPT_TLS_OPTIONAL,
    OPT_FORK,
    OPT_PID_FILE,
    OPT_SELINUX,
    OPT_CACHE,
    OPT_AIO,
    OPT_DISCARD,
    OPT_DETECT,
    OPT_IMAGE_OPTS,
    OPT_HANDSHAKE,
    OPT_RO,
    OPT_ALLOW,
    OPT_VSOCK,
    OPT_STDIO,
    OPT_STATS,
    OPT_THREADS,
    OPT_MEMORY,
    OPT_GROW,
};

enum use { BOTH, QEMU_ONLY, SERVE_ONLY, OURS };

static const struct row {
    int c;
    const char *name, *value, *help;
    enum use use;
} rows[] = {
    { 0, "Where clients come from", NULL, NULL, BOTH },
    { 'p', "port", "PORT", "TCP port to listen on (10809)", BOTH },
    { 'b', "bind", "ADDRESS", "address to listen on (all)", BOTH },
    { 'k', "socket", "PATH", "listen on a unix socket instead", BOTH },
    { OPT_VSOCK, "vsock", NULL, "listen for virtual machines (AF_VSOCK) instead", OURS },
    { OPT_STDIO, "stdio", NULL, "serve the one client whose socket is standard input", OURS },
    { OPT_ALLOW, "allow", "LIST", "only these: addresses or networks, 192.0.2.0/24,2001:db8::1",
      OURS },
    { 'e', "shared", "NUM", "clients at once, 0: no limit (1; with serve no limit)", BOTH },
    { 't', "persistent", NULL, "run on when the last client has gone", QEMU_ONLY },
    { OPT_HANDSHAKE, "handshake-limit", "SECONDS", "time for a client to choose an export (10)",
      BOTH },
    { OPT_OBJECT, "object", "OBJECTDEF", "tls-creds-x509, tls-creds-psk, secret, authz-simple",
      BOTH },
    { OPT_TLS_CREDS, "tls-creds", "ID", "the object whose keys are used; TLS is required then",
      BOTH },
    { OPT_TLS_AUTHZ, "tls-authz", "ID", "the object that says which clients are welcome", BOTH },
    { OPT_TLS_OPTIONAL, "tls-optional", NULL, "serve clients without TLS, too", OURS },
    { 0, "What they see", NULL, NULL, BOTH },
    { 'x', "export-name", "NAME", "name of the export (empty)", QEMU_ONLY },
    { 'D', "description", "TEXT", "for people", BOTH },
    { 'o', "offset", "OFFSET", "begin so many bytes into the image", BOTH },
    { 'P', "partition", "NUM", "only this partition; with serve each is an export, NAME/NUM",
      QEMU_ONLY },
    { 'A', "allocation-depth", NULL, "offer the context qemu:allocation-depth", BOTH },
    { 'B', "bitmap", "NAME", "offer the context qemu:dirty-bitmap:NAME; the image keeps it", BOTH },
    { 'r', "read-only", NULL, "nobody may write", BOTH },
    { OPT_RO, "ro", "IMAGE", "one more image, which nobody may write to", SERVE_ONLY },
    { OPT_GROW, "grow", "SIZE",
      "make smaller images so large first; files grow as they are written", OURS },
    { 's', "snapshot", NULL, "writes go to a temporary file and are lost in the end", BOTH },
    { 'l', "load-snapshot", "SNAPSHOT",
      "an internal snapshot, read-only: its id or name, or snapshot.id=ID,snapshot.name=NAME",
      BOTH },
    { 0, "How the image is opened", NULL, NULL, BOTH },
    { 'f', "format", "FMT", "its format; guessed when not given", BOTH },
    { 'n', "nocache", NULL, "the same as --cache=none", BOTH },
    { OPT_CACHE, "cache", "MODE", "none, writeback (default), writethrough, directsync, unsafe",
      BOTH },
    { OPT_AIO, "aio", "MODE", "threads, native or io_uring; the requests are the same", BOTH },
    { OPT_DISCARD, "discard", "MODE", "ignore or unmap", BOTH },
    { OPT_DETECT, "detect-zeroes", "MODE", "off, on or unmap", BOTH },
    { OPT_IMAGE_OPTS, "image-opts", NULL,
      "IMAGE is a description: driver=qcow2,file.filename=disk.qcow2", BOTH },
    { 0, "The process", NULL, NULL, BOTH },
    { 'v', "verbose", NULL, "tell who comes and goes", BOTH },
    { OPT_STATS, "stats", NULL, "tell what was done, as JSON, in the end (and on SIGUSR1)", OURS },
    { OPT_FORK, "fork", NULL, "go to the background once it serves", BOTH },
    { OPT_PID_FILE, "pid-file", "PATH", "write the process id there", BOTH },
    { OPT_THREADS, "threads", "NUM", "event loops (one for each core)", OURS },
    { OPT_MEMORY, "memory", "SIZE", "for requests of all clients together (1G)", OURS },
    { 'c', "connect", "DEV", "serve the kernel's device, /dev/nbd0", QEMU_ONLY },
    { 'd', "disconnect", "DEV", "and end that", QEMU_ONLY },
    { 'L', "list", NULL, "list what another server exports", QEMU_ONLY },
    { 'T', "trace", "SPEC", "accepted for the sake of scripts; there is nothing to trace", BOTH },
    { OPT_SELINUX, "selinux-label", "LABEL", "of the listening socket", QEMU_ONLY },
    { 'h', "help", NULL, "this text", BOTH },
    { 'V', "version", NULL, "the version", BOTH },
};

static bool applies(const struct row *r, bool serve)
{
    return r->use == BOTH || (r->use == SERVE_ONLY ? serve : r->use == QEMU_ONLY ? !serve : true);
}

static void print_help(bool serve)
{
    if (serve)
        printf(
            "Usage: %s serve [OPTIONS]... [NAME=]IMAGE|FOLDER...\n"
            "Serve images to NBD clients, each under its file name or the name given; of a folder, "
            "all that are in it.\n",
            program);
    else
        printf("Usage: %s [OPTIONS]... IMAGE\n"
               "  or:  %s serve [OPTIONS]... [NAME=]IMAGE|FOLDER...\n"
               "  or:  %s -L [OPTIONS]...\n"
               "Serve an image to NBD clients.\n",
               program, program, program);
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        char left[64], letter[5] = "";
        if (!applies(&rows[i], serve))
            continue;
        if (!rows[i].c) {
            printf("\n%s:\n", rows[i].name);
            continue;
        }
        if (rows[i].c < OPT_OBJECT)
            snprintf(letter, sizeof(letter), "-%c, ", rows[i].c);
        snprintf(left, sizeof(left), "%s--%s%s%s", letter, rows[i].name, rows[i].value ? "=" : "",
                 rows[i].value ? rows[i].value : "");
        printf("  %-28s  %s\n", left, rows[i].help);
    }
    printf("  %-28s  %s\n", "--follow=none|local|any",
           "what names stored in images may be followed to");
}

static void print_version(void)
{
    if (as_qemu)
        printf("qemu-nbd %s (Platter %s)\n", QEMU_NBD_LIKE, PLATTER_VERSION);
    else
        printf("nbd (Platter) %s\n", PLATTER_VERSION);
}

/* ---- values ------------------------------------------------------------------------------------------- */

static bool number(const char *what, const char *text, unsigned max, unsigned *out)
{
    char *end;
    errno = 0;
    unsigned long n = strtoul(text, &end, 0);

    if (!isdigit((unsigned char)*text) || *end || errno || n > max) {
        complain("%s '%s': it is a number from 0 to %u", what, text, max);
        return false;
    }
    *out = (unsigned)n;
    return true;
}

static bool size(const char *what, const char *text, uint64_t *out)
{
    struct error *err = NULL;

    if (opts_parse_size(text, out, &err) == 0)
        return true;
    complain_error(&err, "%s '%s'", what, text);
    return false;
}

static bool one_of(const char *what, const char *text, const char *const *words)
{
    for (const char *const *w = words; *w; w++)
        if (!strcmp(*w, text))
            return true;
    fprintf(stderr, "%s: %s '%s': it is one of", program, what, text);
    for (; *words; words++)
        fprintf(stderr, " %s", *words);
    fputc('\n', stderr);
    return false;
}

static bool take_port(const char *text, struct args *a)
{
    unsigned port;

    a->port = text;
    a->port_given = true;
    if (!number("port", text, 65535, &port))
        return false;
    return true;
}

static bool take_mode(int c, const char *text, struct args *a)
{
    static const char *const caches[] = { "none",       "off",    "writeback", "writethrough",
                                          "directsync", "unsafe", NULL };
    static const char *const discards[] = { "ignore", "off", "unmap", "on", NULL };
    static const char *const detects[] = { "off", "on", "unmap", NULL };
    static const char *const aios[] = { "threads", "native", "io_uring", NULL };

    switch (c) {
    case OPT_CACHE:
        a->cache = strcmp(text, "off") != 0 ? text : "none";
        return one_of("--cache", text, caches);
    case OPT_DISCARD:
        a->discard = text;
        return one_of("--discard", text, discards);
    case OPT_DETECT:
        a->detect_zeroes = text;
        return one_of("--detect-zeroes", text, detects);
    default:
        return one_of("--aio", text, aios);
    }
}

static bool push(const char *text, text_list *list)
{
    return vector_push(list, text) == 0;
}

/* One that has a value. */
static bool take_value(int c, const char *v, struct args *a)
{
    switch (c) {
    case 'p':
        return take_port(v, a);
    case 'e':
        a->shared_given = true;
        return number("--shared", v, INT32_MAX, &a->shared);
    case 'o':
        return size("--offset", v, &a->offset);
    case 'B':
        return push(v, &a->bitmaps);
    case OPT_SELINUX:
        complain("--selinux-label: not supported");
        return false;
    case OPT_HANDSHAKE:
        return number("--handshake-limit", v, INT32_MAX, &a->handshake_sec);
    case OPT_THREADS:
        return number("--threads", v, 1024, &a->threads);
    case OPT_MEMORY:
        return size("--memory", v, &a->memory);
    case OPT_GROW:
        return size("--grow", v, &a->grow);
    case OPT_CACHE:
    case OPT_DISCARD:
    case OPT_DETECT:
    case OPT_AIO:
        return take_mode(c, v, a);
    case OPT_OBJECT:
        return push(v, &a->objects);
    case OPT_ALLOW:
        return push(v, &a->allow);
    case OPT_RO:
        return push(v, &a->read_only_images);
    default:
        return true;
    }
}

static void take_text(int c, const char *v, struct args *a)
{
    const char **at = c == 'b'             ? &a->address
                      : c == 'k'           ? &a->socket
                      : c == 'x'           ? &a->export_name
                      : c == 'D'           ? &a->description
                      : c == 'l'           ? &a->load_snapshot
                      : c == 'P'           ? &a->partition
                      : c == 'f'           ? &a->format
                      : c == 'c'           ? &a->connect
                      : c == 'd'           ? &a->disconnect
                      : c == OPT_PID_FILE  ? &a->pid_file
                      : c == OPT_TLS_CREDS ? &a->tls_creds
                      : c == OPT_TLS_AUTHZ ? &a->tls_authz
                                           : NULL;
    if (at)
        *at = v;
}

static void take_switch(int c, struct args *a)
{
    bool *at = c == 't'                ? &a->persistent
               : c == 'A'              ? &a->allocation_depth
               : c == 'r'              ? &a->read_only
               : c == 's'              ? &a->snapshot
               : c == 'v'              ? &a->verbose
               : c == 'L'              ? &a->list
               : c == OPT_FORK         ? &a->fork
               : c == OPT_IMAGE_OPTS   ? &a->image_opts
               : c == OPT_VSOCK        ? &a->vsock
               : c == OPT_STDIO        ? &a->stdio
               : c == OPT_STATS        ? &a->stats
               : c == OPT_TLS_OPTIONAL ? &a->tls_optional
                                       : NULL;
    if (c == 'n')
        a->cache = "none";
    if (at)
        *at = true;
}

/* ---- all of it ------------------------------------------------------------------------------------------ */

static bool check(const struct args *a)
{
    size_t count = a->images.len + a->read_only_images.len;

    if (a->list || a->disconnect) {
        if (count > 0)
            complain("with -L or -d there is no image: '%s'", a->images.at[0]);
        return count == 0;
    }
    if (count == 0 || (!a->serve && count > 1)) {
        complain("%s", a->serve    ? "which images are to be served?"
                       : count > 1 ? "one image, or 'serve' for several"
                                   : "which image is to be served?");
        return false;
    }
    if (a->socket && (a->port_given || a->address)) {
        complain("a unix socket has no port and no address: -k goes without -p and -b");
        return false;
    }
    if (a->grow && (a->read_only || a->load_snapshot || a->partition || a->offset)) {
        complain("--grow changes whole images: it goes without -r, -l, -P and -o");
        return false;
    }
    if (a->tls_authz && !a->tls_creds) {
        complain("--tls-authz needs --tls-creds");
        return false;
    }
    if (a->serve && a->description && count > 1) {
        complain("one description for several images");
        return false;
    }
    return true;
}

static void getopt_tables(bool serve, char *letters, struct option *longs)
{
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        const struct row *r = &rows[i];
        if (!r->c || !applies(r, serve))
            continue;
        *longs++ =
            (struct option){ r->name, r->value ? required_argument : no_argument, NULL, r->c };
        if (r->c >= OPT_OBJECT)
            continue;
        *letters++ = (char)r->c;
        if (r->value)
            *letters++ = ':';
    }
    *letters = '\0';
    *longs = (struct option){ 0 };
}

bool args_parse(int argc, char **argv, struct args *a, int *code)
{
    char letters[2 * ARRAY_SIZE(rows) + 1];
    struct option longs[ARRAY_SIZE(rows) + 1];
    int c;

    a->shared = a->serve ? 0 : 1;
    a->persistent = a->serve;
    getopt_tables(a->serve, letters, longs);
    *code = 1;
    while ((c = getopt_long(argc, argv, letters, longs, NULL)) != -1) {
        if (c == '?') {
            complain("'%s --help' tells what there is", program);
            return false;
        }
        if (c == 'h' || c == 'V') {
            *code = 0;
            if (c == 'h')
                print_help(a->serve);
            else
                print_version();
            return false;
        }
        if (optarg && !take_value(c, optarg, a))
            return false;
        if (optarg)
            take_text(c, optarg, a);
        else
            take_switch(c, a);
    }
    for (; optind < argc; optind++)
        if (vector_push(&a->images, argv[optind]) < 0)
            return false;
    return (a->bitmaps.len == 0 || push(NULL, &a->bitmaps)) && check(a);
}

void args_free(struct args *a)
{
    vector_free(&a->images);
    vector_free(&a->read_only_images);
    vector_free(&a->allow);
    vector_free(&a->bitmaps);
    vector_free(&a->objects);
}
