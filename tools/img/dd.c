/* img dd: a part of one image, to some place of another. */
#include "img.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/distance.h"
#include "base/human.h"
#include "base/macros.h"

#include "args.h"
#include "concat.h"
#include "image.h"
#include "output.h"
#include "sink.h"
#include "stream.h"
#include "tools/window.h"
#include "watch.h"

struct dd {
    const char *format, *target_format, *progress, *status;
    bool image_opts, share, quiet, percent, target_given;
    /* operands */
    const char *in, *out;
    uint64_t bs, count, skip, seek;
    bool count_given;
    bool notrunc, sync, sparse, nocreat, excl;
};

static const struct arg_def args[] = {
    ARGS_FORMAT(struct dd, format),
    { .letter = 'O',
      .name = "target-format",
      .kind = ARG_TEXT,
      .at = offsetof(struct dd, target_format),
      .value = "FMT",
      .hint = "@format",
      .help = "format of the target (raw)" },
    ARGS_IMAGE_OPTS(struct dd, image_opts),
    ARGS_PROGRESS(struct dd, percent, progress),
    ARGS_QUIET(struct dd, quiet),
    ARGS_SHARE(struct dd, share),
    ARGS_OBJECT,
    ARGS_END,
};

static bool parse_conv(struct dd *o, const char *list)
{
    const struct {
        const char *name;
        bool *flag;
    } words[] = {
        { "notrunc", &o->notrunc }, { "fsync", &o->sync },      { "fdatasync", &o->sync },
        { "sparse", &o->sparse },   { "nocreat", &o->nocreat }, { "excl", &o->excl },
    };
    while (*list) {
        size_t n = strcspn(list, ","), i;
        for (i = 0; i < ARRAY_SIZE(words); i++) {
            if (strlen(words[i].name) == n && memcmp(words[i].name, list, n) == 0) {
                *words[i].flag = true;
                break;
            }
        }
        if (i == ARRAY_SIZE(words)) {
            complain(
                "conv=%.*s is not known; there are notrunc, fsync, fdatasync, sparse, nocreat and "
                "excl",
                (int)n, list);
            return false;
        }
        list += n + (list[n] == ',');
    }
    return true;
}

static bool parse_bs(struct dd *o, const char *value)
{
    if (!parse_size(value, "bs", &o->bs))
        return false;
    if (o->bs >= 1 && o->bs <= INT32_MAX)
        return true;
    complain("bs is %" PRIu64 ", but it must be between 1 and %d", o->bs, INT32_MAX);
    return false;
}

static bool parse_status(struct dd *o, const char *value)
{
    o->status = value;
    if (word_in(value, "none|noxfer|progress"))
        return true;
    complain("status=%s is not known; there are none, noxfer and progress", value);
    return false;
}

static bool operand_unknown(const char *word)
{
    static const char *const names[] = {
        "if", "of", "bs", "count", "skip", "seek", "conv", "status"
    };
    struct nearest best = nearest_begin(word);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        nearest_try(&best, names[i]);
    if (best.name)
        complain("dd has no operand '%s', did you mean '%s='?", word, best.name);
    else
        complain("dd has no operand '%s'", word);
    complain_usage("dd");
    return false;
}

static bool parse_operand(struct dd *o, const char *text)
{
    const char *equals = strchr(text, '=');
    _cleanup_free_ char *name = strndup(text, equals ? (size_t)(equals - text) : strlen(text));
    if (!name || !equals)
        return operand_unknown(name ? name : text);
    const char *value = equals + 1;
    if (strcmp(name, "if") == 0) {
        o->in = value;
    } else if (strcmp(name, "of") == 0) {
        o->out = value;
    } else if (strcmp(name, "bs") == 0) {
        return parse_bs(o, value);
    } else if (strcmp(name, "count") == 0) {
        o->count_given = true;
        return parse_size(value, "count", &o->count);
    } else if (strcmp(name, "skip") == 0 || strcmp(name, "iseek") == 0) {
        return parse_size(value, "skip", &o->skip);
    } else if (strcmp(name, "seek") == 0 || strcmp(name, "oseek") == 0) {
        return parse_size(value, "seek", &o->seek);
    } else if (strcmp(name, "conv") == 0) {
        return parse_conv(o, value);
    } else if (strcmp(name, "status") == 0) {
        return parse_status(o, value);
    } else {
        return operand_unknown(name);
    }
    return true;
}

