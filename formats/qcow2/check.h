/* What the parts of check share.
 *
 *   check.c         the order of things
 *   check_refs.c    how often each cluster is referred to
 *   check_map.c     a map from numbers to numbers
 *   check_tables.c  counting: L1 and L2 tables
 *   check_extra.c   counting: snapshots, bitmaps, encryption, the refcount structure itself
 *   check_compare.c counted against stored, and correcting what is stored
 *   check_copied.c  the COPIED flags
 *   repair.c        a new refcount structure, and the marks in the header
 *
 * Invariants
 *  C1  Nothing is written unless `fix` asks for it; what is written never lies on other metadata
 *      (qcheck_write).
 *  C2  Each write alone leaves the image no worse than before: refcounts are corrected to what was
 *      counted, flags follow only when the refcounts are durable, marks are cleared last, and a new refcount
 *      structure is complete and durable before the header names it.
 *  C3  Work and memory do not grow with what an image claims but with what it holds: each L2 table is read
 *      at most twice however many entries point to it, holes are not read, the counters take memory
 *      where something is counted.
 *
 * Threads: jobs on the pool count and compare what is in order and touch nothing but the counters,
 * which are atomic, and their own job. Whatever is not in order they leave to the calling thread, so
 * that findings come in the image's order.
 */
#ifndef QCOW2_CHECK_H
#define QCOW2_CHECK_H

#include "base/pool.h"
#include "internal.h"

/* ---- check_map.c ------------------------------------------------------------------------------ */

/* Keys are not UINT64_MAX. */
struct qmap {
    struct qmap_pair {
        uint64_t key, value;
    } * at;
    size_t used, cap;
};
/* The value of the key, made 0 when it was not there; NULL: no memory. Valid until the next call. */
uint64_t *qmap_at(struct qmap *map, uint64_t key);
/* NULL when it is not there. */
const uint64_t *qmap_find(const struct qmap *map, uint64_t key);
void qmap_free(struct qmap *map);

/* ---- check_refs.c ----------------------------------------------------------------------------- */

/* A counter of one or two bytes for each cluster of the file. What does not fit into it is kept beside, in
 * `more`. The memory is taken by the page, where something is counted. */
struct qrefs {
    uint8_t *bytes;  /* width 1 */
    uint16_t *words; /* width 2 */
    uint8_t *seen;   /* per SEEN_CLUSTERS clusters: something was counted */
    uint64_t clusters;
    size_t mapped;
    pthread_mutex_t lock;
    struct qmap more; /* under lock */
    bool failed;      /* under lock: no memory for more */
};
enum { QREFS_SEEN_BITS = 16 };

int qrefs_init(struct qrefs *r, uint64_t clusters, uint32_t refcount_order);
void qrefs_free(struct qrefs *r);
/* One reference to each of these clusters. Any thread. */
void qrefs_add(struct qrefs *r, uint64_t cluster, uint64_t count);
void qrefs_add_times(struct qrefs *r, uint64_t cluster, uint64_t times);
/* Takes references back. */
void qrefs_sub(struct qrefs *r, uint64_t cluster);
uint64_t qrefs_get(const struct qrefs *r, uint64_t cluster);
/* The first cluster in [from, to) with a counter above 0; `to` when there is none. */
uint64_t qrefs_next(const struct qrefs *r, uint64_t from, uint64_t to);
/* The last cluster below `to` with a counter above 0, plus one; 0 when there is none. */
uint64_t qrefs_end(const struct qrefs *r, uint64_t to);

/* ---- check.c ---------------------------------------------------------------------------------- */

struct qcheck {
    struct qcow2 *q;
    struct blk_node *file;
    unsigned fix;
    struct blk_check *out;
    const struct blk_check_hooks *hooks;
    struct error **err;

    uint64_t file_len, clusters; /* of the file */
    uint32_t bits;               /* of a cluster's size */
    uint64_t size;               /* of a cluster */
    struct pool *pool;           /* NULL: not worth it */
    unsigned workers;

    struct qrefs refs;
    uint64_t *visited; /* bit per cluster: an L2 table that was read */
    size_t visited_bytes;
    struct qmap again; /* L2 tables that more entries point to: see check_tables.c */
    uint64_t *
        uncopied; /* bit per active L1 entry: its table has entries without COPIED, or wrong ones */
    uint8_t *table; /* one cluster and a bit, for the calling thread */

