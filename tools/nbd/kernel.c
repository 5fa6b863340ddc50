/* -c and -d: the kernel's own client, where there is one (linux/nbd.h). */
#include <errno.h>
#include <fcntl.h>
#include <linux/nbd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "nbd.h"

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

int kernel_serve(struct nbd_server *s, const char *device, struct error **err)
{
    (void)s;
    _cleanup_fd_ int fd = open(device, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, errno, "%s: %s", device, strerror(errno));
    return error_set(err, ENOTSUP, "%s: not supported yet: nbd-client connects a device", device);
}
