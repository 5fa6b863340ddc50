/* The parent waits until the child is ready or has failed, so that whoever called may go on at once.
 */
#include "daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"

static int ready_fd = -1;
static char *made_pid_file;

int daemon_begin(struct error **err)
{
    int fds[2], status;
    char byte;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_set(err, errno, "cannot make a pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child < 0)
        return error_set(err, errno, "cannot go to the background: %s", strerror(errno));
    if (child == 0) {
        close(fds[0]);
        ready_fd = fds[1];
        setsid();
        return 0;
    }
    close(fds[1]);
    if (read(fds[0], &byte, 1) == 1)
        _exit(0);
    waitpid(child, &status, 0); /* it has said why */
    _exit(WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1);
}

static int write_pid(const char *path, struct error **err)
{
    _cleanup_stream_ FILE *f = fopen(path, "we");

    if (!f || fprintf(f, "%ld\n", (long)getpid()) < 0 || fflush(f) != 0)
        return error_set(err, errno, "%s: cannot write the process id: %s", path, strerror(errno));
    made_pid_file = realpath(path, NULL);
    return 0;
}

int daemon_ready(const char *pid_file, bool forked, struct error **err)
{
    int ret = pid_file ? write_pid(pid_file, err) : 0;

    if (ret < 0 || !forked)
        return ret;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        close(null);
    }
    if (write(ready_fd, "", 1) < 0) /* the parent is gone: nobody waits */
        ret = 0;
    close(ready_fd);
    return 0;
}

void daemon_end(void)
{
    if (made_pid_file)
        unlink(made_pid_file);
    free(made_pid_file);
    made_pid_file = NULL;
}
