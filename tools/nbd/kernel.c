/* -c and -d: the kernel's own client, where there is one (linux/nbd.h).
 *
 * The kernel speaks the transmission phase only, so a thread of ours does the handshake at the other end of a pair of
 * sockets, tells the device what it learned, and then is the kernel's until somebody disconnects. With that the
 * server has lost its one client, and ends as always.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/nbd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "nbd.h"

enum { OPT_EXPORT_NAME = 1, FIXED_NO_ZEROES = 3, BLOCK = 512, EXPORT_READ_ONLY = 2 };
#define MAGICS "NBDMAGICIHAVEOPT"

struct device {
    int fd, socket;
    char *name, *export;
};

int kernel_disconnect(const char *device, struct error **err)
{
    _cleanup_fd_ int fd = open(device, O_RDWR | O_CLOEXEC);

    if (fd < 0)
        return error_set(err, errno, "%s: %s", device, strerror(errno));
    if (ioctl(fd, NBD_CLEAR_QUE) < 0 || ioctl(fd, NBD_DISCONNECT) < 0 ||
        ioctl(fd, NBD_CLEAR_SOCK) < 0)
        return error_set(err, errno, "%s: it cannot be disconnected: %s", device, strerror(errno));
    printf("%s disconnected\n", device);
    return 0;
}

/* ---- the handshake ------------------------------------------------------------------------------------------- */

static bool get(int fd, uint8_t *to, size_t len)
{
    for (ssize_t n; len > 0; to += n, len -= (size_t)n)
        if ((n = recv(fd, to, len, 0)) <= 0)
            return false;
    return true;
}

static bool put(int fd, const uint8_t *from, size_t len)
{
    for (ssize_t n; len > 0; from += n, len -= (size_t)n)
        if ((n = send(fd, from, len, MSG_NOSIGNAL)) < 0)
            return false;
    return true;
}

/* Our own server is at the other end, and the export is its own. */
static bool shake_hands(const struct device *d, uint64_t *size, uint16_t *flags)
{
    uint8_t b[20];
    uint32_t len = (uint32_t)strlen(d->export);

    if (!get(d->socket, b, 18) || memcmp(b, MAGICS, 16) != 0)
        return false;
    store_be32(b, FIXED_NO_ZEROES);
    memcpy(b + 4, MAGICS + 8, 8);
    store_be32(b + 12, OPT_EXPORT_NAME);
    store_be32(b + 16, len);
    if (!put(d->socket, b, 20) || !put(d->socket, (const uint8_t *)d->export, len) ||
        !get(d->socket, b, 10))
        return false;
    *size = load_be64(b);
    *flags = load_be16(b + 8);
    return true;
}

/* ---- the device ---------------------------------------------------------------------------------------------- */

static bool set_up(const struct device *d, uint64_t size, uint16_t flags)
{
    int read_only = flags & EXPORT_READ_ONLY ? 1 : 0;

    return ioctl(d->fd, NBD_SET_BLKSIZE, (unsigned long)BLOCK) == 0 &&
           ioctl(d->fd, NBD_SET_SIZE_BLOCKS, (unsigned long)(size / BLOCK)) == 0 &&
           ioctl(d->fd, NBD_SET_FLAGS, (unsigned long)flags) == 0 &&
           (!read_only || ioctl(d->fd, BLKROSET, &read_only) == 0) &&
           ioctl(d->fd, NBD_SET_SOCK, (unsigned long)d->socket) == 0;
}

static void *run(void *arg)
{
    struct device *d = arg;
    uint64_t size;
    uint16_t flags;

    if (!shake_hands(d, &size, &flags))
        complain("%s: the server does not answer", d->name);
    else if (!set_up(d, size, flags))
        complain("%s: the device cannot be set up: %s", d->name, strerror(errno));
    else if (ioctl(d->fd, NBD_DO_IT) < 0 && errno != EPIPE) /* until it is disconnected */
        complain("%s: %s", d->name, strerror(errno));
    (void)ioctl(d->fd, NBD_CLEAR_QUE);
    (void)ioctl(d->fd, NBD_CLEAR_SOCK);
    close(d->socket);
    close(d->fd);
    free(d->name);
    free(d->export);
    free(d);
    return NULL;
}

static int start(struct device *d, struct nbd_server *s, struct error **err)
{
    int pair[2];
    pthread_t thread;

    if (!d->name || !d->export)
        return error_set(err, ENOMEM, "out of memory");
    d->fd = open(d->name, O_RDWR | O_CLOEXEC);
    if (d->fd < 0)
        return error_set(err, errno, "%s: %s%s", d->name, strerror(errno),
                         errno == ENOENT ? " (is the kernel's module nbd loaded?)" : "");
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set(err, errno, "cannot make a pair of sockets: %s", strerror(errno));
    d->socket = pair[0];
    int ret = nbd_server_client(s, pair[1], err);
    if (ret < 0)
        return ret;
    ret = pthread_create(&thread, NULL, run, d);
    if (ret != 0)
        return error_set(err, ret, "cannot start a thread: %s", strerror(ret));
    pthread_detach(thread);
    return 0;
}

int kernel_serve(struct nbd_server *s, const char *device, const char *export, struct error **err)
{
    struct device *d = malloc(sizeof(*d));

    if (!d)
        return error_set(err, ENOMEM, "out of memory");
    *d = (struct device){ -1, -1, strdup(device), strdup(export ? export : "") };
    int ret = start(d, s, err);
    if (ret < 0) {
        if (d->fd >= 0)
            close(d->fd);
        if (d->socket >= 0)
            close(d->socket);
        free(d->name);
        free(d->export);
        free(d);
    }
    return ret;
}
