/* Changing options of an image that is there.
 *
 * Everything is judged before anything is changed. Then, each step durable before the next and each leaving an image
 * that is whole: to version 3, refcount width, to version 2. What version 2 cannot say (zero clusters) has
 * become something else by the time the header names it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/round.h"
#include "internal.h"

#define AT(member)    offsetof(struct qcow2_amend_options, member)
#define GIVEN(member) .given = AT(member##_given)

static const struct opt_choice compat_choices[] = {
    { "0.10", 2 }, { "1.1", 3 }, { "v2", 2 }, { "v3", 3 }, { NULL, 0 },
};

const struct opt_def qcow2_amend_table[] = {
    { .name = "backing_file",
      .type = OPT_STRING,
      .at = AT(backing_file),
      .help = "only as it is: img rebase changes it" },
    { .name = "backing_fmt",
      .type = OPT_STRING,
      .at = AT(backing_fmt),
      .help = "only as it is: img rebase changes it" },
    { .name = "compat",
      .type = OPT_ENUM,
      .at = AT(compat),
      GIVEN(compat),
      .choices = compat_choices,
      .help = "version of the format: v2 (0.10) or v3 (1.1)" },
    { .name = "data_file",
      .type = OPT_STRING,
      .at = AT(data_file),
      .help = "the file with the data, of images that have one" },
    { .name = "data_file_raw",
      .type = OPT_BOOL,
      .at = AT(data_file_raw),
      GIVEN(data_file_raw),
      .help = "whether that file stays valid as a raw image; can only be taken away" },
    { .name = "lazy_refcounts",
      .type = OPT_BOOL,
      .at = AT(lazy_refcounts),
      GIVEN(lazy_refcounts),
      .help = "postpone refcount updates" },
    { .name = "refcount_bits",
      .type = OPT_NUMBER,
      .at = AT(refcount_bits),
      GIVEN(refcount_bits),
      .help = "width of a refcount, 1 to 64" },
    { .name = "size", .type = OPT_SIZE, .at = AT(size), GIVEN(size), .help = "size of the disk" },
    OPT_END,
};

/* What the image is to be. */
struct target {
    uint32_t version, order;
    struct qcow2_strings strings;
};

int qcow2_step(struct qcow2_progress *p, uint64_t steps)
{
    p->done += steps;
    return p->fn && p->fn(p->opaque, p->done, p->total) ? -ECANCELED : 0;
}

/* ---- judging ------------------------------------------------------------------------------------------- */

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* Both at once, as they are, as qemu-img has it; there is rebase for the rest. */
static int judge_backing(const struct qcow2 *q, const struct qcow2_amend_options *o,
                         const struct qcow2_strings *now, struct error **err)
{
    if (!o->backing_file && !o->backing_fmt)
        return 0;
    if (same_text(o->backing_file, now->backing) && same_text(o->backing_fmt, now->backing_format))
        return 0;
    return error_set(err, EINVAL,
                     "%s: the backing file is '%s', format '%s', and cannot be changed here: use "
                     "img rebase",
                     blk_filename(q->node), now->backing ? now->backing : "",
                     now->backing_format ? now->backing_format : "");
}

static int judge_data_file(const struct qcow2 *q, const struct qcow2_amend_options *o,
                           struct error **err)
{
    const char *name = blk_filename(q->node);

    if (o->data_file && !(q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE))
        return error_set(err, EINVAL,
                         "%s: option 'data_file' is for images that have an external data file, "
                         "and this one has none",
                         name);
    if (o->data_file && (!o->data_file[0] || strlen(o->data_file) > QCOW2_MAX_BACKING_NAME))
        return error_set(err, EINVAL, "%s: option 'data_file' must have 1 to %d bytes", name,
                         QCOW2_MAX_BACKING_NAME);
    if (o->data_file_raw_given && o->data_file_raw &&
        !(q->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA))
        return error_set(err, EINVAL,
                         "%s: option 'data_file_raw' cannot be set on an image that is there",
                         name);
    return 0;
}

