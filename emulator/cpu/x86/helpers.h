/* What the files of helpers share. */
#ifndef X86_HELPERS_H
#define X86_HELPERS_H

#include "state.h"

static inline unsigned op_size(const struct insn *i)
{
    return i->op & 1 ? i->osize : 1;
}

static inline unsigned width_of(unsigned size)
{
    return size == 1 ? IR_W8 : size == 2 ? IR_W16 : size == 4 ? IR_W32 : IR_W64;
}

static inline void record(struct x86 *c, unsigned family, unsigned size, uint64_t result,
                          uint64_t second)
{
    c->cpu.r[IR_KIND] = family * 4 + width_of(size);
    c->cpu.r[IR_RESULT] = result & width_mask(size);
    c->cpu.r[IR_SECOND] = second & width_mask(size);
}

static inline unsigned group(const struct insn *i)
{
    return (i->modrm >> 3) & 7;
}

/* A value that is changed in memory or a register; atomic under LOCK. The function may be called
 * more than once and must not change anything else. */
typedef uint64_t change_fn(uint64_t old, const void *arg);
uint64_t rm_change(struct x86 *c, const struct insn *i, unsigned size, bool atomic, change_fn *fn,
                   const void *arg);

x86_helper h_alu, h_shift, h_shld, h_muldiv, h_imul, h_bt, h_bits, h_bswap, h_xchg, h_cmpxchg,
    h_xadd;
x86_helper h_cmpxchg16b, h_string, h_pusha, h_popa, h_pushf, h_popf, h_lahf, h_sahf, h_flagop,
    h_xlat;
x86_helper h_bcd, h_enter, h_leave, h_bound, h_moffs, h_pop_rm, h_movbe, h_crc32, h_bmi, h_xchg_ax,
    h_unary, h_movnti, h_fwait, h_adx, h_rdrand, h_xsave;

#endif
