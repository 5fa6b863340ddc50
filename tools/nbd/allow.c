/* --allow: which addresses may connect. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "nbd.h"

struct net {
    int family;
    uint8_t address[16];
    unsigned bits;
};

/* "192.0.2.0/24"; without bits, the one address. */
static bool parse(const char *text, size_t len, struct net *out)
{
    char copy[80], *end;

    if (len >= sizeof(copy))
        return false;
    memcpy(copy, text, len);
    copy[len] = '\0';
    char *slash = strchr(copy, '/');
    if (slash)
        *slash = '\0';
    out->family = strchr(copy, ':') ? AF_INET6 : AF_INET;
    out->bits = out->family == AF_INET ? 32 : 128;
    if (inet_pton(out->family, copy, out->address) != 1)
        return false;
    if (!slash)
        return true;
    unsigned long bits = strtoul(slash + 1, &end, 10);
    bool ok = slash[1] >= '0' && slash[1] <= '9' && !*end && bits <= out->bits;
    out->bits = (unsigned)bits;
    return ok;
}

static bool contains(const struct net *n, const struct net *one)
{
    if (n->family != one->family || memcmp(n->address, one->address, n->bits / 8) != 0)
        return false;
    unsigned rest = n->bits % 8;
    uint8_t mask = (uint8_t)(0xff << (8 - rest));
    return rest == 0 || !((n->address[n->bits / 8] ^ one->address[n->bits / 8]) & mask);
}

/* The next word of a list, and its length; false at the end. */
static bool next(const char **at, size_t *len)
{
    *at += **at == ',';
    *len = strcspn(*at, ",");
    return **at;
}

int allow_check(const struct args *a, struct error **err)
{
    struct net n;
    size_t len;

    for (size_t i = 0; i < a->allow.len; i++)
        for (const char *at = a->allow.at[i]; next(&at, &len); at += len)
            if (!parse(at, len, &n))
                return error_set(err, EINVAL, "--allow: '%.*s' is no address and no network",
                                 (int)len, at);
    return 0;
}

bool allow_peer(const struct args *a, const char *peer)
{
    struct net one, n;
    size_t len;

    if (a->allow.len == 0)
        return true;
    /* IPv4 clients of an IPv6 socket. */
    if (!strncmp(peer, "::ffff:", 7) && strchr(peer, '.'))
        peer += 7;
    if (!parse(peer, strlen(peer), &one))
        return true; /* unix, vsock: the list is about addresses */
    for (size_t i = 0; i < a->allow.len; i++)
        for (const char *at = a->allow.at[i]; next(&at, &len); at += len)
            if (parse(at, len, &n) && contains(&n, &one))
                return true;
    return false;
}
