/* From bytes to struct insn. Knows lengths and operand sizes, not meanings. */
#include "insn.h"

#include <string.h>

struct decoder {
    struct insn *i;
    struct x86_fetch *fetch;
    unsigned bits;
    uint8_t length;
    int seg;
    bool addr; /* prefix 67 */
};

static uint8_t u8(struct decoder *d)
{
    d->length++;
    return d->length > 15 || d->fetch->over ? 0 : d->fetch->next(d->fetch);
}

static uint64_t bytes(struct decoder *d, unsigned n)
{
    uint64_t value = 0;
    for (unsigned k = 0; k < n; k++)
        value |= (uint64_t)u8(d) << (8 * k);
    return value;
}

static int64_t sbytes(struct decoder *d, unsigned n)
{
    unsigned shift = 64 - 8 * n;
    return (int64_t)(bytes(d, n) << shift) >> shift;
}

/* Which opcodes have no ModRM byte, by map; a bit each. */
static bool has_modrm(uint16_t op, unsigned bits)
{
    unsigned b = op & 0xff;
    if (op >= MAP_38)
        return true;
    if (op >= MAP_0F) {
        if (b >= 0x80 && b <= 0x8f)
            return false;
        if (b >= 0xc8 && b <= 0xcf)
            return false;
        if ((b >= 0x30 && b <= 0x37) || (b >= 0x04 && b <= 0x0c) || b == 0x0e || b == 0x77)
            return false;
        return b != 0xa0 && b != 0xa1 && b != 0xa2 && b != 0xa8 && b != 0xa9 && b != 0xaa &&
               b != 0xff;
    }
    if (b < 0x40)
        return (b & 7) < 4;
    if (b < 0x60)
        return false;
    if (b == 0x62)
        return bits != 64;
    if (b < 0x70)
        return b == 0x63 || b == 0x69 || b == 0x6b;
    if (b >= 0x80 && b <= 0x8f)
        return true;
    if (b >= 0xc0 && b <= 0xc7)
        return b != 0xc2 && b != 0xc3;
    if (b >= 0xd0 && b <= 0xdf)
        return b < 0xd4 || b >= 0xd8;
    return b == 0xf6 || b == 0xf7 || b >= 0xfe;
}

static void address16(struct decoder *d)
{
    static const int8_t base[8] = { 3, 3, 5, 5, 6, 7, 5, 3 },
                        index[8] = { 6, 7, 6, 7, -1, -1, -1, -1 };
    struct insn *i = d->i;
    unsigned rm = i->modrm & 7;
    i->base = base[rm];
    i->index = index[rm];
    i->seg = rm == 2 || rm == 3 || rm == 6 ? 2 : 3;
    if (i->mod == 0 && rm == 6) {
        i->base = -1;
        i->seg = 3;
        i->disp = sbytes(d, 2);
    } else if (i->mod) {
        i->disp = sbytes(d, i->mod == 1 ? 1 : 2);
    }
}

static void address(struct decoder *d)
{
    struct insn *i = d->i;
    unsigned rm = i->modrm & 7, b = i->rexbits & 1 ? 8 : 0, x = i->rexbits & 2 ? 8 : 0;
    i->base = (int8_t)(rm | b);
    if (rm == 4) {
        uint8_t sib = u8(d);
        i->base = (int8_t)((sib & 7) | b);
        i->index = (int8_t)(((sib >> 3) & 7) | x);
        i->scale = sib >> 6;
        if (i->index == 4)
            i->index = -1;
        if ((sib & 7) == 5 && i->mod == 0) {
            i->base = -1;
            i->disp = sbytes(d, 4);
        }
    } else if (rm == 5 && i->mod == 0) {
        i->base = -1;
        i->rip = d->bits == 64;
        i->disp = sbytes(d, 4);
    }
    if (i->mod)
        i->disp = sbytes(d, i->mod == 1 ? 1 : 4);
    i->seg = i->base == 4 || i->base == 5 ? 2 : 3;
}

