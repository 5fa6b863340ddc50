/* Operands, the stack and conditions in IR. */
#include "translate.h"

void emit(struct tr *t, unsigned op, unsigned d, unsigned a, unsigned b, uint64_t imm)
{
    t->block->ops[t->block->n_ops++] = (struct ir_op){ .op = (uint16_t)op,
                                                       .at = (uint16_t)(t->pc - t->block->pc),
                                                       .d = (uint8_t)d,
                                                       .a = (uint8_t)a,
                                                       .b = (uint8_t)b,
                                                       .imm = imm };
}

void emit_call(struct tr *t, x86_helper *fn)
{
    struct insn *copy = (struct insn *)(t->block->args + t->block->n_args);
    *copy = t->i;
    t->block->n_args += (sizeof *copy + 7) & ~7u;
    emit(t, IR_CALL, 0, 0, 0, (uint64_t)(uintptr_t)fn);
    emit(t, IR_CALL, 0, 0, 0, (uint64_t)(uintptr_t)copy);
    t->kind = -1;
}

void emit_value(struct tr *t, ir_value fn, unsigned d, unsigned a, unsigned b)
{
    emit(t, IR_CALLV, d, a, b, (uint64_t)(uintptr_t)fn);
}

void emit_pc(struct tr *t, uint64_t pc)
{
    emit(t, IR_MOVI, IR_PC, 0, 0, pc);
}

void emit_leave(struct tr *t)
{
    emit(t, IR_LEAVE, 0, 0, 0, 0);
    t->done = true;
}

/* A register's value, narrowed by whoever uses it. */
unsigned get_reg(struct tr *t, unsigned n, unsigned size, unsigned temp)
{
    if (size == 1 && !t->i.rex && n >= 4 && n < 8) {
        emit(t, IR_SHRI16, temp, n - 4, 0, 8);
        return temp;
    }
    return n;
}

void put_reg(struct tr *t, unsigned n, unsigned size, unsigned from)
{
    if (size == 1 && !t->i.rex && n >= 4 && n < 8)
        emit(t, IR_PUTH, n - 4, from, 0, 0);
    else
        emit(t, IR_PUT8 + log2_of(size), n, from, 0, 0);
}

static bool segmented(struct tr *t)
{
    unsigned mode = t->c->cpu.mode;
    if (mode & M_64)
        return t->i.seg >= FS;
    /* Flat says nothing of CS: in real mode code is far from data whose segments are 0. */
    return !(mode & M_FLAT) || t->i.seg >= FS || t->i.seg == CS;
}

/* The linear address is slot + *disp. */
unsigned address(struct tr *t, uint64_t *disp)
{
    const struct insn *i = &t->i;
    unsigned a = T_BASE;
    uint64_t d = (uint64_t)i->disp;
    bool seg = segmented(t);
    *disp = 0;
    if (i->asize == 8 && !seg && i->index < 0 && i->base >= 0) {
        *disp = d;
        return (unsigned)i->base;
    }
    if (i->asize == 8 && seg && i->index < 0) { /* a thread's or a CPU's own variables */
        *disp = d;
        if (i->base < 0)
            return BASE + i->seg;
        emit(t, IR_ADD64, a, BASE + i->seg, (unsigned)i->base, 0);
        return a;
    }
    unsigned lea = i->asize == 8 ? IR_LEA : i->asize == 4 ? IR_LEA32 : IR_LEA16;
    if (i->base < 0 && i->index < 0) {
        emit(t, IR_MOVI, a, 0, 0, d & width_mask(i->asize));
    } else if (i->index < 0) {
        emit(t,
             i->asize == 8   ? IR_ADDI64
             : i->asize == 4 ? IR_ADDI32
                             : IR_ADDI16,
             a, (unsigned)i->base, 0, d);
    } else if (i->base < 0) {
        emit(t, IR_MOVI, a, 0, 0, 0);
        emit(t, lea, a, a, (unsigned)i->index, d);
        t->block->ops[t->block->n_ops - 1].scale = i->scale;
    } else {
        emit(t, lea, a, (unsigned)i->base, (unsigned)i->index, d);
        t->block->ops[t->block->n_ops - 1].scale = i->scale;
    }
    if (seg)
        emit(t, t->c->cpu.mode & M_64 ? IR_ADD64 : IR_ADD32, a, a, BASE + i->seg, 0);
    return a;
}

