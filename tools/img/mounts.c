/* img mounts and img umount: what is mounted, and its end. */
#include "img.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/json_text.h"
#include "exports/fuse_export.h"

#include "args.h"
#include "output.h"

/* ---- what the kernel knows --------------------------------------------------------------------- */

struct row {
    char *where, *image;
    bool read_only;
};

/* /proc writes blanks and backslashes as \040. In place. */
static void unescape(char *text)
{
    char *to = text;
    for (char *p = text; *p; to++) {
        if (p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] && p[3]) {
            *to = (char)((p[1] - '0') * 64 + (p[2] - '0') * 8 + (p[3] - '0'));
            p += 4;
        } else {
            *to = *p++;
        }
    }
    *to = '\0';
}

/* "36 35 98:0 / /mnt rw,noatime opts - fuse.platter /disk.qcow2 rw,..." */
static bool parse_row(char *line, struct row *r)
{
    char *tail = strstr(line, " - "), *word, *save = NULL;
    unsigned n = 0;

    *r = (struct row){ 0 };
    if (!tail || strncmp(tail + 3, "fuse.platter ", 13) != 0)
        return false;
    *tail = '\0';
    for (word = strtok_r(line, " ", &save); word; word = strtok_r(NULL, " ", &save), n++) {
        if (n == 4)
            r->where = word;
        else if (n == 5)
            r->read_only = strncmp(word, "ro", 2) == 0;
    }
    r->image = strtok_r(tail + 16, " ", &save);
    if (!r->where || !r->image)
        return false;
    unescape(r->where);
    unescape(r->image);
    return true;
}

static long server_of(const char *where)
{
    _cleanup_fd_ int fd = open(where, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    int64_t pid = 0;

    return fd >= 0 && ioctl(fd, FUSE_EXPORT_PID, &pid) == 0 ? (long)pid : -1;
}

/* ---- img mounts ----------------------------------------------------------------------------------- */

struct mounts {
    const char *output;
};

static const struct arg_def mounts_args[] = { ARGS_OUTPUT(struct mounts, output), ARGS_END };

static void show(const struct row *r, json_t *list)
{
    long pid = server_of(r->where);

    if (!list) {
        printf("%s on %s (%s%s)\n", r->image, r->where, r->read_only ? "read-only" : "writable",
               pid < 0 ? ", its process is gone or out of reach" : "");
        return;
    }
    json_t *o = json_object();
    output_add(o, "image", json_text(r->image));
    output_add(o, "mountpoint", json_text(r->where));
    output_add(o, "read-only", json_boolean(r->read_only));
    if (pid > 0)
        output_add(o, "pid", json_integer(pid));
    json_array_append_new(list, o);
}

static int run_mounts(const struct command *self, int argc, char **argv)
{
    struct mounts o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc != first) {
        complain("mounts needs no names");
        return 1;
    }
    _cleanup_stream_ FILE *f = fopen("/proc/self/mountinfo", "re");
    _cleanup_json_ json_t *list = o.output && strcmp(o.output, "json") == 0 ? json_array() : NULL;
    _cleanup_free_ char *line = NULL;
    size_t cap = 0;
    struct row r;
    if (!f) {
        complain("cannot read /proc/self/mountinfo: %s", strerror(errno));
        return 1;
    }
    while (getline(&line, &cap, f) > 0) {
        line[strcspn(line, "\n")] = '\0';
        if (parse_row(line, &r))
            show(&r, list);
    }
    if (list)
        output_json(list);
    return output_end(0);
}

const struct command cmd_mounts = {
    .name = "mounts",
    .summary = "list what img mount has mounted",
    .operands = "",
    .args = mounts_args,
    .example = "mounts",
    .run = run_mounts,
};

/* ---- img umount ----------------------------------------------------------------------------------- */

struct umount {
    bool lazy;
};

static const struct arg_def umount_args[] = {
    { .letter = 'z',
      .name = "lazy",
      .kind = ARG_FLAG,
      .at = offsetof(struct umount, lazy),
      .help = "although files are open or writes fail: it ends when they are closed" },
    ARGS_END,
};

