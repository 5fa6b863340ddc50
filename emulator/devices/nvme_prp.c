/* Physical region pages, NVM Express 1.4 section 4.3. */
#include "base/bytes.h"
#include "base/macros.h"
#include "nvme.h"

#include <errno.h>

enum { PRP1 = 24, PRP2 = 32, ENTRY = 8 };

static uint16_t status_of(int r)
{
    return r == 0 ? NVME_OK : r == -ENOMEM ? NVME_INTERNAL_ERROR : NVME_TRANSFER_ERROR;
}

static uint16_t add(struct nvme_request *q, uint64_t address, uint64_t *left)
{
    uint64_t part = MIN(*left, NVME_PAGE - address % NVME_PAGE);

    *left -= part;
    return status_of(dma_add(&q->data, address, part));
}

/* Entries until `left` is covered; the last one of a page leads to the next page of entries. */
static uint16_t add_list(struct nvme_request *q, uint64_t list, uint64_t left)
{
    if (list % ENTRY)
        return NVME_PRP_OFFSET | NVME_DNR;
    while (left) {
        uint8_t raw[ENTRY];
        if (pci_dma_read(&q->n->pci, list, raw, sizeof(raw)) < 0)
            return NVME_TRANSFER_ERROR;
        uint64_t entry = load_le64(raw);
        if (entry % NVME_PAGE)
            return NVME_PRP_OFFSET | NVME_DNR;
        if (list % NVME_PAGE == NVME_PAGE - ENTRY && left > NVME_PAGE) {
            /* Each such page but the last carries 511 entries, so `left` bounds the walk... */
            list = entry;
            if (pci_dma_read(&q->n->pci, list, raw, sizeof(raw)) < 0)
                return NVME_TRANSFER_ERROR;
            entry = load_le64(raw);
            if (entry % NVME_PAGE)
                return NVME_PRP_OFFSET | NVME_DNR;
        }
        /* ... since every round takes an entry that is data. */
        uint16_t status = add(q, entry, &left);
        if (status)
            return status;
        list += ENTRY;
    }
    return NVME_OK;
}

uint16_t nvme_map(struct nvme_request *q, uint64_t length, bool write)
{
    uint64_t first = load_le64(q->command + PRP1), second = load_le64(q->command + PRP2);

    dma_free(&q->data);
    q->data.write = write;
    if (length > NVME_MOST_DATA)
        return NVME_INVALID_FIELD | NVME_DNR;
    if (first & 3)
        return NVME_PRP_OFFSET | NVME_DNR;
    uint64_t left = length;
    uint16_t status = add(q, first, &left);
    if (status || !left)
        return status;
    if (left > NVME_PAGE)
        return add_list(q, second, left);
    if (second % NVME_PAGE)
        return NVME_PRP_OFFSET | NVME_DNR;
    return add(q, second, &left);
}
