#include "buffer.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "io.h"

enum { ALIGN = 4096, MISALIGN = 16 };

bool buffer_make(struct buffer *buf, size_t len, int fill, bool misalign)
{
    size_t shift = misalign ? MISALIGN : 0;
    buf->len = len;
    if (posix_memalign(&buf->memory, ALIGN, MAX(len + shift, (size_t)1)) != 0) {
        buf->memory = NULL;
        complain("no memory for %zu bytes", len);
        return false;
    }
    buf->at = (uint8_t *)buf->memory + shift;
    memset(buf->at, fill, len);
    return true;
}

void buffer_free(struct buffer *buf)
{
    free(buf->memory);
    buf->memory = NULL;
}

bool buffer_fill_from(struct buffer *buf, const char *filename)
{
    _cleanup_stream_ FILE *file = fopen(filename, "r");
    if (!file) {
        fprintf(stderr, "%s: %s\n", filename, strerror(errno));
        return false;
    }
    size_t period = fread(buf->at, 1, buf->len, file);
    if (ferror(file)) {
        fprintf(stderr, "%s: %s\n", filename, strerror(errno));
        return false;
    }
    if (period == 0 && buf->len > 0) {
        fprintf(stderr, "%s: file is empty\n", filename);
        return false;
    }
    for (size_t have = period; have < buf->len;) {
        size_t n = MIN(have, buf->len - have);
        memcpy(buf->at + have, buf->at, n);
        have += n;
    }
    return true;
}

bool buffer_verify(const struct buffer *buf, int64_t offset, size_t from, size_t len, int pattern)
{
    const uint8_t *p = buf->at + from;
    if (len == 0 || (p[0] == pattern && memcmp(p, p + 1, len - 1) == 0))
        return true;
    printf("Pattern verification failed at offset %" PRId64 ", %zu bytes\n", offset + (int64_t)from,
           len);
    return false;
}

void buffer_dump(const struct buffer *buf, int64_t offset)
{
    for (size_t at = 0; at < buf->len; at += 16) {
        size_t n = MIN(buf->len - at, (size_t)16);
        printf("%08" PRIx64 ":  ", (uint64_t)offset + at);
        for (size_t i = 0; i < n; i++)
            printf("%02x ", buf->at[at + i]);
        putchar(' ');
        for (size_t i = 0; i < n; i++)
            putchar(buf->at[at + i] < 128 && isalnum(buf->at[at + i]) ? buf->at[at + i] : '.');
        putchar('\n');
    }
}
