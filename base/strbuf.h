/* A growable string. Running out of memory is remembered, not reported at each step: strbuf_take
 * answers NULL then. */
#ifndef BASE_STRBUF_H
#define BASE_STRBUF_H

#include <stdbool.h>
#include <stddef.h>

struct strbuf {
    char *s; /* NULL while empty; else ends with a NUL that len does not count */
    size_t len, cap;
    bool failed;
};
#define STRBUF_INIT       \
    {                     \
        NULL, 0, 0, false \
    }
#define _cleanup_strbuf_ __attribute__((cleanup(strbuf_free)))

void strbuf_add(struct strbuf *buf, const char *text);
void strbuf_addn(struct strbuf *buf, const char *text, size_t len);
void strbuf_addc(struct strbuf *buf, char c);
void strbuf_addf(struct strbuf *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The string, "" while empty; valid until the next call. */
const char *strbuf_text(const struct strbuf *buf);
/* The string as the caller's own, "" while empty; NULL when memory ran out. The buffer is empty
 * again. */
char *strbuf_take(struct strbuf *buf);
void strbuf_free(struct strbuf *buf);

#endif
