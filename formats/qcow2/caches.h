/* The metadata caches: how large they are, and giving back what is not used. */
#ifndef QCOW2_CACHES_H
#define QCOW2_CACHES_H

#include "qcow2.h"

struct qcow2_options {
    uint64_t l2_cache_size, refcount_cache_size, cache_size, entry_size, clean_interval;
    bool lazy_refcounts, pass_request, pass_snapshot, pass_other, pass_given;
    json_t *overlap_check;
};

extern const struct opt_def qcow2_options[];

/* 0 or -ENOMEM; qcow2_caches_free is right either way. */
int qcow2_caches_make(struct qcow2 *q, const struct qcow2_options *o);
void qcow2_caches_free(struct qcow2 *q);

#endif
