/* Messages to people. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "nbd.h"

const char *program = "nbd";
bool as_qemu;

static void sayv(const char *fmt, va_list args, const char *rest)
{
    _cleanup_free_ char *text = NULL;

    if (vasprintf(&text, fmt, args) < 0)
        text = NULL;
    fprintf(stderr, "%s: %s%s%s\n", program, text ? text : "out of memory", rest ? ": " : "",
            rest ? rest : "");
}

void complain(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    sayv(fmt, args, NULL);
    va_end(args);
}

void complain_error(struct error **err, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    sayv(fmt, args, error_text(*err));
    va_end(args);
    error_free(*err);
    *err = NULL;
}
