/* Guest code to IR: the instructions that programs are made of; helpers do the rest. */
#include "state.h"

#include "cpu/block.h"

struct tr {
    struct x86 *c;
    struct block *block;
    struct insn i;
    uint64_t pc; /* of this instruction */
    int kind;    /* the flags record's, when known; else -1 */
    bool done;
};

enum { T0 = IR_TEMP, T1, T2, T3, T4, T_BASE };

static unsigned log2_of(unsigned size)
{
    return size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3;
}

static void emit(struct tr *t, unsigned op, unsigned d, unsigned a, unsigned b, uint64_t imm)
{
    t->block->ops[t->block->n_ops++] = (struct ir_op){ .op = (uint16_t)op,
                                                       .at = (uint16_t)(t->pc - t->block->pc),
                                                       .d = (uint8_t)d,
                                                       .a = (uint8_t)a,
                                                       .b = (uint8_t)b,
                                                       .imm = imm };
}

static void call(struct tr *t, x86_helper *fn)
{
    struct insn *copy = (struct insn *)(t->block->args + t->block->n_args);
    *copy = t->i;
    t->block->n_args += (sizeof *copy + 7) & ~7u;
    emit(t, IR_CALL, 0, 0, 0, (uint64_t)(uintptr_t)fn);
    emit(t, IR_CALL, 0, 0, 0, (uint64_t)(uintptr_t)copy);
    t->kind = -1;
}

static void set_pc(struct tr *t, uint64_t pc)
{
    emit(t, IR_MOVI, IR_PC, 0, 0, pc);
}

static void leave(struct tr *t)
{
    emit(t, IR_LEAVE, 0, 0, 0, 0);
    t->done = true;
}

/* A register's value, narrowed by whoever uses it. */
static unsigned get_reg(struct tr *t, unsigned n, unsigned size, unsigned temp)
{
    if (size == 1 && !t->i.rex && n >= 4 && n < 8) {
        emit(t, IR_SHRI16, temp, n - 4, 0, 8);
        return temp;
    }
    return n;
}

static void put_reg(struct tr *t, unsigned n, unsigned size, unsigned from)
{
    if (size == 1 && !t->i.rex && n >= 4 && n < 8)
        emit(t, IR_PUTH, n - 4, from, 0, 0);
    else
        emit(t, IR_PUT8 + log2_of(size), n, from, 0, 0);
}

