/* Instructions whose operands IR reads and writes while a function does the rest. */
#include "translate.h"

static struct x86 *of(struct cpu *cpu)
{
    return (struct x86 *)cpu;
}

/* As h_shift() does; the count's low bits, and no flags when they are zero. */
#define SHIFT(name, size, family, expr, last)                             \
    static uint64_t name(struct cpu *cpu, uint64_t value, uint64_t count) \
    {                                                                     \
        unsigned n = (unsigned)count & (size == 8 ? 63 : 31);             \
        uint64_t a = value & width_mask(size);                            \
        if (!n)                                                           \
            return a;                                                     \
        uint64_t r = (expr)&width_mask(size);                             \
        record(of(cpu), family, size, r, (last));                         \
        return r;                                                         \
    }
SHIFT(shl32, 4, K_SHL, a << n, a << (n - 1))
SHIFT(shl64, 8, K_SHL, a << n, a << (n - 1))
SHIFT(shr32, 4, K_SHR, a >> n, a >> (n - 1))
SHIFT(shr64, 8, K_SHR, a >> n, a >> (n - 1))
SHIFT(sar32, 4, K_SAR, (uint64_t)(sign_extend(a, 4) >> n), (uint64_t)(sign_extend(a, 4) >> (n - 1)))
SHIFT(sar64, 8, K_SAR, (uint64_t)(sign_extend(a, 8) >> n), (uint64_t)(sign_extend(a, 8) >> (n - 1)))

/* Carry and overflow change, the latter as for a count of one. */
static uint64_t rotated(struct x86 *c, uint64_t r, bool carry, bool over)
{
    uint64_t keep = flags_arith(c) & ~(uint64_t)(F_C | F_O);
    flags_set_arith(c, keep | (carry ? F_C : 0) | (over ? F_O : 0));
    return r;
}

static uint64_t rol32(struct cpu *cpu, uint64_t value, uint64_t count)
{
    uint32_t a = (uint32_t)value, n = count & 31, r = a << n | a >> (-n & 31);
    return n ? rotated(of(cpu), r, r & 1, (r >> 31 ^ r) & 1) : a;
}

static uint64_t rol64(struct cpu *cpu, uint64_t a, uint64_t count)
{
    uint64_t n = count & 63, r = a << n | a >> (-n & 63);
    return n ? rotated(of(cpu), r, r & 1, (r >> 63 ^ r) & 1) : a;
}

static uint64_t ror32(struct cpu *cpu, uint64_t value, uint64_t count)
{
    uint32_t a = (uint32_t)value, n = count & 31, r = a >> n | a << (-n & 31);
    return n ? rotated(of(cpu), r, r >> 31, (r >> 31 ^ r >> 30) & 1) : a;
}

static uint64_t ror64(struct cpu *cpu, uint64_t a, uint64_t count)
{
    uint64_t n = count & 63, r = a >> n | a << (-n & 63);
    return n ? rotated(of(cpu), r, r >> 63, (r >> 63 ^ r >> 62) & 1) : a;
}

const ir_value v_shifts[8][2] = {
    [0] = { rol32, rol64 }, [1] = { ror32, ror64 }, [4] = { shl32, shl64 },
    [5] = { shr32, shr64 }, [6] = { shl32, shl64 }, [7] = { sar32, sar64 }
};

static uint64_t imul32(struct cpu *cpu, uint64_t a, uint64_t b)
{
    int64_t p = (int64_t)(int32_t)a * (int32_t)b;
    record(of(cpu), K_MUL, 4, (uint64_t)p, p != (int32_t)p);
    return (uint32_t)p;
}

static uint64_t imul64(struct cpu *cpu, uint64_t a, uint64_t b)
{
    int64_t p;
    bool over = __builtin_mul_overflow((int64_t)a, (int64_t)b, &p);
    record(of(cpu), K_MUL, 8, a * b, over);
    return a * b;
}

const ir_value v_imul[2] = { imul32, imul64 };

static uint64_t add_carry(struct cpu *cpu, uint64_t a, uint64_t b, unsigned size)
{
    uint64_t carry = flags_carry(of(cpu));
    uint64_t r = (a + b + carry) & width_mask(size);
    record(of(cpu), carry ? K_ADC1 : IR_KIND_ADD, size, r, b);
    return r;
}

static uint64_t subtract_borrow(struct cpu *cpu, uint64_t a, uint64_t b, unsigned size)
{
    uint64_t carry = flags_carry(of(cpu));
    uint64_t r = (a - b - carry) & width_mask(size);
    record(of(cpu), carry ? K_SBB1 : IR_KIND_SUB, size, r, b);
    return r;
}

static uint64_t adc32(struct cpu *cpu, uint64_t a, uint64_t b)
{
    return add_carry(cpu, a, b, 4);
}

static uint64_t adc64(struct cpu *cpu, uint64_t a, uint64_t b)
{
    return add_carry(cpu, a, b, 8);
}

static uint64_t sbb32(struct cpu *cpu, uint64_t a, uint64_t b)
{
    return subtract_borrow(cpu, a, b, 4);
}

static uint64_t sbb64(struct cpu *cpu, uint64_t a, uint64_t b)
{
    return subtract_borrow(cpu, a, b, 8);
}

const ir_value v_adc[2] = { adc32, adc64 }, v_sbb[2] = { sbb32, sbb64 };

static uint64_t bit(struct cpu *cpu, uint64_t a, unsigned n)
{
    struct x86 *c = of(cpu);
    flags_set_arith(c, (flags_arith(c) & ~(uint64_t)F_C) | (a >> n & 1));
    return 0;
}

static uint64_t bt32(struct cpu *cpu, uint64_t a, uint64_t n)
{
    return bit(cpu, a, (unsigned)n & 31);
}

static uint64_t bt64(struct cpu *cpu, uint64_t a, uint64_t n)
{
    return bit(cpu, a, (unsigned)n & 63);
}

const ir_value v_bt[2] = { bt32, bt64 };

uint64_t v_condition(struct cpu *cpu, uint64_t condition, uint64_t unused)
{
    (void)unused;
    return flags_condition(of(cpu), (unsigned)condition);
}

uint64_t v_carry(struct cpu *cpu, uint64_t a, uint64_t b)
{
    (void)a;
    (void)b;
    return flags_carry(of(cpu));
}
