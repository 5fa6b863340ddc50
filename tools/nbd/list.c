/* -L: what another server exports, as qemu-nbd shows it. */
#include <errno.h>
#include <inttypes.h>
#include <libnbd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "nbd.h"

struct found {
    VECTOR(char *) names;
    VECTOR(char *) descriptions;
    VECTOR(char *) contexts;
};

static int on_export(void *opaque, const char *name, const char *description)
{
    struct found *f = opaque;

    if (vector_push(&f->names, strdup(name)) < 0)
        return -1;
    return vector_push(&f->descriptions, strdup(description));
}

static int on_context(void *opaque, const char *name)
{
    struct found *f = opaque;
    return vector_push(&f->contexts, strdup(name));
}

static void free_texts(struct found *f)
{
    for (size_t i = 0; i < f->names.len; i++)
        free(f->names.at[i]);
    for (size_t i = 0; i < f->descriptions.len; i++)
        free(f->descriptions.at[i]);
    vector_free(&f->names);
    vector_free(&f->descriptions);
}

static void free_contexts(struct found *f)
{
    for (size_t i = 0; i < f->contexts.len; i++)
        free(f->contexts.at[i]);
    f->contexts.len = 0;
}

static void print_flags(struct nbd_handle *h)
{
    const struct {
        const char *name;
        int bit, has;
    } flags[] = {
        { "readonly", 1, nbd_is_read_only(h) > 0 },
        { "flush", 2, nbd_can_flush(h) > 0 },
        { "fua", 3, nbd_can_fua(h) > 0 },
        { "rotational", 4, nbd_is_rotational(h) > 0 },
        { "trim", 5, nbd_can_trim(h) > 0 },
        { "zeroes", 6, nbd_can_zero(h) > 0 },
        { "df", 7, nbd_can_df(h) > 0 },
        { "multi", 8, nbd_can_multi_conn(h) > 0 },
        { "cache", 10, nbd_can_cache(h) > 0 },
        { "fast-zero", 11, nbd_can_fast_zero(h) > 0 },
    };
    unsigned bits = 1;

    for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++)
        bits |= flags[i].has ? 1u << flags[i].bit : 0;
    printf("  flags: 0x%x (", bits);
    for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++)
        if (flags[i].has)
            printf(" %s", flags[i].name);
    printf(" )\n");
}

static void print_sizes(struct nbd_handle *h)
{
    int64_t min = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);

    if (min <= 0)
        return;
    printf("  min block: %" PRId64 "\n", min);
    printf("  opt block: %" PRId64 "\n", nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED));
    printf("  max block: %" PRId64 "\n", nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM));
}

static void print_export(struct nbd_handle *h, struct found *f, size_t i)
{
    printf(" export: '%s'\n", f->names.at[i]);
    if (f->descriptions.at[i][0])
        printf("  description: %s\n", f->descriptions.at[i]);
    if (nbd_set_export_name(h, f->names.at[i]) < 0 || nbd_opt_info(h) < 0)
        return; /* some servers list, but do not tell more */
    printf("  size:  %" PRId64 "\n", nbd_get_size(h));
    print_flags(h);
    print_sizes(h);
    if (nbd_opt_list_meta_context(h, (nbd_context_callback){ on_context, f, NULL }) <= 0)
        return;
    printf("  available meta contexts: %zu\n", f->contexts.len);
    for (size_t c = 0; c < f->contexts.len; c++)
        printf("   %s\n", f->contexts.at[c]);
    free_contexts(f);
}

/* The folder of --object tls-creds-...,dir=: what a client needs to know of it. */
static int connect_to(struct nbd_handle *h, const struct args *a)
{
    if (a->tls_creds && nbd_set_tls(h, LIBNBD_TLS_REQUIRE) < 0)
        return -1;
    if (a->socket)
        return nbd_connect_unix(h, a->socket);
    return nbd_connect_tcp(h, a->address ? a->address : "localhost", a->port ? a->port : "10809");
}

static int fail(struct nbd_handle *h)
{
    complain("%s", nbd_get_error());
    nbd_close(h);
    return 1;
}

int list_exports(const struct args *a)
{
    struct found f = { 0 };
    struct nbd_handle *h = nbd_create();

    if (!h || nbd_set_opt_mode(h, true) < 0 || nbd_add_meta_context(h, "base:") < 0 ||
        nbd_add_meta_context(h, "qemu:") < 0 || connect_to(h, a) < 0)
        return fail(h);
    if (nbd_opt_list(h, (nbd_list_callback){ on_export, &f, NULL }) < 0) {
        free_texts(&f);
        return fail(h);
    }
    printf("exports available: %zu\n", f.names.len);
    for (size_t i = 0; i < f.names.len; i++)
        print_export(h, &f, i);
    vector_free(&f.contexts);
    free_texts(&f);
    nbd_opt_abort(h);
    nbd_close(h);
    return 0;
}
