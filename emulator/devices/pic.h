/* The pair of 8259A interrupt controllers of a PC. Source: Intel 8259A data sheet; ICH9 data sheet, section 13.4 (ELCR). */
#ifndef DEVICES_PIC_H
#define DEVICES_PIC_H

#include <stdbool.h>
#include <stdint.h>

struct irq;
struct pic;
struct ports;

/* `out` is the wire to the CPU. Ports 20, 21, a0, a1, 4d0, 4d1. */
struct pic *pic_new(struct ports *ports, const struct irq *out);
void pic_free(struct pic *p);
void pic_reset(struct pic *p);
void pic_set(struct pic *p, unsigned line, bool up); /* 0 to 15 */
uint8_t pic_acknowledge(struct pic *p); /* the vector; a spurious one when the line went away */

#endif
