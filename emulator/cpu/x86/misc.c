/* The stack's less common instructions, flags, decimal arithmetic, BMI. */
#include "helpers.h"

#include <sys/random.h>

void h_pusha(struct x86 *c, const struct insn *i)
{
    uint64_t sp = c->cpu.r[RSP];
    cpu_probe(&c->cpu, linear(c, SS, (sp - 8u * i->osize) & stack_mask(c)), 1, CPU_WRITE);
    for (unsigned n = 0; n < 8; n++)
        push(c, i->osize, n == RSP ? sp : c->cpu.r[n]);
}

void h_popa(struct x86 *c, const struct insn *i)
{
    uint64_t value[8];
    for (unsigned n = 0; n < 8; n++)
        value[7 - n] = cpu_load(
            &c->cpu, linear(c, SS, (c->cpu.r[RSP] + n * i->osize) & stack_mask(c)), i->osize);
    uint64_t sp = c->cpu.r[RSP] + 8u * i->osize;
    for (unsigned n = 0; n < 8; n++) {
        if (n != RSP)
            reg_write(c, i, n, i->osize, value[n]);
    }
    c->cpu.r[RSP] = (c->cpu.r[RSP] & ~stack_mask(c)) | (sp & stack_mask(c));
}

void h_pushf(struct x86 *c, const struct insn *i)
{
    if (c->eflags & F_VM && (c->eflags & F_IOPL) != F_IOPL)
        x86_raise_code(c, X_GP, 0);
    push(c, i->osize, flags_all(c) & ~(uint64_t)(F_R | F_VM));
}

void h_popf(struct x86 *c, const struct insn *i)
{
    unsigned iopl = (unsigned)(c->eflags & F_IOPL) >> 12;
    if (c->eflags & F_VM && iopl != 3)
        x86_raise_code(c, X_GP, 0);
    uint64_t value = pop(c, i->osize), mask = F_ARITH | F_T | F_D | F_NT | F_AC | F_ID;
    if (c->cpl <= iopl || !(c->cr0 & CR0_PE))
        mask |= F_I;
    if (c->cpl == 0)
        mask |= F_IOPL;
    flags_load(c, value, mask & width_mask(i->osize));
}

void h_lahf(struct x86 *c, const struct insn *i)
{
    (void)i;
    uint64_t f = (flags_arith(c) & 0xd5) | 2;
    c->cpu.r[RAX] = (c->cpu.r[RAX] & ~(uint64_t)0xff00) | f << 8;
}

void h_sahf(struct x86 *c, const struct insn *i)
{
    (void)i;
    flags_set_arith(c, (flags_arith(c) & F_O) | (c->cpu.r[RAX] >> 8 & 0xd5));
}

void h_flagop(struct x86 *c, const struct insn *i)
{
    uint64_t f = flags_arith(c);
    switch (i->op) {
    case 0xf5:
        flags_set_arith(c, f ^ F_C);
        break;
    case 0xf8:
        flags_set_arith(c, f & ~(uint64_t)F_C);
        break;
    case 0xf9:
        flags_set_arith(c, f | F_C);
        break;
    case 0xfc:
        c->eflags &= ~(uint64_t)F_D;
        break;
    default:
        c->eflags |= F_D;
        break;
    }
}

void h_xlat(struct x86 *c, const struct insn *i)
{
    uint64_t at = (c->cpu.r[RBX] + (c->cpu.r[RAX] & 0xff)) & width_mask(i->asize);
    reg_write(c, i, RAX, 1, cpu_load(&c->cpu, linear(c, i->seg, at), 1));
}

static void adjust(struct x86 *c, bool minus, bool ascii)
{
    uint64_t f = flags_arith(c);
    unsigned ax = (uint16_t)c->cpu.r[RAX], al = ax & 0xff, was = al;
    bool a = (al & 15) > 9 || f & F_A, carry = f & F_C;
    if (ascii) {
        if (a)
            ax = minus ? ax - 0x106 : ax + 0x106;
        ax &= 0xff0f;
        carry = a;
    } else {
        bool c0 = carry;
        carry = false;
        if (a) {
            carry = c0 || (minus ? al < 6 : al > 0xf9);
            al = minus ? al - 6 : al + 6;
        }
        if (was > 0x99 || c0) {
            al = minus ? al - 0x60 : al + 0x60;
            carry = true;
        }
        ax = (ax & 0xff00) | (al & 0xff);
    }
    c->cpu.r[RAX] = (c->cpu.r[RAX] & ~(uint64_t)0xffff) | (ax & 0xffff);
    record(c, IR_KIND_LOGIC, 1, ax, 0);
    flags_set_arith(c, flags_arith(c) | (a ? F_A : 0) | (carry ? F_C : 0));
}

