/* Helpers of the system instructions. */
#ifndef X86_SYSTEM_H
#define X86_SYSTEM_H

#include "helpers.h"

x86_helper h_far, h_retf, h_syscall, h_sysret, h_sysenter, h_sysexit;
x86_helper h_mov_seg, h_mov_from_seg, h_push_seg, h_pop_seg, h_load_far, h_mov_cr, h_mov_dr,
    h_cpuid;
x86_helper h_msr, h_io, h_string_io, h_0f00, h_0f01, h_clts, h_invd, h_rdtsc, h_lar, h_arpl,
    h_rdpmc, h_fsgsbase, h_xsave, h_rdpid;

int x86_read_msr(struct x86 *c, uint32_t msr, uint64_t *value);
int x86_write_msr(struct x86 *c, uint32_t msr, uint64_t value);
uint64_t x86_tsc(struct x86 *c);

#endif