/* Blocks to bytes; what does not fit into 63 bits is beyond the end of anything. */
static uint64_t blocks(uint64_t n, uint64_t bs)
{
    uint64_t bytes;
    if (__builtin_mul_overflow(n, bs, &bytes) || bytes > INT64_MAX)
        return INT64_MAX;
    return bytes;
}

struct part {
    struct blk_node *source; /* NULL: standard input */
    uint64_t skip, length, seek;
};

static bool find_part(const struct dd *o, struct part *p)
{
    p->skip = blocks(o->skip, o->bs);
    p->seek = blocks(o->seek, o->bs);
    p->length = o->count_given ? blocks(o->count, o->bs) : INT64_MAX;
    if (p->source) {
        uint64_t size = blk_size(p->source);
        if (p->skip > size) {
            complain("'%s' has %" PRIu64 " bytes, so skip=%" PRIu64 " leaves nothing to copy",
                     o->in, size, o->skip);
            p->skip = size;
        }
        p->length = MIN(p->length, size - p->skip);
        if (p->length > INT64_MAX - p->seek) {
            complain("seek=%" PRIu64 " blocks of %" PRIu64
                     " bytes is beyond what an image can have",
                     o->seek, o->bs);
            return false;
        }
    }
    return true;
}

static int step(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    (void)total;
    watch_done(done);
    return watch_stopped();
}

/* Standard input cannot seek: what is skipped is read. */
static int skip_stream(uint64_t skip)
{
    _cleanup_free_ char *buf = malloc(64 << 10);
    while (skip > 0 && buf) {
        ssize_t n = read(STDIN_FILENO, buf, MIN(skip, UINT64_C(64) << 10));
        if (n <= 0)
            return n < 0 ? -errno : 0;
        skip -= (uint64_t)n;
    }
    return buf ? 0 : -ENOMEM;
}

static int move(const struct part *p, struct sink *sink, uint64_t *moved)
{
    bool zero = sink->fresh && sink->limits.new_is_zero;
    if (!p->source) {
        struct stream s = {
            .node = sink->node,
            .offset = p->seek,
            .length = p->length,
            .grow = true,
            .keep = !sink->fresh,
            .skip_zeroes = zero,
            .detect_zeroes = true,
        };
        int r = skip_stream(p->skip);
        if (r == 0)
            r = stream_in(&s, STDIN_FILENO);
        *moved = s.moved;
        return r;
    }
    struct blk_copy_args copy = {
        .src = p->source,
        .dst = sink->node,
        .src_offset = p->skip,
        .dst_offset = p->seek,
        .length = p->length,
        .min_sparse = 4096, /* conv=sparse or not: nobody misses zeroes that are not written */
        .dst_is_zero = zero,
        .progress = step,
    };
    struct error *err = NULL;
    int r = p->length ? blk_copy(&copy, &err) : 0;
    if (r == -ECANCELED)
        blk_error_free(err);
    else if (r < 0)
        complain_error(&err, NULL);
    *moved = p->length;
    return r;
}

/* With conv=notrunc what is there stays, and is made longer where that is needed. */
static bool open_sink(const struct dd *o, const struct part *p, struct sink *sink)
{
    uint64_t end = p->seek + (p->source ? p->length : 0);
    struct sink_spec spec = {
        .name = o->out,
        .format = o->target_format,
        .size = end,
        .quiet = o->quiet,
        .may_grow = true,
    };
    if (p->source && !sink_is_safe(o->out, p->source))
        return false;
    bool partition = window_is_there(o->out);
    bool exists = partition || access(o->out, F_OK) == 0;
    if (exists && o->excl) {
        complain("'%s' exists already, and conv=excl forbids to touch it", o->out);
        return false;
    }
    if (!exists && o->nocreat) {
        complain("'%s' does not exist, and conv=nocreat forbids to make it", o->out);
        return false;
    }
    if (!exists || (!o->notrunc && !partition))
        return sink_create(sink, &spec);
    if (partition) { /* it stays as long as it is, on a disk of whatever format */
        spec.format = o->target_given ? o->target_format : NULL;
        spec.may_grow = false;
    }
    if (!sink_reuse(sink, &spec))
        return false;
    if (partition && blk_size(sink->node) < end) {
        complain("'%s' has %" PRIu64 " bytes, but %" PRIu64 " are to be there", o->out,
                 blk_size(sink->node), end);
        return false;
    }
    struct error *err = NULL;
    if (blk_size(sink->node) < end && blk_resize(sink->node, end, BLK_PREALLOC_OFF, &err) < 0) {
        complain_error(&err, NULL);
        return false;
    }
    return true;
}

