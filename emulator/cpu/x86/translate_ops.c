/* The instructions that programs are made of, as IR. */
#include "translate.h"

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
        t->fusible = t->block->n_ops;
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
    emit_record(t, alu_families[n], w, T2, (unsigned)second);
}

static bool alu(struct tr *t)
{
    struct insn *i = &t->i;
    unsigned op = i->op, form = op & 7, n = op >> 3;
    unsigned size = form & 1 ? i->osize : 1;
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
    t->fusible = t->block->n_ops;
    return true;
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

/* The condition's bits in a record that is flags already; 0: not so simple. */
static unsigned flag_bits(const struct tr *t, unsigned cond)
{
    static const uint16_t bits[8] = { F_O, F_C, F_Z, F_C | F_Z, F_S, F_P, 0, 0 };
    return t->kind == K_FLAGS * 4 ? bits[cond >> 1] : 0;
}

/* A comparison right before, of 32 or 64 bits, becomes one operation with the branch: it writes the record as well. The
 * immediate lies in d and scale then, if it is that small. */
static bool fuse(struct tr *t, unsigned cond, uint64_t target)
{
    static const uint16_t compare[16] = { [2] = IR_CBB32, IR_CBNB32,  IR_CBZ32,        IR_CBNZ32,
                                          IR_CBBE32,      IR_CBNBE32, [12] = IR_CBL32, IR_CBNL32,
                                          IR_CBLE32,      IR_CBNLE32 };
    static const uint16_t test[16] = { [4] = IR_TBZ32, IR_TBNZ32, [8] = IR_TBS32, IR_TBNS32 };
    struct ir_op *op = t->block->n_ops ? &t->block->ops[t->block->n_ops - 1] : NULL;
    if (!op || op->d != IR_VOID || t->fusible != t->block->n_ops)
        return false;
    bool sub = op->op >= IR_SUBC8 && op->op <= IR_SUBIC64;
    unsigned first = sub ? IR_SUBC8 : IR_ANDC8, form = op->op - first, w = form & 3;
    uint16_t fused = (sub ? compare : test)[cond];
    int64_t imm = (int64_t)op->imm;
    bool immediate = form >= IR_IMMEDIATE;
    if (!fused || w < IR_W32 || (immediate && imm != (int16_t)imm))
        return false;
    op->op = (uint16_t)(fused + (w == IR_W64) + (immediate ? 2 : 0));
    op->d = (uint8_t)imm;
    op->scale = (uint8_t)(imm >> 8);
    op->imm = target;
    op->at = (uint16_t)(t->pc - t->block->pc);
    return true;
}

static void jcc(struct tr *t, unsigned cond)
{
    unsigned set, branch;
    uint64_t yes = target_of(t), no = t->i.next;
    if (fuse(t, cond, yes)) {
        exit_to(t, no);
        return;
    }
    if (known_condition(t, cond, &set, &branch)) {
        emit(t, branch, 0, 0, 0, yes);
    } else if (flag_bits(t, cond)) {
        emit(t, IR_ANDI64, T0, IR_RESULT, 0, flag_bits(t, cond));
        emit(t, IR_BRTRUE, 0, T0, 0, cond & 1 ? no : yes);
        no = cond & 1 ? yes : no;
    } else {
        emit(t, IR_BRTRUE, 0, condition(t, cond), 0, yes);
    }
    exit_to(t, no);
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
        emit_value(t, v_carry, T1, IR_VOID, IR_VOID);
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
    emit_record(t, g == 5 ? K_SHR : g == 7 ? K_SAR : K_SHL, w, i->rm, T0);
    return true;
}

static void inc_dec(struct tr *t, bool dec, unsigned size)
{
    unsigned w = log2_of(size), op = (dec ? IR_SUBI8 : IR_ADDI8) + w, to = T2;
    if (t->i.mod == 3 && direct(size)) {
        to = t->i.rm;
        carry(t);
        emit(t, op, to, to, 0, 1);
    } else {
        unsigned a = load_rm(t, size, T0);
        carry(t);
        emit(t, op, T2, a, 0, 1);
        store_rm(t, size, T2);
    }
    emit_record(t, dec ? K_DEC : K_INC, w, to, T1);
}

static void extend(struct tr *t, unsigned from, bool sign)
{
    const struct insn *i = &t->i;
    bool memory = i->mod != 3, whole = direct(i->osize) && (!sign || i->osize == 8);
    unsigned w = log2_of(from), to = whole ? i->reg : T0;
    if (memory && !sign) {
        uint64_t disp;
        unsigned a = address(t, &disp);
        emit(t, IR_LD8 + w, to, a, 0, disp);
    } else {
        unsigned a = load_rm(t, from, T0);
        emit(t, (sign ? IR_SEXT8 : IR_MOV8) + w, to, a, 0, 0);
    }
    if (!whole)
        put_reg(t, i->reg, i->osize, T0);
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

/* ADC and SBB into a register. */
static bool with_carry(struct tr *t)
{
    const struct insn *i = &t->i;
    unsigned form = i->op & 7;
    if (!(form & 1) || !direct(i->osize) || (form == 1 && i->mod != 3))
        return false;
    unsigned to = form == 1 ? i->rm : form == 3 ? i->reg : RAX, b = T1;
    if (form == 5)
        emit(t, IR_MOVI, T1, 0, 0, (uint64_t)i->imm);
    else
        b = form == 1 ? i->reg : load_rm(t, i->osize, T1);
    emit_value(t, (i->op >> 3 == 2 ? v_adc : v_sbb)[i->osize == 8], to, to, b);
    t->kind = -1;
    return true;
}

static bool group_80(struct tr *t)
{
    const struct insn *i = &t->i;
    unsigned g = group(i), size = op_size(i);
    if (g != 2 && g != 3) {
        alu_rm(t, g, size, -1);
        return true;
    }
    if (i->mod != 3 || !direct(size))
        return false;
    emit(t, IR_MOVI, T1, 0, 0, (uint64_t)i->imm);
    emit_value(t, (g == 2 ? v_adc : v_sbb)[size == 8], i->rm, i->rm, T1);
    t->kind = -1;
    return true;
}

static bool inc_dec_short(struct tr *t)
{
    t->i.mod = 3;
    t->i.rm = t->i.op & 7;
    inc_dec(t, t->i.op & 8, t->i.osize);
    return true;
}

/* The register in the opcode's lowest bits. */
static unsigned op_reg(const struct tr *t)
{
    return (t->i.op & 7u) | (t->i.rexbits & 1 ? 8 : 0);
}

static bool push_reg(struct tr *t)
{
    push_slot(t, t->i.osize, op_reg(t));
    return true;
}

static bool pop_reg(struct tr *t)
{
    unsigned n = op_reg(t);
    if (t->i.osize == 8 && n != RSP) {
        pop_slot(t, 8, n, 0);
        return true;
    }
    pop_slot(t, t->i.osize, T0, 0);
    put_reg(t, n, t->i.osize, T0);
    return true;
}

static bool push_imm(struct tr *t)
{
    emit(t, IR_MOVI, T0, 0, 0, (uint64_t)t->i.imm);
    push_slot(t, t->i.osize, T0);
    return true;
}

static bool mov_imm(struct tr *t)
{
    unsigned size = t->i.op & 8 ? t->i.osize : 1, to = direct(size) ? op_reg(t) : T0;
    emit(t, IR_MOVI, to, 0, 0, (uint64_t)t->i.imm & width_mask(size));
    if (to == T0)
        put_reg(t, op_reg(t), size, T0);
    return true;
}

static bool movsxd(struct tr *t)
{
    if (!t->i.is64)
        return false;
    extend(t, 4, true);
    return true;
}

static bool test(struct tr *t)
{
    const struct insn *i = &t->i;
    unsigned size = op_size(i), w = log2_of(size);
    if (i->op >= 0xa8)
        emit(t, IR_ANDIC8 + w, IR_VOID, RAX, 0, (uint64_t)i->imm);
    else {
        unsigned a = load_rm(t, size, T0);
        emit(t, IR_ANDC8 + w, IR_VOID, a, get_reg(t, i->reg, size, T1), 0);
    }
    t->kind = (int)(IR_KIND_LOGIC * 4 + w);
    t->fusible = t->block->n_ops;
    return true;
}

static bool mov_store(struct tr *t)
{
    unsigned size = op_size(&t->i);
    store_rm(t, size, get_reg(t, t->i.reg, size, T0));
    return true;
}

static bool mov_load(struct tr *t)
{
    const struct insn *i = &t->i;
    unsigned size = op_size(i);
    if (i->mod != 3 && direct(size)) {
        uint64_t disp;
        unsigned a = address(t, &disp);
        emit(t, IR_LD8 + log2_of(size), i->reg, a, 0, disp);
        return true;
    }
    put_reg(t, i->reg, size, load_rm(t, size, T0));
    return true;
}

static bool lea(struct tr *t)
{
    struct insn *i = &t->i;
    if (i->mod == 3)
        return false;
    if (i->base < 0 && i->index < 0) {
        emit(t, IR_MOVI, T0, 0, 0, (uint64_t)i->disp & width_mask(i->asize));
    } else {
        unsigned mode = t->c->cpu.mode;
        uint64_t disp;
        i->seg = DS; /* no segment is added */
        t->c->cpu.mode |= M_FLAT;
        unsigned a = address(t, &disp);
        t->c->cpu.mode = mode;
        if (direct(i->osize)) {
            emit(t, IR_ADDI32 + (i->osize == 8), i->reg, a, 0, disp);
            return true;
        }
        emit(t, IR_ADDI64, T0, a, 0, disp);
    }
    put_reg(t, i->reg, i->osize, T0);
    return true;
}

static bool nop(struct tr *t)
{
    return op_reg(t) == 0 || t->i.op > 0xff; /* else XCHG */
}

static bool cbw(struct tr *t)
{
    emit(t, IR_SEXT8 + log2_of(t->i.osize) - 1, T0, RAX, 0, 0);
    put_reg(t, RAX, t->i.osize, T0);
    return true;
}

static bool cwd(struct tr *t)
{
    emit(t, IR_SARI8 + log2_of(t->i.osize), T0, RAX, 0, t->i.osize * 8u - 1);
    put_reg(t, RDX, t->i.osize, T0);
    return true;
}

/* Shifts and rotations of a register: shifts by a constant in IR, the others in a function. */
static bool shift(struct tr *t)
{
    const struct insn *i = &t->i;
    unsigned g = group(i), count = RCX;
    if (i->op < 0xd2 && g >= 4)
        return shift_constant(t);
    if (!(i->op & 1) || i->mod != 3 || !direct(i->osize) || g == 2 || g == 3)
        return false;
    if (i->op < 0xd2) {
        count = T1;
        emit(t, IR_MOVI, T1, 0, 0, i->op < 0xd0 ? (uint64_t)i->imm : 1);
    }
    emit_value(t, v_shifts[g][i->osize == 8], i->rm, i->rm, count);
    t->kind = -1;
    return true;
}

static bool ret(struct tr *t)
{
    near_ret(t);
    return true;
}

static bool mov_rm_imm(struct tr *t)
{
    const struct insn *i = &t->i;
    unsigned size = op_size(i);
    if (group(i))
        return false;
    if (i->mod == 3 && direct(size)) {
        emit(t, IR_MOVI, i->rm, 0, 0, (uint64_t)i->imm & width_mask(size));
        return true;
    }
    emit(t, IR_MOVI, T0, 0, 0, (uint64_t)i->imm);
    store_rm(t, size, T0);
    return true;
}

static bool loop(struct tr *t)
{
    loop_or_jcxz(t);
    return true;
}

static bool call_near(struct tr *t)
{
    near_call(t);
    return true;
}

static bool jmp(struct tr *t)
{
    exit_to(t, target_of(t));
    return true;
}

static bool group_f6(struct tr *t)
{
    const struct insn *i = &t->i;
    unsigned size = op_size(i), g = group(i);
    if (g < 2) {
        emit(t, IR_ANDIC8 + log2_of(size), IR_VOID, load_rm(t, size, T0), 0, (uint64_t)i->imm);
        t->kind = (int)(IR_KIND_LOGIC * 4 + log2_of(size));
    } else if (g == 2) {
        emit(t, IR_XORI8 + log2_of(size), T2, load_rm(t, size, T0), 0, ~(uint64_t)0);
        store_rm(t, size, T2);
    } else if (g == 3 && i->mod == 3 && direct(size)) {
        emit(t, IR_MOVI, T0, 0, 0, 0);
        emit(t, IR_SUBC8 + log2_of(size), i->rm, T0, i->rm, 0);
        t->kind = (int)(IR_KIND_SUB * 4 + log2_of(size));
    } else {
        return false;
    }
    return true;
}

static bool group_fe(struct tr *t)
{
    if (group(&t->i) > 1)
        return false;
    inc_dec(t, group(&t->i), 1);
    return true;
}

static bool jump_if(struct tr *t)
{
    jcc(t, t->i.op & 15);
    return true;
}

static bool set_if(struct tr *t)
{
    store_rm(t, 1, condition(t, t->i.op & 15));
    return true;
}

static bool move_if(struct tr *t)
{
    const struct insn *i = &t->i;
    unsigned b = load_rm(t, i->osize, T1);
    condition(t, i->op & 15);
    if (direct(i->osize)) {
        emit(t, IR_SELECT, i->reg, T0, b, 0);
        if (i->osize == 4) /* the upper half goes either way */
            emit(t, IR_PUT32, i->reg, i->reg, 0, 0);
        return true;
    }
    emit(t, IR_MOV16, T2, i->reg, 0, 0);
    emit(t, IR_SELECT, T2, T0, b, 0);
    put_reg(t, i->reg, i->osize, T2);
    return true;
}

static bool extend_zero(struct tr *t)
{
    extend(t, t->i.op & 1 ? 2 : 1, false);
    return true;
}

static bool extend_sign(struct tr *t)
{
    extend(t, t->i.op & 1 ? 2 : 1, true);
    return true;
}

static bool imul(struct tr *t)
{
    const struct insn *i = &t->i;
    if (!direct(i->osize))
        return false;
    unsigned a = load_rm(t, i->osize, T1), b = i->reg;
    if (i->op < MAP_0F) {
        emit(t, IR_MOVI, T2, 0, 0, (uint64_t)i->imm);
        b = T2;
    }
    emit_value(t, v_imul[i->osize == 8], i->reg, a, b);
    t->kind = (int)(K_MUL * 4 + log2_of(i->osize));
    return true;
}

/* BT of a register. */
static bool bit_test(struct tr *t)
{
    const struct insn *i = &t->i;
    bool imm = i->op == MAP_0F + 0xba;
    if (i->mod != 3 || !direct(i->osize) || (imm && group(i) != 4))
        return false;
    if (imm)
        emit(t, IR_MOVI, T1, 0, 0, (uint64_t)i->imm);
    emit_value(t, v_bt[i->osize == 8], IR_VOID, i->rm, imm ? T1 : i->reg);
    t->kind = K_FLAGS * 4;
    return true;
}

typedef bool op_fn(struct tr *t);

#define ALU_ROW(n, fn) \
    [n] = fn, [(n) + 1] = fn, [(n) + 2] = fn, [(n) + 3] = fn, [(n) + 4] = fn, [(n) + 5] = fn
static op_fn *const one_byte[256] = {
    ALU_ROW(0x00, alu),
    ALU_ROW(0x08, alu),
    ALU_ROW(0x10, with_carry),
    ALU_ROW(0x18, with_carry),
    ALU_ROW(0x20, alu),
    ALU_ROW(0x28, alu),
    ALU_ROW(0x30, alu),
    ALU_ROW(0x38, alu),
    [0x40 ... 0x4f] = inc_dec_short,
    [0x50 ... 0x57] = push_reg,
    [0x58 ... 0x5f] = pop_reg,
    [0x63] = movsxd,
    [0x68] = push_imm,
    [0x69] = imul,
    [0x6a] = push_imm,
    [0x6b] = imul,
    [0x70 ... 0x7f] = jump_if,
    [0x80 ... 0x83] = group_80,
    [0x84 ... 0x85] = test,
    [0x88 ... 0x89] = mov_store,
    [0x8a ... 0x8b] = mov_load,
    [0x8d] = lea,
    [0x90] = nop,
    [0x98] = cbw,
    [0x99] = cwd,
    [0xa8 ... 0xa9] = test,
    [0xb0 ... 0xbf] = mov_imm,
    [0xc0 ... 0xc1] = shift,
    [0xc2 ... 0xc3] = ret,
    [0xc6 ... 0xc7] = mov_rm_imm,
    [0xd0 ... 0xd3] = shift,
    [0xe0 ... 0xe3] = loop,
    [0xe8] = call_near,
    [0xe9] = jmp,
    [0xeb] = jmp,
    [0xf6 ... 0xf7] = group_f6,
    [0xfe] = group_fe,
    [0xff] = group_ff,
};

/* 0D, 18, 1E, 1F are hints: ENDBR, prefetches and other reserved no-operations. */
static op_fn *const two_byte[256] = {
    [0x0d] = nop,
    [0x18] = nop,
    [0x1e ... 0x1f] = nop,
    [0x40 ... 0x4f] = move_if,
    [0x80 ... 0x8f] = jump_if,
    [0x90 ... 0x9f] = set_if,
    [0xa3] = bit_test,
    [0xaf] = imul,
    [0xb6 ... 0xb7] = extend_zero,
    [0xba] = bit_test,
    [0xbe ... 0xbf] = extend_sign,
};

/* SHLX, SHRX, SARX. */
static bool vex_op(struct tr *t)
{
    const struct insn *i = &t->i;
    if (i->vl || !has(t->c, FEATURE_BMI2) || i->op != MAP_38 + 0xf7 || !(i->opsize || i->rep))
        return false;
    unsigned a = load_rm(t, i->osize, T0);
    unsigned op = i->opsize ? IR_SHL32 : i->rep == 0xf2 ? IR_SHR32 : IR_SAR32;
    emit(t, op + (i->osize == 8), i->reg, a, i->v, 0);
    return true;
}

bool translate_op(struct tr *t)
{
    const struct insn *i = &t->i;
    if (i->vex)
        return vex_op(t);
    if (i->op >= MAP_38)
        return false;
    op_fn *fn = i->op < MAP_0F ? one_byte[i->op] : two_byte[i->op & 0xff];
    return fn && fn(t);
}
