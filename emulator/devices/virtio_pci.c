/* Virtio over PCI, Virtio 1.1 section 4.1: where a guest finds the queues.
 *
 * BAR 0 (ports) is the legacy interface (4.1.4.8), BAR 1 the MSI-X table, BAR 4 the modern one: a page each for the common
 * registers, the interrupt status, the device's configuration and the bells. A capability in configuration space
 * (4.1.4.7) reaches BAR 4 for firmware that cannot map it.
 */
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/macros.h"
#include "base/round.h"
#include "cpu/memory.h"
#include "virtio.h"

#include <errno.h>
#include <string.h>

enum {
    BAR_LEGACY = 0,
    BAR_MSIX = 1,
    BAR_MODERN = 4,
    WINDOW_COMMON = 0,
    WINDOW_ISR = 0x1000,
    WINDOW_DEVICE = 0x2000,
    WINDOW_BELLS = 0x3000,
    WINDOW_SIZE = 0x1000,
    BELL = 4, /* bytes for each queue */
};

const struct opt_choice virtio_auto_choices[] = {
    { "auto", VIRTIO_AUTO }, { "off", VIRTIO_OFF }, { "false", VIRTIO_OFF },
    { "on", VIRTIO_ON },     { "true", VIRTIO_ON }, { NULL, 0 },
};

/* ---- interrupts and states ------------------------------------------------------------------ */

enum { ISR_QUEUE = 1, ISR_CONFIG = 2 };

static void interrupt(struct virtio *v, uint16_t vector, uint8_t cause)
{
    if (pci_msix_on(&v->pci)) {
        if (vector != VIRTIO_NO_VECTOR)
            pci_notify(&v->pci, vector);
        return;
    }
    v->isr |= cause;
    pci_pin(&v->pci, true);
}

void virtio_interrupt(struct virtio *v, unsigned queue)
{
    interrupt(v, v->queue[queue].vector, ISR_QUEUE);
}

void virtio_broken(struct virtio *v)
{
    if (v->status & VIRTIO_NEEDS_RESET)
        return;
    v->status |= VIRTIO_NEEDS_RESET;
    if (v->status & VIRTIO_DRIVER_OK)
        interrupt(v, v->config_vector, ISR_CONFIG);
}

/* With the lock held, and nothing under way. */
static void clear(struct virtio *v)
{
    v->guest_features = 0;
    v->feature_select[0] = v->feature_select[1] = 0;
    v->queue_select = 0;
    v->config_vector = VIRTIO_NO_VECTOR;
    v->status = v->isr = 0;
    pci_pin(&v->pci, false);
    for (unsigned i = 0; i < v->queues; i++)
        v->queue[i] = (struct virtqueue){ .size = v->queue_max, .vector = VIRTIO_NO_VECTOR };
}

/* The guest's own reset waits for requests, since they may still write to its memory. */
static void reset_by_guest(struct virtio *v)
{
    LOCK_SCOPE(&v->reset_lock);
    {
        LOCK_SCOPE(&v->lock);
        v->resetting = true;
    }
    v->kind->cancel(v);
    LOCK_SCOPE(&v->lock);
    clear(v);
    v->resetting = false;
}

void virtio_reset(struct virtio *v)
{
    reset_by_guest(v);
    pci_reset(&v->pci);
}

/* 3.1.1: bits are only added; FEATURES_OK sticks when we can do what was chosen. */
static void set_status(struct virtio *v, uint8_t status)
{
    if (!status) {
        reset_by_guest(v);
        return;
    }
    LOCK_SCOPE(&v->lock);
    bool chosen = status & VIRTIO_FEATURES_OK && !(v->status & VIRTIO_FEATURES_OK);
    if (chosen && (v->guest_features & ~v->host_features ||
                   (!v->legacy && !virtio_has(v, VIRTIO_F_VERSION_1))))
        status &= (uint8_t)~VIRTIO_FEATURES_OK;
    v->status |= status & (uint8_t)~VIRTIO_NEEDS_RESET;
}

static void ring(struct virtio *v, uint64_t queue)
{
    if (queue < v->queues)
        v->kind->notified(v, (unsigned)queue);
}

/* ---- the common registers, 4.1.4.3 ----------------------------------------------------------- */

