/* One virtual CPU, whatever its architecture: slots, soft TLB, block cache, requests.
 *
 * Threads: a CPU is run by one thread at a time, inside cpu_run(). Other threads may only call what is
 * listed under "from any thread". What they ask for is seen between two blocks.
 */
#ifndef CPU_CPU_H
#define CPU_CPU_H

#include "ir.h"
#include "memory.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <string.h>

enum { /* cpu->request */
       CPU_REQUEST_STOP = 1,
       CPU_REQUEST_FLUSH = 2, /* drop the TLB */
       CPU_REQUEST_DROP = 4,  /* drop the blocks of pages in cpu->drops */
       CPU_REQUEST_LINE = 8,  /* the interrupt line is up */
       CPU_REQUEST_NMI = 16,
       CPU_REQUEST_INIT = 32,
       CPU_REQUEST_START = 64,  /* SIPI; the vector is in cpu->start */
       CPU_REQUEST_RETRY = 128, /* look again at interrupts: the guest lets them in now */
};

enum cpu_exit { CPU_EXIT_STOPPED, CPU_EXIT_RESET /* the guest asks for a reset: triple fault */ };

enum { CPU_READ, CPU_WRITE, CPU_EXECUTE };

enum { TLB_BITS = 11, TLB_SIZE = 1 << TLB_BITS, TLB_MODES = 3, TLB_SLOW = 1, TLB_NONE = 2 };
enum { TLB_FILLED = 1024, HOST_PAGES = 512 };

/* A tag is the page's address; with a low bit set it matches no access, so the slow way is taken. */
struct tlb_entry {
    uint64_t tag[3];
    uintptr_t add; /* host address minus guest address */
};

/* Which entries a flush has to empty; when there are too many, all. */
struct tlb_filled {
    unsigned count;
    uint16_t at[TLB_FILLED];
};

struct memory_region;

/* Where a physical page lies: host is NULL when it is not RAM or ROM as a whole. */
struct host_page {
    uint64_t page;
    uint8_t *host;
    const struct memory_region *region;
};

/* What a walk says beside the rights. */
enum {
    CPU_GLOBAL = 1 << 3, /* stays when the address space changes */
    CPU_LARGE = 1 << 4,  /* part of a page of 2 or 4 MiB */
    CPU_HUGE = 1 << 5,   /* of 1 GiB */
};

struct block;
struct block_cache;

/* What an architecture does for the common part. */
struct cpu_guest {
    /* Fills the block with IR for the code at IR_PC, at most `limit` instructions. */
    void (*translate)(struct cpu *cpu, struct block *block, unsigned limit);
    /* Walks the page tables: physical address and rights (1 << CPU_READ ...); raises the fault. */
    uint64_t (*walk)(struct cpu *cpu, uint64_t address, int access, unsigned mode,
                     unsigned *rights);
    /* The page tables' view for a debugger: false when not mapped. */
    uint64_t (*linear_pc)(struct cpu *cpu, uint64_t pc);
    /* An exception was raised; its number and code stand where the guest put them. */
    void (*deliver)(struct cpu *cpu);
    /* Requests other than the common ones; true when the CPU goes on, false while it must wait. */
    bool (*attend)(struct cpu *cpu, unsigned requests);
};

struct cpu {
    uint64_t r[IR_SLOTS];
    struct tlb_entry *tlb; /* of the current mode */
    _Atomic unsigned request;
    uint32_t mode;          /* what translation depends on; part of a block's key */
    const struct ir_op *ip; /* where a slow access or helper was called */
    struct block *running;  /* the block of ip */
    struct block_cache *blocks;
    uint64_t instructions; /* executed, counted by whole blocks */
    const struct cpu_guest *guest;
    struct memory *memory;
    _Atomic uint64_t seen; /* memory.c's: the newest map's number, */
    _Atomic bool inside;   /* which counts while the CPU runs */
    unsigned tlb_mode;
    unsigned id;
    bool single; /* the next block is one instruction long and not kept */
    bool halted; /* waits for an interrupt */
    bool reset;  /* leave with CPU_EXIT_RESET */
    uint8_t start;
    sigjmp_buf back;

