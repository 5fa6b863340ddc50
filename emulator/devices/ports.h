/* The space that IN and OUT reach: who answers at which port.
 *
 * Threads: any, at any time; callbacks come on the thread of the CPU that made the access, with no lock held. A device that
 * was removed may be called once more by an access that began before.
 */
#ifndef DEVICES_PORTS_H
#define DEVICES_PORTS_H

#include <stddef.h>
#include <stdint.h>

struct memory_io;
struct ports;

struct ports *ports_new(void); /* NULL: no memory */
void ports_free(struct ports *ports);

/* Where ranges overlap the one added last answers. Offsets in callbacks count from `port`. An access that begins in a range
 * and goes beyond it is made byte by byte. 0, -EINVAL (beyond port 0xffff), -ENOMEM. */
int ports_add(struct ports *ports, uint16_t port, uint32_t size, const struct memory_io *io,
              void *opaque);
/* The range last added at just this port by this device (NULL: by any). */
void ports_remove(struct ports *ports, uint16_t port, const void *opaque);

uint32_t ports_in(struct ports *ports, uint16_t port, unsigned size); /* ones where nobody is */
void ports_out(struct ports *ports, uint16_t port, unsigned size, uint32_t value);
/* Range number i, for `info mtree`; -ENOENT past the last. */
int ports_at(struct ports *ports, size_t i, uint16_t *port, uint32_t *size);

#endif
