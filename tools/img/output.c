#include "output.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/tame.h"

#include "img.h"

void output_json(const json_t *value)
{
    if (json_dumpf(value, stdout, JSON_INDENT(4) | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9)) == 0)
        putchar('\n');
}

void output_add(json_t *object, const char *key, json_t *value)
{
    if (value)
        json_object_set_new(object, key, value);
}

char *output_tamed(const char *text)
{
    char *copy = text ? strdup(text) : NULL;
    tame(copy, "");
    return copy;
}

static void print_key(const char *key, int depth, bool deeper)
{
    printf("%*s", depth * 4, "");
    for (; *key; key++)
        putchar(*key == '-' ? ' ' : *key);
    fputs(deeper ? ":\n" : ": ", stdout);
}

static void print_scalar(const json_t *value)
{
    _cleanup_free_ char *text = output_tamed(json_string_value(value));
    switch (json_typeof(value)) {
    case JSON_STRING:
        puts(text ? text : "");
        break;
    case JSON_INTEGER:
        printf("%" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
        break;
    case JSON_REAL:
        printf("%.17g\n", json_real_value(value));
        break;
    case JSON_TRUE:
        puts("true");
        break;
    case JSON_FALSE:
        puts("false");
        break;
    default:
        putchar('\n');
        break;
    }
}

static void print_member(const char *key, const json_t *value, int depth)
{
    bool deeper = json_is_object(value) || json_is_array(value);
    print_key(key, depth, deeper);
    if (deeper)
        output_tree(value, depth + 1);
    else
        print_scalar(value);
}

void output_tree(const json_t *value, int depth)
{
    if (json_is_object(value)) {
        const char *key;
        json_t *member;
        json_object_foreach((json_t *)value, key, member)
        {
            print_member(key, member, depth);
        }
    } else if (json_is_array(value)) {
        size_t i;
        json_t *member;
        json_array_foreach(value, i, member)
        {
            char key[32];
            snprintf(key, sizeof(key), "[%zu]", i);
            print_member(key, member, depth);
        }
    }
}

/* Whoever read the output has enough of it. */
static bool reader_is_gone(void)
{
    struct pollfd out = { .fd = STDOUT_FILENO };
    return poll(&out, 1, 0) == 1 && (out.revents & POLLERR);
}

int output_end(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    if (reader_is_gone())
        return code ? code : 128 + SIGPIPE; /* quietly, like other programs in front of head(1) */
    complain("cannot write the output: %s", strerror(errno));
    return code ? code : 1;
}