enum {
    COMMON_DEVICE_SELECT = 0x00,
    COMMON_DEVICE_FEATURES = 0x04,
    COMMON_DRIVER_SELECT = 0x08,
    COMMON_DRIVER_FEATURES = 0x0c,
    COMMON_CONFIG_VECTOR = 0x10,
    COMMON_QUEUES = 0x12,
    COMMON_STATUS = 0x14,
    COMMON_QUEUE_SELECT = 0x16,
    COMMON_QUEUE_SIZE = 0x18,
    COMMON_QUEUE_VECTOR = 0x1a,
    COMMON_QUEUE_ENABLE = 0x1c,
    COMMON_QUEUE_BELL = 0x1e,
    COMMON_QUEUE_DESC = 0x20,
    COMMON_QUEUE_AVAIL = 0x28,
    COMMON_QUEUE_USED = 0x30,
    COMMON_SIZE = 0x38,
};

static uint32_t half(uint64_t features, uint32_t select)
{
    return select > 1 ? 0 : (uint32_t)(features >> (32 * select));
}

static void common_image(const struct virtio *v, uint8_t at[COMMON_SIZE])
{
    memset(at, 0, COMMON_SIZE);
    store_le32(at + COMMON_DEVICE_SELECT, v->feature_select[0]);
    store_le32(at + COMMON_DEVICE_FEATURES, half(v->host_features, v->feature_select[0]));
    store_le32(at + COMMON_DRIVER_SELECT, v->feature_select[1]);
    store_le32(at + COMMON_DRIVER_FEATURES, half(v->guest_features, v->feature_select[1]));
    store_le16(at + COMMON_CONFIG_VECTOR, v->config_vector);
    store_le16(at + COMMON_QUEUES, (uint16_t)v->queues);
    at[COMMON_STATUS] = v->status;
    store_le16(at + COMMON_QUEUE_SELECT, v->queue_select);
    if (v->queue_select >= v->queues)
        return; /* a size of 0: there is none */
    const struct virtqueue *q = &v->queue[v->queue_select];
    store_le16(at + COMMON_QUEUE_SIZE, q->size);
    store_le16(at + COMMON_QUEUE_VECTOR, q->vector);
    store_le16(at + COMMON_QUEUE_ENABLE, q->enabled);
    store_le16(at + COMMON_QUEUE_BELL, v->queue_select);
    store_le64(at + COMMON_QUEUE_DESC, q->desc);
    store_le64(at + COMMON_QUEUE_AVAIL, q->avail);
    store_le64(at + COMMON_QUEUE_USED, q->used);
}

static uint64_t cut(const uint8_t *image, size_t have, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        if (offset + i < have)
            value |= (uint64_t)image[offset + i] << (8 * i);
    return value;
}

/* A vector that there is not reads back as none (4.1.5.1.2). */
static uint16_t vector_of(const struct virtio *v, uint64_t value)
{
    return value <= v->queues ? (uint16_t)value : VIRTIO_NO_VECTOR;
}

static void set_half(uint64_t *value, bool high, uint32_t part)
{
    unsigned shift = high ? 32 : 0;
    *value = (*value & ~((uint64_t)UINT32_MAX << shift)) | (uint64_t)part << shift;
}

static void set_features(struct virtio *v, uint32_t select, uint32_t value)
{
    if (select < 2 && !(v->status & VIRTIO_FEATURES_OK))
        set_half(&v->guest_features, select, value);
}

static void enable(struct virtio *v, struct virtqueue *q)
{
    if (q->desc & 15 || q->avail & 1 || q->used & 3) {
        virtio_broken(v);
        return;
    }
    q->enabled = true;
}

static void write_queue(struct virtio *v, uint64_t offset, uint32_t value)
{
    if (v->queue_select >= v->queues)
        return;
    struct virtqueue *q = &v->queue[v->queue_select];
    if (offset == COMMON_QUEUE_VECTOR)
        q->vector = vector_of(v, value);
    if (q->enabled)
        return; /* the rest stands until the reset */
    switch (offset & ~UINT64_C(4)) {
    case COMMON_QUEUE_SIZE:
        if (offset == COMMON_QUEUE_SIZE && is_pow2(value) && value <= v->queue_max)
            q->size = (uint16_t)value;
        if (offset == COMMON_QUEUE_ENABLE && value == 1)
            enable(v, q);
        break;
    case COMMON_QUEUE_DESC:
        set_half(&q->desc, offset & 4, value);
        break;
    case COMMON_QUEUE_AVAIL:
        set_half(&q->avail, offset & 4, value);
        break;
    case COMMON_QUEUE_USED:
        set_half(&q->used, offset & 4, value);
        break;
    }
}

