/* The slow half of memory accesses: page walks, devices, pages with code, accesses across pages. */
#include "block.h"
#include "memory_map.h"

static void empty(struct cpu *cpu, unsigned which)
{
    struct tlb_filled *f = &cpu->filled[which];
    if (f->count > TLB_FILLED) {
        memset(cpu->tlbs, 0xff, sizeof cpu->tlbs); /* all ones: a tag that no address has */
        cpu->filled[0].count = cpu->filled[1].count = 0;
        return;
    }
    for (unsigned n = 0; n < f->count; n++)
        memset(&cpu->tlbs[f->at[n] >> TLB_BITS][f->at[n] & (TLB_SIZE - 1)], 0xff,
               sizeof(struct tlb_entry));
    f->count = 0;
}

void cpu_flush(struct cpu *cpu)
{
    empty(cpu, 0);
    empty(cpu, 1);
    memset(cpu->large, 0, sizeof cpu->large);
    cpu->huge = 0;
}

void cpu_flush_local(struct cpu *cpu)
{
    empty(cpu, 0);
}

void cpu_forget_map(struct cpu *cpu)
{
    memset(cpu->host_pages, 0xff, sizeof cpu->host_pages);
    cpu_flush(cpu);
}

/* Every entry of the large page around the address. */
static void flush_around(struct cpu *cpu, uint64_t address, unsigned bits)
{
    for (unsigned mode = 0; mode < TLB_MODES; mode++) {
        for (unsigned n = 0; n < TLB_SIZE; n++) {
            struct tlb_entry *e = &cpu->tlbs[mode][n];
            for (unsigned k = 0; k < 3; k++) {
                if (!((e->tag[k] ^ address) >> bits)) {
                    memset(e, 0xff, sizeof *e);
                    break;
                }
            }
        }
    }
}

void cpu_flush_page(struct cpu *cpu, uint64_t address)
{
    if (cpu->huge >> (address >> 30 & 63) & 1) {
        flush_around(cpu, address, 30);
        return;
    }
    if (cpu->large[address >> 27 & 15] >> (address >> 21 & 63) & 1) {
        flush_around(cpu, address, 22);
        return;
    }
    for (unsigned mode = 0; mode < TLB_MODES; mode++)
        memset(&cpu->tlbs[mode][(address >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)], 0xff,
               sizeof(struct tlb_entry));
}

void cpu_protect(struct cpu *cpu, uint64_t physical)
{
    for (unsigned mode = 0; mode < TLB_MODES; mode++) {
        for (unsigned i = 0; i < TLB_SIZE; i++) {
            if (cpu->tlb_physical[mode][i] == (physical & GUEST_PAGE_MASK))
                cpu->tlbs[mode][i].tag[CPU_WRITE] |= TLB_SLOW;
        }
    }
}

void cpu_set_tlb_mode(struct cpu *cpu, unsigned mode)
{
    cpu->tlb_mode = mode;
    cpu->tlb = cpu->tlbs[mode];
}

static const struct host_page *host_page(struct cpu *cpu, uint64_t physical)
{
    uint64_t page = physical & GUEST_PAGE_MASK;
    struct host_page *h = &cpu->host_pages[(physical >> GUEST_PAGE_BITS) & (HOST_PAGES - 1)];
    if (h->page == page)
        return h;
    bool whole;
    const struct memory_region *region = memory_find(cpu->memory, physical, &whole);
    bool direct = region && region->host && whole;
    *h = (struct host_page){ page, direct ? region->host + (page - region->start) : NULL, region };
    return h;
}

uint8_t *cpu_ram(struct cpu *cpu, uint64_t physical, bool write)
{
    const struct host_page *h = host_page(cpu, physical);
    if (!h->host || (write && h->region->flags & MEMORY_ROM))
        return NULL;
    return h->host + (physical & ~GUEST_PAGE_MASK);
}

static struct tlb_entry *slot(struct cpu *cpu, uint64_t address)
{
    return &cpu->tlb[(address >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)];
}

static uint64_t physical_of(struct cpu *cpu, uint64_t address)
{
    unsigned n = (unsigned)(address >> GUEST_PAGE_BITS) & (TLB_SIZE - 1);
    return cpu->tlb_physical[cpu->tlb_mode][n] | (address & ~GUEST_PAGE_MASK);
}

/* The entry is about to be filled: flushes will have to know. */
static void note(struct cpu *cpu, uint64_t address, unsigned rights)
{
    struct tlb_filled *f = &cpu->filled[rights & CPU_GLOBAL ? 1 : 0];
    unsigned n = (unsigned)(address >> GUEST_PAGE_BITS) & (TLB_SIZE - 1);
    if (f->count < TLB_FILLED)
        f->at[f->count] = (uint16_t)(cpu->tlb_mode << TLB_BITS | n);
    f->count += f->count <= TLB_FILLED;
    if (rights & CPU_LARGE) /* may be 4 MiB: both halves */
        cpu->large[address >> 27 & 15] |= (uint64_t)3 << (address >> 21 & 62);
    if (rights & CPU_HUGE)
        cpu->huge |= (uint64_t)1 << (address >> 30 & 63);
}

/* The entry of the address with the right for this access in it, or an exception. */
static struct tlb_entry *fill(struct cpu *cpu, uint64_t address, int access)
{
    struct tlb_entry *e = slot(cpu, address);
    uint64_t page = address & GUEST_PAGE_MASK;
    if ((e->tag[access] & (GUEST_PAGE_MASK | TLB_NONE)) == page)
        return e;
    unsigned rights = 0;
    uint64_t physical = cpu->guest->walk(cpu, address, access, cpu->tlb_mode, &rights);
    const struct host_page *h = host_page(cpu, physical);
    note(cpu, address, rights);
    for (int i = 0; i < 3; i++)
        e->tag[i] = rights & 1u << i ? page | (h->host ? 0 : TLB_SLOW) : ~(uint64_t)0;
    cpu->tlb_physical[cpu->tlb_mode][(address >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)] =
        physical & GUEST_PAGE_MASK;
    e->add = 0;
    if (h->host) {
        e->add = (uintptr_t)h->host - page;
        uint64_t offset = (physical & GUEST_PAGE_MASK) - h->region->start;
        if (h->region->flags & MEMORY_ROM ||
            atomic_load(&h->region->code[offset >> GUEST_PAGE_BITS]))
            e->tag[CPU_WRITE] |= TLB_SLOW;
    }
    return e;
}

uint64_t cpu_physical(struct cpu *cpu, uint64_t address, int access)
{
    fill(cpu, address, access);
    return physical_of(cpu, address);
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
        value = memory_load(cpu->memory, physical_of(cpu, address), size);
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
    uint64_t physical = physical_of(cpu, address);
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
        uint64_t physical = physical_of(cpu, address);
        const struct memory_region *region = memory_find(cpu->memory, physical, &whole);
        if (!region || region->flags & MEMORY_ROM)
            return NULL;
        code_store(cpu, physical, size);
    }
    return (void *)(uintptr_t)(address + e->add);
}
