/* What the monitor shows of the machine. */
#include "q35.h"

#include "base/strbuf.h"
#include "x86/state.h"

#include <inttypes.h>
#include <stdio.h>

static void general(const struct x86 *c, struct strbuf *text)
{
    static const char names[16][4] = { "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
                                       "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15" };
    static const uint8_t order[16] = { 0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15 };
    for (unsigned i = 0; i < 16; i++)
        strbuf_addf(text, "%s=%016" PRIx64 "%c", names[order[i]], c->cpu.r[order[i]],
                    i % 4 == 3 ? '\n' : ' ');
}

void q35_registers(struct machine *m, unsigned cpu, struct strbuf *text)
{
    static const char names[8][5] = { "ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR" };
    struct x86 *c = q35_of(m)->cpus[cpu];
    strbuf_addf(text, "\nCPU#%u\n", cpu);
    general(c, text);
    strbuf_addf(text, "RIP=%016" PRIx64 " RFL=%08" PRIx64 " CPL=%u HLT=%d\n", c->cpu.r[IR_PC],
                flags_all(c), c->cpl, c->cpu.halted);
    for (unsigned s = ES; s <= TR; s++) {
        uint64_t base = s <= GS ? c->cpu.r[BASE + s] : c->base[s];
        strbuf_addf(text, "%-3s=%04x %016" PRIx64 " %08x %04x\n", names[s], c->seg[s].selector,
                    base, c->seg[s].limit, c->seg[s].attr);
    }
    strbuf_addf(text, "GDT=     %016" PRIx64 " %08x\n", c->gdt_base, c->gdt_limit);
    strbuf_addf(text, "IDT=     %016" PRIx64 " %08x\n", c->idt_base, c->idt_limit);
    strbuf_addf(text, "CR0=%08" PRIx64 " CR2=%016" PRIx64 " CR3=%016" PRIx64 " CR4=%08" PRIx64 "\n",
                c->cr0, c->cr2, c->cr3, c->cr4);
    strbuf_addf(text, "EFER=%016" PRIx64 "\n", c->efer);
}

static void range(struct strbuf *text, uint64_t start, uint64_t size, const char *what)
{
    if (size)
        strbuf_addf(text, "  %016" PRIx64 "-%016" PRIx64 " %s\n", start, start + size - 1, what);
}

void q35_memory_tree(struct machine *m, struct strbuf *text)
{
    const struct q35 *q = q35_of(m);
    uint16_t port;
    uint32_t size;
    strbuf_add(text, "memory\n");
    range(text, 0, q->low, "RAM");
    for (unsigned n = 0; n < Q35_PAM; n++) {
        static const char *const how[] = { "firmware", "RAM, read-only",
                                           "firmware, writes to RAM" };
        const struct q35_piece *p = &q->bridge.pieces[n];
        if (p->pam < 3)
            range(text, n < Q35_PAM - 1 ? 0xc0000 + n * 0x4000 : 0xf0000,
                  n < Q35_PAM - 1 ? 0x4000 : 0x10000, how[p->pam]);
    }
    if (q->bridge.ecam)
        range(text, q->bridge.ecam, 256 << 20, "PCI Express configuration");
    range(text, IOAPIC_BASE, IOAPIC_SIZE, "I/O APIC");
    range(text, q->lpc.rcba, q->lpc.rcba ? 0x4000 : 0, "chipset registers");
    range(text, LAPIC_BASE, LAPIC_SIZE, "local APIC");
    range(text, Q35_HIGH - q->firmware_size, q->firmware_size, "firmware");
    range(text, Q35_HIGH, q->high, "RAM");
    strbuf_add(text, "I/O\n");
    for (size_t i = 0; ports_at(q->ports, i, &port, &size) == 0; i++)
        range(text, port, size, "ports");
}

void machine_cpu_help(void)
{
    const char *brand, *name;
    printf("Available CPUs:\n");
    for (size_t n = 0; (name = x86_model_name(n, &brand)); n++)
        printf("x86 %-20s %s\n", name, brand ? brand : "");
    printf("\nRecognized CPUID flags:\n ");
    for (size_t n = 0; (name = x86_feature_name(n)); n++)
        printf(" %s", name);
    printf("\n");
}
