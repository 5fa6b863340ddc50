#include "base/distance.h"

#include <ctype.h>
#include <string.h>

#include "base/macros.h"

enum { LONGEST = 63 };

/* Upper and lower case, '-' and '_' are the same key to a hurried hand. */
static int fold(char c)
{
    return c == '_' ? '-' : tolower((unsigned char)c);
}

unsigned edit_distance(const char *a, const char *b)
{
    unsigned rows[3][LONGEST + 1];
    unsigned *before = rows[0], *above = rows[1], *row = rows[2];
    size_t la = strlen(a), lb = strlen(b);

    if (la > LONGEST || lb > LONGEST)
        return LONGEST + 1;
    for (size_t j = 0; j <= lb; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= la; i++) {
        unsigned *oldest = before;

        before = above;
        above = row;
        row = oldest;
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= lb; j++) {
            unsigned differs = fold(a[i - 1]) != fold(b[j - 1]);
            unsigned best = MIN(above[j], row[j - 1]) + 1;

            best = MIN(best, above[j - 1] + differs);
            if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) &&
                fold(a[i - 2]) == fold(b[j - 1]))
                best = MIN(best, before[j - 2] + 1);
            row[j] = best;
        }
    }
    return row[lb];
}

struct nearest nearest_begin(const char *wanted)
{
    /* About a third of the letters may be wrong. */
    unsigned limit = (unsigned)MIN(strlen(wanted), (size_t)LONGEST) / 3 + 1;

    return (struct nearest){ .wanted = wanted, .distance = limit + 1 };
}

void nearest_try(struct nearest *best, const char *candidate)
{
    unsigned distance = edit_distance(best->wanted, candidate);

    if (distance < best->distance && distance < strlen(candidate)) {
        best->distance = distance;
        best->name = candidate;
    }
}
