/* Arithmetic on single and double numbers under MXCSR: values, flags, and #XM. */
#ifndef X86_SSEMATH_H
#define X86_SSEMATH_H

#include "f80.h"
#include "sse.h"

enum { MXCSR_DAZ = 0x40, MXCSR_FTZ = 0x8000 };

struct sse_math {
    uint32_t csr;
    unsigned rounding, flags;
};

/* May the instruction be executed at all? */
struct sse_math math_begin(struct x86 *c);
/* Flags into MXCSR; raises what is not masked, before anything is written. */
void math_end(struct x86 *c, const struct sse_math *m);

/* op as the opcode: 51 root (of b), 58 add, 59 multiply, 5C subtract, 5D smaller, 5E divide, 5F larger. */
float math_single(struct sse_math *m, unsigned op, float a, float b);
double math_double(struct sse_math *m, unsigned op, double a, double b);
/* -1, 0, 1, or 2: unordered. */
int math_compare_single(struct sse_math *m, float a, float b, bool quiet);
int math_compare_double(struct sse_math *m, double a, double b, bool quiet);

double math_widen(struct sse_math *m, float v);
float math_narrow(struct sse_math *m, double v);
float math_single_of(struct sse_math *m, int64_t v);
double math_double_of(struct sse_math *m, int64_t v);
uint64_t math_int_single(struct sse_math *m, float v, unsigned size, bool cut);
uint64_t math_int_double(struct sse_math *m, double v, unsigned size, bool cut);
float math_round_single(struct sse_math *m, float v, bool exact);
double math_round_double(struct sse_math *m, double v, bool exact);

#endif
