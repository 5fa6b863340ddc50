/* Dirty bitmaps that an image keeps, in memory. */
#include <errno.h>
#include <stdlib.h>

#include "base/bitmap.h"
#include "base/error.h"
#include "base/macros.h"
#include "block/driver.h"
#include "node.h"

struct blk_bitmap {
    struct bitmap bits;
    unsigned granularity_bits;
};

/* Filters have what they filter, overlays what is below them. */
static struct blk_node *next_below(struct blk_node *n)
{
    if (n->drv->kind & BLK_FILTER)
        return n->edge[EDGE_FILE];
    return blk_child(n, "backing");
}

int blk_bitmap_open(struct blk_node *n, const char *name, struct blk_bitmap **out,
                    struct error **err)
{
    struct blk_bitmap *b = calloc(1, sizeof(*b));
    struct blk_node *top = n;
    int ret = -ENOENT;

    if (!b)
        return error_set(err, ENOMEM, "out of memory");
    for (; n && ret == -ENOENT; n = next_below(n)) {
        struct error *why = NULL;
        if (!n->drv->bitmap_load)
            continue;
        ret = n->drv->bitmap_load(n, name, &b->bits, &b->granularity_bits, &why);
        if (ret < 0 && ret != -ENOENT)
            error_set(err, -ret, "%s", error_text(why));
        error_free(why);
    }
    if (ret == 0) {
        *out = b;
        return 0;
    }
    free(b);
    return ret == -ENOENT
               ? error_set(err, ENOENT, "%s: there is no bitmap '%s'", top->filename, name)
               : ret;
}

bool blk_bitmap_at(const struct blk_bitmap *b, uint64_t offset, uint64_t *length)
{
    uint64_t bit = offset >> b->granularity_bits, next = b->bits.bits;
    bool dirty = bit < b->bits.bits && bitmap_test(&b->bits, bit);

    if (bit < b->bits.bits)
        next = dirty ? bitmap_next_clear(&b->bits, bit) : bitmap_next_set(&b->bits, bit);
    if (next < b->bits.bits)
        *length = MIN(*length, (next << b->granularity_bits) - offset);
    return dirty;
}

void blk_bitmap_close(struct blk_bitmap *b)
{
    if (b)
        bitmap_free(&b->bits);
    free(b);
}
