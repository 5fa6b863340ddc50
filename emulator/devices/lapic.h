/* Local APICs, one for each CPU, and the messages between them, the I/O APIC and devices.
 *
 * Source: Intel SDM volume 3, chapter 10 (now 11). Threads: any. Registers by memory are those of the CPU that runs on the
 * calling thread. The host's functions come with a local APIC's lock held and must not call back; `eoi` comes without.
 */
#ifndef DEVICES_LAPIC_H
#define DEVICES_LAPIC_H

#include <stdbool.h>
#include <stdint.h>

struct clock;
struct lapics;

struct lapic_host {
    void *opaque;
    void (*line)(void *opaque, unsigned cpu, bool up);
    void (*nmi)(void *opaque, unsigned cpu);
    void (*init)(void *opaque, unsigned cpu);
    void (*start)(void *opaque, unsigned cpu, uint8_t vector);
    uint64_t (*tsc)(void *opaque, unsigned cpu); /* on the CPU's own thread: for its deadline */
    void (*eoi)(void *opaque, uint8_t vector);   /* of a level-triggered interrupt */
};

enum { LAPIC_BASE = 0xfee00000, LAPIC_SIZE = 0x1000 };

struct lapics *lapics_new(struct clock *clock, const struct lapic_host *host, unsigned cpus);
void lapics_free(struct lapics *all);
/* As after power on; `ready`: as firmware leaves them, with the 8259 and NMI on LINT0 and LINT1. */
void lapics_reset(struct lapics *all, bool ready);

extern const struct memory_io lapic_io; /* the opaque is struct lapics */
/* 0, or -1 when the CPU is to fault (or the register is another's). */
int lapic_read_msr(struct lapics *all, unsigned cpu, uint32_t msr, uint64_t *value);
int lapic_write_msr(struct lapics *all, unsigned cpu, uint32_t msr, uint64_t value);
unsigned lapic_priority(struct lapics *all, unsigned cpu);
void lapic_set_priority(struct lapics *all, unsigned cpu, unsigned priority);

/* The CPU takes its interrupt: a vector, LAPIC_NONE or LAPIC_FROM_PIC. */
enum { LAPIC_NONE = -1, LAPIC_FROM_PIC = -2 };
int lapic_acknowledge(struct lapics *all, unsigned cpu);

/* The 8259's output, which LINT0 of all sees. */
void lapics_pic(struct lapics *all, bool up);
/* A write to 0xFEExxxxx (section 10.11). */
void lapics_message(struct lapics *all, uint64_t address, uint32_t data);
/* From the I/O APIC: mode as in a redirection entry. */
void lapics_deliver(struct lapics *all, uint32_t destination, bool logical, unsigned mode,
                    uint8_t vector, bool level);

#endif
