/* The map's inside, for the soft TLB and the block cache. */
#ifndef CPU_MEMORY_MAP_H
#define CPU_MEMORY_MAP_H

#include "memory.h"

#include <stdatomic.h>

struct memory_region {
    uint64_t start, size;
    uint8_t *host; /* NULL: device */
    unsigned flags;
    const struct memory_io *io;
    void *opaque;
    _Atomic uint8_t *code; /* one for each page of RAM: some CPU holds blocks of it */
};

/* The region seen at the address, or NULL. *whole: all of the page around it is of that region. */
const struct memory_region *memory_find(struct memory *memory, uint64_t address, bool *whole);

uint64_t memory_load(struct memory *memory, uint64_t address, unsigned size);
void memory_store(struct memory *memory, uint64_t address, unsigned size, uint64_t value);

/* A CPU takes part: it is told of changes to the map and to code. 0 or ENOMEM. */
int memory_attach(struct memory *memory, struct cpu *cpu);
void memory_detach(struct memory *memory, struct cpu *cpu);
/* The CPU holds nothing of an older map. Between two blocks. */
void memory_seen(struct memory *memory, struct cpu *cpu);
/* Blocks of this page are about to exist on `cpu`: writes of all CPUs must go the slow way. */
void memory_mark_code(struct memory *memory, uint64_t address, struct cpu *cpu);
/* Written on `cpu` (NULL: by a device): everybody else drops the blocks of this page. */
void memory_code_written(struct memory *memory, uint64_t address, const struct cpu *cpu);

#endif
