/* Streams of bytes between the guest and the world: where a serial port or the monitor leads to.
 *
 * Threads: all backends share one thread that waits for input and calls `input` and `event`, with no lock held. Writes come
 * from any thread and never wait: what the other end does not take at once is kept, up to 64 KiB, then dropped.
 */
#ifndef CHARDEV_CHARDEV_H
#define CHARDEV_CHARDEV_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct chardev;
struct error;
struct opt_def;

enum chardev_event { CHARDEV_OPENED, CHARDEV_CLOSED, CHARDEV_BREAK };

struct chardev_user {
    void *opaque;
    /* How many bytes it takes now. 0: asked again after chardev_more. NULL: any number. */
    size_t (*room)(void *opaque);
    void (*input)(void *opaque, const uint8_t *data, size_t length);
    void (*event)(void *opaque, enum chardev_event event); /* may be NULL */
};

/* -chardev: {"backend": "socket", "id": ..., ...}. Kept until chardevs_close. */
int chardev_add(json_t *options, struct error **err);
/* -serial, -monitor: "stdio", "mon:stdio", "pty", "file:x", "unix:x,server=on", "chardev:id", "none" and "null"...; *name is
 * the chardev's id, NULL for "none". */
int chardev_add_legacy(const char *text, const char *id, const char **name, struct error **err);

/* The event comes from within when the other end is there already. One user each; a multiplexed one (mux=on) has several, Ctrl-a c goes from one to the next. */
int chardev_take(const char *name, const struct chardev_user *user, struct chardev **out,
                 struct error **err);
/* By the thread that took it, from outside of callbacks; afterwards none runs. `user` as it was taken. */
void chardev_release(struct chardev *c, const struct chardev_user *user);
void chardev_write(struct chardev *c, const void *data, size_t length);
void chardev_more(struct chardev *c); /* there is room again */

/* For -chardev help: the options of kind number i, its name and what it is; NULL past the last. */
const struct opt_def *chardev_kind_options(unsigned i, const char **name, const char **help);
/* For `info chardev`: a line about number i, to be freed; NULL past the last. */
char *chardev_describe(unsigned i);

/* From now on input is taken, and peers come: when all who listen are there. Later chardevs need it again. */
int chardevs_start(struct error **err);
/* What Ctrl-a x does, on the chardevs' thread. */
void chardevs_on_quit(void (*quit)(void *opaque), void *opaque);
/* Terminals as they were, what was written is out, sockets gone. */
void chardevs_close(void);

#endif
