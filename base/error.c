#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tame.h"

struct error {
    int code;
    char *text;
};

/* Stands in when there is no memory even for a sentence; never freed, never changed. */
static char no_memory_text[] = "out of memory";
static struct error no_memory = { .code = ENOMEM, .text = no_memory_text };

static struct error *error_new(int code, char *text)
{
    struct error *err = text ? malloc(sizeof(*err)) : NULL;

    tame(text, "\n\t");
    if (!err) {
        free(text);
        return &no_memory;
    }
    err->code = code;
    err->text = text;
    return err;
}

int error_set(struct error **errp, int code, const char *fmt, ...)
{
    va_list args;
    char *text;

    assert(code > 0);
    if (errp && !*errp) {
        va_start(args, fmt);
        if (vasprintf(&text, fmt, args) < 0)
            text = NULL;
        va_end(args);
        *errp = error_new(code, text);
    }
    return -code;
}

void error_prefix(struct error **errp, const char *fmt, ...)
{
    va_list args;
    char *words, *text;
    int r;

    if (!errp || !*errp || *errp == &no_memory)
        return;
    va_start(args, fmt);
    r = vasprintf(&words, fmt, args);
    va_end(args);
    if (r < 0)
        return;
    tame(words, "\n\t");
    if (asprintf(&text, "%s: %s", words, (*errp)->text) >= 0) {
        free((*errp)->text);
        (*errp)->text = text;
    }
    free(words);
}

const char *error_text(const struct error *err)
{
    return err ? err->text : "no error";
}

int error_code(const struct error *err)
{
    return err ? err->code : 0;
}

void error_free(struct error *err)
{
    if (err && err != &no_memory) {
        free(err->text);
        free(err);
    }
}

void error_cleanup(struct error **errp)
{
    error_free(*errp);
}
