/* Filter: every write goes to two nodes, every read compares them.
 *
 * "test" is the node under test, "raw" is what it must agree with. The first disagreement is told with its offset,
 * and the read fails.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/iov.h"
#include "block/driver_leaves.h"
#include "filter.h"

static struct blk_node *truth(struct blk_node *n)
{
    return node_child(n, EDGE_SECOND);
}

/* The first byte of the buffers that is not as in `flat`; len when they agree. */
static uint64_t first_difference(const struct iovec *iov, int iovcnt, const uint8_t *flat)
{
    uint64_t at = 0;

    for (int i = 0; i < iovcnt; i++) {
        const uint8_t *b = iov[i].iov_base;
        if (!memcmp(b, flat + at, iov[i].iov_len)) {
            at += iov[i].iov_len;
            continue;
        }
        for (size_t k = 0; b[k] == flat[at]; k++)
            at++;
        break;
    }
    return at;
}

static int verify_preadv(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                         uint64_t len, unsigned flags)
{
    _cleanup_free_ uint8_t *flat = malloc(len);

    if (!flat)
        return -ENOMEM;
    int ret = blk_readv(filter_below(n), off, iov, iovcnt, flags);
    int other = ret == -EAGAIN ? ret : blk_read(truth(n), off, flat, len, flags);
    if (ret == -EAGAIN || other == -EAGAIN)
        return -EAGAIN;
    if (ret != other) {
        node_warn(n, "reading %llu bytes at offset %llu: '%s' says %s, '%s' says %s",
                  (unsigned long long)len, (unsigned long long)off, blk_filename(filter_below(n)),
                  strerror(-ret), blk_filename(truth(n)), strerror(-other));
        return ret < 0 ? ret : other;
    }
    uint64_t same = ret < 0 ? len : first_difference(iov, iovcnt, flat);
    if (same < len) {
        node_warn(n, "contents mismatch at offset %llu", (unsigned long long)(off + same));
        return -EIO;
    }
    return ret;
}

/* Both, and whichever failed. */
static int both(int a, int b)
{
    return a < 0 ? a : b;
}

static int verify_pwritev(struct blk_node *n, uint64_t off, const struct iovec *iov, int iovcnt,
                          uint64_t len, unsigned flags)
{
    (void)len;
    if (flags & BLK_NOWAIT)
        return -EAGAIN; /* one could be written and the other not */
    return both(blk_writev(truth(n), off, iov, iovcnt, flags),
                blk_writev(filter_below(n), off, iov, iovcnt, flags));
}

static int verify_zero(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    flags &= ~(unsigned)BLK_NO_FALLBACK;
    return both(blk_zero(truth(n), off, len, flags), blk_zero(filter_below(n), off, len, flags));
}

static int verify_flush(struct blk_node *n)
{
    return both(blk_flush(truth(n)), blk_flush(filter_below(n)));
}

/* "blkverify:RAW:IMAGE": IMAGE of whatever format it is found to have. */
static json_t *verify_describe(const char *filename, struct error **err)
{
    const char *raw = strchr(filename, ':') + 1, *image = strchr(raw, ':');

    if (!image) {
        error_set(err, EINVAL, "%s: expected blkverify:RAW:IMAGE", filename);
        return NULL;
    }
    _cleanup_free_ char *raw_name = strndup(raw, (size_t)(image - raw));
    _cleanup_json_ json_t *truth = raw_name ? describe_file(raw_name, err) : NULL;
    json_t *test = truth ? describe_file(image + 1, err) : NULL;
    if (!test)
        return NULL;
    return json_pack("{s:s, s:O, s:{s:o}}", "driver", "blkverify", "raw", truth, "test", "file",
                     test);
}

static int verify_open(struct blk_node *n, const void *options, struct error **err)
{
    uint64_t a = blk_size(filter_below(n)), b = blk_size(truth(n));

    (void)options;
    if (a > b)
        return error_set(err, EINVAL, "blkverify: '%s' has %llu bytes, '%s' only %llu",
                         blk_filename(filter_below(n)), (unsigned long long)a,
                         blk_filename(truth(n)), (unsigned long long)b);
    node_set_size(n, a);
    node_set_fixed_size(n);
    return 0;
}

const struct driver blkverify_driver = {
    .name = "blkverify",
    .kind = BLK_FILTER,
    .flags = DRIVER_PARALLEL,
    .first_edge = "test",
    .second_edge = "raw",
    .describe = verify_describe,
    .open = verify_open,
    .preadv = verify_preadv,
    .pwritev = verify_pwritev,
    .zero = verify_zero,
    .flush = verify_flush,
};
