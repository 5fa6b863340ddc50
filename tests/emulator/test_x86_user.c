/* Random instruction sequences on the host's processor and on ours: registers, flags, memory and
 * exceptions must agree. PLATTER_SEED=n another seed, PLATTER_ROUNDS=n more of them. */
#include "long_guest.h"

#if defined(__x86_64__)

#include "templates.h"
#include "x86/fpu.h"

#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { CODE = 0x10000000, DATA = 0x20000000, DATA_SIZE = 0x4000, CODE_SIZE = 0x1000 };

struct state {
    uint64_t r[16], rip, flags;
    union xmm xmm[16];
    struct f80 st[8]; /* by stack position */
    uint16_t fcw, fsw;
    uint8_t valid; /* by physical register */
    uint32_t mxcsr;
    int vector;
};

/* What a table of templates works on. */
enum { USES_SIMD = 1, USES_X87 = 2, NO_UNDERFLOW = 4 };

static struct state input, host_out;
static ucontext_t home;
static uint8_t *host_data, *host_code;
static uint8_t *our_data, *our_code;
static struct long_guest guest;
static uint64_t random_state;

static uint64_t rnd(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1d;
}

/* The order of gregs in a ucontext. */
static const int gregs[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                               REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                               REG_R12, REG_R13, REG_R14, REG_R15 };

/* Both components come from the frame, also where the kernel thought them untouched. */
static void in_use(struct _libc_fpstate *fp)
{
    uint64_t *header = (uint64_t *)((char *)fp + 512);
    const uint32_t *magic = (const uint32_t *)((char *)fp + 464);
    if (*magic == 0x46505853)
        *header |= 3;
}

/* Signals carry the machine's state in and out: one enters with ours, any fault leaves with the result. */
static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)info;
    ucontext_t *u = context;
    greg_t *g = u->uc_mcontext.gregs;
    struct _libc_fpstate *fp = u->uc_mcontext.fpregs;
    if (number == SIGUSR1) {
        home = *u;
        for (int n = 0; n < 16; n++)
            g[gregs[n]] = (greg_t)input.r[n];
        g[REG_RIP] = (greg_t)input.rip;
        g[REG_EFL] = (greg_t)input.flags;
        memcpy(fp->_xmm, input.xmm, sizeof input.xmm);
        for (int n = 0; n < 8; n++)
            memcpy(&fp->_st[n], &input.st[n], 10);
        fp->cwd = input.fcw;
        fp->swd = input.fsw;
        fp->ftw = input.valid;
        fp->mxcsr = input.mxcsr;
        in_use(fp);
        return;
    }
    for (int n = 0; n < 16; n++)
        host_out.r[n] = (uint64_t)g[gregs[n]];
    host_out.rip = (uint64_t)g[REG_RIP];
    host_out.flags = (uint64_t)g[REG_EFL];
    host_out.vector = (int)g[REG_TRAPNO];
    memcpy(host_out.xmm, fp->_xmm, sizeof host_out.xmm);
    for (int n = 0; n < 8; n++)
        memcpy(&host_out.st[n], &fp->_st[n], 10);
    host_out.fcw = fp->cwd;
    host_out.fsw = fp->swd;
    host_out.valid = (uint8_t)fp->ftw;
    host_out.mxcsr = fp->mxcsr;
    fp->cwd = 0x37f; /* nothing may be left pending for ourselves */
    fp->swd = 0;
    fp->ftw = 0;
    fp->mxcsr = 0x1f80;
    in_use(fp);
    memcpy(g, home.uc_mcontext.gregs, sizeof home.uc_mcontext.gregs);
}

static void run_host(void)
{
    raise(SIGUSR1);
    if (host_out.vector == X_BP)
        host_out.rip--;
}

