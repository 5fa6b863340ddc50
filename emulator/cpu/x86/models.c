/* -cpu models and the names of features. */
#include "models.h"

#include "x86.h"

#include "base/error.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2. */
#define D1_BASE 0x078bfbfdu
#define BIT(n)  (1u << (n))
/* SSE3; SSSE3 and CX16; what each generation added. HYPERVISOR belongs to all. */
#define C1_SSE3 (BIT(0) | BIT(31))
#define C1_CORE (C1_SSE3 | BIT(9) | BIT(13))
#define C1_NEHA (C1_CORE | BIT(19) | BIT(20) | BIT(23))
#define C1_WEST (C1_NEHA | BIT(1) | BIT(25))
#define C1_MAX  (C1_WEST | BIT(17) | BIT(21) | BIT(22) | BIT(24) | BIT(26) | BIT(30))
/* FSGSBASE TSC_ADJUST BMI1 SMEP BMI2 ERMS INVPCID RDSEED ADX SMAP CLFLUSHOPT CLWB SHA. */
#define B7_MAX                                                                                     \
    (BIT(0) | BIT(1) | BIT(3) | BIT(7) | BIT(8) | BIT(9) | BIT(10) | BIT(18) | BIT(19) | BIT(20) | \
     BIT(23) | BIT(24) | BIT(29))
/* FSRM; SPEC_CTRL, STIBP, ARCH_CAPABILITIES and SSBD: nothing here speculates. */
#define D7_MAX  (BIT(4) | BIT(26) | BIT(27) | BIT(29) | BIT(31))
#define E1_LONG (BIT(11) | BIT(20) | BIT(29)) /* SYSCALL NX LM */

static const struct x86_model models[] = {
    { .name = "max",
      .vendor = "GenuineIntel",
      .brand = "Platter CPU, all it can",
      .family = 6,
      .model = 143,
      .stepping = 8,
      .words = { [WORD_1_EDX] = D1_BASE,
                 [WORD_1_ECX] = C1_MAX,
                 [WORD_7_EBX] = B7_MAX,
                 [WORD_7_ECX] = BIT(2) | BIT(22),
                 [WORD_7_EDX] = D7_MAX,
                 [WORD_D1_EAX] = BIT(0) | BIT(1) | BIT(2),
                 [WORD_E1_EDX] = E1_LONG | BIT(26) | BIT(27),
                 [WORD_E1_ECX] = BIT(0) | BIT(5) | BIT(8),
                 [WORD_E7_EDX] = BIT(8) } },
    { .name = "qemu64",
      .vendor = "AuthenticAMD",
      .brand = "Platter virtual CPU",
      .family = 15,
      .model = 107,
      .stepping = 1,
      .words = { D1_BASE, C1_SSE3 | BIT(13), [WORD_E1_EDX] = E1_LONG, [WORD_E1_ECX] = BIT(0) } },
    { .name = "qemu32",
      .vendor = "GenuineIntel",
      .brand = "Platter virtual CPU",
      .family = 6,
      .model = 6,
      .stepping = 3,
      .words = { D1_BASE & ~(BIT(7) | BIT(12) | BIT(14) | BIT(17) | BIT(19)), C1_SSE3 } },
    { .name = "kvm64",
      .vendor = "GenuineIntel",
      .brand = "Common KVM processor",
      .family = 15,
      .model = 6,
      .stepping = 1,
      .words = { D1_BASE, C1_SSE3 | BIT(13), [WORD_E1_EDX] = E1_LONG } },
    { .name = "pentium3",
      .vendor = "GenuineIntel",
      .family = 6,
      .model = 7,
      .stepping = 3,
      .words = { D1_BASE & ~(BIT(17) | BIT(19) | BIT(26)), BIT(31) } },
    { .name = "Conroe",
      .vendor = "GenuineIntel",
      .brand = "Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
      .family = 6,
      .model = 15,
      .stepping = 3,
      .words = { D1_BASE, C1_SSE3 | BIT(9), [WORD_E1_EDX] = E1_LONG, [WORD_E1_ECX] = BIT(0) } },
    { .name = "Penryn",
      .vendor = "GenuineIntel",
      .brand = "Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
      .family = 6,
      .model = 23,
      .stepping = 3,
      .words = { D1_BASE, C1_CORE | BIT(19), [WORD_E1_EDX] = E1_LONG, [WORD_E1_ECX] = BIT(0) } },
    { .name = "Nehalem",
      .vendor = "GenuineIntel",
      .brand = "Intel Core i7 9xx (Nehalem Class Core i7)",
      .family = 6,
      .model = 26,
      .stepping = 3,
      .words = { D1_BASE, C1_NEHA, [WORD_E1_EDX] = E1_LONG, [WORD_E1_ECX] = BIT(0) } },
    { .name = "Westmere",
      .vendor = "GenuineIntel",
      .brand = "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
      .family = 6,
      .model = 44,
      .stepping = 1,
      .words = { D1_BASE, C1_WEST, [WORD_E1_EDX] = E1_LONG, [WORD_E1_ECX] = BIT(0) } },
    { .name = "Opteron_G1",
      .vendor = "AuthenticAMD",
      .brand = "AMD Opteron 240 (Gen 1 Class Opteron)",
      .family = 15,
      .model = 6,
      .stepping = 1,
      .words = { D1_BASE, C1_SSE3, [WORD_E1_EDX] = E1_LONG } },
};

