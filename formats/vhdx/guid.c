/* GUIDs: those that the format knows, new ones, and as text. The first three numbers of one are little endian on disk
 * and big endian in text. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "vhdx_layout.h"

#define GUID(a, b, c, ...)                                                                       \
    {                                                                                            \
        {                                                                                        \
            (a) & 0xff, (a) >> 8 & 0xff, (a) >> 16 & 0xff, (a) >> 24 & 0xff, (b)&0xff, (b) >> 8, \
                (c)&0xff, (c) >> 8, __VA_ARGS__                                                  \
        }                                                                                        \
    }

const struct vhdx_guid vhdx_region_bat =
    GUID(0x2dc27766u, 0xf623, 0x4200, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08);
const struct vhdx_guid vhdx_region_metadata =
    GUID(0x8b7ca206u, 0x4790, 0x4b9a, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e);
const struct vhdx_guid vhdx_item_parameters =
    GUID(0xcaa16737u, 0xfa36, 0x4d43, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b);
const struct vhdx_guid vhdx_item_size =
    GUID(0x2fa54224u, 0xcd1b, 0x4876, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8);
const struct vhdx_guid vhdx_item_id =
    GUID(0xbeca12abu, 0xb2e6, 0x4523, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46);
const struct vhdx_guid vhdx_item_logical =
    GUID(0x8141bf1du, 0xa96f, 0x4709, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f);
const struct vhdx_guid vhdx_item_physical =
    GUID(0xcda348c7u, 0x445d, 0x4471, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56);
const struct vhdx_guid vhdx_item_parent =
    GUID(0xa8d35f2du, 0xb30b, 0x454d, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c);
const struct vhdx_guid vhdx_locator_type =
    GUID(0xb04aefb7u, 0xd19e, 0x4a81, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13);

/* Where on disk the bytes of the text's hexadecimal pairs are. */
static const uint8_t order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };

int vhdx_guid_new(struct vhdx_guid *out)
{
    if (getrandom(out->b, sizeof(out->b), 0) != (ssize_t)sizeof(out->b))
        return -EIO;
    out->b[7] = (out->b[7] & 0x0f) | 0x40; /* version 4: random */
    out->b[8] = (out->b[8] & 0x3f) | 0x80;
    return 0;
}

bool vhdx_guid_parse(const char *text, struct vhdx_guid *out)
{
    bool brace = *text == '{';

    text += brace;
    for (int i = 0; i < 16; i++) {
        if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
            return false;
        if (!isxdigit((unsigned char)text[0]) || !isxdigit((unsigned char)text[1]))
            return false;
        char pair[3] = { text[0], text[1], 0 };
        out->b[order[i]] = (uint8_t)strtoul(pair, NULL, 16);
        text += 2;
    }
    return brace ? text[0] == '}' && !text[1] : !text[0];
}

void vhdx_guid_print(const struct vhdx_guid *g, char out[VHDX_GUID_TEXT])
{
    char *at = out;

    *at++ = '{';
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        at += snprintf(at, 3, "%02x", g->b[order[i]]);
    }
    *at++ = '}';
    *at = 0;
}
