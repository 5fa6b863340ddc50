/* Descriptions of graphs, as json: or key=value, opened, described and closed.
 *
 * Only leaves that live in memory are reached: a description that could name a file, or that would
 * make requests slow, is left out after parsing it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/options.h"
#include "block/block.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void quiet(void *opaque, const char *text)
{
    (void)opaque;
    (void)text;
}

static void must(bool condition)
{
    if (!condition)
        abort();
}

/* Keys that lead to files and servers, and those that make a request wait. */
static const char *const left_out[] = { "filename", "config", "latency", "limits",
                                        "host",     "path",   "uri",     "server" };

static bool key_is_fine(const char *key)
{
    for (size_t i = 0; i < sizeof(left_out) / sizeof(left_out[0]); i++)
        if (strstr(key, left_out[i]))
            return false;
    return true;
}

static bool is_fine(json_t *value)
{
    const char *key;
    json_t *member;
    size_t i;

    if (json_is_object(value)) {
        json_object_foreach(value, key, member)
        {
            /* json: in a name leads to another description */
            const char *name = strstr(key, "filename") ? json_string_value(member) : NULL;
            _cleanup_json_ json_t *inner =
                name && !strncmp(name, "json:", 5) ? opts_parse_json(name + 5, NULL) : NULL;
            if (inner ? !is_fine(inner) : !key_is_fine(key) || !is_fine(member))
                return false;
        }
    }
    json_array_foreach(value, i, member) if (!is_fine(member)) return false;
    return true;
}

static void use(struct blk_node *node)
{
    static uint8_t buf[65536];
    struct blk_info info;
    struct blk_extent e;
    uint64_t size = blk_size(node);
    size_t len = size < sizeof(buf) ? (size_t)size : sizeof(buf);

    if (blk_info(node, &info, NULL) == 0)
        blk_info_free(&info);
    if (len) {
        (void)blk_extents(node, 0, size, 0, &e);
        (void)blk_read(node, size - len, buf, len, 0);
        (void)blk_write(node, 0, buf, len, 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_free_ char *text =
        size > 1 && size < 4096 ? strndup((const char *)data + 1, size - 1) : NULL;
    _cleanup_error_ struct error *err = NULL;
    struct blk_open_args args = {
        .image_opts = true,
        .follow = BLK_FOLLOW_NONE,
        .flags = data && size && data[0] & 1 ? BLK_OPEN_RDWR : 0,
    };
    struct blk_node *node;

    if (!text)
        return 0;
    _cleanup_json_ json_t *desc =
        text[0] == '{' ? opts_parse_json(text, NULL) : opts_parse_keyval(text, NULL, NULL);
    if (!desc || !is_fine(desc))
        return 0;
    blk_on_warning(quiet, NULL);
    if (data[0] & 2 && text[0] == '{') {
        /* the spelling of a file name */
        _cleanup_free_ char *name = calloc(1, strlen(text) + 6);
        must(name != NULL);
        strcat(strcpy(name, "json:"), text);
        args.image_opts = false;
        int ret = blk_open(name, &args, &node, &err);
        must((ret < 0) == (err != NULL) && (ret == 0) == (node != NULL));
    } else {
        int ret = blk_open(text, &args, &node, &err);
        must((ret < 0) == (err != NULL) && (ret == 0) == (node != NULL));
    }
    if (node) {
        use(node);
        blk_close(node, NULL);
    }
    return 0;
}
