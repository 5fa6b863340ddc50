/* Making, resetting and signalling a CPU. */
#include "x86.h"

#include "base/error.h"
#include "models.h"
#include "state.h"
#include "system.h"

#include <errno.h>
#include <stdlib.h>

static uint64_t linear_pc(struct cpu *cpu, uint64_t pc)
{
    return cpu->mode & M_64 ? pc : (uint32_t)(cpu->r[BASE + CS] + pc);
}

static const struct cpu_guest guest = {
    .translate = x86_translate,
    .walk = x86_walk,
    .linear_pc = linear_pc,
    .deliver = x86_deliver,
    .attend = x86_attend,
};

struct x86 *x86_new(struct memory *memory, const struct x86_bus *bus, void *machine,
                    const char *model, unsigned number, struct error **err)
{
    struct x86_cpu_type type;
    if (x86_type_parse(&type, model, err))
        return NULL;
    struct x86 *c = calloc(1, sizeof *c);
    if (!c) {
        error_set(err, ENOMEM, "CPU %u: no memory left", number);
        return NULL;
    }
    c->cpu.guest = &guest;
    c->cpu.id = number;
    c->bus = bus;
    c->machine = machine;
    c->type = type;
    c->cpus = 1;
    if (cpu_init(&c->cpu, memory)) {
        error_set(err, ENOMEM, "CPU %u: no memory left", number);
        free(c);
        return NULL;
    }
    c->pat = 0x0007040600070406;
    c->misc_enable = 1; /* fast strings: Linux forgets ERMS without, though not FSRM */
    x86_reset(c);
    return c;
}

void x86_free(struct x86 *x86)
{
    if (!x86)
        return;
    cpu_fini(&x86->cpu);
    free(x86);
}

void x86_set_topology(struct x86 *x86, unsigned cpus)
{
    x86->cpus = cpus;
}

struct cpu *x86_cpu(struct x86 *x86)
{
    return &x86->cpu;
}

void x86_reset(struct x86 *c)
{
    memset(c->cpu.r, 0, sizeof c->cpu.r);
    c->cr0 = (c->cr0 & 0x60000000) | CR0_ET;
    c->cr2 = c->cr3 = c->cr4 = c->efer = 0;
    c->eflags = 0;
    c->gdt_base = c->idt_base = 0;
    c->gdt_limit = c->idt_limit = 0xffff;
    c->dr[6] = 0xffff0ff0;
    c->dr[7] = 0x400;
    c->delivering = c->shadow = c->trap = false;
    c->cpu.halted = false;
    flags_set_arith(c, 0);
    for (unsigned s = ES; s <= TR; s++)
        seg_set(c, s, 0, 0, 0xffff, s == LDTR ? 0x82 : s == TR ? 0x8b : 0x93);
    seg_set(c, CS, 0xf000, 0xffff0000, 0xffff, 0x9b);
    c->cpu.r[RDX] = x86_signature(&c->type);
    c->cpu.r[IR_PC] = 0xfff0;
    c->mxcsr = 0x1f80;
    c->fcw = 0x40;
    c->empty = 0;
    c->xcr0 = 1;
    c->apic_base = 0xfee00800 | (c->cpu.id ? 0 : 0x100);
    cpu_flush(&c->cpu);
    x86_update_mode(c);
}

void x86_wait(struct x86 *c)
{
    x86_reset(c);
    c->cpu.halted = true;
    c->waits = true;
}

enum cpu_exit x86_run(struct x86 *x86)
{
    return cpu_run(&x86->cpu);
}

uint64_t x86_time_stamp(struct x86 *x86)
{
    return x86_tsc(x86);
}

void x86_nmi(struct x86 *x86)
{
    cpu_request(&x86->cpu, CPU_REQUEST_NMI);
}

void x86_init_signal(struct x86 *x86)
{
    cpu_request(&x86->cpu, CPU_REQUEST_INIT);
}

void x86_start(struct x86 *x86, uint8_t vector)
{
    x86->cpu.start = vector;
    cpu_request(&x86->cpu, CPU_REQUEST_START);
}
