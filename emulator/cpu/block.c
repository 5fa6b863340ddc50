/* See block.h. */
#include "block.h"

#include "memory_map.h"

#include <stdlib.h>

enum { ARENA = 48 << 20 };

struct block_cache *block_cache_new(void)
{
    struct block_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return NULL;
    cache->size = ARENA;
    cache->arena = malloc(cache->size); /* untouched pages cost nothing */
    if (!cache->arena) {
        free(cache);
        return NULL;
    }
    return cache;
}

void block_cache_free(struct block_cache *cache)
{
    if (cache)
        free(cache->arena);
    free(cache);
}

static unsigned hash(uint64_t physical, uint64_t pc, uint32_t mode)
{
    uint64_t h = (physical ^ (pc << 7) ^ ((uint64_t)mode << 21)) * 0x9e3779b97f4a7c15u;
    return (unsigned)(h >> 50) & (BLOCK_HASH - 1);
}

static unsigned page_slot(uint64_t physical)
{
    return (unsigned)(physical >> GUEST_PAGE_BITS) & (BLOCK_PAGES - 1);
}

static bool in_page(const struct block *block, uint64_t page)
{
    return (block->physical & GUEST_PAGE_MASK) == page ||
           (block->physical2 && (block->physical2 & GUEST_PAGE_MASK) == page);
}

static void empty(struct block_cache *cache)
{
    memset(cache->hash, 0, sizeof cache->hash);
    memset(cache->pages, 0, sizeof cache->pages);
    memset(cache->recent, 0, sizeof cache->recent);
    cache->used = 0;
    cache->generation++;
}

/* A permanent copy of the scratch block. */
static struct block *keep(struct cpu *cpu, const struct block *from)
{
    struct block_cache *cache = cpu->blocks;
    size_t ops = from->n_ops * sizeof(struct ir_op);
    size_t need = (sizeof *from + ops + from->n_args + 15) & ~(size_t)15;
    if (cache->used + need > cache->size)
        empty(cache);
    struct block *block = (struct block *)(cache->arena + cache->used);
    cache->used += need;
    *block = *from;
    block->ops = (struct ir_op *)(block + 1);
    block->args = (uint8_t *)block->ops + ops;
    memcpy(block->ops, from->ops, ops);
    memcpy(block->args, from->args, from->n_args);
    for (uint32_t i = 0; i + 1 < block->n_ops; i++) {
        if (block->ops[i].op == IR_CALL) /* its argument stood in the scratch block */
            block->ops[++i].imm +=
                (uint64_t)(uintptr_t)block->args - (uint64_t)(uintptr_t)from->args;
    }
    return block;
}

static void insert(struct cpu *cpu, struct block *block)
{
    struct block_cache *cache = cpu->blocks;
    unsigned slot = hash(block->physical, block->pc, block->mode);
    block->hash_next = cache->hash[slot];
    cache->hash[slot] = block;
    for (unsigned i = 0; i < 2; i++) {
        uint64_t page = i ? block->physical2 : block->physical;
        if (i && (!page || page_slot(page) == page_slot(block->physical)))
            continue;
        slot = page_slot(page);
        block->page_next[i] = cache->pages[slot];
        cache->pages[slot] = (struct block *)((uintptr_t)block | i);
    }
}

static struct block *translate(struct cpu *cpu, uint64_t linear, uint64_t physical)
{
    struct block_cache *cache = cpu->blocks;
    struct block *block = &cache->scratch;
    *block = (struct block){ .pc = cpu->r[IR_PC],
                             .linear = linear,
                             .physical = physical,
                             .mode = cpu->mode,
                             .ops = cache->ops,
                             .args = cache->args };
    bool single = cpu->single;
    if (!single)
        memory_mark_code(cpu->memory, physical, cpu);
    cpu->guest->translate(cpu, block, single ? 1 : 64);
    uint64_t last = linear + block->size - 1;
    if ((last ^ linear) & GUEST_PAGE_MASK) {
        block->physical2 = cpu_physical(cpu, last & GUEST_PAGE_MASK, CPU_EXECUTE);
        if (!single)
            memory_mark_code(cpu->memory, block->physical2, cpu);
    }
    if (single)
        return block;
    block = keep(cpu, block);
    insert(cpu, block);
    return block;
}

static bool has_blocks(struct block_cache *cache, uint64_t physical)
{
    uint64_t page = physical & GUEST_PAGE_MASK;
    for (uintptr_t at = (uintptr_t)cache->pages[page_slot(page)]; at;) {
        const struct block *block = (const struct block *)(at & ~(uintptr_t)1);
        if (!block->dead && in_page(block, page))
            return true;
        at = (uintptr_t)block->page_next[at & 1];
    }
    return false;
}

