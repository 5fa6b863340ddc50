/* Images that do not name their backing file, but say what stands in it: it is looked for in the image's own folder.
 * Only regular files are opened, and of each only the first bytes are read; whether the one found may be opened
 * as an image is follow.c's to say.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "node.h"

/* A folder may hold more than anybody wants to look into. */
#define MAX_FILES 65536

static bool head_matches(int folder, const char *name, const struct stat *self, uint8_t *head,
                         size_t len, bool (*is_it)(const void *, const uint8_t *), const void *what)
{
    struct stat st;

    /* Nothing is opened that may block or act when it is. */
    if (fstatat(folder, name, &st, 0) < 0 || !S_ISREG(st.st_mode) || (size_t)st.st_size < len ||
        (st.st_dev == self->st_dev && st.st_ino == self->st_ino))
        return false;
    _cleanup_fd_ int fd = openat(folder, name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    return fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
           pread(fd, head, len, 0) == (ssize_t)len && is_it(what, head);
}

int node_find_beside(struct blk_node *n, size_t len,
                     bool (*is_it)(const void *what, const uint8_t *head), const void *what,
                     char **name)
{
    const char *image = n->edge[EDGE_FILE]->filename;
    struct dirent *entry;
    struct stat self;

    *name = NULL;
    if (graph_follow(n) == BLK_FOLLOW_NONE || protocol_length(image) > 0 || stat(image, &self) < 0)
        return 0;
    _cleanup_free_ char *path = graph_resolve(image, ".");
    _cleanup_free_ uint8_t *head = malloc(len);
    if (!path || !head)
        return -ENOMEM;
    DIR *folder = opendir(path);
    for (int i = 0; folder && i < MAX_FILES && !*name && (entry = readdir(folder)); i++)
        if (head_matches(dirfd(folder), entry->d_name, &self, head, len, is_it, what))
            *name = strdup(entry->d_name);
    if (folder)
        closedir(folder);
    return 0;
}
