/* A file without a name, for what finds no room in memory: it is gone when its descriptor is closed. */
#ifndef BASE_HIDDEN_H
#define BASE_HIDDEN_H

/* Where such files lie: TMPDIR in the environment, or /var/tmp. */
const char *hidden_folder(void);

/* Open for reading and writing; a negative errno. */
int hidden_open(void);

#endif
