/* Control registers, descriptor tables, ports, and who may touch them. */
#include "system.h"

#include "sse.h"

static void privileged(struct x86 *c)
{
    if (c->cpl)
        x86_raise_code(c, X_GP, 0);
}

void h_mov_seg(struct x86 *c, const struct insn *i)
{
    unsigned s = i->reg & 7;
    if (s == CS || s > GS)
        x86_raise(c, X_UD);
    seg_load(c, s, (uint16_t)rm_read(c, i, 2));
    c->shadow = s == SS;
}

void h_mov_from_seg(struct x86 *c, const struct insn *i)
{
    if ((i->reg & 7) > GS)
        x86_raise(c, X_UD);
    rm_write(c, i, i->mod == 3 ? i->osize : 2, c->seg[i->reg & 7].selector);
}

static unsigned seg_of(const struct insn *i)
{
    return i->op >= MAP_0F ? (i->op & 8 ? GS : FS) : i->op >> 3;
}

void h_push_seg(struct x86 *c, const struct insn *i)
{
    push(c, i->osize, c->seg[seg_of(i)].selector);
}

void h_pop_seg(struct x86 *c, const struct insn *i)
{
    uint64_t mask = stack_mask(c), sp = c->cpu.r[RSP];
    seg_load(c, seg_of(i), (uint16_t)cpu_load(&c->cpu, linear(c, SS, sp & mask), 2));
    c->cpu.r[RSP] = (sp & ~mask) | ((sp + i->osize) & mask);
    c->shadow = seg_of(i) == SS;
}

/* LES, LDS, LSS, LFS, LGS. */
void h_load_far(struct x86 *c, const struct insn *i)
{
    unsigned s = i->op == 0xc4      ? ES
                 : i->op == 0xc5    ? DS
                 : (i->op & 7) == 2 ? SS
                 : i->op & 1        ? GS
                                    : FS;
    uint64_t at = ea(c, i), value = cpu_load(&c->cpu, at, i->osize);
    seg_load(c, s, (uint16_t)cpu_load(&c->cpu, at + i->osize, 2));
    reg_write(c, i, i->reg, i->osize, value);
}

static void set_cr0(struct x86 *c, uint64_t value)
{
    uint64_t old = c->cr0;
    value = (uint32_t)value | CR0_ET;
    if ((value & CR0_PG && !(value & CR0_PE)) || (value & 1 << 29 && !(value & 1 << 30)))
        x86_raise_code(c, X_GP, 0);
    if (value & CR0_PG && !(old & CR0_PG) && c->efer & EFER_LME) {
        if (!(c->cr4 & CR4_PAE))
            x86_raise_code(c, X_GP, 0);
        c->efer |= EFER_LMA;
    } else if (!(value & CR0_PG)) {
        if (c->cpu.mode & M_64)
            x86_raise_code(c, X_GP, 0);
        c->efer &= ~(uint64_t)EFER_LMA;
    }
    c->cr0 = value;
    if ((old ^ value) & (CR0_PG | CR0_WP | CR0_PE))
        cpu_flush(&c->cpu);
    x86_update_mode(c);
}

static uint64_t known_cr4(const struct x86 *c)
{
    static const struct {
        uint32_t bit;
        unsigned feature;
    } by_feature[] = {
        { CR4_PGE, FEATURE_PGE },           { CR4_OSFXSR, FEATURE_FXSR },
        { CR4_OSXMM, FEATURE_SSE },         { CR4_UMIP, FEATURE_UMIP },
        { CR4_FSGSBASE, FEATURE_FSGSBASE }, { CR4_PCIDE, FEATURE_PCID },
        { CR4_OSXSAVE, FEATURE_XSAVE },     { CR4_SMEP, FEATURE_SMEP },
        { CR4_SMAP, FEATURE_SMAP },
    };
    uint64_t known = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PCE;
    for (size_t n = 0; n < sizeof by_feature / sizeof by_feature[0]; n++) {
        if (has(c, by_feature[n].feature))
            known |= by_feature[n].bit;
    }
    return known;
}

