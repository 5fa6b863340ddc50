/* What the files that turn instructions into IR share. */
#ifndef X86_TRANSLATE_H
#define X86_TRANSLATE_H

#include "cpu/block.h"
#include "helpers.h"

struct tr {
    struct x86 *c;
    struct block *block;
    struct insn i;
    uint64_t pc;      /* of this instruction */
    int kind;         /* the flags record's, when known; else -1 */
    uint32_t fusible; /* a comparison is the last of so many operations */
    bool done;
    bool shadow; /* STI: one more instruction must follow in this block */
};

enum { T0 = IR_TEMP, T1, T2, T3, T4, T_BASE };

static inline unsigned log2_of(unsigned size)
{
    return size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3;
}

/* Can an operation write this register's slot directly? */
static inline bool direct(unsigned size)
{
    return size >= 4;
}

/* translate_operand.c */
void emit(struct tr *t, unsigned op, unsigned d, unsigned a, unsigned b, uint64_t imm);
void emit_call(struct tr *t, x86_helper *fn);
/* d = fn(cpu, a, b) */
void emit_value(struct tr *t, ir_value fn, unsigned d, unsigned a, unsigned b);
void emit_pc(struct tr *t, uint64_t pc);
void emit_leave(struct tr *t);
unsigned get_reg(struct tr *t, unsigned n, unsigned size, unsigned temp);
void put_reg(struct tr *t, unsigned n, unsigned size, unsigned from);
/* The linear address is slot + *disp. */
unsigned address(struct tr *t, uint64_t *disp);
unsigned load_rm(struct tr *t, unsigned size, unsigned temp);
void store_rm(struct tr *t, unsigned size, unsigned from);
void push_slot(struct tr *t, unsigned size, unsigned from);
void pop_slot(struct tr *t, unsigned size, unsigned to, uint64_t more);
void emit_record(struct tr *t, unsigned family, unsigned w, unsigned result, unsigned second);
bool known_condition(struct tr *t, unsigned cond, unsigned *set, unsigned *branch);
/* A slot with the condition as 0 or 1. */
unsigned condition(struct tr *t, unsigned cond);

/* translate_ops.c: false when a helper must do it. */
bool translate_op(struct tr *t);

/* values.c: instructions that have operands in IR and the rest in a function. */
uint64_t v_condition(struct cpu *cpu, uint64_t condition, uint64_t unused);
uint64_t v_carry(struct cpu *cpu, uint64_t a, uint64_t b);
extern const ir_value v_shifts[8][2]; /* by ModRM.reg; 32 and 64 bits */
extern const ir_value v_imul[2], v_adc[2], v_sbb[2], v_bt[2];

#endif
