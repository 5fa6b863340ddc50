/* -cpu models: what CPUID says, and registers by number. */
#include "models.h"

#include "system.h"

#include <time.h>

const struct x86_model x86_models[] = {
    { .name = "max",
      .vendor = "GenuineIntel",
      .brand = "Platter CPU, all it can",
      .family = 6,
      .model = 60,
      .stepping = 1,
      .f1_edx = FD_BASE,
      .f1_ecx = FC_V1 | FC_V2 | 1u << 22 | 1u << 26,
      .f7_ebx = 1 << 0 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 20,
      .f7_ecx = 1 << 2 | 1 << 22,
      .e1_edx = 1 << 11 | 1 << 20 | 1 << 27 | 1 << 29,
      .e1_ecx = 1 | 1 << 5 },
    { .name = "qemu64",
      .vendor = "AuthenticAMD",
      .brand = "Platter virtual CPU",
      .family = 15,
      .model = 107,
      .stepping = 1,
      .f1_edx = FD_BASE,
      .f1_ecx = 1 | 1 << 13,
      .e1_edx = 1 << 11 | 1 << 20 | 1 << 29,
      .e1_ecx = 1 },
};

const struct x86_model *x86_model_find(const char *name)
{
    for (size_t n = 0; n < sizeof x86_models / sizeof x86_models[0]; n++) {
        if (!name || !strcmp(name, x86_models[n].name))
            return &x86_models[n];
    }
    return NULL;
}

static void name_leaf(const char *text, unsigned part, uint32_t out[4])
{
    char padded[48] = "";
    strncpy(padded, text, sizeof padded - 1);
    memcpy(out, padded + 16 * part, 16);
}

static void basic(struct x86 *c, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    const struct x86_model *m = c->model;
    unsigned bits = 0;
    while (1u << bits < c->cpus)
        bits++;
    switch (leaf) {
    case 0:
        out[0] = 13;
        memcpy(&out[1], m->vendor, 4);
        memcpy(&out[3], m->vendor + 4, 4);
        memcpy(&out[2], m->vendor + 8, 4);
        break;
    case 1:
        out[0] = (m->family > 15 ? 15 : m->family) << 8 | (m->model & 15) << 4 |
                 (m->model >> 4) << 16 | m->stepping;
        out[1] = c->cpu.id << 24 | c->cpus << 16 | 8 << 8;
        out[2] = m->f1_ecx | (c->cr4 & CR4_OSXSAVE ? 1u << 27 : 0) | 1u << 31;
        out[3] = m->f1_edx | (c->cpus > 1 ? 1 << 28 : 0);
        break;
    case 7:
        if (!sub) {
            out[1] = m->f7_ebx;
            out[2] = m->f7_ecx;
        }
        break;
    case 11:
        out[0] = sub == 1 ? bits : 0;
        out[1] = sub == 0 ? 1 : sub == 1 ? c->cpus : 0;
        out[2] = sub | (sub == 0 ? 1 : sub == 1 ? 2 : 0) << 8;
        out[3] = c->cpu.id;
        break;
    case 13:
        if (!(m->f1_ecx & 1 << 26))
            break;
        if (sub == 0) {
            out[0] = 3;
            out[1] = out[2] = 576;
        }
        break;
    default:
        break;
    }
}

void x86_cpuid(struct x86 *c, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    const struct x86_model *m = c->model;
    memset(out, 0, 16);
    switch (leaf) {
    case 0x80000000:
        out[0] = 0x80000008;
        break;
    case 0x80000001:
        out[2] = m->e1_ecx;
        out[3] = m->e1_edx;
        break;
    case 0x80000002:
    case 0x80000003:
    case 0x80000004:
        name_leaf(m->brand, leaf - 0x80000002, out);
        break;
    case 0x80000007:
        out[3] = 1 << 8; /* the time stamp counter runs evenly */
        break;
    case 0x80000008:
        out[0] = 40 | 48 << 8;
        break;
    default:
        if (leaf <= 13)
            basic(c, leaf, sub, out);
    }
}

void h_cpuid(struct x86 *c, const struct insn *i)
{
    (void)i;
    uint32_t out[4];
    x86_cpuid(c, (uint32_t)c->cpu.r[RAX], (uint32_t)c->cpu.r[RCX], out);
    c->cpu.r[RAX] = out[0];
    c->cpu.r[RBX] = out[1];
    c->cpu.r[RCX] = out[2];
    c->cpu.r[RDX] = out[3];
}