static void run_ours(struct state *out)
{
    struct x86 *c = guest.cpu;
    memcpy(c->cpu.r, input.r, sizeof input.r);
    memcpy(c->xmm, input.xmm, sizeof input.xmm);
    c->cpu.r[IR_PC] = input.rip;
    c->mxcsr = input.mxcsr;
    c->fcw = input.fcw;
    c->fsw = input.fsw;
    c->top = input.fsw >> 11 & 7;
    c->empty = (uint8_t)~input.valid;
    for (unsigned n = 0; n < 8; n++)
        c->st[(c->top + n) & 7] = input.st[n];
    c->eflags = F_I | (input.flags & F_D);
    flags_set_arith(c, input.flags);
    x86_update_mode(c);
    x86_run(c);
    memcpy(out->r, c->cpu.r, sizeof out->r);
    memcpy(out->xmm, c->xmm, sizeof out->xmm);
    memset(out->st, 0, sizeof out->st);
    for (unsigned n = 0; n < 8; n++)
        out->st[n] = c->st[(c->top + n) & 7];
    out->fcw = c->fcw;
    out->fsw = fpu_status(c);
    out->valid = (uint8_t)~c->empty;
    out->mxcsr = c->mxcsr;
    out->rip = c->cpu.r[IR_PC];
    out->flags = flags_all(c);
    out->vector = c->vector;
    if (c->vector == X_GP && c->error == X_BP * 8 + 2)
        out->vector = X_BP;
}

struct code {
    uint8_t *to;
    unsigned n;
};

static void byte(struct code *c, unsigned b)
{
    c->to[c->n++] = (uint8_t)b;
}

static void word(struct code *c, uint64_t v, unsigned size)
{
    for (unsigned n = 0; n < size; n++)
        byte(c, (unsigned)(v >> (8 * n)) & 255);
}

/* Interesting numbers come up more often than others. */
static uint64_t value(void)
{
    static const uint64_t edges[] = { 0,      1,      2,      0x7f,       0x80,       0xff,
                                      0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff };
    uint64_t r = rnd();
    switch (r & 7) {
    case 0:
        return edges[(r >> 8) % 12];
    case 1:
        return ~edges[(r >> 8) % 12];
    case 2:
        return (uint64_t)1 << (r >> 8 & 63);
    case 3:
        return rnd() >> (r >> 8 & 63);
    default:
        return rnd();
    }
}

static unsigned modrm(struct code *c, const struct template *t, unsigned imm_bytes)
{
    unsigned reg = t->group >= 0 ? (unsigned)t->group : rnd() & 7;
    bool memory = !(t->flags & REG_ONLY) && (t->flags & MEM_ONLY || rnd() & 1);
    if (!memory) {
        unsigned rm = rnd() & 7;
        if (rm == 4 || reg == 4)
            rm = 0; /* the stack pointer stays usable */
        byte(c, 0xc0 | reg << 3 | rm);
    } else {
        byte(c, reg << 3 | 5);
        uint64_t r = rnd(), at = DATA + 0x1000 + (r & (t->flags & SIMD ? 0xff0 : 0xfff));
        if (t->flags & SIMD && (r >> 16 & 15) == 0)
            at += r >> 20 & 15; /* #GP for most */
        if ((r >> 24 & 63) == 0 &&
            !(t->flags & NO_FAULT)) /* a page fault in the second half, or at once */
            at = DATA + DATA_SIZE - (t->flags & NO_REX ? 0 : r >> 30 & 31);
        word(c, at - (CODE + c->n + 4 + imm_bytes), 4);
    }
    return memory;
}

static void vex(struct code *c, const struct template *t, unsigned w)
{
    unsigned pp = t->prefix == 0x66 ? 1 : t->prefix == 0xf3 ? 2 : t->prefix == 0xf2 ? 3 : 0;
    byte(c, 0xc4);
    byte(c, 0xe0 | t->op >> 8);
    unsigned v = t->op == 0x3f0 ? 15 : ~(rnd() & 3) & 15; /* RORX has no such operand */
    byte(c, w << 7 | v << 3 | pp);
    byte(c, t->op & 255);
}

