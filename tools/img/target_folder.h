/* A target of several files: all of them are made in a hidden folder beside it, under their final names, since one of
 * them names the others.
 *
 * They take their places by exchange with what was there, the one that names the others last; when one cannot, those
 * before it go back. What was there goes with the folder. */
#ifndef IMG_TARGET_FOLDER_H
#define IMG_TARGET_FOLDER_H

#include <stdbool.h>

/* The path is the last file's place; the folder holds it and the others. durable: all are on the disk before. False
 * after a complaint: then everything is as it was. */
bool folder_publish(const char *folder, const char *path, bool durable);

/* With all that is in it; no folder: the file. Errors are ignored. */
void folder_remove(const char *folder);

#endif