static struct block *recent(struct cpu *cpu, struct block *block)
{
    block->add = cpu->tlb[(block->linear >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)].add;
    if (!block->physical2 && block->add)
        cpu->blocks->recent[block_slot(block->pc)] = block;
    return block;
}

struct block *block_get(struct cpu *cpu)
{
    struct block_cache *cache = cpu->blocks;
    uint64_t pc = cpu->r[IR_PC];
    uint64_t linear = cpu->guest->linear_pc(cpu, pc);
    uint64_t physical = cpu_physical(cpu, linear, CPU_EXECUTE);
    struct block *block = NULL;
    if (!cpu->single) {
        for (block = cache->hash[hash(physical, pc, cpu->mode)]; block; block = block->hash_next) {
            if (block->physical != physical || block->pc != pc || block->linear != linear ||
                block->mode != cpu->mode || block->dead)
                continue;
            if (!block->physical2 || cpu_physical(cpu, (linear & GUEST_PAGE_MASK) + GUEST_PAGE_SIZE,
                                                  CPU_EXECUTE) == block->physical2)
                break;
        }
    }
    if (block)
        return recent(cpu, block);
    bool fresh = !cpu->single && !has_blocks(cache, physical);
    block = translate(cpu, linear, physical);
    if (cpu->single)
        return block;
    if (fresh)
        cpu_protect(cpu, physical);
    if (block->physical2)
        cpu_protect(cpu, block->physical2);
    return recent(cpu, block);
}

void block_link(struct block *from, unsigned exit, struct block *to)
{
    if (from->dead || to->dead || from->chain[exit] || from->physical2 || to->physical2 ||
        ((from->linear ^ to->linear) & GUEST_PAGE_MASK) ||
        ((from->physical ^ to->physical) & GUEST_PAGE_MASK) || from->mode != to->mode)
        return;
    from->chain[exit] = to;
    from->in_next[exit] = to->in;
    to->in = (struct block *)((uintptr_t)from | exit);
}

static void unchain(struct block *block)
{
    for (uintptr_t at = (uintptr_t)block->in; at;) {
        struct block *from = (struct block *)(at & ~(uintptr_t)1);
        from->chain[at & 1] = NULL;
        at = (uintptr_t)from->in_next[at & 1];
    }
    block->in = NULL;
    for (unsigned exit = 0; exit < 2; exit++) { /* out of the list of whom it leads to */
        struct block *to = block->chain[exit];
        uintptr_t self = (uintptr_t)block | exit;
        if (!to)
            continue;
        struct block **link = &to->in;
        while (*link && (uintptr_t)*link != self) {
            uintptr_t at = (uintptr_t)*link;
            link = &((struct block *)(at & ~(uintptr_t)1))->in_next[at & 1];
        }
        if (*link)
            *link = block->in_next[exit];
        block->chain[exit] = NULL;
    }
}

bool block_overlaps(struct cpu *cpu, const struct block *block, uint64_t physical, uint64_t length)
{
    (void)cpu;
    uint64_t first = block->size;
    if (block->physical2) {
        first = GUEST_PAGE_SIZE - (block->physical & ~GUEST_PAGE_MASK);
        if (physical < block->physical2 + (block->size - first) &&
            block->physical2 < physical + length)
            return true;
    }
    return physical < block->physical + first && block->physical < physical + length;
}

bool block_drop(struct cpu *cpu, uint64_t physical, uint64_t length)
{
    struct block_cache *cache = cpu->blocks;
    uint64_t page = physical & GUEST_PAGE_MASK;
    bool any = false;
    struct block **link = &cache->pages[page_slot(page)];
    while (*link) {
        uintptr_t at = (uintptr_t)*link;
        struct block *block = (struct block *)(at & ~(uintptr_t)1);
        if (block->dead || (in_page(block, page) && block_overlaps(cpu, block, physical, length))) {
            any |= !block->dead;
            if (!block->dead) {
                block->dead = true;
                unchain(block);
                unsigned slot = hash(block->physical, block->pc, block->mode);
                struct block **h = &cache->hash[slot];
                while (*h && *h != block)
                    h = &(*h)->hash_next;
                if (*h)
                    *h = block->hash_next;
            }
            *link = block->page_next[at & 1];
        } else {
            link = &block->page_next[at & 1];
        }
    }
    return any;
}
