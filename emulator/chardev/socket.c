/* The backend on sockets: unix and TCP, waiting for one peer at a time or going to it. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "internal.h"

static const struct opt_def options[] = {
    { .name = "path", .type = OPT_STRING, CHARDEV_AT(path), .help = "of a unix socket" },
    { .name = "host", .type = OPT_STRING, CHARDEV_AT(host), .help = "TCP: name or address" },
    { .name = "port", .type = OPT_STRING, CHARDEV_AT(port), .help = "TCP: number or name" },
    { .name = "fd",
      .type = OPT_NUMBER,
      CHARDEV_AT(fd),
      .given = offsetof(struct chardev_options, fd_given),
      .help = "a socket that is open already",
      .max = INT32_MAX },
    { .name = "server", .type = OPT_BOOL, CHARDEV_AT(server), .help = "wait for a peer" },
    { .name = "wait",
      .type = OPT_BOOL,
      CHARDEV_AT(wait),
      .def = "on",
      .help = "the machine starts when the peer is there" },
    { .name = "telnet", .type = OPT_BOOL, CHARDEV_AT(telnet), .help = "speak telnet" },
    { .name = "nodelay", .type = OPT_BOOL, CHARDEV_AT(nodelay), .help = "TCP: small packets" },
    { .name = "ipv4", .type = OPT_BOOL, CHARDEV_AT(ipv4), .help = "only" },
    { .name = "ipv6", .type = OPT_BOOL, CHARDEV_AT(ipv6), .help = "only" },
    { .name = "reconnect",
      .type = OPT_NUMBER,
      CHARDEV_AT(reconnect),
      .help = "seconds after which to go to a lost peer again; 0: never",
      .max = 86400 },
    CHARDEV_COMMON,
    OPT_END
};

static void take_peer(struct chardev *c, int fd)
{
    int one = 1;

    (void)fcntl(fd, F_SETFL, O_NONBLOCK);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (c->o.nodelay)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    c->in = c->out = fd;
    c->connected = true;
}

static int unix_address(struct chardev *c, struct sockaddr_un *a, struct error **err)
{
    *a = (struct sockaddr_un){ .sun_family = AF_UNIX };
    if (strlen(c->o.path) >= sizeof(a->sun_path))
        return error_set(err, ENAMETOOLONG,
                         "chardev '%s': the path of a socket has %zu bytes at most", c->id,
                         sizeof(a->sun_path) - 1);
    snprintf(a->sun_path, sizeof(a->sun_path), "%s", c->o.path);
    return 0;
}

static int complain(struct chardev *c, const char *what, struct error **err)
{
    int e = errno;
    return c->o.path ? error_set(err, e, "chardev '%s': cannot %s '%s': %s", c->id, what, c->o.path,
                                 strerror(e))
                     : error_set(err, e, "chardev '%s': cannot %s %s:%s: %s", c->id, what,
                                 c->o.host ? c->o.host : "*", c->o.port, strerror(e));
}

/* A socket that somebody left behind is in the way; one that somebody listens at is not removed. */
static void remove_dead(const struct sockaddr_un *a)
{
    struct stat st;
    _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && lstat(a->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
        connect(fd, (const struct sockaddr *)a, sizeof(*a)) < 0 && errno == ECONNREFUSED)
        unlink(a->sun_path);
}

static int open_unix(struct chardev *c, int *out, struct error **err)
{
    struct sockaddr_un a;
    int ret = unix_address(c, &a, err);

    if (ret < 0)
        return ret;
    if (c->o.server)
        remove_dead(&a);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return complain(c, "make a socket for", err);
    *out = fd;
    if (!c->o.server)
        return connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0 ? 0
                                                                  : complain(c, "connect to", err);
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(fd, 1) == 0)
        return 0;
    return complain(c, "listen at", err);
}