static void set_cr4(struct x86 *c, uint64_t value)
{
    bool wide = c->efer & EFER_LMA, pcid = value & CR4_PCIDE;
    if (value & ~known_cr4(c) || (wide && !(value & CR4_PAE)) ||
        (pcid && !(c->cr4 & CR4_PCIDE) && (!wide || c->cr3 & 0xfff)))
        x86_raise_code(c, X_GP, 0);
    uint64_t changed = c->cr4 ^ value;
    c->cr4 = value;
    if (changed & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP))
        cpu_flush(&c->cpu);
    x86_update_mode(c);
}

void h_mov_cr(struct x86 *c, const struct insn *i)
{
    privileged(c);
    unsigned size = i->is64 ? 8 : 4;
    if (!(i->op & 2)) {
        uint64_t v;
        switch (i->reg) {
        case 0:
            v = c->cr0;
            break;
        case 2:
            v = c->cr2;
            break;
        case 3:
            v = c->cr3;
            break;
        case 4:
            v = c->cr4;
            break;
        case 8:
            v = c->bus->get_priority ? c->bus->get_priority(c->machine, c->cpu.id) : 0;
            break;
        default:
            x86_raise(c, X_UD);
        }
        reg_write(c, i, i->rm, size, v);
        return;
    }
    uint64_t v = reg_read(c, i, i->rm, size);
    switch (i->reg) {
    case 0:
        set_cr0(c, v);
        break;
    case 2:
        c->cr2 = v;
        break;
    case 3:
        if (v & (c->efer & EFER_LMA ? (uint64_t)0x7fff0000000000 << 8 : 0))
            x86_raise_code(c, X_GP, 0);
        c->cr3 = v & ~((uint64_t)1 << 63);
        cpu_flush_local(&c->cpu);
        break;
    case 4:
        set_cr4(c, v);
        break;
    case 8:
        if (c->bus->set_priority)
            c->bus->set_priority(c->machine, c->cpu.id, v & 15);
        break;
    default:
        x86_raise(c, X_UD);
    }
}

void h_mov_dr(struct x86 *c, const struct insn *i)
{
    privileged(c);
    unsigned n = i->reg & 7;
    if (n == 4 || n == 5)
        n += 2;
    if (i->op & 2)
        c->dr[n] = n == 6   ? (reg_read(c, i, i->rm, 8) & 0xe00f) | 0xffff0ff0
                   : n == 7 ? (uint32_t)reg_read(c, i, i->rm, 8) | 0x400
                            : reg_read(c, i, i->rm, 8);
    else
        reg_write(c, i, i->rm, i->is64 ? 8 : 4, c->dr[n]);
}

/* Ports. */
static void io_allowed(struct x86 *c, uint16_t port, unsigned size)
{
    if (!(c->cr0 & CR0_PE) || (c->cpl <= (c->eflags & F_IOPL) >> 12 && !(c->eflags & F_VM)))
        return;
    if ((c->seg[TR].attr & 15) < 9 || c->seg[TR].limit < 103)
        x86_raise_code(c, X_GP, 0);
    uint64_t map = sys_load(c, c->base[TR] + 102, 2);
    if (map + port / 8 + 1 > c->seg[TR].limit)
        x86_raise_code(c, X_GP, 0);
    uint64_t bits = sys_load(c, c->base[TR] + map + port / 8, 2);
    if (bits >> (port & 7) & ((1u << size) - 1))
        x86_raise_code(c, X_GP, 0);
}

static uint32_t port_in(struct x86 *c, uint16_t port, unsigned size)
{
    return c->bus->in ? c->bus->in(c->machine, port, size) : ~0u;
}

void h_io(struct x86 *c, const struct insn *i)
{
    unsigned size = i->op & 1 ? (i->osize == 2 ? 2 : 4) : 1;
    uint16_t port = i->op & 8 ? (uint16_t)c->cpu.r[RDX] : (uint16_t)(i->imm & 0xff);
    io_allowed(c, port, size);
    if (!(i->op & 2))
        reg_write(c, i, RAX, size, port_in(c, port, size));
    else if (c->bus->out)
        c->bus->out(c->machine, port, size, (uint32_t)(c->cpu.r[RAX] & width_mask(size)));
}

