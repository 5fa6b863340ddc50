/* What the file driver does when the system gives less than asked: short transfers, interruptions,
 * file systems that cannot, disks that fail. The system calls it makes are defined here instead of
 * in libc. */
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "scratch.h"

enum { RW = BLK_OPEN_RDWR, RWU = BLK_OPEN_RDWR | BLK_OPEN_UNMAP };

static struct {
    size_t longest;    /* bytes per transfer, 0: any */
    bool interrupt;    /* every other call */
    int refuse_flags;  /* RWF_ flags of which none is supported */
    int dsync_error;   /* errno of durable writes */
    int sync_error;    /* errno of fdatasync, once */
    int no_fallocate;  /* errno */
    uint64_t room;     /* plain writes past here fail with ENOSPC; 0: none do */
    int no_locks;      /* errno */
    bool no_seek_hole; /* lseek knows only the usual */
    bool no_statx;
    size_t align, mem_align; /* what direct reads are held to; 0: what the system says */
    unsigned reads, writes, syncs, fallocates, seeks;
} fault;

/* ---- the system ----------------------------------------------------------------------------- */

static bool interrupted(void)
{
    static bool odd;

    odd = !odd;
    return fault.interrupt && odd;
}

static ssize_t transfer(long call, int fd, const struct iovec *iov, int count, off_t off, int flags)
{
    struct iovec first = iov[0];

    if (interrupted()) {
        errno = EINTR;
        return -1;
    }
    if (flags & fault.refuse_flags) {
        errno = EOPNOTSUPP;
        return -1;
    }
    if (fault.longest) {
        first.iov_len = first.iov_len < fault.longest ? first.iov_len : fault.longest;
        iov = &first;
        count = 1;
    }
    return syscall(call, fd, iov, count, off, 0, flags);
}

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t off)
{
    fault.reads++;
    return transfer(SYS_preadv2, fd, iov, count, off, 0);
}

ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t off, int flags)
{
    fault.reads++;
    return transfer(SYS_preadv2, fd, iov, count, off, flags);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t off)
{
    fault.writes++;
    return transfer(SYS_pwritev2, fd, iov, count, off, 0);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t off, int flags)
{
    fault.writes++;
    if (fault.dsync_error && (flags & RWF_DSYNC)) {
        errno = fault.dsync_error;
        fault.dsync_error = 0;
        return -1;
    }
    return transfer(SYS_pwritev2, fd, iov, count, off, flags);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
    if (fault.room && (uint64_t)off + len > fault.room) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, buf, len, off);
}

ssize_t pread(int fd, void *buf, size_t len, off_t off)
{
    if (fault.align && (len % fault.align || (uintptr_t)buf % fault.mem_align)) {
        errno = EINVAL;
        return -1;
    }
    if (fault.align == 1)
        return 0; /* an empty file on a file system that copies */
    return syscall(SYS_pread64, fd, buf, len, off);
}

int statx(int dir, const char *restrict name, int flags, unsigned mask, struct statx *restrict out)
{
    if (fault.no_statx) {
        errno = ENOSYS;
        return -1;
    }
    return (int)syscall(SYS_statx, dir, name, flags, mask, out);
}

int fdatasync(int fd)
{
    fault.syncs++;
    if (fault.sync_error) {
        errno = fault.sync_error;
        fault.sync_error = 0;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, fd);
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
    fault.fallocates++;
    if (interrupted()) {
        errno = EINTR;
        return -1;
    }
    if (fault.no_fallocate) {
        errno = fault.no_fallocate;
        return -1;
    }
    return (int)syscall(SYS_fallocate, fd, mode, off, len);
}

off_t lseek(int fd, off_t off, int whence)
{
    fault.seeks++;
    if (fault.no_seek_hole && (whence == SEEK_DATA || whence == SEEK_HOLE)) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_lseek, fd, off, whence);
}

int fcntl(int fd, int command, ...)
{
    va_list args;
    void *arg;

    va_start(args, command);
    arg = va_arg(args, void *);
    va_end(args);
    if (fault.no_locks && (command == F_OFD_SETLK || command == F_OFD_GETLK)) {
        errno = fault.no_locks;
        return -1;
    }
    return (int)syscall(SYS_fcntl, fd, command, arg);
}

/* ---- the tests ------------------------------------------------------------------------------ */

static int setup(void **state)
{
    memset(&fault, 0, sizeof(fault));
    *state = scratch_file();
    return 0;
}

static int teardown(void **state)
{
    memset(&fault, 0, sizeof(fault));
    scratch_remove(*state);
    return 0;
}

static void round_trip(const char *name)
{
    struct blk_node *n = must_open(name, "file", RW);
    unsigned char out[600], in[600];
    struct iovec iov[3] = { { out, 100 }, { out + 100, 1 }, { out + 101, 499 } };

    for (int i = 0; i < 600; i++)
        out[i] = (unsigned char)(i * 7);
    assert_int_equal(blk_writev(n, 33, iov, 3, 0), 0);
    for (int i = 0; i < 3; i++)
        iov[i].iov_base = in + ((unsigned char *)iov[i].iov_base - out);
    assert_int_equal(blk_readv(n, 33, iov, 3, 0), 0);
    assert_memory_equal(in, out, 600);
    assert_bytes(n, 633, 10, 0);
    must_close(n);
}

