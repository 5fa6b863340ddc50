#include "helpers.h"

void h_fwait(struct x86 *c, const struct insn *i)
{
    (void)i;
    if ((c->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
        x86_raise(c, X_NM);
}

x86_helper *x86_find_fpu(const struct insn *i)
{
    (void)i;
    return NULL;
}
