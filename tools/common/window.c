#include "window.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "partitions/partitions.h"

#include "describe.h"

enum { DIGITS = 4 };

char *window_split(const char *name, unsigned *number)
{
    size_t len = strlen(name), digits = 0;
    struct stat st;

    while (digits < len && isdigit((unsigned char)name[len - 1 - digits]))
        digits++;
    if (digits == 0 || digits > DIGITS || len < digits + 3 || name[len - digits] == '0')
        return NULL;
    size_t colon = len - digits - 2;
    if (name[colon] != ':' || name[colon + 1] != 'p' || lstat(name, &st) == 0)
        return NULL;
    *number = (unsigned)strtoul(name + len - digits, NULL, 10);
    return strndup(name, colon);
}

bool window_is_there(const char *name)
{
    unsigned number;
    _cleanup_free_ char *image = window_split(name, &number);
    struct stat st;

    return image && lstat(image, &st) == 0;
}

/* Opened for a look: nothing is written, no lock is taken. */
static int look(json_t *desc, struct blk_node **out, struct error **err)
{
    _cleanup_free_ char *text = json_dumps(desc, JSON_COMPACT);
    struct blk_open_args args = { .image_opts = true, .flags = BLK_OPEN_QUIET | BLK_OPEN_SHARED };

    if (!text)
        return error_set(err, ENOMEM, "out of memory");
    return blk_open(text, &args, out, err);
}

static json_t *put_on_top(json_t *desc, struct blk_node *node, uint64_t offset, uint64_t size,
                          struct error **err)
{
    /* Below another node nothing is guessed: what was guessed here is stated. */
    if (!json_object_get(desc, "driver"))
        json_object_set_new(desc, "driver", json_string(blk_format(node)));
    describe_push_filename_down(desc);
    json_t *top =
        json_pack("{s:s, s:I, s:O}", "driver", "raw", "offset", (json_int_t)offset, "file", desc);
    if (top && size)
        json_object_set_new(top, "size", json_integer((json_int_t)size));
    if (!top)
        error_set(err, ENOMEM, "out of memory");
    return top;
}

json_t *window_describe(json_t *desc, uint64_t offset, uint64_t size, struct error **err)
{
    struct blk_node *node = NULL;
    json_t *top = NULL;

    if (look(desc, &node, err) == 0)
        top = put_on_top(desc, node, offset, size, err);
    blk_close(node, NULL);
    json_decref(desc);
    return top;
}

json_t *window_on_partition(json_t *desc, unsigned number, struct error **err)
{
    struct partition_table table = { 0 };
    struct blk_node *node = NULL;
    json_t *top = NULL;

    if (look(desc, &node, err) == 0 && partitions_read(node, &table, err) == 0) {
        const struct partition *p = partitions_find(&table, number, blk_filename(node), err);
        if (p)
            top = put_on_top(desc, node, p->start, p->size, err);
    }
    partitions_free(&table);
    blk_close(node, NULL);
    json_decref(desc);
    return top;
}
