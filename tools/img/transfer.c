/* The work of convert: sources one behind the other, into a file, a device or a pipe. */
#include "convert.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/hidden.h"

#include "args.h"
#include "concat.h"
#include "image.h"
#include "sink.h"
#include "stream.h"
#include "watch.h"

struct transfer {
    struct convert *o;
    struct blk_node **sources;
    int n;
    bool from_pipe;  /* one source, which cannot be read twice */
    int in;          /* that one */
    uint64_t total;  /* bytes of all sources */
    uint64_t before; /* of the sources that are done */
    struct blk_node *current;
};

static bool is_dash(const char *name)
{
    return strcmp(name, "-") == 0;
}

/* A file on standard input that nobody has read from yet can be opened like any other. */
static bool stdin_is_file(void)
{
    struct stat st;
    return fstat(STDIN_FILENO, &st) == 0 && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) &&
           lseek(STDIN_FILENO, 0, SEEK_CUR) == 0;
}

/* A name that stands for bytes which go by once: a named pipe, or the /dev/fd/63 of a shell's
 * <(...). */
static bool is_pipe(const char *name)
{
    struct stat st;
    return !name_has_protocol(name) && stat(name, &st) == 0 &&
           (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode) || S_ISSOCK(st.st_mode));
}

static bool add_source(struct transfer *t, int i, const char *name)
{
    const struct convert *o = t->o;
    struct image_spec spec = {
        .name = name,
        .format = o->format,
        .cache = o->source_cache,
        .image_opts = o->image_opts,
        .flags = BLK_OPEN_QUIET | BLK_OPEN_UNWRAP | (o->share ? BLK_OPEN_SHARED : 0),
        .snapshot = o->snapshot,
    };
    t->sources[i] = image_open(&spec);
    if (!t->sources[i])
        return false;
    t->total += image_sectors_size(t->sources[i]);
    return true;
}

/* Formats are read here and there, so what comes by once is kept first: in a file without a name. */
static bool open_saved(struct transfer *t, const char *name)
{
    _cleanup_fd_ int own = is_dash(name) ? -1 : open(name, O_RDONLY | O_CLOEXEC);
    char saved[64];
    if (!is_dash(name) && own < 0) {
        complain("cannot open '%s': %s", name, strerror(errno));
        return false;
    }
    t->in = hidden_open();
    if (t->in < 0) {
        complain("cannot keep the stream '%s' in '%s': %s (TMPDIR says where)", name,
                 hidden_folder(), strerror(-t->in));
        return false;
    }
    if (stream_save(own < 0 ? STDIN_FILENO : own, t->in) < 0)
        return false;
    snprintf(saved, sizeof(saved), "/proc/self/fd/%d", t->in);
    return add_source(t, 0, saved);
}

static bool open_pipe(struct transfer *t, const char *name)
{
    const struct convert *o = t->o;
    if (t->n > 1) {
        complain("'%s' is a stream, which can only be the one source", name);
    } else if (o->format && strcmp(o->format, "raw") != 0) {
        return open_saved(t, name);
    } else {
        t->from_pipe = true;
        t->in = is_dash(name) ? STDIN_FILENO : open(name, O_RDONLY | O_CLOEXEC);
        if (t->in >= 0)
            return true;
        complain("cannot open '%s': %s", name, strerror(errno));
    }
    return false;
}

static bool open_sources(struct transfer *t, char **names)
{
    for (int i = 0; i < t->n; i++) {
        const char *name = names[i];
        if (is_dash(name) && stdin_is_file())
            name = "/proc/self/fd/0";
        else if (is_dash(name) || (!t->o->image_opts && is_pipe(name)))
            return open_pipe(t, name);
        if (!add_source(t, i, name))
            return false;
    }
    return true;
}

static void bad_sector(void *opaque, uint64_t offset, uint64_t len, int error)
{
    const struct transfer *t = opaque;
    if (!t->o->quiet)
        complain("warning: cannot read '%s' at offset %" PRIu64 ", %" PRIu64
                 " bytes become zeroes: %s",
                 blk_filename(t->current), offset, len, strerror(error));
}

