/* A 16550A serial port on a stream. Source: National Semiconductor PC16550D data sheet. */
#ifndef DEVICES_SERIAL_H
#define DEVICES_SERIAL_H

#include <stdint.h>

struct clock;
struct error;
struct irq;
struct ports;
struct serial;

/* `chardev` NULL: nobody at the other end. */
int serial_new(struct ports *ports, uint16_t port, struct clock *clock, const struct irq *out,
               const char *chardev, struct serial **serial, struct error **err);
void serial_free(struct serial *s);
void serial_reset(struct serial *s);

#endif