/* DAA, DAS, AAA, AAS, AAM, AAD. */
void h_bcd(struct x86 *c, const struct insn *i)
{
    unsigned al = c->cpu.r[RAX] & 0xff, ah = c->cpu.r[RAX] >> 8 & 0xff, base = i->imm & 0xff, ax;
    if (i->op < 0x40) {
        adjust(c, i->op & 8, i->op & 0x10);
        return;
    }
    if (i->op == 0xd4) {
        if (!base)
            x86_raise(c, X_DE);
        ax = al / base << 8 | al % base;
    } else {
        ax = (al + ah * base) & 0xff;
    }
    c->cpu.r[RAX] = (c->cpu.r[RAX] & ~(uint64_t)0xffff) | ax;
    record(c, IR_KIND_LOGIC, 1, ax, 0);
}

void h_enter(struct x86 *c, const struct insn *i)
{
    unsigned level = i->imm & 31, size = i->osize;
    uint64_t mask = stack_mask(c), sp = c->cpu.r[RSP], bp = c->cpu.r[RBP];
    sp -= size;
    cpu_store(&c->cpu, linear(c, SS, sp & mask), size, bp);
    uint64_t frame = sp;
    for (unsigned n = 1; n < level; n++) {
        bp -= size;
        sp -= size;
        cpu_store(&c->cpu, linear(c, SS, sp & mask), size,
                  cpu_load(&c->cpu, linear(c, SS, bp & mask), size));
    }
    if (level) {
        sp -= size;
        cpu_store(&c->cpu, linear(c, SS, sp & mask), size, frame);
    }
    sp -= i->imm2;
    cpu_probe(&c->cpu, linear(c, SS, sp & mask), size, CPU_WRITE);
    reg_write(c, i, RBP, size, frame);
    c->cpu.r[RSP] = (c->cpu.r[RSP] & ~mask) | (sp & mask);
}

void h_leave(struct x86 *c, const struct insn *i)
{
    uint64_t mask = stack_mask(c), bp = c->cpu.r[RBP];
    uint64_t value = cpu_load(&c->cpu, linear(c, SS, bp & mask), i->osize);
    c->cpu.r[RSP] = (c->cpu.r[RSP] & ~mask) | ((bp + i->osize) & mask);
    reg_write(c, i, RBP, i->osize, value);
}

void h_bound(struct x86 *c, const struct insn *i)
{
    uint64_t at = ea(c, i);
    int64_t low = sign_extend(cpu_load(&c->cpu, at, i->osize), i->osize);
    int64_t high = sign_extend(cpu_load(&c->cpu, at + i->osize, i->osize), i->osize);
    int64_t v = sign_extend(reg_read(c, i, i->reg, i->osize), i->osize);
    if (v < low || v > high)
        x86_raise(c, X_BR);
}

void h_moffs(struct x86 *c, const struct insn *i)
{
    unsigned size = op_size(i);
    uint64_t at = linear(c, i->seg, (uint64_t)i->disp);
    if (i->op & 2)
        cpu_store(&c->cpu, at, size, c->cpu.r[RAX]);
    else
        reg_write(c, i, RAX, size, cpu_load(&c->cpu, at, size));
}

/* The address counts with the stack pointer as it is after the pop. */
void h_pop_rm(struct x86 *c, const struct insn *i)
{
    uint64_t sp = c->cpu.r[RSP], mask = stack_mask(c);
    uint64_t value = cpu_load(&c->cpu, linear(c, SS, sp & mask), i->osize);
    uint64_t after = (sp & ~mask) | ((sp + i->osize) & mask);
    c->cpu.r[RSP] = after;
    uint64_t at = i->mod == 3 ? 0 : ea(c, i);
    c->cpu.r[RSP] = sp;
    if (i->mod != 3)
        cpu_store(&c->cpu, at, i->osize, value);
    c->cpu.r[RSP] = after;
    if (i->mod == 3)
        reg_write(c, i, i->rm, i->osize, value);
}

static uint64_t swap(uint64_t v, unsigned size)
{
    return size == 8   ? __builtin_bswap64(v)
           : size == 4 ? __builtin_bswap32((uint32_t)v)
                       : __builtin_bswap16((uint16_t)v);
}

void h_movbe(struct x86 *c, const struct insn *i)
{
    if (i->op & 1)
        rm_write(c, i, i->osize, swap(reg_read(c, i, i->reg, i->osize), i->osize));
    else
        reg_write(c, i, i->reg, i->osize, swap(rm_read(c, i, i->osize), i->osize));
}