static int step(void *opaque, uint64_t done, uint64_t total)
{
    const struct transfer *t = opaque;
    (void)total;
    watch_done(t->before + done);
    return watch_stopped();
}

/* The layer of the source whose content the target's backing file has: the file itself where it is
 * one of the layers, else by agreement the first one below the source. */
static struct blk_node *base_of(const struct transfer *t, struct blk_node *source,
                                const char *target)
{
    const char *backing = t->o->backing;
    if (!backing)
        return NULL;
    _cleanup_free_ char *beside = NULL;
    const char *slash = strrchr(target, '/');
    if (slash && backing[0] != '/') {
        if (asprintf(&beside, "%.*s/%s", (int)(slash - target), target, backing) < 0)
            beside = NULL;
    }
    struct stat wanted, st;
    struct blk_node *below = blk_child(source, "backing");
    if (stat(beside ? beside : backing, &wanted) == 0) {
        for (struct blk_node *node = below; node; node = blk_child(node, "backing")) {
            if (stat(blk_filename(node), &st) == 0 && st.st_dev == wanted.st_dev &&
                st.st_ino == wanted.st_ino)
                return node;
        }
    }
    return below;
}

static int copy_one(struct transfer *t, struct sink *sink, struct blk_node *source, bool zero)
{
    const struct convert *o = t->o;
    t->current = source;
    struct blk_copy_args copy = {
        .src = source,
        .dst = sink->node,
        .dst_offset = t->before,
        .length = blk_size(source),
        .base = base_of(t, source, sink->target.name),
        .workers = (unsigned)o->workers,
        .min_sparse = o->offload ? 0 : o->sparse,
        .rate_limit = o->rate,
        .compress = o->compress,
        .dst_is_zero = zero,
        .offload = o->offload,
        .salvage = o->salvage,
        .bad = bad_sector,
        .progress = step,
        .opaque = t,
    };
    struct error *err = NULL;
    int r = copy.length ? blk_copy(&copy, &err) : 0;
    if (r == -ECANCELED)
        blk_error_free(err);
    else if (r < 0)
        complain_error(&err, NULL);
    return r;
}

static int fill_from_pipe(struct transfer *t, struct sink *sink, bool zero)
{
    const struct convert *o = t->o;
    struct stream s = {
        .node = sink->node,
        .length = UINT64_MAX,
        .rate_limit = o->rate,
        .workers = (unsigned)o->workers,
        .grow = sink->fresh,
        .compress = o->compress,
        .skip_zeroes = zero,
        .detect_zeroes = o->sparse > 0,
    };
    if (o->own_size) {
        /* The size was stated, so the target has it already. */
        s.grow = false;
    }
    return stream_in(&s, t->in);
}

/* What is compressed must begin and end with whole clusters, which the images here do not. */
static int fill_across(struct transfer *t, const struct concat *all, struct sink *sink, bool zero)
{
    const struct convert *o = t->o;
    if (o->salvage || o->backing) {
        complain("-c of several images goes with neither --salvage nor -B unless each, but the "
                 "last, is a "
                 "multiple of %" PRIu64 " bytes long",
                 sink->limits.max_compressed);
        return -EINVAL;
    }
    struct stream s = {
        .node = sink->node,
        .sources = all,
        .length = t->total,
        .rate_limit = o->rate,
        .workers = (unsigned)o->workers,
        .compress = true,
        .skip_zeroes = zero,
        .detect_zeroes = o->sparse > 0,
    };
    return stream_copy(&s);
}

/* The first bad thing is told; 0 or negative. */
static int fill(struct transfer *t, struct sink *sink)
{
    const struct convert *o = t->o;
    bool zero = o->target_is_zero || (sink->fresh && sink->limits.new_is_zero && !o->backing);
    if (t->from_pipe)
        return fill_from_pipe(t, sink, zero);
    struct concat all = { t->sources, t->n };
    if (o->compress && concat_is_uneven(&all, sink->limits.max_compressed))
        return fill_across(t, &all, sink, zero);
    for (int i = 0; i < t->n; i++) {
        int r = copy_one(t, sink, t->sources[i], zero);
        if (r < 0)
            return r;
        t->before += image_sectors_size(t->sources[i]);
    }
    return 0;
}

