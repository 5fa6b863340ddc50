/* One decoded instruction. */
#ifndef X86_INSN_H
#define X86_INSN_H

#include <stdbool.h>
#include <stdint.h>

/* Maps of opcodes: op = map + byte. */
enum { MAP_0F = 0x100, MAP_38 = 0x200, MAP_3A = 0x300 };

struct insn {
    uint16_t op;
    uint8_t length;
    uint8_t osize; /* 2, 4, 8: operand size */
    uint8_t asize; /* 2, 4, 8: address size */
    uint8_t rep;   /* 0, 0xf2, 0xf3 */
    bool lock, rex, opsize /* prefix 66 */, vex, is64;
    uint8_t rexbits;             /* W R X B */
    uint8_t modrm, mod, reg, rm; /* reg and rm with their REX bits */
    uint8_t v;                   /* VEX.vvvv */
    bool vl;
    bool rip;           /* relative to the next instruction: disp holds the sum already */
    int8_t base, index; /* -1: none */
    uint8_t scale, seg;
    int64_t disp, imm;
    uint16_t imm2; /* far pointers, ENTER */
    uint64_t next; /* address of the next instruction */
};

struct x86_fetch {
    /* One more byte of code; sets `over` at the end of what may be read. */
    uint8_t (*next)(struct x86_fetch *fetch);
    bool over;
};

/* False: no such instruction (too long, or not in this mode). bits is 16, 32 or 64. */
bool insn_decode(struct insn *i, struct x86_fetch *fetch, unsigned bits, uint64_t pc);

#endif