static void short_transfers_are_continued(void **state)
{
    fault.longest = 7;
    round_trip(*state);
    assert_true(fault.writes > 80);
}

static void interrupted_calls_are_repeated(void **state)
{
    fault.interrupt = true;
    round_trip(*state);
}

static void a_failed_flush_is_remembered(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);

    write_bytes(n, 0, 10, 1);
    fault.sync_error = EIO;
    assert_int_equal(blk_flush(n), -EIO);
    assert_int_equal(blk_flush(n), -EIO);
    assert_int_equal(blk_write(n, 0, "x", 1, BLK_FUA), -EIO);
    assert_int_equal(fault.syncs, 1);
    assert_int_equal(blk_close(n, NULL), -EIO);
}

static void a_failed_durable_write_is_remembered(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);

    fault.dsync_error = EIO;
    assert_int_equal(blk_write(n, 0, "x", 1, BLK_FUA), -EIO);
    assert_int_equal(blk_flush(n), -EIO);
    assert_int_equal(blk_close(n, NULL), -EIO);
}

static void a_full_disk_is_no_failed_sync(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);

    fault.dsync_error = ENOSPC;
    assert_int_equal(blk_write(n, 0, "x", 1, BLK_FUA), -ENOSPC);
    assert_int_equal(blk_flush(n), 0);
    must_close(n);
}

static void durable_writes_without_the_flag(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);

    fault.refuse_flags = RWF_DSYNC;
    for (int i = 0; i < 5; i++)
        assert_int_equal(blk_write(n, 0, "x", 1, BLK_FUA), 0);
    assert_int_equal(fault.syncs, 5);
    assert_int_equal(fault.writes, 6); /* refused once, then known */
    must_close(n);
}

static void unsafe_never_syncs(void **state)
{
    struct blk_open_args args = { .format = "file", .cache = "unsafe", .flags = RW };
    struct blk_node *n = must_open_args(*state, &args);

    assert_int_equal(blk_write(n, 0, "x", 1, BLK_FUA), 0);
    assert_int_equal(blk_zero(n, 0, 4096, BLK_FUA), 0);
    assert_int_equal(blk_flush(n), 0);
    must_close(n);
    assert_int_equal(fault.syncs, 0);
}

static void nowait_is_asked_once_where_it_cannot(void **state)
{
    struct blk_open_args args = { .format = "file", .flags = RW };
    struct blk_node *n = must_open_args(*state, &args);
    char c;
    int r;

    write_bytes(n, 0, 10, 1);
    fault.refuse_flags = RWF_NOWAIT;
    r = blk_read(n, 0, &c, 1, BLK_NOWAIT);
    if (r == -EAGAIN) { /* else this is a tmpfs, which needs no flag */
        assert_int_equal(fault.reads, 1);
        assert_int_equal(blk_read(n, 0, &c, 1, BLK_NOWAIT), -EAGAIN);
        assert_int_equal(fault.reads, 1);
    }
    assert_int_equal(blk_read(n, 0, &c, 1, 0), 0);
    must_close(n);
}

static void zeroes_without_fallocate_are_written(void **state)
{
    struct blk_node *n = must_open(*state, "file", RWU);

    write_bytes(n, 0, 100000, 1);
    fault.no_fallocate = EOPNOTSUPP;
    assert_int_equal(blk_zero(n, 100, 50000, BLK_MAY_UNMAP | BLK_NO_FALLBACK), -ENOTSUP);
    assert_bytes(n, 0, 100000, 1);
    for (int i = 0; i < 10; i++)
        assert_int_equal(blk_zero(n, 100, 50000, BLK_MAY_UNMAP), 0);
    assert_int_equal(fault.fallocates, 2); /* punching and zeroing, once each */
    assert_bytes(n, 0, 100, 1);
    assert_bytes(n, 100, 50000, 0);
    assert_bytes(n, 50100, 49900, 1);
    assert_int_equal(blk_discard(n, 60000, 10000), 0);
    assert_int_equal(fault.fallocates, 2);
    must_close(n);
}

static void failing_zeroes_say_why(void **state)
{
    struct blk_node *n = must_open(*state, "file", RWU);

    write_bytes(n, 0, 100000, 1);
    fault.no_fallocate = ENOSPC;
    assert_int_equal(blk_zero(n, 100, 50000, 0), -ENOSPC);
    fault.no_fallocate = EIO;
    assert_int_equal(blk_zero(n, 100, 50000, BLK_MAY_UNMAP), -EIO);
    must_close(n);
}

static void preallocation_without_fallocate_is_written(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);

    fault.no_fallocate = EOPNOTSUPP;
    assert_int_equal(blk_resize(n, 3000000, BLK_PREALLOC_FALLOC, NULL), 0);
    assert_true(blocks_of(*state) >= 3000000);
    must_close(n);
}

