/* Only one target exists at a time, so that the signal watcher can remove it: `doomed` is its
 * hidden name, or NULL. It is set before the file exists and cleared after it has its final name.
 * The watcher keeps the lock when it leaves in haste, so that the name is not freed under its
 * hands.
 */
#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

#include "image.h"
#include "img.h"
#include "say.h"
#include "target_folder.h"
#include "watch.h"

static pthread_mutex_t doomed_lock = PTHREAD_MUTEX_INITIALIZER;
static const char *doomed;

static void set_doomed(const char *name)
{
    LOCK_SCOPE(&doomed_lock);
    doomed = name;
}

static void leave(void)
{
    pthread_mutex_lock(&doomed_lock); /* for good */
    if (doomed)
        folder_remove(doomed);
}

bool name_has_protocol(const char *name)
{
    size_t n = strcspn(name, ":/");
    return name[n] == ':';
}

/* Follows symbolic links by hand, since the last one may point at nothing yet. */
static char *resolve(const char *name)
{
    char *path = strdup(name);
    for (int i = 0; path && i < 40; i++) {
        char link[4096];
        ssize_t n = readlink(path, link, sizeof(link) - 1);
        if (n < 0)
            return path;
        link[n] = '\0';
        char *slash = strrchr(path, '/');
        char *next = NULL;
        if (link[0] == '/' || !slash)
            next = strdup(link);
        else if (asprintf(&next, "%.*s/%s", (int)(slash - path), path, link) < 0)
            next = NULL;
        free(path);
        path = next;
    }
    return path;
}

/* "DIR/.NAME.platter-PID-RANDOM" */
static char *hidden_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    int dir = slash ? (int)(slash - path + 1) : 0;
    uint32_t random = 0;
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) < 0)
        random = (uint32_t)(uintptr_t)&random;
    char *name = NULL;
    /* A long name is cut, so that the whole stays within what a file system takes. */
    if (asprintf(&name, "%.*s.%.200s.platter-%ld-%08x", dir, path, path + dir, (long)getpid(),
                 random) < 0)
        return NULL;
    return name;
}

static bool make_nameless(struct target *t)
{
    _cleanup_free_ char *copy = strdup(t->path);
    if (!copy)
        return false;
    t->fd = open(dirname(copy), O_TMPFILE | O_RDWR | O_CLOEXEC, 0644);
    if (t->fd < 0)
        return false;
    char name[64];
    snprintf(name, sizeof(name), "/proc/self/fd/%d", t->fd);
    if (access(name, W_OK) == 0 && (t->work = strdup(name)))
        return true;
    close(t->fd);
    t->fd = -1;
    return false;
}

