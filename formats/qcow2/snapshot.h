/* Internal snapshots, the parts.
 *
 *   snapshot_table.c  the table: reading, writing, switching to a new one
 *   snapshot_tree.c   what an L1 table refers to: counting it once more, giving it up, the COPIED flags
 *   snapshot.c        create, apply, delete, look into one
 *
 * A snapshot is a copy of an L1 table. Whatever that table reaches is counted once more, and loses COPIED
 * in the active tables, so that the next write to it goes elsewhere (write.c, copy_l2_table).
 *
 * Invariants
 *  S1  What a snapshot is (its place in the table, the active L1 table, the size) changes with one write inside the
 *      header's first sector: it happened or it did not.
 *  S2  A snapshot's tables are never changed: while they are shared with the active disk, L1 has no COPIED flag and the
 *      L2 table is copied first.
 *  S3  Counts go up before that write and down after it. Between the counts and the COPIED flags that go with
 *      them the image is marked dirty (version 3): who opens it after a crash brings them into line.
 *
 * Threads: exclusive, no request is in flight.
 */
#ifndef QCOW2_SNAPSHOT_H
#define QCOW2_SNAPSHOT_H

#include "internal.h"

enum { SNAPSHOT_MAX_NAME = 255 }; /* that others show whole */

struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size; /* entries */
    char *id, *name;
    uint16_t id_len, name_len;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock; /* nanoseconds */
    uint64_t vm_state; /* bytes */
    uint64_t disk_size;
    uint64_t icount;  /* UINT64_MAX: not stated */
    uint8_t *unknown; /* extra data behind what we know, kept as it is */
    uint32_t unknown_len;
};

typedef VECTOR(struct qcow2_snapshot) qcow2_snapshot_list;

/* ---- snapshot_table.c ---- */

/* Reads the table with suspicion. The list is to be freed, also after a failure. */
int qcow2_snapshots_load(struct qcow2 *q, qcow2_snapshot_list *out, struct error **err);
void qcow2_snapshots_free(qcow2_snapshot_list *list);
void qcow2_snapshot_free(struct qcow2_snapshot *s);
/* Writes the list to a new place, of which `next`, the header to be, gets offset and number (0 after a failure),
 * and *length the bytes. Durable after the next commit. */
int qcow2_snapshots_write(struct qcow2 *q, const qcow2_snapshot_list *list,
                          struct qcow2_header *next, uint64_t *length);

/* ---- snapshot_tree.c ---- */

/* L1 entries in host order. */
struct qcow2_l1 {
    uint64_t *at;
    uint32_t size;
};
/* One reference more to all that it reaches; undone when it fails. -ERANGE: a refcount has no room. */
int qcow2_tree_keep(struct qcow2 *q, const struct qcow2_l1 *l1);
/* Takes that back at once: nothing on the disk named it. */
int qcow2_tree_unkeep(struct qcow2 *q, const struct qcow2_l1 *l1);
/* One reference less, for a table that nothing on the disk names any more. */
int qcow2_tree_drop(struct qcow2 *q, const struct qcow2_l1 *l1);
/* Sets the COPIED flags of the active tables to what the refcounts say, durably. shared: everything has
 * just been counted once more, so all flags go. */
int qcow2_tree_flags(struct qcow2 *q, bool shared);

#endif
