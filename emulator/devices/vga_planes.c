/* Source: IBM VGA technical reference, graphics controller and sequencer registers. */
#include "vga_planes.h"

#include <string.h>

enum { SEQ_MAP_MASK = 2, SEQ_MODE = 4, SEQ_SEQUENTIAL = 4, SEQ_CHAIN4 = 8 };
enum {
    G_SET_RESET,
    G_ENABLE_SET,
    G_COMPARE,
    G_ROTATE,
    G_READ_MAP,
    G_MODE,
    G_MISC,
    G_IGNORE,
    G_BIT_MASK
};

/* Where in the window A0000 to BFFFF the planes are seen: an offset, or false. */
static bool window(const struct vga_planes *v, uint32_t *address)
{
    static const struct {
        uint32_t start, size;
    } windows[4] = { { 0, 0x20000 }, { 0, 0x10000 }, { 0x10000, 0x8000 }, { 0x18000, 0x8000 } };
    unsigned n = v->graphics[G_MISC] >> 2 & 3;
    if (*address - windows[n].start >= windows[n].size)
        return false;
    *address = (*address - windows[n].start) & (PLANE - 1);
    return true;
}

uint8_t vga_planes_read(struct vga_planes *v, uint32_t address)
{
    if (!window(v, &address))
        return 0xff;
    if (v->sequencer[SEQ_MODE] & SEQ_CHAIN4)
        return v->plane[address & 3][address & ~3u];
    if (v->graphics[G_MODE] & 0x10) /* odd and even */
        return v->plane[(v->graphics[G_READ_MAP] & 2) | (address & 1)][address & ~1u];
    for (unsigned p = 0; p < 4; p++)
        v->latch[p] = v->plane[p][address];
    if (!(v->graphics[G_MODE] & 8))
        return v->latch[v->graphics[G_READ_MAP] & 3];
    uint8_t differs = 0;
    for (unsigned p = 0; p < 4; p++) {
        if (v->graphics[G_IGNORE] >> p & 1)
            differs |= (uint8_t)(v->latch[p] ^ (v->graphics[G_COMPARE] >> p & 1 ? 0xff : 0));
    }
    return (uint8_t)~differs;
}

/* What one plane gets, by write mode; the host's byte is rotated already in modes 0 and 3. */
static uint8_t mix(const struct vga_planes *v, unsigned p, uint8_t value, uint8_t rotated)
{
    uint8_t mask = v->graphics[G_BIT_MASK], set = v->graphics[G_SET_RESET] >> p & 1 ? 0xff : 0;
    uint8_t latch = v->latch[p], data;
    switch (v->graphics[G_MODE] & 3) {
    case 0:
        data = v->graphics[G_ENABLE_SET] >> p & 1 ? set : rotated;
        break;
    case 1:
        return latch;
    case 2:
        data = value >> p & 1 ? 0xff : 0;
        break;
    default:
        mask &= rotated;
        data = set;
    }
    switch (v->graphics[G_ROTATE] >> 3 & 3) {
    case 1:
        data &= latch;
        break;
    case 2:
        data |= latch;
        break;
    case 3:
        data ^= latch;
        break;
    default:
        break;
    }
    return (uint8_t)((data & mask) | (latch & ~mask));
}

void vga_planes_write(struct vga_planes *v, uint32_t address, uint8_t value)
{
    unsigned map = v->sequencer[SEQ_MAP_MASK];
    if (!window(v, &address))
        return;
    if (v->sequencer[SEQ_MODE] & SEQ_CHAIN4) {
        if (map >> (address & 3) & 1)
            v->plane[address & 3][address & ~3u] = value;
        return;
    }
    if (!(v->sequencer[SEQ_MODE] & SEQ_SEQUENTIAL)) {
        for (unsigned p = address & 1; p < 4; p += 2) {
            if (map >> p & 1)
                v->plane[p][address & ~1u] = value;
        }
        return;
    }
    unsigned turn = v->graphics[G_ROTATE] & 7;
    uint8_t rotated = (uint8_t)(value >> turn | value << (8 - turn));
    for (unsigned p = 0; p < 4; p++) {
        if (map >> p & 1)
            v->plane[p][address] = mix(v, p, value, rotated);
    }
}