    bool rebuild;       /* the refcount structure cannot be mended in place */
    bool lost_snapshot; /* some snapshot's tables could not be read */
    bool shared;        /* some cluster has more than one reference */
    bool differ;        /* stored refcounts are not what was counted */
    uint64_t overflows; /* findings: references beyond what a refcount can tell, not mendable */
    uint64_t rebuild_findings; /* findings that a new refcount structure mends */
    uint64_t messages;
    uint64_t done, total;  /* progress */
    struct qmap protected; /* cluster to what lies there, kinds or'ed; only when fixing */
    uint64_t budget;       /* bytes of snapshots' and bitmaps' tables that the file can hold */
};

enum { QCHECK_MAX_MESSAGES = 20000 };
/* One finding; those above the limit are not told. */
void qcheck_say(struct qcheck *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* "Repairing ..." or "ERROR ...", and counts it as mended or as found. */
#define qcheck_finding(c, mend, fmt, ...)                              \
    ((mend) ? (c)->out->corruptions_fixed++ : (c)->out->corruptions++, \
     qcheck_say((c), "%s " fmt, (mend) ? "Repairing" : "ERROR", __VA_ARGS__))
bool qcheck_fixes(const struct qcheck *c, unsigned what);

/* Reads; what lies beyond the end of the file is zero. */
int qcheck_read(const struct qcheck *c, uint64_t offset, void *buf, size_t len);
/* Metadata that repairs of other metadata must not touch. L2 tables are not among them: two tables or a
 * table and data in one place are bad already, and mending their flags makes it no worse. */
enum qcheck_kind {
    QCHECK_L2 = 0,
    QCHECK_HEADER = 1 << 0,
    QCHECK_L1 = 1 << 1,
    QCHECK_REFTABLE = 1 << 2,
    QCHECK_REFBLOCK = 1 << 3,
    QCHECK_SNAPSHOTS = 1 << 4,
    QCHECK_INACTIVE_L1 = 1 << 5,
};
/* Writes metadata of a kind. -EIO and an error when other metadata lies there. */
int qcheck_write(struct qcheck *c, enum qcheck_kind kind, uint64_t offset, const void *buf,
                 size_t len);
int qcheck_flush(struct qcheck *c);
/* These host bytes hold metadata of a kind. */
int qcheck_protect(struct qcheck *c, enum qcheck_kind kind, uint64_t offset, uint64_t len);
/* Beyond the file's end by a cluster or more. */
static inline bool qcheck_outside(const struct qcheck *c, uint64_t offset, uint64_t len)
{
    return offset > c->file_len + c->size || offset + len >= c->file_len + c->size;
}
/* A reference to each cluster that these bytes touch. False, and an error found, when outside. */
bool qcheck_count(struct qcheck *c, uint64_t offset, uint64_t len);
/* Steps of work that are done; -ECANCELED. */
int qcheck_progress(struct qcheck *c, uint64_t steps);
/* [offset, offset + len) is a hole of the file: all zero, without reading it. */
bool qcheck_hole(const struct qcheck *c, uint64_t offset, uint64_t len);
/* Runs fn on as many workers as there are, the caller's thread included when there is no pool. */
void qcheck_run(struct qcheck *c, void (*fn)(void *), void *arg);

/* ---- the steps ---------------------------------------------------------------------------------- */

enum { QCHECK_MAX_WORKERS = 16 };

/* check_tables.c */
int qcheck_active(struct qcheck *c);
/* An L1 table of a snapshot, entries from its place in the file. */
int qcheck_inactive(struct qcheck *c, uint64_t l1_offset, uint64_t entries);
/* After all L1 tables: what several entries point to. */
int qcheck_again(struct qcheck *c);

/* check_extra.c */
int qcheck_snapshots(struct qcheck *c);
int qcheck_extensions(struct qcheck *c); /* bitmaps, encryption */
int qcheck_refcount_structure(struct qcheck *c);
/* Takes the references of the refcount structure back. */
void qcheck_uncount_refcounts(struct qcheck *c);

/* check_compare.c */
/* mend: corrects what `fix` allows and counts that as fixed; else only finds. */
int qcheck_compare(struct qcheck *c, bool mend);
/* The stored refcount of a cluster. */
struct qstored {
    uint8_t *block;
    uint64_t index; /* which block that is, plus one */
};
int qcheck_stored(struct qcheck *c, struct qstored *s, uint64_t cluster, uint64_t *out);

/* check_copied.c */
int qcheck_copied(struct qcheck *c);

/* repair.c. A new refcount structure; what is not mended by it is in `overflows`. */
int qcheck_rebuild(struct qcheck *c);
int qcheck_clear_marks(struct qcheck *c);

#endif