static void one(struct code *c, const struct template *t)
{
    uint64_t r = rnd();
    bool small = !(t->flags & (NO66 | WIDE | VEX | SIMD)) && (r & 7) == 0, lock = false;
    unsigned rex = (r >> 8 & 3) == 0 ? 0x40 : (r >> 8 & 3) == 1 ? 0x48 : 0;
    if (t->flags & SIMD)
        rex = (r >> 8 & 3) ? 0 : 0x40 | (unsigned)(r >> 50 & (t->flags & MAYBE_W ? 13 : 5));
    if (t->flags & NO_REX)
        rex = 0;
    unsigned z = t->flags & BYTE ? 1 : t->flags & WORDZ ? (small && rex != 0x48 ? 2 : 4) : 0;
    if (t->flags & STRING) {
        byte(c, 0xb9);
        word(c, r >> 16 & 31, 4);
        byte(c, 0xbe);
        word(c, DATA + 0x1800 + (r >> 24 & 255), 4);
        byte(c, 0xbf);
        word(c, DATA + 0x1800 + (r >> 32 & 255), 4);
    }
    if (t->flags & VEX) {
        vex(c, t, r >> 5 & 1);
    } else {
        unsigned start = c->n;
        if (small)
            byte(c, 0x66);
        if (t->flags & STRING && r >> 40 & 3)
            byte(c, r >> 42 & 1 ? 0xf3 : 0xf2);
        if (t->flags & LOCKS && (r >> 44 & 15) == 0) {
            byte(c, 0xf0);
            lock = true;
        }
        if (t->prefix)
            byte(c, t->prefix);
        if (rex)
            byte(c, rex);
        if (t->op >= 0x100)
            byte(c, 0x0f);
        if (t->op >= 0x200)
            byte(c, t->op >= 0x300 ? 0x3a : 0x38);
        byte(c, t->op & 255);
        (void)start;
        (void)lock;
    }
    if (t->flags & MODRM)
        modrm(c, t, z);
    word(c, t->flags & CMP ? rnd() & 7 : value(), z);
}

/* A conditional jump across MOV AL, imm8. */
static void jump(struct code *c)
{
    byte(c, 0x70 | (rnd() & 15));
    byte(c, 2);
    byte(c, 0xb0);
    byte(c, rnd() & 255);
}

static unsigned make(struct code *c, const struct template *all, size_t count, unsigned uses)
{
    unsigned undefined = 0, n = 1 + (unsigned)(rnd() % 6);
    for (unsigned k = 0; k < n; k++) {
        if (undefined) { /* every flag gets a meaning again: cmp */
            byte(c, 0x39);
            byte(c, 0xc0 | (rnd() & 0x3f));
        }
        const struct template *t = &all[rnd() % count];
        if (t->flags & FIXED) {
            byte(c, t->op & 255);
            byte(c, (unsigned)t->group);
        } else {
            one(c, t);
        }
        undefined = t->undefined;
        if (!uses && !undefined && (rnd() & 3) == 0)
            jump(c);
    }
    byte(c, 0xcc);
    return undefined;
}

