/* first light */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "exports/nbd_server.h"

int main(int argc, char **argv)
{
    struct nbd_server *s;
    struct error *err = NULL;
    struct nbd_config config = { .persistent = true };
    struct blk_open_args args = { .flags = BLK_OPEN_RDWR, .format = argv[3] };
    struct blk_node *node;
    (void)argc;
    if (blk_open(argv[2], &args, &node, &err) < 0 || nbd_server_new(&s, &config, &err) < 0)
        return fprintf(stderr, "%s\n", blk_error_text(err)), 1;
    struct nbd_export x = { .name = "", .node = node };
    nbd_server_add(s, &x, &err);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    strncpy(a.sun_path, argv[1], sizeof(a.sun_path) - 1);
    unlink(argv[1]);
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 100) < 0)
        return perror("bind"), 1;
    nbd_server_listen(s, fd, &err);
    nbd_server_run(s);
    return nbd_server_free(s, &err);
}
