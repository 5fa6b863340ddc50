/* Translated blocks: found by physical address, program counter and mode; chained at their exits.
 *
 * The cache belongs to one CPU. Invariants:
 * 1. A live block's bytes have not changed: pages with blocks carry a mark in the memory map, and a store to
 *    one takes the slow way, which drops the blocks it overlaps.
 * 2. chain[] leads only to live blocks in the same page, so a changed mapping of the page leaves
 *    no wrong chain behind; other exits look in `recent`, and ask the TLB whether the page is still there.
 * 3. Memory of dead blocks is taken back only when the whole cache is emptied, between blocks.
 */
#ifndef CPU_BLOCK_H
#define CPU_BLOCK_H

#include "cpu.h"

enum { BLOCK_RECENT = 4096, BLOCK_HASH = 1 << 14, BLOCK_PAGES = 1 << 12 };
enum { BLOCK_OPS = 1024, BLOCK_ARGS = 16384 };

struct block {
    uint64_t pc, linear, physical;
    uintptr_t add;      /* of the page's TLB entry when it was last looked up there */
    uint64_t physical2; /* of the second page, when the first instruction crosses; else 0 */
    uint32_t mode;
    uint16_t size;  /* guest bytes */
    uint16_t count; /* guest instructions */
    bool dead;
    struct block *chain[2];
    struct block *in; /* blocks that chain to this one; the low bit says by which exit */
    struct block *in_next[2];
    struct block *hash_next, *page_next[2];
    uint32_t n_ops, n_args;
    struct ir_op *ops;
    uint8_t *args; /* for helper calls */
};

struct block_cache {
    struct block *recent[BLOCK_RECENT];
    struct block *hash[BLOCK_HASH];
    struct block *pages[BLOCK_PAGES]; /* by physical page */
    uint8_t *arena;
    size_t used, size;
    unsigned generation;  /* how often the cache was emptied */
    struct block scratch; /* being translated */
    struct ir_op ops[BLOCK_OPS];
    uint8_t args[BLOCK_ARGS];
};

static inline unsigned block_slot(uint64_t pc)
{
    return (unsigned)(pc ^ (pc >> 12)) & (BLOCK_RECENT - 1);
}

struct block_cache *block_cache_new(void);
void block_cache_free(struct block_cache *cache);
/* The block at IR_PC, translated when need be; may raise a fetch fault. */
struct block *block_get(struct cpu *cpu);
void block_link(struct block *from, unsigned exit, struct block *to);
/* Drops what overlaps these physical bytes of one page; true when there was any. */
bool block_drop(struct cpu *cpu, uint64_t physical, uint64_t length);
bool block_overlaps(struct cpu *cpu, const struct block *block, uint64_t physical, uint64_t length);

/* Runs from the block until somebody is wanted outside. Returns the block whose exit was taken
 * (and in *exit which one, for chaining), or NULL. */
struct block *exec_run(struct cpu *cpu, struct block *block, unsigned *exit);

#endif