static bool make_hidden(struct target *t)
{
    t->hidden = hidden_name(t->path);
    if (!t->hidden)
        return false;
    set_doomed(t->hidden);
    t->fd = open(t->hidden, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (t->fd < 0) {
        int saved = errno;
        set_doomed(NULL);
        free(t->hidden);
        t->hidden = NULL;
        errno = saved;
        return false;
    }
    t->work = strdup(t->hidden);
    return t->work;
}

/* In a folder, where names of further files can be what they will be. */
static bool make_folder(struct target *t)
{
    const char *slash = strrchr(t->path, '/');
    t->hidden = hidden_name(t->path);
    if (!t->hidden || asprintf(&t->work, "%s/%s", t->hidden, slash ? slash + 1 : t->path) < 0) {
        t->work = NULL;
        errno = ENOMEM;
        return false;
    }
    set_doomed(t->hidden);
    bool made = mkdir(t->hidden, 0700) == 0;
    t->fd = made ? open(t->work, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644) : -1;
    if (t->fd >= 0) {
        t->folder = true;
        return true;
    }
    int saved = errno;
    if (made)
        rmdir(t->hidden);
    set_doomed(NULL);
    free(t->hidden);
    free(t->work);
    t->hidden = t->work = NULL;
    errno = saved;
    return false;
}

/* By whichever way the kind allows; errno says why not. */
static bool make(struct target *t, enum target_kind kind)
{
    if (kind == TARGET_FOLDER)
        return make_folder(t);
    return (kind == TARGET_NAMELESS && make_nameless(t)) || make_hidden(t);
}

/* What is replaced must not be in use, and hands its mode and owner down. */
static bool take_over(struct target *t, const struct stat *old)
{
    struct image_spec spec = {
        .name = t->path,
        .format = "raw",
        .cache = "unsafe", /* nobody waits for the disk to get what is about to go */
        .flags = BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_NO_BACKING | BLK_OPEN_QUIET,
    };
    t->holder = image_open(&spec);
    if (!t->holder)
        return false;
    /* The owner may be out of reach; the mode is ours to set, but set-id bits do not go to
     * another's. */
    mode_t mode = old->st_mode & 07777;
    if (fchown(t->fd, old->st_uid, old->st_gid) < 0)
        mode &= ~(mode_t)(S_ISUID | S_ISGID);
    if (fchmod(t->fd, mode) < 0) {
        complain("cannot give the new '%s' the mode of the old one: %s", t->name, strerror(errno));
        return false;
    }
    return true;
}

static bool in_place(struct target *t)
{
    t->work = strdup(t->name);
    return t->work;
}

/* Not everything that can be written can be replaced: a file that is mounted there by itself, as containers
 * do, or somebody else's in a directory with the sticky bit. */
static bool can_be_replaced(const char *path, const struct stat *file)
{
    struct statx sx;
    if (statx(AT_FDCWD, path, 0, STATX_TYPE, &sx) == 0 &&
        (sx.stx_attributes_mask & sx.stx_attributes & STATX_ATTR_MOUNT_ROOT))
        return false;
    _cleanup_free_ char *copy = strdup(path);
    struct stat dir;
    uid_t me = geteuid();
    if (!copy || stat(dirname(copy), &dir) < 0 || !(dir.st_mode & S_ISVTX))
        return true;
    return me == 0 || me == file->st_uid || me == dir.st_uid;
}

static bool is_file_name(const char *name)
{
    size_t len = strlen(name);
    if (len > 0 && name[len - 1] != '/')
        return true;
    complain("'%s' is no file name: the target is a file, not a directory", name);
    return false;
}

bool target_begin(struct target *t, const char *name, enum target_kind kind)
{
    t->name = name;
    if (strncmp(name, "file:", 5) == 0)
        name += 5;
    else if (name_has_protocol(name))
        return in_place(t);
    struct stat st;
    bool exists = stat(name, &st) == 0;
    if (exists && !S_ISREG(st.st_mode))
        return in_place(t);
    if (strncmp(name, "/dev/", 5) == 0 || strncmp(name, "/proc/", 6) == 0) {
        /* /dev/fd/3 has no directory to put a file into; /dev/shm has. */
        if (strncmp(name, "/dev/shm/", 9) != 0)
            return in_place(t);
    }
    if (!is_file_name(name))
        return false;
    t->path = resolve(name);
    if (!t->path) {
        complain("out of memory");
        return false;
    }
    if (exists && !can_be_replaced(t->path, &st)) {
        free(t->path);
        t->path = NULL;
        return in_place(t);
    }
    watch_guard(leave);
    if (!make(t, kind)) {
        /* A file in a directory that takes no new ones can still be overwritten. */
        if (exists && (errno == EACCES || errno == EROFS || errno == EPERM)) {
            free(t->path);
            t->path = NULL;
            return in_place(t);
        }
        complain("cannot create '%s': %s", t->name, strerror(errno));
        return false;
    }
    say_alias(t->work, t->name);
    return !exists || take_over(t, &st);
}

/* A nameless file gets its name in one step when nothing is there, else by way of a hidden name. */
static int link_nameless(struct target *t)
{
    if (linkat(AT_FDCWD, t->work, AT_FDCWD, t->path, AT_SYMLINK_FOLLOW) == 0)
        return 0;
    if (errno != EEXIST)
        return -errno;
    t->hidden = hidden_name(t->path);
    if (!t->hidden)
        return -ENOMEM;
    set_doomed(t->hidden);
    if (linkat(AT_FDCWD, t->work, AT_FDCWD, t->hidden, AT_SYMLINK_FOLLOW) < 0)
        return -errno;
    return rename(t->hidden, t->path) < 0 ? -errno : 0;
}

static void sync_directory(const char *path)
{
    _cleanup_free_ char *copy = strdup(path);
    if (!copy)
        return;
    _cleanup_fd_ int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        fsync(fd); /* best effort: some file systems cannot */
}

bool target_publish(struct target *t, bool durable)
{
    if (!t->path)
        return true;
    if (durable && fsync(t->fd) < 0) {
        complain("cannot bring '%s' to the disk: %s", t->name, strerror(errno));
        return false;
    }
    int r = 0;
    if (t->folder) {
        if (!folder_publish(t->hidden, t->path, durable))
            return false;
        folder_remove(t->hidden);
    } else if (t->hidden) {
        r = rename(t->hidden, t->path) < 0 ? -errno : 0;
    } else {
        r = link_nameless(t);
    }
    if (r < 0) {
        complain("cannot give the finished file its name '%s': %s", t->name, strerror(-r));
        return false;
    }
    set_doomed(NULL);
    free(t->hidden);
    t->hidden = NULL;
    if (durable)
        sync_directory(t->path);
    return true;
}

void target_end(struct target *t)
{
    if (t->hidden) {
        folder_remove(t->hidden);
        set_doomed(NULL);
    }
    watch_guard(NULL);
    image_drop(&t->holder);
    if (t->fd >= 0)
        close(t->fd);
    say_alias(NULL, NULL);
    free(t->work);
    free(t->path);
    free(t->hidden);
    *t = (struct target)TARGET_INIT;
}
