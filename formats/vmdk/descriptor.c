/* The descriptor: lines of text, "key=value" and one for each extent. What is not understood is kept. Pure. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/strbuf.h"
#include "base/tame.h"
#include "vmdk.h"

/* ---- words ------------------------------------------------------------------------------------------ */

struct words {
    const char *at, *end;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static void skip_blanks(struct words *w)
{
    while (w->at < w->end && is_blank(*w->at))
        w->at++;
}

/* A word up to the next blank; 0: there is none. */
static size_t word(struct words *w, const char **start)
{
    skip_blanks(w);
    *start = w->at;
    while (w->at < w->end && !is_blank(*w->at))
        w->at++;
    return (size_t)(w->at - *start);
}

static bool word_is(const char *start, size_t len, const char *what)
{
    return strlen(what) == len && !strncmp(start, what, len);
}

/* Digits only; false: no number, or above INT64_MAX / 512. */
static bool number(struct words *w, uint64_t *out)
{
    const char *start;
    size_t len = word(w, &start);
    uint64_t n = 0;

    for (size_t i = 0; i < len; i++) {
        if (!isdigit((unsigned char)start[i]) || n > INT64_MAX / SECTOR / 10)
            return false;
        n = n * 10 + (uint64_t)(start[i] - '0');
    }
    *out = n;
    return len > 0 && n <= INT64_MAX / SECTOR;
}

/* ---- an extent's line ---------------------------------------------------------------------------------- */

static bool parse_access(const char *start, size_t len, enum vmdk_access *out)
{
    static const char *const names[] = { "RW", "RDONLY", "NOACCESS" };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (word_is(start, len, names[i])) {
            *out = (enum vmdk_access)i;
            return true;
        }
    return false;
}

/* "RW 4192256 SPARSE "name" 0": false when it is not that. */
static bool parse_extent(struct words w, struct vmdk_line *line)
{
    const char *start;
    size_t len = word(&w, &start);

    (void)parse_access(start, len, &line->access);
    if (!number(&w, &line->sectors) || line->sectors == 0)
        return false;
    len = word(&w, &start);
    if (len == 0 || len >= sizeof(line->type))
        return false;
    memcpy(line->type, start, len);
    line->type[len] = '\0';
    skip_blanks(&w);
    if (w.at == w.end)
        return !strcmp(line->type, "ZERO");
    if (*w.at != '"')
        return false;
    const char *close = memchr(w.at + 1, '"', (size_t)(w.end - w.at - 1));
    if (!close || close == w.at + 1)
        return false;
    line->name = strndup(w.at + 1, (size_t)(close - w.at - 1));
    w.at = close + 1;
    skip_blanks(&w);
    if (w.at < w.end) {
        line->has_offset = true;
        if (!number(&w, &line->offset))
            return false;
    }
    return line->name;
}

static int add_extent(struct vmdk_desc *d, const char *name, struct words w, struct error **err)
{
    struct vmdk_line line = { .at = (size_t)(w.at - d->text), .len = (size_t)(w.end - w.at) };

    if (!parse_extent(w, &line)) {
        free(line.name);
        char shown[80];
        snprintf(shown, sizeof(shown), "%.*s", (int)MIN(line.len, sizeof(shown) - 1), w.at);
        tame(shown, "");
        return error_set(err, EINVAL, "%s: its descriptor has an extent that makes no sense: '%s'",
                         name, shown);
    }
    if (d->lines.len >= MAX_EXTENTS) {
        free(line.name);
        return error_set(err, EFBIG, "%s: its descriptor has more than %d extents", name,
                         MAX_EXTENTS);
    }
    if (vector_push(&d->lines, line) < 0) {
        free(line.name);
        return error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

/* ---- key=value ----------------------------------------------------------------------------------------- */

/* The value without blanks and quotes around it. */
static struct words value_of(struct words w)
{
    skip_blanks(&w);
    while (w.end > w.at && is_blank(w.end[-1]))
        w.end--;
    if (w.end - w.at >= 2 && *w.at == '"' && w.end[-1] == '"') {
        w.at++;
        w.end--;
    }
    return w;
}

static bool parse_hex(struct words w, uint32_t *out)
{
    uint32_t n = 0;

    if (w.at == w.end || w.end - w.at > 8)
        return false;
    for (; w.at < w.end; w.at++) {
        if (!isxdigit((unsigned char)*w.at))
            return false;
        int c = tolower((unsigned char)*w.at);
        n = n << 4 | (uint32_t)(isdigit(c) ? c - '0' : c - 'a' + 10);
    }
    *out = n;
    return true;
}

static int take_cid(struct vmdk_desc *d, const char *name, bool parent, struct words v,
                    struct error **err)
{
    if (!parse_hex(v, parent ? &d->parent_cid : &d->cid))
        return error_set(err, EINVAL, "%s: %s in its descriptor is '%.16s', not eight hex digits",
                         name, parent ? "parentCID" : "CID", v.at < v.end ? v.at : "");
    *(parent ? &d->parent_cid_at : &d->cid_at) = (size_t)(v.at - d->text);
    *(parent ? &d->parent_cid_len : &d->cid_len) = (size_t)(v.end - v.at);
    return 0;
}

static int take_key(struct vmdk_desc *d, const char *name, const char *key, size_t len,
                    struct words v, struct error **err)
{
    if (word_is(key, len, "CID"))
        return take_cid(d, name, false, v, err);
    if (word_is(key, len, "parentCID"))
        return take_cid(d, name, true, v, err);
    if (word_is(key, len, "version")) {
        uint64_t n;
        if (!number(&v, &n) || n < 1 || n > 3)
            return error_set(err, ENOTSUP,
                             "%s: the version of its descriptor is not one of 1, 2 and 3", name);
        d->version = (uint32_t)n;
    } else if (word_is(key, len, "createType")) {
        snprintf(d->create_type, sizeof(d->create_type), "%.*s", (int)(v.end - v.at), v.at);
    } else if (word_is(key, len, "parentFileNameHint") && v.at < v.end) {
        free(d->parent_hint);
        d->parent_hint = strndup(v.at, (size_t)(v.end - v.at));
        if (!d->parent_hint)
            return error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

static int take_line(struct vmdk_desc *d, const char *name, struct words w, struct error **err)
{
    enum vmdk_access access;
    const char *start;

    skip_blanks(&w);
    if (w.at == w.end || *w.at == '#')
        return 0;
    struct words first = w;
    size_t len = word(&first, &start);
    if (parse_access(start, len, &access))
        return add_extent(d, name, w, err);
    const char *equals = memchr(w.at, '=', (size_t)(w.end - w.at));
    if (!equals)
        return 0;
    len = (size_t)(equals - w.at);
    while (len > 0 && is_blank(w.at[len - 1]))
        len--;
    return take_key(d, name, w.at, len, value_of((struct words){ equals + 1, w.end }), err);
}

int vmdk_desc_parse(struct vmdk_desc *d, const char *name, char *text, size_t len,
                    struct error **err)
{
    *d = (struct vmdk_desc){
        .text = text, .len = strnlen(text, len), .cid = NO_PARENT, .parent_cid = NO_PARENT
    };
    const char *at = text, *end = text + d->len;
    int ret = 0;

    while (at < end && ret == 0) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        if (!stop)
            stop = end;
        ret = take_line(d, name, (struct words){ at, stop }, err);
        at = stop + 1;
    }
    if (ret == 0 && d->version == 0)
        ret = error_set(err, EINVAL, "%s: its descriptor has no version", name);
    if (ret < 0)
        vmdk_desc_free(d);
    return ret;
}

void vmdk_desc_free(struct vmdk_desc *d)
{
    for (size_t i = 0; i < d->lines.len; i++)
        free(d->lines.at[i].name);
    vector_free(&d->lines);
    free(d->parent_hint);
    free(d->text);
    *d = (struct vmdk_desc){ 0 };
}

/* Comments and blank lines, then a version. */
bool vmdk_looks_like_desc(const char *text, size_t len)
{
    const char *at = text, *end = text + strnlen(text, len);

    while (at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        struct words w = { at, stop ? stop : end };
        skip_blanks(&w);
        if (w.at < w.end && *w.at != '#')
            return w.end - w.at > 8 && !strncmp(w.at, "version=", 8) && w.at[8] >= '1' &&
                   w.at[8] <= '3';
        at = stop ? stop + 1 : end;
    }
    return false;
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

char *vmdk_desc_build(const struct vmdk_new *n)
{
    bool ide = !strcmp(n->adapter, "ide");
    unsigned heads = ide ? 16 : 255;
    struct strbuf s = STRBUF_INIT;

    strbuf_addf(&s,
                "# Disk DescriptorFile\nversion=1\nCID=%08" PRIx32 "\nparentCID=%08" PRIx32
                "\ncreateType=\"%s\"\n",
                n->cid, n->parent_cid, n->create_type);
    if (n->parent_hint)
        strbuf_addf(&s, "parentFileNameHint=\"%s\"\n", n->parent_hint);
    strbuf_addf(&s, "\n# Extent description\n%s\n", n->extents);
    strbuf_addf(&s,
                "# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"%s\"\n"
                "ddb.geometry.cylinders = \"%" PRIu64 "\"\nddb.geometry.heads = \"%u\"\n"
                "ddb.geometry.sectors = \"63\"\nddb.adapterType = \"%s\"\n"
                "ddb.toolsVersion = \"%s\"\n",
                n->hwversion, n->size / (63 * (uint64_t)heads * SECTOR), heads, n->adapter,
                n->toolsversion);
    return strbuf_take(&s);
}

char *vmdk_desc_resized(const struct vmdk_desc *d, size_t i, uint64_t sectors)
{
    const struct vmdk_line *line = &d->lines.at[i];
    struct words w = { d->text + line->at, d->text + line->at + line->len };
    struct strbuf s = STRBUF_INIT;
    const char *start;

    (void)word(&w, &start); /* the access */
    skip_blanks(&w);
    strbuf_addn(&s, d->text, (size_t)(w.at - d->text));
    (void)word(&w, &start);
    strbuf_addf(&s, "%" PRIu64, sectors);
    strbuf_addn(&s, w.at, (size_t)(d->text + d->len - w.at));
    return strbuf_take(&s);
}

/* The new hint stands behind parentCID, and is not shorter than the old one: then nothing else moves. */
static void add_hint(struct strbuf *s, const char *hint, size_t old)
{
    size_t before = s->len;

    if (hint)
        strbuf_addf(s, "parentFileNameHint=\"%s\"", hint);
    while (old > 0 && s->len - before < old - 1)
        strbuf_addn(s, " ", 1);
    if (hint || old > 0)
        strbuf_addn(s, "\n", 1);
}

/* The length of the line that states the parent's name, with its end; 0: none. *at: where it begins. */
static size_t hint_line(const struct vmdk_desc *d, size_t *at)
{
    for (*at = 0; *at < d->len;) {
        const char *line = d->text + *at, *stop = memchr(line, '\n', d->len - *at);
        size_t len = stop ? (size_t)(stop - line) + 1 : d->len - *at;
        struct words w = { line, line + len };
        skip_blanks(&w);
        if ((size_t)(w.end - w.at) > 18 && !strncmp(w.at, "parentFileNameHint", 18))
            return len;
        *at += len;
    }
    return 0;
}

char *vmdk_desc_reparented(const struct vmdk_desc *d, const char *hint, uint32_t cid)
{
    struct strbuf s = STRBUF_INIT;
    size_t hint_at, hint_len = hint_line(d, &hint_at), at = d->parent_cid_at + d->parent_cid_len;

    strbuf_addn(&s, d->text, d->parent_cid_at);
    strbuf_addf(&s, "%08" PRIx32, cid);
    const char *stop = memchr(d->text + at, '\n', d->len - at);
    size_t behind = stop ? (size_t)(stop - d->text) + 1 : d->len;
    if (hint_len > 0 && hint_at >= behind) {
        strbuf_addn(&s, d->text + at, hint_at - at);
        behind = hint_at + hint_len;
    } else {
        strbuf_addn(&s, d->text + at, behind - at);
    }
    add_hint(&s, hint, hint_len);
    strbuf_addn(&s, d->text + behind, d->len - behind);
    return strbuf_take(&s);
}
