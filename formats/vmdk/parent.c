/* Another parent: the descriptor names it and states its CID. Both change in one write of one sector, or not at all, so
 * that a power cut leaves the image with the one or the other. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vmdk.h"

static int refuse(const struct vmdk *v, int code, const char *why, struct error **err)
{
    return error_set(err, code, "%s: its parent cannot be changed: %s", blk_filename(v->node), why);
}

static int check(const struct vmdk *v, const char *filename, const char *format,
                 const struct vmdk *parent, struct error **err)
{
    for (size_t i = 0; i < v->extents.len; i++)
        if (v->extents.at[i].kind != EXTENT_HOSTED)
            return refuse(v, ENOTSUP, "it has an extent that cannot have a parent", err);
    if (!v->desc.text || !v->desc.parent_cid_at)
        return refuse(v, ENOTSUP, "it has no descriptor with a parentCID", err);
    if (filename && (!parent || (format && strcmp(format, "vmdk") != 0)))
        return refuse(v, EINVAL, "only a vmdk can be the parent", err);
    if (filename && (strpbrk(filename, "\"\n\r") || strlen(filename) > 4096))
        return refuse(v, EINVAL,
                      "the new name has a quote or a line end, or above 4096 bytes: a descriptor "
                      "cannot say that",
                      err);
    return 0;
}

/* What the text is read as is what was meant; of several names others take another one. */
static bool says(const char *text, const char *filename, uint32_t cid)
{
    static const char key[] = "parentFileNameHint";
    const char *first = strstr(text, key);
    struct vmdk_desc d;

    if (first && strstr(first + 1, key))
        return false;
    char *copy = strdup(text);

    if (!copy || vmdk_desc_parse(&d, "", copy, strlen(copy), NULL) < 0)
        return false;
    bool same = d.parent_cid == cid &&
                (filename ? d.parent_hint && !strcmp(d.parent_hint, filename) : !d.parent_hint);
    vmdk_desc_free(&d);
    return same;
}

/* `padded` takes the place of the old text, which is no longer than that. */
static int write_sector(struct vmdk *v, const char *padded, size_t len, struct error **err)
{
    size_t first = 0, end = len;

    while (first < v->desc.len && padded[first] == v->desc.text[first])
        first++;
    while (end > first && end <= v->desc.len && padded[end - 1] == v->desc.text[end - 1])
        end--;
    if (first == end)
        return 0;
    if (round_down(v->desc_offset + first, SECTOR) != round_down(v->desc_offset + end - 1, SECTOR))
        return refuse(v, ENOSPC,
                      "the name is too long to change in one sector of the descriptor: convert the "
                      "image, or use a shorter name",
                      err);
    int ret = blk_write(v->file, v->desc_offset + first, padded + first, end - first, 0);
    if (ret == 0)
        ret = blk_flush(v->file);
    return ret < 0 ? refuse(v, -ret, strerror(-ret), err) : 0;
}

static int rewrite(struct vmdk *v, const char *filename, uint32_t cid, struct error **err)
{
    _cleanup_free_ char *text = vmdk_desc_reparented(&v->desc, filename, cid);
    size_t len = text ? strlen(text) : 0, whole = MAX(len, v->desc.len);
    _cleanup_free_ char *padded = text ? malloc(whole + 1) : NULL;

    if (!padded)
        return error_set(err, ENOMEM, "out of memory");
    if (!says(text, filename, cid))
        return refuse(v, ENOTSUP, "its descriptor states one in an unusual way", err);
    if (len > v->desc_room)
        return refuse(v, ENOSPC, "there is no room in its descriptor", err);
    memcpy(padded, text, len);
    memset(padded + len, v->embedded ? '\0' : '\n', whole - len);
    padded[whole] = '\0';
    int ret = write_sector(v, padded, whole, err);
    if (ret < 0)
        return ret;
    char *mine = padded;
    padded = NULL;
    return vmdk_desc_adopt(v, mine, err);
}

int vmdk_change_backing(struct blk_node *n, const char *filename, const char *format,
                        struct error **err)
{
    struct vmdk *v = node_state(n);
    const struct vmdk *parent =
        filename ? node_state_as(node_create_backing(n), &vmdk_driver) : NULL;
    int ret = check(v, filename, format, parent, err);

    if (ret < 0)
        return ret;
    ret = vmdk_commit(v, true);
    if (ret < 0)
        return refuse(v, -ret, strerror(-ret), err);
    return rewrite(v, filename, parent ? parent->desc.cid : NO_PARENT, err);
}
