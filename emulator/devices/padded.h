/* Text in a field of fixed size: left-justified, cut short or padded with blanks, without an end. */
#ifndef DEVICES_PADDED_H
#define DEVICES_PADDED_H

#include <stddef.h>
#include <stdint.h>

static inline void padded(uint8_t *to, size_t room, const char *from)
{
    for (size_t i = 0; i < room; i++)
        to[i] = *from ? (uint8_t)*from++ : ' ';
}

#endif