/* By word and bit; a dash stands for QEMU's dots and underscores too. The last column: what only a machine knows
 * to be there, so that it is taken although "max" has it not. */
static const struct feature {
    const char *name;
    uint16_t bit;
    bool machine;
} features[] = {
#define FEATURE(name, word, bit)              \
    {                                         \
        name, WORD_##word * 32 + (bit), false \
    }
#define MACHINE_FEATURE(name, word, bit)     \
    {                                        \
        name, WORD_##word * 32 + (bit), true \
    }
    FEATURE("fpu", 1_EDX, 0),
    FEATURE("de", 1_EDX, 2),
    FEATURE("pse", 1_EDX, 3),
    FEATURE("tsc", 1_EDX, 4),
    FEATURE("msr", 1_EDX, 5),
    FEATURE("pae", 1_EDX, 6),
    FEATURE("mce", 1_EDX, 7),
    FEATURE("cx8", 1_EDX, 8),
    FEATURE("apic", 1_EDX, 9),
    FEATURE("sep", 1_EDX, 11),
    FEATURE("mtrr", 1_EDX, 12),
    FEATURE("pge", 1_EDX, 13),
    FEATURE("mca", 1_EDX, 14),
    FEATURE("cmov", 1_EDX, 15),
    FEATURE("pat", 1_EDX, 16),
    FEATURE("pse36", 1_EDX, 17),
    FEATURE("clflush", 1_EDX, 19),
    FEATURE("mmx", 1_EDX, 23),
    FEATURE("fxsr", 1_EDX, 24),
    FEATURE("sse", 1_EDX, 25),
    FEATURE("sse2", 1_EDX, 26),
    FEATURE("sse3", 1_ECX, 0),
    FEATURE("pni", 1_ECX, 0),
    FEATURE("pclmulqdq", 1_ECX, 1),
    FEATURE("ssse3", 1_ECX, 9),
    FEATURE("cx16", 1_ECX, 13),
    FEATURE("pcid", 1_ECX, 17),
    FEATURE("sse4-1", 1_ECX, 19),
    FEATURE("sse4-2", 1_ECX, 20),
    MACHINE_FEATURE("x2apic", 1_ECX, 21),
    FEATURE("movbe", 1_ECX, 22),
    FEATURE("popcnt", 1_ECX, 23),
    MACHINE_FEATURE("tsc-deadline", 1_ECX, 24),
    FEATURE("aes", 1_ECX, 25),
    FEATURE("xsave", 1_ECX, 26),
    FEATURE("rdrand", 1_ECX, 30),
    FEATURE("hypervisor", 1_ECX, 31),
    FEATURE("fsgsbase", 7_EBX, 0),
    FEATURE("tsc-adjust", 7_EBX, 1),
    FEATURE("bmi1", 7_EBX, 3),
    FEATURE("smep", 7_EBX, 7),
    FEATURE("bmi2", 7_EBX, 8),
    FEATURE("erms", 7_EBX, 9),
    FEATURE("invpcid", 7_EBX, 10),
    FEATURE("rdseed", 7_EBX, 18),
    FEATURE("adx", 7_EBX, 19),
    FEATURE("smap", 7_EBX, 20),
    FEATURE("clflushopt", 7_EBX, 23),
    FEATURE("clwb", 7_EBX, 24),
    FEATURE("sha-ni", 7_EBX, 29),
    FEATURE("umip", 7_ECX, 2),
    FEATURE("rdpid", 7_ECX, 22),
    FEATURE("fsrm", 7_EDX, 4),
    FEATURE("spec-ctrl", 7_EDX, 26),
    FEATURE("stibp", 7_EDX, 27),
    FEATURE("arch-capabilities", 7_EDX, 29),
    FEATURE("ssbd", 7_EDX, 31),
    FEATURE("xsaveopt", D1_EAX, 0),
    FEATURE("xsavec", D1_EAX, 1),
    FEATURE("xgetbv1", D1_EAX, 2),
    FEATURE("syscall", E1_EDX, 11),
    FEATURE("nx", E1_EDX, 20),
    FEATURE("pdpe1gb", E1_EDX, 26),
    FEATURE("rdtscp", E1_EDX, 27),
    FEATURE("lm", E1_EDX, 29),
    FEATURE("lahf-lm", E1_ECX, 0),
    FEATURE("abm", E1_ECX, 5),
    FEATURE("3dnowprefetch", E1_ECX, 8),
    FEATURE("invtsc", E7_EDX, 8),
};