/* One tick is a nanosecond. */
uint64_t x86_tsc(struct x86 *c)
{
    if (c->bus->now)
        return c->bus->now(c->machine) + c->tsc_offset;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec + c->tsc_offset;
}

/* A register that is a plain variable, or NULL. */
static uint64_t *variable(struct x86 *c, uint32_t msr)
{
    switch (msr) {
    case 0x174:
        return &c->sysenter_cs;
    case 0x175:
        return &c->sysenter_esp;
    case 0x176:
        return &c->sysenter_eip;
    case 0x1a0:
        return &c->misc_enable;
    case 0x277:
        return &c->pat;
    case 0xc0000081:
        return &c->star;
    case 0xc0000082:
        return &c->lstar;
    case 0xc0000083:
        return &c->cstar;
    case 0xc0000084:
        return &c->fmask;
    case 0xc0000100:
        return &c->cpu.r[BASE + FS];
    case 0xc0000101:
        return &c->cpu.r[BASE + GS];
    case 0xc0000102:
        return &c->kernel_gs;
    case 0xc0000103:
        return &c->tsc_aux;
    default:
        break;
    }
    if (msr >= 0x200 && msr < 0x210)
        return &c->mtrr[msr - 0x200];
    if (msr == 0x250 || msr == 0x258 || msr == 0x259)
        return &c->mtrr[16 + (msr & 15)];
    if (msr >= 0x268 && msr < 0x270)
        return &c->mtrr[28 + msr - 0x268];
    return msr == 0x2ff ? &c->mtrr[36] : NULL;
}

int x86_read_msr(struct x86 *c, uint32_t msr, uint64_t *value)
{
    const uint64_t *v = variable(c, msr);
    *value = 0;
    if (v)
        *value = *v;
    else if (msr == 0x10)
        *value = x86_tsc(c);
    else if (msr == 0xc0000080)
        *value = c->efer;
    else if (msr == 0xfe)
        *value = 0x508; /* eight variable MTRRs, the fixed ones, write combining */
    else if (c->bus->read_msr && c->bus->read_msr(c->machine, c->cpu.id, msr, value) == 0)
        return 0;
    else if (msr == 0x1b)
        *value = c->apic_base;
    else if (msr != 0x8b && msr != 0x17 && msr != 0x179 && msr != 0x3a && msr != 0x34 &&
             msr != 0xce)
        return -1;
    return 0;
}

int x86_write_msr(struct x86 *c, uint32_t msr, uint64_t value)
{
    uint64_t *v = variable(c, msr);
    bool address = (msr >= 0xc0000100 && msr <= 0xc0000102) || msr == 0xc0000082 ||
                   msr == 0xc0000083 || msr == 0x175 || msr == 0x176;
    if (address && (uint64_t)((int64_t)(value << 16) >> 16) != value)
        return -1;
    if (v)
        *v = value;
    else if (msr == 0x10)
        c->tsc_offset += value - x86_tsc(c);
    else if (msr == 0xc0000080) {
        uint64_t known = EFER_SCE | EFER_LME | EFER_NXE;
        if (value & ~(known | EFER_LMA) || (c->cr0 & CR0_PG && (value ^ c->efer) & EFER_LME))
            return -1;
        c->efer = (value & known) | (c->efer & EFER_LMA);
        cpu_flush(&c->cpu);
    } else if (c->bus->write_msr && c->bus->write_msr(c->machine, c->cpu.id, msr, value) == 0)
        return 0;
    else if (msr == 0x1b)
        c->apic_base = value;
    else if (msr != 0x8b && msr != 0x79)
        return -1;
    return 0;
}

void h_msr(struct x86 *c, const struct insn *i)
{
    uint32_t msr = (uint32_t)c->cpu.r[RCX];
    uint64_t value = (c->cpu.r[RDX] & 0xffffffff) << 32 | (uint32_t)c->cpu.r[RAX];
    bool write = i->op == MAP_0F + 0x30;
    if (c->cpl || (write ? x86_write_msr(c, msr, value) : x86_read_msr(c, msr, &value)))
        x86_raise_code(c, X_GP, 0);
    if (!write) {
        c->cpu.r[RAX] = (uint32_t)value;
        c->cpu.r[RDX] = value >> 32;
    }
}