static void write_common(struct virtio *v, uint64_t offset, uint32_t value)
{
    if (offset == COMMON_STATUS) {
        set_status(v, (uint8_t)value);
        return;
    }
    LOCK_SCOPE(&v->lock);
    switch (offset) {
    case COMMON_DEVICE_SELECT:
        v->feature_select[0] = value;
        break;
    case COMMON_DRIVER_SELECT:
        v->feature_select[1] = value;
        break;
    case COMMON_DRIVER_FEATURES:
        set_features(v, v->feature_select[1], value);
        break;
    case COMMON_CONFIG_VECTOR:
        v->config_vector = vector_of(v, value);
        break;
    case COMMON_QUEUE_SELECT:
        v->queue_select = (uint16_t)value;
        break;
    default:
        write_queue(v, offset, value);
    }
}

/* ---- what both interfaces have --------------------------------------------------------------- */

static uint64_t read_isr(struct virtio *v)
{
    LOCK_SCOPE(&v->lock);
    uint8_t isr = v->isr;
    v->isr = 0;
    pci_pin(&v->pci, false);
    return isr;
}

static uint64_t read_device(struct virtio *v, uint64_t offset, unsigned size)
{
    uint8_t config[VIRTIO_CONFIG_SIZE] = { 0 };
    LOCK_SCOPE(&v->lock);
    v->kind->config(v, config);
    return cut(config, v->config_size, offset, size);
}

static void write_device(struct virtio *v, uint64_t offset, unsigned size, uint64_t value)
{
    LOCK_SCOPE(&v->lock);
    for (unsigned i = 0; i < size && v->kind->config_written; i++)
        if (offset + i < v->config_size)
            v->kind->config_written(v, (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
}

static uint64_t modern_read(void *opaque, uint64_t offset, unsigned size)
{
    struct virtio *v = opaque;
    uint64_t in = offset % WINDOW_SIZE;

    switch (offset - in) {
    case WINDOW_COMMON: {
        uint8_t image[COMMON_SIZE];
        LOCK_SCOPE(&v->lock);
        common_image(v, image);
        return cut(image, sizeof(image), in, size);
    }
    case WINDOW_ISR:
        return in == 0 ? read_isr(v) : 0;
    case WINDOW_DEVICE:
        return read_device(v, in, size);
    default:
        return 0;
    }
}

static void modern_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio *v = opaque;
    uint64_t in = offset % WINDOW_SIZE;

    switch (offset - in) {
    case WINDOW_COMMON:
        write_common(v, in, (uint32_t)value);
        if (size == 8)
            write_common(v, in + 4, (uint32_t)(value >> 32));
        break;
    case WINDOW_DEVICE:
        write_device(v, in, size, value);
        break;
    case WINDOW_BELLS:
        ring(v, in / BELL);
        break;
    }
}

static const struct memory_io modern_io = { modern_read, modern_write };

/* ---- the legacy interface, 4.1.4.8 ------------------------------------------------------------- */

enum {
    LEGACY_DEVICE_FEATURES = 0,
    LEGACY_DRIVER_FEATURES = 4,
    LEGACY_QUEUE_PAGE = 8,
    LEGACY_QUEUE_SIZE = 12,
    LEGACY_QUEUE_SELECT = 14,
    LEGACY_BELL = 16,
    LEGACY_STATUS = 18,
    LEGACY_ISR = 19,
    LEGACY_CONFIG_VECTOR = 20, /* these two only while MSI-X is on */
    LEGACY_QUEUE_VECTOR = 22,
    LEGACY_PAGE = 4096,
    LEGACY_PORTS = 128,
};

/* Where the device's configuration begins. */
static unsigned legacy_config(struct virtio *v)
{
    return pci_msix_on(&v->pci) ? 24 : 20;
}

static uint64_t legacy_read(void *opaque, uint64_t offset, unsigned size)
{
    struct virtio *v = opaque;
    uint8_t image[24] = { 0 };
    unsigned config = legacy_config(v);

    if (offset == LEGACY_ISR)
        return read_isr(v);
    if (offset >= config)
        return read_device(v, offset - config, size);
    LOCK_SCOPE(&v->lock);
    store_le32(image + LEGACY_DEVICE_FEATURES, (uint32_t)v->host_features);
    store_le32(image + LEGACY_DRIVER_FEATURES, (uint32_t)v->guest_features);
    store_le16(image + LEGACY_QUEUE_SELECT, v->queue_select);
    image[LEGACY_STATUS] = v->status;
    store_le16(image + LEGACY_CONFIG_VECTOR, v->config_vector);
    if (v->queue_select < v->queues) {
        const struct virtqueue *q = &v->queue[v->queue_select];
        store_le32(image + LEGACY_QUEUE_PAGE, (uint32_t)(q->desc / LEGACY_PAGE));
        store_le16(image + LEGACY_QUEUE_SIZE, q->size);
        store_le16(image + LEGACY_QUEUE_VECTOR, q->vector);
    }
    return cut(image, config, offset, size);
}

/* 2.6.2: the three parts lie one behind the other, the used ring on a page of its own. */
static void set_page(struct virtio *v, uint32_t page)
{
    if (v->queue_select >= v->queues || v->queue[v->queue_select].enabled)
        return;
    struct virtqueue *q = &v->queue[v->queue_select];
    q->desc = (uint64_t)page * LEGACY_PAGE;
    q->avail = q->desc + 16ull * q->size;
    q->used = align_up(q->avail + 6 + 2ull * q->size, LEGACY_PAGE);
    q->enabled = true;
}

static void legacy_set(struct virtio *v, uint64_t offset, uint64_t value)
{
    LOCK_SCOPE(&v->lock);
    switch (offset) {
    case LEGACY_DRIVER_FEATURES:
        set_features(v, 0, (uint32_t)(value & v->host_features));
        break;
    case LEGACY_QUEUE_PAGE:
        set_page(v, (uint32_t)value);
        break;
    case LEGACY_QUEUE_SELECT:
        v->queue_select = (uint16_t)value;
        break;
    case LEGACY_CONFIG_VECTOR:
        v->config_vector = vector_of(v, value);
        break;
    case LEGACY_QUEUE_VECTOR:
        if (v->queue_select < v->queues)
            v->queue[v->queue_select].vector = vector_of(v, value);
        break;
    }
}

static void legacy_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio *v = opaque;
    unsigned config = legacy_config(v);

    if (offset >= config)
        write_device(v, offset - config, size, value);
    else if (offset == LEGACY_STATUS)
        set_status(v, (uint8_t)value);
    else if (offset == LEGACY_BELL)
        ring(v, value & 0xffff);
    else if (offset == LEGACY_QUEUE_PAGE && !value)
        reset_by_guest(v); /* how old drivers take a queue away */
    else
        legacy_set(v, offset, value);
}

