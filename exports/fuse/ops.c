/* The requests of the kernel. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "internal.h"

#include "base/cleanup.h"
#include "base/macros.h"

/* Seconds that the kernel may believe what it was told. Names never change; sizes only through this mount. */
static const double names_last = 3600, attributes_last = 3600, changing_last = 1;

static struct fuse_export *export_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

static void init(void *opaque, struct fuse_conn_info *conn)
{
    struct fuse_export *x = opaque;

    conn->max_write = MAX_TRANSFER;
    conn->max_readahead = MAX_TRANSFER;
    conn->max_background = 64;
    conn->congestion_threshold = 48;
    conn->want |= conn->capable & (FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO |
                                   FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_CACHE_SYMLINKS);
    /* Replies and requests are in memory: through a pipe they would be handled page by page. */
    conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
    if (x->writeback)
        conn->want |= conn->capable & FUSE_CAP_WRITEBACK_CACHE;
    if (!x->growable) /* nobody else changes the sizes */
        conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
}

static double lasts(struct fuse_export *x)
{
    return x->writable ? changing_last : attributes_last;
}

static void fill(struct fuse_export *x, fuse_ino_t ino, struct stat *st)
{
    const struct name *n = name_of(x, ino);
    unsigned bits = n->kind == S_IFLNK   ? 0777
                    : n->kind == S_IFDIR ? 0555
                    : x->writable        ? 0600
                                         : 0400;

    *st = (struct stat){
        .st_ino = ino,
        .st_mode = n->kind | bits,
        .st_nlink = n->kind == S_IFDIR ? 2 : 1,
        .st_uid = x->uid,
        .st_gid = x->gid,
        .st_blksize = 65536,
        .st_atim = x->born,
        .st_mtim = x->born,
        .st_ctim = x->born,
    };
    if (n->kind == S_IFREG) {
        st->st_size = (off_t)file_size(x, n);
        st->st_blocks = (blkcnt_t)(data_usage(x, ino) / 512);
    } else if (n->kind == S_IFLNK) {
        st->st_size = (off_t)strlen(n->target);
    }
}

static void lookup(fuse_req_t req, fuse_ino_t parent, const char *text)
{
    struct fuse_export *x = export_of(req);
    struct fuse_entry_param e = { .attr_timeout = lasts(x), .entry_timeout = names_last };

    for (size_t i = 1; i < x->names.len && !e.ino; i++) {
        if (x->names.at[i].parent == parent && strcmp(x->names.at[i].text, text) == 0)
            e.ino = i + 1;
    }
    if (e.ino)
        fill(x, e.ino, &e.attr);
    fuse_reply_entry(req, &e); /* without a number: not there, and the kernel remembers it */
}

static void getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fuse_export *x = export_of(req);
    struct stat st;

    (void)fi;
    if (!name_of(x, ino)) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    fill(x, ino, &st);
    fuse_reply_attr(req, &st, lasts(x));
}

/* Times are accepted and forgotten, since cp and rsync set them; owner and mode cannot be changed. */
static void setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int what,
                    struct fuse_file_info *fi)
{
    struct fuse_export *x = export_of(req);
    const struct name *n = name_of(x, ino);
    int r = n ? 0 : -ENOENT;

    if (r == 0 && (what & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)))
        r = -EPERM;
    if (r == 0 && (what & FUSE_SET_ATTR_SIZE))
        r = data_resize(x, n, (uint64_t)attr->st_size);
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        getattr(req, ino, fi);
}

static void read_link(fuse_req_t req, fuse_ino_t ino)
{
    const struct name *n = name_of(export_of(req), ino);

    if (n && n->target)
        fuse_reply_readlink(req, n->target);
    else
        fuse_reply_err(req, EINVAL);
}

static void open_file(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fuse_export *x = export_of(req);
    const struct name *n = name_of(x, ino);

    if (!n || n->kind != S_IFREG) {
        fuse_reply_err(req, n ? EISDIR : ENOENT);
        return;
    }
    if ((fi->flags & O_ACCMODE) != O_RDONLY && !x->writable) {
        fuse_reply_err(req, EROFS);
        return;
    }
    fi->direct_io = x->direct_io;
    /* What is cached stays true as long as there is one way to the bytes. */
    fi->keep_cache = !x->writable || x->names.len <= 2;
    fuse_reply_open(req, fi);
}

/* Each thread keeps one buffer: a fresh MiB for each request would cost page faults for all of it. */
static pthread_once_t buffer_once = PTHREAD_ONCE_INIT;
static pthread_key_t buffer_key;

static void make_key(void)
{
    if (pthread_key_create(&buffer_key, free) != 0)
        abort();
}

static void *buffer(void)
{
    pthread_once(&buffer_once, make_key);
    void *buf = pthread_getspecific(buffer_key);
    if (!buf && (buf = aligned_alloc(4096, MAX_TRANSFER)) &&
        pthread_setspecific(buffer_key, buf) != 0) {
        free(buf);
        return NULL;
    }
    return buf;
}

static void read_file(fuse_req_t req, fuse_ino_t ino, size_t len, off_t off,
                      struct fuse_file_info *fi)
{
    struct fuse_export *x = export_of(req);
    const struct name *n = name_of(x, ino);
    uint64_t size = n ? file_size(x, n) : 0;
    void *buf = buffer();

