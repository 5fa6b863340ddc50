/* Locks on image files that QEMU understands and respects.
 *
 * A user of an image holds shared locks on single bytes of the file: byte 100 + i says "I do i",
 * byte 200 + i says "nobody else may do i". Everyone first locks his own bytes and then looks
 * whether another holds an opposite one; of two that come at once at least one therefore sees the
 * other.
 *
 * The locks are of the open file description: they do not vanish when the process closes some other
 * descriptor of the same file, threads do not share them by accident, and they end with close.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "file.h"

enum { DOES = 100, FORBIDS = 200 };

/* What one may do with an image, numbered as QEMU does. 2 and 4 we neither do nor forbid. */
enum { READ_CONSISTENT = 0, WRITE = 1, RESIZE = 3 };

static const int reader_does[] = { READ_CONSISTENT };
static const int writer_does[] = { READ_CONSISTENT, WRITE, RESIZE };
static const int forbidden[] = { WRITE, RESIZE };

/* ---- who is it? ----------------------------------------------------------------------------- */

struct holder {
    long pid; /* 0: not found, maybe of another user or on another machine */
    char command[64];
};

/* One line "lock: 1: OFDLCK ADVISORY READ -1 fe:00:4711 100 101" covers the byte. */
static bool line_covers(const char *line, long byte)
{
    char last[24];
    long first;

    if (strncmp(line, "lock:", 5) != 0 ||
        sscanf(line, "lock: %*s %*s %*s %*s %*s %*s %ld %23s", &first, last) != 2)
        return false;
    return byte >= first && (strcmp(last, "EOF") == 0 || byte <= atol(last));
}

static bool descriptor_holds(int proc, const char *pid, const char *fd, long byte)
{
    _cleanup_stream_ FILE *info = NULL;
    _cleanup_free_ char *line = NULL;
    size_t cap = 0;
    char path[600];
    int file;

    snprintf(path, sizeof(path), "%s/fdinfo/%s", pid, fd);
    file = openat(proc, path, O_RDONLY | O_CLOEXEC);
    info = file < 0 ? NULL : fdopen(file, "r");
    if (!info) {
        if (file >= 0)
            close(file);
        return false;
    }
    while (getline(&line, &cap, info) > 0)
        if (line_covers(line, byte))
            return true;
    return false;
}

/* Looks through the descriptors of one process for one of this file that holds the byte; not
 * through `self`, the descriptor that asks. */
static bool process_holds(int proc, const char *pid, const struct stat *image, long byte, int self)
{
    char path[600];
    bool mine = atol(pid) == (long)getpid(), found = false;
    struct dirent *entry;
    DIR *dir;
    int fds;

    snprintf(path, sizeof(path), "%s/fd", pid);
    fds = openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    dir = fds < 0 ? NULL : fdopendir(fds);
    if (!dir) {
        if (fds >= 0)
            close(fds);
        return false;
    }
    while (!found && (entry = readdir(dir))) {
        struct stat st;

        if (!isdigit((unsigned char)entry->d_name[0]) || (mine && atoi(entry->d_name) == self))
            continue;
        found = fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 && st.st_ino == image->st_ino &&
                st.st_dev == image->st_dev && descriptor_holds(proc, pid, entry->d_name, byte);
    }
    closedir(dir);
    return found;
}

static void read_command(int proc, const char *pid, struct holder *out)
{
    char path[600];
    _cleanup_fd_ int fd = -1;
    ssize_t len;

    snprintf(path, sizeof(path), "%s/comm", pid);
    fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    len = fd < 0 ? -1 : read(fd, out->command, sizeof(out->command) - 1);
    out->command[MAX(len, 0)] = '\0';
    out->command[strcspn(out->command, "\n")] = '\0';
}

/* These locks belong to no process, the kernel names none; but /proc shows which descriptors hold
 * them. */
static struct holder find_holder(int fd, long byte)
{
    struct holder holder = { 0 };
    struct dirent *entry;
    struct stat image;
    DIR *proc;

    if (fstat(fd, &image) < 0 || !(proc = opendir("/proc")))
        return holder;
    while (!holder.pid && (entry = readdir(proc))) {
        if (isdigit((unsigned char)entry->d_name[0]) &&
            process_holds(dirfd(proc), entry->d_name, &image, byte, fd)) {
            holder.pid = atol(entry->d_name);
            read_command(dirfd(proc), entry->d_name, &holder);
        }
    }
    closedir(proc);
    return holder;
}

static int refuse(int fd, const char *filename, bool writer, int what, bool forbids,
                  struct error **err)
{
    struct holder holder = find_holder(fd, (forbids ? FORBIDS : DOES) + what);
    const char *does = forbids          ? "uses it and does not want it changed"
                       : what == WRITE  ? "has it open for writing"
                       : what == RESIZE ? "may resize it"
                                        : "is reading it";
    const char *way_out = writer ? "stop it first (only reading goes on beside it, with -U)"
                                 : "stop it first, or read the image as it is with -U "
                                   "(force-share=on)";
    char who[160];

    if (holder.pid == (long)getpid())
        snprintf(who, sizeof(who), "this program itself");
    else if (holder.pid)
        snprintf(who, sizeof(who), "%s (process %ld)", holder.command, holder.pid);
    else
        snprintf(who, sizeof(who), "another program");
    return error_set(err, EBUSY, "%s: is locked against %s: %s %s; %s", filename,
                     writer ? "writing" : "reading", who, does, way_out);
}

/* ---- taking them ---------------------------------------------------------------------------- */

static int lock_byte(int fd, long byte)
{
    struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

    while (fcntl(fd, F_OFD_SETLK, &lock) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

/* Somebody else holds it: 1, nobody: 0. */
static int is_held(int fd, long byte)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

    while (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        if (errno != EINTR)
            return -errno;
    return lock.l_type != F_UNLCK;
}

static bool cannot_lock(int r)
{
    return r == -ENOLCK || r == -EINVAL || r == -ENOSYS || r == -EOPNOTSUPP;
}

static int lock_own(int fd, const int *does, size_t count)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < count; i++)
        r = lock_byte(fd, DOES + does[i]);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(forbidden); i++)
        r = lock_byte(fd, FORBIDS + forbidden[i]);
    return r;
}

int file_lock(int fd, const char *filename, bool writer, enum file_locking mode, struct error **err)
{
    const int *does = writer ? writer_does : reader_does;
    size_t count = writer ? ARRAY_SIZE(writer_does) : ARRAY_SIZE(reader_does);
    int r;

    if (mode == LOCKING_OFF)
        return 0;
    r = lock_own(fd, does, count);
    if (cannot_lock(r) && mode == LOCKING_AUTO)
        return 0;
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(forbidden); i++) {
        r = is_held(fd, DOES + forbidden[i]);
        if (r > 0)
            return refuse(fd, filename, writer, forbidden[i], false, err);
    }
    for (size_t i = 0; r == 0 && i < count; i++) {
        r = is_held(fd, FORBIDS + does[i]);
        if (r > 0)
            return refuse(fd, filename, writer, does[i], true, err);
    }
    if (r < 0) {
        return error_set(err, -r, "%s: could not be locked (locking=off does without): %s",
                         filename, strerror(-r));
    }
    return 0;
}
