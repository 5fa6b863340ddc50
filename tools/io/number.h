/* Numbers in commands, and sizes as io prints them. */
#ifndef IO_NUMBER_H
#define IO_NUMBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MAX_REQUEST = 0x7ffffe00, /* bytes of one request: whole sectors below 2 GiB */
};

/* "512", "64k", "1.5G", "0x200"; a complaint on standard output when it is none. */
bool number_size(const char *text, int64_t *out);

/* 0 to 255, decimal, octal or hexadecimal; the same. */
bool number_pattern(const char *text, int *out);

struct number_text {
    char s[48];
};

/* "64 KiB", "1.503 KiB", "3 bytes" */
struct number_text number_human(double bytes);

#endif
