#include "base/hidden.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"

const char *hidden_folder(void)
{
    const char *env = getenv("TMPDIR");

    return env && *env ? env : "/var/tmp";
}

int hidden_open(void)
{
    _cleanup_free_ char *name = NULL;
    int fd = open(hidden_folder(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT))
        return fd < 0 ? -errno : fd;
    if (asprintf(&name, "%s/img.XXXXXX", hidden_folder()) < 0)
        return -ENOMEM;
    fd = mkostemp(name, O_CLOEXEC);
    if (fd < 0)
        return -errno;
    unlink(name);
    return fd;
}
