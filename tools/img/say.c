/* Messages to people. One call, one whole line: the line is put together first and written at once,
 * so that lines of several threads do not mix. */
#include "img.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/strbuf.h"

#include "say.h"
#include "watch.h"

/* The watcher's thread speaks, too. */
static pthread_mutex_t alias_lock = PTHREAD_MUTEX_INITIALIZER;
static const char *alias_work, *alias_name;

const char *program = "img";
bool as_qemu;

void say_alias(const char *work, const char *name)
{
    LOCK_SCOPE(&alias_lock);
    alias_work = work;
    alias_name = name;
}

static void add_with_alias(struct strbuf *out, const char *p)
{
    LOCK_SCOPE(&alias_lock);
    for (const char *hit; alias_work && (hit = strstr(p, alias_work));
         p = hit + strlen(alias_work)) {
        strbuf_addn(out, p, (size_t)(hit - p));
        strbuf_add(out, alias_name);
    }
    strbuf_add(out, p);
}

static void emit(struct strbuf *line)
{
    strbuf_addc(line, '\n');
    _cleanup_strbuf_ struct strbuf shown = STRBUF_INIT;
    add_with_alias(&shown, strbuf_text(line));
    watch_hide();
    fflush(stdout);
    fputs(line->failed || shown.failed ? "out of memory\n" : strbuf_text(&shown), stderr);
}

static void addv(struct strbuf *line, const char *fmt, va_list ap)
{
    _cleanup_free_ char *text = NULL;
    if (vasprintf(&text, fmt, ap) < 0) {
        text = NULL;
        line->failed = true;
        return;
    }
    strbuf_add(line, text);
}

void complain(const char *fmt, ...)
{
    _cleanup_strbuf_ struct strbuf line = STRBUF_INIT;
    strbuf_addf(&line, "%s: ", program);
    va_list ap;
    va_start(ap, fmt);
    addv(&line, fmt, ap);
    va_end(ap);
    emit(&line);
}

void complain_error(struct error **err, const char *fmt, ...)
{
    _cleanup_strbuf_ struct strbuf line = STRBUF_INIT;
    strbuf_addf(&line, "%s: ", program);
    if (fmt) {
        va_list ap;
        va_start(ap, fmt);
        addv(&line, fmt, ap);
        va_end(ap);
        strbuf_add(&line, ": ");
    }
    strbuf_add(&line, blk_error_text(*err));
    emit(&line);
    blk_error_free(*err);
    *err = NULL;
}

void complain_usage(const char *command)
{
    if (as_qemu) {
        tell("Try '%s --help' for more information", program);
    } else {
        tell("Try '%s help%s%s' for more information", program, command ? " " : "",
             command ? command : "");
    }
}

void tell(const char *fmt, ...)
{
    _cleanup_strbuf_ struct strbuf line = STRBUF_INIT;
    va_list ap;
    va_start(ap, fmt);
    addv(&line, fmt, ap);
    va_end(ap);
    emit(&line);
}
