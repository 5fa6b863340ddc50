/* x87 instructions: the stack, its faults, and what is done with the results of f80.c. */
#include "fpu.h"

#include "sse.h"

uint64_t mmx_get(const struct x86 *c, unsigned n)
{
    return c->st[n].m;
}

void mmx_set(struct x86 *c, unsigned n, uint64_t value)
{
    c->st[n] = (struct f80){ value, 0xffff };
    mmx_touch(c);
}

void mmx_touch(struct x86 *c)
{
    c->top = 0;
    c->empty = 0;
}

uint16_t fpu_status(const struct x86 *c)
{
    bool pending = c->fsw & ~c->fcw & FP_ALL;
    return (uint16_t)((c->fsw & 0x477f) | c->top << 11 | (pending ? 0x8080 : 0));
}

void fpu_init(struct x86 *c)
{
    c->fcw = 0x37f;
    c->fsw = c->fop = 0;
    c->fip = c->fdp = 0;
    c->top = 0;
    c->empty = 0xff;
}

/* With CR0.NE clear a PC's interrupt 13 would tell; nobody programs for that any more, and it is as if IGNNE# were
 * up. */
void fpu_pending(struct x86 *c)
{
    if (c->fsw & ~c->fcw & FP_ALL && c->cr0 & CR0_NE)
        x86_raise(c, X_MF);
}

struct f80_env fpu_env(const struct x86 *c)
{
    static const uint8_t bits[4] = { 24, 64, 53, 64 };
    return (struct f80_env){ .rounding = c->fcw >> 10 & 3,
                             .precision = bits[c->fcw >> 8 & 3],
                             .mask = c->fcw & FP_ALL };
}

struct f80 fpu_get(struct x86 *c, struct f80_env *env, unsigned n)
{
    if (!(c->empty >> fpu_slot(c, n) & 1))
        return c->st[fpu_slot(c, n)];
    env->flags |= FP_IE | FP_SF;
    return F80_NAN;
}

void fpu_set(struct x86 *c, unsigned n, struct f80 v)
{
    c->st[fpu_slot(c, n)] = v;
    c->empty &= (uint8_t) ~(1u << fpu_slot(c, n));
}

bool fpu_done(struct x86 *c, const struct f80_env *env, bool memory)
{
    unsigned early = FP_IE | FP_DE | FP_ZE, flags = env->flags;
    bool up = env->up;
    if (flags & ~env->mask & early) { /* nothing was computed */
        flags &= early | FP_SF;
        up = up && flags & FP_SF;
    }
    c->fsw = (uint16_t)((c->fsw & ~C1) | (up ? C1 : 0) | flags);
    return !(flags & ~env->mask & (early | (memory ? FP_OE | FP_UE : 0)));
}

/* A denormal number arrives also when that is an exception. */
void fpu_push(struct x86 *c, struct f80_env *env, struct f80 v)
{
    if (!(c->empty >> fpu_slot(c, 7) & 1) && !(env->flags & FP_SF)) {
        env->flags = FP_IE | FP_SF;
        env->up = true; /* C1 tells overflow from underflow */
        v = F80_NAN;
    }
    if (!fpu_done(c, env, false) && env->flags != FP_DE)
        return;
    c->top = (c->top - 1) & 7;
    fpu_set(c, 0, v);
}

void fpu_pop(struct x86 *c)
{
    c->empty |= (uint8_t)(1u << c->top);
    c->top = (c->top + 1) & 7;
}

void fpu_compare(struct x86 *c, struct f80_env *env, struct f80 a, struct f80 b, bool quiet,
                 unsigned pops)
{
    int r = env->flags & FP_SF ? 2 : f80_compare(env, a, b, quiet);
    bool done = fpu_done(c, env, false);
    unsigned codes = r == 2 ? C0 | C2 | C3 : r < 0 ? C0 : r ? 0 : C3;
    c->fsw = (uint16_t)((c->fsw & ~(C0 | C2 | C3)) | codes);
    while (done && pops--)
        fpu_pop(c);
}

/* These change C1 for a stack fault only. */
static bool compared(struct x86 *c, const struct f80_env *env)
{
    unsigned c1 = env->flags & FP_SF ? 0 : c->fsw & C1;
    bool done = fpu_done(c, env, false);
    c->fsw |= (uint16_t)c1;
    return done;
}

