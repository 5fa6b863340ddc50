/* Guest offset to place. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/macros.h"
#include "vhdx.h"

int vhdx_check_place(struct vhdx *v, uint64_t guest, uint64_t entry)
{
    uint64_t host = entry & BAT_OFFSET;

    if (host < VHDX_MIB)
        return vhdx_corrupt(v, "guest offset %#" PRIx64 " is mapped into the header, to %#" PRIx64,
                            guest, host);
    /* The disk's last block may be cut where the disk ends. */
    uint64_t need = MIN((uint64_t)v->meta.block_size, v->meta.size - (guest - in_block(v, guest)));
    uint64_t end = v->writing ? v->units * VHDX_MIB : MAX(blk_size(v->file), v->replay.last);
    if (range_inside(host, need, end) || (node_open_flags(v->node) & BLK_OPEN_SHARED))
        return 0;
    return vhdx_corrupt(v,
                        "guest offset %#" PRIx64 " is mapped to %#" PRIx64
                        ", beyond the end of the file: was it truncated?",
                        guest, host);
}

/* Blocks behind `block` that continue it, at most `max` together: in the next place, or just alike. */
static uint64_t count_alike(const struct vhdx *v, uint64_t block, uint64_t max)
{
    uint64_t first = v->bat[bat_index(v, block)], n = 1;
    enum vhdx_state state = entry_state(first);

    for (; n < max; n++) {
        uint64_t next = v->bat[bat_index(v, block + n)];
        if (entry_state(next) != state)
            break;
        if (state == BLOCK_PRESENT &&
            (next & BAT_OFFSET) != (first & BAT_OFFSET) + n * v->meta.block_size)
            break;
    }
    return n;
}

/* Each block of the run lies in the file if the first and the last do. */
static int map_present(struct vhdx *v, uint64_t off, uint64_t entry, struct mapping *m)
{
    uint64_t last = off + m->length - 1;
    int ret = vhdx_check_place(v, off, entry);

    if (ret == 0 && block_of(v, last) != block_of(v, off))
        ret = vhdx_check_place(v, last, v->bat[bat_index(v, block_of(v, last))]);
    m->kind = MAP_DATA;
    m->child = v->file;
    m->child_offset = (entry & BAT_OFFSET) + in_block(v, off);
    m->maybe_holes = true;
    return ret;
}

static int map_partial(struct vhdx *v, uint64_t off, uint64_t entry, bool nowait, struct mapping *m)
{
    bool present = false;
    int ret = vhdx_check_place(v, off, entry);

    if (ret == 0)
        ret = vhdx_bits_run(v, off, m->length, false, nowait, &present, &m->length);
    m->kind = present ? MAP_DATA : MAP_UNALLOCATED;
    m->child = present ? v->file : NULL;
    m->child_offset = (entry & BAT_OFFSET) + in_block(v, off);
    return ret;
}

static int map_block(struct vhdx *v, uint64_t off, uint64_t len, bool nowait, struct mapping *m)
{
    uint64_t block = block_of(v, off), entry = v->bat[bat_index(v, block)];
    uint64_t most = block_of(v, off + len - 1) - block + 1;

    m->child = NULL;
    m->length = MIN(len, (uint64_t)v->meta.block_size - in_block(v, off));
    if (entry_state(entry) == BLOCK_PARTIAL && v->differencing)
        return map_partial(v, off, entry, nowait, m);
    uint64_t run = count_alike(v, block, most);
    m->length = MIN(len, run * v->meta.block_size - in_block(v, off));
    switch (entry_state(entry)) {
    case BLOCK_PRESENT:
        return map_present(v, off, entry, m);
    case BLOCK_NOT_PRESENT:
        m->kind = MAP_UNALLOCATED; /* the parent's, or reads as zeroes */
        return 0;
    case BLOCK_UNDEFINED:
    case BLOCK_ZERO:
    case BLOCK_UNMAPPED:
        m->kind = MAP_ZERO;
        return 0;
    default:
        return vhdx_corrupt(v, "the BAT entry for guest offset %#" PRIx64 " is %#" PRIx64, off,
                            entry);
    }
}

int vhdx_map_read(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags, struct mapping *m)
{
    struct vhdx *v = node_state(n);
    bool nowait = flags & BLK_NOWAIT;
    int ret;

    if (!v->bat)
        return -ENOTSUP; /* opened to be described */
    m->offset = off;
    if (nowait) {
        if (!rwlock_try_share(&v->lock))
            return -EAGAIN;
    } else {
        rwlock_share(&v->lock);
    }
    do {
        ret = map_block(v, off, len, nowait, m);
    } while (ret == TABLE_RELOCKED);
    rwlock_release(&v->lock); /* taken above, by trying or waiting */
    return ret;
}
