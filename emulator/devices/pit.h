/* The 8254 timer with port 61: counter 0 is interrupt 0, counter 2 the speaker and what kernels calibrate by.
 * Source: Intel 8254 data sheet. */
#ifndef DEVICES_PIT_H
#define DEVICES_PIT_H

struct clock;
struct irq;
struct pit;
struct ports;

struct pit *pit_new(struct ports *ports, struct clock *clock, const struct irq *out);
void pit_free(struct pit *p);
void pit_reset(struct pit *p);

#endif