static void compare_flags(struct x86 *c, unsigned n, bool quiet, bool pop)
{
    struct f80_env env = fpu_env(c);
    struct f80 a = fpu_get(c, &env, 0), b = fpu_get(c, &env, n);
    int r = env.flags & FP_SF ? 2 : f80_compare(&env, a, b, quiet);
    flags_set_arith(c, r == 2 ? F_Z | F_P | F_C : r < 0 ? F_C : r ? 0 : F_Z);
    if (compared(c, &env) && pop)
        fpu_pop(c);
}

/* By group: add, multiply, subtract, subtract from, divide, divide into. */
static void arith(struct x86 *c, struct f80_env *env, unsigned g, unsigned to, struct f80 a,
                  struct f80 b, bool pop)
{
    struct f80 r = F80_NAN;
    if (!(env->flags & FP_SF)) {
        if (g == 0)
            r = f80_add(env, a, b, false);
        else if (g == 1)
            r = f80_multiply(env, a, b);
        else if (g < 6)
            r = g & 1 ? f80_add(env, b, a, true) : f80_add(env, a, b, true);
        else
            r = g & 1 ? f80_divide(env, b, a) : f80_divide(env, a, b);
    }
    if (!fpu_done(c, env, false))
        return;
    fpu_set(c, to, r);
    if (pop)
        fpu_pop(c);
}

static struct f80 load(struct x86 *c, struct f80_env *env, uint64_t at, unsigned size, bool integer)
{
    uint64_t v = cpu_load(&c->cpu, at, size);
    if (integer)
        return f80_from_int(sign_extend(v, size));
    return size == 4 ? f80_from_single(env, (uint32_t)v) : f80_from_double(env, v);
}

/* D8, DA, DC, DE with memory: arithmetic with a number there. */
static void memory_arith(struct x86 *c, const struct insn *i, uint64_t at)
{
    unsigned g = group(i), size = i->op == 0xdc ? 8 : i->op == 0xde ? 2 : 4;
    struct f80_env env = fpu_env(c), loading = env;
    struct f80 b = load(c, &loading, at, size, i->op & 2), a = fpu_get(c, &env, 0);
    env.denormal = loading.flags & FP_DE;
    if (loading.flags & FP_IE)
        b.m &= ~((uint64_t)1 << 62); /* signalling, as it was */
    if (g == 2 || g == 3)
        fpu_compare(c, &env, a, b, false, g & 1);
    else
        arith(c, &env, g, 0, a, b, false);
}

static void store(struct x86 *c, uint64_t at, unsigned size, bool integer, bool cut, bool pop)
{
    struct f80_env env = fpu_env(c);
    struct f80 a = fpu_get(c, &env, 0);
    uint64_t v;
    if (integer)
        v = f80_to_int(&env, a, size, cut);
    else
        v = size == 4 ? f80_to_single(&env, a) : f80_to_double(&env, a);
    if (!(env.flags & ~env.mask & (FP_ALL & ~FP_PE)))
        cpu_probe(&c->cpu, at, size, CPU_WRITE); /* a fault must not leave flags behind */
    if (!fpu_done(c, &env, true))
        return;
    cpu_store(&c->cpu, at, size, v);
    if (pop)
        fpu_pop(c);
}

static void load80(struct x86 *c, uint64_t at)
{
    struct f80_env env = fpu_env(c);
    struct f80 v = { cpu_load(&c->cpu, at, 8), (uint16_t)cpu_load(&c->cpu, at + 8, 2) };
    fpu_push(c, &env, v);
}

static void store80(struct x86 *c, uint64_t at)
{
    struct f80_env env = fpu_env(c);
    struct f80 v = fpu_get(c, &env, 0);
    cpu_probe(&c->cpu, at, 10, CPU_WRITE);
    if (!fpu_done(c, &env, true))
        return;
    cpu_store(&c->cpu, at, 8, v.m);
    cpu_store(&c->cpu, at + 8, 2, v.e);
    fpu_pop(c);
}

static void load_bcd(struct x86 *c, uint64_t at)
{
    struct f80_env env = fpu_env(c);
    uint8_t b[10];
    for (unsigned n = 0; n < 10; n++)
        b[n] = (uint8_t)cpu_load(&c->cpu, at + n, 1);
    fpu_push(c, &env, f80_from_bcd(b));
}

