/* The architectural state and what the parts of this folder call of each other. */
#ifndef X86_STATE_H
#define X86_STATE_H

#include "x86.h"

#include "f80.h"
#include "insn.h"
#include "models.h"

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };
enum { ES, CS, SS, DS, FS, GS, LDTR, TR };
enum { BASE = 16, SCRATCH = 22 }; /* slots: bases of the six segments; one spare */

enum {
    F_C = 1,
    F_P = 4,
    F_A = 0x10,
    F_Z = 0x40,
    F_S = 0x80,
    F_T = 0x100,
    F_I = 0x200,
    F_D = 0x400,
    F_O = 0x800,
    F_IOPL = 0x3000,
    F_NT = 0x4000,
    F_R = 0x10000,
    F_VM = 0x20000,
    F_AC = 0x40000,
    F_VIF = 0x80000,
    F_VIP = 0x100000,
    F_ID = 0x200000,
    F_ARITH = F_C | F_P | F_A | F_Z | F_S | F_O,
};

enum {
    CR0_PE = 1,
    CR0_MP = 2,
    CR0_EM = 4,
    CR0_TS = 8,
    CR0_ET = 16,
    CR0_NE = 32,
    CR0_WP = 1 << 16,
    CR0_AM = 1 << 18
};
#define CR0_PG 0x80000000u
enum {
    CR4_VME = 1,
    CR4_PVI = 2,
    CR4_TSD = 4,
    CR4_DE = 8,
    CR4_PSE = 16,
    CR4_PAE = 32,
    CR4_MCE = 64,
    CR4_PGE = 128,
    CR4_PCE = 256,
    CR4_OSFXSR = 512,
    CR4_OSXMM = 1024,
    CR4_UMIP = 2048,
    CR4_FSGSBASE = 1 << 16,
    CR4_PCIDE = 1 << 17,
    CR4_OSXSAVE = 1 << 18,
    CR4_SMEP = 1 << 20,
    CR4_SMAP = 1 << 21,
};
enum { EFER_SCE = 1, EFER_LME = 256, EFER_LMA = 1024, EFER_NXE = 2048 };

enum {
    X_DE,
    X_DB,
    X_NMI,
    X_BP,
    X_OF,
    X_BR,
    X_UD,
    X_NM,
    X_DF,
    X_TS = 10,
    X_NP,
    X_SS,
    X_GP,
    X_PF,
    X_MF = 16,
    X_AC,
    X_MC,
    X_XM
};

/* What translation depends on; the block key. */
enum {
    M_64 = 1,
    M_32 = 2,
    M_SS32 = 4,
    M_FLAT = 8,
    M_CPL = 0x30,
    M_TF = 0x40,
    M_PE = 0x80,
    M_SHADOW = 0x100
};

/* Families of flags records beside IR's own. SECOND holds: */
enum {
    K_INC = IR_KIND_GUEST, /* the old carry */
    K_DEC,                 /* the old carry */
    K_ADC1,                /* the second operand; a carry came in */
    K_SBB1,
    K_SHL, /* the operand shifted by one less */
    K_SHR,
    K_SAR,
    K_MUL,   /* whether it overflowed */
    K_FLAGS, /* nothing: RESULT holds the flags themselves */
};

/* Machine check banks, in which nothing is ever found. */
enum { MCA_BANKS = 10 };

struct segment {
    uint16_t selector;
    uint32_t limit; /* in bytes, expanded */
    uint32_t attr;  /* type and S, DPL, P (bits 0-7); AVL, L, D/B, G (bits 12-15) */
};

union xmm {
    uint8_t b[16];
    uint16_t w[8];
    uint32_t d[4];
    uint64_t q[2];
    float f[4];
    double n[2];
};

struct x86 {
    struct cpu cpu; /* first: one is the other */
    struct segment seg[8];
    uint64_t base[8]; /* LDTR and TR; the others are slots */
    uint64_t gdt_base, idt_base;
    uint32_t gdt_limit, idt_limit;
    uint64_t cr0, cr2, cr3, cr4, efer;
    uint64_t dr[8];
    uint64_t eflags; /* without the arithmetic flags */
    uint64_t star, lstar, cstar, fmask, kernel_gs, tsc_aux, pat, misc_enable;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip, tsc_offset, apic_base, xcr0;
    uint64_t mtrr[40], mca[2 + 4 * MCA_BANKS], spec_ctrl;

    int vector; /* of the exception on its way */
    uint32_t error;
    bool has_error, delivering, shadow, trap, waits /* for SIPI */;
    int delivering_vector;
    unsigned cpl;

