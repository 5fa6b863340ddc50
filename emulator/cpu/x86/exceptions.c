/* Exceptions and interrupts on their way into the guest, IRET back, and requests between blocks. */
#include "helpers.h"

void x86_raise(struct x86 *c, int vector)
{
    c->vector = vector;
    c->has_error = false;
    c->error = 0;
    cpu_raise(&c->cpu);
}

void x86_raise_code(struct x86 *c, int vector, uint32_t code)
{
    c->vector = vector;
    c->has_error = true;
    c->error = code;
    cpu_raise(&c->cpu);
}

static void jump_cs(struct x86 *c, uint16_t selector, uint64_t desc, unsigned cpl, uint64_t target)
{
    desc_install(c, CS, (uint16_t)((selector & ~3u) | cpl), desc);
    c->cpu.r[IR_PC] = target;
}

/* Runs with the privilege that the frame is written with. */
static void set_cpl(struct x86 *c, unsigned cpl)
{
    c->seg[SS].attr = (c->seg[SS].attr & ~0x60u) | cpl << 5;
    x86_update_mode(c);
}

static void real_interrupt(struct x86 *c, int vector)
{
    uint64_t entry = sys_load(c, c->idt_base + (unsigned)vector * 4, 4);
    push(c, 2, flags_all(c));
    push(c, 2, c->seg[CS].selector);
    push(c, 2, c->cpu.r[IR_PC]);
    c->eflags &= ~(uint64_t)(F_I | F_T | F_AC);
    seg_set_real(c, CS, (uint16_t)(entry >> 16));
    c->cpu.r[IR_PC] = entry & 0xffff;
}

struct gate {
    unsigned type, dpl, ist;
    uint16_t selector;
    uint64_t offset;
};

static struct gate gate_read(struct x86 *c, int vector, bool software)
{
    bool wide = c->efer & EFER_LMA;
    unsigned size = wide ? 16 : 8;
    uint32_t code = (uint32_t)vector * 8 + 2 + !software;
    if ((uint32_t)vector * size + size - 1 > c->idt_limit)
        x86_raise_code(c, X_GP, code);
    uint64_t at = c->idt_base + (uint32_t)vector * size;
    uint64_t d = sys_load(c, at, 8), high = wide ? sys_load(c, at + 8, 8) : 0;
    struct gate g = { .type = d >> 40 & 31,
                      .dpl = d >> 45 & 3,
                      .ist = d >> 32 & 7,
                      .selector = (uint16_t)(d >> 16) };
    g.offset = (d & 0xffff) | (d >> 48 << 16) | high << 32;
    bool known =
        g.type == 14 || g.type == 15 || (!wide && (g.type == 5 || g.type == 6 || g.type == 7));
    if (!known || (software && g.dpl < c->cpl))
        x86_raise_code(c, X_GP, code);
    if (!(d >> 47 & 1))
        x86_raise_code(c, X_NP, code);
    if (g.type == 6 || g.type == 7)
        g.offset &= 0xffff;
    return g;
}

static uint64_t gate_code(struct x86 *c, const struct gate *g, unsigned *dpl)
{
    uint64_t d = 0, at;
    uint32_t code = g->selector & 0xfffc;
    if (!code || !desc_read(c, g->selector, &d, &at))
        x86_raise_code(c, X_GP, code);
    unsigned type = d >> 40 & 31;
    *dpl = type & 4 ? c->cpl : d >> 45 & 3;
    if ((type & 24) != 24 || (d >> 45 & 3) > c->cpl || (c->efer & EFER_LMA && !(d >> 53 & 1)))
        x86_raise_code(c, X_GP, code);
    if (!(d >> 47 & 1))
        x86_raise_code(c, X_NP, code);
    return d;
}

static void long_interrupt(struct x86 *c, const struct gate *g, bool has_error, uint32_t error)
{
    unsigned dpl;
    uint64_t cs = gate_code(c, g, &dpl), sp = c->cpu.r[RSP];
    bool changes = dpl != c->cpl;
    if (g->ist || changes)
        sp = sys_load(c, c->base[TR] + (g->ist ? 28 + 8 * g->ist : 4 + 8 * dpl), 8);
    sp &= ~(uint64_t)15;
    uint64_t frame[6] = { error,        c->cpu.r[IR_PC], c->seg[CS].selector,
                          flags_all(c), c->cpu.r[RSP],   c->seg[SS].selector };
    for (unsigned n = 6; n-- > (has_error ? 0u : 1u);) {
        sp -= 8;
        if (dpl < 3)
            sys_store(c, sp, 8, frame[n]);
        else
            cpu_store(&c->cpu, sp, 8, frame[n]);
    }
    c->cpu.r[RSP] = sp;
    c->eflags &= ~(uint64_t)(F_T | F_NT | F_R | F_VM | (g->type == 14 ? F_I : 0));
    if (changes)
        seg_set(c, SS, (uint16_t)dpl, 0, 0xffffffff, 0x93 | dpl << 5 | 1 << 14);
    jump_cs(c, g->selector, cs, dpl, g->offset);
}