static int open_one(struct chardev *c, const struct addrinfo *a, int *out)
{
    int one = 1, fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);

    if (fd < 0)
        return -errno;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    bool good = c->o.server ? bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 1) == 0
                            : connect(fd, a->ai_addr, a->ai_addrlen) == 0;
    if (good) {
        *out = fd;
        return 0;
    }
    int ret = -errno;
    close(fd);
    return ret;
}

static int open_tcp(struct chardev *c, int *out, struct error **err)
{
    struct addrinfo want = {
        .ai_socktype = SOCK_STREAM,
        .ai_flags = c->o.server ? AI_PASSIVE : 0,
        .ai_family = c->o.ipv4 == c->o.ipv6 ? AF_UNSPEC
                     : c->o.ipv4            ? AF_INET
                                            : AF_INET6,
    };
    struct addrinfo *list = NULL;
    const char *host = c->o.host && *c->o.host ? c->o.host : NULL;
    int ret = getaddrinfo(host, c->o.port, &want, &list);

    if (ret != 0)
        return error_set(err, EINVAL, "chardev '%s': %s:%s: %s", c->id, host ? host : "", c->o.port,
                         gai_strerror(ret));
    ret = -EADDRNOTAVAIL;
    for (struct addrinfo *a = list; a && ret < 0; a = a->ai_next)
        ret = open_one(c, a, out);
    freeaddrinfo(list);
    if (ret == 0)
        return 0;
    errno = -ret;
    return complain(c, c->o.server ? "listen at" : "connect to", err);
}

static int open_socket(struct chardev *c, int *fd, struct error **err)
{
    return c->o.path ? open_unix(c, fd, err) : open_tcp(c, fd, err);
}

/* By the loop, with the chardev's lock held. */
static bool connect_again(struct chardev *c)
{
    int fd = -1;

    if (c->listener >= 0) {
        fd = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC);
    } else if (c->o.server || open_socket(c, &fd, NULL) < 0) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    if (fd < 0)
        return false;
    take_peer(c, fd);
    return true;
}

static int wait_for_peer(struct chardev *c, struct error **err)
{
    fprintf(stderr, "emulator: waiting for a connection to chardev '%s'\n", c->id);
    int fd = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return complain(c, "accept from", err);
    take_peer(c, fd);
    return 0;
}

static int check(struct chardev *c, struct error **err)
{
    int given = (c->o.path != NULL) + (c->o.port != NULL) + c->o.fd_given;

    if (given != 1)
        return error_set(err, EINVAL,
                         "chardev '%s': one of path= (unix), host= and port= (TCP), fd=", c->id);
    if (c->o.server && c->o.reconnect)
        return error_set(err, EINVAL, "chardev '%s': a server does not reconnect", c->id);
    return 0;
}

static int open_chardev(struct chardev *c, struct error **err)
{
    int fd = -1, ret = check(c, err);

    if (ret < 0)
        return ret;
    if (c->o.fd_given)
        fd = (int)c->o.fd;
    else
        ret = open_socket(c, &fd, err);
    if (ret < 0) {
        if (fd >= 0)
            close(fd);
        if (!c->o.reconnect)
            return ret;
        c->retry = chardev_milliseconds() + c->o.reconnect * 1000;
        if (err) {
            error_free(*err);
            *err = NULL;
        }
        return 0;
    }
    if (!c->o.server) {
        take_peer(c, fd);
        return 0;
    }
    c->listener = fd;
    ret = c->o.wait ? wait_for_peer(c, err) : 0;
    if (ret == 0 && c->connected && c->o.telnet)
        telnet_greet(c);
    return ret;
}

static size_t filter(struct chardev *c, uint8_t *data, size_t length)
{
    return c->o.telnet ? telnet_filter(c, data, length) : length;
}

static void close_chardev(struct chardev *c)
{
    if (c->o.server && c->o.path && c->listener >= 0)
        unlink(c->o.path);
}

const struct chardev_kind chardev_socket = {
    .name = "socket",
    .help = "a unix or TCP socket, client or server",
    .options = options,
    .open = open_chardev,
    .connect = connect_again,
    .filter = filter,
    .close = close_chardev,
};
