/* The I/O APIC: 24 pins to messages for the local APICs. Source: Intel 82093AA data sheet, section 3; version 0x20 with an EOI
 * register as in the ICH9 data sheet, section 13.5. */
#ifndef DEVICES_IOAPIC_H
#define DEVICES_IOAPIC_H

#include <stdbool.h>
#include <stdint.h>

struct ioapic;
struct lapics;
struct memory_io;

enum { IOAPIC_BASE = 0xfec00000, IOAPIC_SIZE = 0x1000, IOAPIC_PINS = 24 };

struct ioapic *ioapic_new(struct lapics *lapics);
void ioapic_free(struct ioapic *a);
void ioapic_reset(struct ioapic *a);
void ioapic_set(struct ioapic *a, unsigned pin, bool up);
/* A CPU has ended this level-triggered vector. */
void ioapic_eoi(struct ioapic *a, uint8_t vector);

extern const struct memory_io ioapic_io; /* the opaque is struct ioapic */

#endif
