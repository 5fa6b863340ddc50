/* Instructions to try, and the flags that the manual leaves undefined after them. */
#ifndef TEMPLATES_H
#define TEMPLATES_H

#include "x86/state.h"

enum {
    MODRM = 1,    /* a ModRM byte with random operands */
    BYTE = 2,     /* imm8 */
    WORDZ = 4,    /* imm16/32 by operand size */
    REG_ONLY = 8, /* no memory operand */
    MEM_ONLY = 16,
    NO66 = 32,   /* no operand size prefix */
    STRING = 64, /* set up RSI, RDI, RCX; maybe REP */
    LOCKS = 128, /* may have LOCK with memory */
    VEX = 256,   /* op is 0x1MM..: VEX map, prefix in `prefix` */
    NOREX = 512,
    SIMD = 1024,
    WIDE = 2048, /* operand size 32 or 64 only */
    SMALL_CL = 4096,
};

struct template
{
    unsigned op;    /* with MAP_* */
    int group;      /* ModRM.reg, or -1: random */
    uint8_t prefix; /* mandatory */
    unsigned flags;
    unsigned undefined; /* flags */
};

#define LOGIC_U F_A
#define SHIFT_U (F_A | F_O | F_C)
#define ROT_U   F_O
#define MUL_U   (F_S | F_Z | F_A | F_P)
#define DIV_U   F_ARITH
#define BT_U    (F_O | F_S | F_A | F_P)
#define BSF_U   (F_C | F_O | F_S | F_A | F_P)

#define ALU_(n, u, l)                                                              \
    { n * 8, -1, 0, MODRM | l, u }, { n * 8 + 1, -1, 0, MODRM | l, u },            \
        { n * 8 + 2, -1, 0, MODRM, u }, { n * 8 + 3, -1, 0, MODRM, u },            \
        { n * 8 + 4, -1, 0, BYTE, u }, { n * 8 + 5, -1, 0, WORDZ, u },             \
        { 0x80, n, 0, MODRM | BYTE | l, u }, { 0x81, n, 0, MODRM | WORDZ | l, u }, \
    {                                                                              \
        0x83, n, 0, MODRM | BYTE | l, u                                            \
    }
#define SHIFT_(n, u)                                                                    \
    { 0xc0, n, 0, MODRM | BYTE, u }, { 0xc1, n, 0, MODRM | BYTE, u },                   \
        { 0xd0, n, 0, MODRM, u & ~F_O & ~F_C }, { 0xd1, n, 0, MODRM, u & ~F_O & ~F_C }, \
        { 0xd2, n, 0, MODRM, u },                                                       \
    {                                                                                   \
        0xd3, n, 0, MODRM, u                                                            \
    }

