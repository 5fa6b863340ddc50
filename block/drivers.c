/* The table of drivers, as others may look at it, and guessing a format from the first bytes. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "node.h"

const struct driver *driver_find(const char *name)
{
    for (const struct driver *const *d = driver_table; *d; d++)
        if (!strcmp((*d)->name, name))
            return *d;
    return NULL;
}

const struct driver *probe_bytes(const uint8_t buf[PROBE_BYTES], const char *filename)
{
    const struct driver *best = driver_find("raw");
    int best_score = 0;

    for (const struct driver *const *d = driver_table; *d; d++) {
        int score = (*d)->probe ? (*d)->probe(buf, PROBE_BYTES, filename) : 0;
        if (score > best_score) {
            best_score = score;
            best = *d;
        }
    }
    return best;
}

const struct driver *probe_wrapped(const uint8_t buf[PROBE_BYTES])
{
    for (const struct driver *const *d = driver_table; *d; d++)
        if ((*d)->wraps && (*d)->wraps(buf, PROBE_BYTES))
            return *d;
    return NULL;
}

static int read_head(struct blk_node *file, const char *filename, uint8_t buf[PROBE_BYTES],
                     struct error **err)
{
    uint64_t size = blk_size(file);
    size_t len = size < PROBE_BYTES ? (size_t)size : PROBE_BYTES;

    memset(buf, 0, PROBE_BYTES);
    int ret = len ? blk_read(file, 0, buf, len, 0) : 0;
    if (ret < 0)
        return error_set(err, -ret, "%s: could not read its first bytes to find the format: %s",
                         filename, strerror(-ret));
    return 0;
}

int probe_wrapping(struct blk_node *file, const struct driver **out, struct error **err)
{
    uint8_t buf[PROBE_BYTES];
    int ret = read_head(file, blk_filename(file), buf, err);

    *out = ret < 0 ? NULL : probe_wrapped(buf);
    return ret;
}

int probe_node(struct blk_node *file, const char *filename, const struct driver **out,
               struct error **err)
{
    uint8_t buf[PROBE_BYTES];
    int ret = read_head(file, filename, buf, err);

    if (ret < 0)
        return ret;
    *out = probe_bytes(buf, filename);
    if (!*out)
        return error_set(err, ENOTSUP, "%s: unknown format, and this program has no raw driver",
                         filename);
    return 0;
}

int blk_driver_at(unsigned i, struct blk_driver_info *out)
{
    for (const struct driver *const *d = driver_table; *d; d++) {
        if (i--)
            continue;
        *out = (struct blk_driver_info){
            .name = (*d)->name,
            .kind = (*d)->kind,
            .can_create = (*d)->create || (*d)->create_file,
            .can_write = (*d)->write_begin || (*d)->pwritev,
            .can_check = (*d)->check,
            .can_resize = (*d)->resize,
            .can_compress = (*d)->encode,
            .can_amend = (*d)->amend,
            .has_extents = (*d)->flags & DRIVER_EXTENTS,
        };
        return 0;
    }
    return -ENOENT;
}

/* "a|b|c", kept for the process: the tables are constant and few. */
static const char *choice_text(const struct opt_def *def)
{
    static _Thread_local char text[256];

    text[0] = '\0';
    for (const struct opt_choice *c = def->choices; c->name; c++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof(text) - used, "%s%s", used ? "|" : "", c->name);
    }
    return text;
}

static const char *type_text(const struct opt_def *def)
{
    switch (def->type) {
    case OPT_BOOL:
        return "bool";
    case OPT_SIZE:
        return "size";
    case OPT_NUMBER:
        return "num";
    case OPT_STRING:
        return "str";
    case OPT_ENUM:
        return choice_text(def);
    case OPT_JSON:
        return "list";
    }
    return "str";
}

static int option_at(const struct opt_def *def, unsigned i, struct blk_option_info *out)
{
    for (; def && def->name; def++) {
        if (!def->help || i--)
            continue;
        *out = (struct blk_option_info){
            .name = def->name,
            .type = type_text(def),
            .help = def->help,
            .def = def->def,
        };
        return 0;
    }
    return -ENOENT;
}

int blk_driver_option_at(const char *driver, bool create, unsigned i, struct blk_option_info *out)
{
    const struct driver *d = driver_find(driver);
    return option_at(d ? (create ? d->create_options : d->options) : NULL, i, out);
}

int blk_driver_amend_option_at(const char *driver, unsigned i, struct blk_option_info *out)
{
    const struct driver *d = driver_find(driver);
    return option_at(d ? d->amend_options : NULL, i, out);
}