static void a_full_disk_while_preallocating(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);
    _cleanup_error_ struct error *err = NULL;

    write_bytes(n, 0, 5000, 1);
    fault.room = 3 << 20;
    assert_int_equal(blk_resize(n, 8 << 20, BLK_PREALLOC_FULL, &err), -ENOSPC);
    assert_non_null(strstr(error_text(err), "No space"));
    assert_int_equal(length_of(*state), 5000);
    assert_int_equal(blk_size(n), 5000);
    assert_bytes(n, 0, 5000, 1);
    must_close(n);
}

static void locks_are_optional_unless_asked_for(void **state)
{
    char opts[500];

    fault.no_locks = ENOLCK;
    must_close(must_open(*state, "file", RW));
    snprintf(opts, sizeof(opts), "driver=file,locking=on,filename=%s", (char *)*state);

    _cleanup_error_ struct error *err = NULL;
    struct blk_open_args args = { .image_opts = true, .flags = RW };

    assert_null(try_open(opts, &args, &err));
    assert_non_null(strstr(error_text(err), "locking=off"));
}

/* The alignment that a direct node asks for, when only trial reads can tell. */
static uint32_t probed_align(const char *name, size_t align, size_t mem_align)
{
    struct blk_open_args args = { .format = "file", .cache = "none", .flags = RW };
    struct blk_limits limits = { 0 };
    struct blk_node *n;

    fault.no_statx = true;
    fault.align = align;
    fault.mem_align = mem_align;
    n = try_open(name, &args, NULL);
    if (!n)
        return 0;
    blk_get_limits(n, &limits);
    write_bytes(n, 10, 5000, 1);
    assert_bytes(n, 10, 5000, 1);
    must_close(n);
    return limits.align;
}

static bool direct_works(const char *name)
{
    struct blk_open_args args = { .format = "file", .cache = "none" };
    struct blk_node *n = try_open(name, &args, NULL);

    blk_close(n, NULL);
    return n;
}

static void trial_reads_tell_the_alignment(void **state)
{
    if (!direct_works(*state))
        skip();
    assert_int_equal(probed_align(*state, 512, 512), 512);
    assert_int_equal(probed_align(*state, 4096, 512), 4096);
    assert_int_equal(probed_align(*state, 2048, 4096), 2048);
    /* Whoever takes a single byte does not look: better safe. */
    assert_int_equal(probed_align(*state, 1, 1), 4096);
    assert_int_equal(probed_align(*state, 8192, 512), 0);
}

static void without_seek_hole_all_is_data(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);
    struct blk_extent e;

    assert_int_equal(blk_resize(n, 1 << 20, BLK_PREALLOC_OFF, NULL), 0);
    fault.no_seek_hole = true;
    assert_int_equal(blk_extents(n, 0, 1 << 20, 0, &e), 0);
    assert_true(e.flags & BLK_EXT_DATA);
    assert_int_equal(e.length, 1 << 20);
    must_close(n);
}

static void a_run_is_asked_for_once(void **state)
{
    struct blk_node *n = must_open(*state, "file", RW);
    struct blk_extent e;

    write_bytes(n, 0, 1 << 20, 1);
    fault.seeks = 0;
    for (uint64_t off = 0; off < 1 << 20; off += 4096) {
        assert_int_equal(blk_extents(n, off, 4096, 0, &e), 0);
        assert_true(e.flags & BLK_EXT_DATA);
    }
    assert_int_equal(fault.seeks, 2);
    must_close(n);
}

/* Somebody else may fill a hole of a file that is shared. */
static void holes_of_a_shared_file_are_asked_for_again(void **state)
{
    struct blk_node *writer = must_open(*state, "file", RW);
    struct blk_node *n = must_open(*state, "file", BLK_OPEN_SHARED);
    struct blk_extent e;

    assert_int_equal(blk_resize(writer, 1 << 20, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(blk_extents(n, 0, 4096, 0, &e), 0);
    assert_true(e.flags & BLK_EXT_ZERO);
    write_bytes(writer, 0, 65536, 1);
    assert_int_equal(blk_extents(n, 0, 4096, 0, &e), 0);
    assert_true(e.flags & BLK_EXT_DATA);
    must_close(n);
    must_close(writer);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(short_transfers_are_continued),
        TEST(interrupted_calls_are_repeated),
        TEST(a_failed_flush_is_remembered),
        TEST(a_failed_durable_write_is_remembered),
        TEST(a_full_disk_is_no_failed_sync),
        TEST(durable_writes_without_the_flag),
        TEST(unsafe_never_syncs),
        TEST(nowait_is_asked_once_where_it_cannot),
        TEST(zeroes_without_fallocate_are_written),
        TEST(failing_zeroes_say_why),
        TEST(preallocation_without_fallocate_is_written),
        TEST(a_full_disk_while_preallocating),
        TEST(locks_are_optional_unless_asked_for),
        TEST(trial_reads_tell_the_alignment),
        TEST(without_seek_hole_all_is_data),
        TEST(a_run_is_asked_for_once),
        TEST(holes_of_a_shared_file_are_asked_for_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