void h_string_io(struct x86 *c, const struct insn *i)
{
    unsigned size = i->op & 1 ? (i->osize == 2 ? 2 : 4) : 1, reg = i->op & 2 ? RSI : RDI;
    uint16_t port = (uint16_t)c->cpu.r[RDX];
    uint64_t amask = width_mask(i->asize);
    io_allowed(c, port, size);
    for (;;) {
        uint64_t count = c->cpu.r[RCX] & amask;
        if (i->rep && !count)
            break;
        uint64_t at = linear(c, i->op & 2 ? i->seg : ES, c->cpu.r[reg] & amask);
        if (i->op & 2) {
            uint64_t v = cpu_load(&c->cpu, at, size);
            if (c->bus->out)
                c->bus->out(c->machine, port, size, (uint32_t)v);
        } else {
            cpu_probe(&c->cpu, at, size, CPU_WRITE); /* nothing is read that cannot be kept */
            cpu_store(&c->cpu, at, size, port_in(c, port, size));
        }
        reg_write(c, i, reg, i->asize,
                  c->cpu.r[reg] + (c->eflags & F_D ? 0 - (uint64_t)size : size));
        if (!i->rep)
            break;
        reg_write(c, i, RCX, i->asize, count - 1);
        if (count > 1 && atomic_load(&c->cpu.request) & ~8u) {
            c->cpu.r[IR_PC] = cpu_pc(&c->cpu);
            return;
        }
    }
    c->cpu.r[IR_PC] = i->next;
}

static void may_mask(struct x86 *c)
{
    if (c->cr0 & CR0_PE && c->cpl > (c->eflags & F_IOPL) >> 12)
        x86_raise_code(c, X_GP, 0);
}

static void h_cli(struct x86 *c, const struct insn *i)
{
    (void)i;
    may_mask(c);
    c->eflags &= ~(uint64_t)F_I;
}

/* The next instruction is in the same block, so nothing comes in between. */
void h_sti(struct x86 *c, const struct insn *i)
{
    (void)i;
    may_mask(c);
    c->eflags |= F_I;
    let_in(c);
}

/* For those cases where it is not: it gets a block of its own. */
void h_shadow(struct x86 *c, const struct insn *i)
{
    (void)i;
    c->shadow = true;
    cpu_request_self(&c->cpu, CPU_REQUEST_RETRY);
}

static void h_sti_alone(struct x86 *c, const struct insn *i)
{
    bool was = c->eflags & F_I;
    h_sti(c, i);
    if (!was)
        h_shadow(c, i);
}

/* SLDT, STR, LLDT, LTR, VERR, VERW. */
void h_0f00(struct x86 *c, const struct insn *i)
{
    unsigned g = group(i), s = g & 1 ? TR : LDTR;
    if (!(c->cr0 & CR0_PE) || c->eflags & F_VM || g > 5)
        x86_raise(c, X_UD);
    if (g < 2) {
        if (c->cr4 & CR4_UMIP)
            privileged(c);
        rm_write(c, i, i->mod == 3 ? i->osize : 2, c->seg[s].selector);
        return;
    }
    uint16_t selector = (uint16_t)rm_read(c, i, 2);
    uint64_t d = 0, at = 0;
    uint32_t code = selector & 0xfffc;
    if (g > 3) {
        bool ok = code && desc_read(c, selector, &d, &at) && d >> 44 & 1;
        bool is_code = d >> 43 & 1, second = d >> 41 & 1;
        unsigned dpl = d >> 45 & 3;
        ok = ok && (g == 4 ? !is_code || second : !is_code && second);
        ok = ok && ((is_code && d >> 42 & 1) || (dpl >= c->cpl && dpl >= (selector & 3u)));
        flags_set_arith(c, (flags_arith(c) & ~(uint64_t)F_Z) | (ok ? F_Z : 0));
        return;
    }
    privileged(c);
    if (!code) {
        if (s == TR)
            x86_raise_code(c, X_GP, 0);
        seg_set(c, LDTR, selector, 0, 0, 0);
        return;
    }
    if (selector & 4 || !desc_read(c, selector, &d, &at))
        x86_raise_code(c, X_GP, code);
    unsigned type = d >> 40 & 31;
    if (s == LDTR ? type != 2 : type != 9 && type != 1)
        x86_raise_code(c, X_GP, code);
    if (!(d >> 47 & 1))
        x86_raise_code(c, X_NP, code);
    uint64_t high = c->efer & EFER_LMA ? sys_load(c, at + 8, 4) << 32 : 0;
    if (s == TR) {
        d |= (uint64_t)2 << 40;
        sys_store(c, at + 5, 1, d >> 40);
    }
    desc_install(c, s, selector, d);
    c->base[s] |= high;
}

