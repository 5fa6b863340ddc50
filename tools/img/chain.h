/* A backing chain, opened layer by layer, so that it can be described where it is broken, too. */
#ifndef IMG_CHAIN_H
#define IMG_CHAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/block.h"

enum { CHAIN_MAX = 1024 };

struct layer {
    char *name;                   /* as one opens it */
    char *stated, *stated_format; /* what the layer above says; NULL: nothing, or the top */
    struct blk_node *node;        /* without its backing file; NULL: not opened */
    struct blk_info info;
    char *fault;                       /* why it could not be opened or looked at; NULL: it could */
    uint64_t data, zero;               /* bytes it holds of its own */
    uint64_t hidden_data, hidden_zero; /* of these, what upper layers hide */
    bool checked;
    struct blk_check check;
};

struct chain {
    struct layer *layer;
    size_t n;
};

struct chain_how {
    const char *format;
    bool image_opts, share;
    bool repair; /* open what check is to look at, however damaged */
};

/* Opens all layers it can; the last one has a fault when the chain does not end well. False after a
 * complaint: not even the top. */
bool chain_open(struct chain *c, const struct chain_how *how, const char *name);
void chain_close(struct chain *c);

/* Sums up what each layer holds. 0, negative after a complaint. */
int chain_measure(struct chain *c);

/* ---- chain_move.c ---------------------------------------------------------------------------- */

struct chain_move {
    const char *rule; /* OLD=NEW, or a folder */
    const char *format;
    bool image_opts, dry, quiet;
};

/* Rewrites the backing files' names. The exit code. */
int chain_relocate(const struct chain_move *m, const char *name);

#endif
