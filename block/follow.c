/* What a name means that an image states, and whether it may be opened: the one place where a policy about what
 * an image may reach belongs. graph.c asks here before it opens any such name.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "node.h"

size_t protocol_length(const char *name)
{
    size_t n = strcspn(name, ":/");
    return name[n] == ':' ? n : 0;
}

/* What a relative reference means: beneath the folder of the file that states it. */
char *graph_resolve(const char *from, const char *name)
{
    const char *slash = strrchr(from, '/');
    char *full = NULL;

    if (name[0] == '/' || protocol_length(name) > 0 || !slash || protocol_length(from) > 0)
        return strdup(name);
    if (asprintf(&full, "%.*s%s", (int)(slash - from + 1), from, name) < 0)
        return NULL;
    return full;
}

char *blk_resolve(const char *from, const char *name)
{
    return graph_resolve(from, name);
}

/* Whether what an image states may be opened. The image's maker chose the name, not the user: it may
 * lead to files, devices and servers that he never meant to open. */
int may_follow(const char *from, enum blk_follow follow, const char *name, struct error **err)
{
    struct stat st;

    if (follow == BLK_FOLLOW_ANY)
        return 0;
    if (follow == BLK_FOLLOW_NONE)
        return error_set(err, EPERM,
                         "%s: it refers to '%s', which is not opened with --follow=none", from,
                         name);
    if (!strncmp(name, "json:", 5) || protocol_length(name) > 0)
        return error_set(err, EPERM,
                         "%s: it refers to '%s', which is no plain file name: it is "
                         "opened with --follow=any only",
                         from, name);
    if (stat(name, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return error_set(err, EPERM,
                         "%s: it refers to '%s', which is neither a regular file nor a "
                         "block device: it is opened with --follow=any only",
                         from, name);
    return 0;
}

/* `name` lies in the folder of the file `of`, or beneath it, wherever links lead. */
static bool lies_beside(const char *of, const char *name)
{
    _cleanup_free_ char *full = realpath(of, NULL), *target = realpath(name, NULL);
    char *slash = full ? strrchr(full, '/') : NULL;

    return slash && target && !strncmp(full, target, (size_t)(slash - full) + 1);
}

/* A data file is written to and cut, so its name leads less far: a file beside the image. One that is not there
 * harms nobody. */
int may_follow_data(const struct blk_node *n, enum blk_follow follow, const char *name,
                    struct error **err)
{
    struct stat st;
    int ret = may_follow(n->filename, follow, name, err);

    if (ret < 0)
        return error_prefix(err, "data file"), ret;
    if (follow == BLK_FOLLOW_ANY || stat(name, &st) < 0)
        return 0;
    if (S_ISREG(st.st_mode) && lies_beside(n->filename, name))
        return 0;
    return error_set(err, EPERM,
                     "%s: its data file '%s' is not a regular file in the same folder: it is "
                     "opened with --follow=any, or when it is named as data-file.filename",
                     n->filename, name);
}

/* Every part of the path goes down: nothing absolute, no "..", no protocol. */
static bool leads_down(const char *name)
{
    if (!*name || *name == '/' || protocol_length(name) > 0 || !strncmp(name, "json:", 5))
        return false;
    for (const char *part = name; part; part = strchr(part, '/')) {
        part += *part == '/';
        size_t len = strcspn(part, "/");
        if (len == 2 && !strncmp(part, "..", 2))
            return false;
    }
    return true;
}

/* An extent is part of the image, as a data file is, and named more freely than that: all of them lie beneath the
 * image's folder (CVE-2022-47951). */
int may_follow_extent(const char *from, enum blk_follow follow, const char *stated,
                      const char *name, struct error **err)
{
    struct stat st;

    if (follow == BLK_FOLLOW_ANY)
        return 0;
    if (follow == BLK_FOLLOW_LOCAL && !leads_down(stated))
        return error_set(err, EPERM,
                         "%s: its extent '%s' does not lie beneath the image's own folder: it is "
                         "opened with --follow=any only",
                         from, stated);
    int ret = may_follow(from, follow, name, err);
    if (ret < 0 || stat(name, &st) < 0) /* one that is not there is told when it is opened */
        return ret;
    if (S_ISREG(st.st_mode) && lies_beside(from, name))
        return 0;
    return error_set(err, EPERM,
                     "%s: its extent '%s' is not a regular file beneath the image's own folder: it "
                     "is opened with --follow=any only",
                     from, stated);
}
