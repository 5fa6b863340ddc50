/* The parent of a differencing image: its names in the header, and whether what was found is it.
 *
 * A name is stated several times: relative and absolute, as Windows writes names, and as a file URL. Here the relative
 * one counts; of an absolute Windows name only the last part means something, beside the image. Whether the
 * name may be opened is the core's to say (--follow).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iszero.h"
#include "base/macros.h"
#include "base/round.h"
#include "base/strbuf.h"
#include "vpc.h"

enum { MAX_NAME = 8192 }; /* bytes of UTF-16 */

/* ---- UTF-16 ----------------------------------------------------------------------------------------- */

static uint32_t unit_at(const uint8_t *utf16, size_t i, bool big)
{
    return big ? load_be16(utf16 + 2 * i) : load_le16(utf16 + 2 * i);
}

static char *put_utf8(char *to, uint32_t c)
{
    if (c < 0x80) {
        *to++ = (char)c;
        return to;
    }
    if (c < 0x800) {
        *to++ = (char)(0xc0 | c >> 6);
    } else {
        if (c < 0x10000) {
            *to++ = (char)(0xe0 | c >> 12);
        } else {
            *to++ = (char)(0xf0 | c >> 18);
            *to++ = (char)(0x80 | (c >> 12 & 0x3f));
        }
        *to++ = (char)(0x80 | (c >> 6 & 0x3f));
    }
    *to++ = (char)(0x80 | (c & 0x3f));
    return to;
}

/* To the first zero. NULL: no memory, or not UTF-16. */
static char *from_utf16(const uint8_t *utf16, size_t bytes, bool big)
{
    char *text = malloc(bytes / 2 * 3 + 1), *to = text;

    for (size_t i = 0; text && i < bytes / 2; i++) {
        uint32_t c = unit_at(utf16, i, big);
        if (c == 0)
            break;
        if (c >= 0xd800 && c < 0xe000) {
            uint32_t low = i + 1 < bytes / 2 ? unit_at(utf16, i + 1, big) : 0;
            if (c >= 0xdc00 || low < 0xdc00 || low >= 0xe000) {
                free(text);
                return NULL;
            }
            c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
            i++;
        }
        to = put_utf8(to, c);
    }
    if (text)
        *to = 0;
    return text;
}

