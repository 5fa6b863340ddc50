/* x87 registers as the other files see them. */
#ifndef X86_FPU_H
#define X86_FPU_H

#include "f80.h"
#include "helpers.h"

enum { C0 = 0x100, C1 = 0x200, C2 = 0x400, C3 = 0x4000 };

uint64_t mmx_get(const struct x86 *c, unsigned n);
void mmx_set(struct x86 *c, unsigned n, uint64_t value);
/* Any use of the MMX registers makes all of them valid. */
void mmx_touch(struct x86 *c);

static inline unsigned fpu_slot(const struct x86 *c, unsigned n)
{
    return (c->top + n) & 7;
}

/* Status word with TOP and the summary of what is pending. */
uint16_t fpu_status(const struct x86 *c);
void fpu_init(struct x86 *c);
/* #MF when an earlier instruction left an exception that is not masked. */
void fpu_pending(struct x86 *c);

struct f80_env fpu_env(const struct x86 *c);
/* Register n; an empty one is a stack fault. */
struct f80 fpu_get(struct x86 *c, struct f80_env *env, unsigned n);
void fpu_set(struct x86 *c, unsigned n, struct f80 v);
/* Notes what happened; false: the result may not be stored. memory: it is to go there. */
bool fpu_done(struct x86 *c, const struct f80_env *env, bool memory);
void fpu_push(struct x86 *c, struct f80_env *env, struct f80 v);
void fpu_pop(struct x86 *c);
void fpu_compare(struct x86 *c, struct f80_env *env, struct f80 a, struct f80 b, bool quiet,
                 unsigned pops);

/* D9 E0 to FF. */
void fpu_function(struct x86 *c, unsigned byte);
/* FLDENV and FNSTENV, FRSTOR and FNSAVE. */
void fpu_environment(struct x86 *c, const struct insn *i, uint64_t at, bool store);
void fpu_whole(struct x86 *c, const struct insn *i, uint64_t at, bool store);

#endif
