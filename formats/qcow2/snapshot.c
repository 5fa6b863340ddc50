/* Internal snapshots: create, apply, delete, look into one. snapshot.h has the rules. */
#include "snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"

static int failed(struct qcow2 *q, int ret, const char *what, struct error **err)
{
    return error_set(err, -ret, "%s: could not %s: %s", blk_filename(q->node), what,
                     ret == -ERANGE ? "a refcount has no room for one more reference"
                                    : strerror(-ret));
}

/* ---- the mark (S3) ---------------------------------------------------------------------------------------- */

static int mark_dirty(struct qcow2 *q, bool dirty)
{
    uint64_t old = q->header.incompatible;

    if (q->version < 3 || atomic_load(&q->corrupt_seen))
        return 0;
    if (dirty)
        q->header.incompatible |= QCOW2_INCOMPAT_DIRTY;
    else
        q->header.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
    int ret = qcow2_header_update(q, HDR_INCOMPATIBLE, HDR_INCOMPATIBLE + 8);
    if (ret == 0)
        ret = blk_flush(q->file);
    if (ret < 0)
        q->header.incompatible = old;
    return ret;
}

static int begin(struct qcow2 *q)
{
    int ret = qcow2_settle(q);
    return ret == 0 ? mark_dirty(q, true) : ret;
}

/* All counts and flags agree: nothing is left to bring into line. */
static int end(struct qcow2 *q, int ret)
{
    if (ret == 0)
        ret = qcow2_settle(q);
    {
        /* Tables that went away may come back as something else. */
        WRLOCK_SCOPE(&q->lock);
        if (ret == 0)
            table_cache_clear(q->l2);
    }
    return ret == 0 ? mark_dirty(q, false) : ret;
}

/* ---- tables ------------------------------------------------------------------------------------------------ */

/* A copy of these entries, none with COPIED, at a new place; 0 when there are none. */
static int write_l1(struct qcow2 *q, const uint64_t *l1, uint32_t entries, uint64_t *host)
{
    uint64_t bytes = cluster_up(q, (uint64_t)entries * 8);

    *host = 0;
    if (entries == 0)
        return 0;
    _cleanup_free_ uint8_t *disk = calloc(1, bytes);
    if (!disk)
        return -ENOMEM;
    for (uint32_t i = 0; i < entries; i++)
        store_be64(disk + (size_t)i * 8, l1[i] & ~QE_COPIED);
    return qcow2_write_new_table(q, disk, bytes, host);
}

/* A table that the header, or the snapshot table, named until now. */
static int free_old(struct qcow2 *q, uint64_t host, uint64_t len)
{
    if (!host || !len)
        return 0;
    WRLOCK_SCOPE(&q->lock);
    qcow2_overlap_remove(q, host, len);
    return qcow2_free_later(q, host, cluster_up(q, len));
}

/* One that was never named. */
static void take_back(struct qcow2 *q, uint64_t host, uint64_t len)
{
    if (!host || !len)
        return;
    WRLOCK_SCOPE(&q->lock);
    qcow2_release(q, host, cluster_up(q, len));
}

static int read_l1(struct qcow2 *q, const struct qcow2_snapshot *s, struct qcow2_l1 *out)
{
    out->size = s->l1_size;
    out->at = calloc(s->l1_size ? s->l1_size : 1, 8);
    if (!out->at)
        return -ENOMEM;
    int ret = s->l1_size ? blk_read(q->file, s->l1_offset, out->at, (size_t)s->l1_size * 8, 0) : 0;
    for (uint32_t i = 0; i < s->l1_size && ret == 0; i++)
        out->at[i] = load_be64(&out->at[i]);
    return ret;
}

static int rebuild_overlap(struct qcow2 *q)
{
    const char *clash;

    WRLOCK_SCOPE(&q->lock);
    int ret = qcow2_overlap_build(q, &clash);
    return ret == -EEXIST ? qcow2_corrupt(q, "%s overlaps other metadata", clash) : ret;
}

/* ---- finding ------------------------------------------------------------------------------------------------- */

static bool is(const char *text, uint16_t len, const char *wanted)
{
    return !wanted || (strlen(wanted) == len && memcmp(text, wanted, len) == 0);
}