/* The stack of an inner privilege, from the TSS. */
static void inner_stack(struct x86 *c, unsigned dpl, uint16_t *ss, uint64_t *sp, uint64_t *desc)
{
    bool wide = (c->seg[TR].attr & 15) > 8;
    uint64_t at = c->base[TR] + (wide ? 4 + 8 * dpl : 2 + 4 * dpl), where;
    *sp = sys_load(c, at, wide ? 4 : 2);
    *ss = (uint16_t)sys_load(c, at + (wide ? 4 : 2), 2);
    if (!desc_read(c, *ss, desc, &where) || (*desc >> 40 & 0x9a) != 0x92 ||
        (*desc >> 45 & 3) != dpl)
        x86_raise_code(c, X_TS, *ss & 0xfffcu);
}

static void protected_interrupt(struct x86 *c, const struct gate *g, bool has_error, uint32_t error)
{
    unsigned dpl, size = g->type >= 14 ? 4 : 2;
    uint64_t cs = gate_code(c, g, &dpl), flags = flags_all(c), sp = c->cpu.r[RSP], old_sp = sp,
             desc = 0;
    uint16_t ss = 0, old_ss = c->seg[SS].selector, old_cs = c->seg[CS].selector;
    bool changes = dpl < c->cpl, vm = c->eflags & F_VM;
    uint16_t data[4];
    for (unsigned n = 0; n < 4; n++)
        data[n] = c->seg[n == 0 ? GS : n == 1 ? FS : n == 2 ? DS : ES].selector;
    if (changes) {
        inner_stack(c, dpl, &ss, &sp, &desc);
        c->eflags &= ~(uint64_t)F_VM;
        desc_install(c, SS, ss, desc);
        c->cpu.r[RSP] = sp;
    }
    unsigned words = (changes ? 5 : 3) + has_error + (vm ? 4 : 0);
    uint64_t last = linear(c, SS, (sp - words * size) & stack_mask(c));
    cpu_probe(&c->cpu, last, 1, CPU_WRITE);
    for (unsigned n = 0; vm && n < 4; n++)
        push(c, size, data[n]);
    if (changes) {
        push(c, size, old_ss);
        push(c, size, old_sp);
    }
    push(c, size, flags);
    push(c, size, old_cs);
    push(c, size, c->cpu.r[IR_PC]);
    if (has_error)
        push(c, size, error);
    for (unsigned n = 0; vm && n < 4; n++)
        seg_set(c, n == 0 ? GS : n == 1 ? FS : n == 2 ? DS : ES, 0, 0, 0, 0);
    c->eflags &= ~(uint64_t)(F_T | F_NT | F_R | F_VM | (g->type & 1 ? 0 : F_I));
    jump_cs(c, g->selector, cs, dpl, g->offset);
}

/* IR_PC is the address to come back to. */
void x86_interrupt(struct x86 *c, int vector, bool software, bool has_error, uint32_t error)
{
    if (!(c->cr0 & CR0_PE)) {
        real_interrupt(c, vector);
    } else {
        struct gate g = gate_read(c, vector, software);
        if (g.type == 5)
            x86_task_switch(c, g.selector, 2, error, has_error);
        else if (c->efer & EFER_LMA)
            long_interrupt(c, &g, has_error, error);
        else
            protected_interrupt(c, &g, has_error, error);
    }
    x86_update_mode(c);
}

static bool contributory(int v)
{
    return v == X_DE || (v >= X_TS && v <= X_GP);
}

void x86_deliver(struct cpu *cpu)
{
    struct x86 *c = (struct x86 *)cpu;
    int vector = c->vector;
    if (c->delivering) {
        int first = c->delivering_vector;
        if (first == X_DF) {
            c->delivering = false;
            cpu->reset = true;
            return;
        }
        if ((contributory(first) && contributory(vector)) ||
            (first == X_PF && (contributory(vector) || vector == X_PF))) {
            vector = X_DF;
            c->has_error = true;
            c->error = 0;
        }
    }
    c->delivering = true;
    c->delivering_vector = vector;
    x86_update_mode(c);
    x86_interrupt(c, vector, false, c->has_error && c->cr0 & CR0_PE, c->error);
    c->delivering = false;
}

