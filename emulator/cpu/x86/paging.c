/* Page walks: 32-bit, PAE and four levels, with what CR0, CR4 and EFER say of rights. */
#include "state.h"

enum { P = 1, RW = 2, US = 4, ACCESSED = 32, DIRTY = 64, PS = 128, GLOBAL = 256 };
#define NX      ((uint64_t)1 << 63)
#define ADDRESS 0x000ffffffffff000u

/* TLB modes: supervisor, user, and supervisor that may not touch user pages (SMAP). */
enum { SUPERVISOR, USER, GUARDED };

struct walk {
    struct x86 *c;
    uint64_t address;
    int access;
    unsigned mode;
};

static _Noreturn void fault(const struct walk *w, unsigned code)
{
    struct x86 *c = w->c;
    if (w->access == CPU_WRITE)
        code |= 2;
    if (w->mode == USER)
        code |= 4;
    if (w->access == CPU_EXECUTE && (c->efer & EFER_NXE || c->cr4 & CR4_SMEP))
        code |= 16;
    c->cr2 = w->address;
    x86_raise_code(c, X_PF, code);
}

/* Sets accessed and dirty bits where the entry is still the one that was read. */
static bool mark(struct x86 *c, uint64_t at, uint64_t entry, uint64_t bits, unsigned size)
{
    if ((entry & bits) == bits)
        return true;
    void *host = cpu_ram(&c->cpu, at, true);
    if (!host)
        return true;
    if (size == 4) {
        uint32_t old = (uint32_t)entry;
        return __atomic_compare_exchange_n((uint32_t *)host, &old, (uint32_t)(entry | bits), false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    return __atomic_compare_exchange_n((uint64_t *)host, &entry, entry | bits, false,
                                       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static uint64_t entry_read(struct x86 *c, uint64_t at, unsigned size)
{
    uint64_t value = 0;
    const void *host = cpu_ram(&c->cpu, at, false);
    if (host)
        memcpy(&value, host, size);
    return value;
}

/* Rights of the page by the bits that all levels agree on; a fault when the access has none. */
static unsigned judge(const struct walk *w, uint64_t all, uint64_t nx, bool dirty)
{
    const struct x86 *c = w->c;
    bool user = w->mode == USER, write = all & RW, owner = all & US;
    unsigned rights = 1 << CPU_READ;
    if (user && !owner)
        fault(w, P);
    if (write || (!user && !(c->cr0 & CR0_WP)))
        rights |= 1 << CPU_WRITE;
    if (!user && owner && w->mode == GUARDED)
        rights = 0;
    if (!(nx && c->efer & EFER_NXE) && !(!user && owner && c->cr4 & CR4_SMEP))
        rights |= 1 << CPU_EXECUTE;
    if (!(rights & 1u << w->access))
        fault(w, P);
    if (!dirty && w->access != CPU_WRITE)
        rights &= ~(1u << CPU_WRITE); /* the first write must come back here */
    return rights;
}

static unsigned global(const struct x86 *c, uint64_t entry)
{
    return entry & GLOBAL && c->cr4 & CR4_PGE ? CPU_GLOBAL : 0;
}

static uint64_t walk32(const struct walk *w, unsigned *rights)
{
    struct x86 *c = w->c;
    uint64_t bits = ACCESSED | (w->access == CPU_WRITE ? DIRTY : 0);
    for (;;) {
        uint64_t at1 = (c->cr3 & 0xfffff000) + (w->address >> 22) * 4;
        uint64_t e1 = entry_read(c, at1, 4);
        if (!(e1 & P))
            fault(w, 0);
        if (e1 & PS && c->cr4 & CR4_PSE) {
            *rights = judge(w, e1, 0, e1 & DIRTY) | global(c, e1) | CPU_LARGE;
            if (mark(c, at1, e1, bits, 4))
                return (e1 & 0xffc00000) | (e1 >> 13 & 0xff) << 32 | (w->address & 0x3fffff);
            continue;
        }
        uint64_t at2 = (e1 & 0xfffff000) + (w->address >> 12 & 1023) * 4;
        uint64_t e2 = entry_read(c, at2, 4);
        if (!(e2 & P)) {
            mark(c, at1, e1, ACCESSED, 4);
            fault(w, 0);
        }
        *rights = judge(w, e1 & e2, 0, e2 & DIRTY) | global(c, e2);
        if (mark(c, at1, e1, ACCESSED, 4) && mark(c, at2, e2, bits, 4))
            return (e2 & 0xfffff000) | (w->address & 0xfff);
    }
}

/* PAE (three levels) and long mode (four). */
static uint64_t walk64(const struct walk *w, unsigned *rights)
{
    struct x86 *c = w->c;
    bool four = c->efer & EFER_LMA;
    uint64_t reserved = (c->efer & EFER_NXE ? 0 : NX) | 0x000ff00000000000u;
    uint64_t bits = ACCESSED | (w->access == CPU_WRITE ? DIRTY : 0);
again:;
    uint64_t table = c->cr3 & (four ? ADDRESS : 0xffffffe0), all = RW | US, nx = 0;
    for (int level = four ? 3 : 2;; level--) {
        unsigned shift = 12 + 9 * (unsigned)level;
        uint64_t index = w->address >> shift & (!four && level == 2 ? 3 : 511);
        uint64_t at = table + index * 8, e = entry_read(c, at, 8);
        if (!(e & P))
            fault(w, 0);
        if (e & (!four && level == 2 ? 0 : reserved) ||
            (e & PS && (level == 3 || (level == 2 && four && !has(c, FEATURE_1G)))))
            fault(w, P | 8);
        if (four || level < 2) {
            all &= e;
            nx |= e & NX;
        }
        bool leaf = level == 0 || (e & PS && level < 3 && (four || level < 2));
        if (!leaf) {
            if ((four || level < 2) && !mark(c, at, e, ACCESSED, 8))
                goto again;
            table = e & ADDRESS;
            continue;
        }
        uint64_t offset = ((uint64_t)1 << shift) - 1;
        if (level && e & offset & ADDRESS & ~(uint64_t)0x1000)
            fault(w, P | 8);
        *rights = judge(w, all, nx, e & DIRTY) | global(c, e) |
                  (level == 2   ? CPU_HUGE
                   : level == 1 ? CPU_LARGE
                                : 0);
        if (!mark(c, at, e, bits, 8))
            goto again;
        return (e & ADDRESS & ~offset) | (w->address & offset);
    }
}

/* Addresses without canonical form are #SS where the stack is meant, else #GP. */
static bool by_stack(const struct cpu *cpu)
{
    const struct ir_op *op = cpu->ip;
    if (!cpu->running)
        return false;
    if (op->op != IR_CALL)
        return op->a == RSP || op->a == RBP || op->a == IR_TEMP + 3 || op->a == IR_TEMP + 4;
    const struct insn *i = (const struct insn *)(uintptr_t)op[1].imm;
    return (i->mod != 3 && i->base >= 0 && i->seg == SS) || i->op == 0x9c || i->op == 0x9d ||
           i->op == 0xc8 || i->op == 0xc9 || i->op == 0x8f;
}

uint64_t x86_walk(struct cpu *cpu, uint64_t address, int access, unsigned mode, unsigned *rights)
{
    struct x86 *c = (struct x86 *)cpu;
    struct walk w = { c, address, access, mode };
    if (!(c->cr0 & CR0_PG)) {
        *rights = 7;
        return (uint32_t)address;
    }
    if (c->efer & EFER_LMA && (uint64_t)((int64_t)(address << 16) >> 16) != address)
        x86_raise_code(c, by_stack(cpu) ? X_SS : X_GP, 0);
    if (c->efer & EFER_LMA || c->cr4 & CR4_PAE)
        return walk64(&w, rights);
    w.address = (uint32_t)address;
    return walk32(&w, rights);
}

uint64_t sys_load(struct x86 *c, uint64_t address, unsigned size)
{
    unsigned mode = c->cpu.tlb_mode;
    cpu_set_tlb_mode(&c->cpu, SUPERVISOR);
    uint64_t value = cpu_load(&c->cpu, address, size);
    cpu_set_tlb_mode(&c->cpu, mode);
    return value;
}

void sys_store(struct x86 *c, uint64_t address, unsigned size, uint64_t value)
{
    unsigned mode = c->cpu.tlb_mode;
    cpu_set_tlb_mode(&c->cpu, SUPERVISOR);
    cpu_store(&c->cpu, address, size, value);
    cpu_set_tlb_mode(&c->cpu, mode);
}
