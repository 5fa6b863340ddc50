#include "target_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/vector.h"

#include "image.h"
#include "img.h"

/* One file's two places. */
struct part {
    char *from, *to;
    bool replaces, moved;
    struct blk_node *holder; /* keeps others off what is replaced */
};
struct parts {
    VECTOR(struct part) list;
};

static void cleanup_dir(DIR **dir)
{
    if (*dir)
        closedir(*dir);
}
#define _cleanup_dir_ __attribute__((cleanup(cleanup_dir)))

static void parts_free(struct parts *p)
{
    for (size_t i = 0; i < p->list.len; i++) {
        image_drop(&p->list.at[i].holder);
        free(p->list.at[i].from);
        free(p->list.at[i].to);
    }
    vector_free(&p->list);
}

static bool add(struct parts *p, const char *folder, const char *place, const char *name)
{
    struct part part = { 0 };
    struct stat st;

    if (asprintf(&part.from, "%s/%s", folder, name) < 0)
        part.from = NULL;
    if (asprintf(&part.to, "%s/%s", place, name) < 0)
        part.to = NULL;
    part.replaces = part.to && lstat(part.to, &st) == 0;
    if (part.from && part.to && vector_push(&p->list, part) == 0)
        return true;
    free(part.from);
    free(part.to);
    complain("out of memory");
    return false;
}

static bool is_dot(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static bool collect(struct parts *p, const char *folder, const char *path)
{
    _cleanup_free_ char *copy = strdup(path);
    _cleanup_dir_ DIR *dir = opendir(folder);
    if (!copy || !dir) {
        complain("cannot look into '%s': %s", folder, strerror(errno));
        return false;
    }
    const char *place = dirname(copy), *slash = strrchr(path, '/');
    const char *last = slash ? slash + 1 : path;
    struct dirent *e;
    while ((e = readdir(dir))) {
        if (!is_dot(e->d_name) && strcmp(e->d_name, last) != 0 && !add(p, folder, place, e->d_name))
            return false;
    }
    return add(p, folder, place, last);
}

/* What is replaced is a file that nobody uses (the source perhaps), and hands its mode and owner down. The last
 * part was looked after when the target was begun. */
static bool take_over(struct part *p)
{
    struct stat st;
    if (lstat(p->to, &st) < 0 || !S_ISREG(st.st_mode)) {
        complain("'%s' is in the way of a part of the target: it is no regular file", p->to);
        return false;
    }
    struct image_spec spec = {
        .name = p->to,
        .format = "raw",
        .cache = "unsafe",
        .flags = BLK_OPEN_RDWR | BLK_OPEN_RESIZE | BLK_OPEN_QUIET,
    };
    p->holder = image_open(&spec);
    if (!p->holder)
        return false;
    mode_t mode = st.st_mode & 07777;
    if (chown(p->from, st.st_uid, st.st_gid) < 0)
        mode &= ~(mode_t)(S_ISUID | S_ISGID);
    if (chmod(p->from, mode) < 0) {
        complain("cannot give the new '%s' the mode of the old one: %s", p->to, strerror(errno));
        return false;
    }
    return true;
}

static bool sync_part(const struct part *p)
{
    _cleanup_fd_ int fd = open(p->from, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && fsync(fd) == 0)
        return true;
    complain("cannot bring '%s' to the disk: %s", p->to, strerror(errno));
    return false;
}

/* To its place or, again, back. */
static int swap(struct part *p)
{
    int r = p->replaces ? renameat2(AT_FDCWD, p->from, AT_FDCWD, p->to, RENAME_EXCHANGE)
            : p->moved  ? rename(p->to, p->from)
                        : renameat2(AT_FDCWD, p->from, AT_FDCWD, p->to, RENAME_NOREPLACE);
    if (r < 0 && errno == EINVAL && !p->moved) /* a file system that cannot exchange */
        r = rename(p->from, p->to);
    if (r == 0)
        p->moved = !p->moved;
    return r < 0 ? -errno : 0;
}

static bool move_all(struct parts *p)
{
    for (size_t i = 0; i < p->list.len; i++) {
        struct part *part = &p->list.at[i];
        int r = swap(part);
        if (r == 0)
            continue;
        complain("cannot give the finished file its name '%s': %s", part->to, strerror(-r));
        while (i-- > 0)
            swap(&p->list.at[i]);
        return false;
    }
    return true;
}

bool folder_publish(const char *folder, const char *path, bool durable)
{
    struct parts p = { 0 };
    bool ok = collect(&p, folder, path);
    for (size_t i = 0; ok && i < p.list.len; i++) {
        struct part *part = &p.list.at[i];
        if (part->replaces && i < p.list.len - 1)
            ok = take_over(part);
        if (ok && durable)
            ok = sync_part(part);
    }
    ok = ok && move_all(&p);
    parts_free(&p);
    return ok;
}

void folder_remove(const char *folder)
{
    _cleanup_dir_ DIR *dir = opendir(folder);
    if (!dir) {
        unlink(folder);
        return;
    }
    struct dirent *e;
    while ((e = readdir(dir))) {
        if (!is_dot(e->d_name))
            unlinkat(dirfd(dir), e->d_name, 0);
    }
    rmdir(folder);
}