static void store_bcd(struct x86 *c, uint64_t at)
{
    struct f80_env env = fpu_env(c);
    uint8_t b[10];
    f80_to_bcd(&env, fpu_get(c, &env, 0), b);
    cpu_probe(&c->cpu, at, 10, CPU_WRITE);
    if (!fpu_done(c, &env, true))
        return;
    for (unsigned n = 0; n < 10; n++)
        cpu_store(&c->cpu, at + n, 1, b[n]);
    fpu_pop(c);
}

/* D9, DB, DD, DF with memory: loads, stores and control. */
static void memory_move(struct x86 *c, const struct insn *i, uint64_t at)
{
    unsigned g = group(i), op = i->op;
    bool integer = op == 0xdb || op == 0xdf;
    unsigned size = op == 0xdd ? 8 : op == 0xdf ? 2 : 4;
    struct f80_env env = fpu_env(c);
    switch (op << 4 | g) {
    case 0xd90:
    case 0xdb0:
    case 0xdd0:
    case 0xdf0: {
        struct f80 v = load(c, &env, at, size, integer);
        fpu_push(c, &env, v);
        break;
    }
    case 0xd94:
    case 0xd96:
        fpu_environment(c, i, at, g == 6);
        break;
    case 0xd95:
        c->fcw = (uint16_t)((cpu_load(&c->cpu, at, 2) & 0x1f3f) | 0x40);
        break;
    case 0xd97:
        cpu_store(&c->cpu, at, 2, c->fcw);
        break;
    case 0xdb5:
        load80(c, at);
        break;
    case 0xdb7:
        store80(c, at);
        break;
    case 0xdd4:
    case 0xdd6:
        fpu_whole(c, i, at, g == 6);
        break;
    case 0xdd7:
        cpu_store(&c->cpu, at, 2, fpu_status(c));
        break;
    case 0xdf4:
        load_bcd(c, at);
        break;
    case 0xdf5:
        fpu_push(c, &env, load(c, &env, at, 8, true));
        break;
    case 0xdf6:
        store_bcd(c, at);
        break;
    case 0xdf7:
        store(c, at, 8, true, false, true);
        break;
    default: /* 1: with truncation, 2: store, 3: store and pop */
        store(c, at, size, integer || g == 1, g == 1, g != 2);
        break;
    }
}

static void conditional(struct x86 *c, const struct insn *i, unsigned n)
{
    unsigned g = group(i);
    uint64_t f = flags_arith(c);
    bool yes = g == 0 ? f & F_C : g == 1 ? f & F_Z : g == 2 ? f & (F_C | F_Z) : f & F_P;
    struct f80_env env = fpu_env(c);
    fpu_get(c, &env, 0);
    struct f80 v = fpu_get(c, &env, n);
    if (compared(c, &env) && (env.flags || yes == (i->op == 0xda)))
        fpu_set(c, 0, env.flags ? F80_NAN : v);
}

static void exchange(struct x86 *c, unsigned n)
{
    struct f80_env env = fpu_env(c);
    struct f80 a = fpu_get(c, &env, 0), b = fpu_get(c, &env, n);
    if (!fpu_done(c, &env, false))
        return;
    fpu_set(c, 0, b);
    fpu_set(c, n, a);
}

static void store_register(struct x86 *c, unsigned n, bool pop)
{
    struct f80_env env = fpu_env(c);
    struct f80 v = fpu_get(c, &env, 0);
    if (!fpu_done(c, &env, false))
        return;
    fpu_set(c, n, v);
    if (pop)
        fpu_pop(c);
}

static void compare_registers(struct x86 *c, unsigned n, bool quiet, unsigned pops)
{
    struct f80_env env = fpu_env(c);
    struct f80 a = fpu_get(c, &env, 0), b = fpu_get(c, &env, n);
    fpu_compare(c, &env, a, b, quiet, pops);
}

/* D8, DC, DE: arithmetic among registers. */
static void register_arith(struct x86 *c, const struct insn *i)
{
    unsigned g = group(i), n = i->modrm & 7, op = i->op;
    if (g == 2 || g == 3) {
        compare_registers(c, n, false, (g & 1) + (op == 0xde));
        return;
    }
    struct f80_env env = fpu_env(c);
    struct f80 a = fpu_get(c, &env, 0), b = fpu_get(c, &env, n);
    arith(c, &env, g, op == 0xd8 ? 0 : n, a, b, op == 0xde);
}

static void control(struct x86 *c, unsigned b)
{
    if (b == 0xe2)
        c->fsw &= 0x7f00;
    else if (b == 0xe3)
        fpu_init(c);
}

