/* FXSAVE, XSAVE and MXCSR. */
#include "fpu.h"
#include "sse.h"

enum { MXCSR_MASK = 0xffff };

static void save_x87(struct x86 *c, uint64_t at)
{
    cpu_store(&c->cpu, at, 2, c->fcw);
    cpu_store(&c->cpu, at + 2, 2, fpu_status(c));
    cpu_store(&c->cpu, at + 4, 2, (uint8_t)~c->empty);
    cpu_store(&c->cpu, at + 6, 2, c->fop);
    cpu_store(&c->cpu, at + 8, 8, c->fip);
    cpu_store(&c->cpu, at + 16, 8, c->fdp);
    for (unsigned n = 0; n < 8; n++) {
        const struct f80 *v = &c->st[(c->top + n) & 7];
        cpu_store(&c->cpu, at + 32 + 16 * n, 8, v->m);
        cpu_store(&c->cpu, at + 40 + 16 * n, 8, v->e);
    }
}

static void load_x87(struct x86 *c, uint64_t at)
{
    c->fcw = (uint16_t)cpu_load(&c->cpu, at, 2);
    c->fsw = (uint16_t)cpu_load(&c->cpu, at + 2, 2);
    c->top = c->fsw >> 11 & 7;
    c->empty = (uint8_t)~cpu_load(&c->cpu, at + 4, 1);
    c->fop = (uint16_t)cpu_load(&c->cpu, at + 6, 2);
    c->fip = cpu_load(&c->cpu, at + 8, 8);
    c->fdp = cpu_load(&c->cpu, at + 16, 8);
    for (unsigned n = 0; n < 8; n++) {
        c->st[(c->top + n) & 7] = (struct f80){ cpu_load(&c->cpu, at + 32 + 16 * n, 8),
                                                (uint16_t)cpu_load(&c->cpu, at + 40 + 16 * n, 2) };
    }
}

static void save_sse(struct x86 *c, uint64_t at)
{
    for (unsigned n = 0; n < (c->cpu.mode & M_64 ? 16u : 8u); n++)
        simd_store(c, at + 160 + 16 * n, 16, &c->xmm[n]);
}

static void load_sse(struct x86 *c, uint64_t at)
{
    for (unsigned n = 0; n < (c->cpu.mode & M_64 ? 16u : 8u); n++)
        c->xmm[n] = simd_load(c, at + 160 + 16 * n, 16);
}

static void available(struct x86 *c)
{
    if (c->cr0 & (CR0_EM | CR0_TS))
        x86_raise(c, X_NM);
}

static void load_mxcsr(struct x86 *c, uint64_t v)
{
    if (v & ~(uint64_t)MXCSR_MASK)
        x86_raise_code(c, X_GP, 0);
    c->mxcsr = (uint32_t)v;
}

void h_fxsave(struct x86 *c, const struct insn *i)
{
    available(c);
    uint64_t at = ea(c, i);
    if (at & 15)
        x86_raise_code(c, X_GP, 0);
    cpu_probe(&c->cpu, at, 512, group(i) ? CPU_READ : CPU_WRITE);
    if (group(i)) {
        load_mxcsr(c, cpu_load(&c->cpu, at + 24, 4));
        load_x87(c, at);
        load_sse(c, at);
    } else {
        save_x87(c, at);
        cpu_store(&c->cpu, at + 24, 8, c->mxcsr | (uint64_t)MXCSR_MASK << 32);
        save_sse(c, at);
    }
}

void h_mxcsr(struct x86 *c, const struct insn *i)
{
    simd_available(c, false);
    uint64_t at = ea(c, i);
    if (group(i) == 2)
        load_mxcsr(c, cpu_load(&c->cpu, at, 4));
    else
        cpu_store(&c->cpu, at, 4, c->mxcsr);
}

static bool plain_x87(const struct x86 *c)
{
    return c->fcw == 0x37f && !c->fsw && !c->top && c->empty == 0xff;
}

/* Components that are not as after a reset. */
uint64_t x86_xinuse(const struct x86 *c)
{
    static const uint8_t zero[sizeof c->xmm];
    return (plain_x87(c) ? 0 : 1) | (memcmp((const uint8_t *)c->xmm, zero, sizeof zero) ? 2 : 0);
}

static void xrstor(struct x86 *c, uint64_t at, uint64_t what)
{
    uint64_t v = cpu_load(&c->cpu, at + 512, 8), compact = cpu_load(&c->cpu, at + 520, 8);
    bool compacted = compact >> 63 && has(c, FEATURE_XSAVEC);
    if (v & ~c->xcr0 || cpu_load(&c->cpu, at + 528, 8) ||
        (compacted ? (compact << 1 >> 1) & ~c->xcr0 || v & ~compact : compact))
        x86_raise_code(c, X_GP, 0);
    if (compacted ? what & v & 2 : what & 2)
        load_mxcsr(c, cpu_load(&c->cpu, at + 24, 4));
    else if (what & 2)
        c->mxcsr = 0x1f80;
    if (what & v & 1) {
        load_x87(c, at);
    } else if (what & 1) {
        fpu_init(c);
        memset(c->st, 0, sizeof c->st);
    }
    if (what & v & 2)
        load_sse(c, at);
    else if (what & 2)
        memset(c->xmm, 0, sizeof c->xmm);
}

/* XSAVE, XRSTOR, XSAVEOPT, XSAVEC: x87 and SSE are all there is, so both formats look the same. */
void h_xsave(struct x86 *c, const struct insn *i)
{
    if (!(c->cr4 & CR4_OSXSAVE))
        x86_raise(c, X_UD);
    if (c->cr0 & CR0_TS)
        x86_raise(c, X_NM);
    bool restore = group(i) == 5, compact = i->op == MAP_0F + 0xc7, lean = group(i) == 6 || compact;
    uint64_t at = ea(c, i), what = c->xcr0 & (uint32_t)c->cpu.r[RAX];
    if (at & 63)
        x86_raise_code(c, X_GP, 0);
    cpu_probe(&c->cpu, at, 576, restore ? CPU_READ : CPU_WRITE);
    if (restore) {
        xrstor(c, at, what);
        return;
    }
    uint64_t used = x86_xinuse(c), old = cpu_load(&c->cpu, at + 512, 8);
    uint64_t saved = lean ? what & used : what;
    if (compact && c->mxcsr != 0x1f80)
        saved |= what & 2; /* MXCSR belongs to SSE here */
    if (saved & 1)
        save_x87(c, at);
    if (saved & 2)
        save_sse(c, at);
    if (compact ? saved & 2 : what & 2)
        cpu_store(&c->cpu, at + 24, 8, c->mxcsr | (uint64_t)MXCSR_MASK << 32);
    if (compact) {
        cpu_store(&c->cpu, at + 512, 8, saved);
        cpu_store(&c->cpu, at + 520, 8, what | (uint64_t)1 << 63);
    } else {
        cpu_store(&c->cpu, at + 512, 8, (old & ~what) | (what & used));
    }
}
