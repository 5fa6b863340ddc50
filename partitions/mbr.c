/* The MBR: four entries, one of which may hold a chain of logical partitions. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"

#include "internal.h"

enum {
    AT_DISK_ID = 440,
    AT_SIGNATURE = 510,
    SECTOR = 512,
    FIRST_LOGICAL = 5,
    MOST_LOGICAL = 256,
};

struct entry {
    uint8_t flags, type;
    uint32_t start, count; /* sectors */
};

static struct entry entry_at(const uint8_t *sector, unsigned i)
{
    const uint8_t *p = sector + MBR_ENTRIES + i * MBR_ENTRY;
    return (struct entry){ p[0], p[4], load_le32(p + 8), load_le32(p + 12) };
}

static bool is_extended(uint8_t type)
{
    return type == 0x05 || type == 0x0f || type == 0x85;
}

bool mbr_valid(const uint8_t *mbr)
{
    if (mbr[AT_SIGNATURE] != 0x55 || mbr[AT_SIGNATURE + 1] != 0xaa)
        return false;
    /* Boot sectors of file systems bear the signature as well, with code where the entries are. */
    for (unsigned i = 0; i < 4; i++) {
        uint8_t flags = entry_at(mbr, i).flags;
        if (flags != 0 && flags != 0x80)
            return false;
    }
    return true;
}

bool mbr_protects_gpt(const uint8_t *mbr)
{
    if (!mbr_valid(mbr))
        return false;
    for (unsigned i = 0; i < 4; i++) {
        if (entry_at(mbr, i).type == MBR_GPT)
            return true;
    }
    return false;
}

static int add(struct reader *r, const struct entry *e, unsigned number, uint64_t start)
{
    struct partition p = {
        .number = number,
        .type = e->type,
        .active = e->flags == 0x80,
        .extended = is_extended(e->type) && number < FIRST_LOGICAL,
    };
    if (e->type == 0)
        return 0;
    if (r->table->id[0])
        snprintf(p.guid, sizeof(p.guid), "%.8s-%02x", r->table->id, number & 0xffff);
    return reader_add(r, &p, start, e->count, SECTOR);
}

/* One sector of the chain. *next: where the following one is, 0: this was the last. */
static int read_link(struct reader *r, uint64_t at, uint64_t base, unsigned *number, uint64_t *next)
{
    uint8_t sector[SECTOR];

    int ret = blk_read(r->node, at * SECTOR, sector, sizeof(sector), 0);
    *next = 0;
    if (ret < 0)
        return ret;
    if (!mbr_valid(sector)) {
        reader_warn(
            r, "the chain of logical partitions ends at sector %" PRIu64 ", which is no part of it",
            at);
        return 0;
    }
    struct entry e = entry_at(sector, 0), link = entry_at(sector, 1);
    if (e.type != 0 && e.count > 0) {
        ret = add(r, &e, *number, at + e.start);
        *number += 1;
    }
    if (ret == 0 && is_extended(link.type) && link.count > 0)
        *next = base + link.start;
    return ret;
}

/* A chain may lead anywhere: it must stay inside [base, base + count) and go forward to be followed. Tools that
 * write links backwards exist, so that places are remembered rather than ordered. */
static int read_chain(struct reader *r, uint64_t base, uint64_t count)
{
    uint64_t seen[MOST_LOGICAL], at = base;
    unsigned number = FIRST_LOGICAL;

    for (unsigned n = 0; at != 0; n++) {
        if (n == MOST_LOGICAL) {
            reader_warn(r, "there are more than %d logical partitions, the rest is left out",
                        MOST_LOGICAL);
            break;
        }
        for (unsigned i = 0; i < n; i++) {
            if (seen[i] == at) {
                reader_warn(r, "the chain of logical partitions comes back to sector %" PRIu64, at);
                return 0;
            }
        }
        if (!range_inside(at - base, 1, count) || !range_inside(at, 1, r->size / SECTOR)) {
            reader_warn(r,
                        "the chain of logical partitions leads to sector %" PRIu64
                        ", outside of its partition or the disk",
                        at);
            break;
        }
        seen[n] = at;
        int ret = read_link(r, at, base, &number, &at);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int mbr_read(struct reader *r, const uint8_t *mbr)
{
    uint32_t id = load_le32(mbr + AT_DISK_ID);
    unsigned chains = 0;
    int ret = 0;

    r->table->sector = SECTOR;
    if (id)
        snprintf(r->table->id, sizeof(r->table->id), "%08" PRIx32, id);
    for (unsigned i = 0; i < 4 && ret == 0; i++) {
        struct entry e = entry_at(mbr, i);
        ret = add(r, &e, i + 1, e.start);
    }
    for (unsigned i = 0; i < 4 && ret == 0; i++) {
        struct entry e = entry_at(mbr, i);
        if (!is_extended(e.type) || e.count == 0)
            continue;
        if (chains++ > 0)
            reader_warn(r, "there is more than one extended partition: number %u is not read",
                        i + 1);
        else if (e.start == 0)
            reader_warn(r, "extended partition %u begins at the table itself", i + 1);
        else
            ret = read_chain(r, e.start, e.count);
    }
    if (r->list.len > 0 || id)
        r->table->scheme = PARTITION_MBR;
    return ret;
}