static void modrm(struct decoder *d, uint8_t byte)
{
    struct insn *i = d->i;
    i->modrm = byte;
    i->mod = i->modrm >> 6;
    i->reg = (uint8_t)(((i->modrm >> 3) & 7) | (i->rexbits & 4 ? 8 : 0));
    i->rm = (uint8_t)((i->modrm & 7) | (i->rexbits & 1 ? 8 : 0));
    i->base = i->index = -1;
    /* Moves with control and debug registers treat every mod as a register. */
    if (i->op >= MAP_0F + 0x20 && i->op <= MAP_0F + 0x23)
        i->mod = 3;
    if (i->mod == 3)
        return;
    if (i->asize == 2)
        address16(d);
    else
        address(d);
    if (d->seg >= 0)
        i->seg = (uint8_t)d->seg;
}

static void immediate_one(struct decoder *d)
{
    struct insn *i = d->i;
    unsigned b = i->op, z = i->osize == 2 ? 2 : 4;
    unsigned group = (i->modrm >> 3) & 7;
    if (b < 0x40 && (b & 7) == 4)
        i->imm = sbytes(d, 1);
    else if (b < 0x40 && (b & 7) == 5)
        i->imm = sbytes(d, z);
    else if (b == 0x68 || b == 0x69 || b == 0x81 || b == 0xa9 || b == 0xc7 ||
             (b == 0xf7 && group < 2))
        i->imm = sbytes(d, z);
    else if (b == 0x6a || b == 0x6b || (b >= 0x70 && b < 0x80) || b == 0x80 || b == 0x82 ||
             b == 0x83 || b == 0xa8 || (b >= 0xb0 && b < 0xb8) || b == 0xc0 || b == 0xc1 ||
             b == 0xc6 || b == 0xcd || b == 0xd4 || b == 0xd5 || (b >= 0xe0 && b < 0xe8) ||
             b == 0xeb || (b == 0xf6 && group < 2))
        i->imm = sbytes(d, 1);
    else if (b >= 0xb8 && b < 0xc0)
        i->imm = sbytes(d, i->osize);
    else if (b == 0xe8 || b == 0xe9)
        i->imm = sbytes(d, d->bits == 64 ? 4 : z);
    else if (b >= 0xa0 && b < 0xa4)
        i->disp = (int64_t)bytes(d, i->asize);
    else if (b == 0xc2 || b == 0xca)
        i->imm = (int64_t)bytes(d, 2);
    else if (b == 0xc8) {
        i->imm2 = (uint16_t)bytes(d, 2);
        i->imm = (int64_t)bytes(d, 1);
    } else if (b == 0x9a || b == 0xea) {
        i->imm = (int64_t)bytes(d, z);
        i->imm2 = (uint16_t)bytes(d, 2);
    }
}

static void immediate(struct decoder *d)
{
    struct insn *i = d->i;
    unsigned b = i->op & 0xff;
    if (i->op < MAP_0F)
        immediate_one(d);
    else if (i->op >= MAP_3A)
        i->imm = (uint8_t)bytes(d, 1);
    else if (i->op >= MAP_38)
        return;
    else if (b >= 0x80 && b <= 0x8f)
        i->imm = sbytes(d, d->bits == 64 ? 4 : i->osize == 2 ? 2 : 4);
    else if ((b >= 0x70 && b <= 0x73) || b == 0xa4 || b == 0xac || b == 0xba || b == 0xc2 ||
             b == 0xc4 || b == 0xc5 || b == 0xc6)
        i->imm = (uint8_t)bytes(d, 1);
}

/* Prefixes; returns the first byte that is none. */
static uint8_t prefixes(struct decoder *d)
{
    struct insn *i = d->i;
    for (;;) {
        uint8_t b = u8(d);
        bool rex = d->bits == 64 && (b & 0xf0) == 0x40;
        if (b == 0x66)
            i->opsize = true;
        else if (b == 0x67)
            d->addr = true;
        else if (b == 0xf0)
            i->lock = true;
        else if (b == 0xf2 || b == 0xf3)
            i->rep = b;
        else if (b == 0x64 || b == 0x65)
            d->seg = b - 0x64 + 4;
        else if (b == 0x26 || b == 0x2e || b == 0x36 || b == 0x3e) {
            if (d->bits != 64)
                d->seg = (b - 0x26) >> 3;
        } else if (rex) {
            i->rex = true;
            i->rexbits = b & 15;
            if (d->length > 14)
                return b;
            continue;
        } else
            return b;
        i->rex = false; /* a REX counts only right before the opcode */
        i->rexbits = 0;
        if (d->length > 14 || d->fetch->over)
            return b;
    }
}