/* The next character of UTF-8; 0: none, or it is not UTF-8. */
static uint32_t next_char(const char **at)
{
    const uint8_t *s = (const uint8_t *)*at;
    unsigned more = s[0] < 0x80       ? 0
                    : s[0] >> 5 == 6  ? 1
                    : s[0] >> 4 == 14 ? 2
                    : s[0] >> 3 == 30 ? 3
                                      : 4;
    uint32_t c = more ? s[0] & (0x3fu >> more) : s[0];

    if (more > 3)
        return 0;
    for (unsigned i = 1; i <= more; i++) {
        if (s[i] >> 6 != 2)
            return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    *at += more + 1;
    return c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : c;
}

static void put_unit(uint8_t *to, uint32_t unit, bool big)
{
    if (big)
        store_be16(to, (uint16_t)unit);
    else
        store_le16(to, (uint16_t)unit);
}

/* Bytes written, at most `room`; -1: it does not fit or is not UTF-8. slashes become Windows' own. */
static int to_utf16(const char *text, uint8_t *to, size_t room, bool big)
{
    size_t n = 0;

    while (*text) {
        uint32_t c = next_char(&text);
        if (c == 0 || n + 4 > room)
            return -1;
        if (c >= 0x10000) {
            put_unit(to + n, 0xd800 + ((c - 0x10000) >> 10), big);
            n += 2;
            c = 0xdc00 + ((c - 0x10000) & 0x3ff);
        }
        put_unit(to + n, c == '/' ? '\\' : c, big);
        n += 2;
    }
    return (int)n;
}

/* ---- reading a name ------------------------------------------------------------------------------------ */

static const char *last_part(const char *name)
{
    const char *slash = strrchr(name, '/');
    return slash ? slash + 1 : name;
}

/* What a name as stated by this locator means here; to be freed, NULL: nothing. Owns text. */
static char *meaning(uint32_t code, char *text)
{
    char *name = NULL;

    for (char *c = text; c && *c && code != VPC_MACX; c++)
        if (*c == '\\')
            *c = '/';
    if (!text)
        return NULL;
    const char *from = text;
    if (code == VPC_MACX)
        from = !strncmp(text, "file://", 7) ? strchr(text + 7, '/') : NULL;
    else if (code != VPC_W2RU && (text[0] != '/' || text[1] == '/'))
        from = last_part(text);
    while (from && !strncmp(from, "./", 2))
        from += 2;
    if (from && *from)
        name = strdup(from);
    free(text);
    return name;
}

static int read_locator(struct vpc *v, const uint8_t *l, char **name)
{
    uint64_t offset = load_be64(l + LOC_OFFSET), length = load_be32(l + LOC_LENGTH);
    uint32_t code = load_be32(l + LOC_CODE);
    uint8_t bytes[MAX_NAME];

    *name = NULL;
    if (length == 0 || length > MAX_NAME || !range_inside(offset, length, blk_size(v->bat.file)))
        return 0;
    int ret = blk_read(v->bat.file, offset, bytes, length, 0);
    if (ret < 0)
        return ret;
    char *text =
        code == VPC_MACX ? strndup((char *)bytes, length) : from_utf16(bytes, length, false);
    *name = meaning(code, text);
    return 0;
}

static int stated_name(struct vpc *v, char **name)
{
    static const uint32_t order[] = { VPC_W2RU, VPC_W2KU, VPC_MACX };
    int ret = 0;

    *name = NULL;
    for (size_t k = 0; k < ARRAY_SIZE(order); k++)
        for (size_t i = 0; i < VPC_LOCATORS && ret == 0 && !*name; i++) {
            const uint8_t *l = v->header + AT_LOCATOR + i * LOCATOR_BYTES;
            if (load_be32(l + LOC_CODE) == order[k])
                ret = read_locator(v, l, name);
        }
    if (ret == 0 && !*name)
        *name = meaning(0, from_utf16(v->header + AT_PARENT_NAME, PARENT_NAME_BYTES, true));
    return ret;
}

int vpc_find_parent(struct vpc *v, struct error **err)
{
    _cleanup_free_ char *name = NULL;

    if (v->type != VPC_DIFFERENCING)
        return 0;
    int ret = stated_name(v, &name);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read its parent's name: %s",
                         blk_filename(v->bat.file), strerror(-ret));
    if (!name && !(node_open_flags(v->bat.node) & BLK_OPEN_NO_BACKING))
        return error_set(err, EINVAL,
                         "%s: a differencing image that does not say which its parent is",
                         blk_filename(v->bat.file));
    ret = name ? node_set_backing(v->bat.node, name, "vpc") : 0;
    return ret < 0 ? error_set(err, ENOMEM, "out of memory") : 0;
}

int vpc_backing_opened(struct blk_node *n, struct error **err)
{
    const struct vpc *v = node_state(n);
    struct blk_node *backing = node_child(n, EDGE_BACKING);
    const struct vpc *parent = node_state_as(backing, &vpc_driver);
    uint32_t time = load_be32(v->header + AT_PARENT_TIME);

    if (!parent || memcmp(parent->footer + AT_UUID, v->header + AT_PARENT_UUID, VPC_UUID) != 0)
        return error_set(
            err, EINVAL,
            "%s: '%s' is not the parent that it was made for: it has another unique ID",
            blk_filename(n), blk_filename(backing));
    if (time && time != load_be32(parent->footer + AT_TIME))
        node_warn(n,
                  "%s: its parent '%s' has another time stamp than when it was made: if it was "
                  "changed since, what is read is wrong",
                  blk_filename(n), blk_filename(backing));
    return 0;
}

/* ---- writing a name ------------------------------------------------------------------------------------- */

