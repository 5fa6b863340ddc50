#include "helpers.h"

x86_helper *x86_find_sse(struct x86 *c, const struct insn *i)
{
    (void)c;
    (void)i;
    return NULL;
}
