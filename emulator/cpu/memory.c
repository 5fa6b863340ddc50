/* Guest physical memory.
 *
 * A map is an immutable array; a change publishes a new one. Somebody may still be looking at the old array and at a region that was
 * removed, so both retire with a number and are freed when nobody can:
 *
 * 1. A CPU looks within its blocks only. Told of the change it forgets the map between two blocks and writes the newest number down
 *    (memory_seen); outside of cpu_run() it holds nothing.
 * 2. Other threads count themselves in `readers` while they look.
 */
#include "memory_map.h"

#include "cpu.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct map {
    struct map *older; /* in the list of retired ones, the last one first */
    uint64_t retired;
    struct memory_region *gone; /* was removed with the change that retired this map */
    size_t count;
    struct memory_region *regions[];
};

struct memory {
    _Atomic(struct map *) map;
    _Atomic uint64_t changes;
    _Atomic unsigned readers;
    pthread_mutex_t lock; /* guards changes, retired maps and the list of CPUs */
    struct map *retired;
    struct cpu **cpus;
    size_t n_cpus;
};

struct memory *memory_new(void)
{
    struct memory *memory = calloc(1, sizeof *memory);
    struct map *map = calloc(1, sizeof *map);
    if (!memory || !map) {
        free(memory);
        free(map);
        return NULL;
    }
    pthread_mutex_init(&memory->lock, NULL);
    atomic_init(&memory->map, map);
    return memory;
}

static void free_region(struct memory_region *region)
{
    if (region)
        free((void *)region->code);
    free(region);
}

/* A map and those that retired before it. */
static void free_maps(struct map *map)
{
    while (map) {
        struct map *older = map->older;
        free_region(map->gone);
        free(map);
        map = older;
    }
}

void memory_free(struct memory *memory)
{
    if (!memory)
        return;
    struct map *map = atomic_load(&memory->map);
    for (size_t i = 0; i < map->count; i++)
        free_region(map->regions[i]);
    free(map);
    free_maps(memory->retired);
    free(memory->cpus);
    pthread_mutex_destroy(&memory->lock);
    free(memory);
}

void memory_seen(struct memory *memory, struct cpu *cpu)
{
    atomic_store(&cpu->seen, atomic_load(&memory->changes));
}

/* With the lock held: what nobody looks at any more goes. */
static void reclaim(struct memory *memory)
{
    uint64_t seen = atomic_load(&memory->changes);
    if (atomic_load(&memory->readers))
        return;
    for (size_t i = 0; i < memory->n_cpus; i++) {
        const struct cpu *cpu = memory->cpus[i];
        uint64_t its = atomic_load(&cpu->seen);
        if (atomic_load(&cpu->inside) && its < seen)
            seen = its;
    }
    struct map **at = &memory->retired;
    while (*at && (*at)->retired > seen)
        at = &(*at)->older;
    free_maps(*at);
    *at = NULL;
}

/* Whether this thread has to count itself; a CPU's does not. */
static bool enter(struct memory *memory)
{
    if (cpu_current())
        return false;
    atomic_fetch_add(&memory->readers, 1);
    return true;
}

static void leave(struct memory *memory, bool entered)
{
    if (entered)
        atomic_fetch_sub(&memory->readers, 1);
}

/* With the lock held: a copy of the map with room for one more. */
static struct map *copy_map(struct memory *memory)
{
    struct map *old = atomic_load(&memory->map);
    struct map *map = malloc(sizeof *map + (old->count + 1) * sizeof map->regions[0]);
    if (map) {
        map->older = NULL;
        map->gone = NULL;
        map->count = old->count;
        memcpy(map->regions, old->regions, old->count * sizeof map->regions[0]);
    }
    return map;
}

/* Other bytes may stand now at the addresses of a region of RAM, so that what was translated from there goes. */
static void publish(struct memory *memory, struct map *map, const struct memory_region *changed,
                    struct memory_region *gone)
{
    struct map *old = atomic_load(&memory->map);
    old->gone = gone;
    old->older = memory->retired;
    memory->retired = old;
    atomic_store(&memory->map, map);
    old->retired = atomic_fetch_add(&memory->changes, 1) + 1;
    for (size_t i = 0; i < memory->n_cpus; i++) {
        cpu_request(memory->cpus[i], CPU_REQUEST_FLUSH);
        uint64_t pages = changed->host ? changed->size >> GUEST_PAGE_BITS : 0;
        for (uint64_t n = 0; n < pages && pages <= 16; n++)
            cpu_request_drop(memory->cpus[i], changed->start + (n << GUEST_PAGE_BITS));
        if (pages > 16)
            cpu_request_drop(memory->cpus[i], ~(uint64_t)0);
    }
    reclaim(memory);
}

