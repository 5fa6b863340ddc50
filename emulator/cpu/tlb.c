/* The slow half of memory accesses: page walks, devices, pages with code, accesses across pages. */
#include "block.h"
#include "memory_map.h"

void cpu_flush(struct cpu *cpu)
{
    memset(cpu->tlbs, 0xff, sizeof cpu->tlbs); /* all ones: a tag that no address has */
    block_forget_recent(cpu->blocks);
}

void cpu_flush_page(struct cpu *cpu, uint64_t address)
{
    for (unsigned mode = 0; mode < TLB_MODES; mode++)
        memset(&cpu->tlbs[mode][(address >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)], 0xff,
               sizeof(struct tlb_entry));
    block_forget_recent(cpu->blocks);
}

void cpu_set_tlb_mode(struct cpu *cpu, unsigned mode)
{
    cpu->tlb_mode = mode;
    cpu->tlb = cpu->tlbs[mode];
}

/* The entry of the address with the right for this access in it, or an exception. */
static struct tlb_entry *fill(struct cpu *cpu, uint64_t address, int access)
{
    struct tlb_entry *e = &cpu->tlb[(address >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)];
    uint64_t page = address & GUEST_PAGE_MASK;
    if ((e->tag[access] & (GUEST_PAGE_MASK | TLB_NONE)) == page)
        return e;
    unsigned rights = 0;
    uint64_t physical = cpu->guest->walk(cpu, address, access, cpu->tlb_mode, &rights);
    bool whole;
    const struct memory_region *region = memory_find(cpu->memory, physical, &whole);
    physical &= GUEST_PAGE_MASK;
    bool direct = region && region->host && whole;
    for (int i = 0; i < 3; i++)
        e->tag[i] = rights & 1u << i ? page | (direct ? 0 : TLB_SLOW) : ~(uint64_t)0;
    e->physical = physical;
    e->add = 0;
    if (direct) {
        uint64_t offset = physical - region->start;
        e->add = (uintptr_t)region->host + offset - page;
        if (region->flags & MEMORY_ROM || atomic_load(&region->code[offset >> GUEST_PAGE_BITS]))
            e->tag[CPU_WRITE] |= TLB_SLOW;
    }
    return e;
}

uint64_t cpu_physical(struct cpu *cpu, uint64_t address, int access)
{
    return fill(cpu, address, access)->physical | (address & ~GUEST_PAGE_MASK);
}

void cpu_probe(struct cpu *cpu, uint64_t address, unsigned size, int access)
{
    fill(cpu, address, access);
    if ((address ^ (address + size - 1)) & GUEST_PAGE_MASK)
        fill(cpu, address + size - 1, access);
}

uint64_t cpu_load_slow(struct cpu *cpu, uint64_t address, unsigned size, int access)
{
    if ((address ^ (address + size - 1)) & GUEST_PAGE_MASK) {
        uint64_t value = 0;
        cpu_probe(cpu, address, size, access);
        for (unsigned i = 0; i < size; i++)
            value |= cpu_load_slow(cpu, address + i, 1, access) << (8 * i);
        return value;
    }
    const struct tlb_entry *e = fill(cpu, address, access);
    uint64_t value = 0;
    if (e->add)
        memcpy(&value, (const void *)(uintptr_t)(address + e->add), size);
    else
        value = memory_load(cpu->memory, e->physical | (address & ~GUEST_PAGE_MASK), size);
    return value;
}

/* Blocks of the written bytes go. When the running one is among them and goes on after this
 * instruction, the instruction is done again in a block of its own, so that what follows is read anew. */
static void code_store(struct cpu *cpu, uint64_t physical, unsigned size)
{
    struct block *block = cpu->running;
    if (block && block != &cpu->blocks->scratch && block->count > 1 &&
        block_overlaps(cpu, block, physical, size)) {
        cpu->r[IR_PC] = cpu_pc(cpu);
        cpu->single = true;
        block_drop(cpu, physical, size);
        siglongjmp(cpu->back, 2);
    }
    block_drop(cpu, physical, size);
    memory_code_written(cpu->memory, physical, cpu);
}

void cpu_store_slow(struct cpu *cpu, uint64_t address, unsigned size, uint64_t value)
{
    if ((address ^ (address + size - 1)) & GUEST_PAGE_MASK) {
        cpu_probe(cpu, address, size, CPU_WRITE);
        for (unsigned i = 0; i < size; i++)
            cpu_store_slow(cpu, address + i, 1, value >> (8 * i));
        return;
    }
    const struct tlb_entry *e = fill(cpu, address, CPU_WRITE);
    uint64_t physical = e->physical | (address & ~GUEST_PAGE_MASK);
    if (!e->add) {
        memory_store(cpu->memory, physical, size, value);
        return;
    }
    if (e->tag[CPU_WRITE] & TLB_SLOW) {
        bool whole;
        const struct memory_region *region = memory_find(cpu->memory, physical, &whole);
        if (!region || region->flags & MEMORY_ROM)
            return;
        code_store(cpu, physical, size);
    }
    memcpy((void *)(uintptr_t)(address + e->add), &value, size);
}

void *cpu_host(struct cpu *cpu, uint64_t address, unsigned size)
{
    if (address & (size - 1) && (address ^ (address + size - 1)) & GUEST_PAGE_MASK)
        return NULL;
    const struct tlb_entry *e = fill(cpu, address, CPU_WRITE);
    if (e->tag[CPU_READ] & TLB_NONE || !e->add)
        return NULL;
    if (e->tag[CPU_WRITE] & TLB_SLOW) {
        bool whole;
        uint64_t physical = e->physical | (address & ~GUEST_PAGE_MASK);
        const struct memory_region *region = memory_find(cpu->memory, physical, &whole);
        if (!region || region->flags & MEMORY_ROM)
            return NULL;
        code_store(cpu, physical, size);
    }
    return (void *)(uintptr_t)(address + e->add);
}