static const struct template integer_templates[] = {
    ALU_(0, 0, LOCKS),
    ALU_(1, LOGIC_U, LOCKS),
    ALU_(2, 0, LOCKS),
    ALU_(3, 0, LOCKS),
    ALU_(4, LOGIC_U, LOCKS),
    ALU_(5, 0, LOCKS),
    ALU_(6, LOGIC_U, LOCKS),
    ALU_(7, 0, 0),
    SHIFT_(0, ROT_U),
    SHIFT_(1, ROT_U),
    SHIFT_(2, ROT_U),
    SHIFT_(3, ROT_U),
    SHIFT_(4, SHIFT_U),
    SHIFT_(5, SHIFT_U),
    SHIFT_(7, SHIFT_U),
    { 0x84, -1, 0, MODRM, LOGIC_U },
    { 0x85, -1, 0, MODRM, LOGIC_U },
    { 0xa8, -1, 0, BYTE, LOGIC_U },
    { 0xa9, -1, 0, WORDZ, LOGIC_U },
    { 0x86, -1, 0, MODRM | LOCKS, 0 },
    { 0x87, -1, 0, MODRM | LOCKS, 0 },
    { 0x88, -1, 0, MODRM, 0 },
    { 0x89, -1, 0, MODRM, 0 },
    { 0x8a, -1, 0, MODRM, 0 },
    { 0x8b, -1, 0, MODRM, 0 },
    { 0x8d, -1, 0, MODRM | MEM_ONLY, 0 },
    { 0x63, -1, 0, MODRM, 0 },
    { 0x69, -1, 0, MODRM | WORDZ, MUL_U },
    { 0x6b, -1, 0, MODRM | BYTE, MUL_U },
    { 0x1af, -1, 0, MODRM, MUL_U },
    { 0x91, -1, 0, 0, 0 },
    { 0x93, -1, 0, 0, 0 },
    { 0x98, -1, 0, 0, 0 },
    { 0x99, -1, 0, 0, 0 },
    { 0x9e, -1, 0, 0, 0 },
    { 0x9f, -1, 0, 0, 0 },
    { 0x9c, -1, 0, 0, 0 },
    { 0x50, -1, 0, 0, 0 },
    { 0x59, -1, 0, 0, 0 },
    { 0x8f, 0, 0, MODRM, 0 },
    { 0xff, 6, 0, MODRM, 0 },
    { 0x6a, -1, 0, BYTE, 0 },
    { 0x68, -1, 0, WORDZ, 0 },
    { 0xa4, -1, 0, STRING, 0 },
    { 0xa5, -1, 0, STRING, 0 },
    { 0xa6, -1, 0, STRING, 0 },
    { 0xa7, -1, 0, STRING, 0 },
    { 0xaa, -1, 0, STRING, 0 },
    { 0xab, -1, 0, STRING, 0 },
    { 0xac, -1, 0, STRING, 0 },
    { 0xad, -1, 0, STRING, 0 },
    { 0xae, -1, 0, STRING, 0 },
    { 0xaf, -1, 0, STRING, 0 },
    { 0xb0, -1, 0, BYTE, 0 },
    { 0xc6, 0, 0, MODRM | BYTE, 0 },
    { 0xc7, 0, 0, MODRM | WORDZ, 0 },
    { 0xf5, -1, 0, 0, 0 },
    { 0xf8, -1, 0, 0, 0 },
    { 0xf9, -1, 0, 0, 0 },
    { 0xfc, -1, 0, 0, 0 },
    { 0xfd, -1, 0, 0, 0 },
    { 0xf6, 0, 0, MODRM | BYTE, LOGIC_U },
    { 0xf7, 0, 0, MODRM | WORDZ, LOGIC_U },
    { 0xf6, 2, 0, MODRM | LOCKS, 0 },
    { 0xf7, 2, 0, MODRM | LOCKS, 0 },
    { 0xf6, 3, 0, MODRM | LOCKS, 0 },
    { 0xf7, 3, 0, MODRM | LOCKS, 0 },
    { 0xf6, 4, 0, MODRM, MUL_U },
    { 0xf7, 4, 0, MODRM, MUL_U },
    { 0xf6, 5, 0, MODRM, MUL_U },
    { 0xf7, 5, 0, MODRM, MUL_U },
    { 0xf6, 6, 0, MODRM, DIV_U },
    { 0xf7, 6, 0, MODRM, DIV_U },
    { 0xf6, 7, 0, MODRM, DIV_U },
    { 0xf7, 7, 0, MODRM, DIV_U },
    { 0xfe, 0, 0, MODRM | LOCKS, 0 },
    { 0xff, 0, 0, MODRM | LOCKS, 0 },
    { 0xfe, 1, 0, MODRM | LOCKS, 0 },
    { 0xff, 1, 0, MODRM | LOCKS, 0 },
#define CC_(n)                      \
    { 0x140 + n, -1, 0, MODRM, 0 }, \
    {                               \
        0x190 + n, -1, 0, MODRM, 0  \
    }
    CC_(0),
    CC_(1),
    CC_(2),
    CC_(3),
    CC_(4),
    CC_(5),
    CC_(6),
    CC_(7),
    CC_(8),
    CC_(9),
    CC_(10),
    CC_(11),
    CC_(12),
    CC_(13),
    CC_(14),
    CC_(15),
    { 0x1a3, -1, 0, MODRM | REG_ONLY, BT_U },
    { 0x1ab, -1, 0, MODRM | REG_ONLY, BT_U },
    { 0x1b3, -1, 0, MODRM | REG_ONLY, BT_U },
    { 0x1bb, -1, 0, MODRM | REG_ONLY, BT_U },
    { 0x1ba, 4, 0, MODRM | BYTE, BT_U },
    { 0x1ba, 5, 0, MODRM | BYTE | LOCKS, BT_U },
    { 0x1ba, 6, 0, MODRM | BYTE | LOCKS, BT_U },
    { 0x1ba, 7, 0, MODRM | BYTE | LOCKS, BT_U },
    { 0x1a4, -1, 0, MODRM | BYTE | WIDE, SHIFT_U & ~F_C },
    { 0x1a5, -1, 0, MODRM | WIDE, SHIFT_U & ~F_C },
    { 0x1ac, -1, 0, MODRM | BYTE | WIDE, SHIFT_U & ~F_C },
    { 0x1ad, -1, 0, MODRM | WIDE, SHIFT_U & ~F_C },
    { 0x1b0, -1, 0, MODRM | LOCKS, 0 },
    { 0x1b1, -1, 0, MODRM | LOCKS, 0 },
    { 0x1c0, -1, 0, MODRM | LOCKS, 0 },
    { 0x1c1, -1, 0, MODRM | LOCKS, 0 },
    { 0x1b6, -1, 0, MODRM, 0 },
    { 0x1b7, -1, 0, MODRM, 0 },
    { 0x1be, -1, 0, MODRM, 0 },
    { 0x1bf, -1, 0, MODRM, 0 },
    { 0x1bc, -1, 0, MODRM, BSF_U },
    { 0x1bd, -1, 0, MODRM, BSF_U },
    { 0x1bc, -1, 0xf3, MODRM, BT_U },
    { 0x1bd, -1, 0xf3, MODRM, BT_U },
    { 0x1b8, -1, 0xf3, MODRM, 0 },
    { 0x1c8, -1, 0, WIDE, 0 },
    { 0x1c9, -1, 0, WIDE, 0 },
    { 0x1c3, -1, 0, MODRM | MEM_ONLY | WIDE, 0 },
    { 0x1c7, 1, 0, MODRM | MEM_ONLY | LOCKS | WIDE, 0 },
    { 0x2f0, -1, 0, MODRM | MEM_ONLY, 0 },
    { 0x2f1, -1, 0, MODRM | MEM_ONLY, 0 },
    { 0x2f0, -1, 0xf2, MODRM, 0 },
    { 0x2f1, -1, 0xf2, MODRM, 0 },
    { 0x2f2, -1, 0, MODRM | VEX, F_A | F_P },
    { 0x2f3, 1, 0, MODRM | VEX, F_A | F_P },
    { 0x2f3, 2, 0, MODRM | VEX, F_A | F_P },
    { 0x2f3, 3, 0, MODRM | VEX, F_A | F_P },
    { 0x2f5, -1, 0, MODRM | VEX, F_A | F_P },
    { 0x2f5, -1, 0xf3, MODRM | VEX, 0 },
    { 0x2f5, -1, 0xf2, MODRM | VEX, 0 },
    { 0x2f6, -1, 0xf2, MODRM | VEX, 0 },
    { 0x2f7, -1, 0, MODRM | VEX, F_S | F_A | F_P },
    { 0x2f7, -1, 0x66, MODRM | VEX, 0 },
    { 0x2f7, -1, 0xf2, MODRM | VEX, 0 },
    { 0x2f7, -1, 0xf3, MODRM | VEX, 0 },
    { 0x3f0, -1, 0xf2, MODRM | VEX | BYTE, 0 },
    { 0x10b, -1, 0, NO66, 0 }, /* UD2 */
};

#endif
