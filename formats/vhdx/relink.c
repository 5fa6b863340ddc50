/* A child and a parent that is written to: the parent gets another data write GUID then, and the child must know it.
 *
 * That happens on purpose only when the child is committed into its parent, and the child is open then. So the GUID
 * that the parent is going to have is written down as parent_linkage2 before anything is written: at every moment one of
 * the two is the parent's. Children of other tools may have no parent_linkage2: theirs is put right at the end.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vhdx.h"

enum { GUID_BYTES = 2 * (VHDX_GUID_TEXT - 1) }; /* as text in UTF-16 */

/* The bytes of the file at `offset` become the GUID, through the log. */
static int write_guid(struct vhdx *v, uint64_t offset, const struct vhdx_guid *guid)
{
    uint8_t bytes[2 * VHDX_PAGE];
    char text[VHDX_GUID_TEXT];
    uint64_t start = align_down(offset, VHDX_PAGE);
    uint64_t end = align_up(offset + GUID_BYTES, VHDX_PAGE);
    struct vhdx_page pages[2] = { { start, bytes }, { start + VHDX_PAGE, bytes + VHDX_PAGE } };

    int ret = vhdx_read(v, start, bytes, end - start);
    if (ret < 0)
        return ret;
    vhdx_guid_print(guid, text);
    for (size_t i = 0; i < VHDX_GUID_TEXT - 1; i++)
        store_le16(bytes + (offset - start) + 2 * i, (uint16_t)text[i]);
    ret = vhdx_session(v);
    if (ret < 0)
        return ret;
    LOCK_SCOPE(&v->commit_lock);
    ret = vhdx_log_pages(v, pages, (end - start) / VHDX_PAGE);
    if (ret < 0)
        node_set_failed(v->node);
    return ret;
}

static int set_linkage(struct vhdx *v, const char *key, const struct vhdx_guid *guid)
{
    const struct vhdx_place *at = &v->meta.locator;
    _cleanup_free_ uint8_t *item = malloc(at->length);

    if (!item)
        return -ENOMEM;
    int ret = vhdx_read(v, at->offset, item, at->length);
    if (ret < 0)
        return ret;
    size_t value = vhdx_locator_find(item, at->length, key);
    return value ? write_guid(v, at->offset + value, guid) : -ENOENT;
}

int vhdx_expect_parent(struct vhdx *v, const struct vhdx *parent)
{
    unsigned second = v->meta.linkages > 1;
    int ret = 0;

    if (second && !guid_equal(&v->meta.linkage[0], &parent->headers.current.data_write))
        /* the parent is what the second says now: so shall the first */
        ret = set_linkage(v, "parent_linkage", &parent->headers.current.data_write);
    if (ret == 0)
        ret = set_linkage(v, "parent_linkage2", &parent->next_data_write);
    return ret == -ENOENT ? 0 : ret;
}

int vhdx_make_empty(struct blk_node *n, struct error **err)
{
    struct vhdx *v = node_state(n);
    const struct vhdx *parent = node_state_as(node_child(n, EDGE_BACKING), &vhdx_driver);
    enum vhdx_state state = v->differencing ? BLOCK_NOT_PRESENT : BLOCK_ZERO;

    if (v->fixed)
        return error_set(err, ENOTSUP, "%s: a fixed image cannot be emptied", blk_filename(n));
    int ret = vhdx_forget_blocks(v, 0, div_round_up(v->meta.size, v->meta.block_size), state);
    if (ret == 0)
        ret = vhdx_settle(v);
    if (ret == 0 && parent && v->differencing)
        ret = set_linkage(v, "parent_linkage", &parent->headers.current.data_write);
    return ret < 0 && ret != -ENOENT ? error_set(err, -ret, "%s: could not be emptied: %s",
                                                 blk_filename(n), strerror(-ret))
                                     : 0;
}
