#include "base/json_text.h"

#include <string.h>

#include "base/strbuf.h"

/* Length of the UTF-8 character at p, of which max bytes are there; 0 when it is none. */
static size_t utf8_length(const char *p, size_t max)
{
    unsigned char c = (unsigned char)*p;
    size_t n = c < 0x80                ? 1
               : c >= 0xc2 && c < 0xe0 ? 2
               : c >= 0xe0 && c < 0xf0 ? 3
               : c >= 0xf0 && c < 0xf5 ? 4
                                       : 0;
    json_t *probe = n && n <= max ? json_stringn(p, n) : NULL;
    if (!probe)
        return 0;
    json_decref(probe);
    return n;
}

json_t *json_textn(const char *text, size_t n)
{
    n = strnlen(text, n);
    json_t *string = json_stringn(text, n);
    if (string)
        return string;
    _cleanup_strbuf_ struct strbuf clean = STRBUF_INIT;
    while (n > 0) {
        size_t len = utf8_length(text, n);
        if (len > 0)
            strbuf_addn(&clean, text, len);
        else
            strbuf_add(&clean, "\xef\xbf\xbd");
        len = len > 0 ? len : 1;
        text += len;
        n -= len;
    }
    return json_string(strbuf_text(&clean));
}

json_t *json_text(const char *text)
{
    return json_textn(text, strlen(text));
}