static void table(struct x86 *c, const struct insn *i)
{
    unsigned g = group(i), size = c->cpu.mode & M_64 ? 8 : 4;
    uint64_t at = ea(c, i), *base = g & 1 ? &c->idt_base : &c->gdt_base;
    uint32_t *limit = g & 1 ? &c->idt_limit : &c->gdt_limit;
    if (g < 2) {
        if (c->cr4 & CR4_UMIP)
            privileged(c);
        cpu_store(&c->cpu, at, 2, *limit);
        cpu_store(&c->cpu, at + 2, size, *base);
        return;
    }
    privileged(c);
    uint64_t l = cpu_load(&c->cpu, at, 2), b = cpu_load(&c->cpu, at + 2, size);
    *limit = (uint32_t)l;
    *base = i->osize == 2 ? b & 0xffffff : b;
}

static void special(struct x86 *c, const struct insn *i)
{
    uint64_t *gs = &c->cpu.r[BASE + GS], t;
    switch (i->modrm) {
    case 0xca:
    case 0xcb:
        if (!has(c, FEATURE_SMAP))
            x86_raise(c, X_UD);
        if (c->cpl)
            x86_raise(c, X_UD);
        c->eflags = i->modrm & 1 ? c->eflags | F_AC : c->eflags & ~(uint64_t)F_AC;
        x86_update_mode(c);
        break;
    case 0xd0:
        if (!(c->cr4 & CR4_OSXSAVE))
            x86_raise(c, X_UD);
        if ((uint32_t)c->cpu.r[RCX] > has(c, FEATURE_XGETBV1))
            x86_raise_code(c, X_GP, 0);
        c->cpu.r[RAX] = (uint32_t)c->cpu.r[RCX] ? c->xcr0 & x86_xinuse(c) : c->xcr0;
        c->cpu.r[RDX] = 0;
        break;
    case 0xd1:
        if (!(c->cr4 & CR4_OSXSAVE))
            x86_raise(c, X_UD);
        privileged(c);
        if ((uint32_t)c->cpu.r[RCX] || (uint32_t)c->cpu.r[RDX] || !(c->cpu.r[RAX] & 1) ||
            (uint32_t)c->cpu.r[RAX] & ~3u)
            x86_raise_code(c, X_GP, 0);
        c->xcr0 = c->cpu.r[RAX] & 3;
        break;
    case 0xf8:
        if (!i->is64)
            x86_raise(c, X_UD);
        privileged(c);
        t = *gs;
        *gs = c->kernel_gs;
        c->kernel_gs = t;
        break;
    case 0xf9:
        if (!has(c, FEATURE_RDTSCP))
            x86_raise(c, X_UD);
        h_rdtsc(c, i);
        c->cpu.r[RCX] = (uint32_t)c->tsc_aux;
        break;
    default:
        x86_raise(c, X_UD);
    }
}

