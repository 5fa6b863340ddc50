/* EFLAGS out of the flags record, and back. */
#include "state.h"

static uint64_t parity(uint64_t result)
{
    return __builtin_parity((unsigned)(result & 0xff)) ? 0 : F_P;
}

uint64_t flags_arith(struct x86 *c)
{
    const uint64_t *r = c->cpu.r;
    unsigned family = (unsigned)r[IR_KIND] >> 2, size = 1u << (r[IR_KIND] & 3);
    if (family == K_FLAGS)
        return r[IR_RESULT];
    uint64_t mask = width_mask(size), top = mask ^ (mask >> 1);
    uint64_t res = r[IR_RESULT] & mask, b = r[IR_SECOND] & mask, a;
    uint64_t f = parity(res) | (res ? 0 : F_Z) | (res & top ? F_S : 0);
    switch (family) {
    case IR_KIND_ADD:
    case K_ADC1:
        a = (res - b - (family == K_ADC1)) & mask;
        f |= (family == K_ADC1 ? res <= b : res < b) ? F_C : 0;
        f |= (a ^ b ^ res) & F_A;
        f |= (a ^ res) & (b ^ res) & top ? F_O : 0;
        break;
    case IR_KIND_SUB:
    case K_SBB1:
        a = (res + b + (family == K_SBB1)) & mask;
        f |= (family == K_SBB1 ? a <= b : a < b) ? F_C : 0;
        f |= (a ^ b ^ res) & F_A;
        f |= (a ^ b) & (a ^ res) & top ? F_O : 0;
        break;
    case K_INC:
        f |= (r[IR_SECOND] & 1) | (res == top ? F_O : 0) | (res & 15 ? 0 : F_A);
        break;
    case K_DEC:
        f |= (r[IR_SECOND] & 1) | (res == (mask >> 1) ? F_O : 0) | ((res & 15) == 15 ? F_A : 0);
        break;
    case K_SHL:
        f |= (b & top ? F_C : 0) | ((b ^ res) & top ? F_O : 0);
        break;
    case K_SHR:
        f |= (b & 1) | (b & top ? F_O : 0);
        break;
    case K_SAR:
        f |= b & 1;
        break;
    case K_MUL:
        f |= b ? F_C | F_O : 0;
        break;
    default:
        break;
    }
    return f;
}

uint64_t flags_all(struct x86 *c)
{
    return flags_arith(c) | c->eflags | 2;
}

void flags_set_arith(struct x86 *c, uint64_t flags)
{
    c->cpu.r[IR_KIND] = K_FLAGS << 2;
    c->cpu.r[IR_RESULT] = flags & F_ARITH;
}

/* Interrupts may be allowed now: one that waits is looked at again. One that comes later says so itself. */
void let_in(struct x86 *c)
{
    if (c->eflags & F_I && atomic_load(&c->cpu.request) & CPU_REQUEST_LINE)
        cpu_request_self(&c->cpu, CPU_REQUEST_RETRY);
}

/* Takes the bits of `mask` from `flags`, as POPF and IRET do. */
void flags_load(struct x86 *c, uint64_t flags, uint64_t mask)
{
    flags = (flags_all(c) & ~mask) | (flags & mask);
    flags_set_arith(c, flags);
    c->eflags = flags & ~(uint64_t)(F_ARITH | 0xffc0802a);
    let_in(c);
    x86_update_mode(c);
}

/* The carry alone, without working out the rest. */
uint64_t flags_carry(struct x86 *c)
{
    const uint64_t *r = c->cpu.r;
    uint64_t mask = width_mask(1u << (r[IR_KIND] & 3)), res = r[IR_RESULT], b = r[IR_SECOND];
    switch (r[IR_KIND] >> 2) {
    case IR_KIND_ADD:
        return res < b;
    case IR_KIND_SUB:
        return ((res + b) & mask) < b;
    case IR_KIND_LOGIC:
        return 0;
    case K_ADC1:
        return res <= b;
    case K_SBB1:
        return ((res + b + 1) & mask) <= b;
    default:
        return flags_arith(c) & F_C;
    }
}

bool flags_condition(struct x86 *c, unsigned condition)
{
    uint64_t res = c->cpu.r[IR_RESULT];
    bool plain = c->cpu.r[IR_KIND] >> 2 != K_FLAGS, yes;
    switch (condition >> 1) {
    case 1:
        yes = flags_carry(c);
        break;
    case 2:
        yes = plain ? !res : res & F_Z;
        break;
    case 3:
        yes = plain ? !res || flags_carry(c) : res & (F_C | F_Z);
        break;
    case 4:
        yes = plain ? res >> ((8u << (c->cpu.r[IR_KIND] & 3)) - 1) & 1 : res & F_S;
        break;
    default: {
        uint64_t f = flags_arith(c);
        bool differ = !(f & F_S) != !(f & F_O);
        yes = condition >> 1 == 0   ? f & F_O
              : condition >> 1 == 5 ? f & F_P
              : condition >> 1 == 6 ? differ
                                    : differ || f & F_Z;
        break;
    }
    }
    return yes != (condition & 1);
}
