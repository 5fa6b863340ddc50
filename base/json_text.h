/* Bytes from elsewhere as JSON strings. */
#ifndef BASE_JSON_TEXT_H
#define BASE_JSON_TEXT_H

#include <stddef.h>

#include <jansson.h>

/* Bytes that are not UTF-8 become U+FFFD. NULL: no memory. */
json_t *json_text(const char *text);
/* The same of n bytes, or less if a NUL comes first. */
json_t *json_textn(const char *text, size_t n);

#endif