void h_0f01(struct x86 *c, const struct insn *i)
{
    unsigned g = group(i);
    if (g == 4) {
        if (c->cr4 & CR4_UMIP)
            privileged(c);
        rm_write(c, i, i->mod == 3 ? i->osize : 2, c->cr0);
    } else if (g == 6) {
        privileged(c);
        uint64_t v = rm_read(c, i, 2);
        set_cr0(c, (c->cr0 & ~(uint64_t)14) | (v & 15) | (c->cr0 & 1));
    } else if (i->mod == 3) {
        special(c, i);
    } else if (g < 4) {
        table(c, i);
    } else if (g == 7) {
        privileged(c);
        cpu_flush_page(&c->cpu, ea(c, i));
    } else {
        x86_raise(c, X_UD);
    }
}

void h_clts(struct x86 *c, const struct insn *i)
{
    (void)i;
    privileged(c);
    c->cr0 &= ~(uint64_t)CR0_TS;
}

void h_invd(struct x86 *c, const struct insn *i)
{
    (void)i;
    privileged(c);
}

void h_rdtsc(struct x86 *c, const struct insn *i)
{
    (void)i;
    if (c->cr4 & CR4_TSD)
        privileged(c);
    uint64_t t = x86_tsc(c);
    c->cpu.r[RAX] = (uint32_t)t;
    c->cpu.r[RDX] = t >> 32;
}

/* LAR, LSL. */
void h_lar(struct x86 *c, const struct insn *i)
{
    uint16_t selector = (uint16_t)rm_read(c, i, 2);
    uint64_t d = 0, at;
    if (!(c->cr0 & CR0_PE) || c->eflags & F_VM)
        x86_raise(c, X_UD);
    bool ok = selector & 0xfffc && desc_read(c, selector, &d, &at);
    unsigned type = d >> 40 & 31, dpl = d >> 45 & 3;
    bool conforming = (type & 28) == 28;
    if (!(type & 16))
        ok = ok && (type == 2 || type == 9 || type == 11 ||
                    (!(c->efer & EFER_LMA) &&
                     (type == 1 || type == 3 || (!(i->op & 1) && (type == 4 || type == 5)))) ||
                    (!(i->op & 1) && type == 12));
    ok = ok && (conforming || (dpl >= c->cpl && dpl >= (selector & 3u)));
    uint32_t limit = (uint32_t)((d & 0xffff) | (d >> 32 & 0xf0000));
    if (ok)
        reg_write(c, i, i->reg, i->osize,
                  i->op & 1 ? (d >> 55 & 1 ? limit << 12 | 0xfff : limit) : d >> 32 & 0xf0ff00);
    flags_set_arith(c, (flags_arith(c) & ~(uint64_t)F_Z) | (ok ? F_Z : 0));
}

void h_arpl(struct x86 *c, const struct insn *i)
{
    if (!(c->cpu.mode & M_PE))
        x86_raise(c, X_UD);
    uint64_t a = rm_read(c, i, 2), b = reg_read(c, i, i->reg, 2);
    bool less = (a & 3) < (b & 3);
    if (less)
        rm_write(c, i, 2, (a & ~(uint64_t)3) | (b & 3));
    flags_set_arith(c, (flags_arith(c) & ~(uint64_t)F_Z) | (less ? F_Z : 0));
}

void h_fsgsbase(struct x86 *c, const struct insn *i)
{
    unsigned g = group(i);
    if (!(c->cr4 & CR4_FSGSBASE) || !i->is64)
        x86_raise(c, X_UD);
    uint64_t *base = &c->cpu.r[BASE + (g & 1 ? GS : FS)];
    if (g < 2)
        reg_write(c, i, i->rm, i->osize, *base);
    else
        *base = reg_read(c, i, i->rm, i->osize);
}

void h_rdpid(struct x86 *c, const struct insn *i)
{
    c->cpu.r[i->rm] = (uint32_t)c->tsc_aux;
}