int vpc_name_parent(uint8_t *header, const char *name, uint64_t offset, uint8_t **locator,
                    size_t *bytes, struct error **err)
{
    bool absolute = name[0] == '/';
    struct strbuf text = STRBUF_INIT;
    uint8_t *l = header + AT_LOCATOR;

    strbuf_addf(&text, "%s%s", absolute || !strncmp(name, "./", 2) ? "" : "./", name);
    _cleanup_free_ char *full = strbuf_take(&text);
    *locator = calloc(1, MAX_NAME);
    if (!full || !*locator)
        return error_set(err, ENOMEM, "out of memory");
    int length = to_utf16(full, *locator, MAX_NAME, false);
    if (length < 0 ||
        to_utf16(last_part(name), header + AT_PARENT_NAME, PARENT_NAME_BYTES, true) < 0)
        return error_set(err, EINVAL,
                         "backing_file '%s' is not UTF-8 or too long: VHD states names in UTF-16, "
                         "%d characters at most",
                         name, PARENT_NAME_BYTES / 2 - 1);
    *bytes = (size_t)align_up((uint64_t)length, 512);
    store_be32(l + LOC_CODE, absolute ? VPC_W2KU : VPC_W2RU);
    store_be32(l + LOC_SPACE, (uint32_t)*bytes);
    store_be32(l + LOC_LENGTH, (uint32_t)length);
    store_be64(l + LOC_OFFSET, offset);
    return 0;
}

/* ---- another parent ------------------------------------------------------------------------------------- */

/* A header with another name, and the name behind it, in a place of their own: the header has two sectors, so it cannot
 * change in place. Then the first sector of the file says where it is. */
static int write_header(struct vpc *v, const char *filename, const struct vpc *parent,
                        uint64_t *place, uint8_t header[VPC_HEADER], struct error **err)
{
    _cleanup_free_ uint8_t *locator = NULL;
    struct bat *b = &v->bat;
    size_t bytes;

    memcpy(header, v->header, VPC_HEADER);
    memset(header + AT_PARENT_UUID, 0, VPC_HEADER - AT_PARENT_UUID);
    memcpy(header + AT_PARENT_UUID, parent->footer + AT_UUID, VPC_UUID);
    memcpy(header + AT_PARENT_TIME, parent->footer + AT_TIME, 4);
    int ret = vpc_name_parent(header, filename, 0, &locator, &bytes, err);
    if (ret < 0)
        return ret;
    {
        WRLOCK_SCOPE(&b->lock);
        ret = bat_alloc_bytes(b, VPC_HEADER + bytes, place);
        b->holes = true; /* where the old header lies */
    }
    store_be64(header + AT_LOCATOR + LOC_OFFSET, *place + VPC_HEADER);
    vpc_sign(header, VPC_HEADER, AT_HEADER_CHECKSUM);
    if (ret == 0)
        ret = blk_write(b->file, *place, header, VPC_HEADER, 0);
    if (ret == 0)
        ret = blk_write(b->file, *place + VPC_HEADER, locator, bytes, 0);
    if (ret == 0)
        ret = blk_flush(b->file);
    return ret < 0 ? error_set(err, -ret, "%s: could not write a new header: %s",
                               blk_filename(b->node), strerror(-ret))
                   : 0;
}

int vpc_change_backing(struct blk_node *n, const char *filename, const char *format,
                       struct error **err)
{
    struct vpc *v = node_state(n);
    const struct vpc *parent = filename ? node_state_as(node_create_backing(n), &vpc_driver) : NULL;
    uint8_t header[VPC_HEADER];
    uint64_t place;

    /* Others take every sector of a block for data when there is no parent. */
    if (!filename && v->type == VPC_DIFFERENCING)
        return error_set(err, ENOTSUP,
                         "%s: a differencing VHD cannot become one without parent in place: "
                         "convert it",
                         blk_filename(n));
    if (!filename)
        return 0;
    if (v->type == VPC_FIXED)
        return error_set(err, ENOTSUP, "%s: a fixed VHD has no parent", blk_filename(n));
    if (!parent || (format && strcmp(format, "vpc") != 0))
        return error_set(err, EINVAL, "%s: the parent of a VHD image must be vpc, '%s' is not",
                         blk_filename(n), filename);
    int ret = bat_settle(&v->bat);
    if (ret < 0)
        return error_set(err, -ret, "%s: could not be written out: %s", blk_filename(n),
                         strerror(-ret));
    ret = write_header(v, filename, parent, &place, header, err);
    if (ret < 0)
        return ret;
    ret = vpc_use_header(v, header, place);
    return ret < 0 ? error_set(err, -ret, "%s: could not write the footer: %s", blk_filename(n),
                               strerror(-ret))
                   : 0;
}