unsigned load_rm(struct tr *t, unsigned size, unsigned temp)
{
    if (t->i.mod == 3)
        return get_reg(t, t->i.rm, size, temp);
    uint64_t disp;
    unsigned a = address(t, &disp);
    emit(t, IR_LD8 + log2_of(size), temp, a, 0, disp);
    return temp;
}

void store_rm(struct tr *t, unsigned size, unsigned from)
{
    if (t->i.mod == 3) {
        put_reg(t, t->i.rm, size, from);
        return;
    }
    uint64_t disp;
    unsigned a = address(t, &disp);
    emit(t, IR_ST8 + log2_of(size), 0, a, from, disp);
}

void emit_record(struct tr *t, unsigned family, unsigned w, unsigned result, unsigned second)
{
    t->kind = (int)(family * 4 + w);
    emit(t, IR_RECORD8 + w, 0, result, second, (uint64_t)t->kind);
}

/* The stack pointer's arithmetic is 64, 32 or 16 bits wide. */
static unsigned stack_width(struct tr *t)
{
    unsigned mode = t->c->cpu.mode;
    return mode & M_64 ? 3 : mode & M_SS32 ? 2 : 1;
}

void push_slot(struct tr *t, unsigned size, unsigned from)
{
    unsigned w = stack_width(t), a = T3;
    if (w == 3) {
        emit(t, IR_ST8 + log2_of(size), 0, RSP, from, 0 - (uint64_t)size);
        emit(t, IR_SUBI64, RSP, RSP, 0, size);
        return;
    }
    emit(t, IR_SUBI8 + w, T3, RSP, 0, size);
    if (!(t->c->cpu.mode & M_FLAT)) {
        emit(t, IR_ADD32, T4, T3, BASE + SS, 0);
        a = T4;
    }
    emit(t, IR_ST8 + log2_of(size), 0, a, from, 0);
    emit(t, IR_PUT8 + w, RSP, T3, 0, 0);
}

/* Loads the top of the stack; rsp moves by `size` + `more` afterwards. */
void pop_slot(struct tr *t, unsigned size, unsigned to, uint64_t more)
{
    unsigned w = stack_width(t);
    if (w == 3) {
        emit(t, IR_LD8 + log2_of(size), to, RSP, 0, 0);
        emit(t, IR_ADDI64, RSP, RSP, 0, size + more);
        return;
    }
    emit(t, IR_MOV8 + w, T3, RSP, 0, 0);
    if (!(t->c->cpu.mode & M_FLAT))
        emit(t, IR_ADD32, T3, T3, BASE + SS, 0);
    emit(t, IR_LD8 + log2_of(size), to, T3, 0, 0);
    emit(t, IR_ADDI8 + w, T3, RSP, 0, size + more);
    emit(t, IR_PUT8 + w, RSP, T3, 0, 0);
}

/* Slot with the condition as 0 or 1; *negate: the other way round. Or a branch operation in *branch. */
bool known_condition(struct tr *t, unsigned cond, unsigned *set, unsigned *branch)
{
    static const uint16_t sets[8] = { 0,        IR_SETB8, IR_SETZ8, IR_SETBE8,
                                      IR_SETS8, 0,        IR_SETL8, IR_SETLE8 };
    static const uint16_t brs[8] = { 0, IR_BRB8, IR_BRZ8, IR_BRBE8, IR_BRS8, 0, IR_BRL8, IR_BRLE8 };
    static const uint16_t brns[8] = { 0,        IR_BRNB8, IR_BRNZ8, IR_BRNBE8,
                                      IR_BRNS8, 0,        IR_BRNL8, IR_BRNLE8 };
    unsigned n = cond >> 1;
    if (t->kind < 0 || !sets[n] || t->kind >= K_FLAGS * 4)
        return false;
    unsigned family = (unsigned)t->kind >> 2, w = (unsigned)t->kind & 3;
    bool any = n == 2 || n == 4; /* zero and sign need the result only */
    if (!any && family != IR_KIND_SUB && family != IR_KIND_LOGIC)
        return false;
    *set = sets[n] + w;
    *branch = (cond & 1 ? brns[n] : brs[n]) + w;
    return true;
}

unsigned condition(struct tr *t, unsigned cond)
{
    unsigned set, branch;
    if (known_condition(t, cond, &set, &branch)) {
        emit(t, set, T0, 0, 0, 0);
        if (cond & 1)
            emit(t, IR_XORI64, T0, T0, 0, 1);
        return T0;
    }
    emit(t, IR_MOVI, T0, 0, 0, cond);
    emit_value(t, v_condition, T0, T0, T0);
    return T0;
}
