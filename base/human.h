/* Sizes for people, in the spelling that qemu-img prints: "20 GiB", "1.5 TiB", "196 KiB", "7 B". */
#ifndef BASE_HUMAN_H
#define BASE_HUMAN_H

#include <stdint.h>

struct human_text {
    char s[128];
};

/* "1.5 TiB". By value, so that it can stand inside a call: human_size(n).s */
struct human_text human_size(uint64_t bytes);

/* "20 GiB (21474836480 bytes)" */
struct human_text human_size_exact(uint64_t bytes);

#endif
