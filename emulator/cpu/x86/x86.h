/* An x86-64 CPU in software: what the machine sees of it.
 *
 *     struct x86 *cpu = x86_new(memory, &bus, machine, "max", 0, &err);
 *     x86_reset(cpu);                       // on its way to FFFF:FFF0, as after power on
 *     thread: while (x86_run(cpu) != CPU_EXIT_STOPPED) reset the machine
 *
 * Each CPU is run by a thread of its own and sleeps inside x86_run() while it is halted. The other CPUs are put
 * to wait for INIT and SIPI by x86_wait(). Before a CPU's own state is touched from outside it must
 * have left x86_run(); cpu_stop() asks for that.
 */
#ifndef X86_X86_H
#define X86_X86_H

#include "cpu/cpu.h"

struct error;
struct x86;

/* What the CPU asks of the machine, on the CPU's own thread, with no lock held. A NULL entry means:
 * nobody there (ones are read, no interrupt, an unknown register faults). */
struct x86_bus {
    uint32_t (*in)(void *machine, uint16_t port, unsigned size); /* 1, 2 or 4 */
    void (*out)(void *machine, uint16_t port, unsigned size, uint32_t value);
    /* The interrupt is accepted: its vector (from the local APIC or the 8259), or -1 when it was
     * withdrawn. The machine sets the line anew with cpu_line(). */
    int (*acknowledge)(void *machine, unsigned cpu);
    /* Registers that the CPU does not know itself (local APIC base, x2APIC): 0, or -1 for #GP. */
    int (*read_msr)(void *machine, unsigned cpu, uint32_t msr, uint64_t *value);
    int (*write_msr)(void *machine, unsigned cpu, uint32_t msr, uint64_t value);
    /* CR8, the task priority: 0 to 15. */
    unsigned (*get_priority)(void *machine, unsigned cpu);
    void (*set_priority)(void *machine, unsigned cpu, unsigned priority);
    /* Nanoseconds since some start, for the time stamp counter; NULL: CLOCK_MONOTONIC. */
    uint64_t (*now)(void *machine);
};

/* `model` as QEMU's -cpu takes it: "MODEL,+feature,-feature,feature=on|off"; NULL: "max". The number is the local APIC's too. NULL and an error when the model is unknown. */
struct x86 *x86_new(struct memory *memory, const struct x86_bus *bus, void *machine,
                    const char *model, unsigned number, struct error **err);
void x86_free(struct x86 *x86);
/* For a list: the name of model or feature number n, NULL behind the last one. */
const char *x86_model_name(size_t n, const char **brand);
const char *x86_feature_name(size_t n);
/* How many CPUs CPUID speaks of; 1 unless said. */
void x86_set_topology(struct x86 *x86, unsigned cpus);
void x86_reset(struct x86 *x86); /* power on */
void x86_wait(struct x86 *x86);  /* halted, for INIT and SIPI: every CPU but the first */
enum cpu_exit x86_run(struct x86 *x86);
struct cpu *x86_cpu(struct x86 *x86); /* for cpu_stop(), cpu_line() */
/* The time stamp counter, on the CPU's own thread: for its local APIC's deadline. */
uint64_t x86_time_stamp(struct x86 *x86);

/* From any thread: what a local APIC hands on. */
void x86_nmi(struct x86 *x86);
void x86_init_signal(struct x86 *x86);
void x86_start(struct x86 *x86, uint8_t vector); /* SIPI: real mode at vector << 12 */

#endif
