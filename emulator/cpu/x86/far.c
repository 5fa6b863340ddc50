/* Far jumps, calls and returns; system call instructions; hardware task switches. */
#include "system.h"

static void far_real(struct x86 *c, const struct insn *i, uint16_t cs, uint64_t target,
                     bool is_call)
{
    if (is_call) {
        uint64_t sp = c->cpu.r[RSP];
        cpu_probe(&c->cpu, linear(c, SS, (sp - 2u * i->osize) & stack_mask(c)), 1, CPU_WRITE);
        push(c, i->osize, c->seg[CS].selector);
        push(c, i->osize, i->next);
    }
    seg_set_real(c, CS, cs);
    c->cpu.r[IR_PC] = target;
}

/* Through a call gate. */
static void far_gate(struct x86 *c, uint16_t selector, uint64_t gate, uint64_t at,
                     const struct insn *i, bool is_call)
{
    unsigned type = gate >> 40 & 31, dpl = gate >> 45 & 3;
    uint32_t code = selector & 0xfffc;
    bool wide = c->efer & EFER_LMA;
    if (!wide && (type == 9 || type == 11 || type == 5)) {
        x86_task_switch(c, type == 5 ? (uint16_t)(gate >> 16) : selector, is_call, 0, false);
        return;
    }
    if (type != 12 && (type != 4 || wide))
        x86_raise_code(c, X_GP, code);
    if (dpl < c->cpl || dpl < (selector & 3u))
        x86_raise_code(c, X_GP, code);
    if (!(gate >> 47 & 1))
        x86_raise_code(c, X_NP, code);
    uint16_t cs = (uint16_t)(gate >> 16);
    uint64_t target = (gate & 0xffff) | gate >> 48 << 16, d = 0, where;
    if (wide)
        target |= sys_load(c, at + 8, 4) << 32;
    if (!(cs & 0xfffc) || !desc_read(c, cs, &d, &where) || (d >> 40 & 0x18) != 0x18)
        x86_raise_code(c, X_GP, cs & 0xfffcu);
    unsigned cdpl = d >> 45 & 3, size = wide ? 8 : type == 12 ? 4 : 2;
    if (is_call && !(d >> 42 & 1) && cdpl < c->cpl)
        x86_raise_code(c, X_GP, code); /* inner levels by call gates: nobody uses them */
    push(c, size, c->seg[CS].selector);
    push(c, size, i->next);
    desc_install(c, CS, (uint16_t)((cs & ~3u) | c->cpl), d);
    c->cpu.r[IR_PC] = target;
}

static void far_transfer(struct x86 *c, const struct insn *i, uint16_t cs, uint64_t target,
                         bool is_call)
{
    if (!(c->cr0 & CR0_PE) || c->eflags & F_VM) {
        far_real(c, i, cs, target, is_call);
        return;
    }
    uint64_t d = 0, at = 0;
    uint32_t code = cs & 0xfffc;
    if (!code || !desc_read(c, cs, &d, &at))
        x86_raise_code(c, X_GP, code);
    if (!(d >> 44 & 1)) {
        far_gate(c, cs, d, at, i, is_call);
        return;
    }
    unsigned dpl = d >> 45 & 3;
    bool conforming = d >> 42 & 1;
    if (!(d >> 43 & 1) || (conforming ? dpl > c->cpl : dpl != c->cpl || (cs & 3u) > c->cpl))
        x86_raise_code(c, X_GP, code);
    if (!(d >> 47 & 1))
        x86_raise_code(c, X_NP, code);
    if (is_call) {
        cpu_probe(&c->cpu, linear(c, SS, (c->cpu.r[RSP] - 2u * i->osize) & stack_mask(c)), 1,
                  CPU_WRITE);
        push(c, i->osize, c->seg[CS].selector);
        push(c, i->osize, i->next);
    }
    if (!(d >> 40 & 1)) {
        d |= (uint64_t)1 << 40;
        sys_store(c, at + 5, 1, d >> 40);
    }
    desc_install(c, CS, (uint16_t)((cs & ~3u) | c->cpl), d);
    c->cpu.r[IR_PC] = target;
}

void h_far(struct x86 *c, const struct insn *i)
{
    if (i->op == 0xff) {
        uint64_t at = ea(c, i), target = cpu_load(&c->cpu, at, i->osize);
        uint16_t cs = (uint16_t)cpu_load(&c->cpu, at + i->osize, 2);
        far_transfer(c, i, cs, target, group(i) == 3);
    } else {
        far_transfer(c, i, i->imm2, (uint64_t)i->imm & width_mask(i->osize), i->op == 0x9a);
    }
}

