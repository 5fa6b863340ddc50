/* Pipes: a raw disk that comes from a descriptor, or goes to one, in order and without end known.
 */
#ifndef IMG_STREAM_H
#define IMG_STREAM_H

#include <stdbool.h>
#include <stdint.h>

struct blk_node;
struct concat;

struct stream {
    struct blk_node *node;        /* in, copy: the image that is written */
    const struct concat *sources; /* out, copy: the images that are read */
    uint64_t offset;              /* in: of the node; out: of the sources */
    uint64_t length;              /* at most; UINT64_MAX: all that comes */
    uint64_t rate_limit;          /* bytes per second, 0: none */
    unsigned workers;             /* 0: one per core */
    bool grow;                    /* in: the node is resized to what comes */
    bool keep;                    /* in, with grow: but never made shorter */
    bool compress;                /* in */
    bool skip_zeroes;             /* in: runs of zeroes need not be written */
    bool detect_zeroes;           /* in: look for them */
    uint64_t moved;               /* bytes, for the caller */
};

/* 0, or -errno after a complaint; -ECANCELED without one when a signal came. */
int stream_in(struct stream *s, int fd);
int stream_out(struct stream *s, int fd);
/* All sources into the node. Unlike blk_copy this minds no boundary between them. */
int stream_copy(struct stream *s);
/* From one descriptor to the other, as it is. 0 or negative after a complaint, -ECANCELED without one. */
int stream_save(int in, int out);
/* From one descriptor to the other, made up to whole sectors; the node is not used. */
int stream_through(struct stream *s, int in, int out);

#endif
