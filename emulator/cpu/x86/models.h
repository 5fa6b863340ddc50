/* What a -cpu model offers. Only what is there: a bit set here is an instruction that works. */
#ifndef X86_MODELS_H
#define X86_MODELS_H

#include <stdbool.h>
#include <stdint.h>

struct error;

/* Words of CPUID that tell of features, named by leaf and register. */
enum {
    WORD_1_EDX,
    WORD_1_ECX,
    WORD_7_EBX,
    WORD_7_ECX,
    WORD_7_EDX,
    WORD_D1_EAX,
    WORD_E1_EDX, /* 80000001 */
    WORD_E1_ECX,
    WORD_E7_EDX,
    WORDS,
};

/* Features that the CPU itself asks about, as word * 32 + bit. */
enum {
    FEATURE_SEP = WORD_1_EDX * 32 + 11,
    FEATURE_PGE = WORD_1_EDX * 32 + 13,
    FEATURE_CMOV = WORD_1_EDX * 32 + 15,
    FEATURE_MMX = WORD_1_EDX * 32 + 23,
    FEATURE_FXSR,
    FEATURE_SSE,
    FEATURE_SSE2,
    FEATURE_SSE3 = WORD_1_ECX * 32,
    FEATURE_PCLMUL,
    FEATURE_SSSE3 = WORD_1_ECX * 32 + 9,
    FEATURE_CX16 = WORD_1_ECX * 32 + 13,
    FEATURE_PCID = WORD_1_ECX * 32 + 17,
    FEATURE_SSE41 = WORD_1_ECX * 32 + 19,
    FEATURE_SSE42,
    FEATURE_MOVBE = WORD_1_ECX * 32 + 22,
    FEATURE_POPCNT,
    FEATURE_AES = WORD_1_ECX * 32 + 25,
    FEATURE_XSAVE,
    FEATURE_RDRAND = WORD_1_ECX * 32 + 30,
    FEATURE_FSGSBASE = WORD_7_EBX * 32,
    FEATURE_BMI1 = WORD_7_EBX * 32 + 3,
    FEATURE_SMEP = WORD_7_EBX * 32 + 7,
    FEATURE_BMI2,
    FEATURE_INVPCID = WORD_7_EBX * 32 + 10,
    FEATURE_RDSEED = WORD_7_EBX * 32 + 18,
    FEATURE_ADX,
    FEATURE_SMAP,
    FEATURE_SHA = WORD_7_EBX * 32 + 29,
    FEATURE_UMIP = WORD_7_ECX * 32 + 2,
    FEATURE_RDPID = WORD_7_ECX * 32 + 22,
    FEATURE_ARCH_CAPABILITIES = WORD_7_EDX * 32 + 29,
    FEATURE_XSAVEOPT = WORD_D1_EAX * 32,
    FEATURE_XSAVEC,
    FEATURE_XGETBV1,
    FEATURE_SYSCALL = WORD_E1_EDX * 32 + 11,
    FEATURE_NX = WORD_E1_EDX * 32 + 20,
    FEATURE_1G = WORD_E1_EDX * 32 + 26,
    FEATURE_RDTSCP,
    FEATURE_LM = WORD_E1_EDX * 32 + 29,
    FEATURE_LAHF = WORD_E1_ECX * 32,
    FEATURE_ABM = WORD_E1_ECX * 32 + 5,
};

struct x86_model {
    const char *name, *vendor, *brand;
    unsigned family, model, stepping;
    uint32_t words[WORDS];
};

/* A model with what was asked of it: its own copies, so that strings may go. */
struct x86_cpu_type {
    char vendor[16], brand[48];
    unsigned family, model, stepping;
    uint32_t words[WORDS];
};

/* "MODEL,+feature,-feature,feature=on|off,..." as QEMU takes it; NULL or an empty model: "max". 0 or
 * EINVAL with the word that was not understood, or the feature that is not there. */
int x86_type_parse(struct x86_cpu_type *type, const char *text, struct error **err);

static inline bool type_has(const struct x86_cpu_type *type, unsigned feature)
{
    return type->words[feature / 32] >> feature % 32 & 1;
}

#endif