/* An interrupt from outside, or one that the program asks for: faults on its way are reported as such. */
static void external(struct x86 *c, int vector)
{
    c->delivering = true;
    c->delivering_vector = 32;
    x86_interrupt(c, vector, false, false, 0);
    c->delivering = false;
}

bool x86_attend(struct cpu *cpu, unsigned requests)
{
    struct x86 *c = (struct x86 *)cpu;
    if (requests & CPU_REQUEST_INIT) {
        atomic_fetch_and(&cpu->request, ~(unsigned)CPU_REQUEST_INIT);
        x86_wait(c);
    }
    if (requests & CPU_REQUEST_START) {
        atomic_fetch_and(&cpu->request, ~(unsigned)CPU_REQUEST_START);
        if (c->waits) {
            seg_set_real(c, CS, (uint16_t)(cpu->start << 8));
            cpu->r[IR_PC] = 0;
            cpu->halted = c->waits = false;
        }
    }
    if (c->waits)
        return false;
    if (c->shadow) {
        c->shadow = false;
        if (!cpu->halted) {
            cpu->single = true;
            atomic_fetch_or(&cpu->request, CPU_REQUEST_RETRY);
            return true;
        }
    }
    if (c->trap) {
        c->trap = false;
        c->dr[6] |= 1 << 14;
        external(c, X_DB);
    }
    if (requests & CPU_REQUEST_NMI) {
        atomic_fetch_and(&cpu->request, ~(unsigned)CPU_REQUEST_NMI);
        cpu->halted = false;
        external(c, X_NMI);
    } else if (requests & CPU_REQUEST_LINE && c->eflags & F_I) {
        int vector = c->bus->acknowledge ? c->bus->acknowledge(c->machine, cpu->id) : -1;
        if (vector >= 0) {
            cpu->halted = false;
            external(c, vector);
        }
    }
    return !cpu->halted;
}

void h_gp(struct x86 *c, const struct insn *i)
{
    (void)i;
    x86_raise_code(c, X_GP, 0);
}

void h_ud(struct x86 *c, const struct insn *i)
{
    (void)i;
    x86_raise(c, X_UD);
}

/* In front of an instruction that is single-stepped. */
void h_trap(struct x86 *c, const struct insn *i)
{
    (void)i;
    c->trap = true;
    cpu_request_self(&c->cpu, CPU_REQUEST_RETRY);
}

/* INT n, INT3, INTO, INT1. */
void h_int(struct x86 *c, const struct insn *i)
{
    int vector = i->op == 0xcd   ? (int)(i->imm & 0xff)
                 : i->op == 0xcc ? X_BP
                 : i->op == 0xf1 ? X_DB
                                 : X_OF;
    if (i->op == 0xce && !(flags_arith(c) & F_O))
        return;
    if (c->eflags & F_VM && i->op == 0xcd && (c->eflags & F_IOPL) != F_IOPL)
        x86_raise_code(c, X_GP, 0);
    /* A fault on the way is the instruction's, which IR_PC then names again. */
    x86_interrupt(c, vector, true, false, 0);
}

