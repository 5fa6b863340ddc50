/* What CPUID says. */
#include "system.h"

uint32_t x86_signature(const struct x86_cpu_type *m)
{
    unsigned over = m->family > 15 ? m->family - 15 : 0;
    return over << 20 | (m->model >> 4) << 16 | (m->family - over) << 8 | (m->model & 15) << 4 |
           m->stepping;
}

/* The counter's frequency is told to those who ask, so that none calibrates it: 1 GHz, as of the local APIC's timer. */
enum { LEAF_TSC = 0x15, LEAF_MHZ = 0x16, TSC_HZ = 1000000000 };

static uint32_t last_leaf(const struct x86_cpu_type *m)
{
    return type_has(m, WORD_1_ECX * 32 + 24) ? LEAF_MHZ : 13;
}

/* x87 and SSE, and the header. */
enum { XSAVE_SIZE = 576 };

static void basic(struct x86 *c, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    const struct x86_cpu_type *m = &c->type;
    unsigned bits = 0;
    while (1u << bits < c->cpus)
        bits++;
    switch (leaf) {
    case 0:
        out[0] = last_leaf(m);
        memcpy(&out[1], m->vendor, 4);
        memcpy(&out[3], m->vendor + 4, 4);
        memcpy(&out[2], m->vendor + 8, 4);
        break;
    case 1:
        out[0] = x86_signature(m);
        out[1] = c->cpu.id << 24 | c->cpus << 16 | 8 << 8;
        out[2] = m->words[WORD_1_ECX] | (c->cr4 & CR4_OSXSAVE ? 1u << 27 : 0);
        out[3] = m->words[WORD_1_EDX] | (c->cpus > 1 ? 1 << 28 : 0);
        break;
    case 7:
        if (!sub) {
            out[1] = m->words[WORD_7_EBX];
            out[2] = m->words[WORD_7_ECX];
            out[3] = m->words[WORD_7_EDX];
        }
        break;
    case 11:
        out[0] = sub == 1 ? bits : 0;
        out[1] = sub == 0 ? 1 : sub == 1 ? c->cpus : 0;
        out[2] = sub | (sub == 0 ? 1 : sub == 1 ? 2 : 0) << 8;
        out[3] = c->cpu.id;
        break;
    case 13:
        if (!type_has(m, FEATURE_XSAVE))
            break;
        if (sub == 0) {
            out[0] = 3;
            out[1] = out[2] = XSAVE_SIZE;
        } else if (sub == 1) {
            out[0] = m->words[WORD_D1_EAX];
            out[1] = XSAVE_SIZE;
        }
        break;
    case LEAF_TSC:
        out[0] = out[1] = 1;
        out[2] = TSC_HZ;
        break;
    case LEAF_MHZ:
        out[0] = out[1] = TSC_HZ / 1000000;
        out[2] = 100;
        break;
    default:
        break;
    }
}

void x86_cpuid(struct x86 *c, uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    const struct x86_cpu_type *m = &c->type;
    memset(out, 0, 16);
    switch (leaf) {
    case 0x80000000:
        out[0] = 0x80000008;
        break;
    case 0x80000001:
        out[2] = m->words[WORD_E1_ECX];
        out[3] = m->words[WORD_E1_EDX];
        break;
    case 0x80000002:
    case 0x80000003:
    case 0x80000004:
        memcpy(out, m->brand + 16 * (leaf - 0x80000002), 16);
        break;
    case 0x80000007:
        out[3] = m->words[WORD_E7_EDX];
        break;
    case 0x80000008:
        out[0] = 40 | 48 << 8;
        break;
    default:
        if (leaf <= last_leaf(m))
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
