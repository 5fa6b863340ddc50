/* What a machine gives its CPUs: RAM, ROM and device registers by guest physical address.
 *
 * Units: bytes everywhere. RAM begins and ends on a 4 KiB page; device windows may be any size.
 * Where regions overlap the one added last is seen. An address in no region reads as ones and
 * ignores writes.
 *
 * Threads: the map may be changed at any time from any thread; a CPU that is inside a block still
 * sees the old map until the block ends. Device callbacks come on the thread of the CPU that made the access
 * (`cpu_current()` says which), many at once, with no lock held: a device locks itself. The
 * callback may raise interrupts, change the map and stop CPUs, but must not run one.
 *
 * Errors: a device access cannot fail, as on a bus; a device answers what its hardware would.
 */
#ifndef CPU_MEMORY_H
#define CPU_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GUEST_PAGE_BITS 12
#define GUEST_PAGE_SIZE ((uint64_t)1 << GUEST_PAGE_BITS)
#define GUEST_PAGE_MASK (~(GUEST_PAGE_SIZE - 1))

struct memory;
struct cpu;

/* `offset` counts from the region's start; `size` is 1, 2, 4 or 8 and the access may be unaligned
 * but stays within the region. The value stands in the low bits, the rest is zero. */
struct memory_io {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
    void (*write)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
};

enum { MEMORY_ROM = 1 }; /* writes are ignored */

/* NULL when there is no memory left. */
struct memory *memory_new(void);
/* All CPUs of the memory are freed already. RAM itself belongs to the machine. */
void memory_free(struct memory *memory);

/* 0 or a negative errno: EINVAL (empty, wraps round, not whole pages), ENOMEM. */
int memory_add_ram(struct memory *memory, uint64_t address, uint64_t size, void *host,
                   unsigned flags);
int memory_add_io(struct memory *memory, uint64_t address, uint64_t size,
                  const struct memory_io *io, void *opaque);
/* Takes away the region last added at just this address; ENOENT when there is none. */
int memory_remove(struct memory *memory, uint64_t address);

/* For device DMA: where these bytes lie in the host, and in *length how many of them follow each
 * other there. NULL when it is not RAM (or is ROM and `write` is set). */
void *memory_host(struct memory *memory, uint64_t address, bool write, uint64_t *length);
/* To be called after DMA has written, so that code translated from there is dropped. */
void memory_written(struct memory *memory, uint64_t address, uint64_t length);

/* Any bytes, RAM or not, as a CPU's access would; marks what it writes. */
void memory_read(struct memory *memory, uint64_t address, void *data, size_t length);
void memory_write(struct memory *memory, uint64_t address, const void *data, size_t length);

#endif
