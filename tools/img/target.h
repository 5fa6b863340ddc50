/* The file that convert and dd make: it appears complete under its name, or not at all.
 *
 * A new file is made out of sight, as a file without a name where the system has that, else
 * under ".NAME.platter-PID-RANDOM" in the same directory, and takes the name once it is complete
 * and on the disk. So it survives neither a failure nor a signal nor a crash half done, and what
 * lay under the name before stays whole until then.
 *
 * A target of several files is made in a hidden folder of that name (target_folder.h).
 *
 * States: begun -> published | abandoned. Devices, pipes and names with a protocol are written in
 * place.
 */
#ifndef IMG_TARGET_H
#define IMG_TARGET_H

#include <stdbool.h>
#include <sys/types.h>

struct blk_node;

struct target {
    const char *name; /* as the user wrote it */
    char *work;       /* where it is being made; give this to the block layer */
    char *path;       /* the name to publish it under, symbolic links resolved; NULL: in place */
    char *hidden;     /* the temporary name, of the file or of its folder; NULL: none */
    bool folder;      /* the file lies in `hidden`, with what belongs to it */
    int fd;           /* the file that is being made; -1: in place */
    struct blk_node *holder; /* keeps others off the file that is being replaced */
};
#define TARGET_INIT \
    {               \
        .fd = -1    \
    }

enum target_kind {
    TARGET_NAMELESS, /* may be a file without a name */
    TARGET_BESIDE,   /* has a name in its own directory: it refers to others there */
    TARGET_FOLDER,   /* may become several files: each of them appears as the first does */
};
/* False after a complaint. */
bool target_begin(struct target *t, const char *name, enum target_kind kind);

/* Gives the finished file its name; durable: on the disk before. False after a complaint. */
bool target_publish(struct target *t, bool durable);

/* Frees all; what was not published is removed. */
void target_end(struct target *t);

/* A plain name: no "nbd:" or "json:" in front. */
bool name_has_protocol(const char *name);

#endif