/* The four types differ in what they may keep; we keep less. */
static void h_invpcid(struct x86 *c, const struct insn *i)
{
    privileged(c);
    uint64_t type = reg_read(c, i, i->reg, i->is64 ? 8 : 4), at = ea(c, i);
    uint64_t pcid = cpu_load(&c->cpu, at, 8), address = cpu_load(&c->cpu, at + 8, 8);
    bool canonical = (uint64_t)((int64_t)(address << 16) >> 16) == address;
    if (type > 3 || pcid >> 12 || (type == 0 && !canonical) ||
        (pcid && type < 2 && !(c->cr4 & CR4_PCIDE)))
        x86_raise_code(c, X_GP, 0);
    if (type == 0)
        cpu_flush_page(&c->cpu, address);
    else if (type == 2)
        cpu_flush(&c->cpu);
    else
        cpu_flush_local(&c->cpu);
}

/* By opcode, two-byte ones from 0x100. */
static x86_helper *const table_of_all[512] = {
    [0x06] = h_push_seg,
    [0x07] = h_pop_seg,
    [0x0e] = h_push_seg,
    [0x16] = h_push_seg,
    [0x17] = h_pop_seg,
    [0x1e] = h_push_seg,
    [0x1f] = h_pop_seg,
    [0x63] = h_arpl,
    [0x6c ... 0x6f] = h_string_io,
    [0x8c] = h_mov_from_seg,
    [0x8e] = h_mov_seg,
    [0x9a] = h_far,
    [0xc4 ... 0xc5] = h_load_far,
    [0xca ... 0xcb] = h_retf,
    [0xcc ... 0xce] = h_int,
    [0xcf] = h_iret,
    [0xe4 ... 0xe7] = h_io,
    [0xea] = h_far,
    [0xec ... 0xef] = h_io,
    [0xf1] = h_int,
    [0xf4] = h_hlt,
    [0xfa] = h_cli,
    [0xfb] = h_sti_alone,
    [0xff] = h_far,
    [0x100] = h_0f00,
    [0x101] = h_0f01,
    [0x102 ... 0x103] = h_lar,
    [0x105] = h_syscall,
    [0x106] = h_clts,
    [0x107] = h_sysret,
    [0x108 ... 0x109] = h_invd,
    [0x120] = h_mov_cr,
    [0x121] = h_mov_dr,
    [0x122] = h_mov_cr,
    [0x123] = h_mov_dr,
    [0x130] = h_msr,
    [0x131] = h_rdtsc,
    [0x132] = h_msr,
    [0x134] = h_sysenter,
    [0x135] = h_sysexit,
    [0x1a0] = h_push_seg,
    [0x1a1] = h_pop_seg,
    [0x1a2] = h_cpuid,
    [0x1a8] = h_push_seg,
    [0x1a9] = h_pop_seg,
    [0x1b2] = h_load_far,
    [0x1b4 ... 0x1b5] = h_load_far,
};

/* What 64-bit mode did away with; 0xc4 and 0xc5 are VEX there. */
static bool gone(const struct insn *i)
{
    x86_helper *fn = i->op < MAP_0F ? table_of_all[i->op] : NULL;
    return i->is64 && (fn == h_push_seg || fn == h_pop_seg || fn == h_arpl || i->op == 0x9a ||
                       i->op == 0xea || fn == h_load_far || i->op == 0xce);
}

x86_helper *x86_find_system(struct x86 *c, const struct insn *i)
{
    unsigned g = group(i);
    bool reg = i->mod == 3;
    if (i->op == 0x1ae)
        return reg && i->rep == 0xf3 && g < 4 ? h_fsgsbase : NULL;
    if (i->op == 0x1c7)
        return reg && i->rep == 0xf3 && g == 7 && has(c, FEATURE_RDPID) ? h_rdpid : NULL;
    if (i->op == MAP_38 + 0x82)
        return i->opsize && !reg && has(c, FEATURE_INVPCID) ? h_invpcid : NULL;
    if (i->op >= MAP_38 || gone(i) || (i->op == 0xff && (reg || (g != 3 && g != 5))))
        return NULL;
    x86_helper *fn = table_of_all[i->op];
    return fn == h_load_far && reg ? NULL : fn;
}