const char *x86_model_name(size_t n, const char **brand)
{
    if (n >= sizeof models / sizeof models[0])
        return NULL;
    *brand = models[n].brand ? models[n].brand : "";
    return models[n].name;
}

const char *x86_feature_name(size_t n)
{
    return n < sizeof features / sizeof features[0] ? features[n].name : NULL;
}

static const struct feature *find_feature(const char *name)
{
    char plain[32];
    size_t n = 0;
    for (; name[n] && n < sizeof plain - 1; n++)
        plain[n] = name[n] == '_' || name[n] == '.' ? '-' : (char)tolower((unsigned char)name[n]);
    plain[n] = 0;
    for (n = 0; n < sizeof features / sizeof features[0]; n++) {
        if (!strcmp(features[n].name, plain))
            return &features[n];
    }
    return NULL;
}

static int set_feature(struct x86_cpu_type *type, const char *name, bool on, struct error **err)
{
    const struct feature *f = find_feature(name);
    uint32_t bit = f ? (uint32_t)1 << f->bit % 32 : 0;
    if (!f && !on)
        return 0; /* what is not there is off */
    if (!f || (on && !f->machine && !(models[0].words[f->bit / 32] & bit)))
        return error_set(err, EINVAL, "The CPU has no feature '%s'", name);
    if (on)
        type->words[f->bit / 32] |= bit;
    else
        type->words[f->bit / 32] &= ~bit;
    return 0;
}

static int set_number(unsigned *to, const char *name, const char *value, unsigned limit,
                      struct error **err)
{
    char *end;
    errno = 0;
    unsigned long v = strtoul(value, &end, 0);
    if (errno || !isdigit((unsigned char)*value) || *end || v > limit)
        return error_set(err, EINVAL, "The CPU's %s is a number up to %u, not '%s'", name, limit,
                         value);
    *to = (unsigned)v;
    return 0;
}

/* name=value; not only features. */
static int set_property(struct x86_cpu_type *type, const char *name, const char *value,
                        struct error **err)
{
    if (!strcmp(name, "family"))
        return set_number(&type->family, name, value, 255 + 15, err);
    if (!strcmp(name, "model"))
        return set_number(&type->model, name, value, 255, err);
    if (!strcmp(name, "stepping"))
        return set_number(&type->stepping, name, value, 15, err);
    if (!strcmp(name, "vendor")) {
        if (strlen(value) != 12)
            return error_set(err, EINVAL, "A CPU's vendor has 12 characters, '%s' has not", value);
        memcpy(type->vendor, value, 13);
        return 0;
    }
    if (!strcmp(name, "model-id")) {
        strncpy(type->brand, value, sizeof type->brand - 1);
        return 0;
    }
    bool on = !strcmp(value, "on") || !strcmp(value, "yes") || !strcmp(value, "true");
    if (!on && strcmp(value, "off") && strcmp(value, "no") && strcmp(value, "false"))
        return error_set(err, EINVAL, "'%s' is on or off, not '%s'", name, value);
    if (!strcmp(name, "check") || !strcmp(name, "enforce") || !strcmp(name, "migratable"))
        return 0; /* what is asked for is there, or it is an error */
    return set_feature(type, name, on, err);
}

static int set_word(struct x86_cpu_type *type, char *word, struct error **err)
{
    char *value = strchr(word, '=');
    if (value) {
        *value++ = 0;
        return set_property(type, word, value, err);
    }
    if (*word == '+' || *word == '-')
        return set_feature(type, word + 1, *word == '+', err);
    return set_property(type, word, "on", err);
}

int x86_type_parse(struct x86_cpu_type *type, const char *text, struct error **err)
{
    char copy[1024], *rest = copy;
    if (strlen(text ? text : "") >= sizeof copy)
        return error_set(err, EINVAL, "A CPU's description has at most %zu characters",
                         sizeof copy - 1);
    snprintf(copy, sizeof copy, "%s", text ? text : "");
    const char *name = strsep(&rest, ",");
    const struct x86_model *m = NULL;
    for (size_t n = 0; n < sizeof models / sizeof models[0] && !m; n++)
        m = !*name || !strcmp(name, models[n].name) ? &models[n] : NULL;
    if (!m)
        return error_set(err, EINVAL, "There is no CPU model '%s'", name);
    *type =
        (struct x86_cpu_type){ .family = m->family, .model = m->model, .stepping = m->stepping };
    memcpy(type->words, m->words, sizeof type->words);
    snprintf(type->vendor, sizeof type->vendor, "%s", m->vendor);
    snprintf(type->brand, sizeof type->brand, "%s", m->brand ? m->brand : "");
    for (char *word; (word = strsep(&rest, ",")) != NULL;) {
        int ret = *word ? set_word(type, word, err) : 0;
        if (ret)
            return ret;
    }
    return 0;
}
