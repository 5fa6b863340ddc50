/* A scratch file for a test, and opening nodes without ceremony. */
#ifndef TESTS_BLOCK_SCRATCH_H
#define TESTS_BLOCK_SCRATCH_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../check.h"
#include "base/error.h"
#include "block/block.h"

/* The name of a new empty file in $TMPDIR or /var/tmp, which unlike /tmp is seldom a tmpfs. */
static inline char *scratch_file(void)
{
    const char *dir = getenv("TMPDIR") ? getenv("TMPDIR") : "/var/tmp";
    char *name = NULL;
    int fd;

    assert_true(asprintf(&name, "%s/platter-test-XXXXXX", dir) > 0);
    fd = mkstemp(name);
    assert_true(fd >= 0);
    close(fd);
    return name;
}

static inline void scratch_remove(char *name)
{
    unlink(name);
    free(name);
}

static inline struct blk_node *try_open(const char *name, const struct blk_open_args *args,
                                        struct error **err)
{
    struct blk_node *node = NULL;

    if (blk_open(name, args, &node, err) < 0)
        assert_null(node);
    return node;
}

/* Opens or fails the test. */
static inline struct blk_node *must_open_args(const char *name, const struct blk_open_args *args)
{
    _cleanup_error_ struct error *err = NULL;
    struct blk_node *node = try_open(name, args, &err);

    if (!node)
        fail_msg("%s: %s", name, error_text(err));
    return node;
}

static inline struct blk_node *must_open(const char *name, const char *format, unsigned flags)
{
    return must_open_args(name, &(struct blk_open_args){ .format = format, .flags = flags });
}

/* "driver=memory,size=1M" */
static inline struct blk_node *must_open_opts(const char *opts, unsigned flags)
{
    return must_open_args(opts, &(struct blk_open_args){ .image_opts = true, .flags = flags });
}

static inline void must_close(struct blk_node *node)
{
    assert_int_equal(blk_close(node, NULL), 0);
}

static inline uint64_t length_of(const char *name)
{
    struct stat st;

    assert_int_equal(stat(name, &st), 0);
    return (uint64_t)st.st_size;
}

static inline uint64_t blocks_of(const char *name)
{
    struct stat st;

    assert_int_equal(stat(name, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* All bytes of the range are `byte`. */
static inline void assert_bytes(struct blk_node *node, uint64_t off, size_t len, int byte)
{
    unsigned char *buf = malloc(len);

    assert_non_null(buf);
    memset(buf, ~byte, len);
    assert_int_equal(blk_read(node, off, buf, len, 0), 0);
    for (size_t i = 0; i < len; i++) {
        if (buf[i] != (unsigned char)byte) {
            fail_msg("byte %llu is %#x, not %#x", (unsigned long long)(off + i), buf[i],
                     (unsigned)byte);
        }
    }
    free(buf);
}

static inline void write_bytes(struct blk_node *node, uint64_t off, size_t len, int byte)
{
    unsigned char *buf = malloc(len);

    assert_non_null(buf);
    memset(buf, byte, len);
    assert_int_equal(blk_write(node, off, buf, len, 0), 0);
    free(buf);
}

#endif
