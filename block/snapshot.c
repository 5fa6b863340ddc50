/* Snapshots inside an image, and the state of a machine that they keep. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "node.h"

/* ---- snapshots -------------------------------------------------------------------------------------- */

static int refuse(struct blk_node *n, bool there, const char *what, struct error **err)
{
    if (!there)
        return error_set(err, ENOTSUP, "%s: the format %s has no snapshots", n->filename,
                         n->drv->name);
    if (n->read_only)
        return error_set(err, EACCES, "%s: cannot %s: it is open read-only", n->filename, what);
    if (atomic_load(&n->failed))
        return error_set(err, EIO, "%s: cannot %s after a failed metadata update", n->filename,
                         what);
    return 0;
}

int blk_snapshot_create(struct blk_node *n, const struct blk_snapshot *what, struct error **err)
{
    int ret = refuse(n, n->drv->snapshot_create, "make a snapshot", err);

    if (ret < 0)
        return ret;
    gate_close(&n->gate);
    ret = n->drv->snapshot_create(n, what, err);
    gate_open(&n->gate);
    return ret;
}

int blk_snapshot_apply(struct blk_node *n, const char *id, const char *name, struct error **err)
{
    int ret = refuse(n, n->drv->snapshot_apply, "apply a snapshot", err);

    if (ret < 0)
        return ret;
    gate_close(&n->gate);
    ret = n->drv->snapshot_apply(n, id, name, err);
    gate_open(&n->gate);
    return ret;
}

int blk_snapshot_delete(struct blk_node *n, const char *id, const char *name, struct error **err)
{
    int ret = refuse(n, n->drv->snapshot_delete, "remove a snapshot", err);

    if (ret < 0)
        return ret;
    gate_close(&n->gate);
    ret = n->drv->snapshot_delete(n, id, name, err);
    gate_open(&n->gate);
    return ret;
}

int blk_snapshot_view(struct blk_node *n, const char *id, const char *name, struct error **err)
{
    if (!n->drv->snapshot_view)
        return error_set(err, ENOTSUP, "%s: the format %s has no snapshots", n->filename,
                         n->drv->name);
    if (!n->read_only)
        return error_set(err, EINVAL, "%s: a snapshot can be looked into only read-only",
                         n->filename);
    gate_close(&n->gate);
    int ret = n->drv->snapshot_view(n, id, name, err);
    gate_open(&n->gate);
    return ret;
}

/* ---- a machine's state --------------------------------------------------------------------------------- */

static int vm_state_offset(struct blk_node *n, uint64_t bytes, uint64_t *offset)
{
    if (!n->drv->vm_state)
        return -ENOTSUP;
    gate_close(&n->gate);
    int ret = n->drv->vm_state(n, bytes, offset, NULL);
    gate_open(&n->gate);
    return ret;
}

/* Whole units are written: what surrounds the new bytes is read first. */
static int write_units(struct blk_node *n, uint64_t offset, const void *buf, size_t len)
{
    uint64_t start = round_down(offset, n->limits.unit);
    uint64_t stop = round_up(offset + len, n->limits.unit);
    _cleanup_free_ uint8_t *all = malloc(stop - start);
    struct iovec iov = { .iov_base = all, .iov_len = stop - start };

    if (!all)
        return -ENOMEM;
    int ret = start == offset && stop == offset + len
                  ? 0
                  : mapped_read(n, start, &iov, 1, iov.iov_len, 0);
    if (ret < 0)
        return ret;
    memcpy(all + (offset - start), buf, len);
    return mapped_write(n, start, &iov, 1, iov.iov_len, 0);
}

int blk_vm_state_write(struct blk_node *n, uint64_t pos, const void *buf, size_t len)
{
    uint64_t offset, end;

    if (n->read_only)
        return -EACCES;
    if (atomic_load(&n->failed))
        return -EIO;
    if (len == 0)
        return 0;
    if (!checked_add(pos, len, &end))
        return -EFBIG;
    int ret = vm_state_offset(n, end, &offset);
    if (ret < 0)
        return ret;
    node_event(n->edge[EDGE_FILE], EVENT_VMSTATE_SAVE);
    int ticket = gate_enter(&n->gate, false);
    ret = write_units(n, offset + pos, buf, len);
    gate_leave(&n->gate, ticket);
    return ret;
}

int blk_vm_state_read(struct blk_node *n, uint64_t pos, void *buf, size_t len)
{
    struct iovec iov = { .iov_base = buf, .iov_len = len };
    uint64_t offset, end;
    int ret = vm_state_offset(n, 0, &offset);

    if (ret < 0 || len == 0)
        return ret;
    if (!checked_add(pos, len, &end) || !checked_add(offset, end, &end) || end > INT64_MAX)
        return -EINVAL;
    node_event(n->edge[EDGE_FILE], EVENT_VMSTATE_LOAD);
    int ticket = gate_enter(&n->gate, false);
    ret = mapped_read(n, offset + pos, &iov, 1, len, 0);
    gate_leave(&n->gate, ticket);
    return ret;
}