static void registers(struct x86 *c, const struct insn *i)
{
    unsigned g = group(i), n = i->modrm & 7, op = i->op;
    struct f80_env env = fpu_env(c);
    switch (op << 4 | g) {
    case 0xd90:
        fpu_push(c, &env, fpu_get(c, &env, n));
        break;
    case 0xd91:
    case 0xdd1:
    case 0xdf1:
        exchange(c, n);
        break;
    case 0xd92:
        break;
    case 0xd94:
    case 0xd95:
    case 0xd96:
    case 0xd97:
        fpu_function(c, i->modrm);
        break;
    case 0xda5:
        compare_registers(c, 1, true, 2);
        break;
    case 0xdb4:
        control(c, i->modrm);
        break;
    case 0xdb5:
    case 0xdb6:
    case 0xdf5:
    case 0xdf6:
        compare_flags(c, n, g == 5, op == 0xdf);
        break;
    case 0xdd0:
    case 0xdf0:
        c->empty |= (uint8_t)(1u << fpu_slot(c, n));
        c->fsw &= (uint16_t)~C1;
        if (op == 0xdf)
            fpu_pop(c);
        break;
    case 0xd93:
    case 0xdd2:
    case 0xdd3:
    case 0xdf2:
    case 0xdf3:
        store_register(c, n, op != 0xdd || g == 3);
        break;
    case 0xdd4:
    case 0xdd5:
        compare_registers(c, n, true, g & 1);
        break;
    case 0xdf4:
        reg_write(c, i, RAX, 2, fpu_status(c));
        break;
    default:
        if (op == 0xda || op == 0xdb)
            conditional(c, i, n);
        else
            register_arith(c, i);
        break;
    }
}

/* Those that do not wait for a pending exception: FNINIT, FNCLEX, FNSTCW, FNSTSW, FNSTENV, FNSAVE. */
static bool no_wait(const struct insn *i)
{
    unsigned g = group(i);
    if (i->mod == 3)
        return (i->op == 0xdb && g == 4) || (i->op == 0xdf && g == 4);
    return (i->op == 0xd9 && g >= 6) || (i->op == 0xdd && g >= 6);
}

static void h_fpu(struct x86 *c, const struct insn *i)
{
    if (c->cr0 & (CR0_EM | CR0_TS))
        x86_raise(c, X_NM);
    bool waits = !no_wait(i);
    if (waits)
        fpu_pending(c);
    uint64_t at = i->mod == 3 ? 0 : ea(c, i);
    if (i->mod == 3)
        registers(c, i);
    else if (i->op & 1)
        memory_move(c, i, at);
    else
        memory_arith(c, i, at);
    bool administers = !waits || (i->mod != 3 && (i->op == 0xd9 || i->op == 0xdd) && group(i) > 3);
    if (!administers) {
        c->fip = cpu_pc(&c->cpu);
        c->fop = (uint16_t)((i->op & 7) << 8 | i->modrm);
        c->fdp = i->mod == 3 ? c->fdp : at;
    }
}

void h_fwait(struct x86 *c, const struct insn *i)
{
    (void)i;
    if ((c->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
        x86_raise(c, X_NM);
    fpu_pending(c);
}

/* A bit for each group that exists, by opcode; with memory and with registers. */
x86_helper *x86_find_fpu(const struct insn *i)
{
    static const uint8_t memory[8] = { 0xff, 0xfd, 0xff, 0xaf, 0xff, 0xdf, 0xff, 0xff };
    static const uint8_t regs[8] = { 0xff, 0xff, 0x2f, 0x7f, 0xff, 0x3f, 0xff, 0x7f };
    unsigned g = group(i), b = i->modrm;
    if (!((i->mod == 3 ? regs : memory)[i->op & 7] >> g & 1))
        return NULL;
    if (i->mod != 3)
        return h_fpu;
    if ((i->op == 0xda && g == 5 && b != 0xe9) || (i->op == 0xde && g == 3 && b != 0xd9) ||
        (i->op == 0xdf && g == 4 && b != 0xe0) || (i->op == 0xdb && g == 4 && b > 0xe4) ||
        (i->op == 0xd9 && (b == 0xe2 || b == 0xe3 || b == 0xe6 || b == 0xe7 || b == 0xef)) ||
        (i->op == 0xd9 && g == 2 && b != 0xd0))
        return NULL;
    return h_fpu;
}
