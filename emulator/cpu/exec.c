/* The portable executor: one label for each operation, each ending in a jump to the next. */
#include "block.h"

#pragma GCC diagnostic ignored "-Wconversion" /* widths are what this file is about */
#pragma GCC diagnostic ignored "-Wpedantic"

#define DST         r[ip->d]
#define OPA         r[ip->a]
#define OPB         r[ip->b]
#define IMM         ip->imm
#define NEXT        goto *labels[(++ip)->op]
#define W_8         0
#define W_16        1
#define W_32        2
#define W_64        3
#define U(w)        uint##w##_t
#define S(w)        int##w##_t
#define EACH(M)     M(8) M(16) M(32) M(64)
#define EACH1(M, x) M(x, 8) M(x, 16) M(x, 32) M(x, 64)

#define RECORD(family, w, result, second) \
    r[IR_KIND] = (family)*4 + W_##w, r[IR_RESULT] = (result), r[IR_SECOND] = (second)

/* One operation in its four forms at one width. */
#define ARITH(n, o, family, rec, w)               \
    n##w : DST = (U(w))(OPA o OPB);               \
    NEXT;                                         \
    n##I##w : DST = (U(w))(OPA o IMM);            \
    NEXT;                                         \
    n##C##w:                                      \
    {                                             \
        U(w) second = OPB, result = OPA o second; \
        RECORD(family, w, result, rec);           \
        DST = result;                             \
        NEXT;                                     \
    }                                             \
    n##IC##w:                                     \
    {                                             \
        U(w) second = IMM, result = OPA o second; \
        RECORD(family, w, result, rec);           \
        DST = result;                             \
        NEXT;                                     \
    }
#define ARITHS(n, o, family, rec) \
    ARITH(n, o, family, rec, 8)   \
    ARITH(n, o, family, rec, 16) ARITH(n, o, family, rec, 32) ARITH(n, o, family, rec, 64)

#define PLAIN(w)                                                   \
    SHLI##w : DST = (U(w))((U(w))OPA << IMM);                      \
    NEXT;                                                          \
    SHRI##w : DST = (U(w))((U(w))OPA >> IMM);                      \
    NEXT;                                                          \
    SARI##w : DST = (U(w))((S(w))OPA >> IMM);                      \
    NEXT;                                                          \
    SHL##w : DST = (U(w))((uint64_t)(U(w))OPA << (OPB & (w - 1))); \
    NEXT;                                                          \
    SHR##w : DST = (U(w))((U(w))OPA >> (OPB & (w - 1)));           \
    NEXT;                                                          \
    SAR##w : DST = (U(w))((S(w))OPA >> (OPB & (w - 1)));           \
    NEXT;                                                          \
    MOV##w : DST = (U(w))OPA;                                      \
    NEXT;                                                          \
    SEXT##w : DST = (uint64_t)(int64_t)(S(w))OPA;                  \
    NEXT;                                                          \
    MUL##w : DST = (U(w))(OPA * OPB);                              \
    NEXT;                                                          \
    RECORD##w : r[IR_KIND] = IMM;                                  \
    r[IR_SECOND] = (U(w))OPB;                                      \
    r[IR_RESULT] = (U(w))OPA;                                      \
    NEXT;

#define MEMORY(w)                                                                             \
    LD##w:                                                                                    \
    {                                                                                         \
        uint64_t va = OPA + IMM;                                                              \
        const struct tlb_entry *e = &cpu->tlb[(va >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)];      \
        if (__builtin_expect(((va + w / 8 - 1) & GUEST_PAGE_MASK) == e->tag[CPU_READ], 1)) {  \
            U(w) v;                                                                           \
            memcpy(&v, (const void *)(uintptr_t)(va + e->add), w / 8);                        \
            DST = v;                                                                          \
        } else {                                                                              \
            cpu->ip = ip;                                                                     \
            cpu->running = block;                                                             \
            DST = cpu_load_slow(cpu, va, w / 8, CPU_READ);                                    \
        }                                                                                     \
        NEXT;                                                                                 \
    }                                                                                         \
    ST##w:                                                                                    \
    {                                                                                         \
        uint64_t va = OPA + IMM;                                                              \
        const struct tlb_entry *e = &cpu->tlb[(va >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)];      \
        if (__builtin_expect(((va + w / 8 - 1) & GUEST_PAGE_MASK) == e->tag[CPU_WRITE], 1)) { \
            U(w) v = OPB;                                                                     \
            memcpy((void *)(uintptr_t)(va + e->add), &v, w / 8);                              \
        } else {                                                                              \
            cpu->ip = ip;                                                                     \
            cpu->running = block;                                                             \
            cpu_store_slow(cpu, va, w / 8, OPB);                                              \
        }                                                                                     \
        NEXT;                                                                                 \
    }

