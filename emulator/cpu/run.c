/* The main loop of a CPU: requests, blocks, exceptions; and what other threads may ask of it. */
#include "block.h"
#include "memory_map.h"

#include <errno.h>

static _Thread_local struct cpu *current;

struct cpu *cpu_current(void)
{
    return current;
}

int cpu_init(struct cpu *cpu, struct memory *memory)
{
    cpu->memory = memory;
    cpu->blocks = block_cache_new();
    if (!cpu->blocks)
        return -ENOMEM;
    pthread_mutex_init(&cpu->lock, NULL);
    pthread_cond_init(&cpu->wake, NULL);
    cpu_set_tlb_mode(cpu, 0);
    cpu->filled[0].count = TLB_FILLED + 1; /* whatever is there */
    cpu_forget_map(cpu);
    int ret = memory_attach(memory, cpu);
    if (ret)
        block_cache_free(cpu->blocks);
    return ret;
}

void cpu_fini(struct cpu *cpu)
{
    memory_detach(cpu->memory, cpu);
    block_cache_free(cpu->blocks);
    pthread_cond_destroy(&cpu->wake);
    pthread_mutex_destroy(&cpu->lock);
}

void cpu_request(struct cpu *cpu, unsigned requests)
{
    pthread_mutex_lock(&cpu->lock);
    atomic_fetch_or(&cpu->request, requests);
    pthread_cond_signal(&cpu->wake);
    pthread_mutex_unlock(&cpu->lock); /* end of the function */
}

void cpu_request_drop(struct cpu *cpu, uint64_t page)
{
    pthread_mutex_lock(&cpu->lock);
    unsigned i = 0;
    while (i < cpu->n_drops && cpu->drops[i] != page)
        i++;
    if (i == cpu->n_drops && i < sizeof cpu->drops / sizeof cpu->drops[0])
        cpu->drops[cpu->n_drops++] = page;
    else if (i == cpu->n_drops)
        cpu->drops[0] = ~(uint64_t)0; /* too many: all pages */
    atomic_fetch_or(&cpu->request, CPU_REQUEST_DROP);
    pthread_mutex_unlock(&cpu->lock); /* end of the function */
}

void cpu_stop(struct cpu *cpu)
{
    cpu_request(cpu, CPU_REQUEST_STOP);
}

void cpu_line(struct cpu *cpu, bool up)
{
    if (up)
        cpu_request(cpu, CPU_REQUEST_LINE | CPU_REQUEST_RETRY);
    else
        atomic_fetch_and(&cpu->request, ~(unsigned)CPU_REQUEST_LINE);
}

uint64_t cpu_pc(struct cpu *cpu)
{
    if (!cpu->running)
        return cpu->r[IR_PC];
    return cpu->running->pc + cpu->ip->at;
}

_Noreturn void cpu_raise(struct cpu *cpu)
{
    cpu->r[IR_PC] = cpu_pc(cpu);
    siglongjmp(cpu->back, 1);
}

static void drop_pages(struct cpu *cpu)
{
    pthread_mutex_lock(&cpu->lock);
    bool all = false;
    for (unsigned i = 0; i < cpu->n_drops; i++) {
        all |= cpu->drops[i] == ~(uint64_t)0;
        block_drop(cpu, cpu->drops[i], GUEST_PAGE_SIZE);
    }
    if (all) {
        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
            while (cpu->blocks->pages[i]) {
                const struct block *b =
                    (const struct block *)((uintptr_t)cpu->blocks->pages[i] & ~(uintptr_t)1);
                block_drop(cpu, b->physical, b->size);
                if (b->physical2)
                    block_drop(cpu, b->physical2, b->size);
            }
        }
    }
    cpu->n_drops = 0;
    pthread_mutex_unlock(&cpu->lock); /* end of the function */
}

/* Attends to requests and sleeps while halted. False: leave. */
static bool attend(struct cpu *cpu)
{
    for (;;) {
        /* RETRY is an event; the others but STOP and LINE are taken by who handles them. */
        unsigned requests = atomic_fetch_and(
            &cpu->request, ~(unsigned)(CPU_REQUEST_RETRY | CPU_REQUEST_FLUSH | CPU_REQUEST_DROP));
        if (requests & CPU_REQUEST_FLUSH) {
            cpu_forget_map(cpu);
            memory_seen(cpu->memory, cpu);
        }
        if (requests & CPU_REQUEST_DROP)
            drop_pages(cpu);
        if (requests & CPU_REQUEST_STOP) {
            atomic_fetch_and(&cpu->request, ~(unsigned)CPU_REQUEST_STOP);
            if (requests & CPU_REQUEST_RETRY) /* not yet looked at */
                atomic_fetch_or(&cpu->request, CPU_REQUEST_RETRY);
            return false;
        }
        if (cpu->guest->attend(cpu, requests))
            return true;
        if (cpu->reset)
            return false;
        pthread_mutex_lock(&cpu->lock);
        while (!(atomic_load(&cpu->request) & ~(unsigned)CPU_REQUEST_LINE))
            pthread_cond_wait(&cpu->wake, &cpu->lock);
        pthread_mutex_unlock(&cpu->lock); /* before attending */
    }
}

static void loop(struct cpu *cpu)
{
    struct block *from = NULL;
    unsigned exit = 0;
    for (;;) {
        cpu->running = NULL;
        if (cpu->reset)
            return;
        /* A level that the guest keeps out is no reason to stop; letting it in asks for RETRY. */
        if (cpu->halted || atomic_load(&cpu->request) & ~(unsigned)CPU_REQUEST_LINE) {
            from = NULL;
            if (!attend(cpu))
                return;
        }
        unsigned generation = cpu->blocks->generation;
        struct block *block = block_get(cpu);
        if (from && !cpu->single && generation == cpu->blocks->generation)
            block_link(from, exit, block);
        cpu->single = false;
        from = exec_run(cpu, block, &exit);
    }
}

enum cpu_exit cpu_run(struct cpu *cpu)
{
    current = cpu;
    atomic_store(&cpu->inside, true);
    cpu->reset = false;
    /* Exceptions come back here; delivering one may raise the next. */
    int why = sigsetjmp(cpu->back, 0);
    cpu->single = why == 2;
    if (why == 1) {
        cpu->running = NULL;
        cpu->guest->deliver(cpu);
    }
    loop(cpu);
    atomic_store(&cpu->inside, false);
    current = NULL;
    return cpu->reset ? CPU_EXIT_RESET : CPU_EXIT_STOPPED;
}