/* Can an operation write this register's slot directly? */
static bool direct(unsigned size)
{
    return size >= 4;
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
static unsigned address(struct tr *t, uint64_t *disp)
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

static unsigned load_rm(struct tr *t, unsigned size, unsigned temp)
{
    if (t->i.mod == 3)
        return get_reg(t, t->i.rm, size, temp);
    uint64_t disp;
    unsigned a = address(t, &disp);
    emit(t, IR_LD8 + log2_of(size), temp, a, 0, disp);
    return temp;
}

static void store_rm(struct tr *t, unsigned size, unsigned from)
{
    if (t->i.mod == 3) {
        put_reg(t, t->i.rm, size, from);
        return;
    }
    uint64_t disp;
    unsigned a = address(t, &disp);
    emit(t, IR_ST8 + log2_of(size), 0, a, from, disp);
}

static void record(struct tr *t, unsigned family, unsigned w, unsigned result, unsigned second)
{
    t->kind = (int)(family * 4 + w);
    emit(t, IR_RECORD8 + w, 0, result, second, (uint64_t)t->kind);
}

static const uint16_t alu_ops[8] = { IR_ADD8, IR_OR8, 0, 0, IR_AND8, IR_SUB8, IR_XOR8, IR_SUB8 };
static const uint8_t alu_families[8] = { IR_KIND_ADD, IR_KIND_LOGIC, 0,          0, IR_KIND_LOGIC,
                                         IR_KIND_SUB, IR_KIND_LOGIC, IR_KIND_SUB };

/* reg/mem op= reg/imm. `second` is a slot, or -1 for the immediate. */
static void alu_rm(struct tr *t, unsigned n, unsigned size, int second)
{
    unsigned w = log2_of(size), op = alu_ops[n] + w;
    uint64_t imm = (uint64_t)t->i.imm;
    bool compare = n == 7;
    unsigned a = load_rm(t, size, T0);
    if (t->i.mod == 3 || compare) {
        unsigned d = compare ? IR_VOID : direct(size) ? t->i.rm : T2;
        emit(t, op + IR_RECORDING + (second < 0 ? IR_IMMEDIATE : 0), d, a,
             second < 0 ? 0 : (unsigned)second, imm);
        if (d == T2)
            put_reg(t, t->i.rm, size, T2);
        t->kind = (int)(alu_families[n] * 4 + w);
        return;
    }
    /* The store may fault, so the flags come after it. */
    if (second < 0) {
        emit(t, IR_MOVI, T1, 0, 0, imm);
        second = T1;
    }
    emit(t, op, T2, a, (unsigned)second, 0);
    store_rm(t, size, T2);
    if (alu_families[n] == IR_KIND_LOGIC) {
        emit(t, IR_MOVI, T1, 0, 0, 0);
        second = T1;
    }
    record(t, alu_families[n], w, T2, (unsigned)second);
}

static bool alu(struct tr *t)
{
    struct insn *i = &t->i;
    unsigned op = i->op, form = op & 7, n = op >> 3;
    unsigned size = form & 1 ? i->osize : 1;
    if (n == 2 || n == 3)
        return false;
    if (form < 2) {
        alu_rm(t, n, size, (int)get_reg(t, i->reg, size, T1));
        return true;
    }
    unsigned w = log2_of(size), code = alu_ops[n] + w + IR_RECORDING;
    unsigned d, reg = form < 4 ? i->reg : RAX, a, b = 0;
    if (form < 4)
        b = load_rm(t, size, T1);
    else
        code += IR_IMMEDIATE;
    a = get_reg(t, reg, size, T0);
    d = n == 7 ? IR_VOID : direct(size) ? reg : T2;
    emit(t, code, d, a, b, (uint64_t)i->imm);
    if (d == T2)
        put_reg(t, reg, size, T2);
    t->kind = (int)(alu_families[n] * 4 + w);
    return true;
}

/* The stack pointer's arithmetic is 64, 32 or 16 bits wide. */
static unsigned stack_width(struct tr *t)
{
    unsigned mode = t->c->cpu.mode;
    return mode & M_64 ? 3 : mode & M_SS32 ? 2 : 1;
}

static void push_slot(struct tr *t, unsigned size, unsigned from)
{
    unsigned w = stack_width(t), a = T3;
    emit(t, IR_SUBI8 + w, T3, RSP, 0, size);
    if (w != 3 && !(t->c->cpu.mode & M_FLAT)) {
        emit(t, IR_ADD32, T4, T3, BASE + SS, 0);
        a = T4;
    }
    emit(t, IR_ST8 + log2_of(size), 0, a, from, 0);
    emit(t, IR_PUT8 + w, RSP, T3, 0, 0);
}

/* Loads the top of the stack; rsp moves by `size` + `more` afterwards. */
static void pop_slot(struct tr *t, unsigned size, unsigned to, uint64_t more)
{
    unsigned w = stack_width(t), a = RSP;
    if (w != 3) {
        emit(t, IR_MOV8 + w, T3, RSP, 0, 0);
        a = T3;
        if (!(t->c->cpu.mode & M_FLAT))
            emit(t, IR_ADD32, T3, T3, BASE + SS, 0);
    }
    emit(t, IR_LD8 + log2_of(size), to, a, 0, 0);
    emit(t, IR_ADDI8 + w, T3, RSP, 0, size + more);
    emit(t, IR_PUT8 + w, RSP, T3, 0, 0);
}

/* Slot with the condition as 0 or 1; *negate: the other way round. Or a branch operation in *branch. */
static bool known_condition(struct tr *t, unsigned cond, unsigned *set, unsigned *branch)
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

static unsigned condition(struct tr *t, unsigned cond)
{
    unsigned set, branch;
    if (known_condition(t, cond, &set, &branch)) {
        emit(t, set, T0, 0, 0, 0);
        if (cond & 1)
            emit(t, IR_XORI64, T0, T0, 0, 1);
        return T0;
    }
    emit(t, IR_MOVI, T0, 0, 0, cond);
    emit(t, IR_CALLV, T0, T0, T0, (uint64_t)(uintptr_t)v_condition);
    return T0;
}

static uint64_t target_of(struct tr *t)
{
    uint64_t target = t->i.next + (uint64_t)t->i.imm;
    return target & width_mask(t->i.osize);
}

static void exit_to(struct tr *t, uint64_t target)
{
    emit(t, IR_EXIT, 0, 0, 0, target);
    t->done = true;
}

static void jcc(struct tr *t, unsigned cond)
{
    unsigned set, branch;
    if (known_condition(t, cond, &set, &branch))
        emit(t, branch, 0, 0, 0, target_of(t));
    else
        emit(t, IR_BRTRUE, 0, condition(t, cond), 0, target_of(t));
    exit_to(t, t->i.next);
}

static void loop_or_jcxz(struct tr *t)
{
    struct insn *i = &t->i;
    unsigned w = log2_of(i->asize), n = i->op - 0xe0;
    if (n == 3) {
        emit(t, IR_MOV8 + w, T1, RCX, 0, 0);
        emit(t, IR_MOVI, T2, 0, 0, 1);
        emit(t, IR_MOVI, T0, 0, 0, 0);
        emit(t, IR_SELECT, T2, T1, T0, 0); /* count != 0: no jump */
        emit(t, IR_BRTRUE, 0, T2, 0, target_of(t));
    } else {
        if (n < 2)
            condition(t, n ? 4 : 5);
        emit(t, IR_SUBI8 + w, T1, RCX, 0, 1);
        emit(t, IR_PUT8 + w, RCX, T1, 0, 0);
        if (n < 2) { /* and the condition: otherwise as if the count were zero */
            emit(t, IR_XORI64, T0, T0, 0, 1);
            emit(t, IR_MOVI, T2, 0, 0, 0);
            emit(t, IR_SELECT, T1, T0, T2, 0);
        }
        emit(t, IR_BRTRUE, 0, T1, 0, target_of(t));
    }
    exit_to(t, i->next);
}

/* T1: the carry, by the shortest way. */
static void carry(struct tr *t)
{
    unsigned family = t->kind < 0 ? K_FLAGS : (unsigned)t->kind >> 2;
    if (family == K_INC || family == K_DEC)
        emit(t, IR_MOV64, T1, IR_SECOND, 0, 0);
    else if (family == IR_KIND_LOGIC)
        emit(t, IR_MOVI, T1, 0, 0, 0);
    else if (family == IR_KIND_SUB)
        emit(t, IR_SETB8 + ((unsigned)t->kind & 3), T1, 0, 0, 0);
    else
        emit(t, IR_CALLV, T1, IR_VOID, IR_VOID, (uint64_t)(uintptr_t)v_carry);
}

/* SHL, SHR and SAR of a register by a constant. */
static bool shift_constant(struct tr *t)
{
    const struct insn *i = &t->i;
    unsigned g = (i->modrm >> 3) & 7, size = i->osize, n = i->op < 0xd0 ? (unsigned)i->imm & 63 : 1;
    if (!(i->op & 1) || g < 4 || i->mod != 3 || size < 4 || n == 0 || n >= size * 8)
        return false;
    unsigned w = log2_of(size), op = (g == 5 ? IR_SHRI8 : g == 7 ? IR_SARI8 : IR_SHLI8) + w;
    emit(t, op, T0, i->rm, 0, n - 1);
    emit(t, op, i->rm, T0, 0, 1);
    record(t, g == 5 ? K_SHR : g == 7 ? K_SAR : K_SHL, w, i->rm, T0);
    return true;
}

static void inc_dec(struct tr *t, bool dec, unsigned size)
{
    unsigned w = log2_of(size), a = load_rm(t, size, T0);
    carry(t);
    emit(t, (dec ? IR_SUBI8 : IR_ADDI8) + w, T2, a, 0, 1);
    store_rm(t, size, T2);
    record(t, dec ? K_DEC : K_INC, w, T2, T1);
}

static void extend(struct tr *t, unsigned from, bool sign)
{
    unsigned a = load_rm(t, from, T0);
    emit(t, (sign ? IR_SEXT8 : IR_MOV8) + log2_of(from), T0, a, 0, 0);
    put_reg(t, t->i.reg, t->i.osize, T0);
}

static void near_call(struct tr *t)
{
    struct insn *i = &t->i;
    emit(t, IR_MOVI, T0, 0, 0, i->next & width_mask(i->osize));
    push_slot(t, i->osize, T0);
    exit_to(t, target_of(t));
}

static void near_ret(struct tr *t)
{
    struct insn *i = &t->i;
    pop_slot(t, i->osize, T0, i->op == 0xc2 ? (uint64_t)i->imm : 0);
    emit(t, IR_EXITR, 0, T0, 0, 0);
    t->done = true;
}

static bool group_ff(struct tr *t)
{
    struct insn *i = &t->i;
    unsigned g = (i->modrm >> 3) & 7;
    if (g < 2) {
        inc_dec(t, g, i->osize);
    } else if (g == 2 || g == 4) {
        unsigned a = load_rm(t, i->osize, T1);
        emit(t, IR_MOV8 + log2_of(i->osize), T1, a, 0, 0);
        if (g == 2) {
            emit(t, IR_MOVI, T0, 0, 0, i->next & width_mask(i->osize));
            push_slot(t, i->osize, T0);
        }
        emit(t, IR_EXITR, 0, T1, 0, 0);
        t->done = true;
    } else if (g == 6) {
        push_slot(t, i->osize, load_rm(t, i->osize, T0));
    } else {
        return false;
    }
    return true;
}

static bool one_byte(struct tr *t);
static bool two_byte(struct tr *t);

static bool one_byte(struct tr *t)
{
    struct insn *i = &t->i;
    unsigned op = i->op, size = op & 1 ? i->osize : 1;
    if (op < 0x40 && (op & 7) < 6)
        return alu(t);
    if (op >= 0x40 && op < 0x50) {
        i->mod = 3;
        i->rm = op & 7;
        inc_dec(t, op & 8, i->osize);
        return true;
    }
    unsigned n = (op & 7) | (i->rexbits & 1 ? 8 : 0), g = (i->modrm >> 3) & 7;
    if (op >= 0x70 && op < 0x80) {
        jcc(t, op & 15);
        return true;
    }
    if (op >= 0x50 && op < 0x58) {
        push_slot(t, i->osize, n);
        return true;
    }
    if (op >= 0x58 && op < 0x60) {
        pop_slot(t, i->osize, T0, 0);
        put_reg(t, n, i->osize, T0);
        return true;
    }
    if (op >= 0xb0 && op < 0xc0) {
        size = op & 8 ? i->osize : 1;
        emit(t, IR_MOVI, T0, 0, 0, (uint64_t)i->imm);
        put_reg(t, n, size, T0);
        return true;
    }
    switch (op) {
    case 0x63:
        if (!i->is64)
            return false;
        extend(t, 4, true);
        return true;
    case 0x68:
    case 0x6a:
        emit(t, IR_MOVI, T0, 0, 0, (uint64_t)i->imm);
        push_slot(t, i->osize, T0);
        return true;
    case 0x80:
    case 0x81:
    case 0x82:
    case 0x83:
        if (g == 2 || g == 3)
            return false;
        alu_rm(t, g, size, -1);
        return true;
    case 0x84:
    case 0x85:
    case 0xa8:
    case 0xa9: {
        bool imm = op >= 0xa8;
        unsigned a = imm ? RAX : load_rm(t, size, T0), b = imm ? 0 : get_reg(t, i->reg, size, T1);
        emit(t, (imm ? IR_ANDIC8 : IR_ANDC8) + log2_of(size), IR_VOID, a, b, (uint64_t)i->imm);
        t->kind = (int)(IR_KIND_LOGIC * 4 + log2_of(size));
        return true;
    }
    case 0x88:
    case 0x89:
        store_rm(t, size, get_reg(t, i->reg, size, T0));
        return true;
    case 0x8a:
    case 0x8b:
        if (i->mod != 3 && direct(size)) {
            uint64_t disp;
            unsigned a = address(t, &disp);
            emit(t, IR_LD8 + log2_of(size), i->reg, a, 0, disp);
            return true;
        }
        put_reg(t, i->reg, size, load_rm(t, size, T0));
        return true;
    case 0x8d:
        if (i->mod == 3)
            return false;
        if (i->base < 0 && i->index < 0) {
            emit(t, IR_MOVI, T0, 0, 0, (uint64_t)i->disp & width_mask(i->asize));
        } else {
            unsigned seg = i->seg;
            i->seg = DS; /* no segment is added */
            unsigned mode = t->c->cpu.mode;
            t->c->cpu.mode |= M_FLAT;
            uint64_t disp;
            unsigned a = address(t, &disp);
            t->c->cpu.mode = mode;
            i->seg = (uint8_t)seg;
            emit(t, IR_ADDI64, T0, a, 0, disp);
        }
        put_reg(t, i->reg, i->osize, T0);
        return true;
    case 0x90:
        return n == 0; /* else XCHG */
    case 0x98:         /* CBW */
        emit(t, IR_SEXT8 + log2_of(i->osize) - 1, T0, RAX, 0, 0);
        put_reg(t, RAX, i->osize, T0);
        return true;
    case 0x99: /* CWD */
        emit(t, IR_SARI8 + log2_of(i->osize), T0, RAX, 0, i->osize * 8u - 1);
        put_reg(t, RDX, i->osize, T0);
        return true;
    case 0xc0:
    case 0xc1:
    case 0xd0:
    case 0xd1:
        return shift_constant(t);
    case 0xc2:
    case 0xc3:
        near_ret(t);
        return true;
    case 0xc6:
    case 0xc7:
        if (g)
            return false;
        emit(t, IR_MOVI, T0, 0, 0, (uint64_t)i->imm);
        store_rm(t, size, T0);
        return true;
    case 0xe0:
    case 0xe1:
    case 0xe2:
    case 0xe3:
        loop_or_jcxz(t);
        return true;
    case 0xe8:
        near_call(t);
        return true;
    case 0xe9:
    case 0xeb:
        exit_to(t, target_of(t));
        return true;
    case 0xf6:
    case 0xf7:
        if (g < 2) {
            emit(t, IR_ANDIC8 + log2_of(size), IR_VOID, load_rm(t, size, T0), 0, (uint64_t)i->imm);
            t->kind = (int)(IR_KIND_LOGIC * 4 + log2_of(size));
        } else if (g == 2) {
            emit(t, IR_XORI8 + log2_of(size), T2, load_rm(t, size, T0), 0, ~(uint64_t)0);
            store_rm(t, size, T2);
        } else
            return false;
        return true;
    case 0xfe:
        if (g > 1)
            return false;
        inc_dec(t, g, 1);
        return true;
    case 0xff:
        return group_ff(t);
    default:
        return false;
    }
}

static bool two_byte(struct tr *t)
{
    struct insn *i = &t->i;
    unsigned op = i->op & 0xff;
    if (i->op >= MAP_38 || i->vex)
        return false;
    if (op >= 0x80 && op < 0x90) {
        jcc(t, op & 15);
        return true;
    }
    if (op >= 0x90 && op < 0xa0) {
        store_rm(t, 1, condition(t, op & 15));
        return true;
    }
    if (op >= 0x40 && op < 0x50) {
        unsigned b = load_rm(t, i->osize, T1);
        condition(t, op & 15);
        emit(t, IR_MOV8 + log2_of(i->osize), T2, i->reg, 0, 0);
        emit(t, IR_SELECT, T2, T0, b, 0);
        put_reg(t, i->reg, i->osize, T2);
        return true;
    }
    switch (op) {
    case 0x1e: /* hints: ENDBR and other reserved no-operations */
    case 0x1f:
    case 0x18:
    case 0x0d:
        return true;
    case 0xb6:
    case 0xb7:
        extend(t, op & 1 ? 2 : 1, false);
        return true;
    case 0xbe:
    case 0xbf:
        extend(t, op & 1 ? 2 : 1, true);
        return true;
    default:
        return false;
    }
}

static void instruction(struct tr *t)
{
    struct insn *i = &t->i;
    bool plain = !i->lock && (i->op < 0x100 ? one_byte(t) : two_byte(t));
    if (plain)
        return;
    bool ends = false;
    x86_helper *fn = x86_find_helper(t->c, i, &ends);
    if (!fn) {
        fn = h_ud;
        ends = true;
    }
    if (ends)
        set_pc(t, i->next);
    call(t, fn);
    if (ends)
        leave(t);
}

/* Code bytes of one page, or of two when it is the block's first instruction. */
struct source {
    struct x86_fetch fetch;
    struct cpu *cpu;
    uint64_t at, page;
    bool first;
};

static uint8_t next_byte(struct x86_fetch *fetch)
{
    struct source *s = (struct source *)fetch;
    if ((s->at & GUEST_PAGE_MASK) != s->page && !s->first) {
        s->fetch.over = true;
        return 0;
    }
    uint64_t at = s->at++;
    if (!(s->cpu->mode & M_64))
        at = (uint32_t)at;
    return (uint8_t)cpu_load_slow(s->cpu, at, 1, CPU_EXECUTE);
}

void x86_translate(struct cpu *cpu, struct block *block, unsigned limit)
{
    struct x86 *c = (struct x86 *)cpu;
    unsigned bits = cpu->mode & M_64 ? 64 : cpu->mode & M_32 ? 32 : 16;
    struct tr t = { .c = c, .block = block, .pc = block->pc, .kind = -1 };
    struct source s = { .fetch = { .next = next_byte },
                        .cpu = cpu,
                        .at = block->linear,
                        .page = block->linear & GUEST_PAGE_MASK,
                        .first = true };
    if (cpu->mode & (M_TF | M_SHADOW))
        limit = 1;
    if (cpu->mode & M_TF)
        call(&t, h_trap);
    while (!t.done && block->count < limit && block->n_ops + 40 < BLOCK_OPS) {
        uint64_t start = s.at;
        bool ok = insn_decode(&t.i, &s.fetch, bits, t.pc);
        if (s.fetch.over || (!s.first && (start & GUEST_PAGE_MASK) != s.page))
            break;
        s.first = false;
        if (bits == 16 && t.pc < 0x10000)
            t.i.next &= 0xffff;
        if (ok) {
            instruction(&t);
        } else {
            call(&t, t.i.length > 15 ? h_gp : h_ud);
            leave(&t);
        }
        t.pc += t.i.length;
        block->count++;
        block->size = (uint16_t)(t.pc - block->pc);
        if (cpu->mode & (M_TF | M_SHADOW) || t.i.next < t.pc)
            break;
    }
    if (!t.done) {
        t.pc = t.pc - t.i.length;
        if (cpu->mode & M_TF) {
            set_pc(&t, t.i.next);
            leave(&t);
        } else {
            exit_to(&t, block->pc + block->size);
        }
    }
}
