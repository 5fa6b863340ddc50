/* Where the parent of a differencing image is: keys and values in UTF-16 (Spec 2.6.2.6).
 *
 * The keys that matter are parent_linkage (and parent_linkage2), the data write GUID that the parent must have, and
 * three paths: relative_path, volume_path and absolute_win32_path. A relative path is taken first. An absolute one
 * that Windows wrote means nothing here, so that its last part is looked for beside the image.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/strbuf.h"
#include "vhdx.h"

enum { PAIRS = 3, LOCATOR_HEADER = 20, LOCATOR_ENTRY = 12, MAX_PATH_BYTES = 32 << 10 };

/* ---- UTF-16 ------------------------------------------------------------------------------------- */

static void add_utf8(struct strbuf *out, uint32_t c)
{
    if (c < 0x80) {
        strbuf_addc(out, (char)c);
    } else if (c < 0x800) {
        strbuf_addc(out, (char)(0xc0 | c >> 6));
        strbuf_addc(out, (char)(0x80 | (c & 0x3f)));
    } else if (c < 0x10000) {
        strbuf_addc(out, (char)(0xe0 | c >> 12));
        strbuf_addc(out, (char)(0x80 | (c >> 6 & 0x3f)));
        strbuf_addc(out, (char)(0x80 | (c & 0x3f)));
    } else {
        strbuf_addc(out, (char)(0xf0 | c >> 18));
        strbuf_addc(out, (char)(0x80 | (c >> 12 & 0x3f)));
        strbuf_addc(out, (char)(0x80 | (c >> 6 & 0x3f)));
        strbuf_addc(out, (char)(0x80 | (c & 0x3f)));
    }
}

/* NULL: a NUL in it, half a pair, or no memory. */
static char *to_utf8(const uint8_t *from, size_t bytes)
{
    struct strbuf out _cleanup_strbuf_ = STRBUF_INIT;

    for (size_t i = 0; i + 1 < bytes; i += 2) {
        uint32_t c = load_le16(from + i);
        if (c == 0 && i + 2 == bytes)
            break; /* the specification has no terminator, some writers do */
        if (c >= 0xd800 && c < 0xdc00 && i + 3 < bytes) {
            uint32_t low = load_le16(from + i + 2);
            if (low < 0xdc00 || low > 0xdfff)
                return NULL;
            c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
            i += 2;
        } else if (c == 0 || (c >= 0xd800 && c < 0xe000)) {
            return NULL;
        }
        add_utf8(&out, c);
    }
    return strbuf_take(&out);
}

/* The next code point of UTF-8; -1: not that. */
static int64_t next_code(const char **at)
{
    const unsigned char *p = (const unsigned char *)*at;
    unsigned more = *p < 0x80                 ? 0
                    : *p >= 0xf0 && *p < 0xf5 ? 3
                    : *p >= 0xe0 && *p < 0xf0 ? 2
                    : *p >= 0xc2 && *p < 0xe0 ? 1
                                              : 9;
    uint32_t c = more == 0 ? *p : *p & (0x3fu >> more);

    if (more == 9)
        return -1;
    for (unsigned i = 1; i <= more; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return -1;
        c = c << 6 | (p[i] & 0x3fu);
    }
    *at += more + 1;
    return c;
}

