/* A CPU in long mode, user privilege, with pages mapped onto themselves. Exceptions end the run. */
#ifndef LONG_GUEST_H
#define LONG_GUEST_H

#include "x86/state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

static struct cpu_guest caught_guest;

static void caught(struct cpu *cpu)
{
    cpu->reset = true;
}

struct long_guest {
    struct memory *memory;
    struct x86 *cpu;
    uint64_t *tables;
    unsigned used; /* pages of tables */
};

/* Maps a page onto itself; the bits go into its entry. */
static inline void long_guest_map(struct long_guest *g, uint64_t page, uint64_t bits)
{
    uint64_t *table = g->tables;
    for (unsigned level = 3;; level--) {
        uint64_t *entry = &table[page >> (12 + 9 * level) & 511];
        if (!level) {
            *entry = page | bits;
            return;
        }
        if (!*entry)
            *entry = (0x4000 + 4096 * (uint64_t)g->used++) | 7;
        table = g->tables + ((*entry & ~(uint64_t)4095) - 0x4000) / 8;
    }
}

static const struct x86_bus no_bus;

static inline struct long_guest long_guest_new(unsigned cpl)
{
    struct long_guest g = { .memory = memory_new() };
    g.tables = aligned_alloc(4096, 16 * 4096);
    memset(g.tables, 0, 16 * 4096);
    assert_int_equal(memory_add_ram(g.memory, 0x4000, 16 * 4096, g.tables, 0), 0);
    g.cpu = x86_new(g.memory, &no_bus, NULL, "max", 0, NULL);
    assert_non_null(g.cpu);
    g.used = 1;
    struct x86 *c = g.cpu;
    caught_guest = *c->cpu.guest;
    caught_guest.deliver = caught;
    c->cpu.guest = &caught_guest;
    c->cr0 = CR0_PG | CR0_PE | CR0_NE | CR0_ET | CR0_MP | CR0_WP;
    c->cr3 = 0x4000;
    c->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMM;
    c->efer = EFER_LMA | EFER_LME;
    c->idt_limit = 0;
    c->fcw = 0x37f;
    c->empty = 0xff;
    seg_set(c, SS, 0x10, 0, 0xffffffff, 0xc093 | cpl << 5);
    seg_set(c, DS, 0x10, 0, 0xffffffff, 0xc093 | cpl << 5);
    seg_set(c, ES, 0x10, 0, 0xffffffff, 0xc093 | cpl << 5);
    seg_set(c, CS, 0x08, 0, 0xffffffff, 0xa09b | cpl << 5);
    return g;
}

static inline void long_guest_free(struct long_guest *g)
{
    x86_free(g->cpu);
    memory_free(g->memory);
    free(g->tables);
}

#endif