void h_retf(struct x86 *c, const struct insn *i)
{
    unsigned size = i->osize;
    uint64_t mask = stack_mask(c), sp = c->cpu.r[RSP], d = 0, at;
    uint64_t target = cpu_load(&c->cpu, linear(c, SS, sp & mask), size);
    uint16_t cs = (uint16_t)cpu_load(&c->cpu, linear(c, SS, (sp + size) & mask), size);
    uint64_t more = i->op == 0xca ? (uint64_t)i->imm : 0, after = sp + 2 * size + more;
    if (!(c->cr0 & CR0_PE) || c->eflags & F_VM) {
        c->cpu.r[RSP] = (sp & ~mask) | (after & mask);
        seg_set_real(c, CS, cs);
        c->cpu.r[IR_PC] = target;
        return;
    }
    unsigned rpl = cs & 3;
    if (!(cs & 0xfffc) || rpl < c->cpl || !desc_read(c, cs, &d, &at) || (d >> 40 & 0x18) != 0x18)
        x86_raise_code(c, X_GP, cs & 0xfffcu);
    if (!(d >> 47 & 1))
        x86_raise_code(c, X_NP, cs & 0xfffcu);
    if (rpl == c->cpl) {
        c->cpu.r[RSP] = (sp & ~mask) | (after & mask);
        desc_install(c, CS, cs, d);
    } else {
        uint64_t new_sp = cpu_load(&c->cpu, linear(c, SS, after & mask), size), sd = 0;
        uint16_t ss = (uint16_t)cpu_load(&c->cpu, linear(c, SS, (after + size) & mask), size);
        if ((ss & 0xfffc) && !desc_read(c, ss, &sd, &at))
            x86_raise_code(c, X_GP, ss & 0xfffcu);
        desc_install(c, CS, cs, d);
        if (ss & 0xfffc)
            desc_install(c, SS, ss, sd);
        else
            seg_set(c, SS, ss, 0, 0, 0x93 | rpl << 5 | 1 << 14);
        c->cpu.r[RSP] = new_sp + more;
    }
    c->cpu.r[IR_PC] = target;
}

/* Flat code and stack segments, as SYSCALL and SYSENTER make them. */
static void flat(struct x86 *c, uint16_t cs, unsigned cpl, bool wide, uint16_t ss)
{
    seg_set(c, SS, ss, 0, 0xffffffff, 0xc093 | cpl << 5);
    seg_set(c, CS, cs, 0, 0xffffffff, 0x809b | cpl << 5 | (wide ? 1 << 13 : 1 << 14));
}

void h_syscall(struct x86 *c, const struct insn *i)
{
    if (!(c->efer & EFER_SCE) || !(c->cr0 & CR0_PE))
        x86_raise(c, X_UD);
    uint16_t cs = (uint16_t)(c->star >> 32) & 0xfffc;
    uint64_t flags = flags_all(c);
    c->cpu.r[RCX] = i->next;
    if (c->efer & EFER_LMA) {
        bool wide = c->cpu.mode & M_64;
        c->cpu.r[11] = flags & ~(uint64_t)F_R;
        flat(c, cs, 0, true, (uint16_t)(cs + 8));
        flags_load(c, flags & ~(c->fmask | F_R), ~(uint64_t)0 & 0xffffffff);
        c->cpu.r[IR_PC] = wide ? c->lstar : c->cstar;
    } else {
        flat(c, cs, 0, false, (uint16_t)(cs + 8));
        flags_load(c, flags & ~(uint64_t)(F_I | F_R | F_VM), 0xffffffff);
        c->cpu.r[IR_PC] = (uint32_t)c->star;
    }
}

void h_sysret(struct x86 *c, const struct insn *i)
{
    if (!(c->efer & EFER_SCE) || !(c->cr0 & CR0_PE))
        x86_raise(c, X_UD);
    if (c->cpl)
        x86_raise_code(c, X_GP, 0);
    uint16_t base = (uint16_t)(c->star >> 48);
    bool wide = i->osize == 8;
    uint64_t target = wide ? c->cpu.r[RCX] : (uint32_t)c->cpu.r[RCX];
    if (wide && (uint64_t)((int64_t)(target << 16) >> 16) != target)
        x86_raise_code(c, X_GP, 0);
    flat(c, (uint16_t)((base + (wide ? 16 : 0)) | 3), 3, wide, (uint16_t)((base + 8) | 3));
    if (c->efer & EFER_LMA)
        flags_load(c, c->cpu.r[11],
                   F_ARITH | F_T | F_I | F_D | F_IOPL | F_NT | F_AC | F_ID | F_VIF | F_VIP);
    else
        flags_load(c, F_I, F_I);
    c->cpu.r[IR_PC] = target;
}

