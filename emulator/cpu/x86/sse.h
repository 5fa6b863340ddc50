/* What the SSE files share. */
#ifndef X86_SSE_H
#define X86_SSE_H

#include "helpers.h"

/* #UD or #NM where SSE (or MMX) may not be used. */
void simd_available(struct x86 *c, bool mmx);
union xmm simd_load(struct x86 *c, uint64_t at, unsigned size);
void simd_store(struct x86 *c, uint64_t at, unsigned size, const union xmm *v);
union xmm simd_rm(struct x86 *c, const struct insn *i, unsigned size, bool aligned);

/* a = a op b on the first `size` bytes; pure. False: no such operation. */
bool simd_packed(uint16_t op, union xmm *a, const union xmm *b, unsigned size);

x86_helper *sse_find_float(const struct insn *i);
/* Maps 0F 38 and 0F 3A. */
x86_helper *sse4_find(struct x86 *c, const struct insn *i);
x86_helper *crypto_find(struct x86 *c, const struct insn *i);
uint64_t x86_xinuse(const struct x86 *c);
x86_helper h_fxsave, h_mxcsr, h_xsave, h_pcmpstr;

#endif