static void report(const struct code *c, const struct state *ours, uint64_t seed)
{
    fprintf(stderr, "seed %#lx\ncode:", (unsigned long)seed);
    for (unsigned n = 0; n < c->n; n++)
        fprintf(stderr, " %02x", c->to[n]);
    fprintf(stderr, "\nvector host %d ours %d rip %lx %lx flags %lx %lx (in %lx)\n",
            host_out.vector, ours->vector, (unsigned long)host_out.rip, (unsigned long)ours->rip,
            (unsigned long)host_out.flags, (unsigned long)ours->flags, (unsigned long)input.flags);
    for (int n = 0; n < 16; n++) {
        if (host_out.r[n] != ours->r[n])
            fprintf(stderr, "r%d: in %lx host %lx ours %lx\n", n, (unsigned long)input.r[n],
                    (unsigned long)host_out.r[n], (unsigned long)ours->r[n]);
        if (memcmp(&host_out.xmm[n], &ours->xmm[n], 16))
            fprintf(stderr, "xmm%d: in %lx %lx host %lx %lx ours %lx %lx\n", n,
                    (unsigned long)input.xmm[n].q[1], (unsigned long)input.xmm[n].q[0],
                    (unsigned long)host_out.xmm[n].q[1], (unsigned long)host_out.xmm[n].q[0],
                    (unsigned long)ours->xmm[n].q[1], (unsigned long)ours->xmm[n].q[0]);
    }
    for (int n = 0; n < 8; n++) {
        if (host_out.st[n].m != ours->st[n].m || host_out.st[n].e != ours->st[n].e)
            fprintf(stderr, "st%d: in %04x %lx host %04x %lx ours %04x %lx\n", n, input.st[n].e,
                    (unsigned long)input.st[n].m, host_out.st[n].e, (unsigned long)host_out.st[n].m,
                    ours->st[n].e, (unsigned long)ours->st[n].m);
    }
    fprintf(stderr, "fcw %x fsw in %x host %x ours %x valid %x %x %x mxcsr %x %x %x\n", input.fcw,
            input.fsw, host_out.fsw, ours->fsw, input.valid, host_out.valid, ours->valid,
            input.mxcsr, host_out.mxcsr, ours->mxcsr);
    for (unsigned n = 0; n < DATA_SIZE; n++) {
        if (host_data[n] != our_data[n]) {
            fprintf(stderr, "memory at +%#x: host %02x ours %02x\n", n, host_data[n], our_data[n]);
            break;
        }
    }
}

/* Numbers of all kinds, those that meet exceptions more often than chance would. */
static struct f80 extended(void)
{
    uint64_t r = rnd();
    uint16_t sign = (uint16_t)(r >> 16 & 0x8000);
    uint64_t m = value() | (uint64_t)1 << 63;
    switch (r & 15) {
    case 0:
        return (struct f80){ 0, sign };
    case 1:
        return (struct f80){ (uint64_t)1 << 63, 0x7fff | sign };
    case 2:
        return (struct f80){ m, 0x7fff | sign }; /* NaN */
    case 3:
        return (struct f80){ value(), sign }; /* denormal */
    case 4:
        return (struct f80){ value(), (uint16_t)(r >> 32) }; /* anything */
    case 5:
        return (struct f80){ m, (uint16_t)(1 + (r >> 8 & 15)) | sign };
    case 6:
        return (struct f80){ m, (uint16_t)(0x7ffe - (r >> 8 & 15)) | sign };
    case 7:
    case 8:
        return (struct f80){ (r >> 40 | 1u << 23) << 40,
                             (uint16_t)(0x3fff + (r >> 8 & 31)) | sign };
    default:
        return (struct f80){ m, (uint16_t)(0x3fff - 70 + (r >> 8 & 127)) | sign };
    }
}

/* A single or a double beside the edges of its format. */
static uint64_t floating(void)
{
    uint64_t r = rnd(), v = rnd();
    switch (r & 7) {
    case 0:
        return value();
    case 1: /* small doubles, doubles near 1 */
        return (v & 0x800fffffffffffff) | (r >> 8 & 15) << 52;
    case 2:
        return (v & 0x800fffffffffffff) | (0x3f0 + (r >> 8 & 31)) << 52;
    case 3:
        return (v & 0x800fffffffffffff) | (0x7f8 + (r >> 8 & 7)) << 52;
    case 4: /* pairs of singles */
        return (v & 0x807fffff807fffff) | (r >> 8 & 7) << 23 | (r >> 16 & 7) << 55;
    case 5:
        return (v & 0x807fffff807fffff) | (0x7c + (r >> 8 & 7)) << 23 |
               (0x7c + (r >> 16 & 7)) << 55;
    default: /* integers as doubles */
        return (uint64_t)(1023 + (r >> 8 & 63)) << 52 | (v & 0x8000000000000000) |
               (v & ((uint64_t)15 << 48));
    }
}

