/* The one table of kinds of machine. */
#include "machine.h"

#include "base/macros.h"

extern const struct machine_type machine_q35;

static const struct machine_type *const types[] = { &machine_q35 };

const struct machine_type *machine_type_at(unsigned i)
{
    return i < ARRAY_SIZE(types) ? types[i] : NULL;
}
