/* Scattered guest memory as an iovec: what a descriptor chain, a PRP list or a PRDT names.
 *
 * Pieces that lie side by side in the host become one. What the device wrote there is told with dma_written, so that
 * translated code goes. Units: bytes.
 */
#ifndef DEVICES_DMA_H
#define DEVICES_DMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct pci_function;

enum { DMA_FEW = 4, DMA_MOST = 1024 };

struct dma {
    struct pci_function *f;
    bool write; /* the device writes to the guest */
    int count, room;
    struct iovec *iov;
    uint64_t *address; /* of each piece, for the guest */
    uint64_t length;
    struct iovec few[DMA_FEW];
    uint64_t few_addresses[DMA_FEW];
};

void dma_init(struct dma *dma, struct pci_function *f, bool write);
void dma_free(struct dma *dma);
/* -EFAULT: not all of it is RAM (or may be written); -E2BIG: more than DMA_MOST pieces; -ENOMEM. */
int dma_add(struct dma *dma, uint64_t address, uint64_t length);
/* Takes n bytes away, n <= length; only before there is I/O. */
void dma_cut_front(struct dma *dma, uint64_t n);
void dma_cut_back(struct dma *dma, uint64_t n);
/* Flat copies from and to its start; how many bytes there was room for. */
size_t dma_read(const struct dma *dma, void *to, size_t n);
size_t dma_write(const struct dma *dma, const void *from, size_t n);
/* The first n bytes were written by the device. */
void dma_written(const struct dma *dma, uint64_t n);

#endif