/* Appends UTF-16; the number of bytes or -1. */
static int64_t put_utf16(uint8_t *to, const char *text)
{
    uint8_t *at = to;

    while (*text) {
        int64_t c = next_code(&text);
        if (c < 0 || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
            return -1;
        if (c >= 0x10000) {
            store_le16(at, (uint16_t)(0xd800 + ((c - 0x10000) >> 10)));
            at += 2;
            c = 0xdc00 + ((c - 0x10000) & 0x3ff);
        }
        store_le16(at, (uint16_t)c);
        at += 2;
    }
    return at - to;
}

/* ---- reading -------------------------------------------------------------------------------------- */

/* The values by key; NULL: not there. */
struct values {
    char *linkage, *linkage2, *relative, *absolute, *volume;
};

static void values_free(struct values *v)
{
    free(v->linkage);
    free(v->linkage2);
    free(v->relative);
    free(v->absolute);
    free(v->volume);
}

static char **value_slot(struct values *v, const char *key)
{
    if (!strcmp(key, "parent_linkage"))
        return &v->linkage;
    if (!strcmp(key, "parent_linkage2"))
        return &v->linkage2;
    if (!strcmp(key, "relative_path"))
        return &v->relative;
    if (!strcmp(key, "absolute_win32_path"))
        return &v->absolute;
    if (!strcmp(key, "volume_path"))
        return &v->volume;
    return NULL;
}

static int take_pair(const char *name, const uint8_t *item, size_t len, const uint8_t *e,
                     struct values *v, struct error **err)
{
    uint32_t key_at = load_le32(e), value_at = load_le32(e + 4);
    uint16_t key_len = load_le16(e + 8), value_len = load_le16(e + 10);

    if (!range_inside(key_at, key_len, len) || !range_inside(value_at, value_len, len) ||
        key_len % 2 || value_len % 2)
        return error_set(err, EINVAL,
                         "%s: the parent locator has a key at %" PRIu32 " (%u bytes) or a value at "
                         "%" PRIu32 " (%u bytes) that is not inside its %zu bytes",
                         name, key_at, (unsigned)key_len, value_at, (unsigned)value_len, len);
    _cleanup_free_ char *key = to_utf8(item + key_at, key_len);
    char **slot = key ? value_slot(v, key) : NULL;
    if (!slot || *slot)
        return 0;
    *slot = to_utf8(item + value_at, value_len);
    if (!*slot)
        return error_set(err, EINVAL, "%s: the parent locator's '%s' is not text", name, key);
    return 0;
}

/* A path of Windows as one of ours. */
static char *plain_path(const char *path)
{
    while (path[0] == '.' && (path[1] == '\\' || path[1] == '/'))
        path += 2;
    char *out = strdup(path);
    for (char *p = out; p && *p; p++)
        if (*p == '\\')
            *p = '/';
    return out;
}

/* An absolute path: ours, or else its last part. */
static char *beside(const char *path)
{
    if (path[0] == '/')
        return strdup(path);
    const char *last = path;
    for (const char *p = path; *p; p++)
        if ((*p == '\\' || *p == '/') && p[1])
            last = p + 1;
    return strdup(last);
}

static char *choose_path(const struct values *v)
{
    if (v->relative && v->relative[0])
        return plain_path(v->relative);
    if (v->absolute && v->absolute[0])
        return beside(v->absolute);
    return v->volume && v->volume[0] ? beside(v->volume) : NULL;
}

static int take_values(const char *name, const struct values *v, struct vhdx_meta *m,
                       struct error **err)
{
    if (!v->linkage || !vhdx_guid_parse(v->linkage, &m->linkage[0]))
        return error_set(err, EINVAL, "%s: the parent locator's parent_linkage is %s%s%s", name,
                         v->linkage ? "'" : "missing", v->linkage ? v->linkage : "",
                         v->linkage ? "', which is no GUID" : "");
    m->linkages = 1;
    if (v->linkage2 && vhdx_guid_parse(v->linkage2, &m->linkage[1]))
        m->linkages = 2;
    free(m->parent);
    m->parent = choose_path(v);
    return m->parent
               ? 0
               : error_set(err, EINVAL, "%s: the parent locator has no path to the parent", name);
}

int vhdx_locator_parse(const char *name, const uint8_t *item, size_t len, struct vhdx_meta *m,
                       struct error **err)
{
    struct values v = { 0 };
    struct vhdx_guid type = guid_load(item);
    size_t count = load_le16(item + 18);
    int ret = 0;

    if (!guid_equal(&type, &vhdx_locator_type))
        return error_set(err, ENOTSUP, "%s: its parent locator is of a type that is not known",
                         name);
    if (LOCATOR_HEADER + count * LOCATOR_ENTRY > len)
        return error_set(err, EINVAL,
                         "%s: the parent locator has %zu entries, which do not fit into its %zu "
                         "bytes",
                         name, count, len);
    for (size_t i = 0; i < count && ret == 0; i++)
        ret = take_pair(name, item, len, item + LOCATOR_HEADER + i * LOCATOR_ENTRY, &v, err);
    if (ret == 0)
        ret = take_values(name, &v, m, err);
    values_free(&v);
    return ret;
}

/* ---- changing -------------------------------------------------------------------------------------- */

size_t vhdx_locator_find(const uint8_t *item, size_t len, const char *wanted)
{
    size_t count = load_le16(item + 18);

    for (size_t i = 0; i < count && LOCATOR_HEADER + (i + 1) * LOCATOR_ENTRY <= len; i++) {
        const uint8_t *e = item + LOCATOR_HEADER + i * LOCATOR_ENTRY;
        uint32_t key_at = load_le32(e), value_at = load_le32(e + 4);
        uint16_t key_len = load_le16(e + 8), value_len = load_le16(e + 10);
        if (!range_inside(key_at, key_len, len) || !range_inside(value_at, value_len, len) ||
            value_len != 2 * (VHDX_GUID_TEXT - 1))
            continue;
        _cleanup_free_ char *key = to_utf8(item + key_at, key_len);
        if (key && !strcmp(key, wanted))
            return value_at;
    }
    return 0;
}

/* ---- building -------------------------------------------------------------------------------------- */

/* Puts a pair at *at; false: the value is no text, or too long. */
static bool put_pair(uint8_t *item, unsigned i, size_t *at, const char *key, const char *value)
{
    uint8_t *e = item + LOCATOR_HEADER + (size_t)i * LOCATOR_ENTRY;
    int64_t key_len = put_utf16(item + *at, key);
    int64_t value_len = put_utf16(item + *at + key_len, value);

    if (value_len < 0 || value_len > UINT16_MAX)
        return false;
    store_le32(e, (uint32_t)*at);
    store_le32(e + 4, (uint32_t)(*at + (size_t)key_len));
    store_le16(e + 8, (uint16_t)key_len);
    store_le16(e + 10, (uint16_t)value_len);
    *at += (size_t)(key_len + value_len);
    return true;
}

uint8_t *vhdx_locator_build(const char *parent, const struct vhdx_guid *linkage, size_t *len,
                            struct error **err)
{
    char guid[VHDX_GUID_TEXT];
    size_t room = LOCATOR_HEADER + PAIRS * LOCATOR_ENTRY + 512 + 2 * strlen(parent);
    _cleanup_free_ char *path = strdup(parent);

    vhdx_guid_print(linkage, guid);
    uint8_t *item = strlen(parent) <= MAX_PATH_BYTES ? calloc(1, room) : NULL;
    if (!item || !path) {
        free(item);
        error_set(err, EINVAL, "the parent's name has %zu bytes: the limit is %d", strlen(parent),
                  MAX_PATH_BYTES);
        return NULL;
    }
    for (char *p = path; *p && parent[0] != '/'; p++)
        if (*p == '/')
            *p = '\\';
    memcpy(item, vhdx_locator_type.b, 16);
    store_le16(item + 18, PAIRS);
    *len = LOCATOR_HEADER + PAIRS * LOCATOR_ENTRY;
    if (put_pair(item, 0, len, "parent_linkage", guid) &&
        put_pair(item, 1, len, "parent_linkage2", guid) && /* room for a second one */
        put_pair(item, 2, len, parent[0] == '/' ? "absolute_win32_path" : "relative_path", path))
        return item;
    free(item);
    error_set(err, EINVAL, "the parent's name '%s' is not UTF-8, which the format wants", parent);
    return NULL;
}
