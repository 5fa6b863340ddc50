/* The terminal: how wide, which letters, whether colours are welcome. */
#ifndef IMG_TERM_H
#define IMG_TERM_H

#include <stdbool.h>

/* COLUMNS if set, else what the terminal says, else 80. */
unsigned term_columns(int fd);

/* The locale can show block characters. */
bool term_utf8(void);

/* fd is a terminal that knows colours and NO_COLOR is not set (https://no-color.org). */
bool term_colors(int fd);

#endif
