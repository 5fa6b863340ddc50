/* Which helper does an instruction. */
#include "helpers.h"

/* LOCK is allowed with these, on memory. */
static bool lockable(const struct insn *i)
{
    unsigned op = i->op;
    if (i->mod == 3)
        return false;
    if (op < 0x40)
        return (op & 7) < 2 && op >> 3 != 7;
    switch (op) {
    case 0x80:
    case 0x81:
    case 0x82:
    case 0x83:
        return group(i) != 7;
    case 0x86:
    case 0x87:
        return true;
    case 0xf6:
    case 0xf7:
        return group(i) == 2 || group(i) == 3;
    case 0xfe:
    case 0xff:
        return group(i) < 2;
    case 0x1ab:
    case 0x1b3:
    case 0x1bb:
    case 0x1b0:
    case 0x1b1:
    case 0x1c0:
    case 0x1c1:
        return true;
    case 0x1ba:
        return group(i) > 4;
    case 0x1c7:
        return group(i) == 1;
    default:
        return false;
    }
}

#define ROW(n, fn) [n...(n) + 5] = fn
static x86_helper *const one_byte_table[256] = {
    ROW(0x00, h_alu),
    ROW(0x08, h_alu),
    ROW(0x10, h_alu),
    ROW(0x18, h_alu),
    ROW(0x20, h_alu),
    ROW(0x28, h_alu),
    ROW(0x30, h_alu),
    ROW(0x38, h_alu),
    [0x69] = h_imul,
    [0x6b] = h_imul,
    [0x80 ... 0x81] = h_alu,
    [0x83] = h_alu,
    [0x86 ... 0x87] = h_xchg,
    [0x8f] = h_pop_rm,
    [0x90 ... 0x97] = h_xchg_ax,
    [0x9b] = h_fwait,
    [0x9c] = h_pushf,
    [0x9d] = h_popf,
    [0x9e] = h_sahf,
    [0x9f] = h_lahf,
    [0xa0 ... 0xa3] = h_moffs,
    [0xa4 ... 0xa7] = h_string,
    [0xaa ... 0xaf] = h_string,
    [0xc0 ... 0xc1] = h_shift,
    [0xc8] = h_enter,
    [0xc9] = h_leave,
    [0xd0 ... 0xd3] = h_shift,
    [0xd7] = h_xlat,
    [0xf5] = h_flagop,
    [0xf8 ... 0xf9] = h_flagop,
    [0xfc ... 0xfd] = h_flagop,
};

/* Those that 64-bit mode did away with. */
static x86_helper *const old_table[256] = {
    [0x27] = h_bcd,  [0x2f] = h_bcd,   [0x37] = h_bcd, [0x3f] = h_bcd, [0x60] = h_pusha,
    [0x61] = h_popa, [0x62] = h_bound, [0x82] = h_alu, [0xd4] = h_bcd, [0xd5] = h_bcd,
};

static x86_helper *one_byte(const struct insn *i)
{
    unsigned op = i->op, g = group(i);
    if (old_table[op])
        return i->is64 || (op == 0x62 && i->mod == 3) ? NULL : old_table[op];
    if (op == 0xf6 || op == 0xf7)
        return g > 3 ? h_muldiv : g > 1 ? h_unary : NULL;
    if (op == 0xfe || op == 0xff)
        return g < 2 ? h_unary : NULL;
    return op == 0x8f && g ? NULL : one_byte_table[op];
}

static x86_helper *group_c7(struct x86 *c, const struct insn *i)
{
    unsigned g = group(i);
    if (i->mod == 3)
        return g >= 6 && !i->rep && has(c, g == 6 ? FEATURE_RDRAND : FEATURE_RDSEED) ? h_rdrand
                                                                                     : NULL;
    if (g == 1)
        return i->osize < 8 || has(c, FEATURE_CX16) ? h_cmpxchg16b : NULL;
    return g == 4 && has(c, FEATURE_XSAVEC) ? h_xsave : NULL;
}

/* F0, F1 and F6 of the map 0F 38. */
static x86_helper *map_38(struct x86 *c, const struct insn *i)
{
    unsigned op = i->op & 0xff;
    if (op == 0xf6)
        return (i->opsize || i->rep == 0xf3) && has(c, FEATURE_ADX) ? h_adx : NULL;
    if (i->rep == 0xf2)
        return has(c, FEATURE_SSE42) ? h_crc32 : NULL;
    return i->mod == 3 || i->rep || !has(c, FEATURE_MOVBE) ? NULL : h_movbe;
}

