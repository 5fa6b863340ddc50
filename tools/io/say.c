#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "io.h"

const char *program = "io";
bool as_qemu;

static char *format(const char *fmt, va_list ap)
{
    char *text = NULL;
    return vasprintf(&text, fmt, ap) < 0 ? NULL : text;
}

void complain(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    _cleanup_free_ char *text = format(fmt, ap);
    va_end(ap);
    fprintf(stderr, "%s: %s\n", program, text ? text : "out of memory");
}

void complain_error(struct error **err, const char *fmt, ...)
{
    _cleanup_free_ char *text = NULL;
    if (fmt) {
        va_list ap;
        va_start(ap, fmt);
        text = format(fmt, ap);
        va_end(ap);
    }
    if (text)
        complain("%s: %s", text, blk_error_text(*err));
    else
        complain("%s", blk_error_text(*err));
    blk_error_free(*err);
    *err = NULL;
}