static int add(struct memory *memory, struct memory_region region)
{
    if (!region.size || region.start + region.size - 1 < region.start)
        return -EINVAL;
    pthread_mutex_lock(&memory->lock);
    int ret = -ENOMEM;
    struct memory_region *copy = malloc(sizeof *copy);
    struct map *map = copy ? copy_map(memory) : NULL;
    if (map && region.host)
        region.code = calloc(region.size >> GUEST_PAGE_BITS, 1);
    if (!map || (region.host && !region.code)) {
        free(map);
        free(copy);
    } else {
        *copy = region;
        map->regions[map->count++] = copy;
        publish(memory, map, copy, NULL);
        ret = 0;
    }
    pthread_mutex_unlock(&memory->lock); /* one way out, error or not */
    return ret;
}

int memory_add_ram(struct memory *memory, uint64_t address, uint64_t size, void *host,
                   unsigned flags)
{
    if ((address | size) & ~GUEST_PAGE_MASK || !host)
        return -EINVAL;
    return add(memory, (struct memory_region){
                           .start = address, .size = size, .host = host, .flags = flags });
}

int memory_add_io(struct memory *memory, uint64_t address, uint64_t size,
                  const struct memory_io *io, void *opaque)
{
    return add(memory, (struct memory_region){
                           .start = address, .size = size, .io = io, .opaque = opaque });
}

int memory_remove(struct memory *memory, uint64_t address)
{
    int ret = -ENOENT;
    pthread_mutex_lock(&memory->lock);
    struct map *map = copy_map(memory);
    if (!map)
        ret = -ENOMEM;
    for (size_t i = map ? map->count : 0; i-- > 0 && ret;) {
        if (map->regions[i]->start != address)
            continue;
        struct memory_region *gone = map->regions[i];
        memmove(&map->regions[i], &map->regions[i + 1],
                (map->count - i - 1) * sizeof map->regions[0]);
        map->count--;
        publish(memory, map, gone, gone);
        ret = 0;
    }
    if (ret)
        free(map);
    pthread_mutex_unlock(&memory->lock); /* one way out, error or not */
    return ret;
}

const struct memory_region *memory_find(struct memory *memory, uint64_t address, bool *whole)
{
    const struct map *map = atomic_load_explicit(&memory->map, memory_order_acquire);
    uint64_t page = address & GUEST_PAGE_MASK;
    *whole = true;
    for (size_t i = map->count; i-- > 0;) {
        const struct memory_region *region = map->regions[i];
        if (address - region->start < region->size) {
            if (region->start > page ||
                page + (GUEST_PAGE_SIZE - 1) - region->start >= region->size)
                *whole = false;
            return region;
        }
        if (region->start - page < GUEST_PAGE_SIZE || page - region->start < region->size)
            *whole = false;
    }
    return NULL;
}

static uint64_t load_one(struct memory *memory, uint64_t address, unsigned size, bool *fits)
{
    bool whole;
    const struct memory_region *region = memory_find(memory, address, &whole);
    uint64_t value = ~(uint64_t)0 >> (64 - 8 * size);
    *fits = !region || region->size - (address - region->start) >= size;
    if (!region || !*fits)
        return value;
    if (!region->host)
        return region->io->read(region->opaque, address - region->start, size) & value;
    value = 0;
    memcpy(&value, region->host + (address - region->start), size);
    return value;
}

uint64_t memory_load(struct memory *memory, uint64_t address, unsigned size)
{
    bool fits;
    uint64_t value = load_one(memory, address, size, &fits);
    for (unsigned i = 0; !fits && i < size; i++) {
        bool one;
        value = i ? value : 0;
        value |= load_one(memory, address + i, 1, &one) << (8 * i);
    }
    return value;
}

void memory_store(struct memory *memory, uint64_t address, unsigned size, uint64_t value)
{
    bool whole;
    const struct memory_region *region = memory_find(memory, address, &whole);
    if (!region)
        return;
    uint64_t offset = address - region->start;
    if (region->size - offset < size) {
        for (unsigned i = 0; i < size; i++)
            memory_store(memory, address + i, 1, value >> (8 * i));
    } else if (!region->host) {
        region->io->write(region->opaque, offset, size, value & (~(uint64_t)0 >> (64 - 8 * size)));
    } else if (!(region->flags & MEMORY_ROM)) {
        memcpy(region->host + offset, &value, size);
        memory_written(memory, address, size);
    }
}

