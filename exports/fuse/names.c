/* Which files there are. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

#include "base/cleanup.h"

struct name *name_of(struct fuse_export *x, fuse_ino_t ino)
{
    return ino >= 1 && ino <= x->names.len ? &x->names.at[ino - 1] : NULL;
}

uint64_t file_size(struct fuse_export *x, const struct name *file)
{
    return file->whole ? blk_size(x->node) : file->size;
}

/* Takes text and target over. The inode number, or 0 without memory. */
static fuse_ino_t add(struct fuse_export *x, struct name name)
{
    if (name.text && (name.kind != S_IFLNK || name.target) && vector_push(&x->names, name) == 0)
        return x->names.len;
    free(name.text);
    free(name.target);
    return 0;
}

static bool taken(struct fuse_export *x, fuse_ino_t parent, const char *text)
{
    for (size_t i = 1; i < x->names.len; i++) {
        if (x->names.at[i].parent == parent && strcmp(x->names.at[i].text, text) == 0)
            return true;
    }
    return false;
}

/* A label as a file name: without '/', and not "." or "..". Of two with one label the first is meant. */
static int add_link(struct fuse_export *x, fuse_ino_t folder, const char *label, unsigned number)
{
    char text[PARTITION_LABEL], target[32];

    snprintf(text, sizeof(text), "%s", label);
    for (char *p = text; *p; p++) {
        if (*p == '/')
            *p = '_';
    }
    if (!text[0] || strcmp(text, ".") == 0 || strcmp(text, "..") == 0 || taken(x, folder, text))
        return 0;
    snprintf(target, sizeof(target), "../p%u", number);
    return add(x, (struct name){ .parent = folder,
                                 .text = strdup(text),
                                 .kind = S_IFLNK,
                                 .target = strdup(target) })
               ? 0
               : -ENOMEM;
}

static int add_partitions(struct fuse_export *x, const struct partition_table *table)
{
    bool labels = false, guids = false;
    fuse_ino_t by_label = 0, by_guid = 0;

    for (size_t i = 0; i < table->count; i++) {
        const struct partition *p = &table->at[i];
        char text[32];
        if (p->outside || p->extended)
            continue;
        snprintf(text, sizeof(text), "p%u", p->number);
        if (!add(x, (struct name){ .parent = FUSE_ROOT_ID,
                                   .text = strdup(text),
                                   .kind = S_IFREG,
                                   .offset = p->start,
                                   .size = p->size }))
            return -ENOMEM;
        labels |= p->label[0] != '\0';
        guids |= p->guid[0] != '\0';
    }
    struct name folder = { .parent = FUSE_ROOT_ID, .kind = S_IFDIR };
    folder.text = labels ? strdup("by-label") : NULL;
    if (labels && !(by_label = add(x, folder)))
        return -ENOMEM;
    folder.text = guids ? strdup("by-guid") : NULL;
    if (guids && !(by_guid = add(x, folder)))
        return -ENOMEM;
    for (size_t i = 0; i < table->count; i++) {
        const struct partition *p = &table->at[i];
        if (p->outside || p->extended)
            continue;
        if ((by_label && add_link(x, by_label, p->label, p->number) < 0) ||
            (by_guid && add_link(x, by_guid, p->guid, p->number) < 0))
            return -ENOMEM;
    }
    return 0;
}

int names_make(struct fuse_export *x, const struct partition_table *table, bool single)
{
    struct name disk = { .parent = FUSE_ROOT_ID, .kind = S_IFREG, .whole = true };
    struct name root = { .parent = FUSE_ROOT_ID, .text = strdup("/"), .kind = S_IFDIR };

    if (single) {
        root.kind = S_IFREG;
        root.whole = true;
    }
    if (!add(x, root))
        return -ENOMEM;
    disk.text = single ? NULL : strdup("disk");
    if (!single && !add(x, disk))
        return -ENOMEM;
    int ret = single || !table ? 0 : add_partitions(x, table);
    x->usage = ret == 0 ? calloc(x->names.len, sizeof(*x->usage)) : NULL;
    return x->usage ? 0 : -ENOMEM;
}

void names_free(struct fuse_export *x)
{
    for (size_t i = 0; i < x->names.len; i++) {
        free(x->names.at[i].text);
        free(x->names.at[i].target);
    }
    vector_free(&x->names);
    free(x->usage);
}
