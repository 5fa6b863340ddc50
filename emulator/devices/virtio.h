/* Virtio 1.1: split virtqueues (section 2.6) and their transport over PCI (4.1), modern and legacy.
 *
 * A guest that breaks the rules (a chain that loops, an address that is no RAM, an index that ran away) puts its device into
 * "needs reset" (2.1.1): the queues stand still until it is reset.
 *
 * Threads: `lock` guards everything but what realize made. The kind's `notified` comes without it and pops requests under it;
 * completions take it and push. While `resetting`, requests that end are forgotten, and nothing new is popped.
 */
#ifndef DEVICES_VIRTIO_H
#define DEVICES_VIRTIO_H

#include "device.h"
#include "dma.h"
#include "pci.h"

#include <pthread.h>

enum {
    VIRTIO_QUEUES = 64,
    VIRTIO_QUEUE_SIZE = 1024, /* the longest */
    VIRTIO_CONFIG_SIZE = 64,
    VIRTIO_NO_VECTOR = 0xffff,
};

/* Device status, section 2.1. */
enum {
    VIRTIO_ACKNOWLEDGE = 1,
    VIRTIO_DRIVER = 2,
    VIRTIO_DRIVER_OK = 4,
    VIRTIO_FEATURES_OK = 8,
    VIRTIO_NEEDS_RESET = 64,
};

/* Section 6, and 6.3 for the legacy one. */
#define VIRTIO_F_ANY_LAYOUT    (UINT64_C(1) << 27)
#define VIRTIO_F_INDIRECT_DESC (UINT64_C(1) << 28)
#define VIRTIO_F_EVENT_IDX     (UINT64_C(1) << 29)
#define VIRTIO_F_VERSION_1     (UINT64_C(1) << 32)

struct virtqueue {
    uint16_t size, vector;
    bool enabled;
    uint64_t desc, avail, used;
    uint16_t seen;      /* how many heads were popped */
    uint16_t done;      /* how many were pushed */
    uint16_t signalled; /* `done` when the guest was told last */
    bool told;          /* it was told once since the queue was made */
    uint16_t in_flight;
};

struct virtio;

struct virtio_kind {
    uint16_t id; /* section 5: 2 is a block device */
    uint32_t class_code;
    /* The guest rang a queue's bell. */
    void (*notified)(struct virtio *v, unsigned queue);
    /* Fills the configuration in; under the lock. */
    void (*config)(struct virtio *v, uint8_t config[VIRTIO_CONFIG_SIZE]);
    /* The guest wrote to this byte of it; under the lock. May be NULL. */
    void (*config_written)(struct virtio *v, unsigned offset, uint8_t value);
    /* Returns when no request is under way; what can only end later ends now. Without the lock. */
    void (*cancel)(struct virtio *v);
};

struct virtio {
    struct device device;
    struct pci_function pci;
    const struct virtio_kind *kind;
    pthread_mutex_t reset_lock; /* one reset by the guest at a time; outside `lock` */
    pthread_mutex_t lock;
    bool made;
    /* options */
    char *addr;
    bool indirect, event_idx;
    int disable_legacy, disable_modern;
    /* from realize */
    uint64_t host_features;
    unsigned queues, config_size, pci_window;
    uint16_t queue_max;
    bool legacy, modern;
    /* under lock */
    uint64_t guest_features;
    uint32_t feature_select[2]; /* device's, driver's */
    uint16_t queue_select, config_vector;
    uint8_t status, isr;
    bool resetting;
    struct virtqueue queue[VIRTIO_QUEUES];
};

enum { VIRTIO_AUTO = -1, VIRTIO_OFF, VIRTIO_ON };
extern const struct opt_choice virtio_auto_choices[];

/* Rows of a device's table; struct virtio is its first member. */
#define VIRTIO_OPTIONS                                                                             \
    { .name = "addr",                                                                              \
      .type = OPT_STRING,                                                                          \
      .at = offsetof(struct virtio, addr),                                                         \
      .help = "its place on the PCI bus" },                                                        \
        { .name = "indirect_desc",                                                                 \
          .type = OPT_BOOL,                                                                        \
          .at = offsetof(struct virtio, indirect),                                                 \
          .def = "on",                                                                             \
          .help = "chains may stand in tables of their own" },                                     \
        { .name = "event_idx",                                                                     \
          .type = OPT_BOOL,                                                                        \
          .at = offsetof(struct virtio, event_idx),                                                \
          .def = "on",                                                                             \
          .help = "interrupts and bells only where they were asked for" },                         \
        { .name = "disable-legacy",                                                                \
          .type = OPT_ENUM,                                                                        \
          .at = offsetof(struct virtio, disable_legacy),                                           \
          .def = "auto",                                                                           \
          .choices = virtio_auto_choices,                                                          \
          .help = "not for drivers from before virtio 1.0" },                                      \
    {                                                                                              \
        .name = "disable-modern", .type = OPT_ENUM, .at = offsetof(struct virtio, disable_modern), \
        .def = "off", .choices = virtio_auto_choices,                                              \
        .help = "for drivers from before virtio 1.0 only"                                          \
    }

/* ---- virtio_pci.c --------------------------------------------------------------------------- */

/* kind, host_features, queues, queue_max and config_size are set. */
int virtio_realize(struct virtio *v, struct error **err);
void virtio_reset(struct virtio *v); /* of the machine: nothing is under way */
void virtio_free(struct virtio *v);
/* With the lock held. */
void virtio_broken(struct virtio *v);
void virtio_interrupt(struct virtio *v, unsigned queue);

/* ---- virtio_queue.c ------------------------------------------------------------------------- */

/* A chain of descriptors. */
struct virtio_chain {
    uint16_t head;
    struct dma out, in; /* what the device reads, what it writes */
};

/* The next chain: 1, 0 when there is none, or a negative errno when there is no memory. The chain is the caller's, who
 * ends with virtio_push or, when the device was reset, virtio_drop. With the lock held. */
int virtio_pop(struct virtio *v, unsigned queue, struct virtio_chain *chain);
/* Gives it back with `written` bytes of `in`. With the lock held. */
void virtio_push(struct virtio *v, unsigned queue, struct virtio_chain *chain, uint32_t written);
void virtio_chain_free(struct virtio_chain *chain);
/* Tells the guest about what was pushed, if it wants to know. With the lock held. */
void virtio_tell(struct virtio *v, unsigned queue);
/* Bells are wanted from now on; true: there is something to pop already. With the lock held. */
bool virtio_rearm(struct virtio *v, unsigned queue);

static inline bool virtio_has(const struct virtio *v, uint64_t feature)
{
    return v->guest_features & feature;
}

#endif
