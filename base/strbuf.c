#include "base/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/vector.h"

/* Room for n more bytes and the NUL. */
static bool reserve(struct strbuf *buf, size_t n)
{
    size_t need;
    char *grown;

    if (buf->failed)
        return false;
    if (__builtin_add_overflow(buf->len, n, &need) || __builtin_add_overflow(need, 1u, &need)) {
        buf->failed = true;
        return false;
    }
    if (need > buf->cap) {
        grown = vector_grow_(buf->s, &buf->cap, need, 1);
        if (!grown) {
            buf->failed = true;
            return false;
        }
        buf->s = grown;
    }
    return true;
}

void strbuf_addn(struct strbuf *buf, const char *text, size_t len)
{
    if (reserve(buf, len)) {
        memcpy(buf->s + buf->len, text, len);
        buf->len += len;
        buf->s[buf->len] = '\0';
    }
}

void strbuf_add(struct strbuf *buf, const char *text)
{
    strbuf_addn(buf, text, strlen(text));
}

void strbuf_addc(struct strbuf *buf, char c)
{
    strbuf_addn(buf, &c, 1);
}

void strbuf_addf(struct strbuf *buf, const char *fmt, ...)
{
    va_list args;
    int n;

    va_start(args, fmt);
    n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0) {
        buf->failed = true;
        return;
    }
    if (reserve(buf, (size_t)n)) {
        va_start(args, fmt);
        vsnprintf(buf->s + buf->len, (size_t)n + 1, fmt, args);
        va_end(args);
        buf->len += (size_t)n;
    }
}

const char *strbuf_text(const struct strbuf *buf)
{
    return buf->s ? buf->s : "";
}

char *strbuf_take(struct strbuf *buf)
{
    char *s = NULL;

    if (!buf->failed) {
        s = buf->s ? buf->s : strdup("");
        buf->s = NULL;
    }
    strbuf_free(buf);
    return s;
}

void strbuf_free(struct strbuf *buf)
{
    free(buf->s);
    *buf = (struct strbuf)STRBUF_INIT;
}
