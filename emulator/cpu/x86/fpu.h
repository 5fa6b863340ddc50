/* x87 registers as the other files see them. */
#ifndef X86_FPU_H
#define X86_FPU_H

#include "helpers.h"

uint64_t mmx_get(const struct x86 *c, unsigned n);
void mmx_set(struct x86 *c, unsigned n, uint64_t value);

#endif
