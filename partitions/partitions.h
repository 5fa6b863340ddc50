/* What a disk is divided into: MBR with logical partitions, and GPT.
 *
 * Tables are hostile input. What cannot be right is never used: a partition that leaves the disk is listed
 * with its fault and may not be opened; a chain of logical partitions ends where it leaves its place
 * or comes back to itself; a GPT counts only when its checksums do, the first copy or else the backup.
 *
 * Numbers are Linux's: 1 to 4 in an MBR, logical ones from 5 on; the entry's place in a GPT.
 */
#ifndef PARTITIONS_PARTITIONS_H
#define PARTITIONS_PARTITIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/block.h"

enum partition_scheme { PARTITION_NONE, PARTITION_MBR, PARTITION_GPT };

enum {
    PARTITION_GUID = 37,          /* with its NUL */
    PARTITION_LABEL = 36 * 3 + 1, /* 36 UTF-16 units at most, as UTF-8 */
    PARTITION_MOST = 1024,        /* so many are read */
};

struct partition {
    unsigned number;
    uint64_t start, size; /* bytes */
    uint8_t type;         /* MBR */
    bool active;          /* MBR: the one to start from */
    bool extended;        /* holds the logical ones and no data of its own */
    bool outside;         /* it leaves the disk: may not be opened */
    char type_guid[PARTITION_GUID],
        guid[PARTITION_GUID];    /* GPT; guid: MBR, too, made as Linux does */
    char label[PARTITION_LABEL]; /* GPT; printable UTF-8 */
};

struct partition_table {
    enum partition_scheme scheme;
    char id[PARTITION_GUID]; /* of the disk; "" when there is none */
    unsigned sector;         /* bytes that the table counts in */
    bool backup;             /* GPT: the first copy is damaged, this is the other one */
    size_t count;
    struct partition *at; /* in the order of their numbers */
    char *warnings;       /* lines about what is wrong; NULL: nothing */
};

/* A disk without a table is no error: PARTITION_NONE. -EUCLEAN: it has one, and no copy of it is whole. */
int partitions_read(struct blk_node *node, struct partition_table *out, struct error **err);
void partitions_free(struct partition_table *table);

/* The one with this number, if it may be opened; else NULL and an error that names disk and number. */
const struct partition *partitions_find(const struct partition_table *table, unsigned number,
                                        const char *disk, struct error **err);

/* "Linux filesystem"; "unknown" for what has no name here. */
const char *partition_type_name(const struct partition *p);
const char *partition_scheme_name(enum partition_scheme scheme); /* "none" "mbr" "gpt" */

/* What lies in a range of the disk, as libblkid sees it. Empty strings where it sees nothing. */
struct partition_content {
    char type[32]; /* "ext4" */
    char label[256], uuid[64];
};
int partition_probe(struct blk_node *node, uint64_t start, uint64_t size,
                    struct partition_content *out);

#endif
