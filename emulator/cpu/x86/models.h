/* What a -cpu model offers. Only what is there: a bit set here is an instruction that works. */
#ifndef X86_MODELS_H
#define X86_MODELS_H

#include <stdint.h>

struct x86_model {
    const char *name, *vendor, *brand;
    unsigned family, model, stepping;
    uint32_t f1_ecx, f1_edx, f7_ebx, f7_ecx, e1_ecx, e1_edx;
};

/* Leaf 1. EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2. */
#define FD_BASE 0x078bfbfdu
/* ECX: SSE3 and CMPXCHG16B; SSSE3, POPCNT. */
#define FC_V1 (1u << 0 | 1u << 13)
#define FC_V2 (1u << 9 | 1u << 23)

extern const struct x86_model x86_models[];
/* NULL: the first. NULL when there is none of the name. */
const struct x86_model *x86_model_find(const char *name);

#endif