static void make_input(unsigned uses)
{
    uint64_t r = rnd();
    for (int n = 0; n < 16; n++) {
        input.r[n] = value();
        input.xmm[n].q[0] = uses & USES_SIMD ? floating() : 0;
        input.xmm[n].q[1] = uses & USES_SIMD ? floating() : 0;
    }
    input.r[RSP] = DATA + 0x3000;
    input.rip = CODE;
    input.flags = F_I | 2 | (rnd() & F_ARITH);
    input.mxcsr = 0x1f80;
    if (uses & USES_SIMD) {
        input.mxcsr |= r & 0x6000;
        input.mxcsr |= (r >> 16 & 3) ? 0 : r >> 18 & 0x8040;
        input.mxcsr &= (r >> 40 & 3) ? ~0u : ~(r >> 42 & 0x1f80);
    }
    memset(input.st, 0, sizeof input.st);
    input.fcw = 0x37f;
    input.fsw = 0;
    input.valid = 0;
    if (uses & USES_X87) {
        r = rnd();
        for (unsigned n = 0; n < 8; n++)
            input.st[n] = extended();
        input.fcw = (uint16_t)(0x7f | (r & 0xc00) | ((r >> 12 & 3) ? 0x300 : (r >> 14 & 1) << 9));
        if ((r >> 20 & 3) == 0)
            input.fcw &= (uint16_t) ~(r >> 22 & (uses & NO_UNDERFLOW ? 47 : 63));
        input.fsw = (uint16_t)(r >> 30 & 0x3800);
        input.valid = (uint8_t)((r >> 44 & 1) ? 0xff : r >> 46);
    }
}

static bool same_stack(const struct state *ours)
{
    bool same = true;
    for (unsigned n = 0; n < 8; n++)
        same &= host_out.st[n].m == ours->st[n].m && host_out.st[n].e == ours->st[n].e;
    return same;
}

static bool same_results(const struct state *ours, unsigned undefined)
{
    uint64_t mask = (F_ARITH | F_D) & ~(uint64_t)undefined;
    if (host_out.vector != X_BP)
        mask = F_D; /* where it stopped is not where the mask was made for */
    return host_out.vector == ours->vector && host_out.rip == ours->rip &&
           !((host_out.flags ^ ours->flags) & mask) &&
           !memcmp(host_out.r, ours->r, sizeof ours->r) &&
           !memcmp(host_out.xmm, ours->xmm, sizeof ours->xmm) && same_stack(ours) &&
           host_out.fcw == ours->fcw && host_out.fsw == ours->fsw &&
           host_out.valid == ours->valid && host_out.mxcsr == ours->mxcsr &&
           !memcmp(host_data, our_data, DATA_SIZE);
}

static bool round_once(const struct template *all, size_t count, unsigned uses)
{
    uint64_t seed = random_state;
    struct code c = { host_code, 0 };
    unsigned undefined = make(&c, all, count, uses);
    /* The code changes under the CPU's blocks: this is what a device's write looks like. */
    memcpy(our_code, host_code, c.n);
    memory_written(guest.memory, CODE, c.n);
    for (unsigned n = 0; n < DATA_SIZE; n += 8) {
        uint64_t v = uses ? floating() : value();
        memcpy(host_data + n, &v, 8);
        memcpy(our_data + n, &v, 8);
    }
    make_input(uses);
    memset(host_out.st, 0, sizeof host_out.st);
    struct state ours;
    run_host();
    run_ours(&ours);
    bool same = same_results(&ours, undefined);
    if (!same)
        report(&c, &ours, seed);
    return same;
}

