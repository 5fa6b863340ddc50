/* JSON as qemu-img prints it, and the same tree for people. */
#ifndef IMG_OUTPUT_H
#define IMG_OUTPUT_H

#include <jansson.h>
#include <stdbool.h>

/* On stdout, indented by four, keys in the order they were added, and a newline. */
void output_json(const json_t *value);

/* object[key] = value; a new reference is taken over. */
void output_add(json_t *object, const char *key, json_t *value);

/* "key: value" lines, four spaces deeper for each level; '-' in keys becomes a space. */
void output_tree(const json_t *value, int depth);

/* Flushes stdout; a complaint and 1 when that fails, else the code. */
int output_end(int code);

/* A text out of an image, as one line can show it; to be freed. NULL is fine. */
char *output_tamed(const char *text);

#endif