static const struct memory_io legacy_io = { legacy_read, legacy_write };

/* ---- the window in configuration space, 4.1.4.7 ------------------------------------------------- */

enum { CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_DATA = 16, CAP_END = 20 };

/* The access that the guest set up: its size, 0 for nonsense. */
static unsigned window(struct virtio *v, uint64_t *offset)
{
    const uint8_t *cap = pci_config(&v->pci, v->pci_window);
    uint32_t size = load_le32(cap + CAP_LENGTH);

    *offset = load_le32(cap + CAP_OFFSET);
    bool good = (size == 1 || size == 2 || size == 4) && cap[CAP_BAR] == BAR_MODERN &&
                *offset % size == 0 && *offset + size <= 4ull * WINDOW_SIZE;
    return good ? size : 0;
}

static bool is_window(const struct virtio *v, unsigned offset, unsigned size)
{
    return v->pci_window && offset < v->pci_window + CAP_END &&
           offset + size > v->pci_window + CAP_DATA;
}

static void config_reading(struct pci_function *f, unsigned offset, unsigned size)
{
    struct virtio *v = f->opaque;
    uint64_t at;

    if (!is_window(v, offset, size))
        return;
    unsigned length = window(v, &at);
    if (length)
        store_le32(pci_config(f, v->pci_window + CAP_DATA), (uint32_t)modern_read(v, at, length));
}

static void config_written(struct pci_function *f, unsigned offset, unsigned size)
{
    struct virtio *v = f->opaque;
    uint64_t at;

    if (!is_window(v, offset, size))
        return;
    unsigned length = window(v, &at);
    uint64_t value = load_le32(pci_config(f, v->pci_window + CAP_DATA));
    if (length)
        modern_write(v, at, length, value & (UINT64_MAX >> (64 - 8 * length)));
}

/* ---- making it ------------------------------------------------------------------------------------ */

