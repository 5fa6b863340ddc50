#include "dma.h"

#include "base/iov.h"
#include "base/macros.h"
#include "pci.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void dma_init(struct dma *dma, struct pci_function *f, bool write)
{
    dma->f = f;
    dma->write = write;
    dma->count = 0;
    dma->length = 0;
    dma->room = DMA_FEW;
    dma->iov = dma->few;
    dma->address = dma->few_addresses;
}

void dma_free(struct dma *dma)
{
    if (dma->iov != dma->few) {
        free(dma->iov);
        free(dma->address);
    }
    dma_init(dma, dma->f, dma->write);
}

static int grow(struct dma *dma)
{
    if (dma->room >= DMA_MOST)
        return -E2BIG;
    size_t room = MIN(MAX((size_t)dma->room, (size_t)1) * 8, (size_t)DMA_MOST),
           count = (size_t)dma->count;
    struct iovec *iov = malloc(room * sizeof(*iov));
    uint64_t *address = malloc(room * sizeof(*address));
    if (!iov || !address) {
        free(iov);
        free(address);
        return -ENOMEM;
    }
    memcpy(iov, dma->iov, count * sizeof(*iov));
    memcpy(address, dma->address, count * sizeof(*address));
    if (dma->iov != dma->few) {
        free(dma->iov);
        free(dma->address);
    }
    dma->iov = iov;
    dma->address = address;
    dma->room = (int)room;
    return 0;
}

int dma_add(struct dma *dma, uint64_t address, uint64_t length)
{
    while (length) {
        uint64_t part = length;
        uint8_t *host = pci_dma_map(dma->f, address, dma->write, &part);
        if (!host || !part)
            return -EFAULT;
        struct iovec *last = dma->count ? &dma->iov[dma->count - 1] : NULL;
        uint64_t follows = last ? dma->address[dma->count - 1] + last->iov_len : 0;
        if (last && follows == address && (uint8_t *)last->iov_base + last->iov_len == host) {
            last->iov_len += part;
        } else {
            int r = dma->count == dma->room ? grow(dma) : 0;
            if (r < 0)
                return r;
            dma->iov[dma->count] = (struct iovec){ host, part };
            dma->address[dma->count++] = address;
        }
        dma->length += part;
        address += part;
        length -= part;
    }
    return 0;
}

void dma_cut_front(struct dma *dma, uint64_t n)
{
    int whole = 0;

    dma->length -= n;
    while (whole < dma->count && n >= dma->iov[whole].iov_len)
        n -= dma->iov[whole++].iov_len;
    dma->count -= whole;
    memmove(dma->iov, dma->iov + whole, (size_t)dma->count * sizeof(*dma->iov));
    memmove(dma->address, dma->address + whole, (size_t)dma->count * sizeof(*dma->address));
    if (dma->count) {
        dma->iov[0].iov_base = (uint8_t *)dma->iov[0].iov_base + n;
        dma->iov[0].iov_len -= n;
        dma->address[0] += n;
    }
}

void dma_cut_back(struct dma *dma, uint64_t n)
{
    dma->length -= n;
    while (dma->count && n >= dma->iov[dma->count - 1].iov_len)
        n -= dma->iov[--dma->count].iov_len;
    if (dma->count)
        dma->iov[dma->count - 1].iov_len -= n;
}

size_t dma_read(const struct dma *dma, void *to, size_t n)
{
    struct iov_cursor cursor = iov_begin(dma->iov, dma->count);

    n = MIN(n, dma->length);
    iov_read(&cursor, to, n);
    return n;
}

size_t dma_write(const struct dma *dma, const void *from, size_t n)
{
    struct iov_cursor cursor = iov_begin(dma->iov, dma->count);

    n = MIN(n, dma->length);
    iov_write(&cursor, from, n);
    dma_written(dma, n);
    return n;
}

void dma_written(const struct dma *dma, uint64_t n)
{
    for (int i = 0; i < dma->count && n; i++) {
        uint64_t part = MIN(n, (uint64_t)dma->iov[i].iov_len);
        pci_dma_done(dma->f, dma->address[i], part);
        n -= part;
    }
}
