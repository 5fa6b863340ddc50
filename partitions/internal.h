/* What the readers of the two kinds of table share. */
#ifndef PARTITIONS_INTERNAL_H
#define PARTITIONS_INTERNAL_H

#include "partitions.h"

#include "base/strbuf.h"
#include "base/vector.h"

enum { MBR_SIZE = 512, MBR_ENTRIES = 446, MBR_ENTRY = 16, MBR_GPT = 0xee };

struct reader {
    struct blk_node *node;
    uint64_t size; /* of the disk */
    struct partition_table *table;
    VECTOR(struct partition) list;
    struct strbuf warnings;
};

/* One line about what is wrong. */
void reader_warn(struct reader *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* start and size in units of `unit` bytes, judged against the disk. A size of 0 adds nothing. */
int reader_add(struct reader *r, struct partition *p, uint64_t start, uint64_t size, unsigned unit);

/* mbr: the first 512 bytes. True: they say that the disk has a GPT. */
bool mbr_protects_gpt(const uint8_t *mbr);
/* The boot signature and four entries that make sense. */
bool mbr_valid(const uint8_t *mbr);
int mbr_read(struct reader *r, const uint8_t *mbr);

int gpt_read(struct reader *r, struct error **err);

#endif
