/* As much telnet as a terminal needs: bytes as they are, the guest echoes. RFC 854, 856 to 858. */
#include "internal.h"

enum { SE = 240, BREAK = 243, SB = 250, WILL = 251, WONT = 252, DO = 253, DONT = 254, IAC = 255 };
enum { BINARY = 0, ECHO_ = 1, NO_GO_AHEAD = 3 };
enum { TEXT, COMMAND, OPTION, WITHIN, WITHIN_COMMAND };

void telnet_greet(struct chardev *c)
{
    static const uint8_t hello[] = {
        IAC, WILL, ECHO_, IAC, WILL, NO_GO_AHEAD, IAC, WILL, BINARY, IAC, DO, BINARY,
    };
    chardev_put(c, hello, sizeof(hello));
}

static unsigned command(struct chardev *c, uint8_t byte)
{
    if (byte == BREAK)
        chardev_tell(c, CHARDEV_BREAK);
    return byte == SB ? WITHIN : byte >= WILL && byte <= DONT ? OPTION : TEXT;
}

size_t telnet_filter(struct chardev *c, uint8_t *data, size_t length)
{
    size_t to = 0;

    for (size_t i = 0; i < length; i++) {
        uint8_t byte = data[i];
        switch (c->telnet) {
        case TEXT:
            if (byte == IAC)
                c->telnet = COMMAND;
            else
                data[to++] = byte;
            break;
        case COMMAND:
            if (byte == IAC)
                data[to++] = byte;
            c->telnet = byte == IAC ? TEXT : command(c, byte);
            break;
        case OPTION:
            c->telnet = TEXT;
            break;
        case WITHIN:
            c->telnet = byte == IAC ? WITHIN_COMMAND : WITHIN;
            break;
        default:
            c->telnet = byte == SE ? TEXT : WITHIN;
        }
    }
    return to;
}
