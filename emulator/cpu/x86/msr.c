/* Registers by number, and the time stamp counter. */
#include "system.h"

#include <time.h>

/* No speculation, so none of what it may leak: RDCL_NO, IBRS_ALL, no need to flush L1D, SSB_NO, MDS_NO,
 * PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO. */
enum { CAPABILITIES = 0x0d10e17b };

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
    if (msr == 0x17a || msr == 0x17b)
        return &c->mca[msr - 0x17a];
    if (msr >= 0x400 && msr < 0x400 + 4 * MCA_BANKS)
        return &c->mca[2 + msr - 0x400];
    if (msr == 0x48 && type_has(&c->type, WORD_7_EDX * 32 + 26))
        return &c->spec_ctrl;
    return msr == 0x2ff ? &c->mtrr[36] : NULL;
}

/* AMD's configuration registers, which kernels read and change by the model's number. */
static bool amd_ignored(const struct x86 *c, uint32_t msr)
{
    return c->type.vendor[0] == 'A' &&
           (msr == 0xc0010010 || msr == 0xc0010015 || msr == 0xc0010055 || msr == 0xc001001f ||
            msr == 0xc0010114 || msr == 0xc0011029 || (msr >= 0xc0010111 && msr <= 0xc0010113));
}

int x86_read_msr(struct x86 *c, uint32_t msr, uint64_t *value)
{
    const uint64_t *v = variable(c, msr);
    *value = 0;
    if (v)
        *value = *v;
    else if (msr == 0x10)
        *value = x86_tsc(c);
    else if (msr == 0x3b)
        *value = c->tsc_offset;
    else if (msr == 0xc0000080)
        *value = c->efer;
    else if (msr == 0xfe)
        *value = 0x508; /* eight variable MTRRs, the fixed ones, write combining */
    else if (c->bus->read_msr && c->bus->read_msr(c->machine, c->cpu.id, msr, value) == 0)
        return 0;
    else if (msr == 0x1b)
        *value = c->apic_base;
    else if (msr == 0x3a)
        *value = 1; /* locked, with nothing enabled */
    else if (msr == 0x179)
        *value = 1 << 8 | MCA_BANKS;
    else if (msr == 0x10a && has(c, FEATURE_ARCH_CAPABILITIES))
        *value = CAPABILITIES;
    else if (msr != 0x8b && msr != 0x17 && msr != 0x34 && msr != 0xce && !amd_ignored(c, msr))
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
    else if (msr == 0x3b)
        c->tsc_offset = value;
    else if (msr == 0xc0000080) {
        uint64_t known = (has(c, FEATURE_SYSCALL) ? EFER_SCE : 0) |
                         (has(c, FEATURE_LM) ? EFER_LME : 0) | (has(c, FEATURE_NX) ? EFER_NXE : 0);
        if (value & ~(known | EFER_LMA) || (c->cr0 & CR0_PG && (value ^ c->efer) & EFER_LME))
            return -1;
        c->efer = (value & known) | (c->efer & EFER_LMA);
        cpu_flush(&c->cpu);
    } else if (c->bus->write_msr && c->bus->write_msr(c->machine, c->cpu.id, msr, value) == 0)
        return 0;
    else if (msr == 0x1b)
        c->apic_base = value;
    else if (msr != 0x8b && msr != 0x79 && msr != 0x49 && msr != 0x10b && !amd_ignored(c, msr))
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