/* Version 2 has neither features nor other widths. */
static int judge_version_2(const struct qcow2 *q, const struct qcow2_amend_options *o,
                           const struct target *t, struct error **err)
{
    const char *name = blk_filename(q->node);
    uint64_t incompatible = q->version >= 3 ? q->header.incompatible : 0;

    if (t->order != 4)
        return error_set(err, EINVAL,
                         "%s: compat=0.10 has refcounts of 16 bits only, not %u: add "
                         "refcount_bits=16, or use compat=1.1",
                         name, 1u << t->order);
    if (o->lazy_refcounts)
        return error_set(err, EINVAL, "%s: option 'lazy_refcounts' needs compat=1.1", name);
    if (incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return error_set(err, ENOTSUP, "%s: compat=0.10 has no external data files", name);
    if (incompatible & ~QCOW2_INCOMPAT_DIRTY)
        return error_set(err, ENOTSUP,
                         "%s: compat=0.10 does not have the incompatible features %#" PRIx64
                         " of this image",
                         name, incompatible & ~QCOW2_INCOMPAT_DIRTY);
    if (q->version >= 3 && q->header.nb_snapshots)
        return error_set(err, ENOTSUP,
                         "%s: an image with internal snapshots cannot go back to compat=0.10: "
                         "delete them first",
                         name);
    return 0;
}

static int judge(struct qcow2 *q, const struct qcow2_amend_options *o, struct target *t,
                 struct error **err)
{
    const char *name = blk_filename(q->node);

    t->version = o->compat_given ? (uint32_t)o->compat : q->version;
    t->order = q->refcount_order;
    if (o->refcount_bits_given) {
        if (!is_pow2(o->refcount_bits) || o->refcount_bits > 64)
            return error_set(err, EINVAL,
                             "%s: option 'refcount_bits' must be a power of two of at most 64, "
                             "not %" PRIu64,
                             name, o->refcount_bits);
        t->order = log2_floor(o->refcount_bits);
    }
    if (o->size_given && (o->size % 512 || o->size == 0))
        return error_set(err, EINVAL, "%s: option 'size' must be a multiple of 512, not %" PRIu64,
                         name, o->size);
    int ret = judge_backing(q, o, &t->strings, err);
    if (ret == 0)
        ret = judge_data_file(q, o, err);
    if (ret == 0 && t->version < 3)
        ret = judge_version_2(q, o, t, err);
    return ret;
}

/* ---- doing ----------------------------------------------------------------------------------------------- */

static bool strings_change(const struct qcow2_strings *s)
{
    return s->data_file;
}

/* Everything that is a matter of the header alone. */
static int change_header(struct qcow2 *q, const struct qcow2_amend_options *o,
                         const struct target *t, struct error **err)
{
    struct qcow2_header h = q->header;

    if (t->version > h.version)
        h.version = t->version;
    if (o->lazy_refcounts_given && h.version >= 3)
        h.compatible =
            (h.compatible & ~QCOW2_COMPAT_LAZY) | (o->lazy_refcounts ? QCOW2_COMPAT_LAZY : 0);
    if (o->data_file_raw_given && !o->data_file_raw)
        h.autoclear &= ~QCOW2_AUTOCLEAR_RAW_DATA;
    if (h.version == q->header.version && h.compatible == q->header.compatible &&
        h.autoclear == q->header.autoclear && !strings_change(&t->strings))
        return 0;
    return qcow2_header_rewrite(q, &h, &t->strings, err);
}

static int downgrade(struct qcow2 *q, const struct target *t, struct qcow2_progress *p,
                     struct error **err)
{
    int ret = qcow2_expand_zeroes(q, p, err);

    if (ret < 0)
        return ret;
    ret = qcow2_settle(q);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not write its metadata: %s", blk_filename(q->node),
                         strerror(-ret));
    struct qcow2_header h = q->header;
    h.version = 2;
    h.incompatible = h.compatible = h.autoclear = 0;
    return qcow2_header_rewrite(q, &h, &t->strings, err);
}

static int perform(struct qcow2 *q, const struct qcow2_amend_options *o, const struct target *t,
                   struct qcow2_progress *p, struct error **err)
{
    bool widths = t->order != q->refcount_order, down = t->version < q->version;

    p->total = (widths ? qcow2_refcount_steps(q) : 0) + (down ? qcow2_expand_steps(q) : 0);
    int ret = qcow2_settle(q);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not write its metadata: %s", blk_filename(q->node),
                         strerror(-ret));
    ret = change_header(q, o, t, err);
    if (ret == 0 && widths)
        ret = qcow2_change_refcounts(q, t->order, p, err);
    if (ret == 0 && down)
        ret = downgrade(q, t, p, err);
    return ret;
}

int qcow2_amend(struct blk_node *n, const void *options, uint64_t *size, blk_progress_fn *progress,
                void *opaque, struct error **err)
{
    struct qcow2 *q = node_state(n);
    const struct qcow2_amend_options *o = options;
    struct qcow2_progress p = { .fn = progress, .opaque = opaque };
    struct target t = { 0 };
    _cleanup_free_ char *backing = NULL, *format = NULL;
    int ret = qcow2_read_strings(q->file, &q->header, &backing, &format, err);

    if (ret < 0)
        return ret;
    t.strings = (struct qcow2_strings){ .backing = backing, .backing_format = format };
    ret = judge(q, o, &t, err);
    if (ret < 0)
        return ret;
    t.strings.data_file = o->data_file;
    if (o->size_given)
        *size = o->size;
    return perform(q, o, &t, &p, err);
}
