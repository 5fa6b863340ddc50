/* The bytes of a request: filling, checking, showing. */
#ifndef IO_BUFFER_H
#define IO_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buffer {
    uint8_t *at;
    size_t len;
    void *memory; /* what is to be freed */
};

enum {
    FILL_WRITE = 0xcd, /* what is written when nothing else was said */
    FILL_READ = 0xab,  /* what a read did not touch */
};

/* Aligned for O_DIRECT, or just not so. False after a complaint. */
bool buffer_make(struct buffer *buf, size_t len, int fill, bool misalign);
void buffer_free(struct buffer *buf);
#define _cleanup_buffer_ __attribute__((cleanup(buffer_free)))

/* The file's bytes, again and again until the buffer is full. False after a complaint. */
bool buffer_fill_from(struct buffer *buf, const char *filename);

/* All of [from, from + len) is that byte; else says so, for a buffer that was read at offset. */
bool buffer_verify(const struct buffer *buf, int64_t offset, size_t from, size_t len, int pattern);

/* Hexadecimal and letters, 16 bytes a line. */
void buffer_dump(const struct buffer *buf, int64_t offset);

#endif
