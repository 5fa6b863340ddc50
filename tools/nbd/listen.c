/* Where clients come from: TCP, a unix socket, vsock, systemd, standard input. */
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "nbd.h"

enum { BACKLOG = 1024, FIRST_INHERITED = 3 };

static char *made_socket; /* to be removed in the end */

/* Takes fd over. */
static int serve_fd(struct nbd_server *s, int fd, struct error **err)
{
    if (listen(fd, BACKLOG) < 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        return error_set(err, errno, "cannot listen: %s", strerror(errno));
    return nbd_server_listen(s, fd, err);
}

/* ---- unix ------------------------------------------------------------------------------------------ */

/* A socket file that nobody listens on any more is in the way; one in use stays. */
static int clear_path(const struct sockaddr_un *a, struct error **err)
{
    struct stat st;

    if (lstat(a->sun_path, &st) < 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return error_set(err, EEXIST, "%s: there is a file that is no socket", a->sun_path);
    _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)a, sizeof(*a)) == 0)
        return error_set(err, EADDRINUSE, "%s: another server listens there", a->sun_path);
    unlink(a->sun_path);
    return 0;
}

static int listen_unix(struct nbd_server *s, const char *path, struct error **err)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };

    if (strlen(path) >= sizeof(a.sun_path))
        return error_set(err, ENAMETOOLONG, "%s: the name of a socket has at most %zu bytes", path,
                         sizeof(a.sun_path) - 1);
    strcpy(a.sun_path, path);
    int ret = clear_path(&a, err);
    if (ret < 0)
        return ret;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&a, sizeof(a)) < 0)
        return error_set(err, errno, "%s: cannot make the socket: %s", path, strerror(errno));
    made_socket = realpath(path, NULL);
    return serve_fd(s, fd, err);
}

void listen_cleanup(void)
{
    if (made_socket)
        unlink(made_socket);
    free(made_socket);
    made_socket = NULL;
}

/* ---- TCP ---------------------------------------------------------------------------------------------- */

static int listen_one(struct nbd_server *s, const struct addrinfo *a, struct error **err)
{
    int one = 1;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, 26 /* IPV6_V6ONLY */, &one, sizeof(one));
    if (bind(fd, a->ai_addr, a->ai_addrlen) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return serve_fd(s, fd, err);
}

static int listen_tcp(struct nbd_server *s, const struct args *a, struct error **err)
{
    struct addrinfo hints = { .ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM }, *list = NULL;
    const char *port = a->port ? a->port : "10809";
    int count = 0, last = 0;

    int r = getaddrinfo(a->address, port, &hints, &list);
    if (r != 0)
        return error_set(err, EINVAL, "%s: %s", a->address ? a->address : "*", gai_strerror(r));
    for (struct addrinfo *i = list; i; i = i->ai_next) {
        int ret = listen_one(s, i, err);
        count += ret == 0;
        last = ret < 0 ? ret : last;
    }
    freeaddrinfo(list);
    return count > 0 ? 0
                     : error_set(err, -last, "cannot listen on %s port %s: %s",
                                 a->address ? a->address : "any address", port, strerror(-last));
}

static int listen_vsock(struct nbd_server *s, const struct args *a, struct error **err)
{
    struct sockaddr_vm addr = {
        .svm_family = AF_VSOCK,
        .svm_cid = VMADDR_CID_ANY,
        .svm_port = a->port ? (unsigned)strtoul(a->port, NULL, 0) : DEFAULT_PORT,
    };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0)
        return error_set(err, errno, "cannot listen on vsock port %u: %s", addr.svm_port,
                         strerror(errno));
    return serve_fd(s, fd, err);
}

/* ---- handed over ------------------------------------------------------------------------------------------ */

int listen_inherited(void)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");

    if (!pid || !fds || strtol(pid, NULL, 10) != getpid())
        return 0;
    long n = strtol(fds, NULL, 10);
    return n > 0 && n < 1024 ? (int)n : 0;
}

static int take_inherited(struct nbd_server *s, int count, struct error **err)
{
    int ret = 0;

    for (int fd = FIRST_INHERITED; fd < FIRST_INHERITED + count && ret == 0; fd++) {
        int listening = 0;
        socklen_t len = sizeof(listening);
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0)
            return error_set(err, errno, "descriptor %d of LISTEN_FDS is no socket", fd);
        ret = listening ? serve_fd(s, fd, err) : nbd_server_client(s, fd, err);
    }
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    return ret;
}

int listen_all(struct nbd_server *s, const struct args *a, struct error **err)
{
    int inherited = listen_inherited();

    if (inherited)
        return take_inherited(s, inherited, err);
    if (a->stdio)
        return nbd_server_client(s, dup(STDIN_FILENO), err);
    if (a->socket)
        return listen_unix(s, a->socket, err);
    return a->vsock ? listen_vsock(s, a, err) : listen_tcp(s, a, err);
}
