/* Who gets what is typed. With mux=on several share a stream: Ctrl-a begins a command to the emulator itself. */
#include <string.h>

#include "base/cleanup.h"
#include "base/macros.h"
#include "internal.h"

enum { ESCAPE = 1 /* Ctrl-a */ };

static const char help[] =
    "\r\n"
    "Ctrl-a h    this text\r\n"
    "Ctrl-a x    quit the emulator\r\n"
    "Ctrl-a c    go to the next user: the guest's serial port, the monitor\r\n"
    "Ctrl-a b    send a break\r\n"
    "Ctrl-a Ctrl-a    send Ctrl-a\r\n";

static const struct chardev_user *listener(struct chardev *c)
{
    return c->taken[c->focus] ? &c->users[c->focus] : NULL;
}

static size_t room_of(const struct chardev_user *u)
{
    return !u || !u->room ? SIZE_MAX : u->room(u->opaque);
}

static void give(const struct chardev_user *u, const uint8_t *data, size_t length)
{
    if (u && u->input)
        u->input(u->opaque, data, length);
}

static void event(const struct chardev_user *u, enum chardev_event what)
{
    if (u && u->event)
        u->event(u->opaque, what);
}

static void next_user(struct chardev *c)
{
    for (unsigned i = 1; i < CHARDEV_USERS; i++) {
        unsigned n = (c->focus + i) % CHARDEV_USERS;
        if (c->taken[n]) {
            c->focus = n;
            event(&c->users[n], CHARDEV_OPENED);
            return;
        }
    }
}

static void command(struct chardev *c, uint8_t key)
{
    switch (key) {
    case 'h':
    case '?':
        chardev_put(c, help, sizeof(help) - 1);
        break;
    case 'x':
        chardev_quit();
        break;
    case 'c':
        next_user(c);
        break;
    case 'b':
        event(listener(c), CHARDEV_BREAK);
        break;
    case ESCAPE:
        give(listener(c), &key, 1);
        break;
    default:
        break; /* as it was never typed */
    }
}

static void deliver_mux(struct chardev *c)
{
    while (c->input_len > 0) {
        uint8_t key = c->input[c->input_at];
        if (!c->escape && key != ESCAPE && room_of(listener(c)) == 0)
            return;
        c->input_at++;
        c->input_len--;
        if (c->escape) {
            c->escape = false;
            command(c, key);
        } else if (key == ESCAPE) {
            c->escape = true;
        } else {
            give(listener(c), &key, 1);
        }
    }
}

void chardev_deliver(struct chardev *c)
{
    LOCK_SCOPE(dispatch_lock());

    if (c->o.mux) {
        deliver_mux(c);
        return;
    }
    while (c->input_len > 0) {
        size_t run = MIN(room_of(listener(c)), c->input_len);
        if (run == 0)
            return;
        give(listener(c), c->input + c->input_at, run);
        c->input_at += run;
        c->input_len -= run;
    }
}

void chardev_tell(struct chardev *c, enum chardev_event what)
{
    LOCK_SCOPE(dispatch_lock());
    for (unsigned i = 0; i < CHARDEV_USERS; i++)
        if (c->taken[i])
            event(&c->users[i], what);
}
