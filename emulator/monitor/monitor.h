/* The monitor: commands typed by people, or by programs that play them.
 *
 * Threads: lines are carried out on the chardevs' thread, one at a time. Commands that change the machine are requests; the
 * monitor waits for stop and cont, and for no other.
 */
#ifndef MONITOR_MONITOR_H
#define MONITOR_MONITOR_H

#include <stdbool.h>

struct error;
struct machine;
struct monitor;

/* A monitor on the chardev of this name. 0 or a negative errno. */
int monitor_new(const char *chardev, struct machine *machine, const char *name, bool paused,
                struct monitor **out, struct error **err);
void monitor_free(struct monitor *monitor);

#endif