    pthread_mutex_t lock; /* guards sleeping and the drops */
    pthread_cond_t wake;
    uint64_t drops[16];
    unsigned n_drops;

    uint64_t large[16], huge; /* hashes of addresses: some page there may be part of a large one */
    struct tlb_filled filled[2]; /* local, global */
    struct host_page host_pages[HOST_PAGES];
    uint64_t tlb_physical[TLB_MODES][TLB_SIZE];
    struct tlb_entry tlbs[TLB_MODES][TLB_SIZE];
};

/* 0 or ENOMEM. The structure is zeroed already; the guest is set. */
int cpu_init(struct cpu *cpu, struct memory *memory);
void cpu_fini(struct cpu *cpu);

/* Runs until it is stopped or wants a reset. On the calling thread. */
enum cpu_exit cpu_run(struct cpu *cpu);
/* The CPU that runs on this thread, or NULL. */
struct cpu *cpu_current(void);

/* On the CPU's own thread, where nobody need be woken. */
static inline void cpu_request_self(struct cpu *cpu, unsigned requests)
{
    atomic_fetch_or_explicit(&cpu->request, requests, memory_order_relaxed);
}

/* From any thread. */
void cpu_request(struct cpu *cpu, unsigned requests);
void cpu_request_drop(struct cpu *cpu, uint64_t page);
void cpu_stop(struct cpu *cpu);
/* The level of the interrupt line. */
void cpu_line(struct cpu *cpu, bool up);

/* Inside the CPU's thread. */
_Noreturn void cpu_raise(struct cpu *cpu); /* to guest->deliver, at the current instruction */
void cpu_flush(struct cpu *cpu);           /* the whole TLB */
void cpu_flush_local(struct cpu *cpu);     /* all but global pages */
void cpu_forget_map(struct cpu *cpu);      /* the memory map has changed */
/* The page has become code: stores to it may not take the fast way any more. */
void cpu_protect(struct cpu *cpu, uint64_t physical);
/* A page table's page in the host, or NULL. */
uint8_t *cpu_ram(struct cpu *cpu, uint64_t physical, bool write);
void cpu_flush_page(struct cpu *cpu, uint64_t address);
uint64_t cpu_pc(struct cpu *cpu); /* of the current instruction, inside a helper */
void cpu_set_tlb_mode(struct cpu *cpu, unsigned mode);

uint64_t cpu_load_slow(struct cpu *cpu, uint64_t address, unsigned size, int access);
void cpu_store_slow(struct cpu *cpu, uint64_t address, unsigned size, uint64_t value);
/* Raises what an access would raise. */
void cpu_probe(struct cpu *cpu, uint64_t address, unsigned size, int access);
/* Where the bytes lie in the host for an atomic operation, writable; NULL: not in one RAM page. */
void *cpu_host(struct cpu *cpu, uint64_t address, unsigned size);
uint64_t cpu_physical(struct cpu *cpu, uint64_t address, int access);

/* Helpers call these: cpu->ip stands already. Size is 1, 2, 4 or 8. */
static inline uint64_t cpu_load(struct cpu *cpu, uint64_t address, unsigned size)
{
    const struct tlb_entry *e = &cpu->tlb[(address >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)];
    uint64_t value = 0;
    if (__builtin_expect(((address + size - 1) & GUEST_PAGE_MASK) != e->tag[CPU_READ], 0))
        return cpu_load_slow(cpu, address, size, CPU_READ);
    memcpy(&value, (const void *)(uintptr_t)(address + e->add), size);
    return value;
}

static inline void cpu_store(struct cpu *cpu, uint64_t address, unsigned size, uint64_t value)
{
    const struct tlb_entry *e = &cpu->tlb[(address >> GUEST_PAGE_BITS) & (TLB_SIZE - 1)];
    if (__builtin_expect(((address + size - 1) & GUEST_PAGE_MASK) != e->tag[CPU_WRITE], 0))
        cpu_store_slow(cpu, address, size, value);
    else
        memcpy((void *)(uintptr_t)(address + e->add), &value, size);
}

#endif
