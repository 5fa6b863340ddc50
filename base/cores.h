/* How many cores this process may run on (its affinity mask, not what the machine has); >= 1. */
#ifndef BASE_CORES_H
#define BASE_CORES_H

unsigned usable_cores(void);

#endif
