/* The control path's error object: one sentence for the user.
 *
 * It is set once, where the failure happened, and callers may only put words in front of it.
 * A sentence names the file, the field, the value and the limit, and where there is one, the way
 * out. The number beside it is a positive errno and is never replaced by a vaguer one.
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

struct error;

/* Sets *errp (when errp is not NULL and *errp is still NULL) and returns -code, so that a
 * failing function can end with `return error_set(err, EINVAL, "...")`. */
int error_set(struct error **errp, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts words in front of the sentence: "words: sentence". Nothing happens when none is set. */
void error_prefix(struct error **errp, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The sentence; never NULL, also for NULL. */
const char *error_text(const struct error *err);

/* The positive errno, 0 for NULL. */
int error_code(const struct error *err);

void error_free(struct error *err);

/* For the cleanup attribute: `_cleanup_error_ struct error *err = NULL;` */
void error_cleanup(struct error **errp);
#define _cleanup_error_ __attribute__((cleanup(error_cleanup)))

#endif