enum { CFG_COMMON = 1, CFG_BELLS, CFG_ISR, CFG_DEVICE, CFG_PCI };

static unsigned add_capability(struct virtio *v, uint8_t type, uint32_t offset, uint32_t length,
                               uint8_t bytes)
{
    unsigned at = pci_capability(&v->pci, 0x09, bytes);
    if (!at)
        return 0;
    uint8_t *c = pci_config(&v->pci, at);
    c[2] = bytes;
    c[3] = type;
    c[CAP_BAR] = type == CFG_PCI ? 0 : BAR_MODERN;
    store_le32(c + CAP_OFFSET, offset);
    store_le32(c + CAP_LENGTH, length);
    return at;
}

static bool add_capabilities(struct virtio *v)
{
    bool all = add_capability(v, CFG_COMMON, WINDOW_COMMON, WINDOW_SIZE, 16) &&
               add_capability(v, CFG_ISR, WINDOW_ISR, WINDOW_SIZE, 16) &&
               add_capability(v, CFG_DEVICE, WINDOW_DEVICE, WINDOW_SIZE, 16);
    unsigned bells = add_capability(v, CFG_BELLS, WINDOW_BELLS, WINDOW_SIZE, 20);
    v->pci_window = add_capability(v, CFG_PCI, 0, 0, CAP_END);
    if (!all || !bells || !v->pci_window)
        return false;
    store_le32(pci_config(&v->pci, bells + 16), BELL);
    memset(pci_config_mask(&v->pci, v->pci_window + CAP_BAR), 0xff, 1);
    memset(pci_config_mask(&v->pci, v->pci_window + CAP_OFFSET), 0xff, CAP_END - CAP_OFFSET);
    return true;
}

static int add_function(struct virtio *v, struct error **err)
{
    struct pci_identity id = {
        .vendor = 0x1af4,
        /* 4.1.2.1: of the block device, and so on */
        .device = (uint16_t)(v->legacy ? 0x1000 + v->kind->id - 1 : 0x1040 + v->kind->id),
        .subsystem_vendor = 0x1af4,
        .subsystem = v->legacy ? v->kind->id : 0x1100,
        .class_code = v->kind->class_code,
        .revision = v->legacy ? 0 : 1,
        .interrupt = true,
        .express = v->modern,
    };
    return pci_add(v->device.host->pci, &v->pci, &id, v->addr, err);
}

static int add_bars(struct virtio *v)
{
    int r = v->legacy ? pci_bar_ports(&v->pci, BAR_LEGACY, LEGACY_PORTS, &legacy_io, v) : 0;
    if (r == 0 && v->modern)
        r = pci_bar_memory(&v->pci, BAR_MODERN, 4 * WINDOW_SIZE, PCI_BAR_64 | PCI_BAR_PREFETCH,
                           &modern_io, v);
    if (r == 0)
        r = pci_msix(&v->pci, BAR_MSIX, v->queues + 1);
    if (r == 0 && v->modern && !add_capabilities(v))
        r = -ENOSPC;
    return r;
}

int virtio_realize(struct virtio *v, struct error **err)
{
    v->legacy = v->disable_legacy != VIRTIO_ON;
    v->modern = v->disable_modern != VIRTIO_ON;
    if (!v->legacy && !v->modern)
        return error_set(err, EINVAL, "disable-legacy and disable-modern leave nothing of it");
    v->host_features |= v->indirect ? VIRTIO_F_INDIRECT_DESC : 0;
    v->host_features |= v->event_idx ? VIRTIO_F_EVENT_IDX : 0;
    v->host_features |= v->modern ? VIRTIO_F_VERSION_1 : 0;
    v->host_features |= v->legacy ? VIRTIO_F_ANY_LAYOUT : 0;
    int r = add_function(v, err);
    if (r < 0)
        return r;
    pthread_mutex_init(&v->lock, NULL);
    pthread_mutex_init(&v->reset_lock, NULL);
    v->made = true;
    v->pci.opaque = v;
    v->pci.config_written = config_written;
    v->pci.config_reading = config_reading;
    r = add_bars(v);
    if (r < 0)
        return error_set(err, -r, "its PCI function could not be made: %s", strerror(-r));
    clear(v);
    return 0;
}

void virtio_free(struct virtio *v)
{
    if (!v->made)
        return;
    pci_remove(&v->pci);
    pthread_mutex_destroy(&v->lock);
    pthread_mutex_destroy(&v->reset_lock);
}