static x86_helper *two_byte(struct x86 *c, const struct insn *i)
{
    unsigned op = i->op & 0xff;
    switch (op) {
    case 0xa3:
    case 0xab:
    case 0xb3:
    case 0xbb:
        return h_bt;
    case 0xba:
        return group(i) > 3 ? h_bt : NULL;
    case 0xa4:
    case 0xa5:
    case 0xac:
    case 0xad:
        return h_shld;
    case 0xaf:
        return h_imul;
    case 0xb0:
    case 0xb1:
        return h_cmpxchg;
    case 0xb8:
        return i->rep == 0xf3 && has(c, FEATURE_POPCNT) ? h_bits : NULL;
    case 0xbc:
    case 0xbd:
        return h_bits;
    case 0xc0:
    case 0xc1:
        return h_xadd;
    case 0xc3:
        return i->mod == 3 ? NULL : h_movnti;
    case 0xc7:
        return group_c7(c, i);
    case 0xc8:
    case 0xc9:
    case 0xca:
    case 0xcb:
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf:
        return h_bswap;
    default:
        return NULL;
    }
}

static x86_helper *vex(struct x86 *c, const struct insn *i)
{
    bool first = (i->op & 0x3ff) == MAP_38 + 0xf2 || i->op == MAP_38 + 0xf3 ||
                 (i->op == MAP_38 + 0xf7 && !i->opsize && !i->rep);
    if (i->vl || !has(c, first ? FEATURE_BMI1 : FEATURE_BMI2))
        return NULL;
    switch (i->op) {
    case MAP_38 + 0xf2:
        return i->opsize || i->rep ? NULL : h_bmi;
    case MAP_38 + 0xf3:
        return i->opsize || i->rep || group(i) < 1 || group(i) > 3 ? NULL : h_bmi;
    case MAP_38 + 0xf5:
        return i->opsize ? NULL : h_bmi;
    case MAP_38 + 0xf6:
        return i->rep == 0xf2 ? h_bmi : NULL;
    case MAP_38 + 0xf7:
        return h_bmi;
    case MAP_3A + 0xf0:
        return i->rep == 0xf2 && !i->v ? h_bmi : NULL;
    default:
        return NULL;
    }
}

/* System instructions that change nothing of what translation or the next instruction's fetch depends on. */
static bool stays(const struct insn *i)
{
    switch (i->op) {
    case 0x06: /* PUSH of a segment */
    case 0x0e:
    case 0x16:
    case 0x1e:
    case 0x1a0:
    case 0x1a8:
    case 0x8c:
    case 0xfa:
    case 0x102: /* LAR, LSL */
    case 0x103:
    case 0x106: /* CLTS */
    case 0x120:
    case 0x121:
    case 0x131: /* RDTSC */
    case 0x1a2:
    case 0x1ae: /* RDFSBASE and the like */
    case 0x1c7:
        return true;
    case 0x101: /* CLAC, STAC, XGETBV, SWAPGS, RDTSCP */
        return i->modrm == 0xca || i->modrm == 0xcb || i->modrm == 0xd0 || i->modrm == 0xf8 ||
               i->modrm == 0xf9;
    default:
        return false;
    }
}

x86_helper *x86_find_helper(struct x86 *c, const struct insn *i, bool *ends)
{
    x86_helper *fn = NULL;
    *ends = false;
    if (i->lock && !lockable(i))
        return NULL;
    if (i->vex)
        return vex(c, i);
    fn = x86_find_system(c, i);
    if (fn) {
        *ends = !stays(i);
        return fn;
    }
    if (i->op < MAP_0F) {
        if (i->op >= 0xd8 && i->op <= 0xdf)
            return x86_find_fpu(i);
        fn = one_byte(i);
        *ends = fn == h_string || fn == h_popf;
        return fn;
    }
    if (i->op < MAP_38)
        fn = two_byte(c, i);
    else if (i->op == MAP_38 + 0xf0 || i->op == MAP_38 + 0xf1 || i->op == MAP_38 + 0xf6)
        return map_38(c, i);
    return fn ? fn : x86_find_sse(c, i);
}

void h_movnti(struct x86 *c, const struct insn *i)
{
    rm_write(c, i, i->osize, reg_read(c, i, i->reg, i->osize));
}
