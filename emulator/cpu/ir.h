/* The intermediate code between guest decoders and executors. It knows neither guest nor host.
 *
 * A CPU's slots are 64-bit: globals that live on (the guest's registers, the program counter and
 * the flags record), then temporaries that live for one guest instruction. Narrow operations read
 * the low bits of their operands and zero-extend their result.
 *
 * Flags are lazy: an operation of the form ending in C also writes down what it did, as kind,
 * result and second operand. A guest works its flags out of the record when somebody asks.
 * The kinds a guest adds (IR_KIND_GUEST and up) are its own.
 *
 * Every operation carries the offset of its guest instruction, so an exception anywhere is precise as long
 * as an instruction's last access comes before its first change of a global.
 */
#ifndef CPU_IR_H
#define CPU_IR_H

#include <stdint.h>

enum {
    IR_PC = 40,
    IR_KIND,   /* flags record: (family << 2) + width */
    IR_RESULT, /* at the width, zero-extended */
    IR_SECOND, /* second operand, the same */
    IR_TEMP = 48,
    IR_SLOTS = 64,
    IR_VOID = IR_SLOTS - 1, /* results that nobody wants */
};

enum { IR_W8, IR_W16, IR_W32, IR_W64 };

/* Families of flags records. LOGIC stands for "second operand zero", so that comparisons can treat it as SUB. */
enum { IR_KIND_ADD, IR_KIND_SUB, IR_KIND_LOGIC, IR_KIND_GUEST };

/* clang-format off */
#define IR_4(X, n)     X(n##8) X(n##16) X(n##32) X(n##64)
/* d = a op b, d = a op imm, and both with a record; each in the four widths. */
#define IR_ARITH(X, n) IR_4(X, n) IR_4(X, n##I) IR_4(X, n##C) IR_4(X, n##IC)
#define IR_FUSED(X, n) X(n##32) X(n##64) X(n##I32) X(n##I64)
#define IR_OPS(X)                                                                   \
    IR_ARITH(X, ADD) IR_ARITH(X, SUB) IR_ARITH(X, AND) IR_ARITH(X, OR) IR_ARITH(X, XOR) \
    IR_4(X, SHLI) IR_4(X, SHRI) IR_4(X, SARI) /* imm below the width */              \
    IR_4(X, SHL) IR_4(X, SHR) IR_4(X, SAR)    /* by b, modulo the width */           \
    IR_4(X, MOV) X(MOVI) IR_4(X, SEXT)        /* zero, sign extension to 64 */       \
    IR_4(X, MUL)                                                                     \
    IR_4(X, PUT) X(PUTH)   /* d's low part, bits 8-15: from a */                     \
    IR_4(X, RECORD)        /* record: kind imm, result a, second b */                \
    X(LEA) X(LEA32) X(LEA16) /* d = a + (b << scale) + imm */                        \
    IR_4(X, LD) IR_4(X, ST) /* d = [a + imm]; [a + imm] = b */                       \
    /* By the record, read as that of SUB or LOGIC: d = 0 or 1; leave to imm by exit 1. */ \
    IR_4(X, SETZ) IR_4(X, SETS) IR_4(X, SETB) IR_4(X, SETBE) IR_4(X, SETL) IR_4(X, SETLE) \
    IR_4(X, BRZ) IR_4(X, BRS) IR_4(X, BRB) IR_4(X, BRBE) IR_4(X, BRL) IR_4(X, BRLE)   \
    IR_4(X, BRNZ) IR_4(X, BRNS) IR_4(X, BRNB) IR_4(X, BRNBE) IR_4(X, BRNL) IR_4(X, BRNLE) \
    /* Compare a with b, or the number in d and scale, or AND them; record; leave to imm by exit 1. */ \
    IR_FUSED(X, CBZ) IR_FUSED(X, CBNZ) IR_FUSED(X, CBB) IR_FUSED(X, CBNB) IR_FUSED(X, CBBE) \
    IR_FUSED(X, CBNBE) IR_FUSED(X, CBL) IR_FUSED(X, CBNL) IR_FUSED(X, CBLE) IR_FUSED(X, CBNLE) \
    IR_FUSED(X, TBZ) IR_FUSED(X, TBNZ) IR_FUSED(X, TBS) IR_FUSED(X, TBNS)             \
    X(BRTRUE)              /* if a, leave to imm by exit 1 */                        \
    X(SELECT)              /* if a, d = b */                                         \
    X(CALL)                /* fn(cpu, arg): fn in imm, arg in the next op's imm */   \
    X(CALLV)               /* d = fn(cpu, a, b): fn in imm */                        \
    X(EXIT)                /* to imm by exit 0 */                                    \
    X(EXITR)               /* to a */                                                \
    X(LEAVE)               /* to IR_PC, by way of the main loop */
/* clang-format on */

#define IR_ENUM_(n) IR_##n,
enum ir_opcode { IR_OPS(IR_ENUM_) IR_COUNT };
#undef IR_ENUM_

/* Steps between the forms of an arithmetic operation. */
enum { IR_IMMEDIATE = 4, IR_RECORDING = 8 };

struct ir_op {
    uint16_t op;
    uint16_t at; /* offset of the guest instruction from the block's start */
    uint8_t d, a, b, scale;
    uint64_t imm;
};

struct cpu;
typedef void (*ir_call)(struct cpu *cpu, const void *arg);
typedef uint64_t (*ir_value)(struct cpu *cpu, uint64_t a, uint64_t b);

#endif
