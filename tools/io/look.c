/* info, alloc, map. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/round.h"
#include "image.h"
#include "io.h"
#include "number.h"
#include "request.h"

/* ---- info
 * ----------------------------------------------------------------------------------------- */

static void print_tree(json_t *tree, int level);

static void print_value(json_t *value, int level)
{
    if (json_is_object(value) || json_is_array(value)) {
        putchar('\n');
        print_tree(value, level + 1);
    } else if (json_is_string(value)) {
        printf(" %s\n", json_string_value(value));
    } else if (json_is_integer(value)) {
        printf(" %" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
    } else {
        printf(" %s\n", json_is_true(value) ? "true" : json_is_false(value) ? "false" : "null");
    }
}

static void print_tree(json_t *tree, int level)
{
    const char *key;
    json_t *value;
    size_t i;
    json_object_foreach(tree, key, value)
    {
        printf("%*s", level * 4, "");
        for (const char *p = key; *p; p++)
            putchar(*p == '-' ? ' ' : *p);
        putchar(':');
        print_value(value, level);
    }
    json_array_foreach(tree, i, value)
    {
        printf("%*s[%zu]:", level * 4, "", i);
        print_value(value, level);
    }
}

/* Where saved machine states begin: behind the last table of mappings that the disk needs. Formats
 * whose description does not speak of refcounts have no such place. */
static uint64_t vm_state_offset(const struct blk_info *info, json_t *data)
{
    if (!info->cluster_size || !json_object_get(data, "refcount-bits"))
        return 0;
    uint64_t entry = json_is_true(json_object_get(data, "extended-l2")) ? 16 : 8, up;
    return checked_round_up(info->virtual_size, info->cluster_size * (info->cluster_size / entry),
                            &up)
               ? up
               : 0;
}

static bool is_protocol(const char *format)
{
    struct blk_driver_info driver;
    for (unsigned i = 0; blk_driver_at(i, &driver) == 0; i++) {
        if (strcmp(driver.name, format) == 0)
            return driver.kind == BLK_PROTOCOL;
    }
    return false;
}

static int do_info(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)argc;
    (void)argv;
    struct blk_info info = { 0 };
    struct error *err = NULL;
    int r = blk_info(io->image->self, &info, &err);
    if (r < 0) {
        complain_error(&err, NULL);
        return r;
    }
    _cleanup_json_ json_t *specific = info.specific ? json_loads(info.specific, 0, NULL) : NULL;
    json_t *data = json_object_get(specific, "data");
    for (int i = 0; i <= is_protocol(info.format); i++)
        printf("format name: %s\n", info.format);
    printf("cluster size: %s\n", number_human(info.cluster_size).s);
    printf("vm state offset: %s\n", number_human((double)vm_state_offset(&info, data)).s);
    if (json_object_size(data) > 0) {
        puts("Format specific information:");
        print_tree(data, 1);
    }
    blk_info_free(&info);
    return 0;
}

const struct command cmd_info = {
    .name = "info",
    .alias = "i",
    .summary = "prints information about the current file",
    .needs = NEEDS_IMAGE,
    .run = do_info,
};

/* ---- alloc and map
 * --------------------------------------------------------------------------------- */

/* How far the bytes from offset on are all allocated in this image, or all are not. */
static int run_at(struct blk_node *node, uint64_t offset, uint64_t len, bool *allocated,
                  uint64_t *run)
{
    uint64_t size = blk_size(node);
    for (*run = 0; *run < len;) {
        uint64_t at = offset + *run;
        struct blk_extent e = { .length = len - *run, .flags = BLK_EXT_ALLOCATED };
        /* The rest of the last sector counts as the file's. */
        int r = at < size ? blk_extents(node, at, MIN(len - *run, size - at), BLK_LAYER, &e) : 0;
        if (r < 0)
            return r;
        bool here = e.flags & BLK_EXT_ALLOCATED;
        if (*run == 0)
            *allocated = here;
        else if (*allocated != here)
            break;
        *run += e.length;
    }
    return 0;
}

static int do_alloc(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    int64_t offset, count = 512;
    if (!number_size(argv[1], &offset) || (argc > 2 && !number_size(argv[2], &count)))
        return -EINVAL;
    struct blk_node *node = io->image->self;
    uint64_t size = request_size(node), at = (uint64_t)offset, sum = 0;
    uint64_t len = at < size ? MIN((uint64_t)count, size - at) : 0;
    bool allocated;
    for (uint64_t done = 0, run; done < len; done += run) {
        int r = run_at(node, at + done, len - done, &allocated, &run);
        if (r < 0) {
            printf("is_allocated failed: %s\n", strerror(-r));
            return r;
        }
        sum += allocated ? run : 0;
    }
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", sum, len,
           number_human((double)offset).s);
    return 0;
}

const struct command cmd_alloc = {
    .name = "alloc",
    .args = "offset [count]",
    .summary = "checks if offset is allocated in the file",
    .min = 1,
    .max = 2,
    .needs = NEEDS_IMAGE,
    .run = do_alloc,
};

static int do_map(const struct command *self, struct io *io, int argc, char **argv)
{
    (void)self;
    (void)argc;
    (void)argv;
    struct blk_node *node = io->image->self;
    uint64_t size = request_size(node);
    bool allocated;
    for (uint64_t at = 0, run; at < size; at += run) {
        int r = run_at(node, at, size - at, &allocated, &run);
        if (r < 0) {
            complain("Failed to get allocation status: %s", strerror(-r));
            return r;
        }
        printf("%s (0x%" PRIx64 ") bytes %s at offset %s (0x%" PRIx64 ")\n",
               number_human((double)run).s, run, allocated ? "    allocated" : "not allocated",
               number_human((double)at).s, at);
    }
    return 0;
}

const struct command cmd_map = {
    .name = "map",
    .args = "",
    .summary = "prints the allocated areas of a file",
    .needs = NEEDS_IMAGE,
    .run = do_map,
};