    (void)fi;
    if (!n || !buf || off < 0) {
        fuse_reply_err(req, !n ? ENOENT : !buf ? ENOMEM : EINVAL);
        return;
    }
    len = (uint64_t)off >= size ? 0 : (size_t)MIN((uint64_t)len, size - (uint64_t)off);
    len = MIN(len, (size_t)MAX_TRANSFER);
    int r = len ? blk_read(x->node, n->offset + (uint64_t)off, buf, len, 0) : 0;
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        fuse_reply_buf(req, buf, len);
}

static void write_file(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t len, off_t off,
                       struct fuse_file_info *fi)
{
    struct fuse_export *x = export_of(req);
    const struct name *n = name_of(x, ino);
    int r = !n || off < 0 ? -EINVAL
            : !x->writable
                ? -EROFS
                : data_write(x, n, (uint64_t)off, buf, len, (fi->flags & (O_SYNC | O_DSYNC)) != 0);
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        fuse_reply_write(req, len);
}

static void sync_file(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct fuse_export *x = export_of(req);

    (void)ino;
    (void)datasync;
    (void)fi;
    fuse_reply_err(req, x->writable ? -blk_flush(x->node) : 0);
}

/* close(2): what was written is in the image already; making it durable is fsync's affair. */
static void done(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    (void)fi;
    fuse_reply_err(req, 0);
}

static void allocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                     struct fuse_file_info *fi)
{
    struct fuse_export *x = export_of(req);
    const struct name *n = name_of(x, ino);
    int r = !n || off < 0 || len <= 0 || off > INT64_MAX - len ? -EINVAL
            : !x->writable                                     ? -EROFS
                           : data_fallocate(x, n, mode, (uint64_t)off, (uint64_t)len);
    (void)fi;
    fuse_reply_err(req, -r);
}

static void seek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
    struct fuse_export *x = export_of(req);
    const struct name *n = name_of(x, ino);
    uint64_t to = 0;
    int r = !n || off < 0 || (whence != SEEK_DATA && whence != SEEK_HOLE)
                ? -EINVAL
                : data_seek(x, n, (uint64_t)off, whence == SEEK_DATA, &to);
    (void)fi;
    if (r < 0)
        fuse_reply_err(req, -r);
    else
        fuse_reply_lseek(req, (off_t)to);
}

/* Entry 0 is ".", 1 is "..", then the names below this one in their order. */
static void read_dir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                     struct fuse_file_info *fi)
{
    struct fuse_export *x = export_of(req);
    const struct name *n = name_of(x, ino);
    _cleanup_free_ char *buf = malloc(MIN(size, (size_t)MAX_TRANSFER));
    size_t used = 0;

    (void)fi;
    if (!n || n->kind != S_IFDIR || !buf) {
        fuse_reply_err(req, buf ? ENOTDIR : ENOMEM);
        return;
    }
    size = MIN(size, (size_t)MAX_TRANSFER);
    /* Places: 1 and 2 are the dots, i + 3 name number i; each says where the next one is. */
    for (size_t i = (size_t)off; i < x->names.len + 2; i++) {
        const struct name *e = i < 2 ? n : &x->names.at[i - 2];
        struct stat st = { .st_ino = i == 0   ? ino
                                     : i == 1 ? n->parent
                                              : i - 1,
                           .st_mode = i < 2 ? S_IFDIR : e->kind };
        if (i == 2 || (i > 2 && e->parent != ino))
            continue;
        size_t more = fuse_add_direntry(req, buf + used, size - used,
                                        i == 0   ? "."
                                        : i == 1 ? ".."
                                                 : e->text,
                                        &st, (off_t)i + 1);
        if (more > size - used)
            break;
        used += more;
    }
    fuse_reply_buf(req, buf, used);
}

static void stat_fs(fuse_req_t req, fuse_ino_t ino)
{
    struct fuse_export *x = export_of(req);
    struct statvfs st = {
        .f_bsize = 4096,
        .f_frsize = 4096,
        .f_blocks = blk_size(x->node) / 4096,
        .f_files = x->names.len,
        .f_namemax = 255,
    };
    (void)ino;
    fuse_reply_statfs(req, &st);
}

/* Who serves this, so that unmounting can wait until the image is closed. */
static void control(fuse_req_t req, fuse_ino_t ino, unsigned command, void *arg,
                    struct fuse_file_info *fi, unsigned flags, const void *in, size_t in_size,
                    size_t out_size)
{
    int64_t pid = getpid();

    (void)arg;
    (void)fi;
    (void)flags;
    (void)in;
    (void)in_size;
    if (ino != FUSE_ROOT_ID || command != FUSE_EXPORT_PID || out_size < sizeof(pid))
        fuse_reply_err(req, ENOTTY);
    else
        fuse_reply_ioctl(req, 0, &pid, sizeof(pid));
}

const struct fuse_lowlevel_ops fuse_ops = {
    .init = init,
    .lookup = lookup,
    .getattr = getattr,
    .setattr = setattr,
    .readlink = read_link,
    .open = open_file,
    .read = read_file,
    .write = write_file,
    .flush = done,
    .release = done,
    .fsync = sync_file,
    .readdir = read_dir,
    .statfs = stat_fs,
    .ioctl = control,
    .fallocate = allocate,
    .lseek = seek,
};
