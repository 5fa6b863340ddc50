/* The few macros that every file wants. MIN and MAX evaluate each argument once. */
#ifndef BASE_MACROS_H
#define BASE_MACROS_H

#include <stddef.h>

#define MACROS_PASTE2_(a, b) a##b
#define MACROS_PASTE_(a, b)  MACROS_PASTE2_(a, b)
#define MACROS_PICK_(x, y, op, n)                                                             \
    ({                                                                                        \
        __auto_type MACROS_PASTE_(pick_x_, n) = (x);                                          \
        __auto_type MACROS_PASTE_(pick_y_, n) = (y);                                          \
        MACROS_PASTE_(pick_x_, n)                                                             \
        op MACROS_PASTE_(pick_y_, n) ? MACROS_PASTE_(pick_x_, n) : MACROS_PASTE_(pick_y_, n); \
    })

#undef MIN
#undef MAX
#define MIN(a, b) MACROS_PICK_(a, b, <, __COUNTER__)
#define MAX(a, b) MACROS_PICK_(a, b, >, __COUNTER__)

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#endif
