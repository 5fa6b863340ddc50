/* Zeroes and discards of whole blocks. A block that is unmapped is freed; a fixed image keeps all its blocks, and zeroes
 * are written to them.
 */
#include <errno.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "base/round.h"
#include "vhdx.h"

enum { BATCH = 2048 }; /* blocks that change between looks at how much is dirty */

enum unmap_mode {
    UNMAP_DISCARD, /* any content will do, but not what another layer has */
    UNMAP_FREE,    /* zeroes, without storage */
    UNMAP_KEEP,    /* zeroes, with the storage that is there */
    UNMAP_FORGET,  /* `state`, whatever it was */
};

struct unmap {
    enum unmap_mode mode;
    enum vhdx_state state; /* UNMAP_FORGET */
    bool explicit;         /* zeroes are to be said even where nothing lies below */
    bool release;          /* storage that is zeroed in place may become a hole */
};

/* The state that a block gets. */
static enum vhdx_state unmapped(const struct vhdx *v, uint64_t entry, const struct unmap *u)
{
    enum vhdx_state old = entry_state(entry);

    if (u->mode == UNMAP_FORGET)
        return u->state;
    if (u->mode == UNMAP_DISCARD && !entry_stored(entry))
        return old;
    if (u->mode == UNMAP_DISCARD)
        return v->differencing ? BLOCK_ZERO : BLOCK_UNMAPPED;
    if (!entry_stored(entry) && !u->explicit && (old != BLOCK_NOT_PRESENT || !v->differencing))
        return old; /* reads as zeroes */
    return BLOCK_ZERO;
}

static void unmap_block(struct vhdx *v, uint64_t block, const struct unmap *u)
{
    uint64_t index = bat_index(v, block), entry = v->bat[index];
    enum vhdx_state state = unmapped(v, entry, u);

    if (state == entry_state(entry) && !entry_stored(entry))
        return;
    vhdx_bat_set(v, index, state);
    if (entry_stored(entry))
        vhdx_free_later(v, (entry & BAT_OFFSET) / VHDX_MIB, block_units(v));
}

/* Stays where it is, whatever its bytes become. */
static bool stays(const struct vhdx *v, uint64_t entry, const struct unmap *u)
{
    return entry_state(entry) == BLOCK_PRESENT && u->mode != UNMAP_FORGET &&
           (v->fixed || u->mode == UNMAP_KEEP);
}

/* Blocks from *block on, up to one that is to be zeroed in place: then its entry, else 0. */
static uint64_t unmap_some(struct vhdx *v, uint64_t *block, uint64_t to, const struct unmap *u)
{
    WRLOCK_SCOPE(&v->lock);
    for (to = MIN(to, *block + BATCH); *block < to; ++*block) {
        uint64_t entry = v->bat[bat_index(v, *block)];
        if (stays(v, entry, u))
            return entry;
        unmap_block(v, *block, u);
    }
    return 0;
}

/* The storage cannot go meanwhile: the caller has it reserved (V4). */
static int clear_storage(struct vhdx *v, uint64_t block, uint64_t entry, const struct unmap *u)
{
    uint64_t start = block << v->block_bits, host = entry & BAT_OFFSET;
    uint64_t len = MIN((uint64_t)v->meta.block_size, v->meta.size - start);
    int ret = vhdx_check_place(v, start, entry);

    if (ret < 0)
        return ret;
    if (u->mode == UNMAP_DISCARD)
        return blk_discard(v->file, host, len);
    return blk_zero(v->file, host, len, u->release ? BLK_MAY_UNMAP : 0);
}

static int unmap(struct vhdx *v, uint64_t from, uint64_t to, const struct unmap *u)
{
    int ret = vhdx_session(v);

    while (from < to && ret == 0) {
        ret = vhdx_commit_if_pressed(v);
        uint64_t entry = ret == 0 ? unmap_some(v, &from, to, u) : 0;
        if (entry)
            ret = clear_storage(v, from++, entry, u);
    }
    return ret;
}

int vhdx_zero_range(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct vhdx *v = node_state(n);
    struct unmap u = {
        .mode = flags & BLK_MAY_UNMAP ? UNMAP_FREE : UNMAP_KEEP,
        .explicit = flags & BLK_EXPLICIT,
        .release = flags & BLK_MAY_UNMAP,
    };

    return unmap(v, block_of(v, off), div_round_up(off + len, v->meta.block_size), &u);
}

int vhdx_discard_range(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct vhdx *v = node_state(n);
    struct unmap u = { .mode = UNMAP_DISCARD };

    return unmap(v, block_of(v, off), div_round_up(off + len, v->meta.block_size), &u);
}

int vhdx_forget_blocks(struct vhdx *v, uint64_t from, uint64_t to, enum vhdx_state state)
{
    struct unmap u = { .mode = UNMAP_FORGET, .state = state };

    return unmap(v, from, to, &u);
}