static void *host_piece(struct memory *memory, uint64_t address, bool write, uint64_t *length)
{
    bool whole;
    const struct memory_region *region = memory_find(memory, address, &whole);
    if (!region || !region->host || (write && region->flags & MEMORY_ROM))
        return NULL;
    uint64_t offset = address - region->start, end = region->size;
    const struct map *map = atomic_load(&memory->map);
    for (size_t i = map->count; i-- > 0 && map->regions[i] != region;) {
        uint64_t other = map->regions[i]->start - region->start; /* a newer one in the way */
        if (other > offset && other < end)
            end = other;
    }
    *length = end - offset;
    return region->host + offset;
}

void *memory_host(struct memory *memory, uint64_t address, bool write, uint64_t *length)
{
    bool entered = enter(memory);
    void *host = host_piece(memory, address, write, length);
    leave(memory, entered);
    return host;
}

/* Pages with code among `length` bytes that lie in one piece. */
static void piece_written(struct memory *memory, uint64_t address, uint64_t length)
{
    bool whole;
    const struct memory_region *region = memory_find(memory, address, &whole);
    if (!region || !region->host) /* a newer map */
        return;
    uint64_t first = (address - region->start) >> GUEST_PAGE_BITS;
    uint64_t last = (address + length - 1 - region->start) >> GUEST_PAGE_BITS;
    for (uint64_t n = first; n <= last && n < region->size >> GUEST_PAGE_BITS; n++) {
        if (atomic_load_explicit(&region->code[n], memory_order_relaxed))
            memory_code_written(memory, region->start + (n << GUEST_PAGE_BITS), NULL);
    }
}

void memory_written(struct memory *memory, uint64_t address, uint64_t length)
{
    bool entered = enter(memory);
    while (length) {
        uint64_t piece = 0;
        if (host_piece(memory, address, false, &piece))
            piece_written(memory, address, piece < length ? piece : length);
        else
            piece = GUEST_PAGE_SIZE - (address & ~GUEST_PAGE_MASK);
        if (piece >= length)
            break;
        address += piece;
        length -= piece;
    }
    leave(memory, entered);
}

void memory_read(struct memory *memory, uint64_t address, void *data, size_t length)
{
    bool entered = enter(memory);
    uint8_t *to = data;
    for (; length; length--)
        *to++ = (uint8_t)memory_load(memory, address++, 1);
    leave(memory, entered);
}

void memory_write(struct memory *memory, uint64_t address, const void *data, size_t length)
{
    bool entered = enter(memory);
    const uint8_t *from = data;
    for (; length; length--)
        memory_store(memory, address++, 1, *from++);
    leave(memory, entered);
}

int memory_attach(struct memory *memory, struct cpu *cpu)
{
    pthread_mutex_lock(&memory->lock);
    struct cpu **cpus = realloc(memory->cpus, (memory->n_cpus + 1) * sizeof *cpus);
    if (cpus) {
        memory->cpus = cpus;
        cpus[memory->n_cpus++] = cpu;
        memory_seen(memory, cpu);
    }
    pthread_mutex_unlock(&memory->lock); /* one way out, error or not */
    return cpus ? 0 : -ENOMEM;
}

void memory_detach(struct memory *memory, struct cpu *cpu)
{
    pthread_mutex_lock(&memory->lock);
    for (size_t i = 0; i < memory->n_cpus; i++) {
        if (memory->cpus[i] == cpu) {
            memory->cpus[i] = memory->cpus[--memory->n_cpus];
            break;
        }
    }
    pthread_mutex_unlock(&memory->lock); /* end of the function */
}

static _Atomic uint8_t *code_flag(struct memory *memory, uint64_t address)
{
    bool whole;
    const struct memory_region *region = memory_find(memory, address, &whole);
    if (!region || !region->host)
        return NULL;
    return &region->code[(address - region->start) >> GUEST_PAGE_BITS];
}

void memory_mark_code(struct memory *memory, uint64_t address, struct cpu *cpu)
{
    _Atomic uint8_t *flag = code_flag(memory, address);
    if (!flag || atomic_exchange(flag, 1))
        return;
    pthread_mutex_lock(&memory->lock);
    for (size_t i = 0; i < memory->n_cpus; i++) {
        if (memory->cpus[i] != cpu)
            cpu_request(memory->cpus[i], CPU_REQUEST_FLUSH);
    }
    pthread_mutex_unlock(&memory->lock); /* end of the function */
}

void memory_code_written(struct memory *memory, uint64_t address, const struct cpu *cpu)
{
    _Atomic uint8_t *flag = code_flag(memory, address);
    if (!flag || !atomic_load_explicit(flag, memory_order_relaxed))
        return;
    pthread_mutex_lock(&memory->lock);
    for (size_t i = 0; i < memory->n_cpus; i++) {
        if (memory->cpus[i] != cpu)
            cpu_request_drop(memory->cpus[i], address & GUEST_PAGE_MASK);
    }
    pthread_mutex_unlock(&memory->lock); /* end of the function */
}
