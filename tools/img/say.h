/* The private side of say.c. */
#ifndef IMG_SAY_H
#define IMG_SAY_H

/* Messages show `name` wherever the block layer says `work`. NULL, NULL: no more. The strings stay
 * the caller's. */
void say_alias(const char *work, const char *name);

#endif