static bool wanted_size(const struct transfer *t, uint64_t *size)
{
    *size = t->total;
    if (!t->o->own_size)
        return true;
    if (!parse_size(t->o->own_size, "image size", size))
        return false;
    if (*size < t->total) {
        complain("-o size=%s is less than the %" PRIu64 " bytes of the source", t->o->own_size,
                 t->total);
        return false;
    }
    return true;
}

static bool open_sink(struct transfer *t, struct sink *sink, const char *target)
{
    const struct convert *o = t->o;
    struct sink_spec spec = {
        .name = target,
        .format = o->target_format,
        .cache = o->cache,
        .options = o->options,
        .backing_file = o->backing,
        .backing_format = o->backing_format,
        .image_opts = o->target_opts,
        .quiet = o->quiet,
    };
    for (int i = 0; i < t->n; i++) {
        if (t->sources[i] && !sink_is_safe(target, t->sources[i]))
            return false;
    }
    if (!wanted_size(t, &spec.size))
        return false;
    if (!(o->no_create ? sink_reuse(sink, &spec) : sink_create(sink, &spec)))
        return false;
    uint64_t have = blk_size(sink->node);
    if (have < t->total) {
        complain("'%s' has %" PRIu64 " bytes, but the source has %" PRIu64, target, have, t->total);
        return false;
    }
    if (o->compress && !sink->limits.max_compressed) {
        complain("'%s' takes no compressed data: leave out -c", target);
        return false;
    }
    return true;
}

static int to_image(struct transfer *t, const char *target)
{
    struct sink sink = SINK_INIT;
    int code = 1;
    if (open_sink(t, &sink, target)) {
        watch_total(t->total);
        int r = fill(t, &sink);
        if (r == 0 && !watch_stopped() && sink_finish(&sink))
            code = 0;
        else if (r == -ECANCELED || watch_stopped())
            complain("stopped before the end, '%s' %s", target,
                     sink.target.path ? "was not made" : "is incomplete");
    }
    sink_end(&sink);
    return code;
}

static bool pipe_is_fit(const struct convert *o, const char *name, int fd)
{
    if (!o->target_format || strcmp(o->target_format, "raw") != 0) {
        complain("only raw can be written to the stream '%s': use -O raw, or give a file name",
                 name);
    } else if (o->no_create || o->options || o->backing) {
        complain("-n, -o and -B are for images in files, not for the stream '%s'", name);
    } else if (isatty(fd)) {
        complain("'%s' is a terminal: send the disk to a file or a program", name);
    } else {
        return true;
    }
    return false;
}

static int to_pipe(struct transfer *t, const char *name)
{
    const struct convert *o = t->o;
    _cleanup_fd_ int own = is_dash(name) ? -1 : open(name, O_WRONLY | O_CLOEXEC);
    int fd = is_dash(name) ? STDOUT_FILENO : own;
    if (fd < 0) {
        complain("cannot open '%s': %s", name, strerror(errno));
        return 1;
    }
    if (!pipe_is_fit(o, name, fd))
        return 1;
    if (t->from_pipe) {
        struct stream s = { .rate_limit = o->rate };
        return stream_through(&s, t->in, fd) < 0 ? 1 : 0;
    }
    watch_total(t->total);
    struct concat all = { t->sources, t->n };
    struct stream s = {
        .sources = &all,
        .length = t->total,
        .rate_limit = o->rate,
        .workers = (unsigned)o->workers,
    };
    return stream_out(&s, fd) < 0 ? 1 : 0;
}

int convert(struct convert *o, char **sources, int n, const char *target)
{
    struct transfer t = { .o = o, .n = n, .in = -1 };
    t.sources = calloc((size_t)n, sizeof(struct blk_node *));
    if (!t.sources) {
        complain("out of memory");
        return 1;
    }
    int code = 1;
    if (open_sources(&t, sources))
        code = is_dash(target) || (!o->no_create && is_pipe(target)) ? to_pipe(&t, target)
                                                                     : to_image(&t, target);
    for (int i = 0; i < n; i++)
        image_drop(&t.sources[i]);
    free(t.sources);
    if (t.in > STDIN_FILENO)
        close(t.in);
    return code;
}
