/* The parsers behind OPT_SIZE and OPT_NUMBER, without sentences: 0, -EINVAL or -ERANGE. */
#ifndef BASE_OPTIONS_NUMBER_H
#define BASE_OPTIONS_NUMBER_H

#include <stdint.h>

int number_parse(const char *text, uint64_t *out); /* 12, 0x1f */
int size_parse(const char *text, uint64_t *out);   /* as opts_parse_size */

#endif
