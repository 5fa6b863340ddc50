/* FLDENV, FNSTENV, FRSTOR, FNSAVE: seven words of 16 or 32 bits, and the registers behind them. */
#include "fpu.h"

/* Two bits for each physical register: valid, zero, special, empty. */
static uint16_t tags(const struct x86 *c)
{
    unsigned t = 0;
    for (unsigned n = 0; n < 8; n++) {
        struct f80 v = c->st[n];
        unsigned e = v.e & 0x7fff, kind = 0;
        if (c->empty >> n & 1)
            kind = 3;
        else if (!e && !v.m)
            kind = 1;
        else if (!e || e == 0x7fff || !(v.m >> 63))
            kind = 2;
        t |= kind << (2 * n);
    }
    return (uint16_t)t;
}

static void store(struct x86 *c, uint64_t at, unsigned size)
{
    bool real = !(c->cpu.mode & M_PE);
    uint32_t v[7] = { c->fcw, fpu_status(c), tags(c), (uint32_t)c->fip, 0, (uint32_t)c->fdp, 0 };
    if (real) {
        v[4] = (uint32_t)(c->fip >> 16 & 0xffff) << 12 | c->fop;
        v[6] = (uint32_t)(c->fdp >> 16 & 0xffff) << 12;
    } else if (size == 4) {
        v[4] = (uint32_t)c->fop << 16;
    }
    for (unsigned n = 0; n < 7; n++) {
        bool upper = size == 4 && n != 3 && n != 5 && n != 4;
        cpu_store(&c->cpu, at + size * n, size, upper ? v[n] | 0xffff0000 : v[n]);
    }
}

static void load(struct x86 *c, uint64_t at, unsigned size)
{
    uint16_t v[7];
    for (unsigned n = 0; n < 7; n++)
        v[n] = (uint16_t)cpu_load(&c->cpu, at + size * n, 2);
    c->fcw = (uint16_t)((v[0] & 0x1f3f) | 0x40);
    c->fsw = v[1];
    c->top = v[1] >> 11 & 7;
    c->empty = 0;
    for (unsigned n = 0; n < 8; n++)
        c->empty |= (uint8_t)((v[2] >> (2 * n) & 3) == 3 ? 1u << n : 0);
    c->fip = cpu_load(&c->cpu, at + size * 3, size);
    c->fdp = cpu_load(&c->cpu, at + size * 5, size);
}

void fpu_environment(struct x86 *c, const struct insn *i, uint64_t at, bool out)
{
    unsigned size = i->osize == 2 ? 2 : 4;
    cpu_probe(&c->cpu, at, 7 * size, out ? CPU_WRITE : CPU_READ);
    if (out) {
        store(c, at, size);
        c->fcw |= FP_ALL;
    } else {
        load(c, at, size);
    }
}

void fpu_whole(struct x86 *c, const struct insn *i, uint64_t at, bool out)
{
    unsigned size = i->osize == 2 ? 2 : 4;
    uint64_t regs = at + 7 * size;
    cpu_probe(&c->cpu, at, 7 * size + 80, out ? CPU_WRITE : CPU_READ);
    if (out)
        store(c, at, size);
    else
        load(c, at, size);
    for (unsigned n = 0; n < 8; n++) {
        struct f80 *v = &c->st[fpu_slot(c, n)];
        if (out) {
            cpu_store(&c->cpu, regs + 10 * n, 8, v->m);
            cpu_store(&c->cpu, regs + 10 * n + 8, 2, v->e);
        } else {
            v->m = cpu_load(&c->cpu, regs + 10 * n, 8);
            v->e = (uint16_t)cpu_load(&c->cpu, regs + 10 * n + 8, 2);
        }
    }
    if (out)
        fpu_init(c);
}
