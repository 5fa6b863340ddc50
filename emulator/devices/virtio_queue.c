/* Split virtqueues, Virtio 1.1 section 2.6. */
#include "base/bytes.h"
#include "virtio.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

enum {
    DESC_SIZE = 16,
    DESC_NEXT = 1,
    DESC_WRITE = 2,
    DESC_INDIRECT = 4,
    AVAIL_NO_INTERRUPT = 1,
    RING = 4, /* entries of both rings stand behind flags and index */
};

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

/* 2 bytes of a ring, which the guest changes meanwhile: read and written whole. */
static bool read16(struct virtio *v, uint64_t address, uint16_t *value)
{
    uint64_t length = 2;
    const void *host = pci_dma_map(&v->pci, address, false, &length);

    if (!host || length < 2 || (uintptr_t)host & 1) {
        virtio_broken(v);
        return false;
    }
    *value = le16toh(atomic_load_explicit((const _Atomic uint16_t *)host, memory_order_acquire));
    return true;
}

static bool write16(struct virtio *v, uint64_t address, uint16_t value)
{
    uint64_t length = 2;
    void *host = pci_dma_map(&v->pci, address, true, &length);

    if (!host || length < 2 || (uintptr_t)host & 1) {
        virtio_broken(v);
        return false;
    }
    atomic_store_explicit((_Atomic uint16_t *)host, htole16(value), memory_order_release);
    pci_dma_done(&v->pci, address, 2);
    return true;
}

/* `index` is in range already. */
static bool read_descriptor(struct virtio *v, uint64_t table, uint16_t index, struct descriptor *d)
{
    uint8_t raw[DESC_SIZE];

    if (pci_dma_read(&v->pci, table + (uint64_t)index * DESC_SIZE, raw, sizeof(raw)) < 0)
        return false;
    d->address = load_le64(raw);
    d->length = load_le32(raw + 8);
    d->flags = load_le16(raw + 12);
    d->next = load_le16(raw + 14);
    return true;
}

/* One buffer of a chain; what is read stands before what is written (2.6.4.2). */
static int add_buffer(struct virtio_chain *chain, const struct descriptor *d)
{
    if (!d->length || d->address + d->length < d->address)
        return -EINVAL;
    if (d->flags & DESC_WRITE)
        return dma_add(&chain->in, d->address, d->length);
    return chain->in.length ? -EINVAL : dma_add(&chain->out, d->address, d->length);
}

/* 0, -ENOMEM, or another errno for a chain that is none. */
static int walk(struct virtio *v, const struct virtqueue *q, struct virtio_chain *chain)
{
    uint64_t table = q->desc;
    uint32_t entries = q->size, left = q->size;
    uint16_t index = chain->head;
    bool indirect = false;
    struct descriptor d;

    for (;;) {
        if (index >= entries || !left-- || !read_descriptor(v, table, index, &d))
            return -EINVAL;
        if (d.flags & DESC_INDIRECT) {
            /* 2.6.5.3.1: once, and it is the last of the chain. */
            bool whole =
                d.length && d.length % DESC_SIZE == 0 && d.length / DESC_SIZE <= VIRTIO_QUEUE_SIZE;
            if (indirect || !whole || d.flags & DESC_NEXT || !virtio_has(v, VIRTIO_F_INDIRECT_DESC))
                return -EINVAL;
            indirect = true;
            table = d.address;
            entries = left = d.length / DESC_SIZE;
            index = 0;
            continue;
        }
        int r = add_buffer(chain, &d);
        if (r < 0 || !(d.flags & DESC_NEXT))
            return r;
        index = d.next;
    }
}

int virtio_pop(struct virtio *v, unsigned queue, struct virtio_chain *chain)
{
    struct virtqueue *q = &v->queue[queue];
    uint16_t offered;

    if (!q->enabled || v->resetting || v->status & VIRTIO_NEEDS_RESET)
        return 0;
    if (!read16(v, q->avail + 2, &offered) || offered == q->seen)
        return 0;
    /* No more than the queue has room for, neither waiting nor under way. */
    if ((uint16_t)(offered - q->seen) > q->size || q->in_flight >= q->size) {
        virtio_broken(v);
        return 0;
    }
    if (!read16(v, q->avail + RING + 2ull * (q->seen & (q->size - 1)), &chain->head))
        return 0;
    dma_init(&chain->out, &v->pci, false);
    dma_init(&chain->in, &v->pci, true);
    int r = walk(v, q, chain);
    if (r < 0) {
        virtio_chain_free(chain);
        if (r == -ENOMEM)
            return r;
        virtio_broken(v);
        return 0;
    }
    q->seen++;
    q->in_flight++;
    return 1;
}

void virtio_chain_free(struct virtio_chain *chain)
{
    dma_free(&chain->out);
    dma_free(&chain->in);
}

void virtio_push(struct virtio *v, unsigned queue, struct virtio_chain *chain, uint32_t written)
{
    struct virtqueue *q = &v->queue[queue];
    uint8_t entry[8];

    virtio_chain_free(chain);
    if (v->resetting || v->status & VIRTIO_NEEDS_RESET)
        return;
    q->in_flight--;
    store_le32(entry, chain->head);
    store_le32(entry + 4, written);
    uint64_t at = q->used + RING + 8ull * (q->done & (q->size - 1));
    if (pci_dma_write(&v->pci, at, entry, sizeof(entry)) < 0) {
        virtio_broken(v);
        return;
    }
    write16(v, q->used + 2, ++q->done);
}

void virtio_tell(struct virtio *v, unsigned queue)
{
    struct virtqueue *q = &v->queue[queue];
    uint16_t from = q->signalled, to = q->done, word;
    bool first = !q->told;

    if (v->resetting || !q->enabled || v->status & VIRTIO_NEEDS_RESET || (from == to && q->told))
        return;
    /* What was pushed is to be seen before we look whether the guest waits for it. */
    atomic_thread_fence(memory_order_seq_cst);
    bool event = virtio_has(v, VIRTIO_F_EVENT_IDX);
    if (!read16(v, event ? q->avail + RING + 2ull * q->size : q->avail, &word))
        return;
    q->signalled = to;
    q->told = true;
    /* 2.6.7.2: the index that is waited for is among those that are new. */
    bool wanted = event ? first || (uint16_t)(to - word - 1) < (uint16_t)(to - from)
                        : !(word & AVAIL_NO_INTERRUPT);
    if (wanted)
        virtio_interrupt(v, queue);
}

bool virtio_rearm(struct virtio *v, unsigned queue)
{
    struct virtqueue *q = &v->queue[queue];
    uint16_t offered;

    if (!q->enabled || v->resetting || v->status & VIRTIO_NEEDS_RESET)
        return false;
    if (virtio_has(v, VIRTIO_F_EVENT_IDX) && !write16(v, q->used + RING + 8ull * q->size, q->seen))
        return false;
    atomic_thread_fence(memory_order_seq_cst);
    return read16(v, q->avail + 2, &offered) && offered != q->seen;
}
