/* Segments: descriptors, loading, and the mode that translation depends on. */
#include "helpers.h"

enum {
    A_TYPE = 15,
    A_S = 16,
    A_DPL = 0x60,
    A_P = 128,
    A_L = 1 << 13,
    A_DB = 1 << 14,
    A_G = 1 << 15
};

void x86_update_mode(struct x86 *c)
{
    struct cpu *cpu = &c->cpu;
    uint32_t mode = 0;
    bool pe = c->cr0 & CR0_PE, vm = c->eflags & F_VM;
    c->cpl = !pe ? 0 : vm ? 3 : c->seg[SS].attr >> 5 & 3;
    if (c->efer & EFER_LMA && c->seg[CS].attr & A_L)
        mode |= M_64;
    else if (c->seg[CS].attr & A_DB)
        mode |= M_32;
    if (c->seg[SS].attr & A_DB)
        mode |= M_SS32;
    if (mode & M_64 || !(cpu->r[BASE + DS] | cpu->r[BASE + ES] | cpu->r[BASE + SS]))
        mode |= M_FLAT;
    if (c->eflags & F_T)
        mode |= M_TF;
    if (pe && !vm)
        mode |= M_PE;
    mode |= c->cpl << 4;
    cpu->mode = mode;
    bool guarded = c->cr4 & CR4_SMAP && !(c->eflags & F_AC);
    cpu_set_tlb_mode(cpu, c->cpl == 3 ? 1 : guarded ? 2 : 0);
}

void seg_set(struct x86 *c, unsigned s, uint16_t selector, uint64_t base, uint32_t limit,
             uint32_t attr)
{
    c->seg[s] = (struct segment){ .selector = selector, .limit = limit, .attr = attr };
    c->base[s] = base;
    if (s <= GS) {
        c->cpu.r[BASE + s] = base;
    }
    x86_update_mode(c);
}

/* Real and virtual-8086 mode keep limit and attributes. */
void seg_set_real(struct x86 *c, unsigned s, uint16_t selector)
{
    bool vm = c->eflags & F_VM && c->cr0 & CR0_PE;
    uint32_t attr = vm ? 0xf3 : (c->seg[s].attr & ~(uint32_t)(A_TYPE | A_DPL)) | 0x93;
    seg_set(c, s, selector, (uint64_t)selector << 4, vm ? 0xffff : c->seg[s].limit, attr);
}

bool desc_read(struct x86 *c, uint16_t selector, uint64_t *desc, uint64_t *address)
{
    uint64_t table = c->gdt_base, limit = c->gdt_limit;
    if (selector & 4) {
        table = c->base[LDTR];
        limit = c->seg[LDTR].limit;
        if (!(c->seg[LDTR].selector & 0xfffc))
            return false;
    }
    if ((selector | 7u) > limit)
        return false;
    *address = table + (selector & ~7u);
    *desc = sys_load(c, *address, 8);
    return true;
}

static uint64_t desc_base(uint64_t d)
{
    return (d >> 16 & 0xffffff) | (d >> 56 << 24);
}

static uint32_t desc_limit(uint64_t d)
{
    uint32_t limit = (uint32_t)((d & 0xffff) | (d >> 32 & 0xf0000));
    return d >> 55 & 1 ? limit << 12 | 0xfff : limit;
}

void desc_install(struct x86 *c, unsigned s, uint16_t selector, uint64_t d)
{
    uint64_t base = desc_base(d);
    seg_set(c, s, selector, base, desc_limit(d), (uint32_t)(d >> 40) & 0xf0ff);
}

/* Loads DS, ES, FS, GS or SS as MOV and POP do. */
void seg_load(struct x86 *c, unsigned s, uint16_t selector)
{
    if (!(c->cr0 & CR0_PE) || c->eflags & F_VM) {
        seg_set_real(c, s, selector);
        return;
    }
    uint64_t d = 0, at;
    unsigned rpl = selector & 3;
    uint32_t code = selector & 0xfffc;
    if (!(selector & 0xfffc)) {
        bool long_stack = c->cpu.mode & M_64 && c->cpl < 3 && rpl == c->cpl;
        if (s == SS && !long_stack)
            x86_raise_code(c, X_GP, 0);
        /* A null segment keeps its base in 64-bit mode on some processors; zero it. */
        seg_set(c, s, selector, 0, 0, s == SS ? A_S | A_P | 3 | c->cpl << 5 | A_DB : 0);
        return;
    }
    if (!desc_read(c, selector, &d, &at))
        x86_raise_code(c, X_GP, code);
    unsigned type = d >> 40 & 31, dpl = d >> 45 & 3;
    bool is_code = type & 8;
    if (!(type & 16))
        x86_raise_code(c, X_GP, code);
    if (s == SS) {
        if (rpl != c->cpl || dpl != c->cpl || is_code || !(type & 2))
            x86_raise_code(c, X_GP, code);
    } else if ((is_code && !(type & 2)) ||
               ((!is_code || !(type & 4)) && (rpl > dpl || c->cpl > dpl))) {
        x86_raise_code(c, X_GP, code);
    }
    if (!(d >> 47 & 1))
        x86_raise_code(c, s == SS ? X_SS : X_NP, code);
    if (!(d >> 40 & 1)) {
        d |= (uint64_t)1 << 40;
        sys_store(c, at + 5, 1, d >> 40);
    }
    desc_install(c, s, selector, d);
}

uint64_t stack_mask(struct x86 *c)
{
    return c->cpu.mode & M_64 ? ~(uint64_t)0 : c->cpu.mode & M_SS32 ? 0xffffffff : 0xffff;
}

void push(struct x86 *c, unsigned size, uint64_t value)
{
    uint64_t mask = stack_mask(c), sp = c->cpu.r[RSP];
    uint64_t to = (sp - size) & mask;
    cpu_store(&c->cpu, linear(c, SS, to), size, value);
    c->cpu.r[RSP] = (sp & ~mask) | to;
}

uint64_t pop(struct x86 *c, unsigned size)
{
    uint64_t mask = stack_mask(c), sp = c->cpu.r[RSP];
    uint64_t value = cpu_load(&c->cpu, linear(c, SS, sp & mask), size);
    c->cpu.r[RSP] = (sp & ~mask) | ((sp + size) & mask);
    return value;
}