/* Is it one of ours? The path is compared as the kernel writes it. */
static bool is_ours(const char *real)
{
    _cleanup_stream_ FILE *f = fopen("/proc/self/mountinfo", "re");
    _cleanup_free_ char *line = NULL;
    size_t cap = 0;
    struct row r;

    while (f && getline(&line, &cap, f) > 0) {
        line[strcspn(line, "\n")] = '\0';
        if (parse_row(line, &r) && strcmp(r.where, real) == 0)
            return true;
    }
    return false;
}

/* realpath that does not look at the last part, which may be a mount whose process is dead. */
static char *real_name(const char *name)
{
    _cleanup_free_ char *copy = strdup(name);
    char *real = realpath(name, NULL), *out = NULL;

    if (real || !copy)
        return real;
    for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/'; n--)
        copy[n - 1] = '\0';
    char *slash = strrchr(copy, '/');
    const char *last = slash ? slash + 1 : copy;
    if (slash)
        *slash = '\0';
    _cleanup_free_ char *folder = realpath(!slash ? "." : *copy ? copy : "/", NULL);
    if (!folder || asprintf(&out, "%s/%s", strcmp(folder, "/") == 0 ? "" : folder, last) < 0)
        return NULL;
    return out;
}

/* What does not get to the disk is told now: once it is unmounted nobody asks any more. */
static bool sync_all(const char *where, bool lazy)
{
    _cleanup_free_ char *disk = NULL;
    struct stat st;

    if (stat(where, &st) < 0) /* its process is dead: nothing to wait for */
        return true;
    bool folder = S_ISDIR(st.st_mode);
    if (asprintf(&disk, "%s%s", where, folder ? "/disk" : "") < 0)
        return false;
    _cleanup_fd_ int fd = open(disk, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) == 0)
        return true;
    complain("%s: cannot bring what was written to the disk: %s%s", where, strerror(errno),
             lazy ? "" : "; it stays mounted (-z unmounts all the same)");
    return lazy;
}

static bool ask_fusermount(const char *where, bool lazy)
{
    pid_t child = fork();
    int status;

    if (child < 0) {
        complain("cannot start fusermount3: %s", strerror(errno));
        return false;
    }
    if (child == 0) {
        const char *flags = lazy ? "-uz" : "-u";
        execlp("fusermount3", "fusermount3", flags, "--", where, (char *)NULL);
        complain("cannot start fusermount3: %s", strerror(errno));
        _exit(1);
    }
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool take_away(const char *where, bool lazy)
{
    if (umount2(where, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
        return true;
    if (errno == EPERM)
        return ask_fusermount(where, lazy);
    complain("%s: cannot unmount it: %s", where,
             errno == EBUSY ? "a program uses a file in it (-z takes it away all the same)"
                            : strerror(errno));
    return false;
}

static int run_umount(const struct command *self, int argc, char **argv)
{
    struct umount o = { 0 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    if (argc - first != 1) {
        complain("umount needs one folder or file");
        complain_usage("umount");
        return 1;
    }
    _cleanup_free_ char *real = real_name(argv[first]);
    if (!real || !is_ours(real)) {
        complain("%s: no image is mounted there", argv[first]);
        return 1;
    }
    long pid = server_of(real);
    _cleanup_fd_ int process = pid > 0 ? (int)syscall(SYS_pidfd_open, (pid_t)pid, 0) : -1;
    if (!sync_all(real, o.lazy) || !take_away(real, o.lazy))
        return 1;
    /* Its process closes the image now: who comes next may open it. */
    struct pollfd end = { .fd = process, .events = POLLIN };
    if (process >= 0 && !o.lazy && poll(&end, 1, 60000) == 0) {
        complain("%s: unmounted, but process %ld is still closing the image", real, pid);
        return 1;
    }
    return 0;
}

const struct command cmd_umount = {
    .name = "umount",
    .summary = "end what img mount began, and wait until the image is closed",
    .operands = "DIRECTORY",
    .args = umount_args,
    .example = "umount /tmp/vm",
    .run = run_umount,
};