/* The first one with this id and this name (NULL: any); its number, or -ENOENT. */
static int64_t find(const qcow2_snapshot_list *list, const char *id, const char *name)
{
    for (size_t i = 0; i < list->len; i++)
        if (is(list->at[i].id, list->at[i].id_len, id) &&
            is(list->at[i].name, list->at[i].name_len, name))
            return (int64_t)i;
    return -ENOENT;
}

static int64_t load_and_find(struct qcow2 *q, qcow2_snapshot_list *list, const char *id,
                             const char *name, struct error **err)
{
    int ret = qcow2_snapshots_load(q, list, err);

    if (ret < 0)
        return ret;
    int64_t i = find(list, id, name);
    if (i < 0)
        error_set(err, ENOENT, "%s: has no snapshot with the %s '%s'", blk_filename(q->node),
                  id ? "id" : "name", id ? id : name);
    return i;
}

static int refuse(struct qcow2 *q, struct error **err)
{
    if (q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return error_set(err, ENOTSUP,
                         "%s: an image with an external data file cannot have snapshots",
                         blk_filename(q->node));
    return 0;
}

/* ---- create -------------------------------------------------------------------------------------------------- */

static uint64_t highest_id(const qcow2_snapshot_list *list)
{
    uint64_t highest = 0;

    for (size_t i = 0; i < list->len; i++) {
        char *rest;
        errno = 0;
        uint64_t id = strtoull(list->at[i].id, &rest, 10);
        if (errno == 0 && *rest == '\0' && id < UINT64_MAX)
            highest = MAX(highest, id);
    }
    return highest;
}

/* A new row for the list, which owns it then. */
static int add_row(struct qcow2 *q, qcow2_snapshot_list *list, const struct blk_snapshot *what,
                   uint64_t l1_host)
{
    struct qcow2_snapshot s = {
        .l1_offset = l1_host,
        .l1_size = q->header.l1_size,
        .date_sec = what->date_sec,
        .date_nsec = what->date_nsec,
        .vm_clock = what->vm_clock_nsec,
        .vm_state = what->vm_state_size,
        .disk_size = q->header.size,
        .icount = what->icount,
        .name = strdup(what->name),
        .name_len = (uint16_t)strlen(what->name),
    };
    if (asprintf(&s.id, "%" PRIu64, highest_id(list) + 1) < 0)
        s.id = NULL;
    s.id_len = s.id ? (uint16_t)strlen(s.id) : 0;
    if (!s.id || !s.name || vector_push(list, s) < 0) {
        qcow2_snapshot_free(&s);
        return -ENOMEM;
    }
    return 0;
}

/* Counts and flags; undone where they fail. */
static int share_all(struct qcow2 *q)
{
    struct qcow2_l1 active = { q->l1, q->header.l1_size };
    int ret = qcow2_tree_keep(q, &active);

    if (ret < 0)
        return ret;
    ret = qcow2_tree_flags(q, true);
    if (ret < 0 && (qcow2_tree_unkeep(q, &active) < 0 || qcow2_tree_flags(q, false) < 0))
        node_set_failed(q->node);
    return ret;
}

/* What a machine's state took of the active disk, now that the snapshot has it. */
static int forget_vm_state(struct qcow2 *q, uint64_t bytes)
{
    uint64_t from = vm_state_offset(q);
    return bytes ? qcow2_discard_range(q->node, from, cluster_up(q, bytes)) : 0;
}

/* S1: sizes, L1 and snapshots change together. */
static int put_in_force(struct qcow2 *q, const struct qcow2_header *next)
{
    return qcow2_header_switch(q, next, HDR_SIZE, HDR_SNAPSHOTS_OFFSET + 8);
}

static int create(struct qcow2 *q, qcow2_snapshot_list *list, const struct blk_snapshot *what)
{
    struct qcow2_header next = q->header;
    uint64_t old_table = next.snapshots_offset, old_len = q->snapshots_len, host = 0, table_len = 0;
    int ret = write_l1(q, q->l1, q->header.l1_size, &host);

    if (ret == 0)
        ret = add_row(q, list, what, host);
    if (ret == 0)
        ret = qcow2_snapshots_write(q, list, &next, &table_len);
    if (ret == 0)
        ret = share_all(q);
    if (ret < 0) {
        take_back(q, host, (uint64_t)q->header.l1_size * 8);
        take_back(q, next.snapshots_offset, table_len);
        (void)end(q, 0);
        return ret;
    }
    ret = put_in_force(q, &next);
    if (ret < 0)
        return ret;
    q->snapshots_len = table_len;
    ret = free_old(q, old_table, old_len);
    if (ret == 0)
        ret = forget_vm_state(q, what->vm_state_size);
    return end(q, ret);
}

int qcow2_snapshot_create(struct blk_node *n, const struct blk_snapshot *what, struct error **err)
{
    struct qcow2 *q = node_state(n);
    qcow2_snapshot_list list = VECTOR_INIT;
    int ret = refuse(q, err);

    if (ret < 0)
        return ret;
    if (strlen(what->name) > SNAPSHOT_MAX_NAME)
        return error_set(err, EINVAL, "the snapshot's name has %zu bytes, the limit is %d",
                         strlen(what->name), SNAPSHOT_MAX_NAME);
    ret = qcow2_snapshots_load(q, &list, err);
    if (ret == 0 && list.len >= QCOW2_MAX_SNAPSHOTS)
        ret = error_set(err, EFBIG, "%s: has %zu snapshots, which is the limit", blk_filename(n),
                        list.len);
    if (ret == 0) {
        ret = begin(q);
        if (ret == 0)
            ret = create(q, &list, what);
        if (ret < 0)
            failed(q, ret, "make the snapshot", err);
    }
    qcow2_snapshots_free(&list);
    return ret;
}

/* ---- delete -------------------------------------------------------------------------------------------------- */

static int delete_row(struct qcow2 *q, qcow2_snapshot_list *list, size_t i)
{
    struct qcow2_header next = q->header;
    uint64_t old_table = next.snapshots_offset, old_len = q->snapshots_len, table_len = 0;
    struct qcow2_snapshot s = list->at[i];
    struct qcow2_l1 l1 = { 0 };
    int ret = read_l1(q, &s, &l1);

    vector_remove(list, i);
    if (ret == 0)
        ret = qcow2_snapshots_write(q, list, &next, &table_len);
    if (ret == 0)
        ret = qcow2_commit(q, true);
    if (ret < 0) {
        take_back(q, next.snapshots_offset, table_len);
        (void)end(q, 0);
    } else {
        ret = put_in_force(q, &next);
        if (ret == 0) {
            q->snapshots_len = table_len;
            ret = free_old(q, old_table, old_len);
        }
        if (ret == 0)
            ret = qcow2_tree_drop(q, &l1);
        if (ret == 0)
            ret = free_old(q, s.l1_offset, (uint64_t)s.l1_size * 8);
        if (ret == 0)
            ret = qcow2_settle(q);
        if (ret == 0)
            ret = qcow2_tree_flags(q, false);
        ret = end(q, ret);
    }
    free(l1.at);
    qcow2_snapshot_free(&s);
    return ret;
}

int qcow2_snapshot_delete(struct blk_node *n, const char *id, const char *name, struct error **err)
{
    struct qcow2 *q = node_state(n);
    qcow2_snapshot_list list = VECTOR_INIT;
    int64_t i = load_and_find(q, &list, id, name, err);
    int ret = i < 0 ? (int)i : 0;

    if (ret == 0) {
        ret = begin(q);
        if (ret == 0)
            ret = delete_row(q, &list, (size_t)i);
        if (ret < 0)
            failed(q, ret, "remove the snapshot", err);
    }
    qcow2_snapshots_free(&list);
    return ret;
}

/* ---- apply --------------------------------------------------------------------------------------------------- */

/* A snapshot's L1 table with at least the entries that its disk needs; what it lacks is unallocated. */
static int load_l1(struct qcow2 *q, const struct qcow2_snapshot *s, struct qcow2_l1 *l1,
                   struct error **err)
{
    uint64_t need = l1_entries_for(q->l1_shift, s->disk_size);

    if (s->disk_size > INT64_MAX || need * 8 > QCOW2_MAX_L1_BYTES)
        return error_set(err, EFBIG,
                         "%s: the disk of snapshot '%s' has %" PRIu64
                         " bytes, which is above the limit",
                         blk_filename(q->node), s->id, s->disk_size);
    if (s->l1_size < need)
        return error_set(err, EINVAL,
                         "%s: the L1 table of snapshot '%s' has %u entries, %" PRIu64
                         " are needed for its disk of %" PRIu64 " bytes",
                         blk_filename(q->node), s->id, s->l1_size, need, s->disk_size);
    int ret = read_l1(q, s, l1);
    return ret < 0 ? failed(q, ret, "read the snapshot's L1 table", err) : 0;
}

/* The active disk is `l1` from now on, which lies at `host`; what it was is given up. Owns l1. */
static int replace_active(struct qcow2 *q, struct qcow2_l1 *l1, uint64_t host, uint64_t disk_size)
{
    struct qcow2_header next = q->header;
    struct qcow2_l1 old = { q->l1, q->header.l1_size };
    uint64_t old_host = q->header.l1_offset;

    next.l1_offset = host;
    next.l1_size = l1->size;
    next.size = disk_size;
    int ret = put_in_force(q, &next);
    if (ret < 0)
        return ret;
    {
        WRLOCK_SCOPE(&q->lock);
        for (uint32_t i = 0; i < l1->size; i++)
            l1->at[i] &= ~QE_COPIED;
        q->l1 = l1->at;
        l1->at = NULL;
    }
    node_set_size(q->node, disk_size);
    ret = rebuild_overlap(q);
    if (ret == 0)
        ret = qcow2_tree_drop(q, &old);
    if (ret == 0)
        ret = free_old(q, old_host, (uint64_t)old.size * 8);
    if (ret == 0)
        ret = qcow2_settle(q);
    free(old.at);
    return ret == 0 ? qcow2_tree_flags(q, false) : ret;
}

static int apply(struct qcow2 *q, const struct qcow2_snapshot *s, struct qcow2_l1 *l1)
{
    uint64_t host = 0;
    int ret = write_l1(q, l1->at, l1->size, &host);

    if (ret == 0)
        ret = qcow2_tree_keep(q, l1);
    if (ret == 0) {
        ret = qcow2_commit(q, true);
        if (ret < 0)
            (void)qcow2_tree_unkeep(q, l1);
    }
    if (ret < 0) {
        take_back(q, host, (uint64_t)l1->size * 8);
        (void)end(q, 0);
        return ret;
    }
    return end(q, replace_active(q, l1, host, s->disk_size));
}

int qcow2_snapshot_apply(struct blk_node *n, const char *id, const char *name, struct error **err)
{
    struct qcow2 *q = node_state(n);
    qcow2_snapshot_list list = VECTOR_INIT;
    struct qcow2_l1 l1 = { 0 };
    int64_t i = load_and_find(q, &list, id, name, err);
    int ret = i < 0 ? (int)i : load_l1(q, &list.at[i], &l1, err);

    if (ret == 0) {
        ret = begin(q);
        if (ret == 0)
            ret = apply(q, &list.at[i], &l1);
        if (ret < 0)
            failed(q, ret, "apply the snapshot", err);
    }
    free(l1.at);
    qcow2_snapshots_free(&list);
    return ret;
}

/* ---- a machine's state ---------------------------------------------------------------------------------------- */

int qcow2_vm_state(struct blk_node *n, uint64_t bytes, uint64_t *offset, struct error **err)
{
    struct qcow2 *q = node_state(n);

    *offset = vm_state_offset(q);
    if (bytes == 0)
        return 0;
    if (q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return refuse(q, err);
    return qcow2_grow_l1_for(q, *offset, bytes, err);
}

/* ---- look into one -------------------------------------------------------------------------------------------- */

int qcow2_snapshot_view(struct blk_node *n, const char *id, const char *name, struct error **err)
{
    struct qcow2 *q = node_state(n);
    qcow2_snapshot_list list = VECTOR_INIT;
    struct qcow2_l1 l1 = { 0 };
    int64_t i = load_and_find(q, &list, id, name, err);
    int ret = i < 0 ? (int)i : load_l1(q, &list.at[i], &l1, err);

    if (ret == 0) {
        WRLOCK_SCOPE(&q->lock);
        free(q->l1);
        q->l1 = l1.at;
        q->viewing = true;
        q->header.l1_size = l1.size;
        q->header.size = list.at[i].disk_size;
        node_set_size(n, q->header.size);
    }
    qcow2_snapshots_free(&list);
    return ret;
}
