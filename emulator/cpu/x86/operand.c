/* Operands of instructions that helpers do. */
#include "state.h"

uint64_t linear(struct x86 *c, unsigned s, uint64_t offset)
{
    if (c->cpu.mode & M_64)
        return s >= FS ? c->cpu.r[BASE + s] + offset : offset;
    return (uint32_t)(c->cpu.r[BASE + s] + offset);
}

uint64_t ea_offset(struct x86 *c, const struct insn *i)
{
    uint64_t at = (uint64_t)i->disp;
    if (i->base >= 0)
        at += c->cpu.r[i->base];
    if (i->index >= 0)
        at += c->cpu.r[i->index] << i->scale;
    return at & width_mask(i->asize);
}

uint64_t ea(struct x86 *c, const struct insn *i)
{
    return linear(c, i->seg, ea_offset(c, i));
}

uint64_t reg_read(struct x86 *c, const struct insn *i, unsigned n, unsigned size)
{
    if (size == 1 && !i->rex && n >= 4 && n < 8)
        return (uint8_t)(c->cpu.r[n - 4] >> 8);
    return c->cpu.r[n] & width_mask(size);
}

void reg_write(struct x86 *c, const struct insn *i, unsigned n, unsigned size, uint64_t value)
{
    uint64_t *r = c->cpu.r;
    if (size == 1 && !i->rex && n >= 4 && n < 8)
        r[n - 4] = (r[n - 4] & ~(uint64_t)0xff00) | (value & 0xff) << 8;
    else if (size >= 4)
        r[n] = value & width_mask(size);
    else
        r[n] = (r[n] & ~width_mask(size)) | (value & width_mask(size));
}

uint64_t rm_read(struct x86 *c, const struct insn *i, unsigned size)
{
    return i->mod == 3 ? reg_read(c, i, i->rm, size) : cpu_load(&c->cpu, ea(c, i), size);
}

void rm_write(struct x86 *c, const struct insn *i, unsigned size, uint64_t value)
{
    if (i->mod == 3)
        reg_write(c, i, i->rm, size, value);
    else
        cpu_store(&c->cpu, ea(c, i), size, value);
}
