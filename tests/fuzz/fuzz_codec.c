/* Compressed clusters: any bytes decoded, any bytes encoded and decoded again.
 *
 * The first byte chooses the codec, the second the size of the cluster. Buffers end at a page that must not
 * be touched, since the libraries' hand-written assembly is invisible to the sanitizer. What we
 * encode, zlib must read, too, with the window of 4 KiB that the format's readers have.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>

#include "base/macros.h"
#include "qcow2.h"

enum { MAX_CLUSTER = 128 << 10, WINDOW_BITS = 12, UNTOUCHED = 0xa5 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool condition)
{
    if (!condition)
        abort();
}

/* The end of MAX_CLUSTER bytes with nothing behind them. */
static uint8_t *fence(void)
{
    uint8_t *p =
        mmap(NULL, MAX_CLUSTER + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    must(p != MAP_FAILED && mprotect(p + MAX_CLUSTER, 4096, PROT_NONE) == 0);
    return p + MAX_CLUSTER;
}

static bool zlib_reads(const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
    z_stream s = { .next_in = (Bytef *)(uintptr_t)in,
                   .avail_in = (uInt)in_len,
                   .next_out = out,
                   .avail_out = (uInt)out_len };

    must(inflateInit2(&s, -WINDOW_BITS) == Z_OK);
    inflate(&s, Z_FINISH);
    inflateEnd(&s);
    return s.avail_out == 0;
}

/* The cluster begins with the input and repeats it, changed a little each time. */
static void expand(uint8_t *cluster, size_t len, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < len; i++)
        cluster[i] = (uint8_t)(data[i % size] + i / size / 4);
}

static void decode(enum qcow2_compression type, uint8_t *in, size_t in_len, uint8_t *end,
                   size_t cluster)
{
    uint8_t *out = end - cluster;

    out[-1] = UNTOUCHED;
    int first = qcow2_decompress(type, in, in_len, out, cluster);
    must(first <= 0 && out[-1] == UNTOUCHED);
    if (first < 0)
        return;
    uLong sum = crc32(0, out, (uInt)cluster);
    memset(out, 0, cluster);
    must(qcow2_decompress(type, in, in_len, out, cluster) == 0);
    must(crc32(0, out, (uInt)cluster) == sum);
}

static void round_trip(enum qcow2_compression type, uint8_t *plain, uint8_t *packed_end,
                       uint8_t *out_end, size_t cluster)
{
    uint8_t *packed = packed_end - cluster, *out = out_end - cluster;
    int64_t len = qcow2_compress(type, plain, cluster, packed, cluster);

    if (len < 0)
        return;
    must(len > 0 && (uint64_t)len <= cluster);
    /* What follows on the disk is not ours to read. */
    memmove(packed_end - len, packed, (size_t)len);
    packed = packed_end - len;
    must(qcow2_decompress(type, packed, (size_t)len, out, cluster) == 0);
    must(!memcmp(out, plain, cluster));
    if (type == QCOW2_ZLIB) {
        memset(out, 0, cluster);
        must(zlib_reads(packed, (size_t)len, out, cluster) && !memcmp(out, plain, cluster));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t *in, *packed, *out;

    if (size < 3 || size > MAX_CLUSTER)
        return 0;
    if (!in) {
        in = fence();
        packed = fence();
        out = fence();
    }
    enum qcow2_compression type = data[0] & 1 ? QCOW2_ZSTD : QCOW2_ZLIB;
    size_t cluster = (size_t)512 << data[1] % 8; /* to 64 KiB */

    data += 2;
    size -= 2;
    memcpy(in - size, data, size);
    decode(type, in - size, size, out, cluster);
    expand(in - cluster, cluster, data, size);
    round_trip(type, in - cluster, packed, out, cluster);
    return 0;
}
