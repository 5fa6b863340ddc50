/* Text that comes out of images must not drive the user's terminal, nor make up lines of its own. */
#ifndef BASE_TAME_H
#define BASE_TAME_H

#include <stddef.h>
#include <string.h>

/* Control characters become question marks, but for those in `keep`. NULL is fine. */
static inline void tame(char *text, const char *keep)
{
    for (; text && *text; text++)
        if (((unsigned char)*text < ' ' || *text == 0x7f) && !strchr(keep, *text))
            *text = '?';
}

#endif
