/* The keyboard controller: a PS/2 keyboard, and a mouse that never moves. Source: IBM PS/2 Hardware Interface Technical
 * Reference, keyboard and auxiliary device controller. */
#ifndef DEVICES_I8042_H
#define DEVICES_I8042_H

#include <stdint.h>

struct error;
struct i8042;
struct irq;
struct ports;

struct i8042_host {
    void *opaque;
    void (*reset)(void *opaque); /* the guest pulls the CPU's reset line */
};

struct i8042 *i8042_new(struct ports *ports, const struct irq *keyboard, const struct irq *mouse,
                        const struct i8042_host *host);
void i8042_free(struct i8042 *k);
void i8042_reset(struct i8042 *k);
/* "ctrl-alt-delete": pressed together, then let go. -EINVAL: an unknown key; -EBUSY: the guest takes none. */
int i8042_type(struct i8042 *k, const char *keys, struct error **err);

#endif