static int setup(void **state)
{
    (void)state;
    host_code = mmap((void *)CODE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    host_data = mmap((void *)DATA, DATA_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    our_code = aligned_alloc(4096, CODE_SIZE);
    our_data = aligned_alloc(4096, DATA_SIZE);
    if (host_code == MAP_FAILED || host_data == MAP_FAILED)
        return -1;
    guest = long_guest_new(3);
    memory_add_ram(guest.memory, CODE, CODE_SIZE, our_code, 0);
    memory_add_ram(guest.memory, DATA, DATA_SIZE, our_data, 0);
    long_guest_map(&guest, CODE, 7);
    for (unsigned n = 0; n < DATA_SIZE; n += 4096)
        long_guest_map(&guest, DATA + n, 7);
    static uint8_t stack[1 << 16];
    sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = sizeof stack }, NULL);
    const char *seed = getenv("PLATTER_SEED");
    random_state = seed && *seed != 'r' ? strtoull(seed, NULL, 0) : 0x9e3779b97f4a7c15;
    if (!random_state)
        random_state = 1;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    long_guest_free(&guest);
    free(our_code);
    free(our_data);
    return 0;
}

static void rounds(const struct template *all, size_t count, unsigned uses)
{
#ifdef __SANITIZE_ADDRESS__
    skip(); /* the shadow lies below 4 GiB, where wild addresses must hit nothing on the host */
#endif
    /* cmocka has put up handlers of its own for the time of a test. */
    static const int numbers[] = { SIGUSR1, SIGTRAP, SIGSEGV, SIGILL, SIGFPE, SIGBUS };
    for (unsigned n = 0; n < 6; n++)
        sigaction(
            numbers[n],
            &(struct sigaction){ .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK },
            NULL);
    const char *asked = getenv("PLATTER_ROUNDS");
    unsigned long n = asked ? strtoul(asked, NULL, 0) : 20000, bad = 0;
    while (n-- && bad < 5)
        bad += !round_once(all, count, uses);
    assert_int_equal(bad, 0);
}

/* Leaf 1's ECX or leaf 7's EBX; compilers do not know all the names. */
static bool cpuid_bit(unsigned leaf, unsigned bit)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(leaf, 0, &a, &b, &c, &d))
        return false;
    return (leaf == 1 ? c : b) >> bit & 1;
}

/* Without the feature the host is no judge: said, not hidden. */
static bool host_has(bool feature, const char *name)
{
    if (!feature)
        print_message("the host has no %s: nothing to compare with\n", name);
    return feature;
}

#define TEST(name, feature, text, uses)                                                       \
    static void test_##name(void **state)                                                     \
    {                                                                                         \
        (void)state;                                                                          \
        if (!host_has(feature, text))                                                         \
            skip();                                                                           \
        rounds(name##_templates, sizeof name##_templates / sizeof name##_templates[0], uses); \
    }

TEST(integer, true, "", 0)
TEST(bmi, cpuid_bit(7, 8), "BMI2", 0)
TEST(adx, cpuid_bit(7, 19) && cpuid_bit(1, 22), "ADX", 0)
TEST(mmx, true, "", USES_SIMD | USES_X87)
TEST(simd, cpuid_bit(1, 9), "SSSE3", USES_SIMD)
TEST(sse4, cpuid_bit(1, 20), "SSE4.2", USES_SIMD)
TEST(aes, cpuid_bit(1, 25) && cpuid_bit(1, 1), "AES", USES_SIMD)
TEST(sha, cpuid_bit(7, 29), "SHA", USES_SIMD)
TEST(x87, true, "", USES_X87)
TEST(remainder, true, "", USES_X87 | NO_UNDERFLOW)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_integer),   cmocka_unit_test(test_bmi),  cmocka_unit_test(test_adx),
        cmocka_unit_test(test_mmx),       cmocka_unit_test(test_simd), cmocka_unit_test(test_sse4),
        cmocka_unit_test(test_aes),       cmocka_unit_test(test_sha),  cmocka_unit_test(test_x87),
        cmocka_unit_test(test_remainder),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

#else

int main(void)
{
    return 0; /* needs an x86-64 host */
}

#endif
