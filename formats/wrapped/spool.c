/* The content, decoded from its beginning as far as somebody asked, in a file without a name.
 *
 * Zeroes stay holes, so the file takes no more than the content's data. It lies in $TMPDIR or /var/tmp, and leaves
 * the file system some space: what fills up the disk of a machine is worse than a refusal.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/hidden.h"
#include "base/iov.h"
#include "base/iszero.h"
#include "base/macros.h"
#include "wrapped.h"

enum { OUT = 4 * CHUNK, GRAIN = 4096 };
#define MARGIN (UINT64_C(1) << 30) /* bytes left free at least, or a twentieth of a small disk */

int spool_begin(struct wrapped *w, struct error **err)
{
    struct spool *s = &w->spool;
    struct statvfs fs;

    s->fd = hidden_open();
    if (s->fd < 0)
        return error_set(err, -s->fd,
                         "%s: no temporary file for what it decodes to could be made in '%s': %s "
                         "(TMPDIR says where)",
                         blk_filename(w->file), hidden_folder(), strerror(-s->fd));
    pthread_mutex_init(&s->lock, NULL);
    s->margin = MARGIN;
    if (fstatvfs(s->fd, &fs) == 0)
        s->margin = MIN(s->margin, (uint64_t)fs.f_blocks * fs.f_frsize / 20);
    s->in = malloc(CHUNK);
    s->out = malloc(OUT);
    int ret = s->in && s->out ? w->codec->begin(&s->decoder) : -ENOMEM;
    return ret < 0 ? wrapped_error(w, ret, 0, err) : 0;
}

void spool_end(struct wrapped *w)
{
    struct spool *s = &w->spool;

    if (s->fd < 0)
        return;
    if (s->decoder)
        w->codec->end(s->decoder);
    free(s->in);
    free(s->out);
    close(s->fd);
    s->fd = -1;
    pthread_mutex_destroy(&s->lock);
}

/* ---- decoding ----------------------------------------------------------------------------------- */

/* All of it, to the file or from it. */
static int move_all(int fd, uint8_t *buf, size_t len, uint64_t off, bool write)
{
    while (len > 0) {
        ssize_t n = write ? pwrite(fd, buf, len, (off_t)off) : pread(fd, buf, len, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        buf += n;
        off += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int room_left(const struct spool *s)
{
    struct statvfs fs;

    if (fstatvfs(s->fd, &fs) < 0)
        return 0;
    return (uint64_t)fs.f_bavail * fs.f_frsize < s->margin ? -ENOSPC : 0;
}

static int keep(struct wrapped *w, size_t len, struct error **err)
{
    struct spool *s = &w->spool;
    uint64_t off = atomic_load(&s->decoded);
    int ret = is_zero(s->out, len) ? 0 : room_left(s);

    for (size_t at = 0; at < len && ret == 0;) {
        bool zero;
        size_t run = zero_run(s->out + at, len - at, GRAIN, &zero);
        if (!zero)
            ret = move_all(s->fd, s->out + at, run, off + at, true);
        at += run;
    }
    if (ret < 0)
        return error_set(err, -ret,
                         "%s: what it decodes to finds no room in '%s' beyond %" PRIu64
                         " bytes: %s (TMPDIR says where it is put)",
                         blk_filename(w->file), hidden_folder(), off, strerror(-ret));
    /* Past the last data are zeroes, too. */
    if (ftruncate(s->fd, (off_t)(off + len)) < 0)
        return error_set(err, errno, "%s: the temporary file in '%s' cannot be made longer: %s",
                         blk_filename(w->file), hidden_folder(), strerror(errno));
    atomic_store(&s->decoded, off + len);
    return 0;
}

static int refill(struct wrapped *w)
{
    struct spool *s = &w->spool;
    uint64_t left = blk_size(w->file) - s->file_at;

    if (s->in_at < s->in_len || left == 0)
        return 0;
    s->in_at = 0;
    s->in_len = (size_t)MIN(left, (uint64_t)CHUNK);
    int ret = blk_read(w->file, s->file_at, s->in, s->in_len, 0);
    if (ret < 0)
        s->in_len = 0;
    else
        s->file_at += s->in_len;
    return ret;
}

/* Fills the output, or decodes to the end. *len: how much came. */
static int fill(struct wrapped *w, size_t *len)
{
    struct spool *s = &w->spool;
    size_t done = 0;
    int ret = 0;

    while (done < OUT && ret == 0) {
        ret = refill(w);
        if (ret < 0)
            break;
        size_t had = s->in_len - s->in_at;
        struct flow flow = {
            .in = s->in + s->in_at,
            .in_len = had,
            .in_ended = s->file_at == blk_size(w->file),
            .out = s->out + done,
            .out_len = OUT - done,
        };
        ret = w->codec->step(s->decoder, &flow);
        bool moved = flow.in_len < had || flow.out_len < OUT - done;
        s->in_at += had - flow.in_len;
        done = OUT - flow.out_len;
        if (ret == 0 && !moved)
            ret = flow.in_ended && flow.in_len == 0 ? -ENODATA : -EIO;
    }
    *len = done;
    return ret;
}

static int step(struct wrapped *w, struct error **err)
{
    struct spool *s = &w->spool;
    size_t len;
    int end = fill(w, &len);
    uint64_t at = s->file_at - s->in_len + s->in_at;

    if (end < 0)
        return wrapped_error(w, end, at, err);
    uint64_t now = atomic_load(&s->decoded) + len;
    if (w->size != WRAPPED_UNKNOWN && (now > w->size || (end == WRAPPED_END && now < w->size)))
        return wrapped_error(w, -EIO, at, err);
    if (now > w->most)
        return wrapped_error(w, -EFBIG, at, err);
    s->ended = end == WRAPPED_END;
    return len ? keep(w, len, err) : 0;
}

/* The last bytes count when what follows them, checksums, has been read. */
static bool there(const struct wrapped *w, uint64_t end)
{
    const struct spool *s = &w->spool;

    return atomic_load(&s->ended) || (end < w->size && atomic_load(&s->decoded) >= end);
}

int spool_reach(struct wrapped *w, uint64_t end, struct error **err)
{
    struct spool *s = &w->spool;

    if (there(w, end))
        return 0;
    LOCK_SCOPE(&s->lock);
    while (s->failed == 0 && !there(w, end))
        s->failed = step(w, err);
    return s->failed;
}

/* ---- reading ------------------------------------------------------------------------------------- */

int spool_read(struct wrapped *w, uint64_t off, const struct iovec *iov, int iovcnt, uint64_t len)
{
    _cleanup_error_ struct error *err = NULL;
    int ret = spool_reach(w, off + len, &err);

    if (ret < 0) {
        wrapped_warn(w, err);
        return ret;
    }
    for (int i = 0; i < iovcnt && ret == 0; i++) {
        ret = move_all(w->spool.fd, iov[i].iov_base, iov[i].iov_len, off, false);
        off += iov[i].iov_len;
    }
    return ret;
}

uint64_t spool_run(struct wrapped *w, uint64_t off, uint64_t len, bool *data)
{
    off_t next = lseek(w->spool.fd, (off_t)off, SEEK_DATA);

    *data = next >= 0 && (uint64_t)next == off;
    if (*data)
        next = lseek(w->spool.fd, (off_t)off, SEEK_HOLE);
    else if (next < 0 && errno != ENXIO)
        *data = true; /* it does not know */
    return next > 0 && (uint64_t)next > off ? MIN(len, (uint64_t)next - off) : len;
}
