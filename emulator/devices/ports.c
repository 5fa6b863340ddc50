#include "ports.h"

#include "base/cleanup.h"
#include "base/vector.h"
#include "cpu/memory.h"

struct range {
    uint32_t start, size;
    const struct memory_io *io;
    void *opaque;
};

struct ports {
    pthread_mutex_t lock;
    VECTOR(struct range) ranges; /* the last one goes before */
};

struct ports *ports_new(void)
{
    struct ports *ports = calloc(1, sizeof *ports);
    if (ports)
        pthread_mutex_init(&ports->lock, NULL);
    return ports;
}

void ports_free(struct ports *ports)
{
    if (!ports)
        return;
    vector_free(&ports->ranges);
    pthread_mutex_destroy(&ports->lock);
    free(ports);
}

int ports_add(struct ports *ports, uint16_t port, uint32_t size, const struct memory_io *io,
              void *opaque)
{
    if (!size || size > 0x10000u - port)
        return -EINVAL;
    LOCK_SCOPE(&ports->lock);
    return vector_push(&ports->ranges,
                       (struct range){ .start = port, .size = size, .io = io, .opaque = opaque });
}

void ports_remove(struct ports *ports, uint16_t port, const void *opaque)
{
    LOCK_SCOPE(&ports->lock);
    for (size_t i = ports->ranges.len; i-- > 0;) {
        if (ports->ranges.at[i].start == port &&
            (!opaque || ports->ranges.at[i].opaque == opaque)) {
            vector_remove(&ports->ranges, i);
            return;
        }
    }
}

/* False: nobody there. */
static bool find(struct ports *ports, uint32_t port, struct range *found)
{
    LOCK_SCOPE(&ports->lock);
    for (size_t i = ports->ranges.len; i-- > 0;) {
        if (port - ports->ranges.at[i].start < ports->ranges.at[i].size) {
            *found = ports->ranges.at[i];
            return true;
        }
    }
    return false;
}

uint32_t ports_in(struct ports *ports, uint16_t port, unsigned size)
{
    struct range r;
    uint32_t ones = UINT32_MAX >> (32 - 8 * size), value = 0;
    bool there = find(ports, port, &r);
    if (there && r.start + r.size - port >= size)
        return (uint32_t)r.io->read(r.opaque, port - r.start, size) & ones;
    if (size == 1)
        return ones;
    if (!there) /* nobody at the first port; perhaps at the next ones */
        value = ones & 0xff;
    for (unsigned i = there ? 0 : 1; i < size; i++)
        value |= ports_in(ports, (uint16_t)(port + i), 1) << (8 * i);
    return value;
}

void ports_out(struct ports *ports, uint16_t port, unsigned size, uint32_t value)
{
    struct range r;
    bool there = find(ports, port, &r);
    if (there && r.start + r.size - port >= size) {
        r.io->write(r.opaque, port - r.start, size, value & (UINT32_MAX >> (32 - 8 * size)));
        return;
    }
    for (unsigned i = there ? 0 : 1; size > 1 && i < size; i++)
        ports_out(ports, (uint16_t)(port + i), 1, value >> (8 * i) & 0xff);
}

int ports_at(struct ports *ports, size_t i, uint16_t *port, uint32_t *size)
{
    LOCK_SCOPE(&ports->lock);
    if (i >= ports->ranges.len)
        return -ENOENT;
    *port = (uint16_t)ports->ranges.at[i].start;
    *size = ports->ranges.at[i].size;
    return 0;
}