/* The record seen as that of a comparison. */
#define RES(w)   ((U(w))r[IR_RESULT])
#define SEC(w)   ((U(w))r[IR_SECOND])
#define FIRST(w) ((U(w))(RES(w) + SEC(w)))
#define C_Z(w)   (RES(w) == 0)
#define C_S(w)   ((S(w))RES(w) < 0)
#define C_B(w)   (FIRST(w) < SEC(w))
#define C_BE(w)  (FIRST(w) <= SEC(w))
#define C_L(w)   ((S(w))FIRST(w) < (S(w))SEC(w))
#define C_LE(w)  ((S(w))FIRST(w) <= (S(w))SEC(w))
#define CONDITION(c, w)                    \
    SET##c##w : DST = C_##c(w);            \
    NEXT;                                  \
    BR##c##w : if (C_##c(w)) goto taken;   \
    NEXT;                                  \
    BRN##c##w : if (!C_##c(w)) goto taken; \
    NEXT;

/* A comparison and its branch in one. */
#define SHORT(w) ((U(w))(int16_t)(uint16_t)(ip->d | ip->scale << 8))
#define FUSED_ONE(n, w, second, expr, op, family, rec) \
n : {                                                  \
    U(w) x = OPA, y = second;                          \
    RECORD(family, w, (U(w))(x op y), rec);            \
    if (expr)                                          \
        goto taken;                                    \
    NEXT;                                              \
}
#define FUSED(n, expr, op, family, rec)                     \
    FUSED_ONE(n##32, 32, OPB, expr, op, family, rec)        \
    FUSED_ONE(n##64, 64, OPB, expr, op, family, rec)        \
    FUSED_ONE(n##I32, 32, SHORT(32), expr, op, family, rec) \
    FUSED_ONE(n##I64, 64, SHORT(64), expr, op, family, rec)
#define COMPARED(n, expr) FUSED(n, expr, -, IR_KIND_SUB, y)
#define TESTED(n, expr)   FUSED(n, expr, &, IR_KIND_LOGIC, 0)
#define SIGNED(v)         (sizeof(v) == 4 ? (int64_t)(int32_t)(v) : (int64_t)(v))

#define LABEL(n) &&n,

/* Somebody wants the CPU outside. */
static inline bool wanted(struct cpu *cpu)
{
    return atomic_load_explicit(&cpu->request, memory_order_relaxed) & ~(unsigned)CPU_REQUEST_LINE;
}

/* The block at a program counter, when it was there lately and its page is still mapped to the same memory.
 * base: what is added to program counters (32 bits of it count). */
static inline struct block *jump_target(struct cpu *cpu, uint64_t pc, uint32_t mode, uint64_t base)
{
    struct block *to = cpu->blocks->recent[block_slot(pc)];
    if (!to || to->pc != pc || to->mode != mode || to->dead ||
        (uint32_t)(to->linear - to->pc) != (uint32_t)base)
        return NULL;
    const struct tlb_entry *e = &cpu->tlb[(to->linear >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)];
    bool same = e->tag[CPU_EXECUTE] == (to->linear & GUEST_PAGE_MASK) && e->add == to->add;
    return same ? to : NULL;
}

struct block *exec_run(struct cpu *cpu, struct block *block, unsigned *exit)
{
    static const void *const labels[] = { IR_OPS(LABEL) };
    uint64_t *const r = cpu->r;
    const struct ir_op *ip = block->ops;
    cpu->instructions += block->count;
    goto *labels[ip->op];

    ARITHS(ADD, +, IR_KIND_ADD, second)
    ARITHS(SUB, -, IR_KIND_SUB, second)
    ARITHS(AND, &, IR_KIND_LOGIC, 0)
    ARITHS(OR, |, IR_KIND_LOGIC, 0)
    ARITHS(XOR, ^, IR_KIND_LOGIC, 0)
    EACH(PLAIN)
    EACH(MEMORY)
    EACH1(CONDITION, Z)
    EACH1(CONDITION, S)
    EACH1(CONDITION, B)
    EACH1(CONDITION, BE)
    EACH1(CONDITION, L)
    EACH1(CONDITION, LE)
    COMPARED(CBZ, x == y)
    COMPARED(CBNZ, x != y)
    COMPARED(CBB, x < y)
    COMPARED(CBNB, x >= y)
    COMPARED(CBBE, x <= y)
    COMPARED(CBNBE, x > y)
    COMPARED(CBL, SIGNED(x) < SIGNED(y))
    COMPARED(CBNL, SIGNED(x) >= SIGNED(y))
    COMPARED(CBLE, SIGNED(x) <= SIGNED(y))
    COMPARED(CBNLE, SIGNED(x) > SIGNED(y))
    TESTED(TBZ, !(x & y))
    TESTED(TBNZ, x & y)
    TESTED(TBS, SIGNED(x & y) < 0)
    TESTED(TBNS, SIGNED(x & y) >= 0)
MOVI:
    DST = IMM;
    NEXT;
PUT8:
    DST = (DST & ~(uint64_t)0xff) | (OPA & 0xff);
    NEXT;
PUT16:
    DST = (DST & ~(uint64_t)0xffff) | (OPA & 0xffff);
    NEXT;
PUT32:
    DST = (uint32_t)OPA;
    NEXT;
PUT64:
    DST = OPA;
    NEXT;
PUTH:
    DST = (DST & ~(uint64_t)0xff00) | (OPA & 0xff) << 8;
    NEXT;
LEA:
    DST = OPA + (OPB << ip->scale) + IMM;
    NEXT;
LEA32:
    DST = (uint32_t)(OPA + (OPB << ip->scale) + IMM);
    NEXT;
LEA16:
    DST = (uint16_t)(OPA + (OPB << ip->scale) + IMM);
    NEXT;
SELECT:
    if (OPA)
        DST = OPB;
    NEXT;
CALL:
    cpu->ip = ip;
    cpu->running = block;
    ((ir_call)(uintptr_t)IMM)(cpu, (const void *)(uintptr_t)ip[1].imm);
    ip++;
    NEXT;
CALLV:
    cpu->ip = ip;
    cpu->running = block;
    DST = ((ir_value)(uintptr_t)IMM)(cpu, OPA, OPB);
    NEXT;
BRTRUE:
    if (OPA)
        goto taken;
    NEXT;
taken:
    r[IR_PC] = IMM;
    *exit = 1;
    goto follow;
EXIT:
    r[IR_PC] = IMM;
    *exit = 0;
follow:;
    struct block *to = block->chain[*exit];
    if (__builtin_expect(!to || wanted(cpu), 0)) {
        to =
            wanted(cpu) ? NULL : jump_target(cpu, r[IR_PC], block->mode, block->linear - block->pc);
        /* One in the same page that is no chain yet becomes one in the main loop. */
        if (!to || (!block->chain[*exit] && ((to->linear ^ block->linear) & GUEST_PAGE_MASK) == 0))
            return block->dead || block == &cpu->blocks->scratch ? NULL : block;
    }
enter:
    block = to;
    cpu->instructions += block->count;
    ip = block->ops;
    goto *labels[ip->op];
EXITR:
    r[IR_PC] = OPA;
    if (!wanted(cpu)) {
        to = jump_target(cpu, r[IR_PC], block->mode, block->linear - block->pc);
        if (to)
            goto enter;
    }
    return NULL;
LEAVE:
    if (!wanted(cpu)) {
        uint64_t base = cpu->guest->linear_pc(cpu, r[IR_PC]) - r[IR_PC];
        to = jump_target(cpu, r[IR_PC], cpu->mode, base);
        if (to)
            goto enter;
    }
    return NULL;
}