    union xmm xmm[16];
    uint32_t mxcsr;
    struct f80 st[8];       /* physical registers */
    uint16_t fcw, fsw, fop; /* fsw without TOP */
    uint8_t top, empty;     /* empty: a bit for each physical register */
    uint64_t fip, fdp;

    const struct x86_bus *bus;
    void *machine;
    struct x86_cpu_type type;
    unsigned cpus;
};

/* Every helper for one instruction. The next instruction's address stands in IR_PC for those marked as ending a block. */
typedef void x86_helper(struct x86 *c, const struct insn *i);

/* exceptions.c */
_Noreturn void x86_raise(struct x86 *c, int vector);
_Noreturn void x86_raise_code(struct x86 *c, int vector, uint32_t code);
void x86_interrupt(struct x86 *c, int vector, bool software, bool has_error, uint32_t error);
void x86_deliver(struct cpu *cpu);
bool x86_attend(struct cpu *cpu, unsigned requests);
x86_helper h_int, h_iret, h_sti, h_shadow, h_ud, h_hlt, h_trap, h_gp;

/* flags.c */
uint64_t flags_arith(struct x86 *c);
uint64_t flags_all(struct x86 *c);
void flags_set_arith(struct x86 *c, uint64_t flags);
void let_in(struct x86 *c);
void flags_load(struct x86 *c, uint64_t flags, uint64_t mask);
bool flags_condition(struct x86 *c, unsigned condition);
uint64_t flags_carry(struct x86 *c);

/* paging.c */
uint64_t x86_walk(struct cpu *cpu, uint64_t address, int access, unsigned mode, unsigned *rights);
/* An access of the CPU itself to its tables: always as supervisor. */
uint64_t sys_load(struct x86 *c, uint64_t address, unsigned size);
void sys_store(struct x86 *c, uint64_t address, unsigned size, uint64_t value);

/* segments.c */
void x86_update_mode(struct x86 *c);
void seg_set_real(struct x86 *c, unsigned s, uint16_t selector);
void seg_load(struct x86 *c, unsigned s, uint16_t selector);
void seg_set(struct x86 *c, unsigned s, uint16_t selector, uint64_t base, uint32_t limit,
             uint32_t attr);
bool desc_read(struct x86 *c, uint16_t selector, uint64_t *desc, uint64_t *address);
void desc_install(struct x86 *c, unsigned s, uint16_t selector, uint64_t desc);
void push(struct x86 *c, unsigned size, uint64_t value);
uint64_t pop(struct x86 *c, unsigned size);
uint64_t stack_mask(struct x86 *c);
void x86_task_switch(struct x86 *c, uint16_t selector, int how, uint32_t error, bool has_error);

/* operand.c */
uint64_t ea(struct x86 *c, const struct insn *i); /* linear */
uint64_t ea_offset(struct x86 *c, const struct insn *i);
uint64_t reg_read(struct x86 *c, const struct insn *i, unsigned n, unsigned size);
void reg_write(struct x86 *c, const struct insn *i, unsigned n, unsigned size, uint64_t value);
uint64_t rm_read(struct x86 *c, const struct insn *i, unsigned size);
void rm_write(struct x86 *c, const struct insn *i, unsigned size, uint64_t value);
uint64_t linear(struct x86 *c, unsigned s, uint64_t offset);

/* helpers.c: which helper does an instruction; NULL: none. *ends: the block ends with it. */
x86_helper *x86_find_helper(struct x86 *c, const struct insn *i, bool *ends);
x86_helper *x86_find_sse(struct x86 *c, const struct insn *i);
x86_helper *x86_find_system(struct x86 *c, const struct insn *i);
x86_helper *x86_find_fpu(const struct insn *i);

/* cpuid.c */
uint32_t x86_signature(const struct x86_cpu_type *type);
void x86_cpuid(struct x86 *c, uint32_t leaf, uint32_t sub, uint32_t out[4]);

void x86_translate(struct cpu *cpu, struct block *block, unsigned limit);

static inline bool has(const struct x86 *c, unsigned feature)
{
    return type_has(&c->type, feature);
}

static inline uint64_t width_mask(unsigned size)
{
    return ~(uint64_t)0 >> (64 - 8 * size);
}

static inline int64_t sign_extend(uint64_t value, unsigned size)
{
    unsigned shift = 64 - 8 * size;
    return (int64_t)(value << shift) >> shift;
}

#endif