void h_sysenter(struct x86 *c, const struct insn *i)
{
    (void)i;
    uint16_t cs = (uint16_t)c->sysenter_cs & 0xfffc;
    if (!(c->cr0 & CR0_PE) || !cs)
        x86_raise_code(c, X_GP, 0);
    bool wide = c->efer & EFER_LMA;
    c->eflags &= ~(uint64_t)(F_VM | F_I);
    flat(c, cs, 0, wide, (uint16_t)(cs + 8));
    c->cpu.r[RSP] = wide ? c->sysenter_esp : (uint32_t)c->sysenter_esp;
    c->cpu.r[IR_PC] = wide ? c->sysenter_eip : (uint32_t)c->sysenter_eip;
}

void h_sysexit(struct x86 *c, const struct insn *i)
{
    uint16_t cs = (uint16_t)c->sysenter_cs & 0xfffc;
    if (!(c->cr0 & CR0_PE) || !cs || c->cpl)
        x86_raise_code(c, X_GP, 0);
    bool wide = i->osize == 8;
    cs = (uint16_t)((cs + (wide ? 32 : 16)) | 3);
    flat(c, cs, 3, wide, (uint16_t)(cs + 8));
    c->cpu.r[RSP] = c->cpu.r[RCX] & width_mask(wide ? 8 : 4);
    c->cpu.r[IR_PC] = c->cpu.r[RDX] & width_mask(wide ? 8 : 4);
}

/* 32-bit task switches; how: 0 jump, 1 call, 2 interrupt, 3 return. */
void x86_task_switch(struct x86 *c, uint16_t selector, int how, uint32_t error, bool has_error)
{
    uint64_t d = 0, at = 0, old = c->base[TR], value[26];
    if (!desc_read(c, selector, &d, &at) || (d >> 40 & 13) != 9)
        x86_raise_code(c, X_TS, selector & 0xfffcu);
    uint64_t flags = flags_all(c) & ~(uint64_t)(how == 3 ? F_NT : 0);
    uint64_t new = (d >> 16 & 0xffffff) | d >> 56 << 24;
    for (unsigned n = 0; n < 26; n++)
        value[n] = sys_load(c, new + n * 4, 4);
    sys_store(c, old + 0x20, 4, c->cpu.r[IR_PC]);
    sys_store(c, old + 0x24, 4, flags);
    for (unsigned n = 0; n < 8; n++)
        sys_store(c, old + 0x28 + n * 4, 4, c->cpu.r[n]);
    for (unsigned n = 0; n < 6; n++)
        sys_store(c, old + 0x48 + n * 4, 2, c->seg[n].selector);
    uint64_t od, oat;
    if ((how == 0 || how == 3) && desc_read(c, c->seg[TR].selector, &od, &oat))
        sys_store(c, oat + 5, 1, od >> 40 & ~(uint64_t)2);
    if (how == 1 || how == 2)
        sys_store(c, new, 2, c->seg[TR].selector);
    if (how != 3)
        sys_store(c, at + 5, 1, d >> 40 | 2);
    desc_install(c, TR, selector, d | (uint64_t)2 << 40);
    c->cr0 |= CR0_TS;
    if (c->cr0 & CR0_PG) {
        c->cr3 = value[7];
        cpu_flush(&c->cpu);
    }
    c->cpu.r[IR_PC] = value[8];
    for (unsigned n = 0; n < 8; n++)
        c->cpu.r[n] = value[10 + n];
    seg_set(c, LDTR, (uint16_t)value[24], 0, 0, 0);
    uint64_t ld, lat;
    if (value[24] & 0xfffc && desc_read(c, (uint16_t)value[24], &ld, &lat))
        desc_install(c, LDTR, (uint16_t)value[24], ld);
    flags_load(c, value[9] | (how == 1 || how == 2 ? F_NT : 0), 0xffffffff);
    static const uint8_t order[6] = { CS, SS, ES, DS, FS, GS };
    for (unsigned n = 0; n < 6; n++) {
        unsigned s = order[n];
        uint16_t sel = (uint16_t)value[18 + s];
        if (c->eflags & F_VM)
            seg_set_real(c, s, sel);
        else if (!(sel & 0xfffc) || !desc_read(c, sel, &d, &at))
            seg_set(c, s, sel, 0, 0, 0);
        else
            desc_install(c, s, sel, d);
    }
    if (has_error)
        push(c, 4, error);
}
