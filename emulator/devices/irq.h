/* A wire that goes up and down: what a device pulls and an interrupt controller sees.
 *
 * Any thread may pull; the controller locks itself. A device may hold its own lock meanwhile, so a controller never
 * calls back into one.
 */
#ifndef DEVICES_IRQ_H
#define DEVICES_IRQ_H

#include <stdbool.h>
#include <stddef.h>

struct irq {
    void (*set)(void *opaque, unsigned line, bool up); /* NULL: leads nowhere */
    void *opaque;
    unsigned line;
};

static inline void irq_set(const struct irq *irq, bool up)
{
    if (irq->set)
        irq->set(irq->opaque, irq->line, up);
}

#endif
