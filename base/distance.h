/* "Did you mean ...?": how far apart two words are. */
#ifndef BASE_DISTANCE_H
#define BASE_DISTANCE_H

#include <stddef.h>

/* Insertions, deletions, replacements and swaps of neighbours that turn a into b. Words longer than
 * 63 characters count as far apart (at least 64). */
unsigned edit_distance(const char *a, const char *b);

/* Keeps the best candidate so far:
 *
 *     struct nearest best = nearest_begin("clustersize");
 *     for (...) nearest_try(&best, name);
 *     if (best.name) "did you mean '%s'?"
 */
struct nearest {
    const char *wanted;
    const char *name; /* NULL: nothing close enough */
    unsigned distance;
};
struct nearest nearest_begin(const char *wanted);
void nearest_try(struct nearest *best, const char *candidate);

#endif
