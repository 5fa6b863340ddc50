/* Arithmetic on the x87's 80-bit numbers in integers, exact to the last bit and flag. Pure. */
#ifndef X86_F80_H
#define X86_F80_H

#include <stdbool.h>
#include <stdint.h>

/* Significand (with its integer bit), sign and exponent. */
struct f80 {
    uint64_t m;
    uint16_t e;
};

/* Exceptions, where the status and control words and MXCSR have them. */
enum {
    FP_IE = 1,
    FP_DE = 2,
    FP_ZE = 4,
    FP_OE = 8,
    FP_UE = 16,
    FP_PE = 32,
    FP_ALL = 63,
    FP_SF = 64
};

struct f80_env {
    unsigned rounding;  /* as in the control word: nearest, down, up, to zero */
    unsigned precision; /* bits of the significand: 24, 53, 64 */
    unsigned mask;      /* exceptions that are masked */
    bool denormal;      /* an operand was denormal in the format it came from */
    unsigned flags;     /* out: what happened */
    bool up;            /* out: the result was rounded away from zero */
};

#define F80_NAN ((struct f80){ (uint64_t)3 << 62, 0xffff })
#define F80_ONE ((struct f80){ (uint64_t)1 << 63, 0x3fff })

bool f80_is_nan(struct f80 v);
bool f80_is_denormal(struct f80 v);
/* Of one or two operands that are no numbers: the one that goes on, made quiet. */
struct f80 f80_choose_nan(struct f80_env *env, struct f80 a, struct f80 b);

struct f80 f80_add(struct f80_env *env, struct f80 a, struct f80 b, bool subtract);
struct f80 f80_multiply(struct f80_env *env, struct f80 a, struct f80 b);
struct f80 f80_divide(struct f80_env *env, struct f80 a, struct f80 b);
struct f80 f80_root(struct f80_env *env, struct f80 v);
struct f80 f80_scale(struct f80_env *env, struct f80 v, struct f80 by);
/* The exponent as a number; *significand gets the rest. */
struct f80 f80_extract(struct f80_env *env, struct f80 v, struct f80 *significand);
/* a - q * b; *quotient: the lowest bits of q. *partial: not done yet. */
struct f80 f80_remainder(struct f80_env *env, struct f80 a, struct f80 b, bool nearest,
                         unsigned *quotient, bool *partial);
struct f80 f80_integral(struct f80_env *env, struct f80 v);

/* -1 less, 0 equal, 1 greater, 2 unordered. quiet: only signalling NaNs are an error. */
int f80_compare(struct f80_env *env, struct f80 a, struct f80 b, bool quiet);

struct f80 f80_from_int(int64_t v);
struct f80 f80_from_single(struct f80_env *env, uint32_t v);
struct f80 f80_from_double(struct f80_env *env, uint64_t v);
/* `size` bytes, two's complement; what does not fit is the smallest number and an error. */
uint64_t f80_to_int(struct f80_env *env, struct f80 v, unsigned size, bool cut);
uint32_t f80_to_single(struct f80_env *env, struct f80 v);
uint64_t f80_to_double(struct f80_env *env, struct f80 v);
/* Eighteen decimal digits and a sign, ten bytes. */
struct f80 f80_from_bcd(const uint8_t b[10]);
void f80_to_bcd(struct f80_env *env, struct f80 v, uint8_t b[10]);

#endif