static int to_stdout(const struct dd *o, const struct part *p)
{
    if (!p->source || strcmp(o->target_format, "raw") != 0 || p->seek || isatty(STDOUT_FILENO)) {
        complain("of=- takes a raw part of an image file, without seek=, to a file or a program");
        return 1;
    }
    struct concat one = { &p->source, 1 };
    struct stream s = { .sources = &one, .offset = p->skip, .length = p->length };
    watch_total(s.length);
    return stream_out(&s, STDOUT_FILENO) < 0 ? 1 : 0;
}

static int to_image(const struct dd *o, const struct part *p, uint64_t *moved)
{
    struct sink sink = SINK_INIT;
    int code = 1;
    if (open_sink(o, p, &sink)) {
        watch_total(p->source ? p->length : 0);
        int r = move(p, &sink, moved);
        if (r == 0 && !watch_stopped() && sink_finish(&sink))
            code = 0;
    }
    sink_end(&sink);
    return code;
}

static int dd(const struct dd *o, uint64_t *moved)
{
    struct part p = { 0 };
    if (strcmp(o->in, "-") != 0) {
        struct image_spec spec = {
            .name = o->in,
            .format = o->format,
            .image_opts = o->image_opts,
            .flags = BLK_OPEN_QUIET | BLK_OPEN_UNWRAP | (o->share ? BLK_OPEN_SHARED : 0),
        };
        p.source = image_open(&spec);
        if (!p.source)
            return 1;
    }
    int code = 1;
    if (find_part(o, &p))
        code = strcmp(o->out, "-") == 0 ? to_stdout(o, &p) : to_image(o, &p, moved);
    image_drop(&p.source);
    return code;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct dd o = { .bs = 512 };
    int first, code;
    if (!args_parse(self, argc, argv, &o, &first, &code))
        return code;
    for (int i = first; i < argc; i++) {
        if (!parse_operand(&o, argv[i]))
            return 1;
    }
    if (!o.in || !o.out) {
        complain("dd needs if=FILE and of=FILE");
        complain_usage("dd");
        return 1;
    }
    o.target_given = o.target_format;
    if (!o.target_given)
        o.target_format = "raw";
    struct blk_driver_info info;
    if (!format_known(o.target_format) || !image_opts_alone(o.image_opts, o.format))
        return 1;
    if (!format_find(o.target_format, &info) || !info.can_create) {
        complain("images of format '%s' can be read, but not made", o.target_format);
        return 1;
    }
    bool progress = o.status && strcmp(o.status, "progress") == 0;
    struct watch_how how = { .percent = o.percent,
                             .quiet = o.quiet,
                             .busy_stdout = strcmp(o.out, "-") == 0 };
    how.mode = o.progress ? o.progress : progress ? "bar" : o.status ? "none" : NULL;
    watch_begin("dd", &how);
    uint64_t moved = 0;
    code = watch_end(dd(&o, &moved));
    if (code == 0 && progress)
        tell("%" PRIu64 " bytes (%s) copied", moved, human_size(moved).s);
    return output_end(code);
}

const struct command cmd_dd = {
    .name = "dd",
    .summary = "copy a part of an image",
    .operands = "[bs=BYTES] [count=N] [skip=N] [seek=N] [conv=WORDS] [status=HOW] if=FILE of=FILE",
    .args = args,
    .example = "dd -O raw if=vm.qcow2 of=mbr.raw bs=512 count=1",
    .run = run,
};