static bool vex(struct decoder *d, uint8_t first, uint8_t b1)
{
    struct insn *i = d->i;
    static const uint8_t prefix[4] = { 0, 0x66, 0xf3, 0xf2 };
    uint8_t b2 = b1;
    unsigned map = 1;
    if (i->rex || i->opsize || i->rep || i->lock)
        return false;
    i->rexbits = b1 & 0x80 ? 0 : 4;
    if (first == 0xc4) {
        b2 = u8(d);
        map = b1 & 31;
        i->rexbits = (uint8_t)((~b1 >> 5) & 7);
        if (b2 & 0x80)
            i->rexbits |= 8;
    }
    if (d->bits != 64)
        i->rexbits = 0;
    i->vex = true;
    i->v = (uint8_t)((~b2 >> 3) & (d->bits == 64 ? 15 : 7));
    i->vl = b2 & 4;
    uint8_t p = prefix[b2 & 3];
    i->opsize = p == 0x66;
    i->rep = p == 0x66 ? 0 : p;
    i->op = (uint16_t)(map * 0x100 + u8(d));
    i->osize = i->rexbits & 8 && d->bits == 64 ? 8 : 4;
    return map >= 1 && map <= 3;
}

static void sizes(struct decoder *d)
{
    struct insn *i = d->i;
    if (d->bits == 64) {
        i->osize = i->rexbits & 8 ? 8 : i->opsize ? 2 : 4;
        i->asize = d->addr ? 4 : 8;
        unsigned b = i->op;
        bool stack = (b >= 0x50 && b < 0x60) || b == 0x68 || b == 0x6a || b == 0x8f || b == 0x9c ||
                     b == 0x9d || b == 0xc8 || b == 0xc9 || (b >= 0x1a0 && b <= 0x1a1) ||
                     (b >= 0x1a8 && b <= 0x1a9);
        if (stack && i->osize == 4)
            i->osize = 8;
        if (b == 0xc2 || b == 0xc3 || b == 0xe8 || b == 0xe9 || (b >= 0xe0 && b <= 0xe3) ||
            b == 0xeb || (b >= 0x70 && b < 0x80) || (b >= 0x180 && b < 0x190))
            i->osize = 8;
    } else {
        i->osize = (d->bits == 16) == i->opsize ? 4 : 2;
        i->asize = (d->bits == 16) == d->addr ? 4 : 2;
    }
}

bool insn_decode(struct insn *i, struct x86_fetch *fetch, unsigned bits, uint64_t pc)
{
    memset(i, 0, sizeof *i);
    struct decoder d = { .i = i, .fetch = fetch, .bits = bits, .seg = -1 };
    i->is64 = bits == 64;
    i->seg = 3;
    i->base = i->index = -1;
    bool ok = true;
    uint8_t b = prefixes(&d);
    i->op = b;
    sizes(&d);
    if (b == 0x0f) {
        b = u8(&d);
        i->op = (uint16_t)(MAP_0F + b);
        if (b == 0x38 || b == 0x3a)
            i->op = (uint16_t)((b == 0x38 ? MAP_38 : MAP_3A) + u8(&d));
        sizes(&d);
    } else if (b == 0xc4 || b == 0xc5) {
        /* Outside of 64-bit mode LES and LDS, unless a register follows where memory must. */
        uint8_t second = u8(&d);
        if (bits != 64 && second < 0xc0) {
            modrm(&d, second);
            goto rest;
        }
        ok = vex(&d, b, second);
    }
    if (has_modrm(i->op, bits)) {
        modrm(&d, u8(&d));
        if (i->op == 0xff && bits == 64) {
            unsigned g = (i->modrm >> 3) & 7;
            if (g == 2 || g == 4 || (g == 6 && i->osize == 4))
                i->osize = 8;
        }
    }
rest:
    if (d.seg >= 0)
        i->seg = (uint8_t)d.seg;
    immediate(&d);
    i->length = d.length;
    i->next = pc + d.length;
    if (i->rip)
        i->disp += (int64_t)i->next;
    return ok && d.length <= 15;
}