static void iret_long(struct x86 *c, const struct insn *i)
{
    unsigned size = i->osize;
    uint64_t sp = c->cpu.r[RSP], frame[5], mask = stack_mask(c);
    uint64_t d = 0, at;
    for (unsigned n = 0; n < 5; n++) {
        if (n == 3 && !(c->cpu.mode & M_64) && (frame[1] & 3) == c->cpl)
            break;
        frame[n] = cpu_load(&c->cpu, linear(c, SS, (sp + n * size) & mask), size);
    }
    unsigned rpl = frame[1] & 3;
    uint16_t cs = (uint16_t)frame[1];
    bool changes = rpl != c->cpl || c->cpu.mode & M_64;
    if (!(cs & 0xfffc) || rpl < c->cpl || !desc_read(c, cs, &d, &at) || (d >> 40 & 0x18) != 0x18)
        x86_raise_code(c, X_GP, cs & 0xfffcu);
    if (!(d >> 47 & 1))
        x86_raise_code(c, X_NP, cs & 0xfffcu);
    uint64_t ss_desc = 0;
    uint16_t ss = changes ? (uint16_t)frame[4] : 0;
    bool to64 = c->efer & EFER_LMA && d >> 53 & 1;
    if (changes && ss & 0xfffc) {
        if ((ss & 3) != rpl || !desc_read(c, ss, &ss_desc, &at) || (ss_desc >> 40 & 0x9a) != 0x92 ||
            (ss_desc >> 45 & 3) != rpl)
            x86_raise_code(c, X_GP, ss & 0xfffcu);
    } else if (changes && (!to64 || rpl == 3)) {
        x86_raise_code(c, X_GP, 0);
    }
    if (to64 && (uint64_t)((int64_t)(frame[0] << 16) >> 16) != frame[0])
        x86_raise_code(c, X_GP, 0);
    uint64_t fm = F_ARITH | F_T | F_D | F_NT | F_R | F_AC | F_ID;
    if (c->cpl <= (c->eflags & F_IOPL) >> 12)
        fm |= F_I;
    if (c->cpl == 0)
        fm |= F_IOPL | F_VIF | F_VIP;
    unsigned old = c->cpl;
    if (!changes)
        c->cpu.r[RSP] = (sp & ~mask) | ((sp + 3 * size) & mask);
    jump_cs(c, cs, d, rpl, frame[0]);
    if (changes) {
        if (ss & 0xfffc)
            desc_install(c, SS, ss, ss_desc);
        else
            seg_set(c, SS, ss, 0, 0, 0x93 | rpl << 5 | 1 << 14);
        c->cpu.r[RSP] = to64 ? frame[3] : frame[3] & (c->cpu.mode & M_SS32 ? 0xffffffff : 0xffff);
    }
    set_cpl(c, rpl);
    for (unsigned s = ES; rpl > old && s <= GS; s++) { /* what the outer level may not have */
        unsigned dpl = c->seg[s].attr >> 5 & 3;
        if (s != CS && s != SS && dpl < rpl && (c->seg[s].attr & 0x1c) != 0x1c &&
            c->seg[s].selector & 0xfffc)
            seg_set(c, s, 0, 0, 0, 0);
    }
    flags_load(c, frame[2], fm & width_mask(size));
}

/* To virtual-8086 mode. */
static void iret_vm(struct x86 *c, uint64_t ip, uint64_t cs, uint64_t flags)
{
    uint64_t v[6];
    for (unsigned n = 0; n < 6; n++)
        v[n] = pop(c, 4);
    flags_load(c, flags, ~(uint64_t)0 & 0xffffffff);
    static const uint8_t order[5] = { SS, ES, DS, FS, GS };
    c->cpu.r[RSP] = v[0];
    for (unsigned n = 0; n < 5; n++)
        seg_set_real(c, order[n], (uint16_t)v[n + 1]);
    seg_set_real(c, CS, (uint16_t)cs);
    c->cpu.r[IR_PC] = ip & 0xffff;
}

void h_iret(struct x86 *c, const struct insn *i)
{
    bool vm = c->eflags & F_VM;
    if (vm && (c->eflags & F_IOPL) != F_IOPL)
        x86_raise_code(c, X_GP, 0);
    if (!(c->cr0 & CR0_PE) || vm) {
        uint64_t ip = pop(c, i->osize), cs = pop(c, i->osize), flags = pop(c, i->osize);
        uint64_t fm = F_ARITH | F_T | F_I | F_D | F_NT | F_AC | F_ID | F_R | (vm ? 0 : F_IOPL);
        seg_set_real(c, CS, (uint16_t)cs);
        c->cpu.r[IR_PC] = ip;
        flags_load(c, flags, fm & width_mask(i->osize));
        return;
    }
    if (c->eflags & F_NT && !(c->efer & EFER_LMA)) {
        x86_task_switch(c, (uint16_t)sys_load(c, c->base[TR], 2), 3, 0, false);
        return;
    }
    if (!(c->efer & EFER_LMA) && c->cpl == 0 && i->osize == 4) {
        uint64_t mask = stack_mask(c), sp = c->cpu.r[RSP], f;
        f = cpu_load(&c->cpu, linear(c, SS, (sp + 8) & mask), 4);
        if (f & F_VM) {
            uint64_t ip = pop(c, 4), cs = pop(c, 4);
            pop(c, 4);
            iret_vm(c, ip, cs, f);
            return;
        }
    }
    iret_long(c, i);
}

void h_hlt(struct x86 *c, const struct insn *i)
{
    (void)i;
    if (c->cpl)
        x86_raise_code(c, X_GP, 0);
    c->cpu.halted = true;
    cpu_request_self(&c->cpu, CPU_REQUEST_RETRY);
}
