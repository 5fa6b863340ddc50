/* What the parts of the qcow2 driver ask of each other. qcow2.h has the structures and the rules. */
#ifndef QCOW2_INTERNAL_H
#define QCOW2_INTERNAL_H

#include "entry.h"
#include "qcow2.h"
#include "subcluster.h"

/* ---- qcow2.c ---------------------------------------------------------------------------------- */

/* A metadata structure turned out to be wrong while the image was in use: says so, sets the corrupt bit when
 * writing, refuses further writes. Returns -EIO. Any thread, lock held or not. */
int qcow2_corrupt(struct qcow2 *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Exclusive: reads header, L1 and refcount table anew, drops caches (after a repair). */
int qcow2_reload(struct qcow2 *q, struct error **err);

/* ---- map.c ------------------------------------------------------------------------------------ */

int qcow2_map_read(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                   struct mapping *out);

/* The node that guest data lies in. */
static inline struct blk_node *qcow2_data(const struct qcow2 *q)
{
    return q->data ? q->data : node_child(q->node, EDGE_DATA_FILE);
}
/* The place of guest offset `off`'s cluster can be one: aligned, in an external data file the guest's own. */
int qcow2_check_host(struct qcow2 *q, uint64_t off, uint64_t host);
/* Data is mapped there: cuts len to what the file holds of it. An error when it holds nothing: the file was cut, or
 * the table is wrong. */
int qcow2_clip_to_file(struct qcow2 *q, uint64_t off, uint64_t host, uint64_t *len);
int qcow2_map_compressed(struct qcow2 *q, uint64_t entry, uint64_t off, uint64_t len,
                         struct mapping *m);

/* Without locks: clusters were mapped without being written (preallocation=metadata), so that data may be a hole
 * of the file. Found out once; takes reading the refcounts. */
bool qcow2_reserved_ahead(struct qcow2 *q);

/* The slice that holds the L2 entry of `guest`, and the entry's index in it. The lock is held.
 * 0, TABLE_RELOCKED, -ENOENT (no L2 table), or an error. */
int qcow2_l2_slice(struct qcow2 *q, uint64_t guest, bool exclusive, bool nowait, uint8_t **slice,
                   uint32_t *index);
/* Entries from index on that one slice holds. */
static inline uint32_t slice_left(const struct qcow2 *q, uint32_t index)
{
    return q->slice_entries - index;
}

/* ---- write.c ---------------------------------------------------------------------------------- */

int qcow2_write_begin(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags,
                      uint64_t encoded_length, struct write_plan *out);
int qcow2_write_end(struct blk_node *n, struct write_plan *plan, int result);
int qcow2_zero_range(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
int qcow2_discard_range(struct blk_node *n, uint64_t off, uint64_t len);

/* What plan->priv holds. */
enum { PRIV_KIND, PRIV_HOST, PRIV_LENGTH };
enum new_kind {
    NEW_CLUSTERS, /* allocated for this plan */
    NEW_REUSED,   /* there already: kept by the entry until now, or in an external data file */
    NEW_ENCODED,  /* bytes among other compressed data */
};
void qcow2_plan_new(struct qcow2 *q, enum new_kind kind, uint64_t host, uint64_t clusters,
                    uint64_t off, uint64_t len, struct write_plan *p);
/* An external data file ends with the disk: what a unit has beyond that is not written. */
void qcow2_clip_plan(const struct qcow2 *q, struct write_plan *p);
/* Guest data must not land on metadata, whatever a damaged table says (Q5). */
int qcow2_check_place(struct qcow2 *q, uint64_t off, uint64_t host, uint64_t len);
/* Exclusive: the storage that an entry referred to, and will not any more. */
void qcow2_free_entry(struct qcow2 *q, uint64_t entry);

/* Exclusive: the slice for `guest`, of an L2 table that no snapshot shares: a shared one is copied, a missing one
 * made if `make` says so. As qcow2_l2_slice. */
int qcow2_l2_slice_own(struct qcow2 *q, uint64_t guest, bool make, uint8_t **slice,
                       uint32_t *index);

/* Without locks. Changes entries only. */
int qcow2_unmap(struct qcow2 *q, uint64_t off, uint64_t len, enum unmap_mode mode, bool backing);

/* ---- external.c: guest data in a file of its own. Without locks. ---------------------------------- */

int qcow2_external_open(struct qcow2 *q, struct error **err);
int qcow2_external_zero(struct qcow2 *q, uint64_t off, uint64_t len, unsigned flags);
int qcow2_external_discard(struct qcow2 *q, uint64_t off, uint64_t len);
/* Exclusive: before the header says so, and after. */
int qcow2_external_grow(struct qcow2 *q, uint64_t size, enum blk_prealloc prealloc,
                        struct error **err);
int qcow2_external_shrink(struct qcow2 *q, uint64_t size, struct error **err);

/* Under a reservation or exclusive: whole clusters become unallocated, whatever then shows from below. */
int qcow2_forget_range(struct qcow2 *q, uint64_t off, uint64_t len);

/* ---- refcount.c: exclusive, all may answer TABLE_RELOCKED, with nothing changed then ------------- */

int qcow2_ref_get(struct qcow2 *q, uint64_t cluster, uint64_t *value);
/* The least and the largest refcount in [cluster, cluster + count), all within one refcount slice. */
int qcow2_ref_range(struct qcow2 *q, uint64_t cluster, uint64_t count, uint64_t *min,
                    uint64_t *max);
/* Adds delta (+1, -1) to each cluster in [cluster, cluster + count), all within one refcount slice. */
int qcow2_ref_add(struct qcow2 *q, uint64_t cluster, uint64_t count, int delta);
/* Clusters from `cluster` on that its refcount slice counts. */
uint64_t qcow2_ref_slice_left(const struct qcow2 *q, uint64_t cluster);
/* The first run of free clusters at or after `from` in its slice: *count 0 when there is none. */
int qcow2_ref_find_free(struct qcow2 *q, uint64_t from, uint64_t want, uint64_t *cluster,
                        uint64_t *count);
/* Makes sure that a refcount block for this cluster exists; may take clusters for it. 1: it had to be
 * made (anything may have moved), 0: it was there. */
int qcow2_ref_ensure_block(struct qcow2 *q, uint64_t cluster);
/* The same for [first, first + count), which begins at q->fresh: new blocks lie right behind it. 1: the table
 * had to grow (start over), 0: done. */
int qcow2_ref_cover(struct qcow2 *q, uint64_t first, uint64_t count);

/* ---- alloc.c: exclusive, may answer TABLE_RELOCKED with nothing changed --------------------------- */

/* Up to `want` clusters in one run, with refcount 1. *fresh: never used, reads as zeroes. */
int qcow2_alloc(struct qcow2 *q, uint64_t want, uint64_t *host, uint64_t *got, bool *fresh);
/* Exactly `count` clusters in one run, for tables. */
int qcow2_alloc_exact(struct qcow2 *q, uint64_t count, uint64_t *host);
/* Without locks: a table of whole clusters goes to a new place, 0 after a failure. Durable, counts first,
 * after the next qcow2_commit. */
int qcow2_write_new_table(struct qcow2 *q, const void *table, uint64_t bytes, uint64_t *host);
/* Room for `len` bytes of compressed data, packed behind the last. */
int qcow2_alloc_bytes(struct qcow2 *q, uint64_t len, uint64_t *host);
/* Takes one reference from each cluster that [host, host + len) touches, now: for what was never
 * published, or is out of quarantine. What cannot be taken back leaks. */
void qcow2_release(struct qcow2 *q, uint64_t host, uint64_t len);

/* ---- commit.c ---------------------------------------------------------------------------------- */

/* Exclusive: these host bytes lost a reference; they are released once that is durable (Q4). */
int qcow2_free_later(struct qcow2 *q, uint64_t host, uint64_t len);
/* The same for the cluster of an L2 table, which the active disk may go on using. */
int qcow2_free_table_later(struct qcow2 *q, uint64_t host);
/* Without locks: writes metadata in order. durable: and makes all so far acknowledged durable. */
int qcow2_commit(struct qcow2 *q, bool durable);
/* Without locks and with no request in flight: commits, and releases all that is in quarantine. */
int qcow2_settle(struct qcow2 *q);
/* Without locks, before metadata is changed: commits when too much is pending. */
int qcow2_commit_if_pressed(struct qcow2 *q);
/* Exclusive: L1 entry i changed in memory. */
void qcow2_l1_touch(struct qcow2 *q, uint32_t i);

/* ---- overlap.c: exclusive ------------------------------------------------------------------------- */

struct qcow2_overlap;
#define OVERLAP_L2 "an L2 table"
/* From the tables in memory. -EEXIST: two of them share a cluster, *clash names one. */
int qcow2_overlap_build(struct qcow2 *q, const char **clash);
void qcow2_overlap_free(struct qcow2 *q);
int qcow2_overlap_add(struct qcow2 *q, uint64_t host, uint64_t len, const char *what);
void qcow2_overlap_remove(struct qcow2 *q, uint64_t host, uint64_t len);
/* The name of the metadata that lies in [host, host + len), NULL for none. Also with the lock shared. */
const char *qcow2_overlap_find(const struct qcow2 *q, uint64_t host, uint64_t len);

/* ---- snapshot.c: see snapshot.h, too --------------------------------------------------------------- */

/* Walks the snapshot table and checks it; list (may be NULL) gets an object for each. */
int qcow2_snapshots_read(struct qcow2 *q, json_t *list, struct error **err);

int qcow2_snapshot_create(struct blk_node *n, const struct blk_snapshot *what, struct error **err);
int qcow2_snapshot_apply(struct blk_node *n, const char *id, const char *name, struct error **err);
int qcow2_snapshot_delete(struct blk_node *n, const char *id, const char *name, struct error **err);
int qcow2_snapshot_view(struct blk_node *n, const char *id, const char *name, struct error **err);

/* Where a machine's state lies; with bytes > 0 room is made for so many. */
int qcow2_vm_state(struct blk_node *n, uint64_t bytes, uint64_t *offset, struct error **err);

/* ---- resize.c -------------------------------------------------------------------------------------- */

int qcow2_resize(struct blk_node *n, uint64_t size, enum blk_prealloc prealloc, struct error **err);
/* Exclusive: the L1 table reaches to the guest offset `offset` + `bytes`. */
int qcow2_grow_l1_for(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct error **err);
/* No request in flight: maps [off, end) to storage; what is mapped already stays. The rest reads as zeroes: new
 * clusters are fresh ones, and those that are not are zeroed. */
int qcow2_store_zeroes(struct qcow2 *q, uint64_t off, uint64_t end);
/* No request in flight: gives back the L2 tables behind a disk of this size; what they map must be gone. */
int qcow2_drop_tables(struct qcow2 *q, uint64_t size);

/* ---- empty.c --------------------------------------------------------------------------------------- */

int qcow2_make_empty(struct blk_node *n, struct error **err);

/* ---- header_write.c: no request in flight ------------------------------------------------------------ */

/* What a rewritten header says beside the numbers. NULL: it says nothing of the kind. */
struct qcow2_strings {
    const char *backing, *backing_format;
    const char *data_file; /* NULL: as it is */
};

/* Puts `h` (but for where the backing name is) and the strings into the header's cluster, keeps every
 * extension it does not know, makes it durable and takes it into q->header. All that is written in one write. */
int qcow2_header_rewrite(struct qcow2 *q, const struct qcow2_header *h,
                         const struct qcow2_strings *s, struct error **err);
int qcow2_change_backing(struct blk_node *n, const char *filename, const char *format,
                         struct error **err);

/* ---- amend.c, amend_zero.c, amend_refs.c: no request in flight ----------------------------------------- */

struct qcow2_amend_options {
    int compat; /* 2 or 3 */
    uint64_t refcount_bits, size;
    char *backing_file, *backing_fmt, *data_file;
    bool lazy_refcounts, data_file_raw;
    bool compat_given, refcount_bits_given, size_given, lazy_refcounts_given, data_file_raw_given;
};
extern const struct opt_def qcow2_amend_table[];
int qcow2_amend(struct blk_node *n, const void *options, uint64_t *size, blk_progress_fn *progress,
                void *opaque, struct error **err);

/* Counts steps for the user. */
struct qcow2_progress {
    blk_progress_fn *fn;
    void *opaque;
    uint64_t done, total;
};
/* 0 or -ECANCELED. */
int qcow2_step(struct qcow2_progress *p, uint64_t steps);

/* Zero clusters, which version 2 does not have, become data, or unallocated where nothing lies below. */
int qcow2_expand_zeroes(struct qcow2 *q, struct qcow2_progress *p, struct error **err);
uint64_t qcow2_expand_steps(const struct qcow2 *q);
/* New refcount structures with numbers of 1 << order bits. */
int qcow2_change_refcounts(struct qcow2 *q, uint32_t order, struct qcow2_progress *p,
                           struct error **err);
uint64_t qcow2_refcount_steps(const struct qcow2 *q);

#endif
