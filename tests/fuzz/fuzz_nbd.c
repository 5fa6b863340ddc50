/* A client of the NBD server that says anything: the handshake, options, requests. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "exports/nbd_server.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool condition)
{
    if (!condition)
        abort();
}

static void *run(void *server)
{
    nbd_server_run(server);
    return NULL;
}

/* It lives as long as the process: starting threads costs more than a client does. */
static struct nbd_server *start(void)
{
    static const char disk[] =
        "{\"driver\": \"raw\", \"file\": {\"driver\": \"memory\", \"size\": \"1M\"}}";
    struct nbd_config config = { .persistent = true, .threads = 1, .workers = 2 };
    struct blk_open_args args = { .image_opts = true, .flags = BLK_OPEN_RDWR };
    struct nbd_server *server;
    struct blk_node *node;
    pthread_t thread;

    must(blk_open(disk, &args, &node, NULL) == 0);
    must(nbd_server_new(&server, &config, NULL) == 0);
    struct nbd_export x = { .name = "x", .description = "y", .node = node };
    x.allocation_depth = true;
    must(nbd_server_add(server, &x, NULL) == 0);
    must(pthread_create(&thread, NULL, run, server) == 0);
    return server;
}

/* Everything is sent; what is answered is read until the server closes. */
static void talk(int fd, const uint8_t *data, size_t size)
{
    static uint8_t sink[1 << 16];

    while (size > 0) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            data += n;
            size -= (size_t)n;
        } else if (read(fd, sink, sizeof(sink)) <= 0) {
            return;
        }
    }
    shutdown(fd, SHUT_WR);
    while (read(fd, sink, sizeof(sink)) > 0) {
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct nbd_server *server;
    int fds[2];

    if (!server)
        server = start();
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    must(nbd_server_client(server, fds[1], NULL) == 0);
    talk(fds[0], data, size);
    close(fds[0]);
    return 0;
}