void h_crc32(struct x86 *c, const struct insn *i)
{
    unsigned size = i->op & 1 ? i->osize : 1;
    uint64_t v = rm_read(c, i, size);
    uint32_t crc = (uint32_t)c->cpu.r[i->reg];
    for (unsigned n = 0; n < size; n++) {
        crc ^= (uint8_t)(v >> (8 * n));
        for (unsigned k = 0; k < 8; k++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    c->cpu.r[i->reg] = crc;
}

static uint64_t deposit(uint64_t v, uint64_t mask, bool extract)
{
    uint64_t r = 0;
    for (unsigned n = 0; mask; mask &= mask - 1, n++) {
        uint64_t bit = mask & (0 - mask), low = (uint64_t)1 << n;
        if (extract)
            r |= v & bit ? low : 0;
        else
            r |= v & low ? bit : 0;
    }
    return r;
}

static void bmi_flags(struct x86 *c, unsigned size, uint64_t r, bool carry)
{
    record(c, IR_KIND_LOGIC, size, r, 0);
    flags_set_arith(c, (flags_arith(c) & (F_S | F_Z)) | (carry ? F_C : 0));
}

/* BLSR, BLSMSK, BLSI. */
static void bls(struct x86 *c, const struct insn *i)
{
    unsigned size = i->osize, g = group(i);
    uint64_t a = rm_read(c, i, size), r;
    if (g == 1)
        r = a & (a - 1);
    else
        r = g == 2 ? a ^ (a - 1) : a & (0 - a);
    reg_write(c, i, i->v, size, r);
    bmi_flags(c, size, r, g == 3 ? a : !a);
}

void h_bmi(struct x86 *c, const struct insn *i)
{
    unsigned size = i->osize, bits = size * 8;
    uint64_t a = rm_read(c, i, size), v = reg_read(c, i, i->v, size), r;
    switch (i->op) {
    case MAP_38 + 0xf2:
        r = a & ~v;
        bmi_flags(c, size, r, false);
        break;
    case MAP_38 + 0xf3:
        bls(c, i);
        return;
    case MAP_38 + 0xf5:
        if (i->rep) {
            r = deposit(v, a, i->rep == 0xf3);
        } else {
            unsigned n = v & 0xff;
            r = n < bits ? a & (((uint64_t)1 << n) - 1) : a;
            bmi_flags(c, size, r, n >= bits);
        }
        break;
    case MAP_38 + 0xf6: {
        unsigned __int128 p = (unsigned __int128)a * reg_read(c, i, RDX, size);
        reg_write(c, i, i->v, size, (uint64_t)p);
        r = (uint64_t)(p >> bits);
        break;
    }
    case MAP_38 + 0xf7:
        if (i->opsize || i->rep) {
            unsigned n = (unsigned)v & (bits - 1);
            r = i->opsize        ? a << n
                : i->rep == 0xf2 ? a >> n
                                 : (uint64_t)(sign_extend(a, size) >> n);
        } else {
            unsigned from = v & 0xff, n = v >> 8 & 0xff;
            r = from < bits ? a >> from : 0;
            r = n < bits ? r & (((uint64_t)1 << n) - 1) : r;
            flags_set_arith(c, r ? 0 : F_Z);
        }
        break;
    default: {
        unsigned n = (unsigned)i->imm & (bits - 1); /* RORX */
        r = n ? a >> n | a << (bits - n) : a;
        break;
    }
    }
    reg_write(c, i, i->reg, size, r);
}

/* ADCX and ADOX carry through one flag and leave the others alone. */
void h_adx(struct x86 *c, const struct insn *i)
{
    unsigned size = i->osize == 8 ? 8 : 4;
    uint64_t flags = flags_arith(c), bit = i->rep ? F_O : F_C;
    unsigned __int128 sum = (unsigned __int128)rm_read(c, i, size) + reg_read(c, i, i->reg, size) +
                            (flags & bit ? 1 : 0);
    reg_write(c, i, i->reg, size, (uint64_t)sum);
    flags_set_arith(c, (flags & ~bit) | (sum >> (8 * size) & 1 ? bit : 0));
}

/* RDRAND, RDSEED: the host's random numbers. */
void h_rdrand(struct x86 *c, const struct insn *i)
{
    uint64_t v;
    bool got = getrandom(&v, sizeof v, GRND_NONBLOCK) == sizeof v;
    reg_write(c, i, i->rm, i->osize, got ? v : 0);
    flags_set_arith(c, got ? F_C : 0);
}
